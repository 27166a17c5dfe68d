//! What the demo shows: a table that is redrawn on a terminal, plain lines anywhere else.

use std::io::{IsTerminal, Write};

/// One pod of the table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// `reviews-v1`.
    pub(crate) pod: String,
    /// Answers a second.
    pub(crate) rate: f64,
    /// Percent of all answers.
    pub(crate) share: f64,
    /// Whether what reached it came over mTLS; None when nothing came.
    pub(crate) mtls: Option<bool>,
    /// Whether the caller leaves it out.
    pub(crate) ejected: bool,
}

/// One moment of the demo.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frame {
    /// Seconds since traffic began.
    pub(crate) elapsed: f64,
    /// Requests a second.
    pub(crate) rate: f64,
    /// Percent of requests that were answered well.
    pub(crate) success: f64,
    /// Median latency, ms.
    pub(crate) p50: f64,
    /// 99th percentile, ms.
    pub(crate) p99: f64,
    /// Certificates that the caller's sidecar has had.
    pub(crate) certificates: usize,
    /// Whether the control plane runs.
    pub(crate) control_plane: bool,
    /// The pods.
    pub(crate) rows: Vec<Row>,
}

/// Where frames go.
#[derive(Debug)]
pub(crate) struct Screen {
    live: bool,
    drawn: usize,
}

impl Screen {
    /// Standard output.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { live: std::io::stdout().is_terminal(), drawn: 0 }
    }

    /// Whether frames replace each other.
    #[must_use]
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// A line of the story, which stays.
    pub(crate) fn say(&mut self, line: &str) {
        self.wipe();
        println!("{line}");
    }

    /// The latest frame.
    pub(crate) fn show(&mut self, frame: &Frame) {
        if !self.live {
            println!("{}", plain(frame));
            return;
        }
        self.wipe();
        let lines = table(frame);
        for line in &lines {
            println!("{line}");
        }
        self.drawn = lines.len();
        // A terminal that is gone shows nothing.
        let _ = std::io::stdout().flush();
    }

    fn wipe(&mut self) {
        if self.drawn > 0 {
            // Cursor up, then clear to the end of the screen.
            print!("\x1b[{}A\x1b[0J", self.drawn);
            self.drawn = 0;
        }
    }
}

fn plain(frame: &Frame) -> String {
    let rows: Vec<_> = frame
        .rows
        .iter()
        .map(|row| {
            let ejected = if row.ejected { " ejected" } else { "" };
            format!("{} {:.0}% mTLS {}{ejected}", row.pod, row.share, yes_no(row.mtls))
        })
        .collect();
    format!(
        "{:5.1}s {:.0} req/s, {:.2}% ok, p50 {:.1} ms, p99 {:.1} ms | {}",
        frame.elapsed,
        frame.rate,
        frame.success,
        frame.p50,
        frame.p99,
        rows.join(" | ")
    )
}

fn table(frame: &Frame) -> Vec<String> {
    let state = if frame.control_plane { "up" } else { "\x1b[31mdown\x1b[0m" };
    let mut lines = vec![
        String::new(),
        format!(
            "  {:5.1} s   control plane {state}   certificates of web so far: {}",
            frame.elapsed, frame.certificates
        ),
        format!(
            "  {:.0} requests/s   {:.2} % ok   p50 {:.1} ms   p99 {:.1} ms",
            frame.rate, frame.success, frame.p50, frame.p99
        ),
        format!("  {:<12} {:>7} {:>7}  {:<22} {:<5} ejected", "pod", "req/s", "share", "", "mTLS"),
    ];
    for row in &frame.rows {
        let bar = "█".repeat((row.share / 5.0).round() as usize);
        let ejected = if row.ejected { "\x1b[33myes\x1b[0m" } else { "no" };
        lines.push(format!(
            "  {:<12} {:>7.0} {:>6.1}%  {bar:<22} {:<5} {ejected}",
            row.pod,
            row.rate,
            row.share,
            yes_no(row.mtls)
        ));
    }
    lines
}

fn yes_no(answer: Option<bool>) -> &'static str {
    match answer {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_tells_what_the_table_tells() {
        let row = Row { pod: "reviews-v1".into(), rate: 90.0, share: 90.0, mtls: Some(true), ejected: true };
        let frame = Frame { elapsed: 2.0, rate: 100.0, success: 100.0, rows: vec![row], ..Frame::default() };
        let line = plain(&frame);
        for part in ["100 req/s", "100.00% ok", "reviews-v1 90% mTLS yes ejected"] {
            assert!(line.contains(part), "{line}");
        }
        assert!(table(&frame).last().is_some_and(|last| last.contains("90.0%")));
    }
}
