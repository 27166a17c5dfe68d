//! The applications behind every pair, all at one address: nginx at 8000.

use std::{net::IpAddr, net::SocketAddr, path::PathBuf, process::Command};

use anyhow::{Context, bail};

use super::{peers::fill, probe};
use crate::{World, process::Process, program};

/// nginx.
pub const HTTP: u16 = 8000;
/// gRPC, HTTP/2 without TLS.
pub const GRPC: u16 = 9000;
/// redis.
pub const REDIS: u16 = 6379;
/// A source and sink of bytes.
pub const BULK: u16 = 7000;

/// The running applications.
#[derive(Debug)]
pub struct Site {
    /// Where they all are.
    pub ip: IpAddr,
    _processes: Vec<Process>,
}

impl Site {
    /// Starts them at `ip`.
    ///
    /// # Errors
    /// When one is missing or does not start.
    pub fn start(world: &World, ip: IpAddr) -> anyhow::Result<Self> {
        let nginx = nginx(world, ip)?;
        Ok(Self { ip, _processes: vec![nginx] })
    }
}

fn nginx(world: &World, ip: IpAddr) -> anyhow::Result<Process> {
    let program = program::find("nginx").context("needs nginx")?;
    let home: PathBuf = world.directory().join("nginx");
    std::fs::create_dir_all(home.join("html"))?;
    for (name, size) in [("1k", 1024), ("64k", 64 * 1024)] {
        std::fs::write(home.join("html").join(name), vec![b'x'; size])?;
    }
    let config = fill(
        include_str!("../../../bench/nginx-site.conf"),
        &[("HOME", &home.display().to_string()), ("SITE", &ip.to_string())],
    );
    std::fs::write(home.join("nginx.conf"), config)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(&home).arg("-c").arg(home.join("nginx.conf"));
    // As root nginx would serve as another user, who may not enter the world's directory.
    if rustix::process::getuid().is_root() {
        command.args(["-g", "user root;"]);
    }
    listening(world.run("nginx", &command)?, SocketAddr::new(ip, HTTP))
}

/// Waits until the process listens.
pub(super) fn listening(mut process: Process, address: SocketAddr) -> anyhow::Result<Process> {
    while !probe::listens(address) {
        if !process.is_running() {
            bail!("{} ended: {}", process.name(), process.log());
        }
        probe::pause();
    }
    Ok(process)
}
