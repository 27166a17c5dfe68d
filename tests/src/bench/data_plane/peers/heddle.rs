//! Heddle as it is: a control plane that reads a directory of manifests, and two sidecars that join it.

use std::net::{IpAddr, SocketAddr};

use heddle_api::{
    ports,
    probe::{Action, HttpGet, Kind, Probe, Probes},
};

use super::{Field, Peer, Prepared};
use crate::{
    bench::data_plane::{
        field::{CLIENT, SERVER},
        load::Target,
        probe::Ready,
        site,
    },
    manifest::PodManifest,
};

/// The application's.
const CONTAINER: &str = "site";

pub(super) fn prepare(field: &mut Field) -> anyhow::Result<Prepared> {
    let (outbound, _) = field.pair(Peer::Heddle);
    let client = PodManifest {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        service_account: "web".to_owned(),
        labels: vec![("app".to_owned(), "web".to_owned())],
        ip: outbound,
        ports: Vec::new(),
        meshed: true,
        ready: true,
        terminating: false,
    };
    field.world.save(&client.file(), &client.yaml())?;
    let endpoints = field.endpoints.clone();

    let token = field.world.token("shop", "site", "1h")?;
    let mut receiver = field.world.sidecar_command(SERVER, field.site.ip, &token)?;
    receiver.args(["--probes", &serde_json::to_string(&probes())?]);
    // The one inbound sidecar answers for every endpoint of the workloads with many, as if they were its pod's addresses.
    if !endpoints.is_empty() {
        let first = |port| SocketAddr::new(field.site.ip, port).to_string();
        receiver.args([
            "--outbound-listen",
            &first(ports::OUTBOUND),
            "--inbound-listen",
            &first(ports::INBOUND),
        ]);
        receiver.args(["--admin-listen", &first(ports::ADMIN), "--metrics-listen", &first(ports::METRICS)]);
        receiver.args(["--mesh-listen", &first(ports::MESH)]);
        for address in endpoints {
            receiver.args(["--pod-ip", &address.to_string()]);
            receiver.args(["--mesh-listen", &SocketAddr::new(address, ports::MESH).to_string()]);
        }
    }
    let token = field.world.token("shop", "web", "1h")?;
    let mut sender = field.world.sidecar_command(CLIENT, outbound, &token)?;
    for (port, name) in [(site::REDIS, "redis"), (site::BULK, "bulk")] {
        sender.args(["--forward", &format!("{}={name}:{port}", SocketAddr::new(outbound, port))]);
    }
    let ready = [field.site.ip, outbound].map(|ip| Ready::Says(metrics(ip)));
    let mut ready = Vec::from(ready);
    ready.push(Ready::Says(Target {
        path: format!("/probe/{CONTAINER}/{}", Kind::Readiness),
        ..metrics(field.site.ip)
    }));
    Ok(Prepared { outbound, commands: vec![receiver, sender], ready })
}

/// Where a sidecar answers kubelet.
fn metrics(ip: IpAddr) -> Target {
    let address = SocketAddr::new(ip, ports::METRICS);
    Target { address, host: address.to_string(), path: "/ready".to_owned() }
}

/// As the injector hands them over. A pod gets requests when its readiness probe has succeeded, which kubelet asks for
/// through the sidecar; so it is one of the things that are waited for.
fn probes() -> Probes {
    let get = HttpGet { port: site::HTTP, path: "/1k".to_owned(), https: false, headers: Vec::new() };
    let mut probes = Probes::default();
    probes.insert(CONTAINER, Kind::Readiness, Probe { action: Action::HttpGet(get), timeout_seconds: 1 });
    probes
}
