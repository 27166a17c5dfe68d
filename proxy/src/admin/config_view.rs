//! The live config as JSON, for `/config`.
//!
//! Every config type is taken apart field by field, so that a new field does not compile before it is shown here. Of
//! the certificate there are facts; a key is nowhere near.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use heddle_api::identity::SpiffeId;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

use super::Admin;
use super::live::{CertificateFacts, Live};
use crate::config::inbound::{Inbound, InboundPort};
use crate::config::policy::StatusSet;
use crate::config::{
    Algorithm, AppProtocol, Backend, Destination, Ejection, Endpoint, Filter, HeaderModifier, Mirror,
    PathMatch, PathModifier, Policy, Redirect, RetryPolicy, Rewrite, Route, Rule, Split, SplitEntry,
    TextMatch,
};
use crate::store::{Lookup, Status};

/// The backends of all that is held, each key once.
pub(super) fn backends(live: &dyn Live) -> Vec<Arc<Backend>> {
    let mut found: BTreeMap<Arc<str>, Arc<Backend>> = BTreeMap::new();
    for (_, lookup) in live.names() {
        let Lookup::Mesh(destination) = lookup else { continue };
        each_backend(&destination, &mut |backend| {
            found.entry(Arc::clone(&backend.key)).or_insert_with(|| Arc::clone(backend));
        });
    }
    found.into_values().collect()
}

fn each_backend(destination: &Destination, visit: &mut impl FnMut(&Arc<Backend>)) {
    let splits = destination.rules.iter().map(|rule| &rule.split).chain(&destination.tcp);
    splits.flat_map(|split| &split.entries).filter_map(|entry| entry.backend.as_ref()).for_each(&mut *visit);
    let shares = destination.rules.iter().flat_map(|rule| &rule.split.entries);
    let filters =
        destination.rules.iter().map(|rule| &rule.filters).chain(shares.map(|entry| &entry.filters));
    for filter in filters.flatten() {
        if let Filter::Mirror(Mirror { backend: Some(backend), .. }) = filter {
            visit(backend);
        }
    }
    destination.default.iter().for_each(visit);
}

/// The page.
pub(super) fn text(admin: &Admin) -> String {
    let mut text = format!("{:#}", view(admin));
    text.push('\n');
    text
}

fn view(admin: &Admin) -> Value {
    let live = &*admin.live;
    let (mut destinations, mut not_in_mesh) = (BTreeMap::new(), BTreeSet::new());
    for (name, lookup) in live.names() {
        match lookup {
            Lookup::Mesh(found) => {
                destinations.insert(name, destination(&found));
            }
            Lookup::NotInMesh => {
                not_in_mesh.insert(name);
            }
        }
    }
    let backends: Map<_, _> =
        backends(live).iter().map(|backend| (backend.key.to_string(), self::backend(backend))).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pod": admin.pod.to_string(),
        "not_ready": admin.missing().map(|missing| missing.lines().map(str::to_owned).collect::<Vec<_>>()),
        "discovery": discovery(&live.discovery()),
        "certificate": live.certificate().map(|facts| certificate(&facts)),
        "certificate_problem": live.certificate_problem(),
        "inbound": live.inbound().map(|own| inbound(&own)),
        "destinations": destinations,
        "not_in_mesh": not_in_mesh,
        "backends": backends,
    })
}

fn discovery(status: &Status) -> Value {
    let mut view = json!(status);
    view["since"] = json!(status.since.map(moment));
    view
}

fn certificate(facts: &CertificateFacts) -> Value {
    let CertificateFacts { identity, not_after, roots } = facts;
    let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
    json!({
        "identity": identity.as_str(),
        "expires": moment(*not_after),
        "seconds_left": left.as_secs(),
        "trusted_roots": roots,
    })
}

fn moment(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn inbound(inbound: &Inbound) -> Value {
    let Inbound { identity, ports, other, terminating, access_log, opaque_ports, place } = inbound;
    let ports: BTreeMap<_, _> =
        ports.iter().map(|(number, port)| (number.to_string(), inbound_port(port))).collect();
    json!({
        "identity": identity.as_str(),
        "ports": ports,
        "other_ports": inbound_port(other),
        "terminating": terminating,
        "access_log": access_log,
        "opaque_ports": opaque_ports,
        "zone": place.zone,
        "node": place.node,
    })
}

fn inbound_port(port: &InboundPort) -> Value {
    let InboundPort { protocol, mtls, access, authorities } = port;
    json!({
        "protocol": self::protocol(*protocol),
        "mtls": mtls,
        "access": access.policies().map(|(name, action)| json!({"name": name, "action": action})).collect::<Vec<_>>(),
        "authorities": authorities.iter().collect::<BTreeSet<_>>(),
    })
}

fn destination(destination: &Destination) -> Value {
    let Destination { service, protocol, routes, rules, tcp, default } = destination;
    json!({
        "service": &**service,
        "protocol": self::protocol(*protocol),
        "routes": routes.iter().map(route).collect::<Vec<_>>(),
        "rules": rules.iter().map(rule).collect::<Vec<_>>(),
        "tcp": tcp.as_ref().map(split),
        "default": default.as_ref().map(|backend| &*backend.key),
    })
}

fn route(route: &Route) -> Value {
    let Route { name, rule, path, method, headers, query } = route;
    let path = match path {
        PathMatch::Any => Value::Null,
        PathMatch::Exact(path) => json!({"exact": path}),
        PathMatch::Prefix(path) if path.is_empty() => json!({"prefix": "/"}),
        PathMatch::Prefix(path) => json!({"prefix": path}),
        PathMatch::Regex(regex) => json!({"regex": regex.as_str()}),
    };
    json!({
        "name": &**name,
        "rule": rule,
        "path": path,
        "method": method.as_ref().map(http::Method::as_str),
        "headers": headers.iter().map(|(name, text)| text_match(name.as_str(), text)).collect::<Vec<_>>(),
        "query": query.iter().map(|(name, text)| text_match(name, text)).collect::<Vec<_>>(),
    })
}

fn text_match(name: &str, text: &TextMatch) -> Value {
    match text {
        TextMatch::Exact(text) => json!({"name": name, "exact": text}),
        TextMatch::Regex(regex) => json!({"name": name, "regex": regex.as_str()}),
    }
}

fn rule(rule: &Rule) -> Value {
    let Rule { name, filters, split, request_timeout, backend_timeout, retry } = rule;
    json!({
        "name": name,
        "filters": filters.iter().map(filter).collect::<Vec<_>>(),
        "backends": self::split(split),
        "request_timeout_ms": request_timeout.map(milliseconds),
        "backend_timeout_ms": backend_timeout.map(milliseconds),
        "retry": retry.as_ref().map(self::retry),
    })
}

fn split(split: &Split) -> Value {
    // The total is the sum of what is shown.
    let Split { entries, total: _ } = split;
    entries
        .iter()
        .map(|SplitEntry { weight, backend, name, filters }| {
            json!({
                "name": &**name,
                "weight": weight,
                "exists": backend.is_some(),
                "filters": filters.iter().map(filter).collect::<Vec<_>>(),
            })
        })
        .collect()
}

fn filter(filter: &Filter) -> Value {
    match filter {
        Filter::RequestHeaders(change) => json!({"request_headers": modifier(change)}),
        Filter::ResponseHeaders(change) => json!({"response_headers": modifier(change)}),
        Filter::Redirect(Redirect { scheme, hostname, port, path, status }) => json!({"redirect": {
            "scheme": scheme,
            "hostname": hostname,
            "port": port,
            "path": path.as_ref().map(path_modifier),
            "status": status.as_u16(),
        }}),
        Filter::Rewrite(Rewrite { hostname, path }) => json!({"rewrite": {
            "hostname": hostname.as_ref().map(header_value),
            "path": path.as_ref().map(path_modifier),
        }}),
        Filter::Mirror(Mirror { backend, numerator, denominator }) => json!({"mirror": {
            "backend": backend.as_ref().map(|backend| &*backend.key),
            "numerator": numerator,
            "denominator": denominator,
        }}),
    }
}

fn modifier(change: &HeaderModifier) -> Value {
    let HeaderModifier { set, add, remove } = change;
    let headers = |list: &[(HeaderName, HeaderValue)]| -> Value {
        list.iter().map(|(name, value)| json!([name.as_str(), header_value(value)])).collect()
    };
    let remove: Vec<_> = remove.iter().map(HeaderName::as_str).collect();
    json!({"set": headers(set), "add": headers(add), "remove": remove})
}

fn header_value(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn path_modifier(path: &PathModifier) -> Value {
    match path {
        PathModifier::Full(path) => json!({"full": path}),
        PathModifier::Prefix(path) => json!({"prefix": path}),
    }
}

fn backend(backend: &Backend) -> Value {
    // The key is the name under which this is shown.
    let Backend { key: _, protocol, policy, state } = backend;
    json!({
        "protocol": self::protocol(*protocol),
        "policy": self::policy(policy),
        "endpoints": state.endpoints.load().all.iter().map(|e| endpoint(e)).collect::<Vec<_>>(),
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let Endpoint { address, identity, must_be_meshed, draining, weight, zone, pod, hints, stats } = endpoint;
    json!({
        "address": address,
        "pod": &**pod,
        "identity": identity.as_ref().map(SpiffeId::as_str),
        "must_be_meshed": must_be_meshed,
        "draining": draining,
        "weight": weight,
        "zone": &**zone,
        "hints": hints,
        "ejected": stats.is_ejected(),
        "consecutive_failures": stats.consecutive_failures(),
        "in_flight": stats.in_flight(),
        "latency_ms": stats.latency().map(|latency| latency.as_micros() as f64 / 1e3),
    })
}

fn policy(policy: &Policy) -> Value {
    let Policy { algorithm, ejection, retry, request_timeout, connect_timeout, idle_timeout } = policy;
    let Ejection { consecutive_failures, base, max_percent, interval } = ejection;
    json!({
        "algorithm": match algorithm {
            Algorithm::PeakEwma => "PeakEwma",
            Algorithm::LeastRequest => "LeastRequest",
            Algorithm::RoundRobin => "RoundRobin",
            Algorithm::Random => "Random",
        },
        "ejection": {
            "consecutive_failures": consecutive_failures,
            "base_ms": milliseconds(*base),
            "max_percent": max_percent,
            "interval_ms": milliseconds(*interval),
        },
        "retry": self::retry(retry),
        "request_timeout_ms": request_timeout.map(milliseconds),
        "connect_timeout_ms": milliseconds(*connect_timeout),
        "idle_timeout_ms": milliseconds(*idle_timeout),
    })
}

fn retry(retry: &RetryPolicy) -> Value {
    let RetryPolicy {
        attempts,
        on_connect_failure,
        on_reset,
        on_status,
        any_method,
        per_try_timeout,
        backoff_base,
        backoff_max,
        budget_percent,
        budget_min_per_second,
    } = retry;
    json!({
        "attempts": attempts,
        "on_connect_failure": on_connect_failure,
        "on_reset": on_reset,
        "on_status": statuses(*on_status),
        "any_method": any_method,
        "per_try_timeout_ms": per_try_timeout.map(milliseconds),
        "backoff_base_ms": milliseconds(*backoff_base),
        "backoff_max_ms": milliseconds(*backoff_max),
        "budget_percent": budget_percent,
        "budget_min_per_second": budget_min_per_second,
    })
}

fn statuses(set: StatusSet) -> Vec<u16> {
    (100..1_000).filter(|code| StatusCode::from_u16(*code).is_ok_and(|status| set.contains(status))).collect()
}

fn protocol(protocol: AppProtocol) -> &'static str {
    match protocol {
        AppProtocol::Detect => "Detect",
        AppProtocol::Http => "Http",
        AppProtocol::Http1 => "Http1",
        AppProtocol::Http2 => "Http2",
        AppProtocol::Opaque => "Opaque",
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
