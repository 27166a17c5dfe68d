//! What a scrape shows, read as a scraper reads it.

use std::collections::BTreeMap;
use std::time::Duration;

use ::http::{Method, StatusCode, Version};

use super::*;
use crate::reason::Reason;
use crate::store::Status;

const LABELS: HttpLabels<'static> = HttpLabels {
    service: "shop/reviews:9080",
    backend: "shop/reviews-v1:9080",
    route: "shop/split",
    protocol: Version::HTTP_11,
    mtls: true,
};

/// One sample: labels by name, and the value.
type Sample = (BTreeMap<String, String>, f64);

/// Reads OpenMetrics text strictly: every sample belongs to the family announced last, and the text ends with EOF.
fn parse(text: &str) -> BTreeMap<String, Vec<Sample>> {
    let mut samples: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    let mut family = String::new();
    // Not `lines()`: a label may end in a carriage return.
    let mut lines = text.strip_suffix('\n').unwrap().split('\n');
    assert_eq!(lines.next_back(), Some("# EOF"));
    for line in lines {
        if let Some(comment) = line.strip_prefix("# ") {
            if let Some(rest) = comment.strip_prefix("TYPE ") {
                family = rest.split_once(' ').unwrap().0.to_owned();
                assert!(samples.insert(format!("# {family}"), vec![]).is_none(), "{family} twice");
            }
            continue;
        }
        let name = line.find(['{', ' ']).map(|end| &line[..end]).unwrap();
        assert!(name.starts_with(&family), "{name} within {family}");
        let (labels, rest) = labels_of(&line[name.len()..]);
        let value = rest.trim().parse().unwrap_or_else(|_| panic!("{line}"));
        samples.entry(name.to_owned()).or_default().push((labels, value));
    }
    samples
}

/// The labels of a sample in braces, and what follows.
fn labels_of(text: &str) -> (BTreeMap<String, String>, &str) {
    let mut labels = BTreeMap::new();
    let Some(mut rest) = text.strip_prefix('{') else { return (labels, text) };
    assert!(!rest.starts_with('}'), "braces around nothing");
    while !rest.starts_with('}') {
        let (name, quoted) = rest.trim_start_matches(',').split_once("=\"").unwrap();
        let (mut value, mut escaped) = (String::new(), false);
        let end = quoted.char_indices().find(|&(_, c)| {
            match (escaped, c) {
                (false, '"') => return true,
                (false, '\\') => {
                    escaped = true;
                    return false;
                }
                (true, 'n') => value.push('\n'),
                _ => value.push(c),
            }
            escaped = false;
            false
        });
        assert!(labels.insert(name.to_owned(), value).is_none(), "{name} twice");
        rest = &quoted[end.unwrap().0 + 1..];
    }
    (labels, &rest[1..])
}

fn scrape(metrics: &Metrics) -> BTreeMap<String, Vec<Sample>> {
    parse(&metrics.encode(&Observed::default()))
}

/// The sum of the samples of that name that have all these labels.
fn sum(samples: &BTreeMap<String, Vec<Sample>>, name: &str, labels: &[(&str, &str)]) -> f64 {
    let has =
        |of: &BTreeMap<String, String>| labels.iter().all(|(k, v)| of.get(*k).is_some_and(|of| of == v));
    samples.get(name).into_iter().flatten().filter(|(of, _)| has(of)).map(|(_, value)| value).sum()
}

#[test]
fn every_reason_and_kind_has_the_place_its_number_says() {
    assert!(Reason::ALL.iter().enumerate().all(|(place, reason)| *reason as usize == place));
    assert!(PeerRefusal::ALL.iter().enumerate().all(|(place, why)| *why as usize == place));
}

#[test]
fn workers_are_summed() {
    let metrics = Metrics::new(2);
    for index in 0..2 {
        let worker = metrics.worker(index);
        let series = worker.http(Direction::Outbound, LABELS);
        series.record(&Method::GET, Some(StatusCode::OK), None, Duration::from_millis(3));
        worker.refused(Direction::Inbound, Reason::AccessDenied);
        worker.backend("shop/reviews-v1:9080").retry(true);
        worker.tcp_bytes(Direction::Outbound, Flow::ToClient, 5);
    }
    let held = metrics.worker(0).connection(Direction::Inbound, true);
    drop(metrics.worker(1).connection(Direction::Inbound, true));

    let samples = scrape(&metrics);
    let ok = [
        ("http_response_status_code", "200"),
        ("heddle_mtls", "true"),
        ("server_address", "reviews.shop"),
        ("server_port", "9080"),
    ];
    assert_eq!(samples["http_client_request_duration_seconds_count"].len(), 1);
    assert_eq!(sum(&samples, "http_client_request_duration_seconds_count", &ok), 2.0);
    assert_eq!(sum(&samples, "http_client_request_duration_seconds_sum", &ok), 0.006);
    assert_eq!(sum(&samples, "http_client_request_duration_seconds_bucket", &[("le", "0.0025")]), 0.0);
    assert_eq!(sum(&samples, "http_client_request_duration_seconds_bucket", &[("le", "0.005")]), 2.0);
    assert_eq!(sum(&samples, "http_client_request_duration_seconds_bucket", &[("le", "+Inf")]), 2.0);
    assert_eq!(sum(&samples, "heddle_refused_total", &[("reason", "AccessDenied")]), 2.0);
    assert_eq!(sum(&samples, "heddle_retries_total", &[("result", "success")]), 2.0);
    assert_eq!(sum(&samples, "heddle_tcp_bytes_total", &[("flow", "to_client")]), 10.0);
    let inbound = [("direction", "inbound"), ("tls", "true")];
    assert_eq!(sum(&samples, "heddle_connections_total", &inbound), 2.0);
    assert_eq!(sum(&samples, "heddle_connections_open", &inbound), 1.0);
    drop(held);
    assert_eq!(sum(&scrape(&metrics), "heddle_connections_open", &inbound), 0.0);
}

#[test]
fn an_unknown_method_is_other_and_errors_say_their_type() {
    let metrics = Metrics::new(1);
    let series = metrics.worker(0).http(Direction::Inbound, LABELS);
    let brew = Method::from_bytes(b"BREW").unwrap();
    series.record(&brew, Some(StatusCode::IM_A_TEAPOT), None, Duration::ZERO);
    series.record(&Method::GET, Some(StatusCode::BAD_GATEWAY), None, Duration::ZERO);
    series.record(&Method::PUT, None, Some(Reason::UpstreamReset), Duration::ZERO);
    series.record(&Method::PUT, Some(StatusCode::FORBIDDEN), Some(Reason::AccessDenied), Duration::ZERO);
    let samples = scrape(&metrics);
    let mut outcomes: Vec<_> = samples["http_server_request_duration_seconds_count"]
        .iter()
        .map(|(labels, _)| {
            let of = |name: &str| labels.get(name).map_or("", String::as_str);
            format!("{} {} {}", of("http_request_method"), of("http_response_status_code"), of("error_type"))
        })
        .collect();
    outcomes.sort();
    assert_eq!(outcomes, ["GET 502 502", "PUT  UpstreamReset", "PUT 403 AccessDenied", "_OTHER 418 "]);
}

#[test]
fn values_of_labels_are_escaped_and_cut() {
    let metrics = Metrics::new(1);
    let odd = "a\"b\\c\nd%2Fé\u{7}=,}";
    let long = "é".repeat(MAX_LABEL);
    let series =
        metrics.worker(0).http(Direction::Outbound, HttpLabels { service: odd, route: &long, ..LABELS });
    series.record(&Method::GET, Some(StatusCode::OK), None, Duration::ZERO);
    let samples = scrape(&metrics);
    let (labels, _) = &samples["http_client_request_duration_seconds_count"][0];
    assert_eq!(labels["heddle_service"], odd);
    assert_eq!(labels["heddle_route"], "é".repeat(MAX_LABEL / 2));
}

proptest::proptest! {
    #[test]
    fn whatever_a_label_holds_a_scraper_reads_it_back(service in ".{0,40}", route in "[\\PC\\n\\r\"\\\\]{0,40}") {
        let metrics = Metrics::new(1);
        let labels = HttpLabels { service: &service, route: &route, ..LABELS };
        let series = metrics.worker(0).http(Direction::Outbound, labels);
        series.record(&Method::GET, Some(StatusCode::OK), None, Duration::ZERO);
        let samples = scrape(&metrics);
        let (read, _) = &samples["http_client_request_duration_seconds_count"][0];
        proptest::prop_assert_eq!(&read["heddle_service"], &service);
        proptest::prop_assert_eq!(&read["heddle_route"], &route);
    }
}

#[test]
fn a_handle_is_the_same_for_the_same_labels() {
    let worker = Metrics::new(1).worker(0);
    let one = worker.http(Direction::Outbound, LABELS);
    assert!(Arc::ptr_eq(&one, &worker.http(Direction::Outbound, LABELS)));
    assert!(!Arc::ptr_eq(&one, &worker.http(Direction::Inbound, LABELS)));
    assert!(!Arc::ptr_eq(&one, &worker.http(Direction::Outbound, HttpLabels { mtls: false, ..LABELS })));
}

#[test]
fn too_many_handles_go_to_other_and_are_counted() {
    let metrics = Metrics::new(1);
    let worker = metrics.worker(0);
    let kept: Vec<_> = (0..MAX_HANDLES + 50)
        .map(|n| worker.http(Direction::Outbound, HttpLabels { route: &format!("r{n}"), ..LABELS }))
        .collect();
    for series in &kept {
        series.record(&Method::GET, Some(StatusCode::OK), None, Duration::ZERO);
    }
    let samples = scrape(&metrics);
    let counts = &samples["http_client_request_duration_seconds_count"];
    assert_eq!(counts.len(), MAX_HANDLES + 1);
    assert_eq!(sum(&samples, "http_client_request_duration_seconds_count", &[("heddle_route", OTHER)]), 50.0);
    assert_eq!(sum(&samples, "heddle_metric_series_overflow_total", &[]), 50.0);

    // Once the callers let go, there is room again.
    drop(kept);
    let fresh = worker.http(Direction::Outbound, HttpLabels { route: "fresh", ..LABELS });
    fresh.record(&Method::GET, Some(StatusCode::OK), None, Duration::ZERO);
    let samples = scrape(&metrics);
    assert_eq!(
        sum(&samples, "http_client_request_duration_seconds_count", &[("heddle_route", "fresh")]),
        1.0
    );
    assert_eq!(sum(&samples, "heddle_metric_series_overflow_total", &[]), 50.0);
}

#[test]
fn an_application_that_answers_every_status_cannot_fill_the_room() {
    let metrics = Metrics::new(1);
    let worker = metrics.worker(0);
    let series: Vec<_> = (0..100)
        .map(|n| worker.http(Direction::Inbound, HttpLabels { route: &format!("r{n}"), ..LABELS }))
        .collect();
    for status in 100..1_000 {
        for series in &series {
            series.record(&Method::GET, StatusCode::from_u16(status).ok(), None, Duration::ZERO);
        }
    }
    let samples = scrape(&metrics);
    let counts = &samples["http_server_request_duration_seconds_count"];
    assert!(counts.len() <= MAX_HISTOGRAMS + 40, "{}", counts.len());
    let total: f64 = counts.iter().map(|(_, count)| count).sum();
    assert_eq!(total, 90_000.0, "nothing is lost");
}

#[test]
fn backends_beyond_the_limit_share_other_and_none_is_forgotten() {
    let metrics = Metrics::new(1);
    let worker = metrics.worker(0);
    for n in 0..MAX_HANDLES + 3 {
        worker.backend(&format!("shop/b{n}:80")).ejection();
    }
    let samples = scrape(&metrics);
    assert_eq!(sum(&samples, "heddle_ejections_total", &[("backend", OTHER)]), 3.0);
    assert_eq!(sum(&samples, "heddle_ejections_total", &[]), MAX_HANDLES as f64 + 3.0);
}

#[test]
fn discovery_and_the_certificate_show() {
    let metrics = Metrics::new(1);
    let before = scrape(&metrics);
    assert!(!before.contains_key("heddle_certificate_expiry_timestamp_seconds"));
    assert_eq!(before["heddle_discovery_connected"][0].1, 0.0);
    let observed = Observed {
        discovery: Status {
            connected: true,
            names: 7,
            backends: 2,
            updates: 3,
            refused_updates: 1,
            ..Status::default()
        },
        inbound: true,
        certificate_expiry: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
        access_log_dropped: 4,
        ..Observed::default()
    };
    let samples = parse(&metrics.encode(&observed));
    for (name, labels, value) in [
        ("heddle_discovery_connected", &[][..], 1.0),
        ("heddle_discovery_updates_total", &[], 3.0),
        ("heddle_discovery_nacks_total", &[], 1.0),
        ("heddle_config_resources", &[("type", "destination")], 7.0),
        ("heddle_config_resources", &[("type", "endpoints")], 2.0),
        ("heddle_config_resources", &[("type", "inbound")], 1.0),
        ("heddle_certificate_expiry_timestamp_seconds", &[], 1_800_000_000.0),
        ("heddle_log_lines_dropped_total", &[("log", "access")], 4.0),
        ("heddle_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0),
    ] {
        assert_eq!(sum(&samples, name, labels), value, "{name}");
    }
    assert!(sum(&samples, "process_resident_memory_bytes", &[]) > 0.0);
}
