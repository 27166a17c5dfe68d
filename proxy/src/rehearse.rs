//! A rehearsal: before the sidecar says that it is ready, requests of its own go the whole way that requests go, out by the
//! outbound side, over mTLS, in by the inbound side and to an application, all of it inside this process.
//!
//! A program's code is mapped page by page as it is first run, and its memory as it is first used: on the way of the very
//! first request that is a dozen page faults in either sidecar. After a rehearsal the application's first request finds
//! all of it in place, and nothing is mapped that requests do not use.
//!
//! It happens on a stage: a [`Worker`] with a store, pools, sockets and series of its own, which are gone afterwards. So
//! no request is counted or logged that nobody asked for, and no other pod hears of it. Only a hint, as in [`crate::warm`]:
//! nothing follows from a failure, and it ends within [`LIMIT`]. Whoever else connects to the stage's sockets on loopback
//! gets nothing: the outbound side serves the rehearsal's own connection, the inbound side admits this sidecar alone.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use heddle_api::{identity::SpiffeId, v1};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinSet,
    time::timeout,
};

use crate::{
    access::AccessRules,
    carrier,
    config::{
        AppProtocol, BackendState, Destination, EndpointSet, Inbound, Place, convert,
        inbound::{AccessLog, InboundPort},
    },
    listen::{Bound, Crew, Port, accept, bind_one},
    metrics::Metrics,
    plain::settings::LocalExecutor,
    store::Store,
    threads::{Open, start},
    worker::{Drain, DrainTrigger, Settings, Shared, Worker},
};

/// The longest that it may take.
const LIMIT: Duration = Duration::from_millis(300);
/// Whom a request asks.
const NAME: &str = "rehearsal:80";
/// And for what.
const PATH: &str = "/rehearsal";
/// What common clients send with it.
const ASKED: [(&str, &str); 3] =
    [("user-agent", "rehearsal"), ("accept", "*/*"), ("accept-encoding", "gzip")];
/// What common servers answer with; hyper adds the date and the length.
const ANSWERED: [(&str, &str); 5] = [
    ("server", "rehearsal"),
    ("content-type", "text/plain"),
    ("last-modified", "Mon, 30 Nov 2026 12:00:00 GMT"),
    ("etag", "\"rehearsal\""),
    ("accept-ranges", "bytes"),
];
/// HTTP/1 alone has them.
const KEPT: (&str, &str) = ("connection", "keep-alive");
const LAST: (&str, &str) = ("connection", "close");
/// What is sent and answered.
const BODY: Bytes = Bytes::from_static(&[b'r'; 1024]);

/// Rehearses with the first certificate that there is.
pub async fn rehearse(worker: &Worker) {
    let credentials = worker.identity.usable().await;
    match timeout(LIMIT, both_versions(worker, &credentials.id)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = format!("{error:#}"), "the rehearsal broke off"),
        Err(_) => tracing::debug!(limit = ?LIMIT, "the rehearsal took too long"),
    }
}

async fn both_versions(worker: &Worker, own: &SpiffeId) -> anyhow::Result<()> {
    for protocol in [AppProtocol::Http1, AppProtocol::Http2] {
        let (stage, client) = Stage::build(worker, own, protocol).await?;
        stage.play(client, protocol).await?;
    }
    Ok(())
}

/// Both sides of a sidecar, and an application.
struct Stage {
    /// Where the client is to connect.
    outbound: SocketAddr,
    drain: DrainTrigger,
    /// End with the stage.
    players: JoinSet<()>,
    _acceptors: JoinSet<io::Result<()>>,
}

impl Stage {
    /// With the socket of the client, the one that is served.
    async fn build(
        worker: &Worker,
        own: &SpiffeId,
        protocol: AppProtocol,
    ) -> anyhow::Result<(Self, TcpSocket)> {
        let application = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let bound = |port| {
            let socket = bind_one((Ipv4Addr::LOCALHOST, 0).into())?;
            Ok::<_, io::Error>((socket.local_addr()?, Bound { port, socket }))
        };
        let ((mesh, inbound_port), (outbound, outbound_port)) = (bound(Port::Mesh)?, bound(Port::Outbound)?);
        let destination = destination(own, application.local_addr()?.port(), protocol)?;
        let inbound = Inbound {
            identity: own.clone(),
            ports: HashMap::new(),
            other: Arc::new(InboundPort { protocol, access: only(own)?, ..InboundPort::default() }),
            terminating: false,
            access_log: AccessLog::Off,
            opaque_ports: Vec::new(),
            place: Place::default(),
        };
        let metrics = Metrics::new(1);
        let pod_ips = vec![Ipv4Addr::LOCALHOST.into()];
        let settings = Settings { pod_ips, ..(*worker.settings).clone() };
        let (trigger, drain) = Drain::new();
        let series = metrics.worker(0);
        let pool = carrier::Pool::to_port(mesh.port(), Arc::clone(&worker.identity), Arc::clone(&series));
        let shared = Shared {
            store: Store::fixed(Some(inbound), [(NAME.into(), destination)]),
            identity: Arc::clone(&worker.identity),
            metrics,
            access_log: worker.access_log.clone(),
            settings: Arc::new(settings),
            drain,
        };
        let worker = Rc::new(Worker::new(shared, series, pool));
        let mut players = JoinSet::new();
        players.spawn_local(serve_application(application, protocol));
        let client = TcpSocket::new_v4()?;
        client.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let own = client.local_addr()?;
        let crew = Crew {
            own: Open::default(),
            serve: Rc::new(move |accepted| {
                if matches!(accepted.port, Port::Mesh) || accepted.peer == own {
                    start(&worker, accepted);
                }
            }),
            others: Vec::new(),
        };
        let mut acceptors = JoinSet::new();
        for port in [inbound_port, outbound_port] {
            acceptors.spawn_local(accept(port, crew.clone()));
        }
        Ok((Self { outbound, drain: trigger, players, _acceptors: acceptors }, client))
    }

    /// The part of the client: a request without a body and one with, on one connection; and what ends it.
    async fn play(mut self, client: TcpSocket, protocol: AppProtocol) -> anyhow::Result<()> {
        let io = client.connect(self.outbound).await?;
        io.set_nodelay(true)?;
        let io = TokioIo::new(io);
        if protocol == AppProtocol::Http2 {
            let (mut sender, connection) =
                client::conn::http2::handshake(LocalExecutor, io).await.context("HTTP/2")?;
            self.players.spawn_local(async { drop(connection.await) });
            for method in [Method::GET, Method::POST] {
                let uri = Uri::builder().scheme("http").authority(NAME).path_and_query(PATH).build()?;
                over(sender.send_request(request(method, uri, fields(&ASKED, &[]))).await?).await?;
            }
        } else {
            let (mut sender, connection) = client::conn::http1::handshake(io).await.context("HTTP/1")?;
            self.players.spawn_local(async { drop(connection.await) });
            let host = ("host", NAME);
            for (method, own) in
                [(Method::GET, &[host][..]), (Method::POST, &[host, KEPT]), (Method::GET, &[host, LAST])]
            {
                let request = request(method, Uri::from_static(PATH), fields(&ASKED, own));
                over(sender.send_request(request).await?).await?;
            }
        }
        Ok(())
    }
}

impl Drop for Stage {
    /// What is still open ends.
    fn drop(&mut self) {
        self.drain.leave();
    }
}

/// Rules that admit this sidecar alone.
fn only(own: &SpiffeId) -> anyhow::Result<AccessRules> {
    let account = format!("{}/{}", own.namespace(), own.service_account());
    let from = vec![v1::AccessSource { service_accounts: vec![account], ..v1::AccessSource::default() }];
    let clause = v1::AccessClause { from, to: Vec::new() };
    let action = v1::AccessAction::Allow.into();
    let rule = v1::AccessRule { name: NAME.to_owned(), action, clauses: vec![clause] };
    Ok(AccessRules::new(&[rule])?)
}

fn request(method: Method, uri: Uri, headers: HeaderMap) -> Request<Full<Bytes>> {
    let body = if method == Method::GET { Bytes::new() } else { BODY };
    let mut request = Request::new(Full::new(body));
    (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, uri, headers);
    request
}

fn fields(common: &[(&'static str, &'static str)], own: &[(&'static str, &'static str)]) -> HeaderMap {
    let field = |&(name, value): &_| (HeaderName::from_static(name), HeaderValue::from_static(value));
    own.iter().chain(common).map(field).collect()
}

/// Reads an answer to its end.
async fn over(answer: Response<Incoming>) -> anyhow::Result<()> {
    let status = answer.status();
    ensure!(status.is_success(), "the answer is {status}");
    answer.into_body().collect().await?;
    Ok(())
}

/// Everything goes to this sidecar's own inbound side, by a route.
fn destination(own: &SpiffeId, application: u16, protocol: AppProtocol) -> anyhow::Result<Destination> {
    let protocol = match protocol {
        AppProtocol::Http2 => v1::AppProtocol::Http2,
        _ => v1::AppProtocol::Http1,
    };
    let backend = v1::Backend { key: NAME.to_owned(), protocol: protocol.into(), ..v1::Backend::default() };
    let share = v1::WeightedBackend { backend: NAME.to_owned(), weight: 1, filters: Vec::new() };
    let message = v1::Destination {
        service: NAME.to_owned(),
        protocol: protocol.into(),
        http_routes: vec![v1::HttpRoute::default()],
        http_rules: vec![v1::HttpRule { backends: vec![share], ..v1::HttpRule::default() }],
        backends: vec![backend],
        default_backend: NAME.to_owned(),
        ..v1::Destination::default()
    };
    let endpoint = v1::Endpoint {
        address: Ipv4Addr::LOCALHOST.to_string(),
        port: application.into(),
        identity: own.to_string(),
        ..v1::Endpoint::default()
    };
    let endpoints = v1::Endpoints { endpoints: vec![endpoint] };
    let endpoints = convert::endpoints(&endpoints, &EndpointSet::default())?;
    let state = Arc::new(BackendState::default());
    state.endpoints.store(Arc::new(endpoints));
    Ok(convert::destination(&message, &mut |_| Arc::clone(&state))?)
}

/// Answers what comes on one connection.
async fn serve_application(socket: TcpListener, protocol: AppProtocol) {
    let own = if protocol == AppProtocol::Http2 { &[][..] } else { &[KEPT] };
    let answer = service_fn(async |request: Request<Incoming>| {
        drop(request.into_body().collect().await);
        let mut answer = Response::new(Full::new(BODY));
        *answer.headers_mut() = fields(&ANSWERED, own);
        Ok::<_, Infallible>(answer)
    });
    let serving = async {
        let (io, _) = socket.accept().await?;
        // The answer's head and body are written one by one, and the second would wait for the first to be acknowledged.
        io.set_nodelay(true)?;
        let io = TokioIo::new(io);
        let served = if protocol == AppProtocol::Http2 {
            server::conn::http2::Builder::new(LocalExecutor).serve_connection(io, answer).await
        } else {
            server::conn::http1::Builder::new().serve_connection(io, answer).await
        };
        served.map_err(io::Error::other)
    };
    if let Err(error) = serving.await {
        tracing::debug!(%error, "the rehearsal's application");
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        runtime::{Builder, Handle, LocalOptions},
        time::{pause, resume, sleep},
    };

    use super::*;
    use crate::{
        identity::{Identity, testing::Authority},
        log::Logs,
        metrics::Observed,
    };

    const OWN: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn worker() -> (Worker, Arc<Metrics>) {
        let identity = Arc::new(Identity::new());
        identity.publish(Authority::new("cluster.local").credentials(OWN));
        let metrics = Metrics::new(1);
        let series = metrics.worker(0);
        let shared = Shared {
            store: Store::fixed(None, []),
            identity: Arc::clone(&identity),
            metrics: Arc::clone(&metrics),
            access_log: Logs::for_tests("info").1.access,
            settings: Arc::new(Settings::for_tests()),
            drain: Drain::new().1,
        };
        let pool = carrier::Pool::new(identity, Arc::clone(&series));
        (Worker::new(shared, series, pool), metrics)
    }

    fn on_a_worker(test: impl Future<Output = ()>) {
        let runtime =
            Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
        runtime.block_on(async { timeout(Duration::from_secs(60), test).await.expect("the test hangs") });
    }

    /// What a sidecar counts of requests and connections, and the tasks that are left of a rehearsal when connections' keepers
    /// have looked again.
    async fn left(metrics: &Metrics) -> (String, usize) {
        pause();
        sleep(Duration::from_secs(20)).await;
        resume();
        let text = metrics.encode(&Observed::default());
        let text = text.lines().filter(|line| !line.starts_with("process_")).collect::<Vec<_>>().join("\n");
        (text, Handle::current().metrics().num_alive_tasks())
    }

    #[test]
    fn requests_of_both_versions_go_the_whole_way_and_leave_nothing() {
        on_a_worker(async {
            let (worker, metrics) = worker();
            let before = left(&metrics).await;
            both_versions(&worker, &OWN.parse().unwrap()).await.unwrap();
            assert_eq!(left(&metrics).await, before);
        });
    }

    #[test]
    fn nobody_else_gets_out_by_the_stage() {
        on_a_worker(async {
            let (worker, metrics) = worker();
            let before = left(&metrics).await;
            let own = OWN.parse().unwrap();
            let (stage, client) = Stage::build(&worker, &own, AppProtocol::Http1).await.unwrap();
            let mut stranger = TcpStream::connect(stage.outbound).await.unwrap();
            stranger.write_all(b"GET /rehearsal HTTP/1.1\r\nHost: rehearsal:80\r\n\r\n").await.unwrap();
            let mut said = Vec::new();
            drop(stranger.read_to_end(&mut said).await);
            assert!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
            stage.play(client, AppProtocol::Http1).await.unwrap();
            assert_eq!(left(&metrics).await, before);
        });
    }

    #[test]
    fn the_way_leads_by_a_sidecar_that_shows_who_it_is_and_a_failure_leaves_nothing() {
        on_a_worker(async {
            let (worker, metrics) = worker();
            let before = left(&metrics).await;
            let other = "spiffe://cluster.local/ns/shop/sa/other".parse().unwrap();
            let (stage, client) = Stage::build(&worker, &other, AppProtocol::Http1).await.unwrap();
            let error = stage.play(client, AppProtocol::Http1).await.unwrap_err();
            assert!(error.to_string().contains("503"), "{error}");
            assert_eq!(left(&metrics).await, before);
        });
    }
}
