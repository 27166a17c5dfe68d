//! One GET on a connection of its own, as kubelet asks; the connection may be kept.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ::http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, LOCATION, TRANSFER_ENCODING, USER_AGENT},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, Parts, SendRequest},
    rt::{Read, Write},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::TcpStream,
    task::{AbortHandle, JoinHandle},
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// Bytes of an answer that are read; kubelet reads as many.
const LONGEST_BODY: usize = 10 * 1024;
/// How long a connection may take to come free after its answer: it has only to be looked at.
const PARTING: Duration = Duration::from_millis(100);

/// Whom to ask.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Where.
    pub address: SocketAddr,
    /// Over TLS; none: in plaintext.
    pub https: Option<&'a Arc<ClientConfig>>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// Where a redirect leads.
    pub location: Option<String>,
    /// The first 10 KiB of its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// Success, in words.
    #[must_use]
    pub fn ok(text: &str) -> Self {
        Self { status: StatusCode::OK, location: None, body: format!("{text}\n").into() }
    }
}

/// Asks once. Without a bound in time: the caller has one.
///
/// # Errors
/// A sentence for people that names the address.
pub async fn get(target: Target<'_>, path: &str) -> Result<Answer, String> {
    ask(target, path, &[], None, false).await.map(|(answer, _)| answer)
}

/// The same with what a probe declares. Where the connection is to be kept and the application lets it be (it is in
/// plaintext, and has carried the answer to its end), it can be had after the answer.
///
/// # Errors
/// As [`get`].
pub async fn ask(
    target: Target<'_>,
    path: &str,
    headers: &[(String, String)],
    user_agent: Option<&HeaderValue>,
    keep: bool,
) -> Result<(Answer, Option<Parting>), String> {
    let keep = keep && target.https.is_none();
    let request = request(target.address, path, headers, user_agent, keep)?;
    let problem = |error: &dyn std::error::Error| match error.source() {
        Some(cause) => format!("{}: {error}: {cause}", target.address),
        None => format!("{}: {error}", target.address),
    };
    let io = TcpStream::connect(target.address).await.map_err(|error| problem(&error))?;
    match target.https {
        None => exchange(io, request, keep).await.map_err(|error| problem(&error)),
        Some(config) => {
            let name = ServerName::IpAddress(target.address.ip().into());
            let io = TlsConnector::from(Arc::clone(config)).connect(name, io).await;
            let io = io.map_err(|error| problem(&error))?;
            let (answer, _) = exchange(io, request, false).await.map_err(|error| problem(&error))?;
            Ok((answer, None))
        }
    }
}

fn request(
    address: SocketAddr,
    path: &str,
    headers: &[(String, String)],
    user_agent: Option<&HeaderValue>,
    keep: bool,
) -> Result<Request<Empty<Bytes>>, String> {
    let mut all = HeaderMap::new();
    for (name, value) in headers {
        let bad = || format!("the header {name:?} that the pod's spec declares cannot be sent");
        all.append(
            HeaderName::try_from(name).map_err(|_| bad())?,
            HeaderValue::try_from(value).map_err(|_| bad())?,
        );
    }
    let host = || HeaderValue::try_from(address.to_string()).expect("an address is visible ASCII");
    all.entry(HOST).or_insert_with(host);
    let agent = || user_agent.cloned().unwrap_or(HeaderValue::from_static("kube-probe/heddle"));
    all.entry(USER_AGENT).or_insert_with(agent);
    all.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    all.remove(CONNECTION);
    if !keep {
        all.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let uri: Uri =
        path.parse().map_err(|error| format!("the path {path:?} that the pod's spec declares: {error}"))?;
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = uri;
    *request.headers_mut() = all;
    Ok(request)
}

async fn exchange<I>(
    io: I,
    request: Request<Empty<Bytes>>,
    keep: bool,
) -> hyper::Result<(Answer, Option<Parting<I>>)>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    TokioIo<I>: Read + Write,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    let driver = tokio::spawn(connection.without_shutdown());
    let ends = EndOnDrop(driver.abort_handle());
    let response = sender.send_request(request).await?;
    let reusable = keep && is_reusable(&response);
    let (parts, body) = response.into_parts();
    let location = parts.headers.get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (body, whole) = beginning(body).await?;
    let parting = (reusable && whole).then_some(Parting { sender, driver, _ends: ends });
    Ok((Answer { status: parts.status, location, body }, parting))
}

/// A connection that has carried its answer; dropped, it is closed.
#[derive(Debug)]
pub struct Parting<I = TcpStream> {
    sender: SendRequest<Empty<Bytes>>,
    driver: JoinHandle<hyper::Result<Parts<TokioIo<I>>>>,
    _ends: EndOnDrop,
}

impl<I> Parting<I> {
    /// The connection, if nothing has come on it beyond the answer.
    pub async fn connection(self) -> Option<I> {
        let Self { mut sender, driver, _ends } = self;
        let free = async move {
            sender.ready().await.ok()?;
            // Nobody can ask any more, so hyper lets go of it.
            drop(sender);
            driver.await.ok()?.ok()
        };
        let parts = timeout(PARTING, free).await.ok()??;
        parts.read_buf.is_empty().then(|| parts.io.into_inner())
    }
}

/// Whether the server leaves the connection open for another request (RFC 9112, 9.3), and says one length of its answer.
fn is_reusable(response: &Response<Incoming>) -> bool {
    let closes = |value: &HeaderValue| {
        value
            .as_bytes()
            .split(|&byte| byte == b',')
            .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"))
    };
    let headers = response.headers();
    let two_lengths = headers.contains_key(CONTENT_LENGTH) && headers.contains_key(TRANSFER_ENCODING);
    response.version() == Version::HTTP_11 && !two_lengths && !headers.get_all(CONNECTION).iter().any(closes)
}

/// Its first bytes, and whether that is all of it; what follows is not waited for.
async fn beginning(mut body: Incoming) -> hyper::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let room = LONGEST_BODY - bytes.len();
        bytes.extend_from_slice(&data[..data.len().min(room)]);
        if bytes.len() == LONGEST_BODY {
            return Ok((bytes, false));
        }
    }
    Ok((bytes, true))
}

/// Whoever gives up, as by a timeout, leaves no connection behind.
#[derive(Debug)]
struct EndOnDrop(AbortHandle);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where a redirect leads on the same server, as a path with its query; none: elsewhere, or nowhere that can be read.
#[must_use]
pub fn same_server(target: Target<'_>, from: &str, location: &str) -> Option<String> {
    // RFC 3986, 4.2: a colon in the first segment ends a scheme, two slashes begin a server's name.
    let has_scheme = location.split(['/', '?', '#']).next().is_some_and(|first| first.contains(':'));
    if has_scheme || location.starts_with("//") {
        let uri: Uri = location.parse().ok()?;
        let https = target.https.is_some();
        let scheme = uri.scheme_str().unwrap_or(if https { "https" } else { "http" });
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
        let same = host == target.address.ip().to_string() && port == target.address.port();
        if !same || (scheme == "https") != https {
            return None;
        }
        return Some(uri.path_and_query().map_or("/".to_owned(), ToString::to_string));
    }
    if location.starts_with('/') {
        return Some(location.to_owned());
    }
    // RFC 3986, 5.2.3: it takes the place of the last segment.
    let path = from.split('?').next().unwrap_or("/");
    let folder = &path[..=path.rfind('/')?];
    Some(format!("{folder}{location}"))
}
