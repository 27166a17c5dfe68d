//! What the echo client printed, read as the Gateway API's suite reads it.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};

/// One request's part of the output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// `StatusCode`.
    pub status: u16,
    /// The other fields: `Hostname`, `URL`, `Host`, `Method`, `Proto`, …
    pub fields: BTreeMap<String, String>,
    /// What the server saw, by name in small letters; several values joined by commas.
    pub request_headers: BTreeMap<String, String>,
    /// What the client got, likewise.
    pub response_headers: BTreeMap<String, String>,
}

impl Report {
    /// A field; empty when it was not said.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

/// The reports in an output: they are separated by empty lines.
///
/// # Errors
/// When there is none, or one without a status.
pub fn parse(output: &str) -> anyhow::Result<Vec<Report>> {
    let sections = output.split("\n\n").filter(|section| !section.trim().is_empty());
    let reports: Vec<_> = sections.map(one).collect::<anyhow::Result<_>>()?;
    ensure!(!reports.is_empty(), "the client printed nothing");
    Ok(reports)
}

fn one(section: &str) -> anyhow::Result<Report> {
    let mut report = Report::default();
    for line in section.lines() {
        // `[0] Name=value`, `[0 body] Name=value`.
        let said = line.split_once("] ").and_then(|(_, said)| said.split_once('='));
        let Some((name, value)) = said else { continue };
        let headers = match name {
            "RequestHeader" => &mut report.request_headers,
            "ResponseHeader" => &mut report.response_headers,
            _ => {
                // The first holds, as in the suite: a gRPC answer's own words come before its server's.
                report.fields.entry(name.to_owned()).or_insert_with(|| value.to_owned());
                continue;
            }
        };
        let Some((name, value)) = value.split_once(':') else { continue };
        let name = name.to_ascii_lowercase();
        headers.entry(name).and_modify(|all| *all = format!("{all},{value}")).or_insert(value.to_owned());
    }
    let status = report.fields.remove("StatusCode").with_context(|| format!("no StatusCode in {section}"))?;
    report.status = status.parse().with_context(|| format!("StatusCode={status}"))?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_read_request_by_request() {
        let output = "[0] Url=http://echo/a=b\n[0] StatusCode=302\n[0] ResponseHeader=Location:http://a:1/\n\n\
                      [1] StatusCode=200\n[1 body] Hostname=echo-v1\n[1 body] RequestHeader=X-A:1\n[1 body] RequestHeader=X-A:2\n\n";
        let reports = parse(output).unwrap();
        assert_eq!(reports.len(), 2);
        assert_eq!((reports[0].status, reports[0].field("Url")), (302, "http://echo/a=b"));
        assert_eq!(reports[0].response_headers["location"], "http://a:1/");
        assert_eq!((reports[1].status, reports[1].field("Hostname")), (200, "echo-v1"));
        assert_eq!(reports[1].request_headers["x-a"], "1,2");
        assert!(parse("").is_err() && parse("[0 body] Hostname=a\n").is_err());
    }
}
