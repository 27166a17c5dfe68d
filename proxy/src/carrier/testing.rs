//! The carrier's tests build their world here: an authority, identities, a server on loopback, a pool that calls it.

use std::{
    cell::Cell,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
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
    net::TcpListener,
    sync::{mpsc, watch},
    task::{LocalSet, spawn_local},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use super::{CarrierBody, Peer, Pool, server};
use crate::identity::{Credentials, Trust};

pub(super) const SECOND: Duration = Duration::from_secs(1);

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
                let (credentials, handler, mut drained) =
                    (credentials.clone(), handler.clone(), drained.clone());
                spawn_local(async move {
                    if let Ok(incoming) = server::handshake(io, &credentials).await {
                        let drained = async move {
                            if drained.wait_for(|drained| *drained).await.is_err() {
                                std::future::pending::<()>().await;
                            }
                        };
                        let _ended = incoming.serve(handler, drained).await;
                    }
                });
            }
        });
        let name = ServerName { form, port: 9080 };
        let peer = Peer { address: (Ipv4Addr::LOCALHOST, 9080).into(), name, identity: id("reviews") };
        let caller = authority.credentials("web");
        let pool = Pool::with(move || Some(caller.clone()), address.port());
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

/// Runs a test as a worker runs traffic, and fails it when it hangs.
pub(super) async fn on_a_worker(test: impl Future<Output = ()>) {
    let worker = LocalSet::new();
    tokio::time::timeout(60 * SECOND, worker.run_until(test)).await.expect("the test hangs");
}
