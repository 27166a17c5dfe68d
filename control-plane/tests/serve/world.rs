//! A control plane over a directory of manifests, and what the tests ask of it beside gRPC.

use std::{net::SocketAddr, path::Path, time::Duration};

use heddle_control_plane::{
    run::{self, Options, Running},
    token::TokenAuthority,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Whatever a test waits for comes within this, or the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080, appProtocol: http}]
"#;

/// A meshed pod.
pub(crate) fn pod(name: &str, app: &str, address: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}, annotations: {{heddle.dev/sidecar: "true"}}}}
spec: {{serviceAccountName: {app}, containers: [{{name: app, image: none}}]}}
status: {{podIP: {address}}}
"#
    )
}

/// A directory with `manifests` and `state`.
pub(crate) struct World {
    dir: tempfile::TempDir,
}

impl World {
    /// Namespace `shop` with a `web`, a Service of eight `reviews`, and a pod without sidecar.
    pub(crate) fn shop() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(world.path("manifests")).unwrap();
        world.write("shop.yaml", SHOP);
        world.write("web.yaml", &pod("web-0", "web", "127.0.1.1"));
        world.write("plain.yaml", &pod("plain-0", "plain", "127.0.1.2").replace("\"true\"", "\"false\""));
        for n in 0..8 {
            world.write(
                &format!("reviews-{n}.yaml"),
                &pod(&format!("reviews-{n}"), "reviews", &format!("127.0.2.{}", n + 1)),
            );
        }
        world
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a manifest as a careful user does: whole.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let beside = self.path("beside");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, self.path("manifests").join(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.path("manifests").join(name)).unwrap();
    }

    pub(crate) fn options(&self) -> Options {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Options {
            state_dir: self.path("state"),
            listen: any,
            admin_listen: any,
            certificate_lifetime: Duration::from_secs(3600),
            root_adopt_after: Duration::from_secs(180),
            trust_domain: "cluster.local".to_owned(),
        }
    }

    /// Starts a control plane and waits until it is ready.
    pub(crate) async fn start(&self) -> Running {
        let running = run::start(self.options(), self.path("manifests")).await.unwrap();
        until_ready(running.admin_address).await;
        running
    }

    pub(crate) fn token(&self, service_account: &str) -> String {
        token(&self.path("state"), service_account, Duration::from_secs(60))
    }
}

pub(crate) fn token(state_dir: &Path, service_account: &str, ttl: Duration) -> String {
    let tokens = TokenAuthority::open(state_dir).unwrap();
    tokens.mint("shop", service_account, ttl, std::time::SystemTime::now()).unwrap()
}

pub(crate) async fn until_ready(admin: SocketAddr) {
    let ready = async {
        while !matches!(get(admin, "/ready").await, Ok(answer) if answer.starts_with("HTTP/1.1 200")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("ready in time");
}

/// Status line, headers and body of a GET.
pub(crate) async fn get(admin: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut io = TcpStream::connect(admin).await?;
    io.write_all(format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    io.read_to_string(&mut answer).await?;
    Ok(answer)
}
