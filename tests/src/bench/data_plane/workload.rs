//! The workloads, by name, and how one is measured on one pair.

use std::{path::Path, time::Duration};

use super::{
    field::Shape,
    figure::{Figure, Sample},
    load::{Done, paced, wrk},
    peers::{Pair, Peer},
};

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
    all
}

impl Work {
    /// Does it for about `length` and gives what came of it. Errors say what is missing or broke.
    fn run(&self, pair: &Pair, length: Duration, scratch: &Path) -> anyhow::Result<Done> {
        match self {
            Self::Saturate { path, connections, close } => {
                wrk::run(&pair.http(path), *connections, *close, length, scratch)
            }
            Self::Pace { rate, connections } => paced::run(&pair.http("/1k"), *connections, *rate, length),
        }
    }
}

/// Measures one workload on one pair.
///
/// # Errors
/// When the load cannot be made or a proxy ends under it.
pub fn measure(work: &Work, pair: &Pair, length: Duration, scratch: &Path) -> anyhow::Result<Sample> {
    let before = pair.usage()?;
    let done = work.run(pair, length, scratch)?;
    let used = pair.usage()?.since(before);
    let mut sample = Sample::default();
    anyhow::ensure!(done.requests > 0, "no request ended well, {} failed", done.failed);
    let each = |time: Duration| time.as_secs_f64() * 1e6 / done.requests as f64;
    sample.set(Figure::PerSecond, done.requests as f64 / done.took.as_secs_f64());
    sample.set(Figure::Failed, done.failed as f64);
    if pair.peer != Peer::None {
        sample.set(Figure::Cpu, each(used.total()));
        sample.set(Figure::CpuUser, each(used.user));
        sample.set(Figure::CpuSystem, each(used.system));
        sample.set(Figure::Resident, pair.resident()? as f64 / f64::from(1 << 20));
    }
    if let Some(latency) = done.latency {
        sample.set(Figure::P50, latency.p50);
        sample.set(Figure::P99, latency.p99);
        sample.set(Figure::P999, latency.p999);
    }
    Ok(sample)
}
