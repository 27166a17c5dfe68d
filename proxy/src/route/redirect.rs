//! The answer that sends a client elsewhere (HTTPRequestRedirectFilter).

use http::{HeaderValue, Response, header, request::Parts, uri::Authority};

use super::rewrite::{encoded, modified_path};
use crate::config::{Redirect, Route};

/// The response to a request that a redirect filter answers.
///
/// The port is the filter's; else, with a scheme in the filter, that scheme's own; else the one that the client
/// used. It is left out where it is the scheme's own (Gateway API, HTTPRequestRedirectFilter).
#[must_use]
pub fn redirect(parts: &Parts, filter: &Redirect, route: Option<&Route>) -> Response<()> {
    let authority = authority(parts);
    let came = parts.uri.scheme_str().filter(|scheme| own_port(scheme).is_some()).unwrap_or("http");
    let scheme = filter.scheme.as_deref().unwrap_or(came);
    let client_port = authority.as_ref().and_then(Authority::port_u16).or_else(|| own_port(came));
    let port = filter.port.or_else(|| filter.scheme.as_deref().and_then(own_port)).or(client_port);
    let host = filter.hostname.as_deref().or(authority.as_ref().map(Authority::host)).unwrap_or_default();

    let mut location = format!("{scheme}://{host}");
    if let Some(port) = port.filter(|port| own_port(scheme) != Some(*port)) {
        location.push_str(&format!(":{port}"));
    }
    match &filter.path {
        Some(modifier) => location.push_str(&modified_path(parts.uri.path(), modifier, route)),
        None => location.push_str(&encoded(parts.uri.path())),
    }
    if let Some(query) = parts.uri.query() {
        location.push('?');
        location.push_str(query);
    }
    let mut response = Response::new(());
    *response.status_mut() = filter.status;
    // A query may hold bytes beyond ASCII, which are opaque but allowed in a field value.
    if let Ok(location) = HeaderValue::try_from(location.into_bytes()) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// What the client asked, from the URI or the Host header.
fn authority(parts: &Parts) -> Option<Authority> {
    let host = || Authority::try_from(parts.headers.get(header::HOST)?.as_bytes()).ok();
    parts.uri.authority().cloned().or_else(host)
}

fn own_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}
