//! Scripted clients: HTTP/1 kept alive, HTTP/2 with prior knowledge, raw bytes.

mod http;
mod raw;

pub use http::{Answer, Body, Client, body, empty};
pub use raw::Raw;
