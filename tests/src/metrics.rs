//! Metrics as a user scrapes them: Prometheus text, parsed.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context, ensure};

use crate::client::Client;

/// One line of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// `http_client_request_duration_seconds_count`.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// In the order printed.
    pub samples: Vec<Sample>,
    /// As it came.
    pub text: String,
}

impl Scrape {
    /// GETs `/metrics`.
    ///
    /// # Errors
    /// When nothing answers there with 200 or a line cannot be read.
    pub async fn of(address: SocketAddr) -> anyhow::Result<Self> {
        let answer = Client::http1(address).await?.get(&address.to_string(), "/metrics").await?;
        ensure!(answer.status == 200, "GET http://{address}/metrics: {}", answer.status);
        Self::parse(&answer.text())
    }

    /// Reads Prometheus text.
    ///
    /// # Errors
    /// When a line is not `name{labels} value`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let samples = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| sample(line).with_context(|| format!("not a sample: {line:?}")))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { samples, text: text.to_owned() })
    }

    /// The sum of every series of `name` that has all of `labels`.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &Sample| {
            labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        };
        // Rust's empty sum of floats is -0.
        self.samples.iter().filter(|s| s.name == name && has(s)).map(|s| s.value).sum::<f64>() + 0.0
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (head, value) = match line.split_once('{') {
        None => line.split_once(' ').map(|(name, value)| ((name, ""), value))?,
        Some((name, rest)) => {
            let end = closing_brace(rest)?;
            ((name, &rest[..end]), rest[end + 1..].trim_start())
        }
    };
    // An exemplar or a timestamp may follow the value.
    let value = value.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: head.0.to_owned(), labels: labels(head.1)?, value })
}

/// Where the label set ends: the first `}` outside quotes.
fn closing_brace(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted => return Some(index),
            _ => {}
        }
    }
    None
}

fn labels(mut text: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    while !text.is_empty() {
        let (key, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next()? {
                (index, '"') => break index,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, c) => value.push(c),
            }
        };
        labels.insert(key.trim_start_matches(',').trim().to_owned(), value);
        text = &rest[end + 1..];
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_the_labels_that_are_not_named() {
        let scrape = Scrape::parse(
            "# HELP x y\n# TYPE x counter\nx_total{a=\"1\",b=\"p}q\\\"\"} 2\nx_total{a=\"1\",b=\"r\"} 3.5\nx_total{a=\"2\"} 7\nup 1\n# EOF\n",
        )
        .unwrap();
        assert!((scrape.sum("x_total", &[("a", "1")]) - 5.5).abs() < f64::EPSILON);
        assert!((scrape.sum("x_total", &[]) - 12.5).abs() < f64::EPSILON);
        assert!((scrape.sum("up", &[]) - 1.0).abs() < f64::EPSILON);
        assert_eq!(scrape.samples[0].labels["b"], "p}q\"");
    }

    #[test]
    fn what_is_not_a_sample_is_an_error() {
        assert!(Scrape::parse("x_total{a=\"1\" 3\n").is_err());
        assert!(Scrape::parse("x_total\n").is_err());
    }
}
