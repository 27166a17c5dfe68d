//! Port 15006: what comes without a sidecar, where policy lets it in.
//!
//! A redirected connection goes to the port it was for, whatever it speaks. Without redirect the sidecar takes HTTP
//! only, and the authority names the port: one of the pod's own Services' (explicit mode).

use std::{
    cell::Cell,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use heddle_api::OPAQUE_PORTS;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request};
use hyper::{body::Incoming, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    sync::Notify,
    time::{Instant, timeout},
};

use super::{
    TCP_IDLE,
    body::{InboundBody, Passed},
    door::{Door, Permitted, Refused},
    record::{self, Record},
};
use crate::{
    batch::{Batched, Habits, InTurns},
    carrier::copy::Socket,
    config::AppProtocol,
    detect::{Detector, Protocol, Rewind, detect},
    meter::Metered,
    metrics::{Direction, Flow},
    plain::{
        self, PlainVersion, Upgrade, edge, hops,
        pace::{Pace, Paced},
        parking, refusal, settings,
    },
    reason::Reason,
    relay::relay_until,
    threads::OpenConnection,
    worker::{Opened, Worker},
};

/// A client that may not use the port in bytes may still be about to speak HTTP, and gets this long to begin.
const FIRST_BYTE: Duration = Duration::from_secs(10);
/// A client that has a connection and asks for nothing loses it after this long; on HTTP/2, within twice of it.
const IDLE: Duration = Duration::from_secs(60 * 60);
/// An HTTP/2 client that is silent for so long is asked whether it is there …
const PING_EVERY: Duration = Duration::from_secs(60);
/// … and answers within this time, or is gone.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long hyper may take to hand over a connection whose 101 is written.
const HANDOVER: Duration = Duration::from_secs(10);
/// The port of an authority without one.
const HTTP_PORT: u16 = 80;

/// Serves one connection until it ends. `original` is where it was going before it was redirected.
pub async fn serve(worker: Rc<Worker>, io: TcpStream, original: Option<SocketAddr>, open: OpenConnection) {
    let opened = Opened::new(&worker, Direction::Inbound, false, open);
    let (Ok(client), Ok(local)) = (io.peer_addr(), io.local_addr()) else { return };
    let door = Door::new(worker, client, None, opened);
    let served = match original {
        Some(original) => redirected(&door, io, original).await,
        None => explicit(&door, io, local.ip()).await,
    };
    if let Err(error) = served {
        tracing::debug!(%client, %error, "plaintext connection ended");
    }
}

/// Whom a connection's requests are for.
#[derive(Clone, Copy)]
enum Target {
    /// This port, whatever they name.
    Application(SocketAddr),
    /// The port that each one's authority names, on this address.
    Authority(IpAddr),
}

async fn redirected(door: &Rc<Door>, io: TcpStream, original: SocketAddr) -> io::Result<()> {
    let application = match door.own_application(original.ip(), original.port()) {
        Ok(application) => application,
        Err(refused) => return turn_away(door, &io, None, &refused),
    };
    match declared(door, application.port()) {
        Err(refused) => turn_away(door, &io, Some(application), &refused),
        Ok(AppProtocol::Opaque) => pass_bytes(door, Rewind::new(Bytes::new(), io), application).await,
        // HTTP for certain: the bytes tell the version, and are waited for. hyper answers what is no HTTP.
        Ok(AppProtocol::Http | AppProtocol::Http1 | AppProtocol::Http2) => {
            match first_bytes(door, io).await? {
                (Protocol::Silent | Protocol::Ended, _) => Ok(()),
                (Protocol::Http2, io) => {
                    Box::pin(serve_http2(door, io, Target::Application(application))).await
                }
                (Protocol::Http1 | Protocol::Tls | Protocol::Opaque, io) => {
                    serve_http1(door, io, Target::Application(application)).await
                }
            }
        }
        Ok(AppProtocol::Detect) => match detect(io, Some(door.worker.settings.detect_timeout)).await? {
            (Protocol::Silent, io) => silent(door, io.into_parts().1, application).await,
            (protocol, io) => detected(door, io, protocol, application).await,
        },
    }
}

/// What a client begins with where only it can begin. One that is silent is not waited for when the sidecar leaves.
async fn first_bytes(door: &Door, io: TcpStream) -> io::Result<(Protocol, Rewind<TcpStream>)> {
    let mut detector = Detector::new(io);
    let mut drain = door.worker.drain.clone();
    let protocol = tokio::select! {
        found = detector.protocol(Some(IDLE)) => found?,
        () = drain.leaving() => Protocol::Silent,
    };
    Ok((protocol, detector.replay()))
}

/// What a port speaks by declaration, or by being one whose server speaks first.
fn declared(door: &Door, port: u16) -> Result<AppProtocol, Refused> {
    let inbound = door.inbound()?;
    let is_opaque = OPAQUE_PORTS.contains(&port) || inbound.opaque_ports.contains(&port);
    Ok(match inbound.port(port).protocol {
        AppProtocol::Detect if is_opaque => AppProtocol::Opaque,
        protocol => protocol,
    })
}

async fn detected(
    door: &Rc<Door>,
    io: Rewind<TcpStream>,
    protocol: Protocol,
    application: SocketAddr,
) -> io::Result<()> {
    match protocol {
        Protocol::Http1 => serve_http1(door, io, Target::Application(application)).await,
        Protocol::Http2 => Box::pin(serve_http2(door, io, Target::Application(application))).await,
        Protocol::Tls | Protocol::Opaque | Protocol::Silent | Protocol::Ended => {
            pass_bytes(door, io, application).await
        }
    }
}

/// The client waits, so the application may be the one that speaks first; whoever speaks decides. Where bytes are
/// not allowed the application is not touched, but requests may be.
async fn silent(door: &Rc<Door>, io: TcpStream, application: SocketAddr) -> io::Result<()> {
    let may_use_bytes = || door.admit_bytes(application.port());
    if may_use_bytes().is_err() {
        return may_speak_http(door, io, application).await;
    }
    let server = match door.dial(application).await {
        Ok(server) => server,
        Err(refused) => return turn_away(door, &io, Some(application), &refused),
    };
    tokio::select! {
        biased;
        _ = door.revoked(may_use_bytes) => {
            drop(server);
            may_speak_http(door, io, application).await
        }
        _ = server.readable() => {
            Box::pin(copy(door, Rewind::new(Bytes::new(), io), server, application)).await
        }
        _ = io.readable() => match detect(io, None).await? {
            (protocol @ (Protocol::Http1 | Protocol::Http2), io) => {
                drop(server);
                detected(door, io, protocol, application).await
            }
            (_, io) => Box::pin(copy(door, io, server, application)).await,
        },
        () = tokio::time::sleep(TCP_IDLE) => Ok(()),
    }
}

/// A silent client that may not use the port in bytes is waited for a little.
async fn may_speak_http(door: &Rc<Door>, io: TcpStream, application: SocketAddr) -> io::Result<()> {
    let (protocol, io) = detect(io, Some(FIRST_BYTE)).await?;
    detected(door, io, protocol, application).await
}

/// Bytes that are not looked into.
async fn pass_bytes(door: &Rc<Door>, io: Rewind<TcpStream>, application: SocketAddr) -> io::Result<()> {
    let dialled = match door.admit_bytes(application.port()) {
        Ok(()) => door.dial(application).await,
        Err(refused) => Err(refused),
    };
    match dialled {
        Ok(server) => Box::pin(copy(door, io, server, application)).await,
        Err(refused) => turn_away(door, &io.into_parts().1, Some(application), &refused),
    }
}

async fn copy(
    door: &Door,
    io: Rewind<TcpStream>,
    server: TcpStream,
    application: SocketAddr,
) -> io::Result<()> {
    let (early, io) = io.into_parts();
    pass_while(door, Permitted { application, request: None }, early, io, server).await;
    Ok(())
}

/// Relays for as long as policy permits, and counts and records what passed.
async fn pass_while<C: Socket, S: Socket>(
    door: &Door,
    permitted: Permitted,
    early: Bytes,
    client: C,
    server: S,
) {
    let started = Instant::now();
    let application = permitted.application;
    let mut revoked = None;
    let stop = async {
        revoked = Some(door.revoked(|| permitted.still(door)).await);
    };
    let metrics = &door.worker.metrics;
    let count = |to_server, to_client| {
        metrics.tcp_bytes(Direction::Inbound, Flow::ToServer, to_server);
        metrics.tcp_bytes(Direction::Inbound, Flow::ToClient, to_client);
    };
    let bytes = relay_until(client, server, early, TCP_IDLE, count, stop).await;
    if let Some(refused) = revoked {
        record::refused(door, Some(application), refused.reason, &refused.sentence);
    }
    record::connection(door, application, started, (bytes.forth, bytes.back));
}

/// Without redirect only HTTP can say which port it wants.
async fn explicit(door: &Rc<Door>, io: TcpStream, ip: IpAddr) -> io::Result<()> {
    match first_bytes(door, io).await? {
        (Protocol::Silent | Protocol::Ended, _) => Ok(()),
        (Protocol::Http1, io) => serve_http1(door, io, Target::Authority(ip)).await,
        (Protocol::Http2, io) => Box::pin(serve_http2(door, io, Target::Authority(ip))).await,
        (protocol, io) => {
            let sentence = format!("{protocol:?} bytes that were not redirected name no port");
            let refused = Refused::new(Reason::NoDestination, sentence);
            turn_away(door, &io.into_parts().1, None, &refused)
        }
    }
}

/// Ends a connection that carries no HTTP: the peer sees a reset. Never fails; the connection has been served so.
fn turn_away(
    door: &Door,
    io: &TcpStream,
    application: Option<SocketAddr>,
    refused: &Refused,
) -> io::Result<()> {
    record::refused(door, application, refused.reason, &refused.sentence);
    reset(io);
    Ok(())
}

/// Closing with a linger time of 0 is what sends RST; it fails only for a socket that is gone already.
fn reset(io: &TcpStream) {
    let _gone = SockRef::from(io).set_linger(Some(Duration::ZERO));
}

async fn serve_http1(door: &Rc<Door>, io: Rewind<TcpStream>, target: Target) -> io::Result<()> {
    let worker = &door.worker;
    io.limit_unread(Some(worker.settings.stall_timeout));
    let door_of_requests = Rc::clone(door);
    let answer = move |request| answer(Rc::clone(&door_of_requests), target, request);
    parking::serve_http1(&worker.parking, io, Some(IDLE), worker.drain.clone(), answer)
        .await
        .map_err(|error| unreadable(door, error))
}

async fn serve_http2(door: &Rc<Door>, io: Rewind<TcpStream>, target: Target) -> io::Result<()> {
    let patience = door.worker.settings.stall_timeout;
    io.limit_unread(Some(patience));
    let drain = door.worker.drain.clone();
    let door_of_requests = Rc::clone(door);
    let asked = Rc::new(Cell::new(false));
    let asks = Rc::clone(&asked);
    let served = Rc::new(Notify::new());
    let serves = Rc::clone(&served);
    let service = service_fn(move |request| {
        let door = Rc::clone(&door_of_requests);
        asks.set(true);
        serves.notify_one();
        async move { Ok::<_, Infallible>(answer(door, target, request).await) }
    });
    let idle = async move {
        loop {
            tokio::time::sleep(IDLE).await;
            if !asked.take() {
                return;
            }
        }
    };
    // Who connects while the pod terminates has not heard of it yet, and gets a first request served.
    let mut terminating = drain.clone();
    let goodbye = async move {
        terminating.terminating().await;
        served.notified().await;
    };
    let enough = async move {
        tokio::select! {
            () = idle => {}
            () = goodbye => {}
            () = door.stalled.notified() => {}
        }
    };
    let mut http2 = settings::http2_server();
    http2.timer(TokioTimer::new()).keep_alive_interval(PING_EVERY).keep_alive_timeout(PING_TIMEOUT);
    let (io, turns) = Batched::new(io, Habits::default());
    let io = TokioIo::new(Metered::server(io, patience));
    let serving = InTurns::new(http2.serve_connection(io, service), turns);
    let ended = drain.drive(serving, enough, |serving| serving.get_pin_mut().graceful_shutdown()).await;
    ended.map_err(|error| unreadable(door, error))
}

/// What hyper itself refused to read is counted like what we refuse.
fn unreadable(door: &Door, error: hyper::Error) -> io::Error {
    plain::count_unreadable(&door.worker.metrics, Direction::Inbound, &error);
    io::Error::other(error)
}

/// One request and its answer.
async fn answer(door: Rc<Door>, target: Target, mut request: Request<Incoming>) -> Response<InboundBody> {
    let version = request.version();
    let on_upgrade = hyper::upgrade::on(&mut request);
    let (mut parts, body) = request.into_parts();
    let form = refusal::Form::of(&parts.method, &parts.headers);
    let read = edge::request(&mut parts, door.worker.settings.header_limit, &edge::LastHost::default());
    let application = match &read {
        Ok(_) => application(&door, target, &parts),
        Err(malformed) => Err(Refused::from(*malformed)),
    };
    let mut record = Record::begin(&door, &parts, version, application.as_ref().ok().copied());
    let passed = match application {
        Ok(application) => {
            let upgrade = read.ok().flatten().map(|protocol| (protocol, on_upgrade));
            pass(&door, application, version, parts, body, upgrade).await
        }
        Err(refused) => Err(refused),
    };
    let answer = match passed {
        Ok(passed) => InboundBody::passed(passed, record),
        Err(refused) => {
            record.refused(refused.reason, true);
            InboundBody::own(refusal::refusal(refused.reason, &refused.sentence, form))
        }
    };
    if version == Version::HTTP_2 {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    edge::answer_to_http1(&mut head);
    // An idle connection is not closed: its client may have sent a request that must not be lost, and hears it here.
    if door.worker.drain.is_terminating() && head.status != StatusCode::SWITCHING_PROTOCOLS {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Response::from_parts(head, body)
}

/// Where a request's application is.
fn application(door: &Door, target: Target, parts: &request::Parts) -> Result<SocketAddr, Refused> {
    if parts.method == Method::CONNECT {
        return Err(Refused::new(Reason::NotOnThisConnection, "CONNECT leads nowhere from here"));
    }
    match target {
        Target::Application(address) => Ok(address),
        Target::Authority(ip) => {
            let name = name(&parts.uri)
                .ok_or_else(|| Refused::new(Reason::NoDestination, "the request names no host"))?;
            let port = door.inbound()?.port_of_authority(&name).ok_or_else(|| {
                Refused::new(Reason::NotOnThisConnection, format!("no Service of this pod is called {name}"))
            })?;
            door.own_application(ip, port)
        }
    }
}

/// An authority as Services' names are written: in lower case, with port.
fn name(uri: &Uri) -> Option<String> {
    let authority = uri.authority()?;
    let host = authority.host().to_ascii_lowercase();
    Some(format!("{host}:{}", authority.port_u16().unwrap_or(HTTP_PORT)))
}

async fn pass(
    door: &Rc<Door>,
    application: SocketAddr,
    version: Version,
    mut parts: request::Parts,
    body: Incoming,
    upgrade: Option<(HeaderValue, OnUpgrade)>,
) -> Result<Passed, Refused> {
    let speaks = match door.admit_request(application.port(), &parts)? {
        AppProtocol::Http1 | AppProtocol::Opaque => PlainVersion::Http1,
        AppProtocol::Http2 => PlainVersion::Http2,
        AppProtocol::Detect | AppProtocol::Http if version == Version::HTTP_2 => PlainVersion::Http2,
        AppProtocol::Detect | AppProtocol::Http => PlainVersion::Http1,
    };
    if let Some(answer) = hops::last(&parts.method, &mut parts.headers)? {
        return Ok(Passed::Head(answer));
    }
    let Some((protocol, on_upgrade)) = upgrade.filter(|_| speaks == PlainVersion::Http1) else {
        let (body, pace) = Paced::new(body, &parts.headers, door.worker.settings.stall_timeout);
        let answer = pin!(door.send(application, speaks, parts, body));
        return match Pace::watch(pace, answer).await {
            Ok(answer) => Ok(Passed::Application(answer?)),
            Err(stalled) => {
                door.stalled.notify_one();
                Err(Refused::new(Reason::RequestStalled, stalled.to_string()))
            }
        };
    };
    let (method, uri) = (parts.method.clone(), parts.uri.clone());
    match Box::pin(door.upgrade(application, parts, &protocol)).await? {
        Upgrade::Declined(answer) => Ok(Passed::Application(answer)),
        Upgrade::Switched(mut answer, server) => {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            let permitted = Permitted { application, request: Some((method, uri)) };
            let door = Rc::clone(door);
            tokio::task::spawn_local(async move {
                match timeout(HANDOVER, on_upgrade).await {
                    Ok(Ok(client)) => {
                        let (client, server) = (TokioIo::new(client), TokioIo::new(server));
                        pass_while(&door, permitted, Bytes::new(), client, server).await;
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "the client left before its upgrade was confirmed");
                    }
                    Err(_) => tracing::debug!("an upgrade was not taken up"),
                }
            });
            Ok(Passed::Head(answer))
        }
    }
}

#[cfg(test)]
mod tests;
