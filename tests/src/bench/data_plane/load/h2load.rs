//! HTTP/2 by h2load: GET, or gRPC's POST of one message.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, ensure};

use super::{Done, Percentiles, Target};
use crate::latency::Latencies;

/// Connections, as of a client with a small pool.
const CONNECTIONS: usize = 10;
/// Requests in flight on each.
const STREAMS: usize = 10;

/// Runs it at saturation, or at `rate` requests a second; `message` makes it gRPC. At a rate h2load measures from when a
/// request was sent, not from when it was due.
///
/// # Errors
/// When h2load is not there or says what cannot be read.
pub fn run(
    target: &Target,
    rate: Option<usize>,
    message: Option<&[u8]>,
    length: Duration,
    scratch: &Path,
) -> anyhow::Result<Done> {
    let log = scratch.join("h2load.log");
    let _ = std::fs::remove_file(&log);
    let mut command = Command::new(crate::program::find("h2load").context("needs h2load")?);
    command.args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-m{STREAMS}")]);
    command.arg(format!("-D{}", length.as_secs().max(1))).arg("--log-file").arg(&log);
    command.args(["-H", &format!(":authority: {}", target.host)]);
    if let Some(rate) = rate {
        command.arg(format!("--rps={}", rate / CONNECTIONS));
    }
    if let Some(message) = message {
        let file = scratch.join("message");
        std::fs::write(&file, grpc_frame(message))?;
        command.arg("-d").arg(file).args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
    }
    command.arg(format!("http://{}{}", target.address, target.path));
    let output = command.output().context("h2load")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "h2load: {} {text}", output.status);
    let (requests, failed) = read(&text).with_context(|| format!("h2load said {text:?}"))?;
    let latencies = read_log(&std::fs::read_to_string(&log)?);
    Ok(Done { requests, failed, bytes: 0, took: length, latency: Percentiles::of(&latencies) })
}

/// A message as gRPC frames it: not compressed, its length, itself.
#[must_use]
pub fn grpc_frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0], &length.to_be_bytes()[..], message].concat()
}

/// Reads `requests: 9 total, 9 started, 9 done, 8 succeeded, 1 failed, …`.
fn read(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().find_map(|line| line.strip_prefix("requests: "))?;
    let count = |what: &str| {
        let word = line.split(", ").find_map(|part| part.strip_suffix(what))?;
        word.trim().parse::<u64>().ok()
    };
    Some((count("succeeded")?, count("failed")?))
}

/// Lines of start, status, microseconds.
fn read_log(text: &str) -> Latencies {
    let mut latencies = Latencies::default();
    for line in text.lines() {
        let mut fields = line.split('\t').skip(1);
        if let (Some("200"), Some(Ok(micros))) = (fields.next(), fields.next().map(str::parse)) {
            latencies.record(Duration::from_micros(micros));
        }
    }
    latencies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_h2load_prints_is_read() {
        let text = "finished in 1s\nrequests: 12 total, 12 started, 11 done, 10 succeeded, 1 failed, 1 errored, 0 timeout\n";
        assert_eq!(read(text), Some((10, 1)));
        assert_eq!(read("nothing"), None);
        let log = read_log("1\t200\t1500\n2\t503\t9\n3\t200\t500\n");
        assert_eq!((log.len(), log.percentile(1.0)), (2, Duration::from_micros(1500)));
    }

    #[test]
    fn a_message_has_its_length_before_it() {
        assert_eq!(grpc_frame(b"abc"), [0, 0, 0, 0, 3, b'a', b'b', b'c']);
    }
}
