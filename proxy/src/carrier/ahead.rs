//! The request that a sidecar sends on a connection that it makes ahead, before any application's. The sidecar at the
//! other end answers it by itself: an OPTIONS with `Max-Forwards: 0` must not be passed on, and `*` asks for no resource
//! (RFC 9110, 7.6.2 and 9.3.7).
//!
//! What a connection's first request alone has to do is done then: the structures of streams are allocated at both ends,
//! and both have the authority in HPACK's tables (RFC 7541, 2.3.2), so that later requests send it as an index.

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::MAX_FORWARDS,
    uri::{Authority, Scheme},
};

/// A request ahead of those that will have this authority.
///
/// # Panics
/// Never: a scheme, an authority and `*` make a URI.
pub(super) fn request(authority: Authority) -> Request<()> {
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query("*").build();
    let mut request = Request::new(());
    *request.method_mut() = Method::OPTIONS;
    *request.uri_mut() = uri.expect("a scheme, an authority and *");
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().insert(MAX_FORWARDS, HeaderValue::from_static("0"));
    request
}

/// Whether a request is such a one.
#[must_use]
pub fn is_one(request: &Request<RecvStream>) -> bool {
    *request.method() == Method::OPTIONS
        && request.uri().path() == "*"
        && request.headers().len() == 1
        && request.headers().get(MAX_FORWARDS).is_some_and(|hops| hops == "0")
        && request.body().is_end_stream()
}

/// Answers it.
pub fn answer(request: &Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    tracing::debug!(authority = request.uri().host(), "another sidecar asks ahead of its application");
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    if let Err(error) = respond.send_response(answer, true) {
        tracing::debug!(%error, "the caller left before its request ahead was answered");
    }
}
