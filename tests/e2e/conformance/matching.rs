//! Which rule a request falls under, and how the requests of a rule are shared out.

use super::case::{Case, ECHO, GET, Route, Row, Spread};

pub(super) const CASES: &[Case] = &[
    Case {
        what: "rules are told apart by path and header",
        upstream: Some("MeshHTTPRouteMatching"),
        routes: &[Route::http(
            "matching",
            ECHO,
            "
  - matches: [{path: {type: PathPrefix, value: /}}, {headers: [{name: version, value: one}]}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /v2}}, {headers: [{name: version, value: two}]}]
    backendRefs: [{name: echo-v2, port: 8080}]
",
        )],
        rows: &[
            Row::to("http://echo/", "echo-v1"),
            Row::to("http://echo/example", "echo-v1"),
            Row { headers: &[("Version", "one")], ..Row::to("http://echo/", "echo-v1") },
            Row::to("http://echo/v2", "echo-v2"),
            Row::to("http://echo/v2/", "echo-v2"),
            Row::to("http://echo/v2/example", "echo-v2"),
            Row { headers: &[("Version", "two")], ..Row::to("http://echo/", "echo-v2") },
            // A prefix is of whole segments, and of the beginning.
            Row::to("http://echo/v2example", "echo-v1"),
            Row::to("http://echo/foo/v2/example", "echo-v1"),
            Row { headers: &[("Version", "three")], ..Row::to("http://echo/", "echo-v1") },
        ],
        ..Case::NONE
    },
    Case {
        what: "rules are told apart by query, and where none matches the answer is 404",
        upstream: Some("MeshHTTPRouteQueryParamMatching"),
        routes: &[Route::http(
            "query",
            ECHO,
            "
  - matches: [{queryParams: [{name: animal, value: whale}]}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{queryParams: [{name: animal, value: dolphin}]}]
    backendRefs: [{name: echo-v2, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /path1}, queryParams: [{name: animal, value: whale}]}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{headers: [{name: version, value: one}], queryParams: [{name: animal, value: whale}]}]
    backendRefs: [{name: echo-v2, port: 8080}]
  - matches:
    - {path: {type: PathPrefix, value: /path3}, queryParams: [{name: animal, value: shark}]}
    - path: {type: PathPrefix, value: /path4}
      headers: [{name: version, value: three}]
      queryParams: [{name: animal, value: kraken}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /path5}}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{queryParams: [{name: animal, value: hydra}]}]
    backendRefs: [{name: echo-v2, port: 8080}]
",
        )],
        rows: &[
            Row::to("http://echo/?animal=whale", "echo-v1"),
            Row::to("http://echo/?animal=dolphin", "echo-v2"),
            Row::to("http://echo/?animal=whale&otherparam=irrelevant", "echo-v1"),
            Row::to("http://echo/?animal=dolphin&color=yellow", "echo-v2"),
            Row::refused("http://echo/?color=blue", 404),
            Row::refused("http://echo/?animal=dog", 404),
            Row::refused("http://echo/?animal=whaledolphin", 404),
            Row::refused("http://echo/", 404),
            Row::to("http://echo/path1?animal=whale", "echo-v1"),
            Row { headers: &[("version", "one")], ..Row::to("http://echo/?animal=whale", "echo-v2") },
            Row::to("http://echo/path3?animal=shark", "echo-v1"),
            Row { headers: &[("version", "three")], ..Row::to("http://echo/path4?animal=kraken", "echo-v1") },
            Row::refused("http://echo/?animal=shark", 404),
            Row::refused("http://echo/path4?animal=kraken", 404),
            // A path goes before a query.
            Row::to("http://echo/path5?animal=hydra", "echo-v1"),
            Row::to("http://echo/?animal=hydra", "echo-v2"),
        ],
        ..Case::NONE
    },
    Case {
        what: "rules are told apart by method, and an exact path is exact",
        routes: &[Route::http(
            "method",
            ECHO,
            "
  - matches: [{method: POST}, {path: {type: Exact, value: /exact}, method: GET}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{method: DELETE}]
    backendRefs: [{name: echo-v2, port: 8080}]
",
        )],
        rows: &[
            Row { method: "POST", ..Row::to("http://echo/", "echo-v1") },
            Row { method: "DELETE", ..Row::to("http://echo/exact", "echo-v2") },
            Row::to("http://echo/exact", "echo-v1"),
            Row::refused("http://echo/exact/", 404),
            Row { method: "PUT", ..Row::refused("http://echo/exact", 404) },
        ],
        ..Case::NONE
    },
    Case {
        what: "a rule may have a name",
        upstream: Some("MeshHTTPRouteNamedRule"),
        routes: &[Route::http(
            "named",
            ECHO,
            "
  - name: named-rule
    matches: [{path: {type: PathPrefix, value: /named}}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /unnamed}}]
    backendRefs: [{name: echo-v2, port: 8080}]
",
        )],
        rows: &[Row::to("http://echo/named", "echo-v1"), Row::to("http://echo/unnamed", "echo-v2")],
        ..Case::NONE
    },
    Case {
        what: "a Service is split between two versions by path",
        upstream: Some("MeshTrafficSplit"),
        routes: &[Route::http(
            "split",
            r#"  - {group: "", kind: Service, name: echo}"#,
            "
  - matches: [{path: {type: Exact, value: /v1}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {type: Exact, value: /v2}}]
    backendRefs: [{name: echo-v2, port: 80}]
",
        )],
        rows: &[
            Row::to("http://echo/v1", "echo-v1"),
            Row::to("http://echo/v2", "echo-v2"),
            Row::to("http://echo:8080/v2", "echo-v2"),
            Row::refused("http://echo/v3", 404),
        ],
        ..Case::NONE
    },
    Case {
        what: "backends get the share of their weight",
        upstream: Some("MeshHTTPRouteWeight"),
        routes: &[Route::http(
            "weight",
            ECHO,
            "  - backendRefs: [{name: echo-v1, port: 8080, weight: 70}, {name: echo-v2, port: 8080, weight: 30}]",
        )],
        rows: &[GET],
        spreads: &[Spread { url: "http://echo/", shares: &[("echo-v1", 0.7), ("echo-v2", 0.3)] }],
        ..Case::NONE
    },
    Case {
        what: "a missing backend of weight 0 gets nothing, and is named in the status",
        routes: &[Route {
            resolved: "BackendNotFound",
            ..Route::http(
                "weight-none",
                ECHO,
                "  - backendRefs: [{name: echo-v2, port: 8080, weight: 3}, {name: echo-v3, port: 8080, weight: 0}]",
            )
        }],
        rows: &[Row::to("http://echo/", "echo-v2")],
        spreads: &[Spread { url: "http://echo/", shares: &[("echo-v2", 1.0)] }],
        ..Case::NONE
    },
];
