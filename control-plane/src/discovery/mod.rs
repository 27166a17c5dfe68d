//! Discovery: one task for each connected sidecar, between its stream and the hub. What is sent is decided by
//! [`session`]; here are the waits and their limits. Which replica has how many streams is [`spread`]'s business. A sidecar
//! that names more than [`pace`] allows is not read for a while: it waits, its connection pushes back, and nobody else notices.

mod backlog;
mod pace;
pub mod session;
mod siblings;
pub mod spread;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use heddle_api::v1::{self, discovery_server::Discovery};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use self::{
    backlog::{Backlog, SLICE},
    pace::Paces,
    session::{Misuse, Session, View},
    siblings::{Siblings, Workload},
};
use crate::{
    hub::{
        Hub,
        resource::{BadKey, Key, Rendered},
        streams::{Stream, StreamId},
    },
    metrics::{Metrics, Refused},
    tls::{Caller, peer::Peer},
};

/// From the stream's start to its `hello`.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// From a response to its answer. A sidecar answers in milliseconds; one that is stuck reconnects.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at all subscriptions for the operator's sake: a message may be cheaper than such a look.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// The gRPC service `heddle.v1.Discovery`.
pub struct DiscoveryService {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    paces: Arc<Paces>,
    siblings: Arc<Siblings>,
    stop: CancellationToken,
}

impl DiscoveryService {
    /// Answers from `hub` until `stop`.
    #[must_use]
    pub fn new(hub: Arc<Hub>, metrics: Arc<Metrics>, stop: CancellationToken) -> Self {
        Self { hub, metrics, paces: Arc::default(), siblings: Arc::default(), stop }
    }
}

#[tonic::async_trait]
impl Discovery for DiscoveryService {
    type StreamStream = ReceiverStream<Result<v1::DiscoveryResponse, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let caller = Caller::of(&request)?;
        let peer = caller.identified(&self.metrics)?.clone();
        // One response is unanswered at most, so one place is enough; the last one is for the final status.
        let (tx, rx) = mpsc::channel(2);
        let task = Conversation {
            hub: Arc::clone(&self.hub),
            metrics: Arc::clone(&self.metrics),
            paces: Arc::clone(&self.paces),
            siblings: Arc::clone(&self.siblings),
            slowed: false,
            stop: self.stop.clone(),
            peer,
            caller,
            requests: request.into_inner(),
            responses: tx.clone(),
        };
        tokio::spawn(async move {
            if let Err(status) = task.run().await {
                // Nobody reads it when the connection is gone.
                let _sent = tx.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

struct Conversation {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    paces: Arc<Paces>,
    siblings: Arc<Siblings>,
    /// It had to wait at least once.
    slowed: bool,
    stop: CancellationToken,
    peer: Peer,
    caller: Caller,
    requests: Streaming<v1::DiscoveryRequest>,
    responses: mpsc::Sender<Result<v1::DiscoveryResponse, Status>>,
}

impl Conversation {
    async fn run(mut self) -> Result<(), Status> {
        let late = |_| Status::deadline_exceeded(format!("no hello within {HELLO_TIMEOUT:?}"));
        let Some(mut first) =
            tokio::time::timeout(HELLO_TIMEOUT, self.requests.message()).await.map_err(late)??
        else {
            return Ok(());
        };
        let hello =
            first.hello.take().ok_or_else(|| Status::invalid_argument("the first message has no hello"))?;
        if hello.pod != self.peer.pod.to_string() {
            self.metrics.refused(Refused::ForeignPod);
            return Err(Status::permission_denied(format!(
                "hello is of pod {:?}, but the certificate is of {}",
                hello.pod, self.peer.pod
            )));
        }
        // A control plane that has not read everything yet would call 'absent' what is only unread.
        tokio::select! {
            () = self.hub.synced() => {}
            () = self.responses.closed() => return Ok(()),
            () = self.stop.cancelled() => return Err(stopping()),
        }
        // The name is another's by now: what this caller proved is not what runs under it.
        let facts = self.hub.pod(&self.peer.pod);
        let account = facts.as_ref().map(|pod| &pod.service_account);
        if let Some(account) = account.filter(|account| *account != self.peer.id.service_account()) {
            self.metrics.refused(Refused::ForeignPod);
            return Err(Status::permission_denied(format!(
                "Pod {} has serviceAccountName {account:?}, but the certificate is of {}",
                self.peer.pod, self.peer.id
            )));
        }
        let version = hello.version.chars().take(64).collect();
        let stream = self.hub.streams().connect(
            &self.peer.pod,
            self.caller.address,
            version,
            std::time::SystemTime::now(),
        );
        tracing::info!(pod = %self.peer.pod, address = %self.caller.address, held = hello.held.len(), "sidecar connected");
        let workload = facts.map(|facts| Workload::of(&self.peer.id, &facts.labels));
        // A sidecar that holds something knows better.
        let hints = match &workload {
            Some(workload) if hello.held.is_empty() => self.siblings.expected(workload, Instant::now()),
            _ => Vec::new(),
        };
        let ending = Arc::new(AtomicBool::new(false));
        let view = HubView {
            hub: Arc::clone(&self.hub),
            stream: stream.id,
            following: workload.map(|workload| (Arc::clone(&self.siblings), workload)),
            ending: Arc::clone(&ending),
        };
        let mut session = Session::new(self.peer.pod.clone(), view);
        let outcome = match self.greet(&mut session, &stream, hello.held).await {
            Ok(Some(())) => self.converse(&mut session, &stream, first, hints).await,
            Ok(None) => Ok(()),
            Err(status) => Err(status),
        };
        // What the session gives up from here on is not for disuse.
        ending.store(true, Ordering::Relaxed);
        self.hub.streams().disconnect(stream.id);
        match &outcome {
            Ok(()) => tracing::info!(pod = %self.peer.pod, "sidecar disconnected"),
            Err(status) => {
                tracing::info!(pod = %self.peer.pod, code = ?status.code(), reason = status.message(), "stream ended");
            }
        }
        outcome
    }

    /// Takes in what the sidecar says that it holds. None: the stream ended meanwhile.
    async fn greet(
        &mut self,
        session: &mut Session<HubView>,
        stream: &Stream,
        held: Vec<v1::HeldResource>,
    ) -> Result<Option<()>, Status> {
        let mut held = held.into_iter();
        loop {
            let slice: Vec<_> = held.by_ref().take(SLICE).collect();
            let names = slice.len();
            session.hello(slice).map_err(|misuse| self.refuse(&misuse))?;
            let pause = self.spend(names);
            if held.len() == 0 {
                return Ok(Some(()));
            }
            tokio::select! {
                () = turn(pause) => {}
                ended = over(&self.responses, &self.stop, stream) => return ended.map(|()| None),
            }
        }
    }

    async fn converse(
        &mut self,
        session: &mut Session<HubView>,
        stream: &Stream,
        first: v1::DiscoveryRequest,
        mut hints: Vec<String>,
    ) -> Result<(), Status> {
        let (mut backlog, mut pause) = self.take_in(session, first)?;
        let mut sent_at = Instant::now();
        let (mut reported, mut report_at) = (false, sent_at);
        loop {
            session.mark(stream.take_dirty());
            if let Some(mut response) = session.respond() {
                response.expected = std::mem::take(&mut hints);
                self.count(&response);
                sent_at = Instant::now();
                // There is room, since no other response is unanswered; but a sidecar may answer what it has not read.
                let late = |_| Status::deadline_exceeded("the stream takes nothing");
                if tokio::time::timeout(ANSWER_TIMEOUT, self.responses.send(Ok(response)))
                    .await
                    .map_err(late)?
                    .is_err()
                {
                    return Ok(());
                }
            }
            // Counting costs what is subscribed, and only what a sidecar says changes it.
            if !reported && Instant::now() >= report_at {
                self.report(session, stream);
                (reported, report_at) = (true, Instant::now() + REPORT_INTERVAL);
            }
            let behind = pause.is_some() || !backlog.is_empty();
            let unanswered = session.unanswered();
            stream.report(|status| status.unanswered = unanswered);
            tokio::select! {
                request = self.requests.message(), if !behind => match request {
                    Ok(Some(request)) => {
                        (backlog, pause) = self.take_in(session, request)?;
                        reported = false;
                    }
                    Ok(None) => return Ok(()),
                    Err(status) => return Err(status),
                },
                () = turn(pause), if behind => {
                    pause = match backlog.next() {
                        Some(slice) => self.take_slice(session, slice)?,
                        None => None,
                    };
                    // The answer may stand behind what waits.
                    sent_at = Instant::now();
                    reported = false;
                }
                () = stream.woken(), if unanswered.is_none() => {}
                () = tokio::time::sleep_until(sent_at + ANSWER_TIMEOUT), if unanswered.is_some() && !behind => {
                    return Err(Status::deadline_exceeded(format!(
                        "response {} was not answered within {ANSWER_TIMEOUT:?}",
                        unanswered.unwrap_or_default()
                    )));
                }
                () = tokio::time::sleep_until(report_at), if !reported => {}
                ended = over(&self.responses, &self.stop, stream) => return ended,
            }
        }
    }

    /// Takes in a request's answer and the first of its names. What is left of them, and until when that must wait.
    fn take_in(
        &mut self,
        session: &mut Session<HubView>,
        mut request: v1::DiscoveryRequest,
    ) -> Result<(Backlog, Option<Instant>), Status> {
        if request.hello.is_some() {
            return Err(Status::invalid_argument("hello belongs in the first message alone"));
        }
        let mut backlog = Backlog::of(&mut request);
        let refused = session.request(request).map_err(|misuse| self.refuse(&misuse))?;
        for refused in refused {
            self.metrics.nacks.inc();
            tracing::warn!(
                pod = %self.peer.pod, resource = refused.resource, version = refused.version, reason = refused.reason,
                "sidecar cannot use its config and keeps the last good one"
            );
        }
        let pause = self.spend(1);
        let pause = match backlog.next() {
            Some(slice) => self.take_slice(session, slice)?,
            None => pause,
        };
        Ok((backlog, pause))
    }

    /// Takes in some names. Until when the next must wait.
    fn take_slice(
        &mut self,
        session: &mut Session<HubView>,
        slice: v1::DiscoveryRequest,
    ) -> Result<Option<Instant>, Status> {
        let names = slice.unsubscribe.len() + slice.subscribe.len();
        session.request(slice).map_err(|misuse| self.refuse(&misuse))?;
        Ok(self.spend(names))
    }

    /// Counts what was named. Until when the next must wait.
    fn spend(&mut self, names: usize) -> Option<Instant> {
        let pause = self.paces.spend(&self.peer.pod, names, Instant::now());
        if pause.is_some() && !std::mem::replace(&mut self.slowed, true) {
            self.metrics.slowed.inc();
            tracing::warn!(
                pod = %self.peer.pod, address = %self.caller.address,
                "the sidecar names more than {} resources a second for long: its requests wait", pace::RATE
            );
        }
        pause
    }

    fn report(&self, session: &Session<HubView>, stream: &Stream) {
        let report = session.report();
        stream.report(|status| {
            status.subscribed = report.subscribed;
            status.current = report.current;
            status.absent = report.absent;
            status.refused = report.refused;
            status.slowed = self.slowed;
        });
    }

    fn refuse(&self, misuse: &Misuse) -> Status {
        tracing::warn!(pod = %self.peer.pod, address = %self.caller.address, reason = %misuse, "stream refused");
        let (reason, code) = match misuse {
            Misuse::Key(BadKey::ForeignInbound { .. }) => {
                (Refused::ForeignInbound, tonic::Code::PermissionDenied)
            }
            Misuse::Key(_) | Misuse::Nonce { .. } => (Refused::BadRequest, tonic::Code::InvalidArgument),
            Misuse::TooMany(_) => (Refused::TooManySubscriptions, tonic::Code::ResourceExhausted),
        };
        self.metrics.refused(reason);
        Status::new(code, misuse.to_string())
    }

    fn count(&self, response: &v1::DiscoveryResponse) {
        self.metrics.responses.inc();
        self.metrics.resources_sent.inc_by((response.changed.len() + response.absent.len()) as u64);
    }
}

/// When the next names may be taken in: others have had their turn before.
async fn turn(pause: Option<Instant>) {
    match pause {
        Some(at) => tokio::time::sleep_until(at).await,
        None => tokio::task::yield_now().await,
    }
}

/// Returns when a stream ends, whatever its sidecar says: with the status for it, where it can still be told.
async fn over(
    responses: &mpsc::Sender<Result<v1::DiscoveryResponse, Status>>,
    stop: &CancellationToken,
    stream: &Stream,
) -> Result<(), Status> {
    tokio::select! {
        () = responses.closed() => Ok(()),
        () = stream.replaced.cancelled() => {
            Err(Status::aborted("too many streams of this pod: this one was the oldest"))
        }
        // In good order: the sidecar comes back at once, and perhaps to another replica.
        () = stream.moved.cancelled() => Ok(()),
        () = stop.cancelled() => Err(stopping()),
    }
}

fn stopping() -> Status {
    Status::unavailable("the control plane is stopping: connect again")
}

/// The hub as one stream sees it.
struct HubView {
    hub: Arc<Hub>,
    stream: StreamId,
    /// Whose followers the stream is one of, where its pod is known.
    following: Option<(Arc<Siblings>, Workload)>,
    /// The stream has ended, so that its subscriptions do too.
    ending: Arc<AtomicBool>,
}

impl View for HubView {
    fn subscribe(&self, key: &Key) {
        self.hub.subscribe(self.stream, key);
        if let (Key::Destination { name, .. }, Some((siblings, workload))) = (key, &self.following) {
            siblings.follows(workload, name, Instant::now());
        }
    }

    fn unsubscribe(&self, key: &Key) {
        self.hub.unsubscribe(self.stream, key);
        if let (Key::Destination { name, .. }, Some((siblings, workload))) = (key, &self.following) {
            siblings.left(workload, name, !self.ending.load(Ordering::Relaxed), Instant::now());
        }
    }

    fn current(&self, key: &Key) -> Option<Arc<Rendered>> {
        self.hub.current(key)
    }

    fn former(&self, key: &Key, version: &str) -> Option<Arc<Rendered>> {
        self.hub.former(key, version)
    }
}
