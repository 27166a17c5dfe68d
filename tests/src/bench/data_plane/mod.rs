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

use anyhow::ensure;

use self::{
    field::{Field, Shape},
    figure::Rounds,
    peers::Pair,
    workload::Workload,
};
pub use self::{peers::Peer, report::Report};

/// What to measure, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Beginnings of the names of workloads; none: all.
    pub only: Vec<String>,
    /// Who takes part.
    pub peers: Vec<Peer>,
    /// Of one measurement.
    pub length: Duration,
    /// How often each is done.
    pub rounds: usize,
}

impl Plan {
    fn wants(&self, workload: &Workload) -> bool {
        self.only.is_empty() || self.only.contains(&workload.name)
    }
}

/// Runs it.
///
/// # Errors
/// When the applications or Heddle's control plane cannot be started, or no workload has a wanted name. A peer that
/// cannot be started or breaks under load is left out, and the report says why.
pub async fn run(plan: &Plan) -> anyhow::Result<Report> {
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
        let mut pairs = Vec::new();
        let mut missing = BTreeMap::new();
        for &peer in &plan.peers {
            match Pair::start(&mut field, peer) {
                Ok(pair) => pairs.push(pair),
                Err(error) => {
                    say(&format!("skipped: {}: {error:#}", peer.name()));
                    missing.insert(peer, format!("{error:#}"));
                }
            }
        }
        for workload in workloads {
            let rounds = compare(plan, &field, &pairs, &workload, missing.clone());
            report.add(workload, rounds);
        }
    }
    Ok(report)
}

/// Measures one workload on all pairs in turns.
fn compare(
    plan: &Plan,
    field: &Field,
    pairs: &[Pair],
    workload: &Workload,
    missing: BTreeMap<Peer, String>,
) -> Rounds {
    let mut rounds = Rounds { rounds: Vec::new(), missing };
    for round in 0..plan.rounds {
        let mut samples = BTreeMap::new();
        for turn in 0..pairs.len() {
            // Nobody always follows the same neighbour.
            let pair = &pairs[(turn + round) % pairs.len()];
            if rounds.missing.contains_key(&pair.peer) {
                continue;
            }
            say(&format!(
                "{} · round {} of {} · {}",
                workload.name,
                round + 1,
                plan.rounds,
                pair.peer.name()
            ));
            match workload::measure(&workload.work, pair, plan.length, field.world.directory()) {
                Ok(sample) => drop(samples.insert(pair.peer, sample)),
                Err(error) => {
                    say(&format!("left out: {}: {error:#}", pair.peer.name()));
                    rounds.missing.insert(pair.peer, format!("{error:#}"));
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
