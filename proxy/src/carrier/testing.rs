//! The carrier's tests build their world here: an authority, identities, a server on loopback, a pool that calls it.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use heddle_api::{
    carrier::{Form, ServerName},
    identity::SpiffeId,
};
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls_pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    task::{LocalSet, spawn_local},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use super::{CarrierBody, Peer, Pool, server};
use crate::{
    identity::{Credentials, Trust},
    metrics::{Metrics, WorkerMetrics},
};

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// Is through when the server is to drain.
type Drained = Pin<Box<dyn Future<Output = ()>>>;

/// A certificate authority.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(super) fn trust(&self) -> Arc<Trust> {
        Arc::new(Trust::new("cluster.local", &[self.0.der()]).unwrap())
    }

    /// Credentials of a service account in `shop`.
    pub(super) fn credentials(&self, account: &str) -> Arc<Credentials> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id(account).as_str().try_into().unwrap())];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let pod = format!("shop/{account}-1").parse().unwrap();
        Arc::new(Credentials::new(vec![leaf.der().clone()], key, pod, self.trust()).unwrap())
    }
}

pub(super) fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", account).unwrap()
}

/// A server of `reviews` on loopback and a pool of `web`.
pub(super) struct World {
    pub(super) authority: Authority,
    pub(super) pool: Rc<Pool>,
    pub(super) peer: Peer,
    pub(super) address: SocketAddr,
    /// Connections that the server accepted.
    pub(super) accepted: Rc<Cell<usize>>,
    drain: watch::Sender<bool>,
}

impl World {
    /// Serves every connection with `handler`.
    pub(super) async fn new<H, F>(form: Form, handler: H) -> Self
    where
        H: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + 'static,
        F: Future<Output = ()> + 'static,
    {
        Self::watched(form, handler, Rc::default()).await
    }

    /// Serves every connection with `handler`, and says how each ended.
    pub(super) async fn watched<H, F>(
        form: Form,
        handler: H,
        ended: Rc<RefCell<Vec<Result<(), String>>>>,
    ) -> Self
    where
        H: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + 'static,
        F: Future<Output = ()> + 'static,
    {
        Self::accepting(form, move |incoming, drained| {
            let (handler, ended) = (handler.clone(), Rc::clone(&ended));
            async move {
                let end = incoming.serve(handler, drained, std::future::pending()).await;
                ended.borrow_mut().push(end.map_err(|error| error.to_string()));
            }
        })
        .await
    }

    /// A server that accepts connections and then does nothing.
    pub(super) async fn silent() -> Self {
        Self::accepting(Form::Http1, |incoming, _| async move {
            std::future::pending::<()>().await;
            drop(incoming);
        })
        .await
    }

    /// A server that sends `hello`, waits for the first request's HEADERS, sends `answer` and closes.
    pub(super) async fn scripted(hello: &'static [u8], answer: &'static [u8]) -> Self {
        Self::listening(Form::Http1, move |io, credentials, _| async move {
            let mut tls = TlsAcceptor::from(credentials.server.clone()).accept(io).await.unwrap();
            tls.write_all(hello).await.unwrap();
            let mut heard = Vec::new();
            // The end of the HEADERS frame's head for stream 1, and GET in HPACK's static table.
            while !heard.windows(6).any(|bytes| bytes == [0, 0, 0, 1, 0x82, 0x86]) {
                tls.read_buf(&mut heard).await.unwrap();
            }
            tls.write_all(answer).await.unwrap();
            tls.shutdown().await.unwrap();
        })
        .await
    }

    /// A server that takes one stream at a time. It answers each with its body, once `go` lets it.
    pub(super) async fn one_at_a_time(go: Rc<Semaphore>) -> Self {
        Self::listening(Form::Http1, move |io, credentials, _| {
            let go = Rc::clone(&go);
            async move {
                let tls = TlsAcceptor::from(credentials.server.clone()).accept(io).await.unwrap();
                let mut streams =
                    h2::server::Builder::new().max_concurrent_streams(1).handshake(tls).await.unwrap();
                while let Some(Ok((request, to))) = streams.accept().await {
                    let go = Rc::clone(&go);
                    spawn_local(async move {
                        go.acquire().await.unwrap().forget();
                        let body = CarrierBody::of_request(request).into_body().collect().await.unwrap();
                        let _gone = super::respond(to, Response::new(Full::new(body.to_bytes()))).await;
                    });
                }
            }
        })
        .await
    }

    async fn accepting<S, F>(form: Form, serve: S) -> Self
    where
        S: Fn(server::Incoming, Drained) -> F + Clone + 'static,
        F: Future<Output = ()> + 'static,
    {
        Self::listening(form, move |io, credentials, drained| {
            let serve = serve.clone();
            async move {
                if let Ok(incoming) = server::handshake(io, &credentials, crate::meter::STALL).await {
                    serve(incoming, drained).await;
                }
            }
        })
        .await
    }

    async fn listening<S, F>(form: Form, serve: S) -> Self
    where
        S: Fn(TcpStream, Arc<Credentials>, Drained) -> F + 'static,
        F: Future<Output = ()> + 'static,
    {
        let authority = Authority::new();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let credentials = authority.credentials("reviews");
        let accepted = Rc::new(Cell::new(0));
        let (drain, drained) = watch::channel(false);
        let count = Rc::clone(&accepted);
        spawn_local(async move {
            loop {
                let (io, _) = listener.accept().await.unwrap();
                count.set(count.get() + 1);
                let mut drained = drained.clone();
                let drained = Box::pin(async move {
                    if drained.wait_for(|drained| *drained).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                });
                spawn_local(serve(io, credentials.clone(), drained));
            }
        });
        let name = ServerName { form, port: 9080 };
        let peer = Peer { address: (Ipv4Addr::LOCALHOST, 9080).into(), name, identity: id("reviews") };
        let caller = authority.credentials("web");
        let pool = Pool::with(move || Some(caller.clone()), address.port(), metrics());
        Self { authority, pool, peer, address, accepted, drain }
    }

    pub(super) fn drain_server(&self) {
        self.drain.send(true).unwrap();
    }

    pub(super) async fn get(&self, path: &str) -> Result<Response<CarrierBody>, super::SendError> {
        self.pool.send(&self.peer, get(path), 5 * SECOND).await
    }

    /// The answer's text, or the error that ended it.
    pub(super) async fn text(&self, path: &str) -> String {
        let body = self.get(path).await.unwrap().into_body().collect().await.unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    }
}

pub(super) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "reviews:9080").body(Full::default()).unwrap()
}

/// A body that is fed by a channel.
pub(super) fn channel() -> (mpsc::Sender<Frame<Bytes>>, impl Body<Data = Bytes, Error = Infallible>) {
    let (sender, receiver) = mpsc::channel(64);
    (sender, StreamBody::new(ReceiverStream::new(receiver).map(Ok)))
}

/// A connection to the world's server made by hand, to say what no pool would.
pub(super) async fn raw(world: &World, credentials: &Credentials, name: &str) -> TlsStream<TcpStream> {
    shake_hands(TcpStream::connect(world.address).await.unwrap(), credentials, name).await
}

/// The calling side's TLS handshake.
pub(super) async fn shake_hands(
    io: TcpStream,
    credentials: &Credentials,
    name: &str,
) -> TlsStream<TcpStream> {
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(credentials.client.clone()).connect(name, io).await.unwrap()
}

/// Counters that nobody reads.
pub(super) fn metrics() -> Arc<WorkerMetrics> {
    Metrics::new(1).worker(0)
}

/// Runs a test as a worker runs traffic, and fails it when it hangs.
pub(super) async fn on_a_worker(test: impl Future<Output = ()>) {
    run(60 * SECOND, test).await;
}

/// Runs a test of hours, with paused time.
pub(super) async fn for_hours(test: impl Future<Output = ()>) {
    run(24 * 3600 * SECOND, test).await;
}

async fn run(limit: Duration, test: impl Future<Output = ()>) {
    let worker = LocalSet::new();
    tokio::time::timeout(limit, worker.run_until(test)).await.expect("the test hangs");
}
