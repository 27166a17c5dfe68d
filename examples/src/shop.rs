//! The shop of `examples/shop`, running: a control plane, `web`, and `reviews` in three versions, each pod with its
//! own loopback address and its own sidecar process.

use std::{
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::Path,
    time::Duration,
};

use anyhow::{Context, ensure};
use heddle_tests::{Pod, World, binaries, block::Block, manifest};

/// Workload certificates of the demo live this long, so that a renewal happens while you watch.
pub(crate) const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(20);

/// The service that callers ask for.
pub(crate) const REVIEWS: &str = "reviews:9080";

/// The file whose weights the story edits.
pub(crate) const ROUTE: &str = "reviews-route.yaml";

/// What runs.
#[derive(Debug)]
pub(crate) struct Shop {
    /// The mesh.
    pub(crate) world: World,
    /// The caller.
    pub(crate) web: Pod,
    /// Versions 1, 2 and 3 of the service.
    pub(crate) reviews: [Pod; 3],
}

impl Shop {
    /// Builds the programs, checks that the addresses are free, starts everything and waits until it is ready.
    ///
    /// # Errors
    /// When a program does not build, an address is taken, or a process does not start.
    pub(crate) async fn open() -> anyhow::Result<Self> {
        println!("building the control plane and the sidecar …");
        binaries::path(binaries::PROXY)?;
        check_addresses()?;

        let mut world = World::on(Block::at([127, 0, 0])?, Ipv4Addr::LOCALHOST.into())?;
        world.certificates_live(CERTIFICATE_LIFETIME);
        let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("shop");
        for entry in std::fs::read_dir(&manifests).with_context(|| manifests.display().to_string())? {
            let entry = entry?;
            std::fs::copy(entry.path(), world.manifests().join(entry.file_name()))?;
        }

        println!("starting the control plane and four pods, each with a sidecar …");
        world.start_control_plane().await?;
        let reviews = [
            start(&mut world, "shop/reviews-v1", 11, Some("v1")).await?,
            start(&mut world, "shop/reviews-v2", 12, Some("v2")).await?,
            start(&mut world, "shop/reviews-v3", 13, Some("v3")).await?,
        ];
        let web = start(&mut world, "shop/web", 10, None).await?;
        web.answers(REVIEWS, "/", |answer| answer.status == 200).await;
        Ok(Self { world, web, reviews })
    }

    /// Saves the route with these weights for the three versions.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn split(&self, weights: [i32; 3]) -> anyhow::Result<()> {
        let shares = [("reviews-v1", weights[0]), ("reviews-v2", weights[1]), ("reviews-v3", weights[2])];
        self.world.save(ROUTE, &manifest::split_route("shop/reviews", "reviews", 9080, &shares))
    }

    /// Saves the route so that the Service itself balances over the three.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn balance(&self) -> anyhow::Result<()> {
        self.world.save(ROUTE, &manifest::split_route("shop/reviews", "reviews", 9080, &[("reviews", 1)]))
    }
}

async fn start(world: &mut World, name: &str, host: u8, version: Option<&str>) -> anyhow::Result<Pod> {
    let mut pod = world.pod(name).at(Ipv4Addr::new(127, 0, 0, host).into()).as_declared();
    if let Some(version) = version {
        pod = pod.answering(version);
    }
    pod.start().await
}

/// Says which address is taken before anything is started.
fn check_addresses() -> anyhow::Result<()> {
    let free = |ip: IpAddr, port: u16| TcpListener::bind((ip, port)).is_ok();
    let pod_ports = heddle_tests::world::SIDECAR_PORTS.into_iter().chain([heddle_tests::world::APP_PORT]);
    let control_plane = [15010, 15014].map(|port| (1, port));
    let pods = (10..=13).flat_map(|host| pod_ports.clone().map(move |port| (host, port)));
    let taken: Vec<_> = control_plane
        .into_iter()
        .chain(pods)
        .filter(|&(host, port)| !free(Ipv4Addr::new(127, 0, 0, host).into(), port))
        .map(|(host, port)| format!("127.0.0.{host}:{port}"))
        .collect();
    ensure!(
        taken.is_empty(),
        "these addresses are taken: {}; is another mesh or demo running? `ss -ltnp` names who listens",
        taken.join(", ")
    );
    Ok(())
}

/// Starts the shop, prints commands to try, and stays until Ctrl-C.
///
/// # Errors
/// When the shop does not start.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    let (web, manifests) = (shop.web.ip, shop.world.manifests());
    println!(
        "
The shop is open. You are `web`; your sidecar is at {web}:15001. Try:

  curl -H 'Host: {REVIEWS}' http://{web}:15001/          # through the mesh, by Host
  curl -x http://{web}:15001 http://{REVIEWS}/           # the same, as an HTTP proxy
  curl --http2-prior-knowledge -H 'Host: {REVIEWS}' http://{web}:15001/
  curl -s http://{web}:15020/metrics | grep ^http_client
  curl -s http://{web}:15000/config                     # what the sidecar holds
  curl -s http://127.0.0.1:15014/diagnostics            # what the control plane thinks of the manifests
  $EDITOR {}      # change a weight, save, and ask again

Ctrl-C ends it.",
        manifests.join(ROUTE).display()
    );
    tokio::signal::ctrl_c().await?;
    Ok(())
}
