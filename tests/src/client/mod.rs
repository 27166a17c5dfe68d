//! Scripted clients: HTTP/1 kept alive, HTTP/2 with prior knowledge, raw bytes, HTTP/2 frames by hand.

pub mod frames;
mod http;
mod raw;

pub use http::{Answer, Body, Client, body, empty};
pub use raw::Raw;
