//! The limits of the Gateway API that its generated types do not hold, and what of it is not supported.

use std::fmt::Display;

use heddle_api::resources::Duration;

use super::{
    Filter, Fraction, HeaderModifier, Match, MethodMatch, Mirror, ParentRef, PathModifier, Redirect, Rule,
    Spec, TextKind,
};
use crate::{diagnostics::FieldError, object::Kind};

/// Memory of one compiled expression, as the sidecar has it.
const REGEX_BYTES: usize = 1 << 20;
/// Headers that say where a message ends or belong to one connection. A sidecar refuses a filter that changes them.
const FRAMING: [&str; 7] =
    ["connection", "content-length", "te", "trailer", "transfer-encoding", "upgrade", "expect"];

/// What was found. Whatever a sidecar would refuse is an error here, where its owner sees it: a sidecar refuses the
/// whole Destination.
#[derive(Default)]
pub(super) struct Limits {
    pub errors: Vec<FieldError>,
    pub warnings: Vec<FieldError>,
}

impl Limits {
    pub(super) fn check(kind: Kind, spec: &Spec) -> Self {
        let mut limits = Self::default();
        limits.spec(kind, spec);
        limits
    }

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

    /// The sidecar anchors the expression and gives it as much memory.
    fn regex(&mut self, field: impl Display, kind: TextKind, value: &str) {
        let built = |text: &str| regex::RegexBuilder::new(text).size_limit(REGEX_BYTES).build();
        if kind == TextKind::RegularExpression
            && let Err(error) = built(value).and_then(|_| built(&format!(r"\A(?:{value})\z")))
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

    /// The name of a header that a filter changes.
    fn changed_header(&mut self, field: impl Display, name: &str, may_be_host: bool) {
        let owned = FRAMING.iter().any(|framing| name.eq_ignore_ascii_case(framing));
        if owned || !may_be_host && name.eq_ignore_ascii_case("host") {
            self.error(field.to_string(), format!("{name} belongs to HTTP itself: no filter may change it"));
        } else {
            self.header_name(field, name);
        }
    }

    fn hostname(&mut self, field: impl Display, name: Option<&str>) {
        let Some(name) = name else { return };
        let label = |label: &str| {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            (1..=63).contains(&label.len())
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > 253 || !name.split('.').all(label) {
            self.error(
                field.to_string(),
                format!("{name:?} is not a host name in small letters, without port"),
            );
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
        if spec.parent_refs.is_empty() {
            self.warnings.push(FieldError::warning(
                "spec.parentRefs",
                "names nothing, so the route has no effect: name a Service, with group: \"\" and kind: Service",
            ));
        }
        if kind == Kind::TcpRoute && spec.rules.len() != 1 {
            self.error("spec.rules", format!("{} rules, but a TCPRoute has exactly one", spec.rules.len()));
        } else if spec.rules.is_empty() {
            self.error("spec.rules", "names nothing: give at least one rule with backendRefs");
        }
        if kind == Kind::TcpRoute && spec.rules.iter().any(|rule| rule.backend_refs.is_empty()) {
            self.error("spec.rules[0].backendRefs", "names nothing: give at least one backend");
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
        let (whole, each) = (&rule.timeouts.request, &rule.timeouts.backend_request);
        let parse = |text: &Option<String>| text.as_deref().and_then(Duration::parse);
        if let (Some(whole), Some(each)) = (parse(whole), parse(each))
            && whole.as_millis() != 0
            && each > whole
        {
            let message = format!("{each} is longer than timeouts.request, {whole}");
            self.error(format!("{at}.timeouts.backendRequest"), message);
        }
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
            if query.name.is_empty() {
                self.error(format!("{at}.queryParams[{i}].name"), "is empty");
            }
            self.regex(format_args!("{at}.queryParams[{i}].value"), query.kind, &query.value);
        }
    }

    fn filters(&mut self, at: &str, filters: &[Filter], prefixes: bool) {
        for (i, filter) in filters.iter().enumerate() {
            let at = format!("{at}.filters[{i}]");
            let missing = |name: &str| format!("type is {} but {name} is not given", filter.kind);
            match filter.kind.as_str() {
                "RequestHeaderModifier" => match &filter.request_header_modifier {
                    Some(modifier) => self.modifier(&format!("{at}.requestHeaderModifier"), modifier, true),
                    None => self.error(&at, missing("requestHeaderModifier")),
                },
                "ResponseHeaderModifier" => match &filter.response_header_modifier {
                    Some(modifier) => self.modifier(&format!("{at}.responseHeaderModifier"), modifier, false),
                    None => self.error(&at, missing("responseHeaderModifier")),
                },
                "RequestRedirect" => match &filter.request_redirect {
                    Some(redirect) => self.redirect(&format!("{at}.requestRedirect"), redirect, prefixes),
                    None => self.error(&at, missing("requestRedirect")),
                },
                "URLRewrite" => match &filter.url_rewrite {
                    Some(rewrite) => {
                        self.hostname(format_args!("{at}.urlRewrite.hostname"), rewrite.hostname.as_deref());
                        self.path(&format!("{at}.urlRewrite.path"), rewrite.path.as_ref(), prefixes);
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

    /// A request's Host may be set, but neither doubled nor taken away (RFC 9112, 3.2).
    fn modifier(&mut self, at: &str, modifier: &HeaderModifier, request: bool) {
        for (list, headers) in [("set", &modifier.set), ("add", &modifier.add)] {
            for (i, header) in headers.iter().enumerate() {
                let host = header.name.eq_ignore_ascii_case("host");
                self.changed_header(
                    format_args!("{at}.{list}[{i}].name"),
                    &header.name,
                    request && list == "set",
                );
                let usable = if host {
                    http::uri::Authority::try_from(header.value.as_str()).is_ok()
                } else {
                    http::HeaderValue::from_str(&header.value).is_ok()
                };
                if !usable {
                    self.error(
                        format!("{at}.{list}[{i}].value"),
                        format!("{:?} cannot be sent", header.value),
                    );
                }
            }
        }
        for (i, name) in modifier.remove.iter().enumerate() {
            self.changed_header(format_args!("{at}.remove[{i}]"), name, false);
        }
    }

    fn redirect(&mut self, at: &str, redirect: &Redirect, prefixes: bool) {
        self.within(format_args!("{at}.port"), redirect.port, 1..=65535);
        self.hostname(format_args!("{at}.hostname"), redirect.hostname.as_deref());
        if let Some(code) = redirect.status_code
            && ![301, 302, 303, 307, 308].contains(&code)
        {
            self.error(format!("{at}.statusCode"), format!("{code} is not 301, 302, 303, 307 or 308"));
        }
        self.path(&format!("{at}.path"), redirect.path.as_ref(), prefixes);
    }

    fn path(&mut self, at: &str, path: Option<&PathModifier>, prefixes: bool) {
        let Some(path) = path else { return };
        for (name, text) in
            [("replaceFullPath", &path.replace_full_path), ("replacePrefixMatch", &path.replace_prefix_match)]
        {
            let Some(text) = text else { continue };
            // The sidecar puts a slash before what has none.
            let absolute = format!("/{}", text.trim_start_matches('/'));
            if text.contains(['?', '#']) || http::uri::PathAndQuery::try_from(absolute).is_err() {
                self.error(format!("{at}.{name}"), format!("{text:?} is not a path"));
            }
        }
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
