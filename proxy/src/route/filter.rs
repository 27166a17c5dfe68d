//! What filters do to a request or its response on the way.
//!
//! A caller asks in this order: [`redirect`] (answers at once), [`request`], then for each [`mirrors`] sends a copy,
//! and [`response`] on the way back; first with a rule's filters, then with those of the picked split entry.

use http::{HeaderMap, header, request::Parts};

use super::rewrite::{RewriteError, rewrite, set_host};
use crate::config::{Backend, Filter, HeaderModifier, Mirror, Redirect, Route};

/// The redirect among the filters, if any: the request goes nowhere else.
#[must_use]
pub fn redirect(filters: &[Filter]) -> Option<&Redirect> {
    filters.iter().find_map(|filter| match filter {
        Filter::Redirect(redirect) => Some(redirect),
        _ => None,
    })
}

/// Changes a request; `route` is the one that matched.
///
/// # Errors
/// When a rewritten path is too long; the request is then to be refused (`BadRequest`).
pub fn request(parts: &mut Parts, filters: &[Filter], route: Option<&Route>) -> Result<(), RewriteError> {
    for filter in filters {
        match filter {
            Filter::RequestHeaders(modifier) => {
                modify(&mut parts.headers, modifier);
                // An HTTP/2 request has its host in the URI as well.
                if let Some((_, host)) = modifier.set.iter().rev().find(|(name, _)| *name == header::HOST) {
                    set_host(parts, host.clone());
                }
            }
            Filter::Rewrite(change) => rewrite(parts, change, route)?,
            Filter::ResponseHeaders(_) | Filter::Redirect(_) | Filter::Mirror(_) => {}
        }
    }
    Ok(())
}

/// Changes a response's headers.
pub fn response(headers: &mut HeaderMap, filters: &[Filter]) {
    for filter in filters {
        if let Filter::ResponseHeaders(modifier) = filter {
            modify(headers, modifier);
        }
    }
}

/// The backends that get a copy of this request.
pub fn mirrors(filters: &[Filter]) -> impl Iterator<Item = &std::sync::Arc<Backend>> {
    filters.iter().filter_map(|filter| match filter {
        Filter::Mirror(mirror) if mirror.draw() => mirror.backend.as_ref(),
        _ => None,
    })
}

impl Mirror {
    /// Draws whether this request is copied.
    #[must_use]
    pub fn draw(&self) -> bool {
        self.numerator >= self.denominator || fastrand::u32(0..self.denominator) < self.numerator
    }
}

fn modify(headers: &mut HeaderMap, modifier: &HeaderModifier) {
    for (name, value) in &modifier.set {
        headers.insert(name.clone(), value.clone());
    }
    for (name, value) in &modifier.add {
        headers.append(name.clone(), value.clone());
    }
    for name in &modifier.remove {
        headers.remove(name);
    }
}
