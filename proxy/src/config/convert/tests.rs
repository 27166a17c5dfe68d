//! Messages in, config or a named field out.

mod endpoints;
mod inbound;

use std::{sync::Arc, time::Duration};

use http::StatusCode;

use super::*;
use crate::{
    balance::Outcome,
    config::{
        Algorithm, BackendState, Destination, EndpointSet, Filter, PathMatch, PathModifier, Policy,
        RetryPolicy, TextMatch,
        inbound::{AccessLog, MtlsMode},
    },
};

fn backend(key: &str) -> v1::Backend {
    v1::Backend { key: key.into(), ..Default::default() }
}

fn share(backend: &str, weight: u32) -> v1::WeightedBackend {
    v1::WeightedBackend { backend: backend.into(), weight, filters: vec![] }
}

fn header(name: &str, value: &str) -> v1::Header {
    v1::Header { name: name.into(), value: value.into() }
}

fn filter(kind: v1::http_filter::Kind) -> v1::HttpFilter {
    v1::HttpFilter { kind: Some(kind) }
}

fn path(kind: v1::path_match::Kind) -> Option<v1::PathMatch> {
    Some(v1::PathMatch { kind: Some(kind) })
}

fn modifier(kind: v1::path_modifier::Kind) -> Option<v1::PathModifier> {
    Some(v1::PathModifier { kind: Some(kind) })
}

/// One route to one rule with one backend.
fn message() -> v1::Destination {
    v1::Destination {
        service: "shop/reviews:9080".into(),
        http_routes: vec![v1::HttpRoute { name: "shop/split".into(), ..Default::default() }],
        http_rules: vec![v1::HttpRule { backends: vec![share("shop/v1:80", 1)], ..Default::default() }],
        backends: vec![backend("shop/v1:80")],
        default_backend: "shop/v1:80".into(),
        ..Default::default()
    }
}

/// With one thing changed.
fn changed(change: impl FnOnce(&mut v1::Destination)) -> v1::Destination {
    let mut message = message();
    change(&mut message);
    message
}

fn convert(message: &v1::Destination) -> Result<Destination, ConvertError> {
    destination(message, &mut |_| Arc::default())
}

fn with_filter(kind: v1::http_filter::Kind) -> v1::Destination {
    changed(|m| m.http_rules[0].filters = vec![filter(kind)])
}

fn with_path(kind: v1::path_match::Kind) -> v1::Destination {
    changed(|m| m.http_routes[0].path = path(kind))
}

fn converted_policy(policy: v1::TrafficPolicy) -> Policy {
    let converted = convert(&changed(|m| m.backends[0].policy = Some(policy))).unwrap();
    converted.default.unwrap().policy.clone()
}

fn converted_retry(retry: v1::RetryPolicy) -> RetryPolicy {
    converted_policy(v1::TrafficPolicy { retry: Some(retry), ..Default::default() }).retry
}

/// Both the field and what is said of it.
fn assert_refused(message: &v1::Destination, field: &str, problem: &str) {
    let error = convert(message).expect_err(field);
    assert_eq!(error.field, field, "{error}");
    assert!(error.problem.contains(problem), "{error}");
}

#[test]
fn what_is_absent_has_its_default() {
    let converted = convert(&message()).unwrap();
    assert_eq!(&*converted.service, "shop/reviews:9080");
    assert_eq!(converted.protocol, AppProtocol::Detect);
    let route = &converted.routes[0];
    assert!(matches!(route.path, PathMatch::Any) && route.method.is_none());
    assert!(converted.tcp.is_none());
    let backend = converted.default.unwrap();
    assert_eq!(backend.policy, Policy::default());
    assert_eq!(converted_policy(v1::TrafficPolicy::default()), Policy::default());
    let empty = v1::OutlierEjection::default();
    let policy = v1::TrafficPolicy { outlier_ejection: Some(empty), ..Default::default() };
    assert_eq!(converted_policy(policy), Policy::default());
}

#[test]
fn a_backend_keeps_the_state_of_its_key_and_shares_it_with_every_route() {
    let state = Arc::new(BackendState::default());
    let mut asked = Vec::new();
    let converted = destination(&message(), &mut |key| {
        asked.push(key.to_owned());
        Arc::clone(&state)
    })
    .unwrap();
    assert_eq!(asked, ["shop/v1:80"]);
    let picked = converted.rules[0].split.pick().unwrap().backend.as_ref().unwrap();
    assert!(Arc::ptr_eq(&picked.state, &state));
    assert!(Arc::ptr_eq(picked, converted.default.as_ref().unwrap()));
}

#[test]
fn a_share_without_backend_stays_a_share() {
    let converted = convert(&changed(|m| m.http_rules[0].backends = vec![share("shop/gone:80", 3)])).unwrap();
    let split = &converted.rules[0].split;
    assert_eq!((split.total, &*split.entries[0].name), (3, "shop/gone:80"));
    assert!(split.entries[0].backend.is_none());
}

#[test]
fn a_policy_is_taken_over() {
    let policy = converted_policy(v1::TrafficPolicy {
        algorithm: v1::Algorithm::RoundRobin.into(),
        outlier_ejection: Some(v1::OutlierEjection {
            consecutive_failures: 3,
            base_ejection_ms: 1_000,
            max_ejected_percent: 20,
            interval_ms: 500,
        }),
        retry: None,
        request_timeout_ms: Some(2_000),
        connect_timeout_ms: 100,
        idle_timeout_ms: 60_000,
    });
    assert_eq!(policy.algorithm, Algorithm::RoundRobin);
    assert_eq!((policy.ejection.consecutive_failures, policy.ejection.max_percent), (3, 20));
    assert_eq!((policy.ejection.base, policy.ejection.interval.as_millis()), (Duration::from_secs(1), 500));
    assert_eq!(policy.request_timeout, Some(Duration::from_secs(2)));
    assert_eq!(policy.connect_timeout, Duration::from_millis(100));
    assert_eq!(policy.idle_timeout, Duration::from_secs(60));
    let zero = v1::TrafficPolicy { request_timeout_ms: Some(0), ..Default::default() };
    assert_eq!(converted_policy(zero).request_timeout, None);
}

#[test]
fn retries_hold_on_what_is_named_and_by_default_where_nothing_is() {
    let status = |code| StatusCode::from_u16(code).unwrap();
    let none_named = converted_retry(v1::RetryPolicy { attempts: 7, ..Default::default() });
    assert_eq!(none_named, RetryPolicy { attempts: 7, ..RetryPolicy::default() });

    let named = converted_retry(v1::RetryPolicy {
        attempts: 1,
        on: vec![v1::RetryOn::Reset.into(), v1::RetryOn::TooManyRequests.into()],
        statuses: vec![409],
        any_method: true,
        per_try_timeout_ms: Some(300),
        budget_percent: Some(0),
        budget_min_per_second: Some(0),
        backoff_base_ms: 400,
        ..Default::default()
    });
    assert!(named.on_reset && !named.on_connect_failure && named.any_method);
    assert!(named.on_status.contains(status(429)) && named.on_status.contains(status(409)));
    assert!(!named.on_status.contains(status(503)));
    assert_eq!(named.per_try_timeout, Some(Duration::from_millis(300)));
    assert_eq!((named.budget_percent, named.budget_min_per_second), (0, 0));
    assert_eq!(
        (named.backoff_base, named.backoff_max),
        (Duration::from_millis(400), Duration::from_millis(400))
    );

    let on = |on: v1::RetryOn| converted_retry(v1::RetryPolicy { on: vec![on.into()], ..Default::default() });
    assert!(on(v1::RetryOn::ConnectFailure).on_connect_failure);
    assert!(on(v1::RetryOn::RetryOn5xx).on_status.contains(status(500)));
    assert!(!on(v1::RetryOn::GatewayError).on_status.contains(status(500)));
    assert!(on(v1::RetryOn::GatewayError).on_status.contains(status(504)));
}

#[test]
fn a_routes_timeout_of_zero_switches_the_policys_off() {
    let converted = convert(&changed(|m| {
        m.http_rules[0].request_timeout_ms = Some(0);
        m.http_rules[0].backend_timeout_ms = Some(u64::MAX);
    }))
    .unwrap();
    let rule = &converted.rules[0];
    for timeout in [rule.request_timeout.unwrap(), rule.backend_timeout.unwrap()] {
        assert!(timeout >= Duration::from_secs(300 * 86_400));
        assert!(std::time::Instant::now().checked_add(timeout).is_some());
    }
    assert_eq!(convert(&message()).unwrap().rules[0].request_timeout, None);
}

#[test]
fn paths_are_stored_as_they_are_compared() {
    use v1::path_match::Kind;
    let stored = |kind| convert(&with_path(kind)).unwrap().routes.remove(0).path;
    for (given, expected) in [("/", ""), ("/a", "/a"), ("/a/", "/a"), ("/a/b/", "/a/b")] {
        assert!(
            matches!(stored(Kind::Prefix(given.into())), PathMatch::Prefix(prefix) if prefix == expected)
        );
    }
    assert!(matches!(stored(Kind::Exact("/a/".into())), PathMatch::Exact(exact) if exact == "/a/"));
}

#[test]
fn expressions_are_anchored_at_both_ends() {
    use v1::path_match::Kind;
    let matched = |pattern: &str, path: &str| {
        convert(&with_path(Kind::Regex(pattern.into()))).unwrap().routes[0].path.matches(path)
    };
    assert!(matched("/a|/b", "/a") && matched("/a|/b", "/b") && matched("/(a|ab)", "/ab"));
    assert!(!matched("/a|/b", "/ax") && !matched("/a|/b", "x/b") && !matched("/a", "/a\n"));
    assert!(!matched("(?m)^/a$", "/b\n/a"));
    let value =
        v1::ValueMatch { name: "X-User".into(), kind: Some(v1::value_match::Kind::Regex("a+".into())) };
    let converted = convert(&changed(|m| m.http_routes[0].headers = vec![value])).unwrap();
    let (name, TextMatch::Regex(regex)) = &converted.routes[0].headers[0] else { panic!("a regex") };
    assert_eq!(name, "x-user");
    assert!(regex.is_match("aa") && !regex.is_match("aab"));
}

#[test]
fn filters_are_taken_over() {
    use v1::http_filter::Kind;
    let taken = |kind| convert(&with_filter(kind)).unwrap().rules.remove(0).filters.remove(0);
    let headers = v1::HeaderModifier {
        set: vec![header("Host", "a.example:80"), header("X-A", "1")],
        add: vec![header("X-B", "2")],
        remove: vec!["X-C".into()],
    };
    let Filter::RequestHeaders(headers) = taken(Kind::RequestHeaders(headers)) else { panic!("headers") };
    assert_eq!((headers.set.len(), headers.add[0].0.as_str(), headers.remove[0].as_str()), (2, "x-b", "x-c"));

    let Filter::Redirect(redirect) = taken(Kind::Redirect(v1::Redirect::default())) else {
        panic!("a redirect")
    };
    assert_eq!(redirect.status, StatusCode::FOUND);
    assert!(redirect.scheme.is_none() && redirect.hostname.is_none() && redirect.port.is_none());

    for (given, expected) in [("", ""), ("/", ""), ("/x/", "/x"), ("x", "/x")] {
        let path = modifier(v1::path_modifier::Kind::Prefix(given.into()));
        let Filter::Rewrite(rewrite) = taken(Kind::Rewrite(v1::UrlRewrite { path, ..Default::default() }))
        else {
            panic!("a rewrite")
        };
        assert!(matches!(rewrite.path, Some(PathModifier::Prefix(prefix)) if prefix == expected), "{given}");
    }
    let mirror = |backend: &str, numerator, denominator| match taken(Kind::Mirror(v1::Mirror {
        backend: backend.into(),
        numerator,
        denominator,
    })) {
        Filter::Mirror(mirror) => (mirror.backend.is_some(), mirror.numerator, mirror.denominator),
        _ => panic!("a mirror"),
    };
    assert_eq!(mirror("shop/v1:80", 0, 0), (true, 1, 1));
    assert_eq!(mirror("shop/gone:80", 1, 4), (false, 1, 4));
}

#[test]
fn routes_that_make_no_sense_are_refused_by_field() {
    use v1::path_match::Kind;
    let route = "http_routes[0]";
    let at = |field: &str| format!("{route}.{field}");
    assert_refused(&changed(|m| m.http_routes[0].rule = 1), &at("rule"), "no index into 1");
    assert_refused(
        &changed(|m| m.http_routes[0].path = Some(v1::PathMatch::default())),
        &at("path"),
        "does not know",
    );
    assert_refused(&with_path(Kind::Exact("a".into())), &at("path.exact"), "begin with /");
    assert_refused(&with_path(Kind::Prefix(String::new())), &at("path.prefix"), "begin with /");
    assert_refused(&with_path(Kind::Regex("(".into())), &at("path.regex"), "unclosed group");
    assert_refused(&with_path(Kind::Regex("a)|(b".into())), &at("path.regex"), "unopened group");
    assert_refused(&with_path(Kind::Regex("[a-z]{1000}{1000}".into())), &at("path.regex"), "size limit");
    assert_refused(&changed(|m| m.http_routes[0].method = "G T".into()), &at("method"), "not an HTTP method");
    let value = |name: &str, kind| v1::ValueMatch { name: name.into(), kind };
    let exact = || Some(v1::value_match::Kind::Exact("x".into()));
    let headers = |v| changed(|m| m.http_routes[0].headers = vec![v]);
    assert_refused(&headers(value("a b", exact())), &at("headers[0].name"), "not a header's name");
    assert_refused(&headers(value("a", None)), &at("headers[0].kind"), "does not know");
    let query = |v| changed(|m| m.http_routes[0].query = vec![v]);
    assert_refused(&query(value("", exact())), &at("query[0].name"), "is empty");
    let exact_path_with_prefix = changed(|m| {
        m.http_routes[0].path = path(Kind::Exact("/a".into()));
        let path = modifier(v1::path_modifier::Kind::Prefix("/b".into()));
        let rewrite = v1::UrlRewrite { path, ..Default::default() };
        m.http_rules[0].backends[0].filters = vec![filter(v1::http_filter::Kind::Rewrite(rewrite))];
    });
    assert_refused(&exact_path_with_prefix, &at("path"), "must be a prefix");
}

#[test]
fn filters_that_make_no_sense_are_refused_by_field() {
    use v1::http_filter::Kind;
    let at = |field: &str| format!("http_rules[0].filters[0].{field}");
    assert_refused(
        &changed(|m| m.http_rules[0].filters = vec![v1::HttpFilter::default()]),
        &at("kind"),
        "not know",
    );
    let set = |name: &str, value: &str| {
        with_filter(Kind::RequestHeaders(v1::HeaderModifier {
            set: vec![header(name, value)],
            ..Default::default()
        }))
    };
    assert_refused(&set("a:", "x"), &at("request_headers.set[0].name"), "not a header's name");
    assert_refused(&set("a", "x\r\ny: z"), &at("request_headers.set[0].value"), "not a header's value");
    assert_refused(&set("host", "a b"), &at("request_headers.set[0].value"), "not a host");
    for name in ["Content-Length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"] {
        assert_refused(&set(name, "1"), &at("request_headers.set[0].name"), "cannot be changed");
    }
    let add = v1::HeaderModifier { add: vec![header("host", "a")], ..Default::default() };
    assert_refused(
        &with_filter(Kind::RequestHeaders(add)),
        &at("request_headers.add[0].name"),
        "cannot be changed",
    );
    let remove = v1::HeaderModifier { remove: vec!["content-length".into()], ..Default::default() };
    assert_refused(
        &with_filter(Kind::ResponseHeaders(remove)),
        &at("response_headers.remove[0]"),
        "cannot be",
    );

    let redirect = |redirect| with_filter(Kind::Redirect(redirect));
    let empty = v1::Redirect::default;
    assert_refused(
        &redirect(v1::Redirect { scheme: "ftp".into(), ..empty() }),
        &at("redirect.scheme"),
        "neither",
    );
    assert_refused(&redirect(v1::Redirect { status: 200, ..empty() }), &at("redirect.status"), "200 is not");
    assert_refused(&redirect(v1::Redirect { port: 70_000, ..empty() }), &at("redirect.port"), "not a port");
    assert_refused(
        &redirect(v1::Redirect { hostname: "u@h".into(), ..empty() }),
        &at("redirect.hostname"),
        "a host",
    );
    let unknown = Some(v1::PathModifier::default());
    assert_refused(
        &redirect(v1::Redirect { path: unknown, ..empty() }),
        &at("redirect.path"),
        "does not know",
    );
    for bad in ["/a?b", "/a#b", "/a b"] {
        let path = modifier(v1::path_modifier::Kind::Full(bad.into()));
        let rewrite = with_filter(Kind::Rewrite(v1::UrlRewrite { path, ..Default::default() }));
        assert_refused(&rewrite, &at("rewrite.path.full"), "not a path");
    }
    let mirror = v1::Mirror { backend: "shop/v1:80".into(), numerator: 2, denominator: 1 };
    assert_refused(&with_filter(Kind::Mirror(mirror)), &at("mirror.numerator"), "more than all");
}

#[test]
fn destinations_that_make_no_sense_are_refused_by_field() {
    assert_refused(&changed(|m| m.service.clear()), "service", "is empty");
    assert_refused(&changed(|m| m.default_backend = "x".into()), "default_backend", "not among");
    assert_refused(&changed(|m| m.backends.push(backend("shop/v1:80"))), "backends[1].key", "comes twice");
    assert_refused(&changed(|m| m.backends.push(backend(""))), "backends[1].key", "is empty");
    let policy = |policy| changed(|m| m.backends[0].policy = Some(policy));
    let ejection = Some(v1::OutlierEjection { max_ejected_percent: 101, ..Default::default() });
    let over = v1::TrafficPolicy { outlier_ejection: ejection, ..Default::default() };
    assert_refused(&policy(over), "backends[0].policy.outlier_ejection.max_ejected_percent", "more than 100");
    let retry = |retry| changed(|m| m.http_rules[0].retry = Some(retry));
    let at = |field: &str| format!("http_rules[0].retry.{field}");
    assert_refused(
        &retry(v1::RetryPolicy { statuses: vec![200], ..Default::default() }),
        &at("statuses[0]"),
        "400",
    );
    let pauses = v1::RetryPolicy { backoff_base_ms: 2, backoff_max_ms: 1, ..Default::default() };
    assert_refused(&retry(pauses), &at("backoff_max_ms"), "less than");
}
