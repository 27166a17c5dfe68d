//! The mesh gets a new root while it works: the new one is trusted, then signs, then the old one goes. No handshake fails,
//! though new connections are made all along.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use heddle_api::ports;
use heddle_tests::{
    Pod, World,
    app::HttpApp,
    client::Client,
    eventually,
    load::{Load, Plan},
    peer::{self, Credentials},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};
use tokio::task::JoinHandle;

/// The ports of `reviews`. Each has its own connections between sidecars, so the first request to one makes a handshake.
const PORTS: std::ops::Range<u16> = 9100..9300;
/// A new one is asked this often.
const EVERY: Duration = Duration::from_millis(150);
/// Certificates live so long, and are renewed at two thirds of it.
const LIFETIME: Duration = Duration::from_secs(9);

/// A root of the mesh's trust domain.
struct Root {
    certificate: String,
    key: String,
    /// What certificates under it name it by.
    id: Vec<u8>,
}

impl Root {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "the next root");
        params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local".try_into().unwrap())];
        let id = params.key_identifier(&key);
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, key: key.serialize_pem(), id }
    }

    fn signed(&self, leaf: &[u8]) -> bool {
        leaf.windows(self.id.len()).any(|window| window == self.id)
    }
}

/// `reviews` with its many ports.
fn declare(world: &World) {
    let ports: Vec<String> = PORTS
        .map(|port| format!("  - {{name: p{port}, port: {port}, targetPort: {port}, appProtocol: http}}\n"))
        .collect();
    let yaml = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: reviews, namespace: shop}}
spec:
  selector: {{app: reviews}}
  ports:
{}",
        ports.concat()
    );
    world.save("reviews.yaml", &yaml).unwrap();
}

/// Asks a port that was never asked before, again and again.
struct NewConnections {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(usize, Vec<String>)>,
}

impl NewConnections {
    fn begin(web: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (mut answered, mut failures) = (0, Vec::new());
            let mut client = Client::http1(web).await.unwrap();
            let mut ports = PORTS.skip(1);
            while !stopped.load(Ordering::Relaxed)
                && let Some(port) = ports.next()
            {
                tokio::time::sleep(EVERY).await;
                // Nobody knew the name before, so a control plane that restarts must be back first.
                let answer = loop {
                    let answer = client.get(&format!("reviews:{port}"), "/").await.unwrap();
                    if answer.reason() != "DiscoveryUnavailable" {
                        break answer;
                    }
                };
                if answer.status == 200 {
                    answered += 1;
                } else {
                    failures.push(format!("{port}: {} {}", answer.status, answer.text()));
                }
            }
            (answered, failures)
        });
        Self { stop, task }
    }

    async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// The steps of docs/kubernetes.md, which without a cluster are files and restarts.
async fn restart(world: &mut World) {
    world.kill_control_plane();
    world.start_control_plane().await.unwrap();
}

async fn trusts(pod: &Pod, roots: usize) {
    eventually(&format!("{} trusts {roots} roots", pod.name), || async {
        let config = pod.config().await?;
        ensure!(config["certificate"]["trusted_roots"] == roots, "{}", config["certificate"]);
        Ok(())
    })
    .await;
}

/// Whose signature a sidecar shows.
async fn shows(pod: &Pod, by: &Root) {
    eventually(&format!("{} has a certificate under the new root", pod.name), || async {
        let name = format!("http1.{}.heddle", PORTS.start);
        let stream = peer::dial(pod.port(ports::MESH), &name, None::<&Credentials>).await?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
        ensure!(leaf.is_some_and(|leaf| by.signed(&leaf)), "still under the old one");
        Ok(())
    })
    .await;
}

fn write(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::set_permissions(&beside, std::fs::metadata(path).unwrap().permissions()).unwrap();
    std::fs::rename(beside, path).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_is_replaced_under_load_and_no_handshake_fails() {
    let mut world = World::new().unwrap();
    world.certificates_live(LIFETIME);
    declare(&world);
    world.start_control_plane().await.unwrap();
    let all: Vec<u16> = PORTS.collect();
    let reviews = world.pod("shop/reviews-v1").ports(&all).start().await.unwrap();
    let mut apps = Vec::new();
    for port in PORTS {
        apps.push(HttpApp::start(reviews.port(port), "v1").await.unwrap());
    }
    let web = world.pod("shop/web").start().await.unwrap();
    let host = format!("reviews:{}", PORTS.start);
    web.answers(&host, "/", |answer| answer.status == 200).await;

    let plan = Plan {
        through: web.outbound(),
        host,
        path: "/".to_owned(),
        http1: 4,
        http2: 1,
        rate: 200.0,
        post_every: 2,
    };
    let (load, new) = (Load::start(&plan), NewConnections::begin(web.outbound()));
    let (roots, key) = (world.state().join("ca.pem"), world.state().join("ca-key.pem"));
    let (old, next) = (std::fs::read_to_string(&roots).unwrap(), Root::new());

    // The new one is trusted, and signs nothing.
    write(&roots, &(old.clone() + &next.certificate));
    restart(&mut world).await;
    for pod in [&web, &reviews] {
        trusts(pod, 2).await;
    }
    // It signs, and the old one is trusted while certificates under it live.
    write(&key, &next.key);
    restart(&mut world).await;
    for pod in [&web, &reviews] {
        shows(pod, &next).await;
    }
    // Nothing is left under the old one.
    write(&roots, &next.certificate);
    restart(&mut world).await;
    for pod in [&web, &reviews] {
        trusts(pod, 1).await;
    }
    // Certificates are renewed once more, and a pod comes that never knew the old root.
    tokio::time::sleep(LIFETIME * 2 / 3).await;
    let late = world.pod("shop/late").start().await.unwrap();
    late.answers(&plan.host, "/", |answer| answer.status == 200).await;

    let (tally, (connections, failures)) = (load.finish().await, new.end().await);
    println!(
        "{} requests sent, {} answered, {} of them POSTs; {connections} new connections beside",
        tally.sent,
        tally.requests - tally.failed,
        tally.posts
    );
    assert_eq!((tally.failed, tally.closed), (0, 0), "{:#?}", tally.failures);
    assert!(failures.is_empty() && connections >= 50, "{connections} and {failures:#?}");
    for pod in [&web, &reviews] {
        let scrape = pod.scrape().await.unwrap();
        // Our own look at their certificates came without one.
        let refused = scrape.sum("heddle_peer_refused_total", &[])
            - scrape.sum("heddle_peer_refused_total", &[("reason", "NoCertificate")]);
        assert!(refused == 0.0, "a handshake failed: {}", scrape.text);
    }
}
