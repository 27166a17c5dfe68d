//! The workloads, by name, and how one is measured on one pair.

use std::{path::Path, thread, time::Duration};

use anyhow::{bail, ensure};

use super::{
    field::{Field, Shape},
    figure::{Figure, Sample, Starts},
    load::{Done, h2load, paced, stream, tcp, wrk},
    peers::{Pair, Peer, Which},
    site,
};
use crate::bench::stats::median;

/// A gRPC message.
const MESSAGE: [u8; 1024] = [b'm'; 1024];
/// What the measured memory is given to settle after the last connection. Some seconds: a connection that has just been
/// used is not idle, and Heddle parks one after a second or two.
const SETTLE: Duration = Duration::from_secs(5);
const MIB: f64 = (1 << 20) as f64;

/// What is asked of a pair.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// HTTP/1.1 at saturation over so many connections.
    Saturate {
        /// What is asked for.
        path: String,
        /// At once.
        connections: usize,
        /// Whether each request has a connection of its own.
        close: bool,
    },
    /// HTTP/1.1 at so many requests a second.
    Pace {
        /// Requests a second.
        rate: f64,
        /// Over so many connections.
        connections: usize,
    },
    /// HTTP/2, saturated or at a rate; GET of 1 KiB, or gRPC with 1 KiB each way.
    Http2 {
        /// Requests a second.
        rate: Option<usize>,
        /// Whether it is gRPC.
        grpc: bool,
    },
    /// Messages of 1 KiB on gRPC streams, each sent when the one before it is back.
    Stream,
    /// A TCP connection for each PING of redis.
    Connect,
    /// GETs of redis over kept TCP connections.
    Small,
    /// One TCP connection as fast as it goes.
    Bulk,
    /// A fresh pair with so many HTTP/1.1 connections that have carried one request.
    Idle(usize),
    /// A fresh pair, to its first answer.
    Start,
}

/// One row of the comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// As on the command line.
    pub name: String,
    /// In words.
    pub title: String,
    /// What config it needs.
    pub shape: Shape,
    /// What is done.
    pub work: Work,
}

/// All of them, in the order in which they run.
#[must_use]
pub fn all() -> Vec<Workload> {
    let mut all = Vec::new();
    let mut add = |name: &str, title: &str, shape, work| {
        all.push(Workload { name: name.to_owned(), title: title.to_owned(), shape, work });
    };
    let saturate =
        |path: &str, connections, close| Work::Saturate { path: path.to_owned(), connections, close };
    let plain = Shape::PLAIN;
    add("http1-1k", "HTTP/1.1 1 KiB, 50 connections, saturated", plain, saturate("/1k", 50, false));
    add("http1-1k-2000", "HTTP/1.1 1 KiB at 2,000/s", plain, Work::Pace { rate: 2000.0, connections: 20 });
    add("http1-1k-c200", "HTTP/1.1 1 KiB, 200 connections, saturated", plain, saturate("/1k", 200, false));
    add(
        "http1-1k-c1000",
        "HTTP/1.1 1 KiB, 1,000 connections, saturated",
        plain,
        saturate("/1k", 1000, false),
    );
    add("http1-64k", "HTTP/1.1 64 KiB, 50 connections, saturated", plain, saturate("/64k", 50, false));
    add("http1-close", "HTTP/1.1 1 KiB, a connection for each request", plain, saturate("/1k", 20, true));
    let http2 = |rate, grpc| Work::Http2 { rate, grpc };
    add("http2-1k", "HTTP/2 1 KiB, saturated", plain, http2(None, false));
    add("http2-1k-2000", "HTTP/2 1 KiB at 2,000/s", plain, http2(Some(2000), false));
    add("grpc-unary", "gRPC unary 1 KiB, saturated", plain, http2(None, true));
    add("grpc-unary-2000", "gRPC unary 1 KiB at 2,000/s", plain, http2(Some(2000), true));
    add("grpc-stream", "gRPC streams, 20 at once, per message of 1 KiB", plain, Work::Stream);
    add("tcp-connect", "TCP, per new connection", plain, Work::Connect);
    add("tcp-small", "TCP, redis GET, 20 clients", plain, Work::Small);
    add("tcp-bulk", "TCP bulk, one connection", plain, Work::Bulk);
    add("idle-1", "1 idle connection", plain, Work::Idle(1));
    add("idle-10000", "10,000 idle connections", plain, Work::Idle(10_000));
    add("start", "start", plain, Work::Start);
    for (endpoints, title) in [(10, "10"), (100, "100"), (1000, "1,000")] {
        let title = format!("HTTP/1.1 1 KiB, 50 connections, {title} endpoints");
        let shape = Shape { endpoints, ..plain };
        add(&format!("endpoints-{endpoints}"), &title, shape, saturate("/1k", 50, false));
    }
    for (routes, title) in [(10, "10"), (100, "100"), (1000, "1,000")] {
        let title = format!("HTTP/1.1 1 KiB, 50 connections, the last of {title} routes");
        let path = format!("/r/{}/", routes - 1);
        add(&format!("routes-{routes}"), &title, Shape { routes, ..plain }, saturate(&path, 50, false));
    }
    all
}

impl Work {
    /// Whether it starts pairs of its own instead of loading one that runs.
    #[must_use]
    pub const fn is_fresh(&self) -> bool {
        matches!(self, Self::Idle(_) | Self::Start)
    }

    /// Whether the load comes at a fixed rate, so that latencies say something of their own.
    #[must_use]
    pub const fn has_a_rate(&self) -> bool {
        matches!(self, Self::Pace { .. } | Self::Http2 { rate: Some(_), .. })
    }

    /// Why this peer cannot play the part, if it cannot.
    #[must_use]
    pub fn unfit(&self, peer: Peer) -> Option<&'static str> {
        match (self, peer) {
            (Self::Http2 { .. } | Self::Stream, Peer::Floor) => Some("its clients speak HTTP/1"),
            (Self::Http2 { .. } | Self::Stream, Peer::Nginx) => {
                Some("Debian's nginx does not tell HTTP/2 without TLS from HTTP/1.1 on one port")
            }
            (Self::Http2 { grpc: false, .. }, Peer::None) => Some("the application speaks HTTP/1.1"),
            (Self::Connect | Self::Small | Self::Bulk, Peer::Nginx) => {
                Some("Debian's nginx has TCP in a package of its own")
            }
            (Self::Idle(_), Peer::None) => Some("there is nothing to measure"),
            _ => None,
        }
    }

    fn run(&self, pair: &Pair, length: Duration, scratch: &Path) -> anyhow::Result<Done> {
        match self {
            Self::Saturate { path, connections, close } => {
                wrk::run(&pair.http(path), *connections, *close, length, scratch)
            }
            Self::Pace { rate, connections } => paced::run(&pair.http("/1k"), *connections, *rate, length),
            Self::Http2 { rate, grpc: false } => h2load::run(&pair.http("/1k"), *rate, None, length, scratch),
            Self::Http2 { rate, grpc: true } => {
                h2load::run(&pair.grpc("/echo"), *rate, Some(&MESSAGE), length, scratch)
            }
            Self::Stream => stream::run(&pair.grpc("/echo"), &MESSAGE, length),
            Self::Connect => tcp::connect(pair.tcp(site::REDIS), length),
            Self::Small => tcp::small(pair.tcp(site::REDIS), length),
            Self::Bulk => tcp::bulk(pair.tcp(site::BULK), length),
            Self::Idle(_) | Self::Start => bail!("it wants a pair of its own"),
        }
    }

    /// Loads a pair for a moment, so that its pools are as they will be.
    ///
    /// # Errors
    /// As [`Work::measure`].
    pub fn warm_up(&self, pair: &Pair, field: &Field, length: Duration) -> anyhow::Result<()> {
        self.run(pair, length, field.world.directory()).map(drop)
    }

    /// Measures it on a pair.
    ///
    /// # Errors
    /// When the load cannot be made or a proxy ends under it.
    pub fn measure(&self, pair: &Pair, field: &Field, length: Duration) -> anyhow::Result<Sample> {
        let before = pair.usage()?;
        let done = self.run(pair, length, field.world.directory())?;
        let used = pair.usage()?.since(before);
        ensure!(done.requests > 0, "no request ended well, {} failed", done.failed);
        let mut sample = Sample::default();
        let through = pair.peer != Peer::None;
        if done.bytes > 0 {
            let gigabytes = done.bytes as f64 / 1e9;
            sample.set(Figure::BytesPerSecond, gigabytes / done.took.as_secs_f64());
            if through {
                sample.set(Figure::BytesPerCpu, gigabytes / used.total().as_secs_f64());
            }
        } else {
            sample.set(Figure::PerSecond, done.requests as f64 / done.took.as_secs_f64());
            sample.set(Figure::Failed, done.failed as f64);
            if through {
                let each = |time: Duration| time.as_secs_f64() * 1e6 / done.requests as f64;
                sample.set(Figure::Cpu, each(used.total()));
                sample.set(Figure::CpuUser, each(used.user));
                sample.set(Figure::CpuSystem, each(used.system));
            }
        }
        if through {
            sample.set(Figure::Resident, pair.resident()? as f64 / MIB);
        }
        if let Some(latency) = done.latency {
            sample.set(Figure::P50, latency.p50);
            sample.set(Figure::P99, latency.p99);
            if let Some(p999) = latency.p999 {
                sample.set(Figure::P999, p999);
            }
        }
        Ok(sample)
    }

    /// Measures it on pairs that it starts, and ends; twice `starts` for one request each (see [`Pair::one_request`]).
    ///
    /// # Errors
    /// As [`Pair::start`]; or when the connections cannot be made.
    pub fn measure_fresh(&self, peer: Peer, field: &mut Field, starts: usize) -> anyhow::Result<Sample> {
        let pair = Pair::start(field, peer)?;
        let mut sample = Sample::default();
        if let Self::Idle(connections) = *self {
            let open = tcp::idle(&pair.http("/1k"), connections)?;
            thread::sleep(SETTLE);
            sample.set(Figure::Resident, pair.resident()? as f64 / MIB);
            drop(open);
        } else {
            if peer != Peer::None {
                sample.set(Figure::ToFirst200, ms(pair.to_first_200));
            }
            drop(pair);
            let starts = first_and_next(peer, field, starts)?;
            for (figure, of) in [(Figure::First, &starts.first), (Figure::Next, &starts.next)] {
                if let Some(median) = median(of.iter().copied()) {
                    sample.set(figure, median);
                }
            }
            sample.starts = starts;
            if let Some(bytes) = stripped(peer, field.world.directory())? {
                sample.set(Figure::Binary, bytes as f64 / MIB);
            }
        }
        Ok(sample)
    }
}

/// The first request of each of so many pairs, and the next of as many others; in turns, so that a slow minute is in both.
fn first_and_next(peer: Peer, field: &mut Field, starts: usize) -> anyhow::Result<Starts> {
    let mut all = Starts::default();
    for turn in 0..starts {
        // Nor is one always before the other.
        let order = [Which::First, Which::Next];
        for which in if turn % 2 == 0 { order } else { [order[1], order[0]] } {
            let took = ms(Pair::one_request(field, peer, which)?);
            match which {
                Which::First => all.first.push(took),
                Which::Next => all.next.push(took),
            }
        }
    }
    Ok(all)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The size of a peer's program without symbols; `None` where there is no `strip` (binutils) or it has no program.
fn stripped(peer: Peer, scratch: &Path) -> anyhow::Result<Option<u64>> {
    let (Some(program), Some(strip)) = (peer.program()?, crate::program::find("strip")) else {
        return Ok(None);
    };
    let copy = scratch.join("stripped");
    let status = std::process::Command::new(strip).arg("-o").arg(&copy).arg(program).status()?;
    ensure!(status.success(), "strip: {status}");
    Ok(Some(std::fs::metadata(copy)?.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::data_plane::target;

    #[test]
    fn every_bound_is_on_a_workload_that_there_is() {
        let bounded = all()
            .iter()
            .filter(|workload| {
                Figure::ALL.iter().any(|&figure| !target::of(&workload.name, figure).is_empty())
            })
            .count();
        assert_eq!(bounded, target::WORKLOADS.len(), "{:?}", target::WORKLOADS);
    }

    #[test]
    fn no_two_workloads_have_one_name() {
        let mut names: Vec<_> = all().into_iter().map(|workload| workload.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
