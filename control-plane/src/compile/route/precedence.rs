//! Which match goes first: the HTTPRoute and GRPCRoute specifications, as one order.
//!
//! Exact paths, then regular expressions, then prefixes, the longer first; then a method, then more headers, then more
//! query parameters; then the senior route; then the order within the route. gRPC's service and method are a path: both
//! given an exact one, the service alone a prefix; the method alone comes after every service.

use std::cmp::Reverse;

use super::Seniority;
use crate::object::route::{Match, MethodMatch, TextKind};

/// Sorts as the specification has it, the first to win first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Precedence {
    path: (u8, Reverse<usize>),
    method: Reverse<bool>,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    route: Seniority,
    /// Rule and match within the route.
    place: (usize, usize),
}

const EXACT: u8 = 0;
const REGEX: u8 = 1;
const PREFIX: u8 = 2;
const GRPC_METHOD: u8 = 3;
const GRPC_ANY: u8 = 4;

impl Precedence {
    pub(super) fn new(condition: &Match, grpc: bool, route: Seniority, place: (usize, usize)) -> Self {
        let mut has_method = false;
        let path = match (&condition.method, &condition.path) {
            (Some(MethodMatch::Grpc { service, method, kind }), _) => {
                let length = service.chars().count() + method.chars().count();
                let rank = match (kind, service.is_empty(), method.is_empty()) {
                    (TextKind::RegularExpression, false, _) => REGEX,
                    (TextKind::Exact, false, false) => EXACT,
                    (TextKind::Exact, false, true) => PREFIX,
                    (_, true, _) => GRPC_METHOD,
                };
                (rank, length)
            }
            (None, None) if grpc => (GRPC_ANY, 0),
            (method, path) => {
                has_method = method.is_some();
                let length = path.as_ref().map_or(1, |path| path.value.chars().count());
                let rank = match path.as_ref().map_or("PathPrefix", |path| path.kind.as_str()) {
                    "Exact" => EXACT,
                    "RegularExpression" => REGEX,
                    _ => PREFIX,
                };
                (rank, length)
            }
        };
        Self {
            path: (path.0, Reverse(path.1)),
            method: Reverse(has_method),
            headers: Reverse(condition.headers.len()),
            query: Reverse(condition.query_params.len()),
            route,
            place,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
    use serde_json::{Value, json};

    use super::*;
    use crate::object::Name;

    fn key(condition: Value, name: &str, created: Option<i64>) -> Precedence {
        let condition: Match = serde_json::from_value(condition).unwrap();
        let grpc = matches!(condition.method, Some(MethodMatch::Grpc { .. }));
        let created = created.map(|second| Time(Timestamp::from_second(second).unwrap()));
        Precedence::new(&condition, grpc, Seniority::new(created, Name::new("shop", name)), (0, 0))
    }

    #[test]
    fn each_criterion_decides_before_the_next() {
        let exact = |path| json!({"path": {"type": "Exact", "value": path}});
        let prefix = |path| json!({"path": {"type": "PathPrefix", "value": path}});
        let header = json!([{"name": "a", "value": "b"}]);
        let query = json!([{"name": "a", "value": "b"}, {"name": "b", "value": "c"}]);
        let order = [
            key(exact("/a"), "z", None),
            key(json!({"path": {"type": "RegularExpression", "value": "/a.*"}}), "z", None),
            key(prefix("/a/b"), "z", None),
            key(json!({"path": {"value": "/a"}, "method": "GET"}), "z", None),
            key(json!({"path": {"value": "/a"}, "headers": header}), "z", None),
            key(json!({"path": {"value": "/a"}, "queryParams": query}), "z", None),
            key(prefix("/a"), "z", Some(1)),
            key(prefix("/a"), "y", Some(2)),
            key(prefix("/a"), "a", None),
            key(prefix("/a"), "b", None),
            key(json!({}), "a", None),
        ];
        for pair in order.windows(2) {
            assert!(pair[0] < pair[1], "{pair:#?}");
        }
    }

    #[test]
    fn a_grpc_service_goes_before_a_method_of_any_service() {
        let grpc = |service: &str, method: &str| {
            key(json!({"method": {"service": service, "method": method}}), "a", None)
        };
        assert!(grpc("s", "m") < grpc("long.service", ""));
        assert!(grpc("s", "") < grpc("", "longmethod"));
        assert!(grpc("longer", "") < grpc("s", ""));
    }
}
