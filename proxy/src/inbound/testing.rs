//! The tests' world: a pod on a loopback address of its own, its sidecar's inbound side, and a caller `web` with a
//! sidecar of its own.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use heddle_api::{
    carrier::{Form, ServerName},
    identity::SpiffeId,
    ports, v1,
};
use http::Response;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{LocalSet, spawn_local},
};

use crate::{
    access::AccessRules,
    carrier::{Peer, Pool},
    config::{
        AppProtocol, Inbound, Place,
        inbound::{AccessLog, InboundPort, MtlsMode},
    },
    identity::{Identity, testing::Authority},
    log::Logs,
    metrics::{Metrics, Observed},
    store::Store,
    threads::Open,
    worker::{Drain, DrainTrigger, Settings, Shared, Worker},
};

pub(super) const CONNECT: Duration = Duration::from_secs(5);
const REVIEWS: &str = "spiffe://cluster.local/ns/shop/sa/reviews";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A pod with its sidecar's inbound side, and a caller.
pub(super) struct World {
    pub(super) ip: IpAddr,
    pub(super) worker: Rc<Worker>,
    /// The caller's carrier.
    pub(super) web: Rc<Pool>,
    metrics: Arc<Metrics>,
    pub(super) drain: DrainTrigger,
}

/// An application that the test plays itself: what it is asked, and where it listens.
pub(super) struct Application {
    pub(super) address: SocketAddr,
    connections: mpsc::UnboundedReceiver<TcpStream>,
}

/// A port's rules and declarations, to be changed by a test.
pub(super) fn port(protocol: AppProtocol, mtls: MtlsMode, access: &[v1::AccessRule]) -> InboundPort {
    InboundPort {
        protocol,
        mtls,
        access: AccessRules::new(access).unwrap(),
        authorities: vec!["reviews:9080".into()],
    }
}

/// An Allow or Deny of one clause.
pub(super) fn rule(action: v1::AccessAction, from: Option<&str>, path: Option<&str>) -> v1::AccessRule {
    let from =
        from.map(|account| v1::AccessSource { service_accounts: vec![account.into()], ..Default::default() });
    let to = path.map(|path| v1::AccessOperation { methods: Vec::new(), paths: vec![path.into()] });
    v1::AccessRule {
        name: "shop/rule".into(),
        action: action.into(),
        clauses: vec![v1::AccessClause { from: from.into_iter().collect(), to: to.into_iter().collect() }],
    }
}

impl World {
    /// A pod whose ports are open to all.
    pub(super) async fn new() -> Self {
        let world = Self::not_ready().await;
        world.set(InboundPort::default());
        world
    }

    /// An address that no other test has, with the mesh port served there; the control plane has not spoken yet.
    pub(super) async fn not_ready() -> Self {
        let (mesh, ip) = loop {
            let ip = IpAddr::from([127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255)]);
            if let Ok(listener) = TcpListener::bind((ip, ports::MESH)).await {
                break (listener, ip);
            }
        };
        let authority = Authority::new("cluster.local");
        let identity = |id| {
            let identity = Arc::new(Identity::new());
            identity.publish(authority.credentials(id));
            identity
        };
        let (reviews, web) = (identity(REVIEWS), identity(WEB));
        let metrics = Metrics::new(1);
        let settings = Settings { pod_ips: vec![ip], ..Settings::for_tests() };
        let (drain_trigger, drain) = Drain::new();
        let carrier = Pool::new(Arc::clone(&reviews), metrics.worker(0));
        let shared = Shared {
            store: Store::fixed(None, []),
            identity: reviews,
            metrics: Arc::clone(&metrics),
            access_log: Logs::for_tests("info").1.access,
            settings: Arc::new(settings),
            drain,
        };
        let worker = Rc::new(Worker::new(shared, metrics.worker(0), carrier));
        let served = Rc::clone(&worker);
        spawn_local(async move {
            while let Ok((io, _)) = mesh.accept().await {
                spawn_local(super::mesh::serve(Rc::clone(&served), io, Open::default().opened()));
            }
        });
        Self { ip, worker, web: Pool::new(web, Metrics::new(1).worker(0)), metrics, drain: drain_trigger }
    }

    /// What the control plane says of all ports.
    pub(super) fn set(&self, all: InboundPort) {
        self.worker.store.set_inbound(Inbound {
            identity: REVIEWS.parse().unwrap(),
            ports: HashMap::new(),
            other: Arc::new(all),
            terminating: false,
            access_log: AccessLog::All,
            opaque_ports: Vec::new(),
            place: Place::default(),
        });
    }

    /// What the control plane says of one port, which has the authority `reviews:9080`.
    pub(super) fn set_port(&self, number: u16, port: InboundPort) {
        self.worker.store.set_inbound(Inbound {
            identity: REVIEWS.parse().unwrap(),
            ports: HashMap::from([(number, Arc::new(port))]),
            other: Arc::default(),
            terminating: false,
            access_log: AccessLog::All,
            opaque_ports: Vec::new(),
            place: Place::default(),
        });
    }

    /// A port of the pod as `web` would call it.
    pub(super) fn peer(&self, form: Form, port: u16) -> Peer {
        Peer {
            address: (self.ip, port).into(),
            name: ServerName { form, port },
            identity: REVIEWS.parse::<SpiffeId>().unwrap(),
        }
    }

    pub(super) async fn application(&self) -> Application {
        let listener = TcpListener::bind((self.ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, connections) = mpsc::unbounded_channel();
        spawn_local(async move {
            while let Ok((io, _)) = listener.accept().await {
                let _test_is_over = sender.send(io);
            }
        });
        Application { address, connections }
    }

    /// A connection to 15006, redirected from `original` or not.
    pub(super) async fn plaintext(&self, original: Option<SocketAddr>) -> TcpStream {
        let listener = TcpListener::bind((self.ip, 0)).await.unwrap();
        let (client, server) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let worker = Rc::clone(&self.worker);
        let io = server.unwrap().0;
        spawn_local(super::plaintext::serve(worker, io, original, Open::default().opened()));
        client.unwrap()
    }

    /// What is counted.
    pub(super) fn scrape(&self) -> String {
        self.metrics.encode(&Observed::default())
    }

    /// Whether the scrape has this line.
    pub(super) fn counted(&self, line: &str) -> bool {
        self.scrape().lines().any(|l| l == line)
    }
}

impl Application {
    pub(super) async fn accept(&mut self) -> TcpStream {
        self.connections.recv().await.unwrap()
    }

    /// Whether nobody came.
    pub(super) fn is_untouched(&mut self) -> bool {
        self.connections.try_recv().is_err()
    }

    /// Answers one request of an HTTP/1 connection, and gives what was asked.
    pub(super) async fn answer(&mut self, answer: &str) -> (String, TcpStream) {
        let mut io = self.accept().await;
        let asked = head(&mut io).await;
        io.write_all(answer.as_bytes()).await.unwrap();
        (asked, io)
    }
}

/// Reads to the end of a message's head.
pub(super) async fn head(io: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        match io.read_u8().await {
            Ok(byte) => text.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(text).unwrap()
}

/// What comes until the end.
pub(super) async fn rest(io: &mut TcpStream) -> std::io::Result<String> {
    let mut text = String::new();
    io.read_to_string(&mut text).await.map(|_| text)
}

/// A body's text.
pub(super) async fn text<B>(answer: Response<B>) -> String
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Runs a test as a worker runs traffic, and fails it when it hangs.
pub(super) async fn on_a_worker(test: impl Future<Output = ()>) {
    let worker = LocalSet::new();
    tokio::time::timeout(Duration::from_secs(60), worker.run_until(test)).await.expect("the test hangs");
}
