//! Hostile servers: an application, and a peer's sidecar, that attack whoever calls them.

use std::collections::BTreeSet;

use heddle_tests::{Pod, app::TcpApp, manifest};
use tokio::sync::mpsc;

use super::{flood::Flood, *};

/// The service that attacks its callers.
const MALLORY: &str = "mallory:9090";
const PORT: u16 = 9090;

fn of_servers() -> Vec<Flood> {
    let settings = frame(Kind::Settings, 0, 0, &[]);
    let answer = frame(Kind::Headers, END_HEADERS, 1, &block(&[(":status", "200")]));
    let mut floods = super::flood::of_either_side(&[settings.clone(), answer].concat());
    floods.extend([
        Flood {
            name: "interim answers",
            first: settings.clone(),
            piece: |_| frame(Kind::Headers, END_HEADERS, 1, &block(&[(":status", "103")])),
            pieces: 1_000_000,
        },
        Flood {
            name: "CONTINUATION",
            first: [settings.clone(), frame(Kind::Headers, 0, 1, &block(&[(":status", "200")]))].concat(),
            piece: |_| frame(Kind::Continuation, 0, 1, &block(&[("x-more", &"m".repeat(4000))])),
            pieces: 50_000,
        },
    ]);
    floods
}

/// Answers the first request on a connection with the flood.
async fn attack(flood: &Flood, mut stream: impl Stream) -> bool {
    // To the request's HEADERS, which come soon after the preface.
    let mut read = Vec::new();
    while read.len() < 64 {
        if stream.read_buf(&mut read).await.is_ok_and(|count| count == 0) {
            return true;
        }
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    flood.ends(stream).await
}

/// What became of a connection: the flood that it was answered with, and whether that ended it.
type Outcome = (&'static str, bool);

/// `web` calls until each flood was sent; the ones that were not cut off, or not sent.
async fn lasting(
    shop: &Shop,
    floods: &[Flood],
    outcomes: &mut mpsc::UnboundedReceiver<Outcome>,
) -> BTreeSet<&'static str> {
    let mut left: BTreeSet<_> = floods.iter().map(|flood| flood.name).collect();
    // A call may be tried again, on another connection.
    for _ in 0..2 * floods.len() {
        let mut client = shop.web.http2().await.unwrap();
        let asking = tokio::spawn(async move { client.get(MALLORY, "/").await.map(|answer| answer.status) });
        let outcome = tokio::time::timeout(Duration::from_secs(40), outcomes.recv()).await;
        asking.abort();
        match outcome {
            Ok(Some((name, true))) => left.remove(name),
            _ => return left,
        };
        if left.is_empty() {
            break;
        }
    }
    left
}

/// `mallory`, whose application or sidecar the test plays.
async fn mallory(shop: &mut Shop, has_sidecar: bool) -> Pod {
    let service = manifest::service("shop/mallory", PORT, "kubernetes.io/h2c", "app: mallory");
    shop.world.save("mallory.yaml", &service).unwrap();
    let pod = shop.world.pod("shop/mallory-v1").ports(&[PORT]);
    if has_sidecar {
        return pod.start().await.unwrap();
    }
    let mut pod = pod.outside_the_mesh().start().await.unwrap();
    pod.manifest.meshed = true;
    shop.world.save(&pod.manifest.file(), &pod.manifest.yaml()).unwrap();
    pod
}

/// One flood for each connection, in turn.
fn one_by_one(floods: &[Flood]) -> impl Fn() -> Flood + Send + 'static {
    let floods = floods.to_vec();
    let next = std::sync::atomic::AtomicUsize::new(0);
    move || floods[next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % floods.len()].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_floods_its_sidecar_harms_only_who_calls_it() {
    let mut shop = shop::open(1).await;
    let mallory = mallory(&mut shop, true).await;
    let floods = of_servers();
    let (tx, mut outcomes) = mpsc::unbounded_channel();
    let next = one_by_one(&floods);
    let _app = TcpApp::start(mallory.port(PORT), move |stream| {
        let (tx, flood) = (tx.clone(), next());
        async move {
            let _ = tx.send((flood.name, attack(&flood, stream).await));
            Ok(())
        }
    })
    .await
    .unwrap();
    let load = steady(&shop);
    let lasting = lasting(&shop, &floods, &mut outcomes).await;
    unharmed(&load.finish().await);
    assert!(lasting.is_empty(), "still connected: {lasting:?}");
    memory_is_bounded(&mut shop);
    let peak = shop.world.sidecar("shop/mallory-v1").unwrap().peak_memory().unwrap();
    assert!(peak < MEMORY, "{peak}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peers_sidecar_that_floods_its_callers_harms_only_who_calls_it() {
    let mut shop = shop::open(1).await;
    let mallory = mallory(&mut shop, false).await;
    let token = std::fs::read_to_string(shop.world.token("shop", "mallory", "1h").unwrap()).unwrap();
    let credentials = Credentials::join(shop.world.discovery(), &token, "shop/mallory-v1").await.unwrap();
    let floods = of_servers();
    let (tx, mut outcomes) = mpsc::unbounded_channel();
    let next = one_by_one(&floods);
    let _sidecar = TcpApp::start(mallory.port(ports::MESH), move |stream| {
        let (tx, flood, credentials) = (tx.clone(), next(), credentials.clone());
        async move {
            let mut tls = peer::accept(stream, &credentials).await?;
            // The caller sends its request only when it has seen these.
            tls.write_all(&frame(Kind::Settings, 0, 0, &[])).await?;
            tls.flush().await?;
            let _ = tx.send((flood.name, attack(&flood, tls).await));
            Ok(())
        }
    })
    .await
    .unwrap();
    let load = steady(&shop);
    let lasting = lasting(&shop, &floods, &mut outcomes).await;
    unharmed(&load.finish().await);
    assert!(lasting.is_empty(), "still connected: {lasting:?}");
    memory_is_bounded(&mut shop);
}
