//! What was measured: as JSON, as a Markdown table, as plots.

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;

use super::plot::{Line, Plot};
use crate::latency::Latencies;

/// All figures of one run. Memory is in bytes, times are in the unit that the name ends in.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Changes measured at each step.
    pub changes: usize,
    /// Services that each sidecar follows beside the measured ones.
    pub follows: usize,
    /// By the cluster's size, ascending.
    pub sizes: Vec<Size>,
    /// What one endpoint more costs in resident memory, in bytes: from the smallest to the largest cluster.
    pub bytes_per_endpoint: f64,
}

/// One size of cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Size {
    /// Services in it.
    pub services: usize,
    /// Endpoints of all Services.
    pub endpoints: usize,
    /// The first start.
    pub cold_start: ColdStart,
    /// CPU time of one `Join`, with its TLS handshake.
    pub join_cpu_ms: f64,
    /// By connected streams, ascending.
    pub levels: Vec<Level>,
    /// The last start.
    pub reconnect: Reconnect,
    /// The most memory since the last start, bytes.
    pub peak_memory: u64,
}

/// From the program's start to its readiness: all objects read, indexed and checked.
#[derive(Clone, Debug, Serialize)]
pub struct ColdStart {
    /// Wall time.
    pub seconds: f64,
    /// CPU time.
    pub cpu_seconds: f64,
    /// Resident some seconds later, bytes.
    pub memory: u64,
    /// The most until then, bytes.
    pub peak_memory: u64,
}

/// One number of connected streams.
#[derive(Clone, Debug, Serialize)]
pub struct Level {
    /// How many.
    pub streams: usize,
    /// Resident, bytes.
    pub memory: u64,
    /// CPU time for each new stream: handshake, subscription, first resources.
    pub connect_cpu_ms: f64,
    /// Changes of an endpoint that all streams follow.
    pub all: ChangeFigures,
    /// Changes of an endpoint that few follow.
    pub few: ChangeFigures,
    /// Of one core, while nothing changes.
    pub idle_cpu_percent: f64,
}

/// One endpoint changed, many times.
#[derive(Clone, Debug, Serialize)]
pub struct ChangeFigures {
    /// Streams that follow it.
    pub interested: usize,
    /// From the file's rename to the last receipt.
    pub p50_ms: f64,
    /// The same.
    pub p99_ms: f64,
    /// CPU time of the control plane for one change, all receipts acknowledged.
    pub cpu_us: f64,
}

impl ChangeFigures {
    /// From each change's latency, and the CPU time of all.
    pub(super) fn new(interested: usize, latencies: &Latencies, cpu: Duration) -> Self {
        let ms = |share| latencies.percentile(share).as_secs_f64() * 1e3;
        let cpu_us = cpu.as_secs_f64() * 1e6 / latencies.len() as f64;
        Self { interested, p50_ms: ms(0.5), p99_ms: ms(0.99), cpu_us }
    }
}

/// A killed control plane starts again, and all sidecars come at once with nothing in their hands.
#[derive(Clone, Debug, Serialize)]
pub struct Reconnect {
    /// How many sidecars.
    pub streams: usize,
    /// From the program's start until the last sidecar has all that it follows.
    pub seconds: f64,
    /// CPU time of the control plane until then.
    pub cpu_seconds: f64,
    /// Resident some seconds later, bytes.
    pub memory: u64,
}

const MIB: f64 = 1024.0 * 1024.0;

impl Report {
    pub(super) fn new(changes: usize, follows: usize, sizes: Vec<Size>) -> Self {
        let grown = |first: &Size, last: &Size| {
            let bytes = last.cold_start.memory as f64 - first.cold_start.memory as f64;
            bytes / (last.endpoints.saturating_sub(first.endpoints)).max(1) as f64
        };
        let bytes_per_endpoint =
            sizes.first().zip(sizes.last()).map_or(0.0, |(first, last)| grown(first, last));
        Self { changes, follows, sizes, bytes_per_endpoint }
    }

    /// Tables for people.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "| services · endpoints | streams | all follow: p50 · p99 ms | CPU ms a change | few follow: p50 · p99 ms | CPU ms a change | connect, CPU ms a stream | memory MiB | idle CPU % |\n|---|---|---|---|---|---|---|---|---|\n",
        );
        // Writing to a String cannot fail, here and below.
        for (size, level) in self.sizes.iter().flat_map(|size| size.levels.iter().map(move |l| (size, l))) {
            let _written = writeln!(
                text,
                "| {} · {} | {} | {:.1} · {:.1} | {:.2} | {:.1} · {:.1} | {:.2} | {:.2} | {:.0} | {:.2} |",
                size.services,
                size.endpoints,
                level.streams,
                level.all.p50_ms,
                level.all.p99_ms,
                level.all.cpu_us / 1e3,
                level.few.p50_ms,
                level.few.p99_ms,
                level.few.cpu_us / 1e3,
                level.connect_cpu_ms,
                level.memory as f64 / MIB,
                level.idle_cpu_percent,
            );
        }
        text.push_str("\n| services · endpoints | cold start s | CPU s | memory MiB | peak MiB | Join, CPU ms | all reconnect: streams | s | CPU s | memory MiB | peak MiB |\n|---|---|---|---|---|---|---|---|---|---|---|\n");
        for size in &self.sizes {
            let (start, again) = (&size.cold_start, &size.reconnect);
            let _written = writeln!(
                text,
                "| {} · {} | {:.2} | {:.2} | {:.0} | {:.0} | {:.2} | {} | {:.2} | {:.2} | {:.0} | {:.0} |",
                size.services,
                size.endpoints,
                start.seconds,
                start.cpu_seconds,
                start.memory as f64 / MIB,
                start.peak_memory as f64 / MIB,
                size.join_cpu_ms,
                again.streams,
                again.seconds,
                again.cpu_seconds,
                again.memory as f64 / MIB,
                size.peak_memory as f64 / MIB,
            );
        }
        let _written = writeln!(
            text,
            "\nAn endpoint costs {:.0} bytes of resident memory, its pod included. {} changes at each step; each sidecar follows {} Services more.",
            self.bytes_per_endpoint, self.changes, self.follows
        );
        text
    }

    /// Plots as SVG, by name.
    #[must_use]
    pub fn plots(&self) -> Vec<(&'static str, String)> {
        let by_streams = |value: &dyn Fn(&Level) -> f64| -> Vec<Line> {
            let line = |size: &Size| Line {
                name: format!("{} services", size.services),
                points: size.levels.iter().map(|level| (level.streams as f64, value(level))).collect(),
            };
            self.sizes.iter().map(line).collect()
        };
        // At the largest number of streams that every size has.
        let common = self.sizes.iter().filter_map(|size| size.levels.iter().map(|l| l.streams).max()).min();
        let by_services = |name: &str, value: &dyn Fn(&Level) -> f64| Line {
            name: name.to_owned(),
            points: self
                .sizes
                .iter()
                .filter_map(|size| {
                    let level = size.levels.iter().find(|level| Some(level.streams) == common)?;
                    Some((size.services as f64, value(level)))
                })
                .collect(),
        };
        let endpoints = |value: &dyn Fn(&Size) -> f64| -> Vec<(f64, f64)> {
            self.sizes.iter().map(|size| (size.endpoints as f64, value(size))).collect()
        };
        vec![
            (
                "latency",
                Plot {
                    title: "One endpoint's change to the last of all streams, p99",
                    x: "streams that follow it",
                    y: "ms",
                    lines: by_streams(&|level| level.all.p99_ms),
                }
                .svg(),
            ),
            (
                "growth",
                Plot {
                    title: "CPU time of one endpoint's change",
                    x: "services in the cluster",
                    y: "ms",
                    lines: vec![
                        by_services(&format!("{} streams follow", common.unwrap_or(0)), &|l| {
                            l.all.cpu_us / 1e3
                        }),
                        by_services("10 streams follow", &|level| level.few.cpu_us / 1e3),
                    ],
                }
                .svg(),
            ),
            (
                "memory",
                Plot {
                    title: "Resident memory",
                    x: "endpoints in the cluster",
                    y: "MiB",
                    lines: vec![
                        Line {
                            name: "no streams".to_owned(),
                            points: endpoints(&|size| size.cold_start.memory as f64 / MIB),
                        },
                        Line {
                            name: "most streams".to_owned(),
                            points: endpoints(&|size| {
                                size.levels.last().map_or(0.0, |level| level.memory as f64 / MIB)
                            }),
                        },
                    ],
                }
                .svg(),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> ChangeFigures {
        let mut latencies = Latencies::default();
        (1..=100).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        ChangeFigures::new(10, &latencies, Duration::from_secs(1))
    }

    fn size(services: usize, memory: u64) -> Size {
        let level = Level {
            streams: 10,
            memory,
            connect_cpu_ms: 1.0,
            all: figures(),
            few: figures(),
            idle_cpu_percent: 0.5,
        };
        let cold_start = ColdStart { seconds: 1.0, cpu_seconds: 2.0, memory, peak_memory: memory };
        let reconnect = Reconnect { streams: 10, seconds: 1.0, cpu_seconds: 1.0, memory };
        Size {
            services,
            endpoints: services * 20,
            cold_start,
            join_cpu_ms: 1.0,
            levels: vec![level],
            reconnect,
            peak_memory: memory,
        }
    }

    #[test]
    fn what_an_endpoint_costs_is_what_the_larger_cluster_holds_more() {
        let report = Report::new(100, 10, vec![size(100, 10_000_000), size(200, 12_000_000)]);
        assert!((report.bytes_per_endpoint - 1000.0).abs() < 1e-9);
        assert!(report.markdown().contains("An endpoint costs 1000 bytes"));
    }

    #[test]
    fn a_row_has_the_percentiles_and_the_cost_of_one_change() {
        let text = Report::new(100, 10, vec![size(100, 10 << 20)]).markdown();
        assert!(
            text.contains(
                "| 100 · 2000 | 10 | 50.0 · 99.0 | 10.00 | 50.0 · 99.0 | 10.00 | 1.00 | 10 | 0.50 |"
            ),
            "{text}"
        );
    }

    #[test]
    fn every_plot_is_drawn_with_every_point() {
        for (name, svg) in Report::new(100, 10, vec![size(100, 10 << 20), size(200, 20 << 20)]).plots() {
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"), "{name}");
            assert_eq!(svg.matches("<circle").count() % 2, 0, "{name}");
            assert!(!svg.contains("NaN"), "{name}");
        }
    }
}
