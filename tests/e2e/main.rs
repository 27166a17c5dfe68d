//! The mesh as its users meet it: real processes, real sockets. One module for each thing that must hold.

mod attacks;
mod bad_http;
mod bad_input;
mod bench_control_plane;
mod bench_smoke;
mod captured;
mod complaints;
mod conformance;
mod control_plane_gone;
mod ejection_and_retries;
mod http_as_it_was;
mod identity;
mod neighbours;
mod nothing_drops;
mod one_request_over_mtls;
mod programs;
mod redirected;
mod rolling;
mod routes;
mod shop;
mod tcp;
mod topology;
mod warm_start;
mod weights;
