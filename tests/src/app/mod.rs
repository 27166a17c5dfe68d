//! Scripted applications, in this process: HTTP that can misbehave, and raw TCP.

mod answers;
mod http;
mod tcp;

pub use http::{HttpApp, Mode, Seen};
pub use tcp::TcpApp;
