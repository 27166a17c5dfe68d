//! What an upgrade offers, and WebSocket over HTTP/2 (RFC 8441), which an application's client opens by extended CONNECT
//! and which goes on as the HTTP/1.1 upgrade that WebSocket servers know.
//!
//! HTTP/2 has neither `Sec-WebSocket-Key` nor `-Accept` (RFC 8441, 5.1), so the sidecar is the client of that
//! handshake: it makes the key and checks what comes back (RFC 6455, 4.1).

use aws_lc_rs::{digest, rand};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderValue, Method, Response, StatusCode, Version, header, request};
use hyper::ext::Protocol;

use super::http::Refused;
use crate::{
    config::{AppProtocol, Backend},
    reason::Reason,
};

/// RFC 6455, 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A request for another protocol.
#[derive(Debug)]
pub struct Offer {
    /// The value of `Upgrade`.
    pub protocols: HeaderValue,
    /// Of a client that speaks HTTP/2: what `Sec-WebSocket-Accept` must be.
    accept: Option<HeaderValue>,
}

/// An extended CONNECT that asks for WebSocket.
#[derive(Debug)]
pub struct Extended(());

/// Recognizes an extended CONNECT, and makes it the GET that it stands for: only so do routes and access rules see the
/// same request as of a client that speaks HTTP/1.1.
///
/// # Errors
/// When it asks for anything but WebSocket.
pub fn extended_connect(parts: &mut request::Parts) -> Result<Option<Extended>, Refused> {
    let Some(protocol) = parts.extensions.remove::<Protocol>() else { return Ok(None) };
    if !protocol.as_str().eq_ignore_ascii_case("websocket") {
        let sentence =
            format!("extended CONNECT for {:?}: over HTTP/2 only websocket is carried", protocol.as_str());
        return Err(Refused::new(Reason::BadRequest, sentence));
    }
    parts.method = Method::GET;
    Ok(Some(Extended(())))
}

impl Extended {
    /// Writes the handshake into a request that was found well-formed.
    ///
    /// # Errors
    /// When there is no randomness for a key.
    pub fn offer(self, parts: &mut request::Parts) -> Result<Offer, Refused> {
        let mut nonce = [0; 16];
        let failed = |_| Refused::new(Reason::NotReady, "no random bytes for Sec-WebSocket-Key");
        rand::fill(&mut nonce).map_err(failed)?;
        let key = BASE64_STANDARD.encode(nonce);
        let accept = header_value(&accept(key.as_bytes()));
        parts.headers.insert(header::SEC_WEBSOCKET_KEY, header_value(&key));
        let version = parts.headers.entry(header::SEC_WEBSOCKET_VERSION);
        version.or_insert(HeaderValue::from_static("13"));
        Ok(Offer { protocols: HeaderValue::from_static("websocket"), accept: Some(accept) })
    }
}

impl Offer {
    /// What a client offered by `Upgrade`.
    pub const fn http1(protocols: HeaderValue) -> Self {
        Self { protocols, accept: None }
    }

    /// Whether a backend can take it.
    ///
    /// # Errors
    /// When it came over HTTP/2 and the port is declared to speak nothing else, which has no `Upgrade`.
    pub fn suits(&self, backend: &Backend) -> Result<(), Refused> {
        if self.accept.is_some() && backend.protocol == AppProtocol::Http2 {
            let sentence = format!(
                "{} is declared as HTTP/2, and WebSocket is handed to applications as an HTTP/1.1 upgrade: \
                 declare the port as http",
                backend.key
            );
            return Err(Refused::new(Reason::BadRequest, sentence));
        }
        Ok(())
    }

    /// The application's 101, with `Connection` and `Upgrade`, as the client is to have it.
    ///
    /// # Errors
    /// When it does not answer the sidecar's key.
    pub fn confirmed(&self, mut response: Response<()>) -> Result<Response<()>, Refused> {
        let Some(accept) = &self.accept else { return Ok(response) };
        let headers = response.headers_mut();
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
        if headers.remove(header::SEC_WEBSOCKET_ACCEPT).as_ref() != Some(accept) {
            let sentence = "the application's Sec-WebSocket-Accept does not answer the key";
            return Err(Refused::new(Reason::BadResponse, sentence));
        }
        *response.status_mut() = StatusCode::OK;
        *response.version_mut() = Version::HTTP_2;
        Ok(response)
    }

    /// Any other answer. Over HTTP/2 a success would say that the WebSocket is open.
    ///
    /// # Errors
    /// When it would.
    pub fn declined(&self, status: StatusCode) -> Result<(), Refused> {
        if self.accept.is_some() && status.is_success() {
            let sentence = format!("the application answered a WebSocket's handshake with {status}");
            return Err(Refused::new(Reason::BadResponse, sentence));
        }
        Ok(())
    }
}

/// RFC 6455, 4.2.2, 5: SHA-1, which nothing relies on here but the protocol's form.
fn accept(key: &[u8]) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(GUID);
    BASE64_STANDARD.encode(hash.finish())
}

fn header_value(base64: &str) -> HeaderValue {
    HeaderValue::from_str(base64).expect("base64 is visible ASCII")
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn connect(protocol: &'static str) -> request::Parts {
        let request = Request::connect("http://chat:8765/room").version(Version::HTTP_2);
        let mut parts = request.body(()).unwrap().into_parts().0;
        parts.extensions.insert(Protocol::from_static(protocol));
        parts
    }

    fn offered() -> (request::Parts, Offer) {
        let mut parts = connect("websocket");
        let offer = extended_connect(&mut parts).unwrap().unwrap().offer(&mut parts).unwrap();
        (parts, offer)
    }

    fn switching(accept: &str) -> Response<()> {
        Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-accept", accept)
            .header("sec-websocket-protocol", "chat")
            .body(())
            .unwrap()
    }

    #[test]
    fn the_rfcs_key_has_the_rfcs_answer() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn an_extended_connect_goes_on_as_a_get_with_a_key_of_its_own() {
        let ((parts, offer), (other, _)) = (offered(), offered());
        assert_eq!((parts.method, offer.protocols), (Method::GET, HeaderValue::from_static("websocket")));
        assert_eq!(parts.headers["sec-websocket-version"], "13");
        let key = &parts.headers["sec-websocket-key"];
        assert_eq!(BASE64_STANDARD.decode(key).unwrap().len(), 16);
        assert_ne!(key, other.headers["sec-websocket-key"]);
    }

    #[test]
    fn it_is_confirmed_with_200_only_by_the_answer_to_its_key() {
        let (parts, offer) = offered();
        let good = accept(parts.headers["sec-websocket-key"].as_bytes());
        let confirmed = offer.confirmed(switching(&good)).unwrap();
        assert_eq!(confirmed.status(), StatusCode::OK);
        let names: Vec<_> = confirmed.headers().keys().map(http::HeaderName::as_str).collect();
        assert_eq!(names, ["sec-websocket-protocol"]);
        let refused = offer.confirmed(switching("another")).unwrap_err();
        assert_eq!(refused.reason, Reason::BadResponse);
        assert!(offer.declined(StatusCode::OK).is_err());
        assert!(offer.declined(StatusCode::FORBIDDEN).is_ok());
        // An HTTP/1.1 client judges for itself.
        let http1 = Offer::http1(HeaderValue::from_static("websocket"));
        assert_eq!(http1.confirmed(switching("another")).unwrap().status(), StatusCode::SWITCHING_PROTOCOLS);
        assert!(http1.declined(StatusCode::OK).is_ok());
    }

    #[test]
    fn what_is_no_websocket_is_refused_by_its_name_and_a_plain_connect_is_left_alone() {
        let refused = extended_connect(&mut connect("connect-udp")).unwrap_err();
        assert!(refused.sentence.contains("connect-udp"), "{}", refused.sentence);
        let mut plain = Request::connect("chat:8765").body(()).unwrap().into_parts().0;
        assert!(extended_connect(&mut plain).unwrap().is_none());
        assert_eq!(plain.method, Method::CONNECT);
    }
}
