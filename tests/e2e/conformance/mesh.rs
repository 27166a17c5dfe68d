//! What a mesh does without routes, and whose requests a route is about.

use super::case::{CONSUMER, Case, ECHO, From, GET, Route, Row};

/// A route that leaves a mark on the answers of the Service itself.
const MARKS_V1: &str = "
  - filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Mark, value: one}]}}]
    backendRefs: [{name: echo-v1, port: 80}]
";
const MARKS_V2: &str = "
  - filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Mark, value: two}]}}]
    backendRefs: [{name: echo-v2, port: 80}]
";
const V2: &str = r#"  - {group: "", kind: Service, name: echo-v2}"#;

pub(super) const CASES: &[Case] = &[
    Case {
        what: "without a route a Service is reached, whatever is spoken to it",
        upstream: Some("MeshBasic"),
        rows: &[
            GET,
            Row { url: "http://echo-v2/some/path?a=b", backend: "echo-v2", method: "POST", ..GET },
            Row { url: "http://echo-v2", http2: true, backend: "echo-v2", path: Some("/"), ..GET },
            Row::to("http://echo-v1.gateway-conformance-mesh.svc.cluster.local:8080/", "echo-v1"),
            Row::to("https://echo-v2/secret", "echo-v2"),
            Row { url: "tcp://echo-v2:9090", backend: "echo-v2", ..GET },
            Row { url: "grpc://echo-v2:7070", backend: "echo-v2", ..GET },
            Row { from: From::Consumer, ..Row::to("http://echo-v1.gateway-conformance-mesh/", "echo-v1") },
        ],
        ..Case::NONE
    },
    Case {
        what: "a route of a Service's own namespace leads its callers elsewhere",
        upstream: Some("MeshHTTPRouteSimpleSameNamespace"),
        routes: &[Route::http("simple", ECHO, "  - backendRefs: [{name: echo-v1, port: 8080}]")],
        rows: &[
            Row::to("http://echo/", "echo-v1"),
            Row { from: From::V2, ..Row::to("http://echo/", "echo-v1") },
            // A producer's route holds for callers of other namespaces too (GEP-1426).
            Row { from: From::Consumer, ..Row::to("http://echo.gateway-conformance-mesh/", "echo-v1") },
        ],
        ..Case::NONE
    },
    Case {
        what: "a route is about its Service, not about the pods behind it",
        upstream: Some("MeshFrontend"),
        routes: &[Route::http("frontend", V2, MARKS_V2)],
        rows: &[
            Row { answer: &[("x-mark", "two")], ..Row::to("http://echo-v2/", "echo-v2") },
            Row { unanswered: &["x-mark"], ..Row::to("http://V2:8080/", "echo-v2") },
        ],
        ..Case::NONE
    },
    Case {
        what: "a Service is known by its address, not by the Host of a request",
        upstream: Some("MeshFrontendHostname"),
        routes: &[Route::http("frontend-hostname", V2, MARKS_V2)],
        rows: &[
            Row {
                headers: &[("Host", "echo-v1")],
                answer: &[("x-mark", "two")],
                ..Row::to("http://echo-v2/", "echo-v2")
            },
            Row {
                headers: &[("Host", "echo-v2")],
                unanswered: &["x-mark"],
                ..Row::to("http://echo-v1/", "echo-v1")
            },
            Row {
                headers: &[("Host", "elsewhere.example")],
                answer: &[("x-mark", "two")],
                ..Row::to("http://echo-v2/", "echo-v2")
            },
        ],
        ..Case::NONE
    },
    Case {
        what: "a parent with a port is that port, one without is all of them",
        upstream: Some("MeshPorts"),
        routes: &[
            Route::http("port", r#"  - {group: "", kind: Service, name: echo-v1, port: 80}"#, MARKS_V1),
            Route::http("all-ports", V2, MARKS_V2),
        ],
        rows: &[
            Row { answer: &[("x-mark", "one")], ..Row::to("http://echo-v1/", "echo-v1") },
            Row { unanswered: &["x-mark"], ..Row::to("http://echo-v1:8080/", "echo-v1") },
            Row { answer: &[("x-mark", "two")], ..Row::to("http://echo-v2/", "echo-v2") },
            Row { answer: &[("x-mark", "two")], ..Row::to("http://echo-v2:8080/", "echo-v2") },
            // What is not HTTP stays what it is.
            Row { url: "tcp://echo-v2:9090", backend: "echo-v2", ..GET },
        ],
        ..Case::NONE
    },
    Case {
        what: "a route of a client's namespace holds for the clients of that namespace alone",
        upstream: Some("MeshConsumerRoute"),
        routes: &[Route {
            namespace: CONSUMER,
            ..Route::http(
                "consumer",
                r#"  - {group: "", kind: Service, name: echo-v1, namespace: gateway-conformance-mesh}"#,
                "
  - filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Mark, value: consumer}]}}]
    backendRefs: [{name: echo-v1, namespace: gateway-conformance-mesh, port: 80}]
",
            )
        }],
        rows: &[
            Row {
                from: From::Consumer,
                answer: &[("x-mark", "consumer")],
                ..Row::to("http://echo-v1.gateway-conformance-mesh/", "echo-v1")
            },
            Row { unanswered: &["x-mark"], ..Row::to("http://echo-v1.gateway-conformance-mesh/", "echo-v1") },
        ],
        ..Case::NONE
    },
    Case {
        what: "a consumer's route takes the place of the producer's, for its namespace",
        routes: &[
            Route::http("producer", ECHO, "  - backendRefs: [{name: echo-v1, port: 80}]"),
            Route {
                namespace: CONSUMER,
                ..Route::http(
                    "consumer",
                    r#"  - {group: "", kind: Service, name: echo, namespace: gateway-conformance-mesh, port: 80}"#,
                    "
  - matches: [{path: {type: PathPrefix, value: /own}}]
    backendRefs: [{name: own, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /there}}]
    backendRefs: [{name: echo-v2, namespace: gateway-conformance-mesh, port: 80}]
",
                )
            },
        ],
        rows: &[
            Row { from: From::Consumer, ..Row::to("http://echo.gateway-conformance-mesh/own", "consumer-v1") },
            Row { from: From::Consumer, ..Row::to("http://echo.gateway-conformance-mesh/there", "echo-v2") },
            Row { from: From::Consumer, ..Row::refused("http://echo.gateway-conformance-mesh/else", 404) },
            Row::to("http://echo/own", "echo-v1"),
            Row::to("http://echo/there", "echo-v1"),
        ],
        ..Case::NONE
    },
];
