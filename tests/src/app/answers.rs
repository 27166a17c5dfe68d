//! What the scripted HTTP application answers, by path.
//!
//! | path | answer |
//! |---|---|
//! | `/echo` | the request's body as it comes; then the trailer `x-echo: done`, or gRPC's status |
//! | `/count` | how many bytes the request's body had, once it is all there |
//! | `/status/418` | that status |
//! | `/bytes/1000` | so many bytes |
//! | `/sleep/50` | after so many milliseconds |
//! | `/upgrade` | 101 to the protocol asked for, then an echo |
//! | `/refuse-upgrade` | 403 |
//! | anything else | the version's name |
//!
//! All but `/echo`, `/upgrade` and `/refuse-upgrade` have read the request's body before: hyper closes a connection whose
//! handler did not, without a word, and a request that meets that end is lost by no fault of the mesh.

use std::{io, time::Duration};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use crate::client::{Body, body, empty};

pub(super) async fn to(request: Request<Incoming>, version: &str) -> io::Result<Response<Body>> {
    let path = request.uri().path().to_owned();
    let mut response = match path.split('/').skip(1).collect::<Vec<_>>()[..] {
        ["echo"] => echo(request),
        ["upgrade"] => upgrade(request),
        ["refuse-upgrade"] => bare(403),
        ref path => {
            let read = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
            match path[..] {
                ["count"] => Response::new(body(read.len().to_string())),
                ["status", code] => bare(code.parse().unwrap_or(500)),
                ["bytes", count] => Response::new(body(vec![b'x'; count.parse().unwrap_or(0)])),
                ["sleep", ms] => {
                    tokio::time::sleep(Duration::from_millis(ms.parse().unwrap_or(0))).await;
                    Response::new(body(version.to_owned()))
                }
                _ => Response::new(body(format!("{version}\n"))),
            }
        }
    };
    sign(&mut response, version);
    Ok(response)
}

pub(super) fn status(code: u16, version: &str) -> Response<Body> {
    let mut response = bare(code);
    sign(&mut response, version);
    response
}

fn sign(response: &mut Response<Body>, version: &str) {
    if let Ok(version) = HeaderValue::from_str(version) {
        response.headers_mut().insert("x-version", version);
    }
}

fn bare(code: u16) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

fn echo(request: Request<Incoming>) -> Response<Body> {
    let is_grpc =
        request.headers().get("content-type").is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    let mut headers = HeaderMap::new();
    if let Some(kind) = request.headers().get("content-type") {
        headers.insert("content-type", kind.clone());
    }
    let trailer = if is_grpc { ("grpc-status", "0") } else { ("x-echo", "done") };
    if request.version() < Version::HTTP_2 {
        // Without these hyper sends no trailers over HTTP/1.
        headers.insert("trailer", HeaderValue::from_static(trailer.0));
        headers.insert("transfer-encoding", HeaderValue::from_static("chunked"));
    }
    let mut trailers = HeaderMap::new();
    trailers.insert(trailer.0, HeaderValue::from_static(trailer.1));
    let body = request
        .into_body()
        .map_err(io::Error::other)
        .with_trailers(async move { Some(Ok::<_, io::Error>(trailers)) })
        .boxed();
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    response
}

fn upgrade(mut request: Request<Incoming>) -> Response<Body> {
    let Some(protocol) = request.headers().get("upgrade").cloned() else { return bare(426) };
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrading.await {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
        }
    });
    let mut response = bare(101);
    response.headers_mut().insert("upgrade", protocol);
    response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
    response
}
