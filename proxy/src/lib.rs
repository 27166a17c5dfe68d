//! Heddle's sidecar. The modules are a request's itinerary; `docs/architecture.md` walks through them.
//!
//! Pure decisions (`route`, `balance`, `access`, `retry`) never see a socket; I/O (`capture`, `carrier`, `plain`,
//! `inbound`, `outbound`) never decides policy; shared state lives in `store`, with one writer.

pub mod access;
pub mod admin;
pub mod balance;
pub mod batch;
pub mod capture;
pub mod carrier;
pub mod cli;
pub mod config;
pub mod detect;
pub mod identity;
pub mod inbound;
pub mod listen;
pub mod log;
pub mod meter;
pub mod metrics;
pub mod outbound;
pub mod path;
pub mod plain;
pub mod probe;
pub mod reason;
pub mod redirect;
pub mod rehearse;
pub mod relay;
pub mod retry;
pub mod route;
pub mod run;
pub mod store;
pub mod threads;
pub mod warm;
pub mod worker;
