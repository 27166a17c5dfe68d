//! The ground that all peers of a run share: addresses, applications, Heddle's control plane, certificates.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use super::{certificates, peers::Peer, site, site::Site};
use crate::{World, block::Block, manifest, manifest::PodManifest};

/// The pod of the client, as its sidecar names it.
pub const CLIENT: &str = "shop/web";
/// The pod of the applications.
pub const SERVER: &str = "shop/site-v1";
/// The rules that one HTTPRoute may have (Gateway API).
const RULES: usize = 16;

/// How much config the pairs have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Endpoints of the Service, at least one. They are addresses of one inbound proxy.
    pub endpoints: usize,
    /// Rules of its route, at least one: what `/r/N/` matches for N below it, then everything else.
    pub routes: usize,
}

impl Shape {
    /// One endpoint, one route.
    pub const PLAIN: Self = Self { endpoints: 1, routes: 1 };
}

/// The shared ground. Everything on it ends when it is dropped.
#[derive(Debug)]
pub struct Field {
    /// What the pairs' config holds.
    pub shape: Shape,
    /// Addresses, directory, Heddle's control plane.
    pub world: World,
    /// The applications.
    pub site: Site,
    /// For the peers that have no control plane.
    pub certificates: PathBuf,
    /// Endpoints of Heddle's beyond the applications' own address.
    pub endpoints: Vec<IpAddr>,
    pairs: BTreeMap<Peer, (IpAddr, IpAddr)>,
    /// Where more addresses come from.
    pub blocks: Blocks,
}

/// Addresses beyond those of the world's block.
#[derive(Debug, Default)]
pub struct Blocks {
    blocks: Vec<Block>,
    taken: usize,
}

/// Addresses taken of a block.
const PER_BLOCK: usize = 250;

impl Blocks {
    /// So many that nobody else has.
    ///
    /// # Errors
    /// When none are left on this machine.
    pub fn take(&mut self, count: usize) -> anyhow::Result<Vec<IpAddr>> {
        let mut addresses = Vec::with_capacity(count);
        while addresses.len() < count {
            if self.taken == self.blocks.len() * PER_BLOCK {
                self.blocks.push(Block::claim()?);
            }
            if let Some(block) = self.blocks.last() {
                addresses.push(block.address(2 + (self.taken % PER_BLOCK) as u8));
            }
            self.taken += 1;
        }
        Ok(addresses)
    }
}

impl Field {
    /// Starts applications and control plane.
    ///
    /// # Errors
    /// When one cannot be started.
    pub async fn new(shape: Shape) -> anyhow::Result<Self> {
        let mut world = World::new()?;
        let ip = world.new_address();
        let certificates = world.directory().join("certificates");
        certificates::write(&certificates)?;
        let mut blocks = Blocks::default();
        let endpoints = blocks.take(shape.endpoints - 1)?;
        let site = Site::start(&world, ip, &endpoints)?;
        let mut field = Self { shape, world, site, certificates, endpoints, pairs: BTreeMap::new(), blocks };
        field.declare()?;
        field.world.start_control_plane().await?;
        Ok(field)
    }

    /// The addresses of a peer's outbound and inbound proxy, the same each time it is started.
    pub fn pair(&mut self, peer: Peer) -> (IpAddr, IpAddr) {
        let world = &mut self.world;
        *self.pairs.entry(peer).or_insert_with(|| (world.new_address(), world.new_address()))
    }

    /// The manifests of the applications.
    fn declare(&self) -> anyhow::Result<()> {
        let services = [
            ("site", site::HTTP, "http"),
            ("echo", site::GRPC, "grpc"),
            ("redis", site::REDIS, "tcp"),
            ("bulk", site::BULK, "tcp"),
        ];
        for (name, port, declares) in services {
            let service = manifest::service(&format!("shop/{name}"), port, declares, "app: site");
            self.world.save(&format!("service-{name}.yaml"), &service)?;
        }
        let addresses = std::iter::once(self.site.ip).chain(self.endpoints.iter().copied());
        for (n, ip) in (1..).zip(addresses) {
            let pod = PodManifest {
                namespace: "shop".to_owned(),
                name: format!("site-v{n}"),
                service_account: "site".to_owned(),
                labels: vec![("app".to_owned(), "site".to_owned())],
                ip,
                ports: services.map(|(_, port, _)| port).into(),
                meshed: true,
                ready: true,
                terminating: false,
            };
            self.world.save(&pod.file(), &pod.yaml())?;
        }
        let routes: Vec<_> = (1..self.shape.routes).collect();
        for (n, rules) in routes.chunks(RULES).enumerate() {
            let rules: String = rules
                .iter()
                .map(|route| {
                    let path = format!("{{type: PathPrefix, value: /r/{route}/}}");
                    format!(
                        "  - matches: [{{path: {path}}}]\n    backendRefs: [{{name: site, port: {}}}]\n",
                        site::HTTP
                    )
                })
                .collect();
            let name = format!("route-{n}");
            let route = manifest::http_route(&format!("shop/{name}"), "site", site::HTTP, &rules);
            self.world.save(&format!("{name}.yaml"), &route)?;
        }
        if self.shape.routes > 1 {
            let rules = format!("  - backendRefs: [{{name: site, port: {}}}]\n", site::HTTP);
            let route = manifest::http_route("shop/rest", "site", site::HTTP, &rules);
            self.world.save("rest.yaml", &route)?;
        }
        Ok(())
    }
}
