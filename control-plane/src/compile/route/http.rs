//! HTTPRoutes and GRPCRoutes of one Service port, flattened in the order of precedence.

use std::{collections::BTreeMap, sync::Arc};

use heddle_api::{
    resources::Duration,
    v1::{self, path_match, value_match},
};

use super::{Mesh, Needed, precedence::Precedence, seniority};
use crate::{
    compile::policy::{DEFAULT_ATTEMPTS, DEFAULT_CONDITIONS},
    object::{
        Kind,
        route::{Match, MethodMatch, Retry, Route, Rule, TextKind, ValueMatch},
    },
};

/// Routes and the rules that they lead to.
#[derive(Debug, Default)]
pub(in crate::compile) struct Flat {
    pub routes: Vec<v1::HttpRoute>,
    pub rules: Vec<v1::HttpRule>,
}

impl Mesh {
    /// Flattens: one route for each match of each rule.
    pub(in crate::compile) fn flatten(&self, routes: &[Arc<Route>], needed: &mut Needed) -> Flat {
        let mut matches = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            for (r, rule) in route.spec.rules.iter().enumerate() {
                let any = [Match::default()];
                let conditions = if rule.matches.is_empty() { &any[..] } else { &rule.matches };
                let grpc = route.object.kind == Kind::GrpcRoute;
                for (m, condition) in conditions.iter().enumerate() {
                    let key = Precedence::new(condition, grpc, seniority(route), (r, m));
                    // The last two tell apart an HTTPRoute and a GRPCRoute of one name.
                    matches.push(((key, route.object.kind), index, r, flat_match(&route.name(), condition)));
                }
            }
        }
        matches.sort_by(|a, b| a.0.cmp(&b.0));
        let mut flat = Flat::default();
        let mut places = BTreeMap::new();
        for (_, index, r, mut made) in matches {
            let route = &routes[index];
            made.rule = *places.entry((index, r)).or_insert_with(|| {
                flat.rules.push(self.rule_of(route, &route.spec.rules[r], needed));
                // Bounded by the size of the manifests.
                (flat.rules.len() - 1) as u32
            });
            flat.routes.push(made);
        }
        flat
    }

    fn rule_of(&self, route: &Route, rule: &Rule, needed: &mut Needed) -> v1::HttpRule {
        let millis =
            |text: &Option<String>| text.as_deref().and_then(Duration::parse).map(Duration::as_millis);
        v1::HttpRule {
            name: rule.name.clone(),
            filters: rule.filters.iter().filter_map(|filter| self.filter(route, filter, needed)).collect(),
            backends: rule.backend_refs.iter().map(|backend| self.weighted(route, backend, needed)).collect(),
            request_timeout_ms: millis(&rule.timeouts.request),
            backend_timeout_ms: millis(&rule.timeouts.backend_request),
            retry: rule.retry.as_ref().map(retry),
        }
    }
}

fn flat_match(name: &str, condition: &Match) -> v1::HttpRoute {
    let (path, method) = match &condition.method {
        Some(MethodMatch::Grpc { service, method, kind }) => {
            (grpc_path(service, method, *kind), String::new())
        }
        Some(MethodMatch::Http(method)) => (path_of(condition), method.clone()),
        None => (path_of(condition), String::new()),
    };
    v1::HttpRoute {
        name: name.to_owned(),
        rule: 0,
        path: Some(v1::PathMatch { kind: Some(path) }),
        method,
        headers: values(&condition.headers, str::to_ascii_lowercase),
        query: values(&condition.query_params, str::to_owned),
    }
}

fn path_of(condition: &Match) -> path_match::Kind {
    let Some(path) = &condition.path else { return path_match::Kind::Prefix("/".to_owned()) };
    match path.kind.as_str() {
        "Exact" => path_match::Kind::Exact(path.value.clone()),
        "RegularExpression" => path_match::Kind::Regex(path.value.clone()),
        _ => path_match::Kind::Prefix(path.value.clone()),
    }
}

/// gRPC's paths are `/service/method`.
fn grpc_path(service: &str, method: &str, kind: TextKind) -> path_match::Kind {
    let exact = kind == TextKind::Exact;
    let part = |text: &str| match text {
        "" => "[^/]+".to_owned(),
        text if exact => regex::escape(text),
        text => format!("(?:{text})"),
    };
    match (exact, service, method) {
        (_, "", "") => path_match::Kind::Prefix("/".to_owned()),
        (true, service, "") => path_match::Kind::Prefix(format!("/{service}")),
        (true, service, method) if !service.is_empty() => {
            path_match::Kind::Exact(format!("/{service}/{method}"))
        }
        _ => path_match::Kind::Regex(format!("/{}/{}", part(service), part(method))),
    }
}

/// Of conditions on one name only the first counts (HTTPRoute specification).
fn values(conditions: &[ValueMatch], name: impl Fn(&str) -> String) -> Vec<v1::ValueMatch> {
    let mut made: Vec<v1::ValueMatch> = Vec::new();
    for condition in conditions {
        let name = name(&condition.name);
        if made.iter().any(|other| other.name == name) {
            continue;
        }
        let kind = match condition.kind {
            TextKind::Exact => value_match::Kind::Exact(condition.value.clone()),
            TextKind::RegularExpression => value_match::Kind::Regex(condition.value.clone()),
        };
        made.push(v1::ValueMatch { name, kind: Some(kind) });
    }
    made
}

/// A route's retry (GEP-1731): connections that fail count too, and codes that are named hold for every method.
fn retry(retry: &Retry) -> v1::RetryPolicy {
    let mut statuses: Vec<u32> = retry.codes.iter().filter_map(|code| u32::try_from(*code).ok()).collect();
    statuses.sort_unstable();
    statuses.dedup();
    let on: &[v1::RetryOn] = if statuses.is_empty() {
        &DEFAULT_CONDITIONS
    } else {
        &[v1::RetryOn::ConnectFailure, v1::RetryOn::Reset]
    };
    let base = retry.backoff.as_deref().and_then(Duration::parse).map_or(0, Duration::as_millis);
    v1::RetryPolicy {
        attempts: retry.attempts.and_then(|n| u32::try_from(n).ok()).unwrap_or(DEFAULT_ATTEMPTS),
        on: on.iter().map(|condition| i32::from(*condition)).collect(),
        any_method: !statuses.is_empty(),
        statuses,
        per_try_timeout_ms: None,
        backoff_base_ms: base,
        // The Gateway API knows no longest pause; this leaves the doubling some room.
        backoff_max_ms: if base > 250 { base.saturating_mul(10) } else { 0 },
        budget_percent: None,
        budget_min_per_second: None,
    }
}
