//! What is measured, and the measured.

use std::collections::BTreeMap;

use super::peers::Peer;
use crate::bench::stats::{Ratio, median, ratio};

/// What is measured of a pair under a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// CPU time of both proxies per request (connection, message), in microseconds.
    Cpu,
    /// … of it in their own code.
    CpuUser,
    /// … and in the kernel on their behalf.
    CpuSystem,
    /// Requests (connections, messages) a second.
    PerSecond,
    /// GB of content per second of CPU time.
    BytesPerCpu,
    /// GB of content per second.
    BytesPerSecond,
    /// Latency in milliseconds.
    P50,
    /// Latency in milliseconds.
    P99,
    /// Latency in milliseconds.
    P999,
    /// Latency over that without proxies in the same round, in milliseconds.
    AddedP50,
    /// … at the 99th percentile.
    AddedP99,
    /// … at the 99.9th.
    AddedP999,
    /// Resident memory of both after the work, in MiB.
    Resident,
    /// From the start of both to the first 200, in milliseconds.
    ToFirst200,
    /// The first request that a pair has, in milliseconds.
    First,
    /// The next request of other pairs, at the same place in a pair's life, in milliseconds.
    Next,
    /// By what factor the first takes longer, of all starts.
    FirstOverNext,
    /// The program's size without symbols, in MiB.
    Binary,
    /// Requests that failed.
    Failed,
}

impl Figure {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Cpu,
        Self::CpuUser,
        Self::CpuSystem,
        Self::PerSecond,
        Self::BytesPerCpu,
        Self::BytesPerSecond,
        Self::P50,
        Self::P99,
        Self::P999,
        Self::AddedP50,
        Self::AddedP99,
        Self::AddedP999,
        Self::Resident,
        Self::ToFirst200,
        Self::First,
        Self::Next,
        Self::FirstOverNext,
        Self::Binary,
        Self::Failed,
    ];

    /// As in tables.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Cpu => "CPU µs",
            Self::CpuUser => "user µs",
            Self::CpuSystem => "system µs",
            Self::PerSecond => "per second",
            Self::BytesPerCpu => "GB per CPU s",
            Self::BytesPerSecond => "GB per second",
            Self::P50 => "p50 ms",
            Self::P99 => "p99 ms",
            Self::P999 => "p99.9 ms",
            Self::AddedP50 => "added p50 ms",
            Self::AddedP99 => "added p99 ms",
            Self::AddedP999 => "added p99.9 ms",
            Self::Resident => "resident MiB",
            Self::ToFirst200 => "start to first 200, ms",
            Self::First => "first request ms",
            Self::Next => "next request ms",
            Self::FirstOverNext => "first / next",
            Self::Binary => "stripped MiB",
            Self::Failed => "failed",
        }
    }
}

/// The figures of one measurement.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Sample {
    #[serde(flatten)]
    figures: BTreeMap<Figure, f64>,
    /// Of a workload that starts pairs for one request each.
    #[serde(skip_serializing_if = "Starts::is_empty")]
    pub starts: Starts,
}

/// What one request took in each of many pairs, in milliseconds.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Starts {
    /// In pairs that had had none.
    pub first: Vec<f64>,
    /// In pairs that had had one.
    pub next: Vec<f64>,
}

impl Starts {
    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.next.is_empty()
    }
}

impl Sample {
    /// Sets one.
    pub fn set(&mut self, figure: Figure, value: f64) {
        self.figures.insert(figure, value);
    }

    /// One, if it was measured.
    #[must_use]
    pub fn get(&self, figure: Figure) -> Option<f64> {
        self.figures.get(&figure).copied()
    }

    /// Adds what the latencies are over those of the same round without proxies.
    pub fn compare(&mut self, without: &Self) {
        let added = [
            (Figure::P50, Figure::AddedP50),
            (Figure::P99, Figure::AddedP99),
            (Figure::P999, Figure::AddedP999),
        ];
        for (whole, over) in added {
            if let (Some(with), Some(without)) = (self.get(whole), without.get(whole)) {
                self.set(over, with - without);
            }
        }
    }
}

/// All rounds of one workload.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Rounds {
    /// Each round's samples by peer; a peer that failed or was left out is not there.
    pub rounds: Vec<BTreeMap<Peer, Sample>>,
    /// Why a peer is not there.
    pub missing: BTreeMap<Peer, String>,
}

impl Rounds {
    /// A peer's median over the rounds, or what all starts say.
    #[must_use]
    pub fn median(&self, peer: Peer, figure: Figure) -> Option<f64> {
        if figure == Figure::FirstOverNext {
            return self.first_over_next(peer).map(|ratio| ratio.estimate);
        }
        median(self.rounds.iter().filter_map(|round| round.get(&peer)?.get(figure)))
    }

    /// [`Figure::FirstOverNext`] of the starts of all rounds.
    #[must_use]
    pub fn first_over_next(&self, peer: Peer) -> Option<Ratio> {
        let starts = || self.rounds.iter().filter_map(|round| Some(&round.get(&peer)?.starts));
        let first: Vec<_> = starts().flat_map(|starts| &starts.first).copied().collect();
        let next: Vec<_> = starts().flat_map(|starts| &starts.next).copied().collect();
        ratio(&first, &next)
    }

    /// The median of one peer's ratios to another within each round, or the ratio of what all starts say.
    #[must_use]
    pub fn ratio(&self, of: Peer, to: Peer, figure: Figure) -> Option<f64> {
        if figure == Figure::FirstOverNext {
            return Some(self.median(of, figure)? / self.median(to, figure)?);
        }
        let ratios = self.rounds.iter().filter_map(|round| {
            let (of, to) = (round.get(&of)?.get(figure)?, round.get(&to)?.get(figure)?);
            (to > 0.0).then_some(of / to)
        });
        median(ratios)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(figure: Figure, value: f64) -> Sample {
        let mut sample = Sample::default();
        sample.set(figure, value);
        sample
    }

    #[test]
    fn ratios_are_taken_within_rounds_so_a_slow_minute_changes_nothing() {
        let mut rounds = Rounds::default();
        for (ours, theirs) in [(50.0, 100.0), (500.0, 1000.0), (60.0, 100.0)] {
            let (ours, theirs) = (sample(Figure::Cpu, ours), sample(Figure::Cpu, theirs));
            rounds.rounds.push([(Peer::Heddle, ours), (Peer::Envoy, theirs)].into());
        }
        assert_eq!(rounds.ratio(Peer::Heddle, Peer::Envoy, Figure::Cpu), Some(0.5));
        assert_eq!(rounds.median(Peer::Heddle, Figure::Cpu), Some(60.0));
        assert_eq!(rounds.ratio(Peer::Heddle, Peer::Floor, Figure::Cpu), None);
    }

    #[test]
    fn what_the_first_request_takes_is_of_the_starts_of_all_rounds() {
        let round = |first: f64, next: f64| {
            let starts = Starts { first: vec![first; 4], next: vec![next; 4] };
            Sample { starts, ..Sample::default() }
        };
        let mut rounds = Rounds::default();
        for _ in 0..2 {
            rounds.rounds.push([(Peer::Heddle, round(3.0, 2.0)), (Peer::Envoy, round(6.0, 2.0))].into());
        }
        assert_eq!(
            rounds.median(Peer::Heddle, Figure::FirstOverNext),
            Some(1.5),
            "eight of either, four a round"
        );
        assert_eq!(rounds.ratio(Peer::Heddle, Peer::Envoy, Figure::FirstOverNext), Some(0.5));
        rounds.rounds.pop();
        assert_eq!(rounds.median(Peer::Heddle, Figure::FirstOverNext), None);
    }

    #[test]
    fn what_is_added_is_over_none_of_the_same_round() {
        let mut with = sample(Figure::P50, 0.5);
        with.compare(&sample(Figure::P50, 0.2));
        assert!((with.get(Figure::AddedP50).unwrap() - 0.3).abs() < 1e-9);
    }
}
