//! Single questions to a starting process: does it listen, is it ready, what does it answer.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use super::load::Target;

/// Between two questions; what start-up times are measured in.
const PAUSE: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(5);

/// Waits a little before asking again.
pub fn pause() {
    thread::sleep(PAUSE);
}

/// Whether somebody accepts connections.
#[must_use]
pub fn listens(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}

/// The status of GET on a connection of its own; `None`: no answer.
#[must_use]
pub fn status(target: &Target) -> Option<u16> {
    let mut socket = TcpStream::connect(target.address).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    let request =
        format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", target.path, target.host);
    socket.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).ok()?;
    let head = answer.get(..12)?;
    std::str::from_utf8(head).ok()?.split(' ').nth(1)?.parse().ok()
}

/// What a starting process is asked.
#[derive(Debug)]
pub enum Ready {
    /// Whether it accepts connections.
    Listens(SocketAddr),
    /// Whether it answers this with 200.
    Says(Target),
}

impl Ready {
    /// Asks once.
    #[must_use]
    pub fn holds(&self) -> bool {
        match self {
            Self::Listens(address) => listens(*address),
            Self::Says(target) => status(target) == Some(200),
        }
    }
}
