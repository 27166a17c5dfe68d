//! One request to one endpoint: through its sidecar, or in plaintext where it has none.

use std::{rc::Rc, time::Duration};

use heddle_api::carrier::{Form, ServerName};
use http::{Response, Version, request};
use tokio::time::Instant;

use super::body::{RequestBody, ResponseBody};
use crate::{
    carrier::{Peer, SendError, Sent},
    config::{AppProtocol, Backend, Endpoint},
    plain::{PlainVersion, edge},
    reason::Reason,
    worker::Worker,
};

/// Sends one request to one endpoint. Gives the response, and how long the endpoint took to its headers.
///
/// # Errors
/// Says whether the application may have received it.
pub fn send(
    worker: &Rc<Worker>,
    backend: &Backend,
    endpoint: &Endpoint,
    parts: request::Parts,
    body: RequestBody,
    client: Version,
) -> impl Future<Output = Result<(Response<ResponseBody>, Duration), SendError>> {
    let http2 = speaks_http2(backend.protocol, client, edge::is_grpc(&parts.headers));
    let connect = backend.policy.connect_timeout;
    // Put together out here: the future would keep room for the parts and for the whole.
    let request = http::Request::from_parts(parts, body);
    async move {
        match peer(worker, endpoint, if http2 { Form::Http2 } else { Form::Http1 })? {
            Some(peer) => {
                let response = worker.carrier.send(&peer, request, connect).await?;
                let latency = response.body().latency();
                Ok((response.map(ResponseBody::carrier), latency))
            }
            None => {
                let version = if http2 { PlainVersion::Http2 } else { PlainVersion::Http1 };
                let started = Instant::now();
                let response = worker.plain.send(endpoint.address, version, request, connect).await?;
                Ok((response.map(ResponseBody::plain), started.elapsed()))
            }
        }
    }
}

/// How to reach an endpoint: through its sidecar, or (none) in plaintext.
///
/// # Errors
/// When it must have a sidecar and has none, or is this sidecar itself.
pub fn peer(worker: &Worker, endpoint: &Endpoint, form: Form) -> Result<Option<Peer>, SendError> {
    let refuse = |reason, source: &str| Err(SendError { reason, sent: Sent::No, source: source.to_owned() });
    if heddle_api::ports::SIDECAR.contains(&endpoint.address.port())
        || worker.settings.is_own_port(endpoint.address)
    {
        return refuse(Reason::OwnPort, "that is a sidecar's own port");
    }
    match &endpoint.identity {
        Some(identity) => Ok(Some(Peer {
            address: endpoint.address,
            name: ServerName { form, port: endpoint.address.port() },
            identity: identity.clone(),
        })),
        None if endpoint.must_be_meshed => {
            refuse(Reason::PeerNotMeshed, "it has no sidecar, and its namespace takes mTLS only")
        }
        None => Ok(None),
    }
}

/// Whether the application gets HTTP/2: what its port declares, else what the client spoke; gRPC always.
#[must_use]
pub fn speaks_http2(protocol: AppProtocol, client: Version, grpc: bool) -> bool {
    match protocol {
        AppProtocol::Http2 => true,
        AppProtocol::Http1 | AppProtocol::Opaque => grpc,
        AppProtocol::Http | AppProtocol::Detect => grpc || client == Version::HTTP_2,
    }
}
