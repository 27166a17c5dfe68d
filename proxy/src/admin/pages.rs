//! The pages and who may ask for them how.

use std::fmt::Write;
use std::net::IpAddr;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST, ORIGIN, USER_AGENT};
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use tokio::time::timeout;

use super::seat::{Seat, Work};
use super::{Admin, EXCHANGE_TIME, Surface, config_view};
use crate::probe::Failure;
use crate::redirect::check;

/// Longest body that is read.
const BODY_LIMIT: usize = 4 * 1024;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Index,
    Ready,
    Metrics,
    Config,
    LogLevel,
    Instance,
    Probe,
}

impl Page {
    const ALL: [Self; 7] =
        [Self::Index, Self::Ready, Self::Metrics, Self::Config, Self::LogLevel, Self::Instance, Self::Probe];

    const fn path(self) -> &'static str {
        match self {
            Self::Index => "/",
            Self::Ready => "/ready",
            Self::Metrics => "/metrics",
            Self::Config => "/config",
            Self::LogLevel => "/log-level",
            Self::Instance => check::PAGE,
            Self::Probe => "/probe/",
        }
    }

    const fn about(self) -> &'static str {
        match self {
            Self::Index => "this list",
            Self::Ready => "200 when the sidecar can serve, 503 and what is missing when not",
            Self::Metrics => "what the sidecar counts, as OpenMetrics",
            Self::Config => "what the sidecar knows of the mesh, as JSON",
            Self::Instance => "a word that is this process's alone",
            Self::Probe => {
                "…<container>/<kind>: replays a probe or hook of the pod's spec, as that spells it"
            }
            Self::LogLevel => "the level of the log; PUT or POST another, as `info,heddle_proxy=debug`",
        }
    }

    const fn is_on(self, surface: Surface) -> bool {
        match surface {
            Surface::Admin => true,
            Surface::Metrics => matches!(self, Self::Ready | Self::Metrics | Self::Instance | Self::Probe),
        }
    }

    const fn methods(self) -> &'static str {
        match self {
            Self::LogLevel => "GET, HEAD, PUT, POST",
            _ => "GET, HEAD",
        }
    }

    fn find(surface: Surface, path: &str) -> Option<Self> {
        let is_at =
            |page: Self| page.path() == path || (page == Self::Probe && path.starts_with(page.path()));
        Self::ALL.into_iter().find(|&page| page.is_on(surface) && is_at(page))
    }
}

/// A hook that could not be run. Kubelet takes every status of a hook for success; only a connection that ends without
/// one is a failure to it (`runHTTPHandler` in its `pkg/kubelet/lifecycle/handlers.go`).
#[derive(Debug, thiserror::Error)]
#[error("the hook could not be run: {0}")]
pub(super) struct NotRun(String);

/// Answers one request. A HEAD is answered as a GET; the server leaves the body out.
///
/// # Errors
/// When the connection must end without an answer.
pub(super) async fn answer<B>(
    admin: &Admin,
    surface: Surface,
    seat: &Seat,
    request: Request<B>,
) -> Result<Response<Full<Bytes>>, NotRun>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    if surface == Surface::Admin && !is_direct(&parts) {
        let text = "the admin pages are asked for by address or as localhost, and by no web page\n";
        return Ok(response(StatusCode::FORBIDDEN, TEXT, text));
    }
    let Some(page) = Page::find(surface, parts.uri.path()) else {
        return Ok(no_such_page(surface));
    };
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    Ok(match page {
        Page::LogLevel if matches!(parts.method, Method::PUT | Method::POST) => set_level(admin, body).await,
        _ if !reads => {
            let text = format!("{} takes {}\n", page.path(), page.methods());
            let mut response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(page.methods()));
            response
        }
        Page::Metrics | Page::Config if !seat.take(Work::Page) => {
            response(StatusCode::SERVICE_UNAVAILABLE, TEXT, busy(page))
        }
        Page::Index => response(StatusCode::OK, TEXT, index(surface)),
        Page::Ready => match admin.missing() {
            None => response(StatusCode::OK, TEXT, "ready\n"),
            Some(missing) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready\n{missing}")),
        },
        Page::Metrics => response(StatusCode::OK, OPEN_METRICS, admin.scrape()),
        Page::Config => response(StatusCode::OK, JSON, config_view::text(admin)),
        Page::LogLevel => show_level(admin),
        Page::Instance => response(StatusCode::OK, TEXT, admin.instance.to_string()),
        Page::Probe => {
            let asked = parts.uri.path_and_query().map_or("", |asked| asked.as_str());
            let place = asked.strip_prefix(page.path()).unwrap_or_default();
            // Who does not know the token is told no more than of any other page.
            let Some((kind, probe)) = admin.probes.find(place) else { return Ok(no_such_page(surface)) };
            let answer = if seat.take(Work::Replay) {
                admin.probes.replay(kind, probe, parts.headers.get(USER_AGENT)).await
            } else {
                Err(Failure { status: StatusCode::SERVICE_UNAVAILABLE, reason: busy(page) })
            };
            match answer {
                Ok(answer) => response(answer.status, TEXT, answer.body),
                Err(failure) if kind.is_hook() => {
                    let reason = failure.reason;
                    tracing::warn!(hook = %kind, reason, "a lifecycle hook of the pod could not be run");
                    return Err(NotRun(reason));
                }
                Err(failure) => response(failure.status, TEXT, failure.reason),
            }
        }
    })
}

/// Whether no web page in somebody's browser is behind the request. A page of another origin can have the browser POST
/// to loopback, and says so in Origin; one whose own name was made to point here (DNS rebinding) has that name in Host.
fn is_direct(parts: &http::request::Parts) -> bool {
    let host = parts.headers.get(HOST).map(HeaderValue::as_bytes);
    let names_us = host.is_none_or(|host| {
        let authority = Authority::try_from(host).ok();
        authority.is_some_and(|authority| {
            let name = authority.host().trim_start_matches('[').trim_end_matches(']');
            name.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
        })
    });
    names_us && !parts.headers.contains_key(ORIGIN)
}

fn no_such_page(surface: Surface) -> Response<Full<Bytes>> {
    response(StatusCode::NOT_FOUND, TEXT, format!("no such page; there are:\n{}", index(surface)))
}

fn busy(page: Page) -> String {
    format!("{} is being answered too often at once\n", page.path())
}

fn index(surface: Surface) -> String {
    let mut text = String::new();
    for page in Page::ALL.into_iter().filter(|page| page.is_on(surface)) {
        writeln!(text, "{:<12} {}", page.path(), page.about()).expect("writing to a String does not fail");
    }
    text
}

fn show_level(admin: &Admin) -> Response<Full<Bytes>> {
    match admin.logs.level.show() {
        Ok(level) => response(StatusCode::OK, TEXT, format!("{level}\n")),
        Err(error) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{error}\n")),
    }
}

async fn set_level<B>(admin: &Admin, body: B) -> Response<Full<Bytes>>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let refuse = |reason: &dyn std::fmt::Display| {
        response(StatusCode::BAD_REQUEST, TEXT, format!("the level stays as it is: {reason}\n"))
    };
    let body = match timeout(EXCHANGE_TIME, Limited::new(body, BODY_LIMIT).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return refuse(&error),
        Err(late) => return refuse(&late),
    };
    let level = match std::str::from_utf8(&body) {
        Ok(level) => level.trim(),
        Err(error) => return refuse(&error),
    };
    match admin.logs.level.set(level) {
        Ok(()) => {
            tracing::info!(level, "the log level was changed");
            show_level(admin)
        }
        Err(error) => refuse(&error),
    }
}

fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
