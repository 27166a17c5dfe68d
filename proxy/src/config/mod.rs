//! What a sidecar knows of the mesh, as a request reads it: immutable once built, swapped whole.
//!
//! The proto messages are checked and turned into these types once, in [`convert`]; past it nothing is a bare
//! string or number of unknown unit. What must outlive a config change (load, ejection, budgets, the list of
//! endpoints) hangs on [`BackendState`], which every new [`Destination`] shares with the one before.

pub mod convert;
mod endpoints;
pub mod inbound;
pub mod policy;

pub use endpoints::{BackendState, Endpoint, EndpointSet, Hints, Near, Place};
pub use inbound::Inbound;
pub use policy::{Algorithm, Ejection, Policy, RetryPolicy};

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method, StatusCode};
use regex::Regex;

/// Where a name or an address leads: one Service port.
#[derive(Debug)]
pub struct Destination {
    /// `namespace/name:port`, for metrics and logs.
    pub service: Arc<str>,
    /// What the port declares.
    pub protocol: AppProtocol,
    /// In order of precedence; the first that matches wins.
    pub routes: Vec<Route>,
    /// What the routes lead to.
    pub rules: Vec<Rule>,
    /// Where opaque connections go when a TCPRoute is attached.
    pub tcp: Option<Split>,
    /// Serves when no route is attached.
    pub default: Option<Arc<Backend>>,
}

/// What an application port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AppProtocol {
    /// Nothing declared: the client's bytes decide, the application gets what the client spoke.
    #[default]
    Detect,
    /// HTTP for certain; the version is the client's.
    Http,
    /// HTTP/1.1, whatever the client spoke.
    Http1,
    /// HTTP/2 without TLS, gRPC among it.
    Http2,
    /// Not to be looked into.
    Opaque,
}

/// One match, leading to one rule.
#[derive(Debug)]
pub struct Route {
    /// `namespace/name` of the HTTPRoute or GRPCRoute.
    pub name: Arc<str>,
    /// Index into [`Destination::rules`]; always valid.
    pub rule: usize,
    /// The path's condition.
    pub path: PathMatch,
    /// The method's; none: any.
    pub method: Option<Method>,
    /// All must hold.
    pub headers: Vec<(HeaderName, TextMatch)>,
    /// All must hold; names are case-sensitive.
    pub query: Vec<(String, TextMatch)>,
}

/// A condition on the path.
#[derive(Debug)]
pub enum PathMatch {
    /// Any path.
    Any,
    /// This path alone.
    Exact(String),
    /// On segment borders; stored without a trailing slash (`/` as the empty string).
    Prefix(String),
    /// Anchored at both ends.
    Regex(Regex),
}

/// A condition on a value.
#[derive(Debug)]
pub enum TextMatch {
    /// This value alone.
    Exact(String),
    /// Anchored at both ends.
    Regex(Regex),
}

/// What happens to a request that matched.
#[derive(Debug, Default)]
pub struct Rule {
    /// The rule's name, or empty.
    pub name: String,
    /// In the order declared.
    pub filters: Vec<Filter>,
    /// Where requests go.
    pub split: Split,
    /// Of the whole exchange, retries included. Wins over the policy's.
    pub request_timeout: Option<Duration>,
    /// Of each try.
    pub backend_timeout: Option<Duration>,
    /// Wins over the policy's.
    pub retry: Option<RetryPolicy>,
}

/// Weighted backends.
#[derive(Debug, Default)]
pub struct Split {
    /// In the order declared.
    pub entries: Vec<SplitEntry>,
    /// Sum of the weights; 0: nothing can be picked.
    pub total: u64,
}

/// One share of a [`Split`].
#[derive(Debug)]
pub struct SplitEntry {
    /// The share, of [`Split::total`].
    pub weight: u32,
    /// None: declared, but there is no such backend. Its share is answered 500 (HTTPRoute specification).
    pub backend: Option<Arc<Backend>>,
    /// The name as declared, for logs.
    pub name: Arc<str>,
    /// Of this share alone, after the rule's.
    pub filters: Vec<Filter>,
}

/// What is done to a request or its response on the way.
#[derive(Debug)]
pub enum Filter {
    /// Changes the request's headers.
    RequestHeaders(HeaderModifier),
    /// Changes the response's headers.
    ResponseHeaders(HeaderModifier),
    /// Answers at once.
    Redirect(Redirect),
    /// Changes host or path.
    Rewrite(Rewrite),
    /// Sends a copy elsewhere and forgets it.
    Mirror(Mirror),
}

/// Header changes, applied in the order set, add, remove.
#[derive(Debug, Default)]
pub struct HeaderModifier {
    /// Replace or create.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Append.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Drop.
    pub remove: Vec<HeaderName>,
}

/// An answer that sends the client elsewhere (HTTPRequestRedirectFilter).
#[derive(Debug)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Without port.
    pub hostname: Option<String>,
    /// As declared.
    pub port: Option<u16>,
    /// The new path.
    pub path: Option<PathModifier>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// A change of host or path (HTTPURLRewriteFilter).
#[derive(Debug)]
pub struct Rewrite {
    /// The new Host or `:authority`.
    pub hostname: Option<HeaderValue>,
    /// The new path.
    pub path: Option<PathModifier>,
}

/// A new path.
#[derive(Debug)]
pub enum PathModifier {
    /// The whole of it (the query stays).
    Full(String),
    /// What the route's prefix matched is replaced; stored without a trailing slash.
    Prefix(String),
}

/// A copy of requests (HTTPRequestMirrorFilter).
#[derive(Debug)]
pub struct Mirror {
    /// None: no such backend, nothing is copied.
    pub backend: Option<Arc<Backend>>,
    /// Copies `numerator` of `denominator` requests; the denominator is never 0.
    pub numerator: u32,
    /// See `numerator`.
    pub denominator: u32,
}

/// One Service port as its callers reach it.
#[derive(Debug)]
pub struct Backend {
    /// `namespace/name:port`.
    pub key: Arc<str>,
    /// What its port declares.
    pub protocol: AppProtocol,
    /// How it is called.
    pub policy: Policy,
    /// What outlives the config.
    pub state: Arc<BackendState>,
}
