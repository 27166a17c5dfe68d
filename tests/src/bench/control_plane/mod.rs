//! The control plane's benchmark: the real program over a directory of manifests, driven by simulated sidecars.
//!
//! The program is a process of its own, so its CPU time and memory are read from `/proc`. The sidecars are real
//! discovery streams over mTLS, many in this process, with no proxy behind them. For each size of cluster one control
//! plane is started cold; sidecars join and connect in steps; at each step one endpoint at a time is changed, by saving
//! its file, and the clock runs until the last sidecar that follows it has read the change. At the end the control
//! plane is killed, started again, and all sidecars come back at once.
//!
//! What the two processes share is the machine: with two cores, reading a change in a thousand streams here takes as
//! much as sending it there. The control plane's CPU time is the figure that other load does not distort.

mod board;
mod cluster;
mod figures;
mod plot;
mod report;
mod server;
mod sidecar;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;

pub use self::report::{ChangeFigures, ColdStart, Level, Reconnect, Report, Size};
use self::{board::Board, cluster::Cluster, server::Server, sidecar::Fleet};
use crate::latency::Latencies;

/// Sidecars that follow the Service that few follow.
const FEW: usize = 10;
/// Between two changes, so that one never waits for what the last one left to do.
const PAUSE: Duration = Duration::from_millis(40);
/// Changes before those that count.
const WARM_UP: usize = 5;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The clusters.
    pub sizes: Vec<SizePlan>,
    /// Changes measured at each step.
    pub changes: usize,
    /// Services that each sidecar follows beside the measured ones.
    pub follows: usize,
    /// The control plane has had nothing to do for this long when its memory is read, and its CPU time is watched for twice
    /// as long while nothing happens.
    pub settle: Duration,
}

/// One cluster.
#[derive(Clone, Debug)]
pub struct SizePlan {
    /// Services, one file each with its pods.
    pub services: usize,
    /// Pods of each.
    pub endpoints_each: usize,
    /// Steps of connected sidecars, ascending.
    pub streams: Vec<usize>,
}

impl Plan {
    /// What is published: 100 to 5,000 Services of 20 endpoints, 10 to 2,000 streams. Some minutes.
    #[must_use]
    pub fn full() -> Self {
        let size = |services, streams: &[usize]| SizePlan {
            services,
            endpoints_each: 20,
            streams: streams.to_vec(),
        };
        Self {
            sizes: vec![
                size(100, &[10, 100, 1000]),
                size(1000, &[10, 100, 1000]),
                size(5000, &[10, 100, 1000, 2000]),
            ],
            changes: 200,
            follows: 10,
            settle: Duration::from_secs(3),
        }
    }

    /// Everything once, with numbers so small that it takes seconds: shows that the benchmark works, and nothing else.
    #[must_use]
    pub fn smoke() -> Self {
        let size = |services| SizePlan { services, endpoints_each: 3, streams: vec![2, 12] };
        Self { sizes: vec![size(4), size(16)], changes: 3, follows: 2, settle: Duration::from_millis(100) }
    }
}

/// Measures, saying on `progress` what it is at.
///
/// # Errors
/// When the control plane cannot be started, refuses a sidecar, or leaves a change untold.
pub async fn run(plan: &Plan, progress: impl Fn(&str)) -> anyhow::Result<Report> {
    let mut sizes = Vec::new();
    for size in &plan.sizes {
        sizes.push(measure(plan, size, &progress).await?);
    }
    Ok(Report::new(plan.changes, plan.follows, sizes))
}

async fn measure(plan: &Plan, size: &SizePlan, progress: &impl Fn(&str)) -> anyhow::Result<Size> {
    let most = size.streams.iter().copied().max().unwrap_or(0);
    let cluster = Cluster::write(size.services, size.endpoints_each, most)?;
    progress(&format!("{} services, {} endpoints: cold start", size.services, cluster.endpoints()));
    let mut server = Server::new()?;
    let cold_start = server.start(cluster.manifests(), plan.settle).await?;

    let board = Arc::new(Board::default());
    let mut fleet = Fleet::new(server.address(), Arc::clone(&board), size.services, plan.follows);
    let token = server.token(cluster::SIDECARS, cluster::SIDECARS)?;
    let mut levels = Vec::new();
    let mut join_cpu_ms = Vec::new();
    for &streams in &size.streams {
        progress(&format!("{} services: {streams} streams", size.services));
        let new = streams.saturating_sub(fleet.len());
        let before = server.cpu()?;
        fleet.join(streams, &token).await?;
        join_cpu_ms.push((server.cpu()? - before).as_secs_f64() * 1e3 / new.max(1) as f64);
        let before = server.cpu()?;
        fleet.connect(FEW).await?;
        let connect_cpu = server.cpu()? - before;
        let all = changes(plan, &cluster, &server, &board, &fleet, cluster::POPULAR).await?;
        let few = changes(plan, &cluster, &server, &board, &fleet, cluster::OBSCURE).await?;
        tokio::time::sleep(plan.settle).await;
        levels.push(Level {
            streams,
            memory: server.memory()?,
            connect_cpu_ms: connect_cpu.as_secs_f64() * 1e3 / new.max(1) as f64,
            all,
            few,
            idle_cpu_percent: server.idle_cpu(2 * plan.settle).await?,
        });
    }

    progress(&format!("{} services: all {most} sidecars reconnect", size.services));
    let reconnect = reconnect(plan, &cluster, &mut server, &mut fleet).await?;
    let peak_memory = server.peak_memory()?;
    Ok(Size {
        services: size.services,
        endpoints: cluster.endpoints(),
        cold_start,
        join_cpu_ms: join_cpu_ms.iter().sum::<f64>() / join_cpu_ms.len().max(1) as f64,
        levels,
        reconnect,
        peak_memory,
    })
}

/// Changes one endpoint of a Service as often as the plan says, each time until all its followers know.
async fn changes(
    plan: &Plan,
    cluster: &Cluster,
    server: &Server,
    board: &Board,
    fleet: &Fleet,
    service: usize,
) -> anyhow::Result<ChangeFigures> {
    let interested = if service == cluster::OBSCURE { fleet.len().min(FEW) } else { fleet.len() };
    let mut latencies = Latencies::default();
    let mut cpu = Duration::ZERO;
    for step in 0..WARM_UP + plan.changes {
        // Outside of the measured time: the benchmark's own writing of the file.
        let change = cluster.prepare(service)?;
        let arrival = board.expect(service, change.mark(), interested);
        let cpu_before = server.cpu()?;
        let begin = Instant::now();
        change.save()?;
        let last = arrival.await?;
        // What follows the last receipt (the sidecars' acknowledgements) is part of a change's cost.
        tokio::time::sleep(PAUSE).await;
        if step >= WARM_UP {
            latencies.record(last.saturating_duration_since(begin));
            cpu += server.cpu()? - cpu_before;
        }
    }
    ensure!(!latencies.is_empty(), "a plan without changes measures nothing");
    Ok(ChangeFigures::new(interested, &latencies, cpu))
}

/// Kills the control plane, starts it again, and lets all sidecars come back without anything in their hands.
async fn reconnect(
    plan: &Plan,
    cluster: &Cluster,
    server: &mut Server,
    fleet: &mut Fleet,
) -> anyhow::Result<Reconnect> {
    server.kill();
    fleet.disconnect().await;
    let begin = Instant::now();
    server.spawn(cluster.manifests())?;
    // All of them knock from the first moment on, as sidecars do.
    fleet.connect(FEW).await?;
    let wall = begin.elapsed();
    let cpu = server.cpu()?;
    tokio::time::sleep(plan.settle).await;
    Ok(Reconnect {
        streams: fleet.len(),
        seconds: wall.as_secs_f64(),
        cpu_seconds: cpu.as_secs_f64(),
        memory: server.memory()?,
    })
}

/// Writes a report's table, JSON and plots into `directory`.
///
/// # Errors
/// When the disk refuses.
pub fn publish(report: &Report, directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)?;
    std::fs::write(directory.join("control-plane.json"), serde_json::to_vec_pretty(report)?)?;
    std::fs::write(directory.join("control-plane.md"), report.markdown())?;
    for (name, svg) in report.plots() {
        std::fs::write(directory.join(format!("control-plane-{name}.svg")), svg)?;
    }
    Ok(())
}
