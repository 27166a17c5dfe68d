//! What the sidecar itself answers: the reason as a word in a header, and a sentence for people.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::edge;
use crate::reason::{self, Reason};

/// Percent-encoded in `grpc-message` (gRPC over HTTP2, Responses): all but printable ASCII, and '%'.
const GRPC_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

/// What a request was, as far as the form of its refusal depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    grpc: bool,
    head: bool,
}

impl Form {
    /// Of a request.
    #[must_use]
    pub fn of(method: &Method, headers: &HeaderMap) -> Self {
        Self { grpc: edge::is_grpc(headers), head: *method == Method::HEAD }
    }
}

/// The answer to a request that is refused. `sentence` says for whom and what to do. A gRPC caller gets a status
/// that its library understands; after HEAD there is no body, which HTTP/2 would end the stream for.
#[must_use]
pub fn refusal(reason: Reason, sentence: &str, form: Form) -> Response<Bytes> {
    let text = format!("heddle: {reason}: {sentence}");
    let mut response =
        if form.grpc { grpc_status(reason, &text) } else { Response::new(Bytes::from(text + "\n")) };
    if form.head {
        let length = std::mem::take(response.body_mut()).len();
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    let headers = response.headers_mut();
    headers.insert(reason::HEADER, HeaderValue::from_static(reason.as_str()));
    if !form.grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        *response.status_mut() = reason.status();
    }
    response
}

/// A trailers-only answer (gRPC over HTTP2, Responses): the status is in the headers.
fn grpc_status(reason: Reason, text: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(grpc_code(reason)));
    if let Ok(message) = HeaderValue::try_from(utf8_percent_encode(text, GRPC_MESSAGE).to_string()) {
        headers.insert("grpc-message", message);
    }
    response
}

/// As gRPC maps HTTP's statuses (gRPC, 'HTTP to gRPC Status Code Mapping').
fn grpc_code(reason: Reason) -> &'static str {
    match reason.status() {
        StatusCode::GATEWAY_TIMEOUT => "4",
        StatusCode::FORBIDDEN => "7",
        StatusCode::NOT_FOUND => "12",
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => "14",
        _ => "13",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_reason_in_header_and_body() {
        let response = refusal(Reason::AccessDenied, "spiffe://a/ns/b/sa/c may not", Form::default());
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()["heddle-reason"], "AccessDenied");
        assert_eq!(response.body(), "heddle: AccessDenied: spiffe://a/ns/b/sa/c may not\n");
    }

    #[test]
    fn after_head_there_is_the_length_of_a_body_and_none() {
        let form = Form::of(&Method::HEAD, &HeaderMap::new());
        let response = refusal(Reason::AccessDenied, "no", form);
        assert_eq!((response.status().as_u16(), response.body().len()), (403, 0));
        assert_eq!(response.headers()["content-length"], "heddle: AccessDenied: no\n".len().to_string());
    }

    #[test]
    fn a_grpc_caller_gets_a_grpc_status() {
        for (reason, code) in [
            (Reason::AccessDenied, "7"),
            (Reason::ConnectFailed, "14"),
            (Reason::RequestTimeout, "4"),
            (Reason::NoRoute, "12"),
            (Reason::NoBackend, "13"),
        ] {
            let response = refusal(reason, "100 %\n", Form { grpc: true, head: false });
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["grpc-status"], code, "{reason}");
            assert_eq!(response.headers()["grpc-message"], format!("heddle: {reason}: 100 %25%0A").as_str());
            assert_eq!(response.headers()["heddle-reason"], reason.as_str());
        }
    }
}
