//! A control plane of the future: it stands between a sidecar and the real one, and puts into every message what only
//! a later version would say.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream, server::SendResponse};
use heddle_api::{
    identity::CONTROL_PLANE_DNS_NAME,
    v1::{DiscoveryResponse, Resource, ResourceName, resource::Body},
};
use http::{Request, Response};
use prost::Message;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::{ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::peer::{self, Credentials};

/// A number that no field, resource type or enum has yet.
pub const FUTURE: i32 = 99;

/// It runs until it is dropped.
#[derive(Debug)]
pub struct Middleman {
    changed: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Middleman {
    /// Listens at `listen` with a certificate signed by the key in `state`, and speaks with the control plane at `real`
    /// by `credentials`, those of the pod whose sidecar will come.
    ///
    /// # Errors
    /// When the address is taken or the state directory holds no authority.
    pub async fn start(
        listen: SocketAddr,
        real: SocketAddr,
        state: &Path,
        credentials: Credentials,
    ) -> anyhow::Result<Self> {
        let acceptor = TlsAcceptor::from(Arc::new(serving(state)?));
        let listener = TcpListener::bind(listen).await.with_context(|| format!("listening at {listen}"))?;
        let changed = Arc::new(AtomicU64::new(0));
        let between = Arc::new(Between { real, credentials, changed: Arc::clone(&changed) });
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (acceptor, between) = (acceptor.clone(), Arc::clone(&between));
                // How a connection ends is the sidecar's business.
                tokio::spawn(async move { between.serve(acceptor, stream).await });
            }
        });
        Ok(Self { changed, task: task.abort_handle() })
    }

    /// Messages that it has changed.
    #[must_use]
    pub fn changed(&self) -> u64 {
        self.changed.load(Ordering::Relaxed)
    }
}

impl Drop for Middleman {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn serving(state: &Path) -> anyhow::Result<ServerConfig> {
    let read = |file: &str| std::fs::read_to_string(state.join(file)).with_context(|| file.to_owned());
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem")?, KeyPair::from_pem(&read("ca-key.pem")?)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![CONTROL_PLANE_DNS_NAME.to_owned()])?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let leaf: CertificateDer<'static> = params.signed_by(&key, &issuer)?.into();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

struct Between {
    real: SocketAddr,
    credentials: Credentials,
    changed: Arc<AtomicU64>,
}

impl Between {
    async fn serve(self: Arc<Self>, acceptor: TlsAcceptor, stream: TcpStream) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        let mut connection = h2::server::handshake(acceptor.accept(stream).await?).await?;
        while let Some(call) = connection.accept().await {
            let (request, respond) = call?;
            let between = Arc::clone(&self);
            tokio::spawn(async move { between.call(request, respond).await });
        }
        Ok(())
    }

    /// One call of a method: requests pass as they are, each message of the response is changed.
    async fn call(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> anyhow::Result<()> {
        let (parts, asked) = request.into_parts();
        let is_stream = parts.uri.path().ends_with("/Stream");
        let credentials = (!parts.uri.path().ends_with("/Join")).then_some(&self.credentials);
        let io = peer::dial_control_plane(self.real, credentials).await?;
        let (client, connection) = h2::client::handshake(io).await?;
        tokio::spawn(connection);
        let (response, ask) = client.ready().await?.send_request(Request::from_parts(parts, ()), false)?;
        tokio::spawn(pass(asked, ask));
        let (parts, mut said) = response.await?.into_parts();
        let over = said.is_end_stream();
        let mut say = respond.send_response(Response::from_parts(parts, ()), over)?;
        let mut unread = BytesMut::new();
        while let Some(data) = said.data().await {
            let data = data?;
            said.flow_control().release_capacity(data.len())?;
            unread.put(data);
            while let Some(message) = take(&mut unread)? {
                let message = if is_stream { of_the_future(&message)? } else { with_more(message) };
                self.changed.fetch_add(1, Ordering::Relaxed);
                say.send_data(framed(&message), false)?;
            }
        }
        if let Some(trailers) = said.trailers().await? {
            say.send_trailers(trailers)?;
        }
        Ok(())
    }
}

async fn pass(mut from: RecvStream, mut to: SendStream<Bytes>) -> anyhow::Result<()> {
    while let Some(data) = from.data().await {
        let data = data?;
        from.flow_control().release_capacity(data.len())?;
        to.send_data(data, false)?;
    }
    Ok(to.send_data(Bytes::new(), true)?)
}

/// A whole gRPC message, without its five bytes of prefix.
fn take(unread: &mut BytesMut) -> anyhow::Result<Option<Vec<u8>>> {
    let Some(mut prefix) = unread.get(..5) else { return Ok(None) };
    ensure!(prefix.get_u8() == 0, "a compressed message, though nobody asked for one");
    let length = prefix.get_u32() as usize;
    if unread.len() < 5 + length {
        return Ok(None);
    }
    unread.advance(5);
    Ok(Some(unread.split_to(length).to_vec()))
}

fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + message.len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).expect("no message is that large"));
    bytes.put(message);
    bytes.freeze()
}

/// An encoded message with fields that no version has yet: a number and a text.
#[must_use]
pub fn with_more(mut message: Vec<u8>) -> Vec<u8> {
    prost::encoding::uint64::encode(1990, &u64::MAX, &mut message);
    prost::encoding::string::encode(1991, &"soon".to_owned(), &mut message);
    message
}

/// A response with more fields at every level that is cheap to reach, numbers that enums do not have, and a resource of an
/// unknown type.
fn of_the_future(message: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut response = DiscoveryResponse::decode(message)?;
    let resources = std::mem::take(&mut response.changed);
    let mut newer = with_more(response.encode_to_vec());
    let unknown = Resource {
        name: Some(ResourceName { r#type: FUTURE, name: "loom".to_owned() }),
        version: "1".to_owned(),
        body: None,
    };
    for mut resource in resources.into_iter().chain([unknown]) {
        match &mut resource.body {
            Some(Body::Destination(destination)) => {
                for backend in &mut destination.backends {
                    backend.policy.get_or_insert_default().algorithm = FUTURE;
                }
            }
            Some(Body::Inbound(inbound)) => inbound.access_log = FUTURE,
            _ => {}
        }
        // DiscoveryResponse.changed is field 2.
        prost::encoding::bytes::encode(2, &with_more(resource.encode_to_vec()), &mut newer);
    }
    Ok(newer)
}
