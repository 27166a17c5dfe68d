//! Which route a request takes, which backend that means, and what is changed on the way. Pure: no socket.

pub mod filter;
mod matching;
mod redirect;
mod rewrite;
mod split;

#[cfg(test)]
mod tests;

pub use redirect::redirect;
pub use rewrite::RewriteError;

use crate::{
    config::{Destination, Route, Rule},
    path::Readings,
};

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// By this route.
    Rule {
        /// The match.
        route: &'a Route,
        /// What it leads to.
        rule: &'a Rule,
    },
    /// No routes are attached: to the destination's own backend.
    Default,
    /// Routes are attached, and none matches: 404.
    NoRoute,
}

/// Finds the first route, in the order of precedence that the control plane laid down, that matches; as for its path,
/// with any of its readings.
#[must_use]
pub fn find<'a>(destination: &'a Destination, request: &http::request::Parts) -> Found<'a> {
    if destination.routes.is_empty() {
        return Found::Default;
    }
    let readings = Readings::of(request.uri.path());
    let route = destination.routes.iter().find(|route| matching::matches(route, request, &readings));
    match route.and_then(|route| Some((route, destination.rules.get(route.rule)?))) {
        Some((route, rule)) => Found::Rule { route, rule },
        None => Found::NoRoute,
    }
}
