//! The Gateway API's core filters as the sidecar reads them.

use heddle_api::v1::{self, http_filter::Kind as FilterKind, path_modifier};

use super::{Mesh, Needed};
use crate::object::route::{Filter, Header, HeaderModifier, Mirror, PathModifier, Redirect, Rewrite, Route};

impl Mesh {
    /// `None` never happens for a route that was checked: every filter of a type that is not supported is an error.
    pub(super) fn filter(
        &self,
        route: &Route,
        filter: &Filter,
        needed: &mut Needed,
    ) -> Option<v1::HttpFilter> {
        let kind = match filter {
            Filter { request_header_modifier: Some(modifier), .. } => {
                FilterKind::RequestHeaders(headers(modifier))
            }
            Filter { response_header_modifier: Some(modifier), .. } => {
                FilterKind::ResponseHeaders(headers(modifier))
            }
            Filter { request_redirect: Some(redirect), .. } => FilterKind::Redirect(self::redirect(redirect)),
            Filter { url_rewrite: Some(rewrite), .. } => FilterKind::Rewrite(self::rewrite(rewrite)),
            Filter { request_mirror: Some(mirror), .. } => {
                FilterKind::Mirror(self.mirror(route, mirror, needed))
            }
            _ => return None,
        };
        Some(v1::HttpFilter { kind: Some(kind) })
    }

    fn mirror(&self, route: &Route, mirror: &Mirror, needed: &mut Needed) -> v1::Mirror {
        let number = |number: i64| u32::try_from(number).unwrap_or(0);
        let (numerator, denominator) = match (mirror.percent, mirror.fraction) {
            (Some(percent), _) => (number(percent), 100),
            (None, Some(fraction)) => (number(fraction.numerator), number(fraction.denominator)),
            (None, None) => (1, 1),
        };
        v1::Mirror { backend: self.backend_key(route, &mirror.backend_ref, needed), numerator, denominator }
    }
}

fn headers(modifier: &HeaderModifier) -> v1::HeaderModifier {
    let list = |headers: &[Header]| {
        let one = |header: &Header| v1::Header {
            name: header.name.to_ascii_lowercase(),
            value: header.value.clone(),
        };
        headers.iter().map(one).collect()
    };
    v1::HeaderModifier {
        set: list(&modifier.set),
        add: list(&modifier.add),
        remove: modifier.remove.iter().map(|name| name.to_ascii_lowercase()).collect(),
    }
}

fn redirect(redirect: &Redirect) -> v1::Redirect {
    v1::Redirect {
        scheme: redirect.scheme.clone().unwrap_or_default(),
        hostname: redirect.hostname.clone().unwrap_or_default(),
        port: redirect.port.and_then(|port| u32::try_from(port).ok()).unwrap_or(0),
        path: redirect.path.as_ref().map(path),
        status: redirect.status_code.and_then(|code| u32::try_from(code).ok()).unwrap_or(302),
    }
}

fn rewrite(rewrite: &Rewrite) -> v1::UrlRewrite {
    v1::UrlRewrite {
        hostname: rewrite.hostname.clone().unwrap_or_default(),
        path: rewrite.path.as_ref().map(path),
    }
}

fn path(path: &PathModifier) -> v1::PathModifier {
    let full = path.replace_full_path.clone().map(path_modifier::Kind::Full);
    let prefix = path.replace_prefix_match.clone().map(path_modifier::Kind::Prefix);
    v1::PathModifier { kind: full.or(prefix) }
}
