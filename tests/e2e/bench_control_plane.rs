//! The control plane's benchmark works. Its figures here mean nothing: the numbers are tiny and the machine is busy.

use heddle_tests::bench::control_plane::{self, Plan};

#[tokio::test(flavor = "multi_thread")]
async fn the_control_planes_benchmark_measures_every_step_and_publishes_it() {
    let plan = Plan::smoke();
    let report = control_plane::run(&plan, |_| {}).await.unwrap();
    assert_eq!(report.sizes.len(), plan.sizes.len());
    for (size, planned) in report.sizes.iter().zip(&plan.sizes) {
        let streams: Vec<_> = size.levels.iter().map(|level| level.streams).collect();
        assert_eq!(streams, planned.streams);
        assert_eq!(Some(&size.reconnect.streams), planned.streams.last());
        assert!(size.cold_start.memory > 0 && size.cold_start.cpu_seconds > 0.0 && size.join_cpu_ms > 0.0);
        for level in &size.levels {
            // Everybody follows the one Service, ten at most the other; every change reached them.
            assert_eq!((level.all.interested, level.few.interested), (level.streams, level.streams.min(10)));
            for change in [&level.all, &level.few] {
                assert!(change.p50_ms > 0.0 && change.p99_ms >= change.p50_ms && change.cpu_us > 0.0);
            }
        }
    }

    let directory = tempfile::tempdir().unwrap();
    control_plane::publish(&report, directory.path()).unwrap();
    let json = std::fs::read(directory.path().join("control-plane.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["sizes"][1]["levels"][1]["streams"], 12);
    let table = std::fs::read_to_string(directory.path().join("control-plane.md")).unwrap();
    assert!(table.contains("| 16 · 48 | 12 |"), "{table}");
    for plot in ["latency", "growth", "memory"] {
        assert!(directory.path().join(format!("control-plane-{plot}.svg")).is_file(), "{plot}");
    }
}
