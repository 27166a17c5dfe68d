//! HTTP/1 upgrades (WebSocket and others) over extended CONNECT (RFC 8441), with the method kept and the application's
//! own answer told apart from the carrier's.
//!
//! `:protocol` is `<METHOD> <value of the Upgrade header>`. The answer always carries `heddle-status`, the application's
//! true status, *inserted* by the answering sidecar over whatever the application sent and taken off by the calling one;
//! `:status` is 200 for the application's 101 and the application's own else. After 101 and a space `heddle-status` says
//! which of the protocols the application chose, since HTTP/2 has no `Upgrade`.

use h2::{RecvStream, SendStream, ext::Protocol};
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, UPGRADE},
    request, response,
};

use bytes::Bytes;

use super::{
    body::CarrierBody,
    connection::Slot,
    peer::{Peer, SendError},
    pump,
    tunnel::Tunnel,
};
use crate::{plain::edge, reason::Reason};

/// Carries the application's true status between sidecars; never seen by applications.
pub const STATUS: HeaderName = HeaderName::from_static("heddle-status");

/// The application's answer to an upgrade.
#[derive(Debug)]
pub enum Upgraded {
    /// It said 101, with `Connection` and `Upgrade` as HTTP/1 wants them: the tunnel is open.
    Switched(Response<()>, Tunnel),
    /// It said something else, which is an ordinary response.
    Declined(Response<CarrierBody>),
}

/// An upgrade as the answering side reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The method of the HTTP/1 request.
    pub method: Method,
    /// The value of its Upgrade header.
    pub protocol: HeaderValue,
}

/// The request that carries an upgrade.
pub(super) fn request(mut parts: request::Parts, protocol: &str) -> Result<Request<()>, &'static str> {
    if HeaderValue::from_str(protocol).is_err() || protocol.is_empty() {
        return Err("Upgrade names no protocol");
    }
    parts.headers.remove(UPGRADE);
    parts.headers.remove(CONNECTION);
    parts.extensions.insert(Protocol::from(format!("{} {protocol}", parts.method).as_str()));
    parts.method = Method::CONNECT;
    let request = pump::head(parts)?;
    // Without one CONNECT is malformed (RFC 8441, 4); an HTTP/1.1 request has one.
    if request.uri().authority().is_none() { Err("an upgrade without Host") } else { Ok(request) }
}

/// What upgrade a request carries: none when it is no extended CONNECT.
///
/// # Errors
/// When `:protocol` is not `<METHOD> <protocol>`, or offers HTTP, whose requests would pass by the access rules: the
/// stream is to be reset with PROTOCOL_ERROR.
pub fn asked<B>(request: &Request<B>) -> Result<Option<Asked>, &'static str> {
    let Some(protocol) = request.extensions().get::<Protocol>() else { return Ok(None) };
    let bad = ":protocol is not METHOD, space, protocol";
    let (method, protocol) = protocol.as_str().split_once(' ').ok_or(bad)?;
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| bad)?;
    let protocol = HeaderValue::from_str(protocol).map_err(|_| bad)?;
    let offers_http = || protocol.as_bytes().split(|b| *b == b',').any(edge::is_http);
    if method == Method::CONNECT || protocol.is_empty() || offers_http() {
        Err(bad)
    } else {
        Ok(Some(Asked { method, protocol }))
    }
}

/// The head of the answer, made from the application's.
#[must_use]
pub fn answer(mut parts: response::Parts) -> response::Parts {
    let chosen = parts.headers.remove(UPGRADE);
    parts.headers.remove(CONNECTION);
    let mut told = HeaderValue::from(parts.status.as_u16());
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        parts.status = StatusCode::OK;
        if let Some(chosen) = chosen {
            told = HeaderValue::from_bytes(&[b"101 ", chosen.as_bytes()].concat()).unwrap_or(told);
        }
    }
    parts.headers.insert(STATUS, told);
    parts.version = Version::HTTP_2;
    parts
}

/// Reads the answer.
pub(super) fn answered(
    peer: &Peer,
    mut response: Response<RecvStream>,
    protocol: &str,
    send: SendStream<Bytes>,
    slot: Slot,
) -> Result<Upgraded, SendError> {
    let told = response.headers_mut().remove(STATUS);
    let words = told.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
    let (word, chosen) = words.split_at(words.len().min(3));
    let status = StatusCode::from_bytes(word).ok();
    let offered = HeaderValue::from_str(protocol).expect("it was checked before it was sent");
    let chosen = edge::chosen(edge::list(chosen), &offered);
    match (status, chosen) {
        (Some(StatusCode::SWITCHING_PROTOCOLS), Some(chosen)) if response.status() == StatusCode::OK => {
            let (mut parts, received) = response.into_parts();
            parts.status = StatusCode::SWITCHING_PROTOCOLS;
            parts.version = Version::HTTP_11;
            parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(UPGRADE, chosen);
            Ok(Upgraded::Switched(Response::from_parts(parts, ()), Tunnel::new(send, received, Some(slot))))
        }
        (Some(status), _) if response.status() == status => {
            // The response's end closes the stream; nothing more is sent on it.
            let mut send = send;
            let _already_closed = send.send_data(Bytes::new(), true);
            Ok(Upgraded::Declined(CarrierBody::of_response(response, slot, None)))
        }
        _ => {
            let what = format!("status {} does not agree with heddle-status {told:?}", response.status());
            Err(SendError::of_answer(Reason::BadResponse, peer, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(method: &str, protocol: &str) -> Request<()> {
        let asked =
            Request::builder().method(method).uri("/chat").header("host", "reviews").body(()).unwrap();
        request(asked.into_parts().0, protocol).unwrap()
    }

    #[test]
    fn an_upgrade_keeps_its_method_and_protocol() {
        for (method, protocol) in [("GET", "websocket"), ("POST", "h3/x, other")] {
            let request = carried(method, protocol);
            assert_eq!(
                (request.method(), request.uri().to_string()),
                (&Method::CONNECT, "http://reviews/chat".into())
            );
            let asked = asked(&request).unwrap().unwrap();
            assert_eq!((asked.method.as_str(), asked.protocol.to_str().unwrap()), (method, protocol));
        }
    }

    #[test]
    fn a_protocol_without_method_or_that_is_http_is_malformed() {
        for protocol in [
            "websocket",
            "",
            " websocket",
            "GET ",
            "CONNECT x",
            "G\u{7f}T x",
            "GET h2c",
            "GET websocket, H2C",
            "GET HTTP/2.0",
        ] {
            let mut request = carried("GET", "websocket");
            request.extensions_mut().insert(Protocol::from(protocol));
            assert!(asked(&request).is_err(), "{protocol:?}");
        }
    }

    #[test]
    fn an_application_cannot_say_for_the_sidecar_that_it_switched() {
        let forged = Response::builder().status(200).header(STATUS, "101").body(()).unwrap();
        let answer = answer(forged.into_parts().0);
        assert_eq!(answer.headers.get_all(STATUS).iter().collect::<Vec<_>>(), ["200"]);
        assert_eq!(answer.status, StatusCode::OK);
    }

    #[test]
    fn what_the_application_chose_is_told_beside_its_status() {
        let switched = Response::builder().status(101).header(UPGRADE, "irc").body(()).unwrap();
        let answer = answer(switched.into_parts().0);
        assert_eq!((answer.status, &answer.headers[STATUS]), (StatusCode::OK, &"101 irc".parse().unwrap()));
        assert!(!answer.headers.contains_key(UPGRADE));
    }
}
