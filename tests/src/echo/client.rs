//! The client: asks, once or often, and says what came back.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, crypto::aws_lc_rs};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

use super::{Lines, capitalised, grpc};
use crate::peer::Anyone;

/// What is to be asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// `http`, `https`, `grpc` or `tcp`, a host, perhaps a port and a path.
    pub url: Uri,
    /// Of HTTP.
    pub method: Method,
    /// Sent with each request; `Host` goes in the place of the URL's.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How often, one after the other.
    pub count: u32,
    /// For each request, the connecting included.
    pub timeout: Duration,
    /// HTTP/2 without asking beforehand.
    pub http2: bool,
    /// What gRPC and TCP send.
    pub message: String,
}

/// `Name:value`, as `-H` has it.
///
/// # Errors
/// When it is not of this form, or cannot be sent.
pub fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("{text:?} is not NAME:VALUE"))?;
    let name = HeaderName::try_from(name.trim()).map_err(|_| format!("{name:?} is no header's name"))?;
    let value = HeaderValue::try_from(value.trim()).map_err(|_| format!("{value:?} cannot be sent"))?;
    Ok((name, value))
}

/// Asks; gives what there is to print, an empty line after each request's.
///
/// # Errors
/// When a request gets no answer, or a gRPC call another than OK. Redirects are answers, they are not followed.
pub async fn ask(question: &Question) -> anyhow::Result<String> {
    let mut client = Client::new(question)?;
    let mut output = String::new();
    for id in 0..question.count {
        let section = tokio::time::timeout(question.timeout, client.ask(id));
        let section =
            section.await.with_context(|| format!("request {id}: no answer in {:?}", question.timeout))?;
        let lines = section.with_context(|| format!("request {id} to {}", question.url))?;
        output.push_str(&lines);
        output.push('\n');
    }
    Ok(output)
}

/// Two kinds of line: what the client says itself, and what the server's body said.
struct Section {
    id: u32,
    own: Lines,
}

impl Section {
    fn new(id: u32) -> Self {
        Self { id, own: Lines::default() }
    }

    fn end(self, body: &str) -> String {
        let Self { id, own } = self;
        let own = own.0.lines().map(|line| format!("[{id}] {line}\n"));
        let body = body.lines().filter(|line| !line.is_empty()).map(|line| format!("[{id} body] {line}\n"));
        own.chain(body).collect()
    }
}

/// A connection that is kept for the next request.
enum Kept {
    Http1(conn::http1::SendRequest<Full<Bytes>>),
    Http2(conn::http2::SendRequest<Full<Bytes>>),
    Grpc(tonic::transport::Channel),
}

struct Client<'a> {
    question: &'a Question,
    scheme: &'a str,
    host: &'a str,
    port: u16,
    kept: Option<Kept>,
}

impl<'a> Client<'a> {
    fn new(question: &'a Question) -> anyhow::Result<Self> {
        let url = &question.url;
        let (scheme, host) =
            (url.scheme_str().unwrap_or("http"), url.host().context("the URL names no host")?);
        let port = match (url.port_u16(), scheme) {
            (Some(port), "http" | "https" | "grpc" | "tcp") => port,
            (None, "http") => 80,
            (None, "https") => 443,
            (None, "grpc" | "tcp") => bail!("{url} names no port"),
            _ => bail!("{scheme} is none of http, https, grpc, tcp"),
        };
        // The URL's brackets around an IPv6 address are not the address's.
        let host = host.trim_matches(['[', ']']);
        Ok(Self { question, scheme, host, port, kept: None })
    }

    async fn ask(&mut self, id: u32) -> anyhow::Result<String> {
        match self.scheme {
            "grpc" => self.grpc(id).await,
            "tcp" => self.tcp(id).await,
            _ => self.http(id).await,
        }
    }

    async fn connect(&self) -> anyhow::Result<TcpStream> {
        let Self { host, port, .. } = self;
        let stream = TcpStream::connect((*host, *port))
            .await
            .with_context(|| format!("connecting to {host}:{port}"))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// The headers of `-H`, without the one that names the host.
    fn headers(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.question.headers.iter().filter(|(name, _)| *name != header::HOST)
    }

    /// What the request calls its server.
    fn authority(&self) -> anyhow::Result<&str> {
        let named = self.question.headers.iter().find(|(name, _)| *name == header::HOST);
        match (named, self.question.url.authority()) {
            (Some((_, value)), _) => Ok(value.to_str()?),
            (None, Some(authority)) => Ok(authority.as_str()),
            (None, None) => bail!("the URL names no host"),
        }
    }

    async fn http(&mut self, id: u32) -> anyhow::Result<String> {
        let mut section = Section::new(id);
        section.own.say("Url", &self.question.url);
        for (name, value) in &self.question.headers {
            section.own.say("Header", format_args!("{}:{}", capitalised(name), super::text(value)));
        }
        let response = self.http_response().await?;
        section.own.say("StatusCode", response.status().as_u16());
        section.own.say_headers("ResponseHeader", response.headers(), capitalised);
        let body = response.into_body().collect().await.context("reading the answer")?.to_bytes();
        Ok(section.end(&String::from_utf8_lossy(&body)))
    }

    async fn http_response(&mut self) -> anyhow::Result<Response<Incoming>> {
        // A kept connection may have been closed by its server meanwhile.
        let ready = match &mut self.kept {
            Some(Kept::Http1(kept)) => kept.ready().await.is_ok(),
            Some(Kept::Http2(kept)) => kept.ready().await.is_ok(),
            _ => false,
        };
        if !ready {
            self.kept = Some(self.open().await?);
        }
        let path = self.question.url.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder().method(&self.question.method);
        for (name, value) in self.headers() {
            request = request.header(name, value);
        }
        let authority = self.authority()?;
        let empty = Full::default();
        let request = match &self.kept {
            Some(Kept::Http2(_)) => {
                let scheme = if self.scheme == "https" { "https" } else { "http" };
                request.version(Version::HTTP_2).uri(format!("{scheme}://{authority}{path}")).body(empty)?
            }
            _ => request.header(header::HOST, authority).uri(path).body(empty)?,
        };
        match &mut self.kept {
            Some(Kept::Http1(kept)) => Ok(kept.send_request(request).await?),
            Some(Kept::Http2(kept)) => Ok(kept.send_request(request).await?),
            _ => bail!("not a connection of HTTP"),
        }
    }

    async fn open(&self) -> anyhow::Result<Kept> {
        let stream = self.connect().await?;
        if self.scheme != "https" {
            return speak(stream, self.question.http2).await;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            // As `curl --insecure`: the server's certificate is its own making.
            .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
            .with_no_client_auth();
        let protocol: &[u8] = if self.question.http2 { b"h2" } else { b"http/1.1" };
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from(self.host.to_owned())?;
        let stream =
            TlsConnector::from(Arc::new(config)).connect(name, stream).await.context("the TLS handshake")?;
        speak(stream, self.question.http2).await
    }

    async fn grpc(&mut self, id: u32) -> anyhow::Result<String> {
        let channel = match &self.kept {
            Some(Kept::Grpc(channel)) => channel.clone(),
            _ => {
                let origin = format!("http://{}", self.authority()?).parse()?;
                let address = self.question.url.authority().context("the URL names no host")?;
                let endpoint = Endpoint::from_shared(format!("http://{address}"))?.origin(origin);
                let channel = endpoint.connect().await.with_context(|| format!("connecting to {address}"))?;
                self.kept = Some(Kept::Grpc(channel.clone()));
                channel
            }
        };
        let message = self.question.message.clone();
        let mut request = tonic::Request::new(grpc::EchoRequest { message });
        let mut metadata = std::mem::take(request.metadata_mut()).into_headers();
        for (name, value) in self.headers() {
            metadata.append(name.clone(), value.clone());
        }
        *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(metadata);
        let mut section = Section::new(id);
        section.own.say("Url", &self.question.url);
        let response = match grpc::call(channel, request).await {
            Ok(response) => response,
            Err(status) => bail!("{:?}: {}", status.code(), status.message()),
        };
        for (name, value) in grpc::metadata(&response) {
            section.own.say("ResponseHeader", format_args!("{name}:{value}"));
        }
        Ok(section.end(&response.get_ref().message))
    }

    async fn tcp(&mut self, id: u32) -> anyhow::Result<String> {
        let mut stream = self.connect().await?;
        stream.write_all(format!("{}\n", self.question.message).as_bytes()).await?;
        stream.shutdown().await?;
        let mut body = String::new();
        stream.read_to_string(&mut body).await?;
        ensure!(!body.is_empty(), "the connection was closed without a word");
        let mut section = Section::new(id);
        section.own.say("Url", &self.question.url);
        Ok(section.end(&body))
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    http2: bool,
) -> anyhow::Result<Kept> {
    let stream = TokioIo::new(stream);
    if http2 {
        let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), stream).await?;
        // Its end shows in the sender.
        tokio::spawn(connection);
        return Ok(Kept::Http2(sender));
    }
    let (sender, connection) = conn::http1::Builder::new().title_case_headers(true).handshake(stream).await?;
    tokio::spawn(connection);
    Ok(Kept::Http1(sender))
}
