//! New paths and hosts (HTTPURLRewriteFilter, HTTPPathModifier).

use http::{
    HeaderValue, Uri, header,
    request::Parts,
    uri::{Authority, PathAndQuery},
};

use super::matching::after_prefix;
use crate::{
    config::{PathMatch, PathModifier, Rewrite, Route},
    path::{Readings, escape_at},
};

/// Why a request cannot be rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// Prefix and rest together are longer than a path may be (64 KiB).
    #[error("the rewritten path is too long")]
    TooLong,
}

/// Rewrites host and path.
pub(super) fn rewrite(
    parts: &mut Parts,
    rewrite: &Rewrite,
    route: Option<&Route>,
) -> Result<(), RewriteError> {
    if let Some(modifier) = &rewrite.path {
        let path = modified_path(parts.uri.path(), modifier, route);
        let text = match parts.uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let mut uri = parts.uri.clone().into_parts();
        // Written with valid characters only, so that its length is all that may be wrong.
        let path = PathAndQuery::try_from(text).map_err(|_| RewriteError::TooLong)?;
        uri.path_and_query = Some(path);
        parts.uri = Uri::from_parts(uri).map_err(|_| RewriteError::TooLong)?;
    }
    if let Some(host) = &rewrite.hostname {
        set_host(parts, host.clone());
    }
    Ok(())
}

/// Names another host in every place where the request names one.
pub(super) fn set_host(parts: &mut Parts, host: HeaderValue) {
    let authority = Authority::try_from(host.as_bytes()).ok();
    if let (Some(authority), Some(_)) = (authority, parts.uri.authority()) {
        let mut uri = parts.uri.clone().into_parts();
        uri.authority = Some(authority);
        // Scheme and path are as they were, so that the new one is as valid.
        parts.uri = Uri::from_parts(uri).unwrap_or_else(|_| std::mem::take(&mut parts.uri));
        if !parts.headers.contains_key(header::HOST) {
            return;
        }
    }
    parts.headers.insert(header::HOST, host);
}

/// The new path. Where the route's prefix matched the path as it came, the rest stays as it came; where it matched
/// another reading, that reading's rest is written anew.
pub(super) fn modified_path(path: &str, modifier: &PathModifier, route: Option<&Route>) -> String {
    let replacement = match modifier {
        PathModifier::Full(full) => return full.clone(),
        PathModifier::Prefix(replacement) => replacement,
    };
    let prefix = match route.map(|route| &route.path) {
        Some(PathMatch::Prefix(prefix)) => prefix.as_str(),
        // Any path is the prefix `/`; the others do not get past `convert`.
        _ => "",
    };
    let readings = Readings::of(path);
    let rest = readings
        .find(|reading| after_prefix(reading, prefix).is_some())
        .map_or("", |reading| after_prefix(reading, prefix).unwrap_or_default());
    let modified = format!("{replacement}{}", encoded(rest));
    if modified.starts_with('/') { modified } else { format!("/{modified}") }
}

/// Escapes what may not stand in a path; escapes that are there stay.
pub(super) fn encoded(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut encoded = String::with_capacity(path.len());
    for (at, &byte) in bytes.iter().enumerate() {
        // RFC 3986, 3.3: pchar and the slash.
        let stands = byte.is_ascii_alphanumeric()
            || b"-._~!$&'()*+,;=:@/".contains(&byte)
            || byte == b'%' && escape_at(bytes, at).is_some();
        if stands {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
