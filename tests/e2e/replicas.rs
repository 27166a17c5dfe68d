//! Two replicas of the control plane, as a Deployment has them: losing either loses nothing.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use heddle_api::ports;
use heddle_tests::{
    Pod, World, eventually,
    load::{Load, Plan},
};
use tokio::net::{TcpListener, TcpStream};

use crate::shop::{self, HOST, Shop};

/// What a Service does for who connects to its address: the next replica, whether it lives or not.
struct Service {
    replicas: [SocketAddr; 2],
    /// Connections that are open now, by replica.
    open: [AtomicUsize; 2],
    /// The replica that gets nobody: its endpoint was found not ready.
    without: Mutex<Option<usize>>,
}

impl Service {
    async fn start(address: SocketAddr, replicas: [SocketAddr; 2]) -> Arc<Self> {
        let listener = TcpListener::bind(address).await.unwrap();
        let service = Arc::new(Self { replicas, open: Default::default(), without: Mutex::default() });
        let of = Arc::clone(&service);
        tokio::spawn(async move {
            for turn in 0.. {
                let Ok((client, _)) = listener.accept().await else { continue };
                // A sidecar connects twice, to join and for its stream, so pairs take turns.
                tokio::spawn(Arc::clone(&of).join(client, turn / 2 % 2));
            }
        });
        service
    }

    async fn join(self: Arc<Self>, mut client: TcpStream, turn: usize) {
        let without = *self.without.lock().unwrap_or_else(PoisonError::into_inner);
        let replica = without.map_or(turn, |gone| 1 - gone);
        let Ok(mut server) = TcpStream::connect(self.replicas[replica]).await else { return };
        self.open[replica].fetch_add(1, Ordering::Relaxed);
        let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        self.open[replica].fetch_sub(1, Ordering::Relaxed);
    }

    fn open(&self, replica: usize) -> usize {
        self.open[replica].load(Ordering::Relaxed)
    }

    fn lead_nobody_to(&self, replica: Option<usize>) {
        *self.without.lock().unwrap_or_else(PoisonError::into_inner) = replica;
    }
}

async fn is_connected(pod: &Pod) -> anyhow::Result<()> {
    let scrape = pod.scrape().await?;
    ensure!(scrape.sum("heddle_discovery_connected", &[]) > 0.0, "{} is not", pod.name);
    Ok(())
}

async fn all_are_connected(shop: &Shop) {
    for pod in shop.reviews.iter().chain([&shop.web]) {
        eventually("every sidecar has a stream", || is_connected(pod)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losing_either_of_two_replicas_loses_nothing() {
    let mut world = World::new().unwrap();
    shop::declare(&world, 2);
    let addresses = [world.new_address(), world.new_address()];
    let mut replicas = [
        Some(world.control_plane_at(addresses[0]).await.unwrap()),
        Some(world.control_plane_at(addresses[1]).await.unwrap()),
    ];
    let service =
        Service::start(world.discovery(), addresses.map(|ip| SocketAddr::new(ip, ports::DISCOVERY))).await;
    let mut shop = shop::fill(world, 2).await;
    shop.split_in_force(&[50, 50]).await;
    let load = Load::start(&Plan {
        through: shop.web.outbound(),
        host: HOST.to_owned(),
        path: "/".to_owned(),
        http1: 4,
        http2: 1,
        rate: 200.0,
        post_every: 2,
    });
    eventually("sidecars have streams of both", || async {
        let open = [service.open(0), service.open(1)];
        ensure!(open.iter().all(|open| *open > 0), "{open:?}");
        Ok(())
    })
    .await;

    for gone in [0, 1] {
        // SIGKILL; for a while the Service still leads some of those who come back to it.
        replicas[gone] = None;
        let extra = format!("shop/late-v{gone}");
        tokio::time::sleep(Duration::from_millis(300)).await;
        service.lead_nobody_to(Some(gone));
        all_are_connected(&shop).await;
        assert_eq!(service.open(gone), 0, "nobody hangs on to the one that has gone");
        // What changes reaches those too who came over, and whoever is new gets in.
        shop.split_in_force(if gone == 0 { &[100, 0] } else { &[0, 100] }).await;
        let late = shop.world.pod(&extra).start().await.unwrap();
        late.answers(HOST, "/", |answer| answer.status == 200).await;
        replicas[gone] = Some(shop.world.control_plane_at(addresses[gone]).await.unwrap());
        service.lead_nobody_to(None);
    }

    let tally = load.finish().await;
    println!("{} sent, {} answered, {} POSTs", tally.sent, tally.requests - tally.failed, tally.posts);
    assert_eq!((tally.failed, tally.closed), (0, 0), "{:#?}", tally.failures);
    assert_eq!(tally.sent, tally.requests);
}
