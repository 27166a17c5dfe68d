//! Port 15008: requests, upgrades and tunnels from other sidecars, handed to the pod's application.
//!
//! The connection's TLS server name says which port and in what form, the certificate who calls; nothing in a
//! request is believed about either.

use std::{net::SocketAddr, pin::pin, rc::Rc, time::Duration};

use bytes::Bytes;
use h2::{Reason as Code, RecvStream, server::SendResponse};
use heddle_api::carrier::{Form, ServerName};
use http::{Method, Request, Response, Version, request};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::Instant};

use super::{
    TCP_IDLE,
    body::{InboundBody, Passed},
    door::{Door, Permitted, Refused},
    record::{self, Record},
};
use crate::{
    carrier::{
        self, CarrierBody, Tunnel, ahead,
        copy::Copied,
        server::{self, AcceptError},
        unless_reset,
        upgrade::{self, Asked},
    },
    meter::STALLED,
    metrics::{Direction, Flow, PeerRefusal},
    plain::{
        PlainVersion, Upgrade,
        edge::{self, LastHost},
        hops,
        pace::{Pace, Paced},
        refusal,
    },
    reason::Reason,
    threads::OpenConnection,
    worker::{Opened, Worker},
};

/// Serves one connection until it ends.
pub async fn serve(worker: Rc<Worker>, io: TcpStream, open: OpenConnection) {
    let opened = Opened::new(&worker, Direction::Inbound, true, open);
    let (Ok(client), Ok(local)) = (io.peer_addr(), io.local_addr()) else { return };
    let Some(credentials) = worker.identity.current() else {
        worker.metrics.refused(Direction::Inbound, Reason::NotReady);
        tracing::debug!(%client, "mesh connection refused: no certificate yet");
        return;
    };
    let incoming = match server::handshake(io, &credentials, patience(&worker)).await {
        Ok(incoming) => incoming,
        Err(error) => {
            let refused = refusal_of(&error);
            worker.metrics.peer_refused(Direction::Inbound, refused);
            if !matches!(refused, PeerRefusal::Handshake) {
                worker.metrics.refused(Direction::Inbound, Reason::PeerIdentity);
            }
            tracing::info!(%client, %error, "mesh connection refused");
            return;
        }
    };
    let (mut drain, mut leave) = (worker.drain.clone(), worker.drain.clone());
    let terminating = Box::pin(async move { drain.terminating().await });
    let leaving = Box::pin(async move { leave.leaving().await });
    let door = Door::new(worker, client, Some(incoming.peer.clone()), opened);
    let connection = Rc::new(Connection {
        name: incoming.name,
        application: door.own_application(local.ip(), incoming.name.port),
        door,
    });
    if let (Ok(application), Form::Http1 | Form::Http2) = (&connection.application, incoming.name.form) {
        // Made with the connection, so that its first request does not wait for it.
        connection.door.series(Some(application.port()), connection.version());
    }
    let handler = move |request, respond| Rc::clone(&connection).stream(request, respond);
    if let Err(error) = incoming.serve(handler, terminating, leaving).await {
        tracing::debug!(%client, %error, "mesh connection ended");
    }
}

/// A sidecar judges its own application's readers and bodies, and resets what stalls; it is only judged here where it does
/// not, so it gets twice its time.
fn patience(worker: &Worker) -> Duration {
    2 * worker.settings.stall_timeout
}

/// What is counted of a connection that did not come to its first request.
fn refusal_of(error: &AcceptError) -> PeerRefusal {
    match error {
        AcceptError::Identity(error) => error.into(),
        AcceptError::NoServerName | AcceptError::ServerName(_) => PeerRefusal::ServerName,
        AcceptError::Tls(error)
            if error.get_ref().and_then(|inner| inner.downcast_ref())
                == Some(&rustls::Error::NoCertificatesPresented) =>
        {
            PeerRefusal::NoCertificate
        }
        AcceptError::Tls(_) | AcceptError::Timeout(_) | AcceptError::Protocol | AcceptError::Http2(_) => {
            PeerRefusal::Handshake
        }
    }
}

/// What holds for all streams of a connection.
struct Connection {
    door: Rc<Door>,
    name: ServerName,
    /// Where the application is; refused when that is not the pod, or the sidecar itself.
    application: Result<SocketAddr, Refused>,
}

impl Connection {
    async fn stream(self: Rc<Self>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        match upgrade::asked(&request) {
            Err(malformed) => {
                tracing::debug!(malformed, client = %self.door.client, "stream refused");
                respond.send_reset(Code::PROTOCOL_ERROR);
            }
            // Boxed, so that the task of a plain request is not as large as the largest of the three.
            Ok(Some(asked)) => Box::pin(self.upgrade(request, respond, asked)).await,
            Ok(None) if *request.method() == Method::CONNECT => Box::pin(self.tunnel(request, respond)).await,
            // Nobody asked for it, so nobody is to find it in a log, a metric or a policy's refusals.
            Ok(None) if ahead::is_one(&request) => ahead::answer(&request, respond),
            Ok(None) => self.request(request, respond).await,
        }
    }

    /// A request, and the application's answer to it.
    async fn request(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let (parts, body) = CarrierBody::of_request(request).into_parts();
        let record = self.record(&parts);
        let form = refusal::Form::of(&parts.method, &parts.headers);
        let (body, pace) = Paced::new(body, &parts.headers, patience(&self.door.worker));
        let answer = {
            // In a block of its own: the task keeps no room for it while the answer is passed on.
            let answering = pin!(self.answer(parts, body));
            unless_reset(&mut respond, pin!(Pace::watch(pace, answering))).await
        };
        // None: the caller cancelled, and with the future went the application's request.
        let Some(answer) = answer else { return };
        let Ok(answer) = answer else {
            return stalled(respond, record);
        };
        match answer {
            Ok(passed) => reply(respond, InboundBody::passed(passed, record)).await,
            Err(refused) => refuse(respond, record, &refused, form, false).await,
        }
    }

    async fn answer(&self, mut parts: request::Parts, body: Paced<CarrierBody>) -> Result<Passed, Refused> {
        let version = match self.name.form {
            Form::Http1 => PlainVersion::Http1,
            Form::Http2 => PlainVersion::Http2,
            Form::Tcp => return Err(self.misfit("requests")),
        };
        let application = self.application.clone()?;
        edge::request(&mut parts, self.door.worker.settings.header_limit, &LastHost::default())?;
        self.door.admit_request(application.port(), &parts)?;
        if let Some(head) = hops::last(&parts.method, &mut parts.headers)? {
            return Ok(Passed::Head(head));
        }
        self.door.send(application, version, parts, body).await.map(Passed::Application)
    }

    /// A request for another protocol; a tunnel if the application agrees.
    async fn upgrade(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>, asked: Asked) {
        let (mut parts, received) = request.into_parts();
        parts.method = asked.method.clone();
        let record = self.record(&parts);
        let answer = unless_reset(&mut respond, pin!(self.ask(parts, &asked))).await;
        let Some(answer) = answer else { return };
        match answer {
            Ok((asked, Upgrade::Switched(head, upgraded))) => {
                let (head, ()) = head.into_parts();
                let head = Response::from_parts(upgrade::answer(head), ());
                self.switch(record, asked, TokioIo::new(upgraded), received, respond, head).await;
            }
            Ok((_, Upgrade::Declined(answer))) => {
                let (head, body) = InboundBody::application(answer, record).into_parts();
                reply(respond, Response::from_parts(upgrade::answer(head), body)).await;
            }
            Err(refused) => refuse(respond, record, &refused, refusal::Form::default(), true).await,
        }
    }

    async fn ask(&self, mut parts: request::Parts, asked: &Asked) -> Result<(Permitted, Upgrade), Refused> {
        if self.name.form != Form::Http1 {
            return Err(self.misfit("upgrades"));
        }
        let application = self.application.clone()?;
        edge::request(&mut parts, self.door.worker.settings.header_limit, &LastHost::default())?;
        edge::without_content(&parts.headers)?;
        self.door.admit_request(application.port(), &parts)?;
        if hops::last(&parts.method, &mut parts.headers)?.is_some() {
            return Err(Refused::new(Reason::BadRequest, "Max-Forwards lets the upgrade go no further"));
        }
        let permitted = Permitted { application, request: Some((parts.method.clone(), parts.uri.clone())) };
        Ok((permitted, self.door.upgrade(application, parts, &asked.protocol).await?))
    }

    async fn switch<S: carrier::copy::Socket>(
        &self,
        mut record: Record,
        permitted: Permitted,
        io: S,
        received: RecvStream,
        respond: SendResponse<Bytes>,
        head: Response<()>,
    ) {
        let started = Instant::now();
        record.status = Some(http::StatusCode::SWITCHING_PROTOCOLS);
        drop(record);
        match Tunnel::accept(Request::new(received), respond, head) {
            Ok(tunnel) => self.copy(permitted, io, tunnel, started).await,
            Err(error) => tracing::debug!(%error, "the caller left before its upgrade was confirmed"),
        }
    }

    /// Opaque TCP. Whatever the CONNECT names, the application's port is the connection's.
    async fn tunnel(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let started = Instant::now();
        let opened = unless_reset(&mut respond, pin!(self.open())).await;
        let Some(opened) = opened else { return };
        let (application, io) = match opened {
            Ok(opened) => opened,
            Err(refused) => {
                let application = self.application.as_ref().ok().copied();
                record::refused(&self.door, application, refused.reason, &refused.sentence);
                return say(respond, &refused, refusal::Form::default(), false).await;
            }
        };
        match Tunnel::accept(request, respond, Response::new(())) {
            Ok(tunnel) => self.copy(Permitted { application, request: None }, io, tunnel, started).await,
            Err(error) => tracing::debug!(%error, "the caller left before its tunnel was open"),
        }
    }

    async fn open(&self) -> Result<(SocketAddr, TcpStream), Refused> {
        if self.name.form != Form::Tcp {
            return Err(self.misfit("a CONNECT"));
        }
        let application = self.application.clone()?;
        self.door.admit_bytes(application.port())?;
        Ok((application, self.door.dial(application).await?))
    }

    async fn copy<S: carrier::copy::Socket>(
        &self,
        permitted: Permitted,
        io: S,
        tunnel: Tunnel,
        started: Instant,
    ) {
        let application = permitted.application;
        let mut revoked = None;
        let stop = async {
            revoked = Some(self.door.revoked(|| permitted.still(&self.door)).await);
        };
        let metrics = &self.door.worker.metrics;
        let count = |to_client, to_server| {
            metrics.tcp_bytes(Direction::Inbound, Flow::ToServer, to_server);
            metrics.tcp_bytes(Direction::Inbound, Flow::ToClient, to_client);
        };
        let Copied { sent, received, .. } =
            carrier::both_ways_until(io, tunnel, Bytes::new(), TCP_IDLE, count, stop).await;
        if let Some(refused) = revoked {
            record::refused(&self.door, Some(application), refused.reason, &refused.sentence);
        }
        record::connection(&self.door, application, started, (received, sent));
    }

    fn record(&self, parts: &request::Parts) -> Record {
        Record::begin(&self.door, parts, self.version(), self.application.as_ref().ok().copied())
    }

    fn version(&self) -> Version {
        if self.name.form == Form::Http2 { Version::HTTP_2 } else { Version::HTTP_11 }
    }

    fn misfit(&self, what: &str) -> Refused {
        Refused::new(Reason::NotOnThisConnection, format!("a connection for {} takes no {what}", self.name))
    }
}

/// Tells the caller that a request is refused, and keeps a record of it.
async fn refuse(
    respond: SendResponse<Bytes>,
    mut record: Record,
    refused: &Refused,
    form: refusal::Form,
    is_upgrade: bool,
) {
    record.refused(refused.reason, !refused.unsent);
    drop(record);
    say(respond, refused, form, is_upgrade).await;
}

/// Ends a stream whose request does not go on. The [meter](crate::meter) counts such resets.
fn stalled(mut respond: SendResponse<Bytes>, mut record: Record) {
    record.refused(Reason::RequestStalled, true);
    respond.send_reset(STALLED);
}

/// REFUSED_STREAM where the caller may try elsewhere, else an answer with the reason.
async fn say(mut respond: SendResponse<Bytes>, refused: &Refused, form: refusal::Form, is_upgrade: bool) {
    if refused.unsent {
        tracing::debug!(reason = %refused.reason, "not handed over: {}", refused.sentence);
        respond.send_reset(Code::REFUSED_STREAM);
        return;
    }
    let (head, body) =
        InboundBody::own(refusal::refusal(refused.reason, &refused.sentence, form)).into_parts();
    let head = if is_upgrade { upgrade::answer(head) } else { head };
    reply(respond, Response::from_parts(head, body)).await;
}

async fn reply(respond: SendResponse<Bytes>, answer: Response<InboundBody>) {
    let (mut head, body) = answer.into_parts();
    head.version = Version::HTTP_2;
    if let Err(error) = carrier::respond(respond, Response::from_parts(head, body)).await {
        tracing::debug!(%error, "an answer ended early");
    }
}

#[cfg(test)]
mod tests;
