//! What is not of the mesh, and so goes where it would have gone without a sidecar.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use http::{Request, Response, StatusCode, Version, request};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::Instant};

use super::{
    body::{RequestBody, ResponseBody},
    http::{ClientBody, Refused},
    record::Record,
    refuse,
    send::speaks_http2,
    target::{HTTP_PORT, Name},
    tunnel::{Asking, handed_over, passed, switched},
};
use crate::{
    carrier::{SendError, copy::Socket},
    config::{AppProtocol, Policy},
    plain::{PlainVersion, Upgrade, dial, edge},
    reason::Reason,
    relay::relay,
    store::Slot,
    worker::{Settings, Worker},
};

/// Addresses of one name that are tried before it is given up.
const ADDRESSES: usize = 4;
/// Of one connection's making.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a request brings with it besides itself.
pub struct Exchange<'a> {
    /// Who serves it.
    pub worker: &'a Rc<Worker>,
    /// What the client spoke.
    pub version: Version,
    /// When its headers had come.
    pub started: Instant,
    /// The name that discovery does not know; none: it was not asked, and the authority says.
    pub slot: Option<Arc<Slot>>,
}

/// Bytes to a name or address outside the mesh.
pub async fn bytes<T: Socket>(worker: &Rc<Worker>, io: T, name: &str) {
    match connect(worker, name).await {
        Ok(upstream) => {
            let idle = Policy::default().idle_timeout;
            relay(io, upstream, bytes::Bytes::new(), idle, passed(worker)).await;
        }
        Err(refused) => refuse(worker, io, refused.reason, &refused.sentence),
    }
}

/// A request to a host outside the mesh.
///
/// # Errors
/// When the host is unknown, cannot be reached, or does not answer in HTTP.
pub async fn http(
    exchange: Exchange<'_>,
    parts: request::Parts,
    body: ClientBody,
    upgrade: Option<Asking>,
) -> Result<Response<ResponseBody>, Refused> {
    let Exchange { worker, version, started, .. } = exchange;
    let (method, uri) = (parts.method.clone(), parts.uri.clone());
    let mut record = Record::new(worker, &worker.outside, method, uri, version, started);
    let upgrades = upgrade.is_some();
    let answered = send(&exchange, parts, body, upgrade, &mut record).await;
    match answered {
        Ok(response) => {
            record.status = Some(response.status());
            // What follows a 101, or the 200 that says it over HTTP/2, is no longer this request.
            let confirmed = version == Version::HTTP_2 && response.status().is_success();
            if upgrades && (confirmed || response.status() == StatusCode::SWITCHING_PROTOCOLS) {
                return Ok(response);
            }
            Ok(response.map(|body| body.with_record(record)))
        }
        Err(refused) => {
            record.refused(refused.reason);
            Err(refused)
        }
    }
}

async fn send(
    exchange: &Exchange<'_>,
    parts: request::Parts,
    body: ClientBody,
    upgrade: Option<Asking>,
    record: &mut Record,
) -> Result<Response<ResponseBody>, Refused> {
    let worker = exchange.worker;
    let found = match &exchange.slot {
        Some(slot) => addresses(worker, slot.name()).await?,
        None => {
            let authority = parts.uri.authority();
            let authority =
                authority.ok_or_else(|| Refused::new(Reason::NoDestination, "the request names no host"))?;
            let name = Name::of(authority, HTTP_PORT)
                .map_err(|(reason, sentence)| Refused::new(reason, sentence))?;
            addresses(worker, &name.key).await?
        }
    };
    if let Some(Asking { offer, on_upgrade, opened }) = upgrade {
        let ask = async |address| {
            record.tried(address, false);
            let request = Request::from_parts(parts.clone(), ());
            worker.plain.upgrade(address, request, &offer.protocols, CONNECT_TIMEOUT).await
        };
        return Ok(match first_that_takes(&found, ask).await? {
            Upgrade::Declined(response) => {
                offer.declined(response.status())?;
                response.map(ResponseBody::plain)
            }
            Upgrade::Switched(response, upstream) => {
                let response = offer.confirmed(switched(response))?;
                let worker = Rc::clone(worker);
                tokio::task::spawn_local(async move {
                    if let Some(io) = handed_over(on_upgrade).await {
                        let idle = Policy::default().idle_timeout;
                        let upstream = TokioIo::new(upstream);
                        relay(io, upstream, bytes::Bytes::new(), idle, passed(&worker)).await;
                    }
                    drop(opened);
                });
                response.map(|()| ResponseBody::empty())
            }
        });
    }
    let http2 = speaks_http2(AppProtocol::Detect, exchange.version, edge::is_grpc(&parts.headers));
    let version = if http2 { PlainVersion::Http2 } else { PlainVersion::Http1 };
    let mut left = found.len().min(ADDRESSES);
    let mut next = Some((parts, RequestBody::new(body, left > 1, Vec::new())));
    let ask = async |address| {
        record.tried(address, false);
        // Nothing was read of what could not be sent.
        let (parts, body) = next.take().expect("a body of which nothing was read can be sent again");
        left -= 1;
        if left > 0 {
            next = body.again().map(|body| (parts.clone(), body));
        }
        let request = Request::from_parts(parts, body);
        worker.plain.send(address, version, request, CONNECT_TIMEOUT).await
    };
    Ok(first_that_takes(&found, ask).await?.map(ResponseBody::plain))
}

/// Asks one address after the other, as long as none can be connected to.
async fn first_that_takes<T>(
    found: &[SocketAddr],
    mut ask: impl AsyncFnMut(SocketAddr) -> Result<T, SendError>,
) -> Result<T, Refused> {
    let mut last = Refused::new(Reason::UnknownHost, "it has no address");
    for &address in found.iter().take(ADDRESSES) {
        match ask(address).await {
            Ok(answer) => return Ok(answer),
            Err(error) => {
                last = Refused::new(error.reason, format!("at {address}: {}", error.source));
                if !matches!(error.reason, Reason::ConnectFailed | Reason::ConnectTimeout) {
                    break;
                }
            }
        }
    }
    Err(last)
}

/// Where a `host:port` is: an address as it stands, a name by DNS. At least one.
async fn addresses(worker: &Worker, name: &str) -> Result<Vec<SocketAddr>, Refused> {
    let unknown = |sentence: String| Refused::new(Reason::UnknownHost, sentence);
    let found = match name.parse() {
        Ok(address) => vec![address],
        Err(_) => {
            let (host, port) = name.rsplit_once(':').ok_or_else(|| unknown(format!("{name} has no port")))?;
            let port = port.parse().map_err(|_| unknown(format!("{name} has no port")))?;
            worker.resolver.resolve(host, port).await.map_err(unknown)?
        }
    };
    elsewhere(&worker.settings, name, found)
}

/// What a name was found to be, unless one of it is the sidecar itself.
fn elsewhere(settings: &Settings, name: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
    match found.iter().find(|address| settings.is_own_port(**address)) {
        Some(own) => Err(Refused::new(Reason::OwnPort, format!("{name} is {own}, the sidecar itself"))),
        None => Ok(found),
    }
}

/// A connection to the first address that takes one.
async fn connect(worker: &Worker, name: &str) -> Result<TcpStream, Refused> {
    let found = addresses(worker, name).await?;
    first_that_takes(&found, async |address| dial::connect(address, CONNECT_TIMEOUT).await).await
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::carrier::Sent;

    /// An address at which nobody listens.
    async fn dead() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    async fn dialled(found: &[SocketAddr]) -> Result<SocketAddr, Refused> {
        let dial = async |address| dial::connect(address, CONNECT_TIMEOUT).await;
        Ok(first_that_takes(found, dial).await?.peer_addr().unwrap())
    }

    #[tokio::test]
    async fn where_the_first_address_is_dead_the_second_takes_the_connection() {
        let alive = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = alive.local_addr().unwrap();
        assert_eq!(dialled(&[dead().await, there]).await.unwrap(), there);
        assert_eq!(dialled(&[there, dead().await]).await.unwrap(), there);
    }

    #[tokio::test]
    async fn where_all_are_dead_the_last_one_tried_is_named_and_they_are_four_at_most() {
        let (first, last) = (dead().await, dead().await);
        let refused = dialled(&[first, last]).await.unwrap_err();
        assert_eq!(refused.reason, Reason::ConnectFailed);
        assert!(refused.sentence.contains(&last.to_string()), "{}", refused.sentence);

        let alive = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let beyond = [first, last, first, last, alive.local_addr().unwrap()];
        assert_eq!(dialled(&beyond).await.unwrap_err().reason, Reason::ConnectFailed);
    }

    #[tokio::test]
    async fn what_an_address_may_have_received_goes_to_no_other() {
        let found = [dead().await, dead().await, dead().await];
        let mut asked = Vec::new();
        let refused = first_that_takes(&found, async |address| {
            asked.push(address);
            let reason = if asked.len() == 1 { Reason::ConnectTimeout } else { Reason::UpstreamReset };
            Err::<(), _>(SendError { reason, sent: Sent::Maybe, source: "it closed".to_owned() })
        });
        assert_eq!(refused.await.unwrap_err().reason, Reason::UpstreamReset);
        assert_eq!(asked, found[..2]);
    }

    #[test]
    fn a_name_that_is_the_sidecar_by_one_of_its_addresses_is_refused_whole() {
        let settings = Settings { pod_ips: vec!["10.0.0.7".parse().unwrap()], ..Settings::for_tests() };
        let found: Vec<SocketAddr> =
            ["192.0.2.1:15000", "10.0.0.7:15000"].map(|address| address.parse().unwrap()).to_vec();
        let refused = elsewhere(&settings, "admin.example:15000", found.clone()).unwrap_err();
        assert_eq!(refused.reason, Reason::OwnPort);
        assert!(refused.sentence.contains("10.0.0.7:15000"), "{}", refused.sentence);
        assert_eq!(elsewhere(&settings, "other.example:15000", found[..1].to_vec()).unwrap(), found[..1]);
    }
}
