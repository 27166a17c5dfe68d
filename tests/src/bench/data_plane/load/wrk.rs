//! HTTP/1.1 at saturation, by wrk: each connection sends its next request when it has the answer to its last.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, ensure};

use super::{Done, Percentiles, Target};

/// What wrk prints of its own is for people; this is for [`read`].
const SCRIPT: &str = r#"
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format("bench-mesh %d %d %d %d %d %d\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"#;

/// Runs it. With `close` each request has a connection of its own.
///
/// # Errors
/// When wrk is not there or says what cannot be read.
pub fn run(
    target: &Target,
    connections: usize,
    close: bool,
    length: Duration,
    scratch: &Path,
) -> anyhow::Result<Done> {
    let script = scratch.join("wrk.lua");
    std::fs::write(&script, SCRIPT)?;
    let mut command = Command::new(crate::program::find("wrk").context("needs wrk")?);
    command.args(["-t1", &format!("-c{connections}"), &format!("-d{}s", length.as_secs().max(1))]);
    command.arg("-s").arg(&script).args(["-H", &format!("Host: {}", target.host)]);
    if close {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{}{}", target.address, target.path));
    let output = command.output().context("wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "wrk: {} {text} {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    read(&text).with_context(|| format!("wrk said {text:?}"))
}

fn read(text: &str) -> Option<Done> {
    let line = text.lines().find_map(|line| line.strip_prefix("bench-mesh "))?;
    let numbers: Vec<u64> = line.split(' ').filter_map(|number| number.parse().ok()).collect();
    let [requests, took, failed, p50, p99, p999] = numbers[..] else { return None };
    let ms = |micros: u64| micros as f64 / 1e3;
    Some(Done {
        requests: requests.saturating_sub(failed),
        failed,
        bytes: 0,
        took: Duration::from_micros(took),
        latency: Some(Percentiles { p50: ms(p50), p99: ms(p99), p999: Some(ms(p999)) }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_requests_are_not_among_the_requests() {
        let done = read("Running 1s test\nbench-mesh 1000 2000000 10 500 1500 2500\n").unwrap();
        assert_eq!((done.requests, done.failed, done.took), (990, 10, Duration::from_secs(2)));
        assert_eq!(done.latency, Some(Percentiles { p50: 0.5, p99: 1.5, p999: Some(2.5) }));
        assert!(read("unable to connect").is_none());
    }
}
