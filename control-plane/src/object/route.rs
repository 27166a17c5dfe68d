//! One form for HTTPRoute, GRPCRoute and TCPRoute, checked once.
//!
//! The generated types of the Gateway API repeat every filter and reference for each place where it may stand. They
//! all have the same shape in JSON, so they are read from there into the few types below; that happens when an
//! object changes, never for a request or a subscription.

use std::fmt::Display;

use heddle_api::resources::Duration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Serialize};

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
    let mut check = Check { errors: Vec::new(), warnings: Vec::new() };
    check.spec(kind, &spec);
    if check.errors.is_empty() {
        Ok(Route {
            object: ObjectRef { kind, namespace: name.namespace, name: name.name },
            created: meta.creation_timestamp.clone(),
            spec,
            warnings: check.warnings,
        })
    } else {
        Err(check.errors)
    }
}

/// The limits of the specification that its generated types do not hold.
struct Check {
    errors: Vec<FieldError>,
    warnings: Vec<FieldError>,
}

impl Check {
    fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError::error(field, message));
    }

    fn within(&mut self, field: impl Display, value: Option<i64>, range: std::ops::RangeInclusive<i64>) {
        if let Some(value) = value
            && !range.contains(&value)
        {
            self.error(
                field.to_string(),
                format!("{value} is not within {} to {}", range.start(), range.end()),
            );
        }
    }

    fn duration(&mut self, field: impl Display, value: Option<&str>) {
        if let Some(text) = value
            && Duration::parse(text).is_none()
        {
            self.error(
                field.to_string(),
                format!("{text:?} is not a duration such as 500ms, 30s or 1h (GEP-2257)"),
            );
        }
    }

    fn regex(&mut self, field: impl Display, kind: TextKind, value: &str) {
        if kind == TextKind::RegularExpression
            && let Err(error) = regex::Regex::new(value)
        {
            // The first line of the message is a picture of the expression; the last says what is wrong.
            let text = error.to_string();
            let cause = text.lines().last().unwrap_or_default();
            self.error(field.to_string(), format!("{value:?} is not a regular expression: {cause}"));
        }
    }

    fn header_name(&mut self, field: impl Display, name: &str) {
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            self.error(field.to_string(), format!("{name:?} is not the name of a header"));
        }
    }

    fn spec(&mut self, kind: Kind, spec: &Spec) {
        let mesh = spec.parent_refs.iter().any(ParentRef::is_service);
        if mesh && !spec.hostnames.is_empty() {
            self.warnings.push(FieldError::warning(
                "spec.hostnames",
                "has no effect on a Service parent: whoever asks for the Service gets the route",
            ));
        }
        for (i, parent) in spec.parent_refs.iter().enumerate() {
            self.within(format_args!("spec.parentRefs[{i}].port"), parent.port, 1..=65535);
        }
        if kind == Kind::TcpRoute && spec.rules.len() != 1 {
            self.error("spec.rules", format!("{} rules, but a TCPRoute has exactly one", spec.rules.len()));
        }
        for (i, rule) in spec.rules.iter().enumerate() {
            self.rule(&format!("spec.rules[{i}]"), rule);
        }
    }

    fn rule(&mut self, at: &str, rule: &Rule) {
        for (i, condition) in rule.matches.iter().enumerate() {
            self.condition(&format!("{at}.matches[{i}]"), condition);
        }
        let prefixes = rule.matches.iter().all(|m| m.path.as_ref().is_none_or(|p| p.kind == "PathPrefix"));
        self.filters(at, &rule.filters, prefixes);
        for (i, backend) in rule.backend_refs.iter().enumerate() {
            let at = format!("{at}.backendRefs[{i}]");
            self.within(format_args!("{at}.weight"), Some(backend.weight), 0..=1_000_000);
            self.within(format_args!("{at}.port"), backend.port, 1..=65535);
            self.filters(&at, &backend.filters, prefixes);
        }
        self.duration(format_args!("{at}.timeouts.request"), rule.timeouts.request.as_deref());
        self.duration(format_args!("{at}.timeouts.backendRequest"), rule.timeouts.backend_request.as_deref());
        if let Some(retry) = &rule.retry {
            self.within(format_args!("{at}.retry.attempts"), retry.attempts, 0..=1000);
            self.duration(format_args!("{at}.retry.backoff"), retry.backoff.as_deref());
            for (i, code) in retry.codes.iter().enumerate() {
                self.within(format_args!("{at}.retry.codes[{i}]"), Some(*code), 400..=599);
            }
        }
        if rule.session_persistence.is_some() {
            self.error(format!("{at}.sessionPersistence"), "is not supported");
        }
    }

    fn condition(&mut self, at: &str, condition: &Match) {
        if let Some(path) = &condition.path {
            let field = format!("{at}.path.value");
            if path.kind == "RegularExpression" {
                self.regex(field, TextKind::RegularExpression, &path.value);
            } else if !path.value.starts_with('/') {
                self.error(field, format!("{:?} does not begin with /", path.value));
            }
        }
        match &condition.method {
            Some(MethodMatch::Grpc { service, method, kind }) => {
                if service.is_empty() && method.is_empty() {
                    self.error(format!("{at}.method"), "neither service nor method is given");
                }
                self.regex(format_args!("{at}.method.service"), *kind, service);
                self.regex(format_args!("{at}.method.method"), *kind, method);
            }
            Some(MethodMatch::Http(_)) | None => {}
        }
        for (i, header) in condition.headers.iter().enumerate() {
            self.header_name(format_args!("{at}.headers[{i}].name"), &header.name);
            self.regex(format_args!("{at}.headers[{i}].value"), header.kind, &header.value);
        }
        for (i, query) in condition.query_params.iter().enumerate() {
            self.regex(format_args!("{at}.queryParams[{i}].value"), query.kind, &query.value);
        }
    }

    fn filters(&mut self, at: &str, filters: &[Filter], prefixes: bool) {
        for (i, filter) in filters.iter().enumerate() {
            let at = format!("{at}.filters[{i}]");
            let missing = |name: &str| format!("type is {} but {name} is not given", filter.kind);
            match filter.kind.as_str() {
                "RequestHeaderModifier" => match &filter.request_header_modifier {
                    Some(modifier) => self.modifier(&format!("{at}.requestHeaderModifier"), modifier),
                    None => self.error(&at, missing("requestHeaderModifier")),
                },
                "ResponseHeaderModifier" => match &filter.response_header_modifier {
                    Some(modifier) => self.modifier(&format!("{at}.responseHeaderModifier"), modifier),
                    None => self.error(&at, missing("responseHeaderModifier")),
                },
                "RequestRedirect" => match &filter.request_redirect {
                    Some(redirect) => self.redirect(&format!("{at}.requestRedirect"), redirect, prefixes),
                    None => self.error(&at, missing("requestRedirect")),
                },
                "URLRewrite" => match &filter.url_rewrite {
                    Some(rewrite) => {
                        self.path(&format!("{at}.urlRewrite.path"), rewrite.path.as_ref(), prefixes)
                    }
                    None => self.error(&at, missing("urlRewrite")),
                },
                "RequestMirror" => match &filter.request_mirror {
                    Some(mirror) => self.mirror(&format!("{at}.requestMirror"), mirror),
                    None => self.error(&at, missing("requestMirror")),
                },
                other => self.error(format!("{at}.type"), format!("{other} is not supported")),
            }
        }
    }

    fn modifier(&mut self, at: &str, modifier: &HeaderModifier) {
        for (list, headers) in [("set", &modifier.set), ("add", &modifier.add)] {
            for (i, header) in headers.iter().enumerate() {
                self.header_name(format_args!("{at}.{list}[{i}].name"), &header.name);
                if http::HeaderValue::from_str(&header.value).is_err() {
                    self.error(
                        format!("{at}.{list}[{i}].value"),
                        format!("{:?} cannot be sent", header.value),
                    );
                }
            }
        }
        for (i, name) in modifier.remove.iter().enumerate() {
            self.header_name(format_args!("{at}.remove[{i}]"), name);
        }
    }

    fn redirect(&mut self, at: &str, redirect: &Redirect, prefixes: bool) {
        self.within(format_args!("{at}.port"), redirect.port, 1..=65535);
        if let Some(code) = redirect.status_code
            && ![301, 302, 303, 307, 308].contains(&code)
        {
            self.error(format!("{at}.statusCode"), format!("{code} is not 301, 302, 303, 307 or 308"));
        }
        self.path(&format!("{at}.path"), redirect.path.as_ref(), prefixes);
    }

    fn path(&mut self, at: &str, path: Option<&PathModifier>, prefixes: bool) {
        let Some(path) = path else { return };
        match (path.kind.as_str(), &path.replace_full_path, &path.replace_prefix_match) {
            ("ReplaceFullPath", Some(_), None) => {}
            ("ReplacePrefixMatch", None, Some(_)) if prefixes => {}
            ("ReplacePrefixMatch", None, Some(_)) => {
                self.error(at, "ReplacePrefixMatch needs matches of type PathPrefix alone");
            }
            (kind, ..) => self.error(at, format!("type is {kind}, and exactly its own field must be given")),
        }
    }

    fn mirror(&mut self, at: &str, mirror: &Mirror) {
        self.within(format_args!("{at}.percent"), mirror.percent, 0..=100);
        self.within(format_args!("{at}.backendRef.port"), mirror.backend_ref.port, 1..=65535);
        if let Some(Fraction { numerator, denominator }) = mirror.fraction {
            self.within(
                format_args!("{at}.fraction.denominator"),
                Some(denominator),
                1..=i64::from(i32::MAX),
            );
            self.within(format_args!("{at}.fraction.numerator"), Some(numerator), 0..=denominator.max(0));
            if mirror.percent.is_some() {
                self.error(at, "percent and fraction are both given");
            }
        }
    }
}
