//! The floor, `tests/src/bin/floor.rs`.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use heddle_api::ports;

use super::{Field, Peer, Prepared, only_one_endpoint};
use crate::{
    bench::data_plane::{probe::Ready, site},
    binaries,
};

/// It lies beside the benchmark, which its package builds.
pub(super) fn program() -> anyhow::Result<PathBuf> {
    binaries::beside("floor")
}

pub(super) fn prepare(field: &mut Field) -> anyhow::Result<Prepared> {
    let program = program()?;
    only_one_endpoint(field)?;
    let (outbound, inbound) = field.pair(Peer::Floor);
    let mesh = SocketAddr::new(inbound, ports::MESH).to_string();
    let app = |port| SocketAddr::new(field.site.ip, port).to_string();
    let mut receiver = Command::new(&program);
    receiver.arg("inbound").arg(&field.certificates).args([&mesh, &app(site::HTTP)]);
    let http = SocketAddr::new(outbound, ports::OUTBOUND);
    let mut sender = Command::new(&program);
    sender.arg("outbound").arg(&field.certificates).args([&mesh, &http.to_string()]);
    for port in [site::REDIS, site::BULK] {
        sender.arg(format!("{}={}", SocketAddr::new(outbound, port), app(port)));
    }
    Ok(Prepared { outbound, commands: vec![receiver, sender], ready: vec![Ready::Listens(http)] })
}
