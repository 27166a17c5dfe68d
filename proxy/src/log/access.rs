//! The access log: one JSON object a line, for each request and each opaque connection.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use super::lines::Lines;
use crate::config::inbound::AccessLog;
use crate::metrics::Direction;
use crate::reason::Reason;

/// Longest text that the client chose, in bytes; what is longer is cut.
const MAX_TEXT: usize = 1_024;

/// What there is to say of a request or an opaque connection. Absent values are left out of the line.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Entry<'a> {
    /// Which way it passed.
    #[serde(serialize_with = "direction")]
    pub direction: Direction,
    /// `HTTP/1.1`, `HTTP/2.0`, `tcp`.
    pub protocol: &'static str,
    /// HTTP's method.
    #[serde(serialize_with = "cut", skip_serializing_if = "Option::is_none")]
    pub method: Option<&'a str>,
    /// Host or `:authority`.
    #[serde(serialize_with = "cut", skip_serializing_if = "Option::is_none")]
    pub authority: Option<&'a str>,
    /// The path alone: queries carry secrets, and logs are read by many.
    #[serde(serialize_with = "path", skip_serializing_if = "Option::is_none")]
    pub path: Option<&'a str>,
    /// What the client got.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why the sidecar itself refused or gave up.
    #[serde(serialize_with = "reason", skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// To the end of the answer, or of the connection.
    #[serde(rename = "duration_ms", serialize_with = "milliseconds")]
    pub duration: Duration,
    /// `namespace/name:port` of the Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<&'a str>,
    /// The backend's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<&'a str>,
    /// `namespace/name` of the route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<&'a str>,
    /// Where the last try went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    /// The identity at the other end: the caller's inbound, the endpoint's outbound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<&'a str>,
    /// Whether the connection between the pods is mTLS.
    pub mtls: bool,
    /// Tries, the first included; 0: none went out.
    pub tries: u32,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
}

impl Entry<'_> {
    /// Whether it is logged under `Errors`: the sidecar refused it, or the answer is a server error.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.reason.is_some() || self.status.is_some_and(|status| status >= 500)
    }
}

/// Writes the access log; cheap to clone, never waits.
#[derive(Clone, Debug)]
pub struct AccessLogger(Lines);

impl AccessLogger {
    pub(super) fn new(lines: Lines) -> Self {
        Self(lines)
    }

    /// Writes the entry if the policy (`Inbound.access_log`, [`AccessLog::default`] before there is one) asks for it.
    pub fn record(&self, policy: AccessLog, entry: &Entry<'_>) {
        let wanted = match policy {
            AccessLog::Off => false,
            AccessLog::Errors => entry.is_error(),
            AccessLog::All => true,
        };
        if wanted {
            self.0.send(line(SystemTime::now(), entry));
        }
    }

    /// Lines that found no room so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.dropped()
    }

    pub(super) fn flush(&self, limit: Duration) {
        self.0.flush(limit);
    }
}

fn line(now: SystemTime, entry: &Entry<'_>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Line<'a> {
        time: String,
        #[serde(flatten)]
        entry: &'a Entry<'a>,
    }
    let time = humantime::format_rfc3339_millis(now).to_string();
    let mut text =
        serde_json::to_vec(&Line { time, entry }).expect("an entry has text keys and finite numbers");
    text.push(b'\n');
    text
}

fn cut<S: Serializer>(text: &Option<&str>, out: S) -> Result<S::Ok, S::Error> {
    let text = text.unwrap_or_default();
    out.serialize_str(&text[..text.floor_char_boundary(MAX_TEXT)])
}

fn path<S: Serializer>(text: &Option<&str>, out: S) -> Result<S::Ok, S::Error> {
    cut(&text.map(|text| text.split_once('?').map_or(text, |(path, _)| path)), out)
}

fn direction<S: Serializer>(direction: &Direction, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(direction.as_str())
}

fn reason<S: Serializer>(reason: &Option<Reason>, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(reason.map_or("", Reason::as_str))
}

fn milliseconds<S: Serializer>(duration: &Duration, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_f64(duration.as_micros() as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::super::lines::tests::Output;
    use super::*;

    const ENTRY: Entry<'static> = Entry {
        direction: Direction::Outbound,
        protocol: "HTTP/1.1",
        method: Some("GET"),
        authority: Some("reviews:9080"),
        path: Some("/reviews/1?token=secret"),
        status: Some(200),
        reason: None,
        duration: Duration::from_micros(1_234),
        service: Some("shop/reviews:9080"),
        backend: None,
        route: None,
        endpoint: None,
        client: None,
        peer: None,
        mtls: true,
        tries: 1,
        bytes_in: 0,
        bytes_out: 10,
    };

    fn written(policy: AccessLog, entries: &[Entry<'_>]) -> Vec<serde_json::Value> {
        let output = Output::default();
        let logger = AccessLogger::new(Lines::start("test", output.clone()).unwrap());
        for entry in entries {
            logger.record(policy, entry);
        }
        logger.flush(Duration::from_secs(30));
        output.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_is_one_json_object_without_the_query_and_without_what_is_absent() {
        let line = String::from_utf8(line(SystemTime::UNIX_EPOCH, &ENTRY)).unwrap();
        assert_eq!(
            line,
            "{\"time\":\"1970-01-01T00:00:00.000Z\",\"direction\":\"outbound\",\"protocol\":\"HTTP/1.1\",\
             \"method\":\"GET\",\"authority\":\"reviews:9080\",\"path\":\"/reviews/1\",\"status\":200,\
             \"duration_ms\":1.234,\"service\":\"shop/reviews:9080\",\"mtls\":true,\"tries\":1,\"bytes_in\":0,\
             \"bytes_out\":10}\n"
        );
    }

    #[test]
    fn by_default_only_refusals_and_server_errors_are_written() {
        let refused = Entry { status: Some(404), reason: Some(Reason::NoRoute), ..ENTRY };
        let failed = Entry { status: Some(502), ..ENTRY };
        let reset = Entry { status: None, reason: Some(Reason::UpstreamReset), ..ENTRY };
        let entries = [ENTRY, Entry { status: Some(404), ..ENTRY }, refused, failed, reset];
        let reasons: Vec<_> =
            written(AccessLog::default(), &entries).iter().map(|line| line["reason"].clone()).collect();
        assert_eq!(reasons, ["NoRoute".into(), serde_json::Value::Null, "UpstreamReset".into()]);
        assert_eq!(written(AccessLog::Off, &entries).len(), 0);
        assert_eq!(written(AccessLog::All, &entries).len(), 5);
    }

    #[test]
    fn what_a_client_writes_cannot_break_a_line_or_grow_it_without_end() {
        let long = format!("/\"\n\u{7}{}", "é".repeat(5_000));
        let lines = written(AccessLog::All, &[Entry { path: Some(&long), ..ENTRY }]);
        let path = lines[0]["path"].as_str().unwrap();
        assert_eq!(lines.len(), 1);
        assert!(path.starts_with("/\"\n\u{7}éé") && path.len() <= MAX_TEXT);
    }
}
