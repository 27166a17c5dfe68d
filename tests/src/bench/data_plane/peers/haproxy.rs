//! HAProxy with the configs in `tests/bench/haproxy`.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use anyhow::Context;
use heddle_api::ports;
use rustix::process::{Resource, getrlimit};

use super::{Field, Peer, Prepared, configure, only_one_endpoint};
use crate::{bench::data_plane::probe::Ready, program};

pub(super) fn program() -> anyhow::Result<PathBuf> {
    program::find("haproxy").context("needs haproxy")
}

pub(super) fn prepare(field: &mut Field) -> anyhow::Result<Prepared> {
    let program = program()?;
    only_one_endpoint(field)?;
    let (outbound, inbound) = field.pair(Peer::Haproxy);
    let values = [
        ("OUTBOUND", outbound.to_string()),
        ("INBOUND", inbound.to_string()),
        ("SITE", field.site.ip.to_string()),
        ("CERTS", field.certificates.display().to_string()),
        ("CONNECTIONS", connections().to_string()),
    ];
    let directory = field.world.directory().join("haproxy");
    let templates = [
        ("inbound.cfg", include_str!("../../../../bench/haproxy/inbound.cfg")),
        ("outbound.cfg", include_str!("../../../../bench/haproxy/outbound.cfg")),
    ];
    let mut commands = Vec::new();
    for (name, template) in templates {
        let file = configure(&directory, name, template, &values)?;
        let mut command = Command::new(&program);
        command.arg("-db").arg("-f").arg(file);
        commands.push(command);
    }
    let ready = vec![
        Ready::Listens(SocketAddr::new(inbound, ports::MESH)),
        Ready::Listens(SocketAddr::new(outbound, ports::OUTBOUND)),
    ];
    Ok(Prepared { outbound, commands, ready })
}

/// What the limit of descriptors allows, less some for listeners and the like, and not more than any workload makes.
fn connections() -> u64 {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    (descriptors.saturating_sub(64) / 2).min(20_000)
}
