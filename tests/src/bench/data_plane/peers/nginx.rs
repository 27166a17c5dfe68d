//! nginx with the configs in `tests/bench/nginx`.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use anyhow::Context;
use heddle_api::ports;

use super::{Field, Peer, Prepared, configure, only_one_endpoint};
use crate::{bench::data_plane::probe::Ready, program};

pub(super) fn program() -> anyhow::Result<PathBuf> {
    program::find("nginx").context("needs nginx")
}

pub(super) fn prepare(field: &mut Field) -> anyhow::Result<Prepared> {
    let program = program()?;
    only_one_endpoint(field)?;
    let (outbound, inbound) = field.pair(Peer::Nginx);
    let directory = field.world.directory().join("nginx-pair");
    let values = [
        ("OUTBOUND", outbound.to_string()),
        ("INBOUND", inbound.to_string()),
        ("SITE", field.site.ip.to_string()),
        ("CERTS", field.certificates.display().to_string()),
        ("HOME", directory.display().to_string()),
    ];
    let templates = [
        ("inbound.conf", include_str!("../../../../bench/nginx/inbound.conf")),
        ("outbound.conf", include_str!("../../../../bench/nginx/outbound.conf")),
    ];
    let mut commands = Vec::new();
    for (name, template) in templates {
        let file = configure(&directory, name, template, &values)?;
        let mut command = Command::new(&program);
        command.arg("-p").arg(&directory).arg("-c").arg(file);
        if rustix::process::getuid().is_root() {
            command.args(["-g", "user root;"]);
        }
        commands.push(command);
    }
    let ready = vec![
        Ready::Listens(SocketAddr::new(inbound, ports::MESH)),
        Ready::Listens(SocketAddr::new(outbound, ports::OUTBOUND)),
    ];
    Ok(Prepared { outbound, commands, ready })
}
