//! References that lead nowhere or may not be used: what their status says, and what their requests get.

use super::case::{Case, ECHO, From, GET, Route, Row, Spread};

/// A backend in the consumer's namespace.
const ABROAD: &str = "  - backendRefs: [{name: own, namespace: gateway-conformance-mesh-consumer, port: 80}]";

pub(super) const CASES: &[Case] = &[
    Case {
        what: "a missing backend has its share answered with 500, and is named",
        routes: &[Route {
            resolved: "BackendNotFound",
            ..Route::http(
                "missing-backend",
                ECHO,
                "
  - matches: [{path: {type: PathPrefix, value: /gone}}]
    backendRefs: [{name: echo-v3, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /port}}]
    backendRefs: [{name: echo-v1, port: 81}]
  - matches: [{path: {type: PathPrefix, value: /half}}]
    backendRefs: [{name: echo-v1, port: 8080}, {name: echo-v3, port: 8080}]
",
            )
        }],
        rows: &[Row::refused("http://echo/gone", 500), Row::refused("http://echo/port", 500)],
        spreads: &[Spread { url: "http://echo/half", shares: &[("echo-v1", 0.5), ("500", 0.5)] }],
        ..Case::NONE
    },
    Case {
        what: "a backend of another namespace needs that namespace's leave",
        routes: &[Route { resolved: "RefNotPermitted", ..Route::http("abroad", ECHO, ABROAD) }],
        rows: &[Row::refused("http://echo/", 500)],
        ..Case::NONE
    },
    Case {
        what: "a ReferenceGrant is that leave",
        routes: &[Route::http("abroad-granted", ECHO, ABROAD)],
        others: &["apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: mesh, namespace: gateway-conformance-mesh-consumer}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: gateway-conformance-mesh}]
  to: [{group: \"\", kind: Service}]
"],
        rows: &[Row::to("http://echo/", "consumer-v1")],
        ..Case::NONE
    },
    Case {
        what: "a backend that is no Service is refused by its kind",
        routes: &[Route {
            resolved: "InvalidKind",
            ..Route::http(
                "no-service",
                ECHO,
                "  - backendRefs: [{group: example.org, kind: Bucket, name: echo-v1, port: 80}]",
            )
        }],
        rows: &[Row::refused("http://echo/", 500)],
        ..Case::NONE
    },
    Case {
        what: "a parent without such a port is said to be none, and its other ports are left alone",
        routes: &[Route {
            accepted: "NoMatchingParent",
            resolved: "BackendNotFound",
            ..Route::http(
                "no-port",
                r#"  - {group: "", kind: Service, name: echo, port: 81}"#,
                "  - backendRefs: [{name: echo-v3, port: 8080, weight: 0}, {name: echo-v1, port: 80}]",
            )
        }],
        rows: &[GET, Row { from: From::V2, ..GET }],
        ..Case::NONE
    },
    Case {
        what: "a route with a value that cannot be used is out of effect and says so",
        routes: &[Route {
            accepted: "UnsupportedValue",
            ..Route::http(
                "bad-value",
                ECHO,
                "
  - matches: [{path: {type: RegularExpression, value: '/(unclosed'}}]
    backendRefs: [{name: echo-v2, port: 8080}]
",
            )
        }],
        rows: &[Row { path: Some("/anything"), ..Row::to("http://echo/anything", "") }],
        ..Case::NONE
    },
    Case {
        what: "of two routes with one match the elder holds, of two of one age the first by name",
        routes: &[
            Route::http("a-first", ECHO, "  - backendRefs: [{name: echo-v2, port: 8080}]"),
            Route::http("b-second", ECHO, "  - backendRefs: [{name: echo-v1, port: 8080}]"),
        ],
        rows: &[Row::to("http://echo/", "echo-v2")],
        spreads: &[Spread { url: "http://echo/", shares: &[("echo-v2", 1.0)] }],
        ..Case::NONE
    },
];
