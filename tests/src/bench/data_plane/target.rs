//! What the figures are held to: ratios to a peer of the same run.

use super::{
    figure::{Figure, Rounds},
    peers::Peer,
};
use crate::bench::stats::Ratio;

/// The widest interval that says that the first request is no slower than the next.
const TELLS: f64 = 0.05;

/// The workloads with bounds.
pub const WORKLOADS: [&str; 15] = [
    "http1-1k",
    "http1-1k-2000",
    "http1-1k-c200",
    "http1-1k-c1000",
    "http1-64k",
    "http2-1k",
    "http2-1k-2000",
    "grpc-unary",
    "grpc-unary-2000",
    "tcp-connect",
    "tcp-small",
    "tcp-bulk",
    "idle-1",
    "idle-10000",
    "start",
];

/// A bound on the ratio of Heddle's figure to another's, or on the figure itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// To whom; `None`: the figure itself.
    pub to: Option<Peer>,
    /// What must hold.
    pub hold: f64,
    /// Where it is to go.
    pub reach: f64,
    /// Whether more is better.
    pub at_least: bool,
}

/// How a figure stands to its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is where it is to go.
    Reached,
    /// It holds, no more.
    Held,
    /// It is short of what must hold.
    Short,
}

impl Verdict {
    /// As in tables.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::Held => "held",
            Self::Short => "SHORT",
        }
    }
}

impl Bound {
    /// How `ratio` stands to it.
    #[must_use]
    pub fn judge(&self, ratio: f64) -> Verdict {
        let meets = |bound: f64| if self.at_least { ratio >= bound } else { ratio <= bound };
        if meets(self.reach) {
            Verdict::Reached
        } else if meets(self.hold) {
            Verdict::Held
        } else {
            Verdict::Short
        }
    }

    /// As in tables, such as `≤ 0.55 / 0.45 × envoy`.
    #[must_use]
    pub fn words(&self) -> String {
        let sign = if self.at_least { '≥' } else { '≤' };
        let to = self.to.map(|to| format!(" × {}", to.name())).unwrap_or_default();
        format!("{sign} {} / {}{to}", self.hold, self.reach)
    }
}

/// The bounds on a figure of a workload.
#[must_use]
pub fn of(workload: &str, figure: Figure) -> Vec<Bound> {
    let at_most = |hold, reach| Bound { to: Some(Peer::Envoy), hold, reach, at_least: false };
    let at_least = |hold, reach| Bound { to: Some(Peer::Envoy), hold, reach, at_least: true };
    match (workload, figure) {
        ("http1-1k", Figure::Cpu) => {
            // All features compiled in and unused, against none.
            vec![
                at_most(0.55, 0.45),
                Bound { to: Some(Peer::Floor), hold: 1.3, reach: 1.15, at_least: false },
            ]
        }
        ("http1-1k-2000", Figure::Cpu) => vec![at_most(0.55, 0.45)],
        ("http1-1k-c200" | "http1-1k-c1000", Figure::Cpu) => vec![at_most(0.55, 0.4)],
        ("http1-1k", Figure::PerSecond) => vec![at_least(1.6, 2.0)],
        ("http1-1k-2000", Figure::AddedP50) => vec![at_most(0.5, 0.4)],
        ("http1-1k-2000", Figure::AddedP99) => vec![at_most(0.7, 0.5)],
        ("http2-1k" | "http2-1k-2000" | "grpc-unary" | "grpc-unary-2000", Figure::Cpu) => {
            vec![at_most(0.6, 0.5)]
        }
        ("http1-64k", Figure::Cpu) => vec![at_most(0.7, 0.5)],
        ("tcp-connect", Figure::Cpu) => vec![at_most(0.25, 0.15)],
        ("tcp-small", Figure::Cpu) => vec![at_most(0.65, 0.5)],
        ("tcp-bulk", Figure::BytesPerCpu) => vec![at_least(1.0, 1.2)],
        ("idle-1", Figure::Resident) => vec![at_most(0.25, 0.15)],
        ("idle-10000", Figure::Resident) => vec![at_most(0.5, 0.25)],
        ("start", Figure::ToFirst200) => vec![at_most(1.2, 0.75)],
        ("start", Figure::FirstOverNext) => {
            vec![Bound { to: None, hold: 1.0, reach: 1.0, at_least: false }]
        }
        ("start", Figure::Binary) => vec![Bound { to: None, hold: 20.0, reach: 15.0, at_least: false }],
        _ => Vec::new(),
    }
}

/// How Heddle stands to a bound; `None` where either was not measured, or not often enough.
#[must_use]
pub fn judge(bound: &Bound, rounds: &Rounds, figure: Figure) -> Option<(f64, Verdict)> {
    if figure == Figure::FirstOverNext {
        return no_slower(bound, rounds);
    }
    let ratio = match bound.to {
        Some(to) => rounds.ratio(Peer::Heddle, to, figure)?,
        None => rounds.median(Peer::Heddle, figure)?,
    };
    Some((ratio, bound.judge(ratio)))
}

/// That two things take the same time can be refuted and not shown. It holds where the starts do not refute it, and were so
/// many that a difference of more than [`TELLS`] is out of the question.
fn no_slower(bound: &Bound, rounds: &Rounds) -> Option<(f64, Verdict)> {
    let Ratio { estimate, least, most } = rounds.first_over_next(Peer::Heddle)?;
    if bound.judge(least) == Verdict::Short {
        return Some((estimate, Verdict::Short));
    }
    let verdict = if bound.judge(estimate) == Verdict::Reached { Verdict::Reached } else { Verdict::Held };
    (most - least <= TELLS).then_some((estimate, verdict))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::data_plane::figure::{Sample, Starts};

    /// A run with so many starts of either kind, whose requests lie evenly in ± 20 % of 1 ms, the first of `first` ms.
    fn verdict(starts: u32, first: f64) -> Option<Verdict> {
        let evenly = |middle: f64| {
            (0..starts)
                .map(move |n| middle * (0.8 + 0.4 * (f64::from(n) + 0.5) / f64::from(starts)))
                .collect()
        };
        let mut sample = Sample::default();
        sample.starts = Starts { first: evenly(first), next: evenly(1.0) };
        let rounds = Rounds { rounds: vec![[(Peer::Heddle, sample)].into()], ..Rounds::default() };
        let bound = of("start", Figure::FirstOverNext)[0];
        judge(&bound, &rounds, Figure::FirstOverNext).map(|(_, verdict)| verdict)
    }

    #[test]
    fn the_first_request_is_slower_when_enough_starts_say_so() {
        assert_eq!(verdict(200, 0.99), Some(Verdict::Reached));
        assert_eq!(verdict(200, 1.02), Some(Verdict::Held));
        assert_eq!(verdict(200, 1.05), Some(Verdict::Short));
        assert_eq!(verdict(20, 1.05), None);
        assert_eq!(verdict(20, 1.25), Some(Verdict::Short));
    }

    #[test]
    fn a_ratio_is_never_rounded_into_its_bound() {
        let bound = Bound { to: Some(Peer::Envoy), hold: 0.55, reach: 0.45, at_least: false };
        assert_eq!(bound.judge(0.45), Verdict::Reached);
        assert_eq!(bound.judge(0.451), Verdict::Held);
        assert_eq!(bound.judge(0.5501), Verdict::Short);
        let bound = Bound { at_least: true, hold: 1.6, reach: 2.0, ..bound };
        assert_eq!((bound.judge(1.59), bound.judge(2.1)), (Verdict::Short, Verdict::Reached));
    }
}
