//! The control plane's benchmark works. Its figures here mean nothing: the numbers are tiny and the machine is busy.

use std::process::Command;

use heddle_tests::{
    bench::control_plane::{Plan, SizePlan},
    binaries,
};
use serde_json::Value;

#[test]
fn the_control_planes_benchmark_measures_every_step_and_publishes_it() {
    let out = tempfile::tempdir().unwrap();
    let program = binaries::path(binaries::CONTROL_PLANE).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bench-mesh"))
        .args(["control-plane", "--smoke", "--bin-dir"])
        .arg(program.parent().unwrap())
        .arg("--out")
        .arg(out.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("| 16 · 48 | 12 |"), "{table}");
    assert_eq!(std::fs::read_to_string(out.path().join("control-plane.md")).unwrap(), table);
    for plot in ["latency", "growth", "memory"] {
        assert!(out.path().join(format!("control-plane-{plot}.svg")).is_file(), "{plot}");
    }

    let json = std::fs::read(out.path().join("control-plane.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let sizes = json["sizes"].as_array().unwrap();
    let plan = Plan::smoke();
    assert_eq!(sizes.len(), plan.sizes.len());
    for (size, planned) in sizes.iter().zip(&plan.sizes) {
        every_step_was_measured(size, planned);
    }
}

fn every_step_was_measured(size: &Value, planned: &SizePlan) {
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} in {size:#}"));
    let count = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value} in {size:#}")) as usize;
    let start = &size["cold_start"];
    assert!(number(&start["memory"]) > 0.0 && number(&start["cpu_seconds"]) > 0.0, "{size:#}");
    assert!(number(&size["join_cpu_ms"]) > 0.0, "{size:#}");
    assert_eq!(Some(&count(&size["reconnect"]["streams"])), planned.streams.last());
    let levels = size["levels"].as_array().unwrap();
    let streams: Vec<_> = levels.iter().map(|level| count(&level["streams"])).collect();
    assert_eq!(streams, planned.streams);
    for level in levels {
        // Everybody follows the one Service, ten at most the other; every change reached them.
        let streams = count(&level["streams"]);
        for (change, interested) in [(&level["all"], streams), (&level["few"], streams.min(10))] {
            assert_eq!(count(&change["interested"]), interested);
            let (p50, p99) = (number(&change["p50_ms"]), number(&change["p99_ms"]));
            assert!(p50 > 0.0 && p99 >= p50 && number(&change["cpu_us"]) > 0.0, "{change:#}");
        }
    }
}
