//! Pairs of proxies under load: client → outbound proxy → mTLS → inbound proxy → application, all on loopback.
//!
//! All peers run at once and are measured in turns (A B C, B C A, …), so that what else the machine does falls on all of
//! them. Nothing is pinned to a core: two proxies, client and application share the machine's cores as the kernel
//! sees fit, as they would on a node.

pub mod certificates;
pub mod cpu;
pub mod field;
pub mod figure;
pub mod load;
pub mod peers;
pub mod plot;
pub mod probe;
pub mod report;
pub mod site;
pub mod table;
pub mod target;
pub mod workload;

use std::{
    collections::BTreeMap,
    io::Write as _,
    time::{Duration, SystemTime},
};

use anyhow::{Context, ensure};

use self::{
    field::{Field, Shape},
    figure::{Rounds, Sample},
    peers::Pair,
    workload::Workload,
};
pub use self::{peers::Peer, report::Report};

/// What to measure, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names of workloads; none: all.
    pub only: Vec<String>,
    /// Who takes part.
    pub peers: Vec<Peer>,
    /// Of one measurement.
    pub length: Duration,
    /// Of the load before the first measurement of each; zero: none.
    pub warm_up: Duration,
    /// How many pairs a round starts for their first request, and as many for their next.
    pub starts: usize,
    /// How often each is done.
    pub rounds: usize,
}

impl Plan {
    fn wants(&self, workload: &Workload) -> bool {
        self.only.is_empty() || self.only.contains(&workload.name)
    }
}

/// Runs it. `keep` is given the report after each workload, so that a run that is broken off leaves what it has.
///
/// # Errors
/// When the applications or Heddle's control plane cannot be started, or no workload has a wanted name, or what `keep`
/// says. A peer that cannot be started or breaks under load is left out, and the report says why.
pub async fn run(plan: &Plan, keep: impl Fn(&Report) -> anyhow::Result<()>) -> anyhow::Result<Report> {
    let all = workload::all();
    let names: Vec<_> = all.iter().map(|workload| workload.name.clone()).collect();
    for name in &plan.only {
        ensure!(names.contains(name), "no workload is called {name:?}; there are {}", names.join(", "));
    }
    let mut by_shape: BTreeMap<Shape, Vec<Workload>> = BTreeMap::new();
    for workload in all.into_iter().filter(|workload| plan.wants(workload)) {
        by_shape.entry(workload.shape).or_default().push(workload);
    }
    let mut report = Report::new(plan, SystemTime::now());
    for (shape, workloads) in by_shape {
        let mut field = Field::new(shape).await?;
        let (fresh, loaded): (Vec<_>, Vec<_>) =
            workloads.into_iter().partition(|workload| workload.work.is_fresh());
        // Before the others, since one address has one inbound sidecar of Heddle's at a time.
        for workload in fresh {
            report.add(fresh_pairs(plan, &mut field, workload));
            keep(&report)?;
        }
        if loaded.is_empty() {
            continue;
        }
        let (pairs, missing) = start(plan, &mut field);
        for workload in loaded {
            report.add(running_pairs(plan, &field, &pairs, workload, missing.clone()));
            keep(&report)?;
        }
    }
    Ok(report)
}

/// Starts a pair of each peer; those that cannot be started come with the reason.
fn start(plan: &Plan, field: &mut Field) -> (Vec<Pair>, BTreeMap<Peer, String>) {
    let (mut pairs, mut missing) = (Vec::new(), BTreeMap::new());
    for &peer in &plan.peers {
        match Pair::start(field, peer) {
            Ok(pair) => pairs.push(pair),
            Err(error) => {
                say(&format!("skipped: {}: {error:#}", peer.name()));
                missing.insert(peer, format!("{error:#}"));
            }
        }
    }
    (pairs, missing)
}

/// Measures one workload on all running pairs in turns.
fn running_pairs(
    plan: &Plan,
    field: &Field,
    pairs: &[Pair],
    workload: Workload,
    missing: BTreeMap<Peer, String>,
) -> (Workload, Rounds) {
    let peers: Vec<_> = pairs.iter().map(|pair| pair.peer).collect();
    let rounds = in_turns(plan, &peers, &workload, missing, |peer, first| {
        let pair = pairs.iter().find(|pair| pair.peer == peer).context("it does not run")?;
        if first && !plan.warm_up.is_zero() {
            workload.work.warm_up(pair, field, plan.warm_up)?;
        }
        workload.work.measure(pair, field, plan.length)
    });
    (workload, rounds)
}

/// Measures one workload on pairs that are started for it, one at a time.
fn fresh_pairs(plan: &Plan, field: &mut Field, workload: Workload) -> (Workload, Rounds) {
    let rounds = in_turns(plan, &plan.peers, &workload, BTreeMap::new(), |peer, _| {
        workload.work.measure_fresh(peer, field, plan.starts)
    });
    (workload, rounds)
}

/// Measures each peer once a round; `measure` is told the peer and whether it is its first time.
fn in_turns(
    plan: &Plan,
    peers: &[Peer],
    workload: &Workload,
    missing: BTreeMap<Peer, String>,
    mut measure: impl FnMut(Peer, bool) -> anyhow::Result<Sample>,
) -> Rounds {
    let mut rounds = Rounds { rounds: Vec::new(), missing };
    for &peer in peers {
        if let Some(why) = workload.work.unfit(peer) {
            rounds.missing.insert(peer, why.to_owned());
        }
    }
    for round in 0..plan.rounds {
        let mut samples = BTreeMap::new();
        for turn in 0..peers.len() {
            // Nobody always follows the same neighbour.
            let peer = peers[(turn + round) % peers.len()];
            if rounds.missing.contains_key(&peer) {
                continue;
            }
            say(&format!("{} · round {} of {} · {}", workload.name, round + 1, plan.rounds, peer.name()));
            match measure(peer, round == 0) {
                Ok(sample) => drop(samples.insert(peer, sample)),
                Err(error) => {
                    say(&format!("left out of {}: {}: {error:#}", workload.name, peer.name()));
                    rounds.missing.insert(peer, format!("{error:#}"));
                }
            }
        }
        if let Some(without) = samples.get(&Peer::None).cloned() {
            for (_, sample) in samples.iter_mut().filter(|(peer, _)| **peer != Peer::None) {
                sample.compare(&without);
            }
        }
        rounds.rounds.push(samples);
    }
    rounds
}

/// Progress, beside the table.
fn say(what: &str) {
    // A closed standard error leaves nobody to tell.
    let _ = writeln!(std::io::stderr(), "{what}");
}
