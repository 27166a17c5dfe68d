//! The benchmark runs: each kind of load once, a second long, so that the harness cannot rot. How fast anything is, it
//! does not ask.

use std::process::Command;

use heddle_tests::{bench::data_plane::Peer, binaries, need, program};
use serde_json::Value;

/// One of each kind of load, and what it is made with.
const WORKLOADS: [(&str, Option<&str>); 7] = [
    ("http1-1k", Some("wrk")),
    ("http1-1k-2000", None),
    ("http2-1k", Some("h2load")),
    ("grpc-stream", None),
    ("tcp-connect", Some("redis-server")),
    ("idle-1", None),
    ("start", None),
];

#[test]
fn every_kind_of_load_is_measured_through_every_peer_that_is_here() {
    need!("nginx");
    let names: Vec<_> = WORKLOADS
        .into_iter()
        .filter(|(name, needs)| match needs {
            Some(needed) if program::find(needed).is_none() => {
                program::say_skipped(&format!("{} {name}", module_path!()), needed);
                false
            }
            _ => true,
        })
        .map(|(name, _)| name)
        .collect();
    // Envoy where it is installed or may be fetched: the benchmark itself would fetch a hundred megabytes unasked.
    let may_fetch =
        ["HEDDLE_BENCH_ENVOY", "HEDDLE_BENCH_FETCH"].iter().any(|name| std::env::var_os(name).is_some());
    let mut peers = vec!["heddle", "floor", "none"];
    for (peer, installed) in [
        ("envoy", may_fetch || program::find("envoy").is_some()),
        ("haproxy", program::find("haproxy").is_some()),
    ] {
        if installed {
            peers.push(peer);
        } else {
            program::say_skipped(module_path!(), peer);
        }
    }

    let out = tempfile::tempdir().unwrap();
    let proxy = binaries::path(binaries::PROXY).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bench-mesh"))
        .args([
            "data-plane",
            "--smoke",
            "--markdown",
            "--only",
            &names.join(","),
            "--peers",
            &peers.join(","),
        ])
        .arg("--bin-dir")
        .arg(proxy.parent().unwrap())
        .arg("--out")
        .arg(out.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(output.stdout.starts_with(b"| workload |"), "{}", String::from_utf8_lossy(&output.stdout));
    let plot = std::fs::read_to_string(out.path().join("data-plane-cpu.svg")).unwrap();
    assert!(plot.trim_end().ends_with("</svg>"), "{plot}");

    let json = std::fs::read(out.path().join("data-plane.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let workloads = json["workloads"].as_array().unwrap();
    assert_eq!(workloads.len(), names.len());
    for peer in &peers {
        let http = workloads.iter().find(|workload| workload["name"] == "http1-1k").unwrap();
        assert!(http["medians"][peer]["per_second"].as_f64() > Some(0.0), "{peer}: {http:#}\n{said}");
    }
    for workload in workloads {
        let name = workload["name"].as_str().unwrap();
        let heddle = &workload["medians"][Peer::Heddle.name()];
        let failed = heddle["failed"].as_f64().unwrap_or(0.0);
        assert!(failed == 0.0, "{name}: {failed} failed: {workload:#}\n{said}");
        let missing = workload["missing"].as_object().unwrap();
        assert!(!missing.contains_key("heddle"), "{name}: {missing:?}\n{said}");
        // There each peer meets requests right after it says that it is ready.
        assert!(name != "start" || missing.is_empty(), "{name}: {missing:?}\n{said}");
        let figure = match name {
            "start" => "to_first200",
            "idle-1" => "resident",
            _ => "cpu",
        };
        assert!(
            heddle[figure].as_f64().is_some_and(|value| value > 0.0),
            "{name} has no {figure}: {workload:#}"
        );
    }
}
