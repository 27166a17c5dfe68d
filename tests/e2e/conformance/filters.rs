//! What filters do to headers and paths on the way.

use super::case::{Case, ECHO, GET, Route, Row};

/// The requests that header filters are asked with; on the rule or on its only backend, the outcome is the same.
const HEADERS: &[Row] = &[
    Row {
        headers: &[("Some-Other-Header", "val")],
        seen: &[("some-other-header", "val"), ("x-header-set", "set-overwrites")],
        ..Row::to("http://echo/set", "echo-v1")
    },
    Row {
        headers: &[("Some-Other-Header", "val"), ("X-Header-Set", "other")],
        seen: &[("some-other-header", "val"), ("x-header-set", "set-overwrites")],
        ..Row::to("http://echo/set", "echo-v1")
    },
    Row { seen: &[("x-header-add", "add-appends")], ..Row::to("http://echo/add", "echo-v1") },
    Row {
        headers: &[("X-Header-Add", "other")],
        seen: &[("x-header-add", "other,add-appends")],
        ..Row::to("http://echo/add", "echo-v1")
    },
    Row {
        headers: &[("X-Header-Remove", "val")],
        unseen: &["x-header-remove"],
        ..Row::to("http://echo/remove", "echo-v1")
    },
    Row {
        headers: &[
            ("X-Header-Set-2", "s2"),
            ("X-Header-Add-2", "a2"),
            ("X-Header-Remove-2", "r2"),
            ("Another-Header", "another"),
        ],
        seen: &[
            ("x-header-set-1", "set-1"),
            ("x-header-set-2", "set-2"),
            ("x-header-add-1", "add-1"),
            ("x-header-add-2", "a2,add-2"),
            ("another-header", "another"),
        ],
        unseen: &["x-header-remove-1", "x-header-remove-2"],
        ..Row::to("http://echo/multiple", "echo-v1")
    },
    // The filter writes capitals, the request small letters.
    Row {
        headers: &[("x-header-set-1", "s"), ("x-header-add-1", "a"), ("x-header-remove-1", "r")],
        seen: &[("x-header-set-1", "set-1"), ("x-header-add-1", "a,add-1")],
        unseen: &["x-header-remove-1"],
        ..Row::to("http://echo/multiple", "echo-v1")
    },
    // HTTP/2 has but small letters.
    Row {
        headers: &[("x-header-set", "other")],
        seen: &[("x-header-set", "set-overwrites")],
        http2: true,
        ..Row::to("http://echo/set", "echo-v1")
    },
];

const ON_RULE: &str = "
  - matches: [{path: {type: PathPrefix, value: /set}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Header-Set, value: set-overwrites}]}}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /add}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Header-Add, value: add-appends}]}}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /remove}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [X-Header-Remove]}}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /multiple}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: X-Header-Set-1, value: set-1}, {name: X-Header-Set-2, value: set-2}]
        add: [{name: X-Header-Add-1, value: add-1}, {name: X-Header-Add-2, value: add-2}]
        remove: [X-Header-Remove-1, X-Header-Remove-2]
    backendRefs: [{name: echo-v1, port: 8080}]
";

const ON_BACKEND: &str = "
  - matches: [{path: {type: PathPrefix, value: /set}}]
    backendRefs:
    - name: echo-v1
      port: 8080
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Header-Set, value: set-overwrites}]}}]
  - matches: [{path: {type: PathPrefix, value: /add}}]
    backendRefs:
    - name: echo-v1
      port: 8080
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Header-Add, value: add-appends}]}}]
  - matches: [{path: {type: PathPrefix, value: /remove}}]
    backendRefs:
    - name: echo-v1
      port: 8080
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [X-Header-Remove]}}]
  - matches: [{path: {type: PathPrefix, value: /multiple}}]
    backendRefs:
    - name: echo-v1
      port: 8080
      filters:
      - type: RequestHeaderModifier
        requestHeaderModifier:
          set: [{name: X-Header-Set-1, value: set-1}, {name: X-Header-Set-2, value: set-2}]
          add: [{name: X-Header-Add-1, value: add-1}, {name: X-Header-Add-2, value: add-2}]
          remove: [X-Header-Remove-1, X-Header-Remove-2]
";

/// What the rewrites that change headers too are asked with.
const BOTH: &[(&str, &str)] = &[("X-Header-Remove", "r"), ("X-Header-Append", "a"), ("X-Header-Set", "s")];
const BOTH_SEEN: &[(&str, &str)] =
    &[("x-header-add", "add-1"), ("x-header-append", "a,add-2"), ("x-header-set", "set-overwrites")];

pub(super) const CASES: &[Case] = &[
    Case {
        what: "a rule changes request headers",
        upstream: Some("MeshHTTPRouteRequestHeaderModifier"),
        routes: &[Route::http("request-headers", ECHO, ON_RULE)],
        rows: HEADERS,
        ..Case::NONE
    },
    Case {
        what: "a backend of a rule changes request headers",
        upstream: Some("MeshHTTPRouteBackendRequestHeaderModifier"),
        routes: &[Route::http("backend-request-headers", ECHO, ON_BACKEND)],
        rows: HEADERS,
        ..Case::NONE
    },
    Case {
        what: "a rule and its backends change response headers",
        routes: &[Route::http(
            "response-headers",
            ECHO,
            "
  - matches: [{path: {type: PathPrefix, value: /rule}}]
    filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: X-Set, value: rule}], add: [{name: Content-Type, value: added}]}
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /remove}}]
    filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [Content-Type]}}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /backend}}]
    backendRefs:
    - name: echo-v2
      port: 8080
      filters:
      - type: ResponseHeaderModifier
        responseHeaderModifier: {set: [{name: Content-Type, value: backend}], add: [{name: X-Add, value: new}]}
",
        )],
        rows: &[
            Row {
                answer: &[("x-set", "rule"), ("content-type", "text/plain,added")],
                ..Row::to("http://echo/rule", "echo-v1")
            },
            Row { unanswered: &["content-type"], ..Row::to("http://echo/remove", "echo-v1") },
            Row {
                answer: &[("content-type", "backend"), ("x-add", "new")],
                unanswered: &["x-set"],
                ..Row::to("http://echo/backend", "echo-v2")
            },
        ],
        ..Case::NONE
    },
    Case {
        what: "paths are rewritten, whole or by their prefix",
        upstream: Some("MeshHTTPRouteRewritePath"),
        routes: &[Route::http(
            "rewrite",
            ECHO,
            "
  - matches: [{path: {type: PathPrefix, value: /prefix/one}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /one}}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /strip-prefix}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /full/one}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /one}}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /full/and-headers}}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /test}}}
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: X-Header-Set, value: set-overwrites}]
        add: [{name: X-Header-Add, value: add-1}, {name: X-Header-Append, value: add-2}]
        remove: [X-Header-Remove]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /prefix/and-headers}}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /prefix}}}
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: X-Header-Set, value: set-overwrites}]
        add: [{name: X-Header-Add, value: add-1}, {name: X-Header-Append, value: add-2}]
        remove: [X-Header-Remove]
    backendRefs: [{name: echo-v1, port: 80}]
",
        )],
        rows: &[
            Row { path: Some("/one/two"), ..Row::to("http://echo/prefix/one/two", "echo-v1") },
            Row { path: Some("/one/two?a=b"), ..Row::to("http://echo/prefix/one/two?a=b", "echo-v1") },
            Row { path: Some("/three"), ..Row::to("http://echo/strip-prefix/three", "echo-v1") },
            Row { path: Some("/"), ..Row::to("http://echo/strip-prefix", "echo-v1") },
            Row { path: Some("/one"), ..Row::to("http://echo/full/one/two", "echo-v1") },
            Row {
                path: Some("/test"),
                headers: BOTH,
                seen: BOTH_SEEN,
                unseen: &["x-header-remove"],
                ..Row::to("http://echo/full/and-headers/test", "echo-v1")
            },
            Row {
                path: Some("/prefix/one"),
                headers: BOTH,
                seen: BOTH_SEEN,
                unseen: &["x-header-remove"],
                ..Row::to("http://echo/prefix/and-headers/one", "echo-v1")
            },
            // A rule that matches nothing is none.
            Row { status: 404, ..GET },
        ],
        ..Case::NONE
    },
];
