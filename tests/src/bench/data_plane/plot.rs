//! Bars as SVG: one group for each workload, one bar for each peer, each group at a scale of its own, since a request of
//! 64 KiB and a request of 1 KiB have nothing to say to each other.

use std::fmt::Write as _;

use super::{
    figure::{Figure, Rounds},
    peers::Peer,
    report::Report,
    workload::Workload,
};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 90.0;
/// What the longest bar of a group takes; its value stands to its right.
const LONGEST: f64 = 560.0;
const BAR: f64 = 14.0;
const HEAD: f64 = 24.0;
const GAP: f64 = 12.0;

/// The plots of a report: file name and content. A figure that nobody has been measured by has none.
#[must_use]
pub fn all(report: &Report) -> Vec<(&'static str, String)> {
    let plots = [
        ("data-plane-cpu.svg", "CPU time of both proxies per request, µs (less is better)", Figure::Cpu),
        ("data-plane-rate.svg", "Requests per second (more is better)", Figure::PerSecond),
        (
            "data-plane-added-p99.svg",
            "Latency added at 2,000/s, 99th percentile, ms (less is better)",
            Figure::AddedP99,
        ),
        ("data-plane-bulk.svg", "TCP bulk, GB per second of CPU time (more is better)", Figure::BytesPerCpu),
        (
            "data-plane-memory.svg",
            "Resident memory of both proxies after the work, MiB (less is better)",
            Figure::Resident,
        ),
        (
            "data-plane-start.svg",
            "From the start of both to the first 200, ms (less is better)",
            Figure::ToFirst200,
        ),
    ];
    plots.into_iter().filter_map(|(file, title, figure)| Some((file, bars(report, title, figure)?))).collect()
}

fn bars(report: &Report, title: &str, figure: Figure) -> Option<String> {
    let is_added = matches!(figure, Figure::AddedP99);
    let groups: Vec<_> = report
        .workloads
        .iter()
        .filter(|(workload, _)| !is_added || workload.work.has_a_rate())
        .filter_map(|one| group(report, one, figure))
        .collect();
    if groups.is_empty() {
        return None;
    }
    let height: f64 = groups.iter().map(|(_, bars)| HEAD + BAR * bars.len() as f64 + GAP).sum::<f64>() + 40.0;
    // Writing to a String cannot fail, here and below.
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\">{title}</text>\n"
    );
    let mut y = 40.0;
    for (name, bars) in groups {
        y += HEAD;
        let _ = writeln!(svg, "<text x=\"12\" y=\"{:.0}\" font-weight=\"bold\">{name}</text>", y - 6.0);
        let longest = bars.iter().fold(f64::MIN_POSITIVE, |longest, (_, value)| longest.max(*value));
        for (peer, value) in bars {
            // A latency below that without proxies is noise; it has a bar of no length and its value.
            let long = (value / longest * LONGEST).max(0.0);
            let _ = writeln!(
                svg,
                "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{long:.1}\" height=\"{:.1}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                LEFT - 6.0,
                y + BAR - 4.0,
                peer.name(),
                BAR - 2.0,
                colour(peer),
                LEFT + long + 5.0,
                y + BAR - 4.0,
                super::table::number(value),
            );
            y += BAR;
        }
        y += GAP;
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

type Group<'a> = (&'a str, Vec<(Peer, f64)>);

fn group<'a>(report: &Report, one: &'a (Workload, Rounds), figure: Figure) -> Option<Group<'a>> {
    let (workload, rounds) = one;
    let bars: Vec<_> =
        report.peers.iter().filter_map(|&peer| Some((peer, rounds.median(peer, figure)?))).collect();
    (!bars.is_empty()).then_some((workload.title.as_str(), bars))
}

const fn colour(peer: Peer) -> &'static str {
    match peer {
        Peer::Heddle => "#1b6ca8",
        Peer::Envoy => "#c8553d",
        Peer::Haproxy => "#8e5ea2",
        Peer::Nginx => "#4a7c59",
        Peer::Floor => "#d99a2b",
        Peer::None => "#999999",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::data_plane::{figure::Sample, workload};

    #[test]
    fn every_measured_peer_has_a_bar_and_the_largest_the_longest() {
        let mut rounds = Rounds::default();
        let mut round = std::collections::BTreeMap::new();
        for (peer, cpu) in [(Peer::Heddle, 25.0), (Peer::Envoy, 100.0)] {
            let mut sample = Sample::default();
            sample.set(Figure::Cpu, cpu);
            round.insert(peer, sample);
        }
        rounds.rounds.push(round);
        let report = Report {
            began: 0,
            length: Duration::from_secs(1),
            peers: Peer::ALL.into(),
            workloads: vec![(workload::all().remove(0), rounds)],
        };
        let plots = all(&report);
        assert_eq!(plots.len(), 1);
        let svg = &plots[0].1;
        assert!(svg.contains("width=\"560.0\"") && svg.contains("width=\"140.0\""), "{svg}");
        assert!(!svg.contains(">floor<"), "{svg}");
    }
}
