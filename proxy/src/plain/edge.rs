//! HTTP as it must be where an application's connection meets the mesh.
//!
//! Inside the sidecar a request has one form whatever the client spoke: the authority is in the URI and there is
//! no Host, nothing that concerns one connection alone is left, and there is one length or none. [`request()`] and
//! [`answer`] bring a message into that form or refuse it; [`to_http1`], [`to_http2`] and [`answer_to_http1`]
//! write it for the other side. No sockets here.

use std::cell::Cell;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header, request, response,
    uri::{Authority, PathAndQuery, Scheme},
};

use crate::{
    carrier::upgrade::STATUS,
    reason::{self, Reason},
};

/// Header fields of one message, beside the limit on their bytes.
pub const MAX_FIELDS: usize = 256;

/// What concerns one connection alone, beside what Connection lists.
static CONNECTION_FIELDS: [HeaderName; 7] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// The mesh's own words.
static WORDS: [HeaderName; 2] = [reason::HEADER, STATUS];

/// The trailers that gRPC sends (gRPC over HTTP2, Responses).
const GRPC_TRAILERS: HeaderValue =
    HeaderValue::from_static("grpc-status, grpc-message, grpc-status-details-bin");

/// Why a message is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Too many bytes or fields.
    #[error("header names and values exceed {limit} bytes, or there are more than {MAX_FIELDS} fields")]
    TooLarge {
        /// Of names plus values, in bytes.
        limit: usize,
    },
    /// Host or `:authority`.
    #[error("the request's authority: {0}")]
    Authority(&'static str),
    /// The request target.
    #[error("the request target: {0}")]
    Target(&'static str),
    /// Content-Length or Transfer-Encoding.
    #[error("the message's length: {0}")]
    Length(&'static str),
    /// White space around a value: other readers would trim it and see another message (RFC 9113, 8.2.1).
    #[error("a header value begins or ends with white space")]
    Padding,
    /// The application changed protocols though nobody asked, or to one that nobody offered.
    #[error("101 to a protocol that the request did not offer")]
    Unasked,
    /// A TRACE that may be passed on no further ([`super::hops`]).
    #[error(
        "Max-Forwards: 0 on a TRACE: it may not be passed on, and a sidecar does not answer TRACE itself"
    )]
    Trace,
}

impl Malformed {
    /// The reason when it is a request that is refused; an application's answer is always
    /// [`Reason::BadResponse`].
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::TooLarge { .. } => Reason::HeadersTooLarge,
            _ => Reason::BadRequest,
        }
    }
}

/// The last Host of a connection, as it was written and as it was read: clients mostly stay with one.
#[derive(Default)]
pub struct LastHost(Cell<Option<(Box<[u8]>, Authority)>>);

impl LastHost {
    /// Reads a Host header's value: host, and port if any.
    fn read(&self, value: &HeaderValue) -> Result<Authority, Malformed> {
        let last = match self.0.take() {
            Some(last) if *last.0 == *value.as_bytes() => last,
            // Copies: the header itself is a part of hyper's buffer, and would hold on to all of it.
            _ => (value.as_bytes().into(), authority(value)?),
        };
        let read = last.1.clone();
        self.0.set(Some(last));
        Ok(read)
    }
}

/// The last Host that was written, which is mostly the next one too.
#[derive(Default)]
pub struct WrittenHost(Cell<Option<HeaderValue>>);

impl WrittenHost {
    fn write(&self, authority: &Authority) -> Option<HeaderValue> {
        let last = self.0.take().filter(|last| last.as_bytes() == authority.as_str().as_bytes());
        // A copy, as in [`LastHost`].
        let last = last.or_else(|| HeaderValue::from_str(authority.as_str()).ok());
        self.0.set(last.clone());
        last
    }
}

/// Brings a request that a client sent into the form that holds inside the sidecar. Gives back the protocols that
/// an HTTP/1.1 client would change to, in its order: its offer without those that are HTTP.
///
/// # Errors
/// When the request is ambiguous or too large; it must be answered with [`Malformed::reason`].
pub fn request(
    parts: &mut request::Parts,
    limit: usize,
    last: &LastHost,
) -> Result<Option<HeaderValue>, Malformed> {
    let fields = within(&parts.headers, limit)?;
    one_authority(parts, last)?;
    if fields.of_length {
        one_length(&mut parts.headers)?;
    }
    let mut upgrade = None;
    if fields.of_connection != 0 {
        // Bytes of a body could not be told from those of the new protocol on the way; serving the request
        // without changing protocols is always allowed (RFC 9110, 7.8).
        if parts.version == Version::HTTP_11 && !has_content(&parts.headers) {
            upgrade = offered_protocols(&parts.headers);
        }
        strip_connection_fields(&mut parts.headers, fields.of_connection);
    }
    // The first sidecar answers it: hyper does, once the body is asked for.
    if fields.expect
        && parts
            .headers
            .get(header::EXPECT)
            .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        parts.headers.remove(header::EXPECT);
    }
    Ok(upgrade)
}

/// Checks that an upgrade announces no content, which could not be told from the bytes of the new protocol.
///
/// # Errors
/// When it does.
pub fn without_content(headers: &HeaderMap) -> Result<(), Malformed> {
    if has_content(headers) { Err(Malformed::Length("an upgrade has no content")) } else { Ok(()) }
}

/// Whether a request says that content follows its head.
fn has_content(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
}

/// Brings an application's answer into the form that holds inside the sidecar, without what could pass for the
/// mesh's own word. True: the connection it came on
/// must not be used again.
///
/// # Errors
/// When the answer is ambiguous or too large: nothing of it may be passed on (`BadResponse`).
pub fn answer(parts: &mut response::Parts, method: &Method, limit: usize) -> Result<bool, Malformed> {
    let fields = within(&parts.headers, limit)?;
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Malformed::Unasked);
    }
    let mut both = false;
    if fields.of_length {
        // RFC 9112, 6.3: chunked wins, and whoever writes both lengths may be smuggling.
        both = parts.headers.contains_key(header::TRANSFER_ENCODING)
            && parts.headers.contains_key(header::CONTENT_LENGTH);
        one_length(&mut parts.headers)?;
    }
    if fields.of_connection != 0 {
        strip_connection_fields(&mut parts.headers, fields.of_connection);
    }
    if fields.words {
        remove_words(&mut parts.headers);
    }
    // RFC 9110, 8.6: no length where there is no content to measure, but for HEAD and 304.
    if parts.status == StatusCode::NO_CONTENT || (*method == Method::CONNECT && parts.status.is_success()) {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    Ok(both)
}

/// Brings the answer 101 into the form that holds inside the sidecar: without the fields of its connection, but for
/// `Upgrade`, which says what of `offered` the application chose.
///
/// # Errors
/// When it is too large, or chose what was not offered.
pub fn switching(parts: &mut response::Parts, limit: usize, offered: &HeaderValue) -> Result<(), Malformed> {
    let fields = within(&parts.headers, limit)?;
    let chosen = chosen(words(&parts.headers, &header::UPGRADE), offered).ok_or(Malformed::Unasked)?;
    strip_connection_fields(&mut parts.headers, fields.of_connection);
    remove_words(&mut parts.headers);
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::UPGRADE, chosen);
    Ok(())
}

/// Brings a message's trailers into the form that holds inside the sidecar: what concerns one connection, frames the
/// message or says where it goes has no place there (RFC 9110, 6.5.1), and HTTP/2 would end the stream for it.
pub(super) fn trailers(fields: &mut HeaderMap) {
    remove_words(fields);
    for name in CONNECTION_FIELDS.iter().chain(&[header::CONTENT_LENGTH, header::HOST]) {
        fields.remove(name);
    }
}

/// These words are the mesh's alone, in headers and in trailers.
fn remove_words(headers: &mut HeaderMap) {
    for word in &WORDS {
        headers.remove(word);
    }
}

/// Writes a request for an HTTP/1.1 server: origin-form, one Host, one Cookie, a length that the receiver can see.
pub fn to_http1(
    parts: &mut request::Parts,
    has_body: bool,
    upgrade: Option<&HeaderValue>,
    last: &WrittenHost,
) {
    let host = parts.uri.authority().and_then(|authority| last.write(authority));
    // A request without authority (HTTP/1.0) gets an empty Host (RFC 9112, 3.2).
    parts.headers.insert(header::HOST, host.unwrap_or_else(|| HeaderValue::from_static("")));
    if parts.method != Method::CONNECT {
        let path = parts.uri.path_and_query().cloned();
        parts.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    }
    parts.version = Version::HTTP_11;
    join_cookies(&mut parts.headers);
    if let Some(protocol) = upgrade {
        // What would be announced does not come: a server that declines would take the next request for it.
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.insert(header::UPGRADE, protocol.clone());
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else if parts.headers.contains_key(header::TE) {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    // hyper drops the body of a GET that has neither; the body of any method counts (RFC 9110, 9.3.1).
    if has_body && !parts.headers.contains_key(header::CONTENT_LENGTH) {
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Writes a request for an HTTP/2 server; `fallback` stands in for the authority of an HTTP/1.0 request that
/// has none.
pub fn to_http2(parts: &mut request::Parts, fallback: &str) {
    if parts.uri.authority().is_none()
        && let Ok(authority) = Authority::try_from(fallback)
    {
        parts.uri = absolute(authority, parts.uri.path_and_query().cloned());
    }
    parts.version = Version::HTTP_2;
}

/// Writes an answer for an HTTP/1 client. Trailers must be announced there, or hyper keeps them to itself
/// (RFC 9110, 6.6.2); the names are known beforehand where the application announced them, and for gRPC.
pub fn answer_to_http1(parts: &mut response::Parts) {
    parts.version = Version::HTTP_11;
    if is_grpc(&parts.headers)
        && !parts.headers.contains_key(header::TRAILER)
        && !parts.headers.contains_key(header::CONTENT_LENGTH)
    {
        parts.headers.insert(header::TRAILER, GRPC_TRAILERS);
    }
}

/// Whether a message is gRPC, which is always HTTP/2.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        let kind = b"application/grpc";
        value.len() >= kind.len()
            && value[..kind.len()].eq_ignore_ascii_case(kind)
            // "application/grpc-web" is another protocol, made for HTTP/1.
            && matches!(value.get(kind.len()), None | Some(b'+' | b';' | b' '))
    })
}

/// Which fields a message has that need work. Most have none, and need not be searched for each.
#[derive(Default)]
struct Fields {
    /// For [`strip_connection_fields`]: a bit for each of [`CONNECTION_FIELDS`].
    of_connection: u8,
    /// For [`remove_words`].
    words: bool,
    /// For [`one_length`].
    of_length: bool,
    expect: bool,
}

/// Checks that names and values are within the limits.
fn within(headers: &HeaderMap, limit: usize) -> Result<Fields, Malformed> {
    let mut bytes = 0;
    let mut fields = Fields::default();
    for (name, value) in headers {
        bytes += name.as_str().len() + value.len();
        if let Some(at) = CONNECTION_FIELDS.iter().position(|field| field == name) {
            fields.of_connection |= 1 << at;
        }
        fields.words |= WORDS.contains(name);
        fields.of_length |= *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING;
        fields.expect |= *name == header::EXPECT;
        let value = value.as_bytes();
        let space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        if space(value.first()) || space(value.last()) {
            return Err(Malformed::Padding);
        }
    }
    if bytes > limit || headers.len() > MAX_FIELDS { Err(Malformed::TooLarge { limit }) } else { Ok(fields) }
}

/// Moves the one authority into the URI (RFC 9112, 3.2 and 3.3; RFC 9113, 8.3.1).
fn one_authority(parts: &mut request::Parts, last: &LastHost) -> Result<(), Malformed> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next().cloned();
    if hosts.next().is_some() {
        return Err(Malformed::Authority("more than one Host"));
    }
    if host.is_none() && parts.version == Version::HTTP_11 {
        return Err(Malformed::Authority("no Host on HTTP/1.1"));
    }
    let host = match host {
        Some(value) => {
            parts.headers.remove(header::HOST);
            if value.is_empty() { None } else { Some(last.read(&value)?) }
        }
        None => None,
    };
    let named = match parts.uri.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            return Err(Malformed::Authority("user information"));
        }
        named => named.cloned(),
    };
    if parts.method == Method::CONNECT {
        return if named.is_some() {
            Ok(())
        } else {
            Err(Malformed::Target("CONNECT without host and port"))
        };
    }
    if named.is_some() && parts.uri.scheme().is_none() {
        return Err(Malformed::Target("host and port are for CONNECT alone"));
    }
    if parts.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return Err(Malformed::Target("neither http nor https"));
    }
    if parts.version == Version::HTTP_2
        && let (Some(named), Some(host)) = (&named, &host)
        && !named.as_str().eq_ignore_ascii_case(host.as_str())
    {
        return Err(Malformed::Authority("Host is not :authority"));
    }
    let path = parts.uri.path_and_query().cloned();
    if !path.as_ref().is_some_and(|p| {
        p.as_str().starts_with('/') || (p.as_str() == "*" && parts.method == Method::OPTIONS)
    }) {
        return Err(Malformed::Target("no path"));
    }
    // Absolute-form wins over Host; most of the mesh's own requests come so, and nothing needs to be written.
    if named.is_some() && parts.uri.scheme() == Some(&Scheme::HTTP) {
        return Ok(());
    }
    parts.uri = match named.or(host) {
        Some(authority) => absolute(authority, path),
        None => Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/"))),
    };
    Ok(())
}

/// `http://authority/path`.
fn absolute(authority: Authority, path: Option<PathAndQuery>) -> Uri {
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(authority);
    uri.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Uri::from_parts(uri).expect("scheme, authority and path are all there")
}

/// A Host header's value: host, and port if any.
fn authority(value: &HeaderValue) -> Result<Authority, Malformed> {
    let authority = Authority::try_from(value.as_bytes()).map_err(|_| Malformed::Authority("not a host"))?;
    if authority.as_str().contains('@') || authority.host().is_empty() {
        return Err(Malformed::Authority("not a host"));
    }
    Ok(authority)
}

/// Leaves one Content-Length or, where the message is chunked, none. Transfer-Encoding itself stays for
/// [`strip_connection_fields`] to remove.
fn one_length(headers: &mut HeaderMap) -> Result<(), Malformed> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        // hyper takes the chunks away; another coding would be left on content that no longer says so.
        if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
            return Err(Malformed::Length("a Transfer-Encoding other than chunked"));
        }
        headers.remove(header::CONTENT_LENGTH);
        return Ok(());
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter().peekable();
    let Some(first) = lengths.next() else { return Ok(()) };
    if lengths.peek().is_none() && decimal(first.as_bytes()).is_some() {
        return Ok(());
    }
    // RFC 9110, 8.6: a list of equal values may be taken for one.
    let all = headers
        .get_all(header::CONTENT_LENGTH)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','));
    let mut one = None;
    for length in all {
        let length = decimal(length.trim_ascii()).ok_or(Malformed::Length("Content-Length is no number"))?;
        if one.replace(length).is_some_and(|before| before != length) {
            return Err(Malformed::Length("two Content-Lengths that differ"));
        }
    }
    if let Some(length) = one {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(())
}

/// Digits and nothing else.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The comma-separated words of a field.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().flat_map(|line| list(line.as_bytes()))
}

/// The words of one comma-separated value.
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|word| !word.is_empty())
}

/// Words as one comma-separated value; none: there are none.
fn joined<'a>(words: impl Iterator<Item = &'a [u8]>) -> Option<HeaderValue> {
    let words: Vec<&[u8]> = words.collect();
    if words.is_empty() { None } else { HeaderValue::from_bytes(&words.join(&b", "[..])).ok() }
}

/// What an application chose of the protocols that it was offered (RFC 9110, 7.8). One that does not say is taken to
/// have chosen the first. None: it chose another.
pub(crate) fn chosen<'a>(
    chosen: impl Iterator<Item = &'a [u8]>,
    offered: &HeaderValue,
) -> Option<HeaderValue> {
    let mut chosen = chosen.peekable();
    if chosen.peek().is_none() {
        return joined(list(offered.as_bytes()).take(1));
    }
    let chosen: Vec<_> = chosen.collect();
    let is_offered = |word: &&[u8]| list(offered.as_bytes()).any(|offer| offer.eq_ignore_ascii_case(word));
    chosen.iter().all(is_offered).then(|| joined(chosen.into_iter())).flatten()
}

/// Whether a protocol that `Upgrade` offers is HTTP itself. It gains nobody anything, and its requests would pass by
/// the access rules.
pub(crate) fn is_http(protocol: &[u8]) -> bool {
    let name = protocol.split(|b| *b == b'/').next().unwrap_or_default().trim_ascii();
    [&b"h2c"[..], b"h2", b"http"].iter().any(|http| name.eq_ignore_ascii_case(http))
}

/// The protocols of `Upgrade` that are not HTTP, if `Connection` lists `upgrade` (RFC 9110, 7.8).
fn offered_protocols(headers: &HeaderMap) -> Option<HeaderValue> {
    if !words(headers, &header::CONNECTION).any(|word| word.eq_ignore_ascii_case(b"upgrade")) {
        return None;
    }
    joined(words(headers, &header::UPGRADE).filter(|word| !is_http(word)))
}

/// Removes what concerns one connection alone (RFC 9110, 7.6.1), and keeps `TE: trailers`, which gRPC asks for
/// end to end. `present` has a bit for each of [`CONNECTION_FIELDS`].
fn strip_connection_fields(headers: &mut HeaderMap, present: u8) {
    let trailers = words(headers, &header::TE).any(|word| word.eq_ignore_ascii_case(b"trailers"));
    let usual =
        |word: &[u8]| [&b"keep-alive"[..], b"close", b"upgrade"].iter().any(|w| word.eq_ignore_ascii_case(w));
    // What is usually listed is no field, or goes anyway.
    if words(headers, &header::CONNECTION).any(|word| !usual(word)) {
        let listed: Vec<HeaderName> = words(headers, &header::CONNECTION)
            .filter_map(|word| HeaderName::from_bytes(word).ok())
            // A message's length and place do not become optional because its sender lists them.
            .filter(|name| *name != header::CONTENT_LENGTH && *name != header::HOST)
            .collect();
        for name in listed {
            headers.remove(name);
        }
    }
    for (at, name) in CONNECTION_FIELDS.iter().enumerate() {
        if present & 1 << at != 0 {
            headers.remove(name);
        }
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// HTTP/2 may split Cookie into fields; HTTP/1 has one (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    let Some(first) = cookies.next() else { return };
    let mut joined = first.as_bytes().to_vec();
    let before = joined.len();
    for cookie in cookies {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if joined.len() > before
        && let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined))
    {
        headers.insert(header::COOKIE, value);
    }
}

#[cfg(test)]
mod tests;
