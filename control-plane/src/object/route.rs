//! One form for HTTPRoute, GRPCRoute and TCPRoute, checked once.
//!
//! The generated types of the Gateway API repeat every filter and reference for each place where it may stand. They
//! all have the same shape in JSON, so they are read from there into the few types below; that happens when an
//! object changes, never for a request or a subscription.

mod limits;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Serialize};

use self::limits::Limits;
use super::{Kind, Object, ObjectRef, name_of};
use crate::diagnostics::FieldError;

/// A route of any kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Which object it is.
    pub object: ObjectRef,
    /// When it was made; unknown in directory mode.
    pub created: Option<Time>,
    /// What it says.
    pub spec: Spec,
    /// What is odd about it without making it useless.
    pub warnings: Vec<FieldError>,
}

/// The spec.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct Spec {
    pub hostnames: Vec<String>,
    pub parent_refs: Vec<ParentRef>,
    pub rules: Vec<Rule>,
}

/// What a route is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct ParentRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub name: String,
    pub namespace: Option<String>,
    pub port: Option<i64>,
    pub section_name: Option<String>,
}

impl ParentRef {
    /// Whether the parent is a Service; others (a Gateway) are somebody else's business.
    #[must_use]
    pub fn is_service(&self) -> bool {
        self.group.as_deref() == Some("") && self.kind.as_deref() == Some("Service")
    }
}

/// Matches, filters, backends.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct Rule {
    pub name: String,
    pub matches: Vec<Match>,
    pub filters: Vec<Filter>,
    pub backend_refs: Vec<BackendRef>,
    pub timeouts: Timeouts,
    pub retry: Option<Retry>,
    pub session_persistence: Option<serde_json::Value>,
}

/// A condition.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct Match {
    pub path: Option<PathMatch>,
    pub method: Option<MethodMatch>,
    pub headers: Vec<ValueMatch>,
    pub query_params: Vec<ValueMatch>,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct PathMatch {
    #[serde(rename = "type", default = "path_prefix")]
    pub kind: String,
    #[serde(default = "slash")]
    pub value: String,
}

fn path_prefix() -> String {
    "PathPrefix".to_owned()
}

fn slash() -> String {
    "/".to_owned()
}

/// A condition on the method: HTTP's or gRPC's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub enum MethodMatch {
    Http(String),
    Grpc {
        #[serde(default)]
        service: String,
        #[serde(default)]
        method: String,
        #[serde(rename = "type", default)]
        kind: TextKind,
    },
}

/// How a text is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum TextKind {
    /// As a whole, letter by letter.
    #[default]
    Exact,
    /// By a regular expression, anchored at both ends.
    RegularExpression,
}

/// A condition on a header or query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct ValueMatch {
    pub name: String,
    #[serde(rename = "type", default)]
    pub kind: TextKind,
    pub value: String,
}

/// A filter: the field that `type` names is set.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct Filter {
    #[serde(rename = "type")]
    pub kind: String,
    pub request_header_modifier: Option<HeaderModifier>,
    pub response_header_modifier: Option<HeaderModifier>,
    pub request_redirect: Option<Redirect>,
    pub url_rewrite: Option<Rewrite>,
    pub request_mirror: Option<Mirror>,
}

/// Header changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct HeaderModifier {
    pub set: Vec<Header>,
    pub add: Vec<Header>,
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct Header {
    pub name: String,
    pub value: String,
}

/// An answer that sends the client elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct Redirect {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub port: Option<i64>,
    pub path: Option<PathModifier>,
    pub status_code: Option<i64>,
}

/// A change of host or path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct Rewrite {
    pub hostname: Option<String>,
    pub path: Option<PathModifier>,
}

/// A new path.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct PathModifier {
    #[serde(rename = "type")]
    pub kind: String,
    pub replace_full_path: Option<String>,
    pub replace_prefix_match: Option<String>,
}

/// A copy of requests.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct Mirror {
    pub backend_ref: BackendRef,
    pub percent: Option<i64>,
    pub fraction: Option<Fraction>,
}

/// A share of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct Fraction {
    pub numerator: i64,
    #[serde(default = "hundred")]
    pub denominator: i64,
}

const fn hundred() -> i64 {
    100
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct BackendRef {
    #[serde(default)]
    pub group: String,
    #[serde(default = "service")]
    pub kind: String,
    pub name: String,
    pub namespace: Option<String>,
    pub port: Option<i64>,
    #[serde(default = "one")]
    pub weight: i64,
    #[serde(default)]
    pub filters: Vec<Filter>,
}

fn service() -> String {
    "Service".to_owned()
}

const fn one() -> i64 {
    1
}

/// How long a request may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct Timeouts {
    pub request: Option<String>,
    pub backend_request: Option<String>,
}

/// What is tried again (GEP-1731).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the Gateway API documents its fields")]
pub struct Retry {
    pub attempts: Option<i64>,
    pub backoff: Option<String>,
    pub codes: Vec<i64>,
}

impl Route {
    /// Reads and checks a route; `None` for objects that are not routes.
    ///
    /// # Errors
    /// What is wrong with the route by itself. A route with an error is attached nowhere.
    pub fn read(object: &Object) -> Option<Result<Self, Vec<FieldError>>> {
        match object {
            Object::HttpRoute(route) => Some(read(Kind::HttpRoute, &route.metadata, &route.spec)),
            Object::GrpcRoute(route) => Some(read(Kind::GrpcRoute, &route.metadata, &route.spec)),
            Object::TcpRoute(route) => Some(read(Kind::TcpRoute, &route.metadata, &route.spec)),
            _ => None,
        }
    }

    /// `namespace/name`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.object.namespace, self.object.name)
    }
}

fn read(kind: Kind, meta: &ObjectMeta, spec: &impl Serialize) -> Result<Route, Vec<FieldError>> {
    let name = name_of(meta);
    let spec: Spec = serde_json::to_value(spec)
        .and_then(serde_json::from_value)
        .map_err(|error| vec![FieldError::error("spec", error.to_string())])?;
    let Limits { errors, warnings } = Limits::check(kind, &spec);
    if errors.is_empty() {
        Ok(Route {
            object: ObjectRef { kind, namespace: name.namespace, name: name.name },
            created: meta.creation_timestamp.clone(),
            spec,
            warnings,
        })
    } else {
        Err(errors)
    }
}
