//! The discovery stream: connects, feeds [`Held`], says what it has to say, and comes back when the stream ends.
//!
//! The store's one writer. It never waits for the server while it could be reading from it, so neither side can
//! block the other for good; a server that does not read for ten seconds is left.

use std::{sync::Arc, time::Duration};

use heddle_api::v1::{DiscoveryRequest, DiscoveryResponse, discovery_client::DiscoveryClient};
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    Command, Shared,
    held::{Held, Stuck},
    names::Limits,
};
use crate::identity::{
    ControlPlaneConfig, Credentials, Identity,
    backoff::{Backoff, Patience},
    control_plane::{ConnectError, connect, words},
};

/// For connecting and the server's consent.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest response: a backend of a hundred thousand endpoints has some 15 MiB.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Misses taken from the queue at once.
const BATCH: usize = 256;
/// Of the store's clock.
const TICK: Duration = Duration::from_secs(1);
/// Ticks for which the server may leave our requests unread.
const STALL: u32 = 10;
/// Ticks after which a stream counts as a good one, though nothing came: there was no difference to send.
const PROVEN: u32 = 5;
/// A request that waits for an answer does not wait out a long pause between two attempts.
const HURRY: Duration = Duration::from_secs(1);

/// The task.
pub(super) struct Writer {
    config: ControlPlaneConfig,
    identity: Arc<Identity>,
    held: Held,
    commands: mpsc::Receiver<Command>,
    clock: Interval,
}

/// Why the stream ended or did not begin.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the control plane ended the discovery stream: {}", words(.0))]
    Refused(#[from] Box<tonic::Status>),
    #[error("the control plane closed the discovery stream")]
    Closed,
    #[error("the control plane did not open the discovery stream within {} s", OPEN_TIMEOUT.as_secs())]
    Timeout,
    #[error("the control plane does not read from the discovery stream")]
    Stalled,
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

/// The store was dropped: nobody is left to write for.
struct Gone;

/// Both halves of a stream.
struct Open {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Writer {
    pub(super) fn new(
        config: ControlPlaneConfig,
        identity: Arc<Identity>,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let mut clock = interval(TICK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let held = Held::new(shared, identity.clone(), config.pod.clone(), Limits::DEFAULT);
        Self { config, identity, held, commands, clock }
    }

    /// Until the store is dropped.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new();
        let mut patience = Patience::default();
        loop {
            let error = match self.open().await {
                Ok(Ok(stream)) => {
                    tracing::info!(url = %self.config.url, "discovery stream is up");
                    self.held.connected();
                    patience.reset();
                    match self.follow(stream, &mut backoff).await {
                        Ok(error) => error,
                        Err(Gone) => return,
                    }
                }
                Ok(Err(error)) => error,
                Err(Gone) => return,
            };
            if patience.speak() {
                // Another replica is to have the stream (docs/kubernetes.md), which is no news for anybody to act on.
                if matches!(error, StreamError::Closed) {
                    tracing::info!("{error}: connecting again, serving what is held");
                } else {
                    tracing::warn!(%error, "no discovery: waiting for the control plane, serving what is held");
                }
            }
            self.held.disconnected(error.to_string());
            if let Err(Gone) = self.pause(backoff.pause()).await {
                return;
            }
        }
    }

    /// Opens a stream; misses that come meanwhile are noted down.
    async fn open(&mut self) -> Result<Result<Open, StreamError>, Gone> {
        let usable = self.identity.clone();
        let credentials = self.meanwhile(async move { usable.usable().await }).await?;
        let hello = self.held.hello(&credentials.id);
        let (config, identity) = (self.config.clone(), self.identity.clone());
        self.meanwhile(async move {
            timeout(OPEN_TIMEOUT, open(&config, &identity, &credentials, hello))
                .await
                .unwrap_or(Err(StreamError::Timeout))
        })
        .await
    }

    /// Runs a future while there is no stream.
    async fn meanwhile<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Gone> {
        let mut future = std::pin::pin!(future);
        loop {
            tokio::select! {
                result = &mut future => return Ok(result),
                command = self.commands.recv() => self.held.ask(command.ok_or(Gone)?),
                _ = self.clock.tick() => self.tick_without_stream(),
            }
        }
    }

    async fn pause(&mut self, pause: Duration) -> Result<(), Gone> {
        let mut end = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(end) => return Ok(()),
                command = self.commands.recv() => {
                    self.held.ask(command.ok_or(Gone)?);
                    end = end.min(Instant::now() + HURRY);
                }
                _ = self.clock.tick() => self.tick_without_stream(),
            }
        }
    }

    fn tick_without_stream(&mut self) {
        // Nothing is chased without a stream, so nothing can be stuck.
        let _ = self.held.tick();
    }

    /// Serves one stream to its end.
    async fn follow(&mut self, mut stream: Open, backoff: &mut Backoff) -> Result<StreamError, Gone> {
        let mut commands = Vec::with_capacity(BATCH);
        let (mut unread, mut age) = (0, 0);
        loop {
            tokio::select! {
                response = stream.responses.message(), if !self.held.outgoing.is_congested() => match response {
                    Ok(Some(response)) => {
                        backoff.reset();
                        self.held.apply(response);
                    }
                    Ok(None) => return Ok(StreamError::Closed),
                    Err(status) => return Ok(Box::new(status).into()),
                },
                room = stream.requests.reserve(), if !self.held.outgoing.is_empty() => {
                    let Ok(room) = room else { return Ok(StreamError::Closed) };
                    unread = 0;
                    if let Some(request) = self.held.outgoing.next() {
                        room.send(request);
                    }
                }
                count = self.commands.recv_many(&mut commands, BATCH) => {
                    if count == 0 {
                        return Err(Gone);
                    }
                    commands.drain(..).for_each(|command| self.held.ask(command));
                    self.held.publish();
                }
                _ = self.clock.tick() => {
                    age += 1;
                    if age == PROVEN {
                        backoff.reset();
                    }
                    if let Err(stuck) = self.held.tick() {
                        return Ok(stuck.into());
                    }
                    unread = if self.held.outgoing.is_empty() { 0 } else { unread + 1 };
                    if unread > STALL {
                        return Ok(StreamError::Stalled);
                    }
                }
            }
        }
    }
}

async fn open(
    config: &ControlPlaneConfig,
    identity: &Identity,
    credentials: &Credentials,
    hello: DiscoveryRequest,
) -> Result<Open, StreamError> {
    let channel = connect(config, identity, Some(credentials)).await?;
    let mut client = DiscoveryClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let (requests, receiver) = mpsc::channel(1);
    // The channel is new and has room for one.
    requests.try_send(hello).map_err(|_| StreamError::Closed)?;
    let responses = client.stream(ReceiverStream::new(receiver)).await.map_err(Box::new)?.into_inner();
    Ok(Open { requests, responses })
}
