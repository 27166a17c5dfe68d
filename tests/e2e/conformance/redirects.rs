//! Answers that send the client elsewhere, each with its whole `Location`.

use super::case::{Case, ECHO, Route, Row};

/// A rule for each path, with what `requestRedirect` says.
macro_rules! rules {
    ($($path:literal => $redirect:expr),* $(,)?) => {
        concat!($(
            "  - matches: [{path: {type: PathPrefix, value: ", $path, "}}]\n",
            "    filters: [{type: RequestRedirect, requestRedirect: {", $redirect, "}}]\n",
        )*)
    };
}

/// A redirect to the same place but for its status.
macro_rules! status {
    ($upstream:literal, $name:literal, $code:literal) => {
        Case {
            what: concat!("a redirect may have the status ", $code),
            upstream: Some($upstream),
            routes: &[Route::http($name, ECHO, rules!("/there" => concat!("statusCode: ", $code)))],
            rows: &[Row::redirected("http://echo/there?a=b", $code, &[("location", "http://echo/there?a=b")])],
            ..Case::NONE
        }
    };
}

pub(super) const CASES: &[Case] = &[
    Case {
        what: "a redirect names another host, by 302 or by 301",
        upstream: Some("MeshHTTPRouteRedirectHostAndStatus"),
        routes: &[Route::http(
            "redirect-host",
            ECHO,
            rules!("/host" => "hostname: example.org", "/moved" => "hostname: example.org, statusCode: 301"),
        )],
        rows: &[
            Row::redirected("http://echo/host", 302, &[("location", "http://example.org/host")]),
            Row::redirected("http://echo/moved", 301, &[("location", "http://example.org/moved")]),
            Row::refused("http://echo/", 404),
        ],
        ..Case::NONE
    },
    Case {
        what: "a redirect names another path, whole or by its prefix",
        upstream: Some("MeshHTTPRouteRedirectPath"),
        routes: &[Route::http(
            "redirect-path",
            ECHO,
            rules!(
                "/original" => "path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement}",
                "/full" => "path: {type: ReplaceFullPath, replaceFullPath: /full-replacement}",
                "/path-and-host" => "hostname: example.org, path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement}",
                "/path-and-status" => "statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement}",
                "/full-and-host" => "hostname: example.org, path: {type: ReplaceFullPath, replaceFullPath: /replacement}",
                "/full-and-status" => "statusCode: 301, path: {type: ReplaceFullPath, replaceFullPath: /replacement}",
            ),
        )],
        rows: &[
            Row::redirected(
                "http://echo/original/lemon",
                302,
                &[("location", "http://echo/replacement/lemon")],
            ),
            Row::redirected(
                "http://echo/full/path/original",
                302,
                &[("location", "http://echo/full-replacement")],
            ),
            Row::redirected(
                "http://echo/path-and-host",
                302,
                &[("location", "http://example.org/replacement")],
            ),
            Row::redirected("http://echo/path-and-status", 301, &[("location", "http://echo/replacement")]),
            Row::redirected(
                "http://echo/full-and-host",
                302,
                &[("location", "http://example.org/replacement")],
            ),
            Row::redirected("http://echo/full-and-status", 301, &[("location", "http://echo/replacement")]),
        ],
        ..Case::NONE
    },
    Case {
        what: "a redirect names another port",
        upstream: Some("MeshHTTPRouteRedirectPort"),
        routes: &[Route::http(
            "redirect-port",
            r#"  - {group: "", kind: Service, name: echo}"#,
            rules!(
                "/port" => "port: 8083",
                "/port-and-host" => "port: 8083, hostname: example.org",
                "/port-and-status" => "port: 8083, statusCode: 301",
                "/all" => "port: 8083, hostname: example.org, statusCode: 302",
                "/to-80" => "port: 80",
                "/same" => "hostname: example.org",
            ),
        )],
        rows: &[
            Row::redirected("http://echo/port", 302, &[("location", "http://echo:8083/port")]),
            Row::redirected(
                "http://echo/port-and-host",
                302,
                &[("location", "http://example.org:8083/port-and-host")],
            ),
            Row::redirected(
                "http://echo/port-and-status",
                301,
                &[("location", "http://echo:8083/port-and-status")],
            ),
            Row::redirected("http://echo/all", 302, &[("location", "http://example.org:8083/all")]),
            // The scheme's own port is left out, any other that the client used stays.
            Row::redirected("http://echo:8080/to-80", 302, &[("location", "http://echo/to-80")]),
            Row::redirected("http://echo:8080/same", 302, &[("location", "http://example.org:8080/same")]),
        ],
        ..Case::NONE
    },
    Case {
        what: "a redirect names another scheme, and with it its port",
        upstream: Some("MeshHTTPRouteSchemeRedirect"),
        routes: &[Route::http(
            "redirect-scheme",
            r#"  - {group: "", kind: Service, name: echo}"#,
            rules!(
                "/scheme" => "scheme: https",
                "/scheme-and-host" => "scheme: https, hostname: example.org",
                "/scheme-and-status" => "scheme: https, statusCode: 301",
                "/all" => "scheme: https, hostname: example.org, statusCode: 302",
            ),
        )],
        rows: &[
            Row::redirected("http://echo/scheme", 302, &[("location", "https://echo/scheme")]),
            Row::redirected(
                "http://echo/scheme-and-host",
                302,
                &[("location", "https://example.org/scheme-and-host")],
            ),
            Row::redirected(
                "http://echo/scheme-and-status",
                301,
                &[("location", "https://echo/scheme-and-status")],
            ),
            Row::redirected("http://echo/all", 302, &[("location", "https://example.org/all")]),
            Row::redirected("http://echo:8080/scheme", 302, &[("location", "https://echo/scheme")]),
        ],
        ..Case::NONE
    },
    status!("MeshHTTPRoute303Redirect", "redirect-303", 303),
    status!("MeshHTTPRoute307Redirect", "redirect-307", 307),
    status!("MeshHTTPRoute308Redirect", "redirect-308", 308),
];
