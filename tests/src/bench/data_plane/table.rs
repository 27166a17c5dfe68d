//! The comparison as text: a table for a terminal, or Markdown for the README.

use super::{
    figure::{Figure, Rounds},
    peers::Peer,
    report::Report,
    target,
};

/// The figures of a row, best first; what was not measured has none.
const FIGURES: [Figure; 14] = [
    Figure::Cpu,
    Figure::BytesPerCpu,
    Figure::BytesPerSecond,
    Figure::PerSecond,
    Figure::AddedP50,
    Figure::AddedP99,
    Figure::AddedP999,
    Figure::ToFirst200,
    Figure::First,
    Figure::Next,
    Figure::FirstOverNext,
    Figure::Binary,
    Figure::Resident,
    Figure::Failed,
];

/// All rows, the first being the heads of the columns.
fn rows(report: &Report) -> Vec<Vec<String>> {
    let mut head = vec!["workload".to_owned(), "figure".to_owned()];
    head.extend(report.peers.iter().map(|peer| peer.name().to_owned()));
    head.extend(["× envoy", "× floor", "hold / reach", "verdict"].map(str::to_owned));
    let mut rows = vec![head];
    for (workload, rounds) in &report.workloads {
        let mut title = workload.title.as_str();
        for figure in FIGURES {
            // What a request waits at saturation is the number of connections by the requests a second, said already.
            let is_added = matches!(figure, Figure::AddedP50 | Figure::AddedP99 | Figure::AddedP999);
            if is_added && !workload.work.has_a_rate() {
                continue;
            }
            if let Some(cells) = cells(report, &workload.name, rounds, figure) {
                let mut row = vec![std::mem::take(&mut title).to_owned(), figure.title().to_owned()];
                row.extend(cells);
                rows.push(row);
            }
        }
    }
    rows
}

/// What follows the name of a figure; `None` if nobody has it, or it says nothing.
fn cells(report: &Report, workload: &str, rounds: &Rounds, figure: Figure) -> Option<Vec<String>> {
    let values: Vec<_> = report.peers.iter().map(|&peer| rounds.median(peer, figure)).collect();
    let has = |figure| report.peers.iter().any(|&peer| rounds.median(peer, figure).is_some());
    // Too few starts are said, not left out.
    let starts = figure == Figure::FirstOverNext && has(Figure::First);
    if !(has(figure) || starts) || (figure == Figure::Failed && values.iter().flatten().all(|&v| v == 0.0)) {
        return None;
    }
    let mut cells: Vec<_> = values.iter().map(|value| value.map_or("–".to_owned(), number)).collect();
    if figure == Figure::FirstOverNext {
        for (cell, &peer) in cells.iter_mut().zip(&report.peers) {
            if let Some(ratio) = rounds.first_over_next(peer) {
                *cell += &format!(" ({}–{})", number(ratio.least), number(ratio.most));
            }
        }
    }
    for to in [Peer::Envoy, Peer::Floor] {
        let ratio = rounds.ratio(Peer::Heddle, to, figure);
        cells.push(ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")));
    }
    let bounds = target::of(workload, figure);
    let unknown = if figure == Figure::FirstOverNext && rounds.median(Peer::Heddle, Figure::First).is_some() {
        "too few starts"
    } else {
        "not measured"
    };
    let judged = |bound| target::judge(bound, rounds, figure).map_or(unknown, |(_, verdict)| verdict.word());
    cells.push(bounds.iter().map(target::Bound::words).collect::<Vec<_>>().join("; "));
    cells.push(bounds.iter().map(judged).collect::<Vec<_>>().join("; "));
    Some(cells)
}

/// Three digits that matter.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 10_000.0 {
        format!("{:.1}k", value / 1000.0)
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// For a terminal.
#[must_use]
pub fn plain(report: &Report) -> String {
    let rows = rows(report);
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// For the README.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let rows = rows(report);
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&rows[0]);
    text += &line(&vec!["---".to_owned(); rows[0].len()]);
    for row in &rows[1..] {
        text += &line(row);
    }
    text
}
