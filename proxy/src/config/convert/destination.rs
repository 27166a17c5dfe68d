//! Destinations: routes, rules, backends.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use heddle_api::v1;
use http::{HeaderName, Method};
use regex::{Regex, RegexBuilder};

use super::{ConvertError, Within, each, filter, policy, protocol};
use crate::config::{
    Backend, BackendState, Destination, Filter, PathMatch, PathModifier, Route, Rule, Split, SplitEntry,
    TextMatch,
};

/// Memory of one compiled expression.
const REGEX_BYTES: usize = 1 << 20;
/// A route's timeout of 0 switches the policy's off (GEP-1742): this is as good as none, and can be added to a clock.
const NO_TIMEOUT: Duration = Duration::from_secs(365 * 86_400);

/// Backends by key.
pub(super) type Backends = HashMap<String, Arc<Backend>>;

/// Checks a Destination. `backends` gives the state that outlives the config, by the backend's key.
///
/// # Errors
/// Names the field that cannot be used, and why.
pub fn destination(
    message: &v1::Destination,
    backends: &mut dyn FnMut(&str) -> Arc<BackendState>,
) -> Result<Destination, ConvertError> {
    if message.service.is_empty() {
        return Err(ConvertError::new("service", "is empty"));
    }
    let protocol = protocol(message.protocol);
    let backends = index(&message.backends, backends)?;
    let rules = each("http_rules", &message.http_rules, |rule| self::rule(rule, &backends))?;
    let routes = each("http_routes", &message.http_routes, |route| self::route(route, &rules))?;
    let tcp = match message.tcp_backends.as_slice() {
        [] => None,
        shares => Some(split("tcp_backends", shares, &backends)?),
    };
    let default = match message.default_backend.as_str() {
        "" => None,
        key => Some(backends.get(key).cloned().ok_or_else(|| {
            ConvertError::new("default_backend", format!("{key:?} is not among the backends"))
        })?),
    };
    Ok(Destination { service: message.service.as_str().into(), protocol, routes, rules, tcp, default })
}

fn index(
    messages: &[v1::Backend],
    states: &mut dyn FnMut(&str) -> Arc<BackendState>,
) -> Result<Backends, ConvertError> {
    let mut backends = Backends::with_capacity(messages.len());
    each("backends", messages, |message| {
        if message.key.is_empty() {
            return Err(ConvertError::new("key", "is empty"));
        }
        let Entry::Vacant(place) = backends.entry(message.key.clone()) else {
            return Err(ConvertError::new("key", format!("{:?} comes twice", message.key)));
        };
        place.insert(Arc::new(Backend {
            key: message.key.as_str().into(),
            protocol: protocol(message.protocol),
            policy: policy::policy(message.policy.as_ref()).within("policy")?,
            state: states(&message.key),
        }));
        Ok(())
    })?;
    Ok(backends)
}

fn rule(message: &v1::HttpRule, backends: &Backends) -> Result<Rule, ConvertError> {
    let timeout = |milliseconds: Option<u64>| {
        milliseconds.map(|ms| if ms == 0 { NO_TIMEOUT } else { Duration::from_millis(ms).min(NO_TIMEOUT) })
    };
    Ok(Rule {
        name: message.name.clone(),
        filters: filter::filters(&message.filters, backends)?,
        split: split("backends", &message.backends, backends)?,
        request_timeout: timeout(message.request_timeout_ms),
        backend_timeout: timeout(message.backend_timeout_ms),
        retry: message.retry.as_ref().map(policy::retry).transpose().within("retry")?,
    })
}

fn split(field: &str, shares: &[v1::WeightedBackend], backends: &Backends) -> Result<Split, ConvertError> {
    let entries = each(field, shares, |share| {
        Ok(SplitEntry {
            weight: share.weight,
            backend: backends.get(&share.backend).cloned(),
            name: share.backend.as_str().into(),
            filters: filter::filters(&share.filters, backends)?,
        })
    })?;
    Ok(Split::new(entries))
}

fn route(message: &v1::HttpRoute, rules: &[Rule]) -> Result<Route, ConvertError> {
    let index = message.rule as usize;
    let rule = rules.get(index).ok_or_else(|| {
        ConvertError::new("rule", format!("{index} is no index into {} http_rules", rules.len()))
    })?;
    let path = match &message.path {
        None => PathMatch::Any,
        Some(path) => self::path(path).within("path")?,
    };
    if !matches!(path, PathMatch::Any | PathMatch::Prefix(_)) && replaces_prefix(rule) {
        return Err(ConvertError::new(
            "path",
            "the rule replaces a prefix, so that the match must be a prefix",
        ));
    }
    let method = match message.method.as_str() {
        "" => None,
        text => Some(
            text.parse::<Method>()
                .map_err(|_| ConvertError::new("method", format!("{text:?} is not an HTTP method")))?,
        ),
    };
    let headers = each("headers", &message.headers, |header| {
        let name = header
            .name
            .parse::<HeaderName>()
            .map_err(|_| ConvertError::new("name", format!("{:?} is not a header's name", header.name)))?;
        Ok((name, value(header)?))
    })?;
    let query = each("query", &message.query, |parameter| {
        if parameter.name.is_empty() {
            return Err(ConvertError::new("name", "is empty"));
        }
        Ok((parameter.name.clone(), value(parameter)?))
    })?;
    Ok(Route { name: message.name.as_str().into(), rule: index, path, method, headers, query })
}

/// Whether a filter needs to know which prefix matched.
fn replaces_prefix(rule: &Rule) -> bool {
    let shares = rule.split.entries.iter().flat_map(|entry| &entry.filters);
    rule.filters.iter().chain(shares).any(|filter| {
        let path = match filter {
            Filter::Redirect(redirect) => &redirect.path,
            Filter::Rewrite(rewrite) => &rewrite.path,
            _ => &None,
        };
        matches!(path, Some(PathModifier::Prefix(_)))
    })
}

fn path(message: &v1::PathMatch) -> Result<PathMatch, ConvertError> {
    use v1::path_match::Kind;
    let absolute = |field: &str, text: &str| {
        if text.starts_with('/') {
            return Ok(());
        }
        Err(ConvertError::new(field, format!("{text:?} does not begin with /")))
    };
    match &message.kind {
        None => Err(ConvertError::new("", "is of a kind that this version does not know")),
        Some(Kind::Exact(exact)) => {
            absolute("exact", exact)?;
            Ok(PathMatch::Exact(exact.clone()))
        }
        Some(Kind::Prefix(prefix)) => {
            absolute("prefix", prefix)?;
            Ok(PathMatch::Prefix(prefix.strip_suffix('/').unwrap_or(prefix).to_owned()))
        }
        Some(Kind::Regex(pattern)) => Ok(PathMatch::Regex(regex(pattern)?)),
    }
}

fn value(message: &v1::ValueMatch) -> Result<TextMatch, ConvertError> {
    use v1::value_match::Kind;
    match &message.kind {
        None => Err(ConvertError::new("kind", "is one that this version does not know")),
        Some(Kind::Exact(exact)) => Ok(TextMatch::Exact(exact.clone())),
        Some(Kind::Regex(pattern)) => Ok(TextMatch::Regex(regex(pattern)?)),
    }
}

/// Anchored at both ends. The expression must be one by itself: `a)|(b` would climb out of its anchors.
fn regex(pattern: &str) -> Result<Regex, ConvertError> {
    let built = |pattern: &str| RegexBuilder::new(pattern).size_limit(REGEX_BYTES).build();
    built(pattern)
        .and_then(|_| built(&format!(r"\A(?:{pattern})\z")))
        .map_err(|error| ConvertError::new("regex", format!("{pattern:?}: {error}")))
}
