//! The mesh as its users meet it: real processes, real sockets. One module for each thing that must hold.

mod one_request_over_mtls;
