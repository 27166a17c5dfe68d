//! The admin listener: `/ready`, `/metrics`, `/diagnostics` (`?format=text` for people), `/streams`. Plain HTTP, on
//! loopback by default; it shows state and changes none.

use std::{convert::Infallible, fmt::Write as _, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{diagnostics::Diagnostic, hub::Hub, metrics::Metrics};

/// Connections at once.
const CONNECTIONS: usize = 64;
/// A request's head must be there in this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection ends after this long whatever it does, so that idle ones do not use up [`CONNECTIONS`].
const LIFE: Duration = Duration::from_secs(300);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until told to stop.
pub async fn run(listener: TcpListener, hub: Arc<Hub>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        let Ok((io, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (hub, metrics) = (Arc::clone(&hub), Arc::clone(&metrics));
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let response = answer(&hub, &metrics, request.method(), request.uri());
                async { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(io), service);
            // Whatever ends it, the client sees it.
            let _ended = tokio::time::timeout(LIFE, connection).await;
            drop(permit);
        });
    }
}

fn answer(hub: &Hub, metrics: &Metrics, method: &Method, uri: &http::Uri) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n".to_owned());
    }
    match uri.path() {
        "/ready" if hub.is_synced() => respond(StatusCode::OK, TEXT, "ready\n".to_owned()),
        "/ready" => respond(
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            "not ready: the objects are still being read\n".to_owned(),
        ),
        "/metrics" => respond(StatusCode::OK, OPEN_METRICS, metrics.encode()),
        "/diagnostics"
            if uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "format=text")) =>
        {
            respond(StatusCode::OK, TEXT, readable(&hub.diagnostics()))
        }
        "/diagnostics" => json(&hub.diagnostics()),
        "/streams" => json(&hub.streams().statuses()),
        _ => respond(StatusCode::NOT_FOUND, TEXT, "try /ready /metrics /diagnostics /streams\n".to_owned()),
    }
}

/// One problem a line, or a line that there is none.
fn readable(problems: &[Diagnostic]) -> String {
    if problems.is_empty() {
        return "no problems\n".to_owned();
    }
    problems.iter().fold(String::new(), |mut text, problem| {
        // Writing to a String cannot fail.
        let _written = writeln!(text, "{problem}");
        text
    })
}

fn json<T: serde::Serialize>(value: &T) -> Response<Full<Bytes>> {
    match serde_json::to_string_pretty(value) {
        Ok(text) => respond(StatusCode::OK, JSON, text + "\n"),
        Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
