//! Whether a request meets a route's conditions.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, header, request::Parts};

use crate::{
    config::{PathMatch, Route, TextMatch},
    path::Readings,
};

/// Whether all of the route's conditions hold.
pub(super) fn matches(route: &Route, request: &Parts, readings: &Readings<'_>) -> bool {
    route.method.as_ref().is_none_or(|method| *method == request.method)
        && readings.find(|path| route.path.matches(path)).is_some()
        && route.headers.iter().all(|(name, wanted)| header_matches(request, name, wanted))
        && route.query.iter().all(|(name, wanted)| query_matches(request.uri.query(), name, wanted))
}

impl PathMatch {
    /// Whether one reading of a path meets the condition.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => after_prefix(path, prefix).is_some(),
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

/// What follows a prefix that ends on a segment's border: nothing, or `/` and more.
pub(super) fn after_prefix<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || prefix.is_empty() || rest.starts_with('/'))
}

impl TextMatch {
    /// Whether a value meets the condition.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(exact) => value == exact,
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

/// A header that comes several times is one list (RFC 9110, 5.3), whose separator a user may write with a space or
/// without. `Host` is the authority, however the request carried it.
fn header_matches(request: &Parts, name: &HeaderName, wanted: &TextMatch) -> bool {
    let mut values = request.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) if *name == header::HOST => {
            request.uri.authority().is_some_and(|authority| wanted.matches(authority.as_str()))
        }
        (None, _) => false,
        (Some(only), None) => std::str::from_utf8(only.as_bytes()).is_ok_and(|value| wanted.matches(value)),
        // HTTP/2 may split a cookie into crumbs (RFC 9113, 8.2.3).
        _ if *name == header::COOKIE => joined_matches(&request.headers, name, "; ", wanted),
        _ => {
            joined_matches(&request.headers, name, ",", wanted)
                || joined_matches(&request.headers, name, ", ", wanted)
        }
    }
}

fn joined_matches(headers: &HeaderMap, name: &HeaderName, separator: &str, wanted: &TextMatch) -> bool {
    let values: Result<Vec<_>, _> =
        headers.get_all(name).iter().map(|value| std::str::from_utf8(value.as_bytes())).collect();
    values.is_ok_and(|values| wanted.matches(&values.join(separator)))
}

/// Of a parameter that comes several times the first value counts (HTTPRoute specification). Names and values are
/// compared as the application will read them, decoded.
fn query_matches(query: Option<&str>, name: &str, wanted: &TextMatch) -> bool {
    query
        .unwrap_or_default()
        .split('&')
        .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
        .find(|(key, _)| decoded(key) == name)
        .is_some_and(|(_, value)| wanted.matches(&decoded(value)))
}

/// As forms encode it: `+` is a space.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['+', '%']) {
        return Cow::Borrowed(text);
    }
    let spaced = text.replace('+', " ");
    Cow::Owned(percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
}
