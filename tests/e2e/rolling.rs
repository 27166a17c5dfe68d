//! Every pod of both ends is replaced under load, as a Deployment's rolling update does it, and no request is lost.
//!
//! Half of the requests are POSTs, which nobody may send twice: each is answered, and was carried out once.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::ensure;
use heddle_tests::{
    client::Client,
    eventually,
    load::{Load, Plan, Tally},
    manifest, need,
    netns::{Family, NetPod, Phase, Slice, Wire, missing},
    process::Process,
    skip,
};

/// Requests a second, of all callers together.
const RATE: f64 = 1000.0;
/// The `preStop: {sleep: …}` of the servers' pods: between the word that a pod goes and its application's SIGTERM.
const PRE_STOP: Duration = Duration::from_secs(2);
/// A process that was told to end in good order must have ended by then.
const GRACE: Duration = Duration::from_secs(30);

/// A pod with nginx.
struct Server {
    pod: NetPod,
    nginx: Process,
    requests: PathBuf,
}

impl Server {
    async fn begin(wire: &Wire, program: &std::path::Path, n: u8) -> Self {
        let name = format!("reviews-{n}");
        let pod = wire.begin(&name, 20 + n, &[9080]).await.unwrap();
        let home = wire.world.directory().join(format!("nginx-{n}"));
        std::fs::create_dir(&home).unwrap();
        let requests = home.join("requests");
        let config = format!(
            "daemon off; master_process off; pid {home}/pid; error_log stderr; user root;
events {{ worker_connections 512; }}
http {{
  log_format line '$request_method $status';
  access_log {home}/requests line;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  server {{
    listen {address};
    location / {{ add_header x-version {name} always; return 200 served; }}
  }}
}}
",
            home = home.display(),
            address = pod.app(),
        );
        std::fs::write(home.join("nginx.conf"), config).unwrap();
        let mut command = pod.inside.command(&program.to_string_lossy());
        command.arg("-p").arg(&home).arg("-c").arg(home.join("nginx.conf"));
        let nginx = wire.world.run(&format!("nginx-{n}"), &command).unwrap();
        Self { pod, nginx, requests }
    }

    /// As its readiness probe finds it.
    async fn becomes_ready(&mut self, wire: &Wire, slice: &mut Slice) {
        self.pod.becomes_ready(wire).await;
        let app = self.pod.app();
        // From within, as the sidecar asks for kubelet.
        eventually("nginx answers its readiness probe", || {
            self.pod.inside.run(async move {
                let answer = Client::http1(app).await?.get("probe", "/").await?;
                ensure!(answer.status == 200, "{}", answer.status);
                Ok(())
            })
        })
        .await;
        self.pod.is_ready(wire).unwrap();
        slice.set(wire, self.pod.ip, Some(Phase::Ready)).unwrap();
    }

    /// What happens when it is deleted. Where its requests are counted.
    async fn goes(mut self, wire: &Wire, slice: &mut Slice) -> PathBuf {
        self.pod.is_deleted(wire).unwrap();
        slice.set(wire, self.pod.ip, Some(Phase::Terminating)).unwrap();
        hears_that_it_goes(&mut self.pod).await;
        tokio::time::sleep(PRE_STOP).await;
        eventually("callers turn to others before the application is told", || async {
            let called = self.requests();
            tokio::time::sleep(Duration::from_millis(200)).await;
            let more = self.requests() - called;
            ensure!(more == 0, "{more} more requests in 200 ms");
            Ok(())
        })
        .await;
        // What its image calls SIGTERM (STOPSIGNAL).
        self.nginx.quit().unwrap();
        assert_eq!(self.nginx.wait(GRACE).await.unwrap(), 0);
        slice.set(wire, self.pod.ip, None).unwrap();
        self.pod.ends(wire, GRACE).await.unwrap();
        self.requests
    }

    fn requests(&self) -> usize {
        lines(&self.requests, "").len()
    }
}

/// The control plane's word, and nothing else, has its sidecar drain.
async fn hears_that_it_goes(pod: &mut NetPod) {
    let sidecar = pod.sidecar();
    eventually("the sidecar hears that its pod goes", || async {
        let log = sidecar.log();
        ensure!(log.contains("the pod is terminating: draining"), "{log}");
        Ok(())
    })
    .await;
    assert!(!sidecar.log().contains("leaving: waiting"), "{}", sidecar.log());
}

fn lines(file: &std::path::Path, begin: &str) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| line.starts_with(begin)).map(str::to_owned).collect()
}

/// A pod whose application calls `reviews` and knows of no mesh.
struct Caller {
    pod: NetPod,
    load: Option<Load>,
}

impl Caller {
    async fn begin(wire: &Wire, service: SocketAddr, n: u8, callers: u8) -> Self {
        let mut pod = wire.begin(&format!("web-{n}"), 10 + n, &[]).await.unwrap();
        pod.becomes_ready(wire).await;
        pod.is_ready(wire).unwrap();
        let plan = Plan {
            through: service,
            host: "reviews:9080".to_owned(),
            path: "/".to_owned(),
            http1: 12,
            http2: 2,
            rate: RATE / f64::from(callers),
            post_every: 2,
        };
        let load = pod.inside.run(async move { Load::start(&plan) }).await;
        Self { pod, load: Some(load) }
    }

    /// What happens when it is deleted: it goes on asking until its own SIGTERM, and ends what it has begun.
    async fn goes(mut self, wire: &Wire) -> Tally {
        self.pod.is_deleted(wire).unwrap();
        hears_that_it_goes(&mut self.pod).await;
        tokio::time::sleep(PRE_STOP).await;
        let tally = self.stops().await;
        self.pod.ends(wire, GRACE).await.unwrap();
        tally
    }

    async fn stops(&mut self) -> Tally {
        self.load.take().expect("it has not stopped yet").finish().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_of_every_pod_under_load_loses_no_request() {
    if let Some(what) = missing() {
        skip!(what);
    }
    let nginx = need!("nginx");
    let wire = Wire::new(Family::V4).await.unwrap();
    let service = SocketAddr::new(wire.service("reviews", 10, 9080, "http", "reviews").unwrap(), 9080);
    // Nothing may pass in plaintext, not even while a pod comes or goes.
    let strict = manifest::policy("MeshPolicy", "shop/strict", "  mtls: Strict\n");
    wire.world.save("strict.yaml", &strict).unwrap();
    let mut slice = Slice::of("reviews", 9080);
    let (mut servers, mut callers) = (Vec::new(), Vec::new());
    for n in 1..=3 {
        let mut server = Server::begin(&wire, &nginx, n).await;
        slice.set(&wire, server.pod.ip, Some(Phase::Starting)).unwrap();
        server.becomes_ready(&wire, &mut slice).await;
        servers.push(server);
    }
    for n in 1..=2 {
        callers.push(Caller::begin(&wire, service, n, 2).await);
    }
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;

    let (mut all, mut logs) = (Tally::default(), Vec::new());
    for (n, old) in (4..).zip(std::mem::take(&mut servers)) {
        let mut new = Server::begin(&wire, &nginx, n).await;
        slice.set(&wire, new.pod.ip, Some(Phase::Starting)).unwrap();
        new.becomes_ready(&wire, &mut slice).await;
        servers.push(new);
        logs.push(old.goes(&wire, &mut slice).await);
    }
    for (n, old) in (3..).zip(std::mem::take(&mut callers)) {
        callers.push(Caller::begin(&wire, service, n, 2).await);
        all.add(&old.goes(&wire).await);
    }
    for mut caller in callers {
        all.add(&caller.stops().await);
    }
    logs.extend(servers.iter().map(|server| server.requests.clone()));

    let carried_out: usize = logs.iter().map(|log| lines(log, "POST 200").len()).sum();
    let took = began.elapsed();
    println!(
        "{} requests sent in {took:?} ({:.0}/s), {} answered, {} of them POSTs, of which servers carried out \
         {carried_out}; p50 {:?}, p99 {:?}, longest {:?}; by pod {:?}",
        all.sent,
        all.sent as f64 / took.as_secs_f64(),
        all.requests - all.failed,
        all.posts,
        all.latencies.percentile(0.5),
        all.latencies.percentile(0.99),
        all.latencies.percentile(1.0),
        all.by_version,
    );
    assert_eq!((all.failed, all.sent), (0, all.requests), "{:#?}", all.failures);
    assert_eq!(all.closed, 0, "connections of applications that were closed under them");
    assert_eq!(carried_out as u64, all.posts, "each POST was carried out once");
    assert_eq!(all.by_version.len(), 6, "every pod served: {:?}", all.by_version);
    assert!(all.posts > 1000, "there was load");
}
