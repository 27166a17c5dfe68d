//! What the sidecar itself answers: the reason as a word in a header, and a sentence in the body.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::body::ResponseBody;
use crate::reason::{self, Reason};

/// gRPC's status codes that a reason maps to (gRPC over HTTP/2, 'HTTP to gRPC status code mapping').
const GRPC_DEADLINE_EXCEEDED: &str = "4";
const GRPC_PERMISSION_DENIED: &str = "7";
const GRPC_UNIMPLEMENTED: &str = "12";
const GRPC_INTERNAL: &str = "13";
const GRPC_UNAVAILABLE: &str = "14";

/// Whether a message is gRPC: such callers look for trailers, not for a status.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Refuses a request. `sentence` says for whom and what to do, without the reason's word.
pub fn refuse(reason: Reason, sentence: &str, grpc: bool) -> Response<ResponseBody> {
    let mut response =
        if grpc { grpc_status(reason, sentence) } else { text(reason.status(), reason, sentence) };
    response.headers_mut().insert(reason::HEADER, HeaderValue::from_static(reason.as_str()));
    response
}

fn text(status: StatusCode, reason: Reason, sentence: &str) -> Response<ResponseBody> {
    let mut response =
        Response::new(ResponseBody::full(Bytes::from(format!("heddle: {reason}: {sentence}\n"))));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// A trailers-only answer: the status travels in the headers.
fn grpc_status(reason: Reason, sentence: &str) -> Response<ResponseBody> {
    let code = match reason {
        Reason::RequestTimeout => GRPC_DEADLINE_EXCEEDED,
        Reason::NoRoute => GRPC_UNIMPLEMENTED,
        _ => match reason.status() {
            StatusCode::FORBIDDEN => GRPC_PERMISSION_DENIED,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY => GRPC_UNAVAILABLE,
            _ => GRPC_INTERNAL,
        },
    };
    let mut response = Response::new(ResponseBody::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(code));
    // Percent-encoded, as gRPC's wire format asks.
    let message = format!("heddle: {reason}: {sentence}");
    let message = percent_encoding::utf8_percent_encode(&message, GRPC_MESSAGE).to_string();
    if let Ok(value) = HeaderValue::try_from(message) {
        headers.insert("grpc-message", value);
    }
    response
}

/// Everything but printable ASCII without '%'.
const GRPC_MESSAGE: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_reason_in_header_and_body() {
        let response = refuse(Reason::NoEndpoints, "shop/reviews:9080 has none", false);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["heddle-reason"], "NoEndpoints");
        assert_eq!(
            response.into_body().text(),
            Some("heddle: NoEndpoints: shop/reviews:9080 has none\n".as_bytes())
        );
    }

    #[test]
    fn a_grpc_caller_gets_a_grpc_status() {
        for (reason, code) in [
            (Reason::NoEndpoints, "14"),
            (Reason::AccessDenied, "7"),
            (Reason::RequestTimeout, "4"),
            (Reason::NoRoute, "12"),
            (Reason::NoBackend, "13"),
        ] {
            let response = refuse(reason, "100 %\n", true);
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["grpc-status"], code, "{reason}");
            let message = response.headers()["grpc-message"].to_str().unwrap().to_owned();
            assert_eq!(message, format!("heddle: {reason}: 100 %25%0A"));
            assert_eq!(response.headers()["heddle-reason"], reason.as_str());
        }
    }

    #[test]
    fn only_grpc_itself_is_grpc() {
        for (value, yes) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=x", true),
            ("application/grpc-web", false),
            ("text/plain", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))]);
            assert_eq!(is_grpc(&headers), yes, "{value}");
        }
    }
}
