//! The first request on a connection that is made ahead: the calling sidecar's own, which the answering one answers
//! itself, since `OPTIONS *` with `Max-Forwards: 0` goes no further than whom it reaches (RFC 9110, 7.6.2 and 9.3.7).
//!
//! What is done once on each connection is done then: the structures of streams are allocated, and the authority is in
//! HPACK's tables (RFC 7541, 2.3.2) of both ends, so that the application's first request sends and reads it as an index.

use http::{HeaderValue, Method, Request, Uri, Version, header::MAX_FORWARDS, uri::Authority, uri::Scheme};

/// It, for the authority that later requests will likely have.
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
