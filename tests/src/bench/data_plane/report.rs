//! What a run found, and its JSON.

use std::{
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use serde_json::{Value, json};

use super::{
    Plan,
    figure::{Figure, Rounds},
    peers::Peer,
    plot, table, target,
    workload::{self, Workload},
};

/// What a run found.
#[derive(Debug)]
pub struct Report {
    /// Seconds since 1970 when it began.
    pub began: u64,
    /// Of each measurement.
    pub length: Duration,
    /// Who took part, in the order of the tables' columns.
    pub peers: Vec<Peer>,
    /// Each workload and its rounds.
    pub workloads: Vec<(Workload, Rounds)>,
}

impl Report {
    pub(super) fn new(plan: &Plan, began: SystemTime) -> Self {
        let began = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { began, length: plan.length, peers: plan.peers.clone(), workloads: Vec::new() }
    }

    /// Adds what one workload showed, at its place in the order of [`workload::all`].
    pub(super) fn add(&mut self, result: (Workload, Rounds)) {
        let order: Vec<_> = workload::all().into_iter().map(|workload| workload.name).collect();
        let place = |workload: &Workload| order.iter().position(|name| *name == workload.name);
        let at = self.workloads.partition_point(|(present, _)| place(present) < place(&result.0));
        self.workloads.insert(at, result);
    }

    /// Writes `data-plane.json`, `data-plane.md` and the plots.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let mut files = vec![
            ("data-plane.json", serde_json::to_string_pretty(&self.json())?),
            ("data-plane.md", table::markdown(self)),
        ];
        files.extend(plot::all(self));
        for (name, content) in files {
            let file = directory.join(name);
            std::fs::write(&file, content).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }

    /// Everything, each round's samples included.
    #[must_use]
    pub fn json(&self) -> Value {
        let workloads: Vec<_> =
            self.workloads.iter().map(|(workload, rounds)| self.one(workload, rounds)).collect();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        json!({
            "began": self.began,
            "seconds": self.length.as_secs_f64(),
            "cores": cores,
            "versions": versions(&self.peers),
            "workloads": workloads,
        })
    }

    fn one(&self, workload: &Workload, rounds: &Rounds) -> Value {
        let mut medians = serde_json::Map::new();
        for &peer in &self.peers {
            let figures: serde_json::Map<String, Value> = Figure::ALL
                .into_iter()
                .filter_map(|figure| {
                    let name = serde_json::to_value(figure).ok()?.as_str()?.to_owned();
                    Some((name, rounds.median(peer, figure)?.into()))
                })
                .collect();
            medians.insert(peer.name().to_owned(), figures.into());
        }
        let verdicts: Vec<_> = Figure::ALL
            .into_iter()
            .flat_map(|figure| {
                target::of(&workload.name, figure).into_iter().map(move |bound| (figure, bound))
            })
            .filter_map(|(figure, bound)| {
                let (ratio, verdict) = target::judge(&bound, rounds, figure)?;
                Some(json!({
                    "figure": figure, "to": bound.to, "ratio": ratio,
                    "hold": bound.hold, "reach": bound.reach, "verdict": verdict,
                }))
            })
            .collect();
        json!({
            "name": workload.name,
            "title": workload.title,
            "medians": medians,
            "verdicts": verdicts,
            "rounds": rounds.rounds,
            "missing": rounds.missing,
        })
    }
}

/// What each peer's program says of its version.
#[must_use]
pub fn versions(peers: &[Peer]) -> Vec<(&'static str, String)> {
    peers
        .iter()
        .filter_map(|peer| {
            let flag = match peer {
                Peer::Floor | Peer::None => return None,
                Peer::Heddle | Peer::Envoy => "--version",
                Peer::Haproxy | Peer::Nginx => "-v",
            };
            let output = Command::new(peer.program().ok()??).arg(flag).output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            let line = text.lines().find(|line| !line.trim().is_empty())?.trim().to_owned();
            Some((peer.name(), line))
        })
        .collect()
}
