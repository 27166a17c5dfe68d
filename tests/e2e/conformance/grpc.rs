//! The profile MESH-GRPC: GRPCRoutes.

use super::case::{Case, GET, Route, Row, Spread};

/// The gRPC port of the Service `echo`.
const ECHO: &str = r#"  - {group: "", kind: Service, name: echo, port: 7070}"#;

const fn route(name: &'static str, rules: &'static str) -> Route {
    Route { kind: "GRPCRoute", ..Route::http(name, ECHO, rules) }
}

const fn call(backend: &'static str) -> Row {
    Row { url: "grpc://echo:7070", backend, ..GET }
}

pub(super) const CASES: &[Case] = &[
    Case {
        what: "a GRPCRoute changes metadata, and tells its rules apart by it",
        upstream: Some("MeshGRPCRouteRequestHeaderModifier"),
        routes: &[route(
            "grpc-headers",
            "
  - matches: [{headers: [{name: x-test-case, value: set}]}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-header-set, value: set-overwrites}]}}]
    backendRefs: [{name: echo-v1, port: 7070}]
  - matches: [{headers: [{name: x-test-case, value: add}]}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-header-add, value: add-appends}]}}]
    backendRefs: [{name: echo-v1, port: 7070}]
  - matches: [{headers: [{name: x-test-case, value: remove}]}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x-header-remove]}}]
    backendRefs: [{name: echo-v1, port: 7070}]
  - matches: [{headers: [{name: x-test-case, value: multi}]}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: x-header-set-1, value: set-1}, {name: x-header-set-2, value: set-2}]
        add: [{name: x-header-add-1, value: add-1}, {name: x-header-add-2, value: add-2}]
        remove: [x-header-remove-1, x-header-remove-2]
    backendRefs: [{name: echo-v2, port: 7070}]
",
        )],
        rows: &[
            Row {
                headers: &[("x-test-case", "set"), ("some-other-header", "stays"), ("x-header-set", "other")],
                seen: &[("x-test-case", "set"), ("some-other-header", "stays"), ("x-header-set", "set-overwrites")],
                ..call("echo-v1")
            },
            Row {
                headers: &[("x-test-case", "add"), ("x-header-add", "first")],
                seen: &[("x-header-add", "first,add-appends")],
                ..call("echo-v1")
            },
            Row {
                headers: &[("x-test-case", "remove"), ("x-header-remove", "gone")],
                seen: &[("x-test-case", "remove")],
                unseen: &["x-header-remove"],
                ..call("echo-v1")
            },
            Row {
                headers: &[
                    ("x-test-case", "multi"),
                    ("x-header-set-2", "s2"),
                    ("x-header-add-2", "a2"),
                    ("x-header-remove-2", "r2"),
                ],
                seen: &[
                    ("x-header-set-1", "set-1"),
                    ("x-header-set-2", "set-2"),
                    ("x-header-add-1", "add-1"),
                    ("x-header-add-2", "a2,add-2"),
                ],
                unseen: &["x-header-remove-1", "x-header-remove-2"],
                ..call("echo-v2")
            },
            // No rule: gRPC's own words for it (Unimplemented), since its callers read no HTTP status.
            Row { status: 404, ..call("") },
        ],
        ..Case::NONE
    },
    Case {
        what: "a GRPCRoute shares calls out by weight, with a missing backend of weight 0",
        upstream: Some("MeshGRPCRouteWeight"),
        routes: &[Route {
            resolved: "BackendNotFound",
            ..route(
                "grpc-weight",
                "
  - backendRefs:
    - {name: echo-v1, port: 7070, weight: 70}
    - {name: echo-v2, port: 7070, weight: 30}
    - {name: echo-v3, port: 7070, weight: 0}
",
            )
        }],
        rows: &[call("")],
        spreads: &[Spread { url: "grpc://echo:7070", shares: &[("echo-v1", 0.7), ("echo-v2", 0.3)] }],
        ..Case::NONE
    },
    Case {
        what: "a GRPCRoute tells its rules apart by service and method",
        routes: &[route(
            "grpc-method",
            "
  - matches: [{method: {service: proto.EchoTestService, method: Echo}}]
    backendRefs: [{name: echo-v2, port: 7070}]
  - matches: [{method: {service: proto.EchoTestService}}]
    backendRefs: [{name: echo-v1, port: 7070}]
",
        )],
        rows: &[call("echo-v2")],
        spreads: &[Spread { url: "grpc://echo:7070", shares: &[("echo-v2", 1.0)] }],
        ..Case::NONE
    },
];
