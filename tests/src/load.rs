//! Steady load over kept-alive connections, with every failure and every closed connection counted.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::Method;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    client::{Client, body, empty},
    latency::Latencies,
};

/// Failures that are kept in words; the others are only counted.
const KEPT: usize = 20;
/// Requests in flight at once on each HTTP/2 connection.
const STREAMS: usize = 4;
/// Bytes of a POST's body.
const POSTED: usize = 1024;

/// What load to make.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The sidecar's outbound port.
    pub through: SocketAddr,
    /// The service as the application names it.
    pub host: String,
    /// The path of each request.
    pub path: String,
    /// HTTP/1.1 connections, each with one request at a time.
    pub http1: usize,
    /// HTTP/2 connections, each with up to four requests at a time.
    pub http2: usize,
    /// Requests a second, over all connections.
    pub rate: f64,
    /// Of each connection's requests every so manieth is a POST of 1 KiB instead; 0: none.
    pub post_every: u64,
}

/// What happened in a span of time.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests that were begun; with those that are in flight, more than ended.
    pub sent: u64,
    /// Requests that ended, well or not.
    pub requests: u64,
    /// POSTs that were answered 200.
    pub posts: u64,
    /// Those that ended with anything but 200.
    pub failed: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
    /// Connections that the sidecar closed.
    pub closed: u64,
    /// Answers by the application's version.
    pub by_version: BTreeMap<String, u64>,
    /// Of the answers.
    pub latencies: Latencies,
}

impl Tally {
    /// The share of answers that came from `version`, in percent.
    #[must_use]
    pub fn share(&self, version: &str) -> f64 {
        let all: u64 = self.by_version.values().sum();
        let its = self.by_version.get(version).copied().unwrap_or(0);
        if all == 0 { 0.0 } else { its as f64 * 100.0 / all as f64 }
    }

    /// Adds what happened in another span.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.requests += other.requests;
        self.posts += other.posts;
        self.failed += other.failed;
        self.closed += other.closed;
        let room = KEPT.saturating_sub(self.failures.len());
        self.failures.extend(other.failures.iter().take(room).cloned());
        for (version, count) in &other.by_version {
            *self.by_version.entry(version.clone()).or_default() += count;
        }
        self.latencies.add(&other.latencies);
    }

    fn failure(&mut self, what: String) {
        self.failed += 1;
        if self.failures.len() < KEPT {
            self.failures.push(what);
        }
    }
}

/// Running load. Dropping it stops it at once; [`Load::finish`] lets requests in flight end.
#[derive(Debug)]
pub struct Load {
    tally: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Starts it.
    #[must_use]
    pub fn start(plan: &Plan) -> Self {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        let lanes = (plan.http1 + plan.http2 * STREAMS).max(1);
        let pace = Duration::from_secs_f64(lanes as f64 / plan.rate);
        for _ in 0..plan.http1 {
            let lane = Lane { plan: plan.clone(), pace, tally: tally.clone(), stop: stop.clone() };
            tasks.spawn(lane.http1());
        }
        for _ in 0..plan.http2 {
            let lane = Lane { plan: plan.clone(), pace, tally: tally.clone(), stop: stop.clone() };
            tasks.spawn(lane.http2());
        }
        Self { tally, stop, tasks }
    }

    /// What happened since the last call.
    #[must_use]
    pub fn take(&self) -> Tally {
        std::mem::take(&mut *lock(&self.tally))
    }

    /// Stops, lets what is in flight end, and gives what happened since the last [`Load::take`].
    pub async fn finish(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.take()
    }
}

/// One connection's worth of load.
#[derive(Clone, Debug)]
struct Lane {
    plan: Plan,
    pace: Duration,
    tally: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
}

impl Lane {
    async fn http1(self) {
        while !self.stopped() {
            match Client::http1(self.plan.through).await {
                Ok(client) => self.use_up(client).await,
                Err(error) => self.cannot_connect(&error).await,
            }
        }
    }

    async fn http2(self) {
        while !self.stopped() {
            let client = match Client::http2(self.plan.through).await {
                Ok(client) => client,
                Err(error) => {
                    self.cannot_connect(&error).await;
                    continue;
                }
            };
            let mut streams = JoinSet::new();
            for _ in 0..STREAMS {
                if let Some(client) = client.share() {
                    let lane = self.clone();
                    streams.spawn(async move { lane.use_up(client).await });
                }
            }
            while streams.join_next().await.is_some() {}
        }
    }

    /// Requests at the lane's pace until told to stop or the connection is closed.
    async fn use_up(&self, mut client: Client) {
        let mut ticks = interval(self.pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut count: u64 = 0;
        loop {
            ticks.tick().await;
            if self.stopped() {
                return;
            }
            if client.is_closed() {
                lock(&self.tally).closed += 1;
                return;
            }
            count += 1;
            let is_post = self.plan.post_every > 0 && count.is_multiple_of(self.plan.post_every);
            let (method, body) =
                if is_post { (Method::POST, body(vec![b'p'; POSTED])) } else { (Method::GET, empty()) };
            lock(&self.tally).sent += 1;
            let began = Instant::now();
            let answer = client.request(method.clone(), &self.plan.host, &self.plan.path, body).await;
            let mut tally = lock(&self.tally);
            tally.requests += 1;
            match answer {
                Ok(answer) if answer.status == 200 => {
                    tally.posts += u64::from(is_post);
                    tally.latencies.record(began.elapsed());
                    *tally.by_version.entry(answer.answered_by().to_owned()).or_default() += 1;
                }
                Ok(answer) => {
                    let (status, reason, text) = (answer.status, answer.reason(), answer.text());
                    tally.failure(format!("{method}: {status} {reason} {text}"));
                }
                Err(error) => {
                    tally.failure(format!("{error:#}"));
                    tally.closed += 1;
                    return;
                }
            }
        }
    }

    async fn cannot_connect(&self, error: &anyhow::Error) {
        {
            let mut tally = lock(&self.tally);
            tally.requests += 1;
            tally.failure(format!("{error:#}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
