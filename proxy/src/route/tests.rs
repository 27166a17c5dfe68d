//! Requests in, routes and changed messages out.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, request::Parts};
use regex::Regex;

use super::{filter, *};
use crate::config::{
    AppProtocol, Filter, HeaderModifier, Mirror, PathMatch, PathModifier, Redirect, Rewrite, TextMatch,
};

fn request(line: &str, headers: &[(&str, &str)]) -> Parts {
    let (method, uri) = line.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn get(uri: &str) -> Parts {
    request(&format!("GET {uri}"), &[])
}

fn route(path: PathMatch) -> Route {
    Route { name: "shop/r".into(), rule: 0, path, method: None, headers: Vec::new(), query: Vec::new() }
}

fn prefix(prefix: &str) -> PathMatch {
    PathMatch::Prefix(prefix.to_owned())
}

fn regex(pattern: &str) -> Regex {
    Regex::new(&format!(r"\A(?:{pattern})\z")).unwrap()
}

/// Routes that lead each to a rule of its own, named by number.
fn destination(routes: Vec<Route>) -> Destination {
    let routes: Vec<_> =
        routes.into_iter().enumerate().map(|(rule, route)| Route { rule, ..route }).collect();
    let rules = (0..routes.len()).map(|rule| Rule { name: rule.to_string(), ..Rule::default() }).collect();
    Destination {
        service: "shop/a:80".into(),
        protocol: AppProtocol::Http,
        routes,
        rules,
        tcp: None,
        default: None,
    }
}

/// The number of the route that the request takes.
fn taken(destination: &Destination, request: &Parts) -> Option<usize> {
    match find(destination, request) {
        Found::Rule { route, rule } => {
            assert_eq!(rule.name, route.rule.to_string());
            Some(route.rule)
        }
        Found::NoRoute => None,
        Found::Default => panic!("there are routes"),
    }
}

fn matches(route: Route, request: &Parts) -> bool {
    taken(&destination(vec![route]), request).is_some()
}

#[test]
fn without_routes_the_default_serves() {
    assert!(matches!(find(&destination(vec![]), &get("/")), Found::Default));
}

#[test]
fn the_first_that_matches_wins() {
    let world = destination(vec![
        route(PathMatch::Exact("/a/b".into())),
        route(prefix("/a")),
        route(PathMatch::Regex(regex("/[xy]+"))),
        route(prefix("/a/b")),
    ]);
    for (path, expected) in [
        ("/a/b", Some(0)),
        ("/a/b/", Some(1)),
        ("/a", Some(1)),
        ("/xyx", Some(2)),
        ("/xyz", None),
        ("/ab", None),
    ] {
        assert_eq!(taken(&world, &get(path)), expected, "{path}");
    }
}

#[test]
fn a_prefix_ends_on_a_segments_border() {
    for (path, expected) in
        [("/a", true), ("/a/", true), ("/a/b", true), ("/a?q=1", true), ("/ab", false), ("/", false)]
    {
        assert_eq!(matches(route(prefix("/a")), &get(path)), expected, "{path}");
    }
    for path in ["/", "/a", "*", "http://reviews"] {
        assert!(matches(route(prefix("")), &get(path)), "{path}");
        assert!(matches(route(PathMatch::Any), &get(path)), "{path}");
    }
}

#[test]
fn a_path_is_matched_in_any_of_its_readings() {
    for path in ["/x/../a/b", "//a/b", "/a%2fb", "/%61/b", "/a;v=1/b", "/a\\b", "/%252561/../a/b"] {
        assert!(matches(route(prefix("/a")), &get(path)), "{path}");
        assert!(matches(route(PathMatch::Exact("/a/b".into())), &get(path)), "{path}");
    }
}

#[test]
fn all_conditions_must_hold() {
    let text = |text: &str| TextMatch::Exact(text.to_owned());
    let make = || Route {
        method: Some(http::Method::POST),
        headers: vec![
            (HeaderName::from_static("x-user"), text("ann")),
            (HeaderName::from_static("x-beta"), TextMatch::Regex(regex("1|yes"))),
        ],
        query: vec![("v".into(), text("2"))],
        ..route(prefix("/a"))
    };
    let headers = [("x-user", "ann"), ("x-beta", "yes")];
    assert!(matches(make(), &request("POST /a?v=2", &headers)));
    for (line, headers) in [
        ("GET /a?v=2", &headers[..]),
        ("POST /b?v=2", &headers),
        ("POST /a?v=3", &headers),
        ("POST /a", &headers),
        ("POST /a?v=2", &headers[..1]),
        ("POST /a?v=2", &[("x-user", "Ann"), ("x-beta", "yes")]),
        ("POST /a?v=2", &[("x-user", "ann"), ("x-beta", "yes1")]),
    ] {
        assert!(!matches(make(), &request(line, headers)), "{line} {headers:?}");
    }
}

fn with_header(name: &'static str, wanted: TextMatch) -> Route {
    Route { headers: vec![(HeaderName::from_static(name), wanted)], ..route(PathMatch::Any) }
}

#[test]
fn a_header_that_comes_several_times_is_one_list() {
    let twice = request("GET /", &[("x", "a"), ("x", "b")]);
    for (wanted, expected) in [("a,b", true), ("a, b", true), ("a", false), ("b", false), ("b,a", false)] {
        assert_eq!(matches(with_header("x", TextMatch::Exact(wanted.into())), &twice), expected, "{wanted}");
    }
    assert!(matches(with_header("x", TextMatch::Regex(regex("a.*b"))), &twice));
    let crumbs = request("GET /", &[("cookie", "a=1"), ("cookie", "b=2")]);
    assert!(matches(with_header("cookie", TextMatch::Exact("a=1; b=2".into())), &crumbs));
}

#[test]
fn host_is_the_authority_however_it_came() {
    let wanted = || with_header("host", TextMatch::Exact("reviews:9080".into()));
    assert!(matches(wanted(), &request("GET /", &[("host", "reviews:9080")])));
    assert!(matches(wanted(), &get("http://reviews:9080/")));
    assert!(!matches(wanted(), &get("/")));
}

#[test]
fn a_header_that_is_no_text_matches_nothing() {
    let mut parts = get("/");
    parts.headers.insert("x", HeaderValue::from_bytes(b"\xff").unwrap());
    assert!(!matches(with_header("x", TextMatch::Regex(regex(".*"))), &parts));
}

#[test]
fn of_a_query_parameter_the_first_value_counts_as_the_application_reads_it() {
    let with = |name: &str, value: &str| Route {
        query: vec![(name.into(), TextMatch::Exact(value.into()))],
        ..route(PathMatch::Any)
    };
    for (query, name, value, expected) in [
        ("v=1&v=2", "v", "1", true),
        ("v=1&v=2", "v", "2", false),
        ("V=1", "v", "1", false),
        ("name=a+b%20c", "name", "a b c", true),
        ("%6eame=x", "name", "x", true),
        ("flag", "flag", "", true),
        ("flag=", "flag", "", true),
        ("", "flag", "", false),
        ("a=b=c", "a", "b=c", true),
    ] {
        assert_eq!(
            matches(with(name, value), &get(&format!("/?{query}"))),
            expected,
            "{query} {name}={value}"
        );
    }
}

fn modifier(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderModifier {
    let pairs = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    };
    HeaderModifier {
        set: pairs(set),
        add: pairs(add),
        remove: remove.iter().map(|name| name.parse().unwrap()).collect(),
    }
}

fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

#[test]
fn headers_are_set_added_and_removed_each_on_its_own_side() {
    let filters = [
        Filter::RequestHeaders(modifier(
            &[("x-set", "new")],
            &[("x-add", "2"), ("x-fresh", "1")],
            &["x-gone"],
        )),
        Filter::ResponseHeaders(modifier(&[("server", "heddle")], &[], &["x-debug"])),
    ];
    let mut parts = request(
        "GET /",
        &[("x-set", "a"), ("x-set", "b"), ("x-add", "1"), ("x-gone", "x"), ("x-debug", "x")],
    );
    filter::request(&mut parts, &filters, None).unwrap();
    assert_eq!(values(&parts.headers, "x-set"), ["new"]);
    assert_eq!(values(&parts.headers, "x-add"), ["1", "2"]);
    assert_eq!(values(&parts.headers, "x-fresh"), ["1"]);
    assert!(!parts.headers.contains_key("x-gone") && parts.headers.contains_key("x-debug"));

    let mut headers = request("GET /", &[("server", "nginx"), ("x-debug", "1"), ("x-gone", "stays")]).headers;
    filter::response(&mut headers, &filters);
    assert_eq!(values(&headers, "server"), ["heddle"]);
    assert!(!headers.contains_key("x-debug") && headers.contains_key("x-gone"));
}

fn rewritten(uri: &str, path: PathModifier, matched: PathMatch) -> String {
    let mut parts = get(uri);
    let filters = [Filter::Rewrite(Rewrite { hostname: None, path: Some(path) })];
    filter::request(&mut parts, &filters, Some(&route(matched))).unwrap();
    parts.uri.to_string()
}

#[test]
fn a_prefix_is_replaced_as_the_table_in_the_specification_says() {
    // HTTPPathModifier: request, prefix match, replacement, result. Trailing slashes of the middle ones went in `convert`.
    for (path, matched, replacement, expected) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/bar", "", "/xyz", "/xyz/foo/bar"),
        ("/foo?q=%20", "/foo", "/xyz", "/xyz?q=%20"),
        ("/foo/a%2Fb%20c", "/foo", "/xyz", "/xyz/a%2Fb%20c"),
    ] {
        assert_eq!(
            rewritten(path, PathModifier::Prefix(replacement.into()), prefix(matched)),
            expected,
            "{path}"
        );
    }
}

#[test]
fn a_prefix_that_another_reading_has_is_replaced_there() {
    let xyz = || PathModifier::Prefix("/xyz".into());
    assert_eq!(rewritten("/a/../foo/bar", xyz(), prefix("/foo")), "/xyz/bar");
    assert_eq!(rewritten("/%66oo/b%20%3f", xyz(), prefix("/foo")), "/xyz/b%20%3F");
    assert_eq!(rewritten("/foo%2f50%25", xyz(), prefix("/foo")), "/xyz/50%25");
    assert_eq!(rewritten("/foo%2fb", xyz(), prefix("/foo")), "/xyz/b");
}

#[test]
fn a_full_path_replaces_all_but_the_query() {
    let full = || PathModifier::Full("/new".into());
    assert_eq!(rewritten("/a/b?q=1", full(), PathMatch::Any), "/new?q=1");
    assert_eq!(rewritten("http://h:1/a", full(), PathMatch::Exact("/a".into())), "http://h:1/new");
}

#[test]
fn a_connect_without_path_keeps_its_authority() {
    let mut parts = request("CONNECT shop:443", &[]);
    let path = Some(PathModifier::Full("/new".into()));
    filter::request(&mut parts, &[Filter::Rewrite(Rewrite { hostname: None, path })], None).unwrap();
    assert_eq!(parts.uri, "shop:443");
}

#[test]
fn a_rewritten_path_that_is_too_long_is_refused() {
    let mut parts = get(&format!("/a/{}", "b".repeat(60_000)));
    let path = Some(PathModifier::Prefix(format!("/{}", "c".repeat(10_000))));
    let filters = [Filter::Rewrite(Rewrite { hostname: None, path })];
    assert_eq!(filter::request(&mut parts, &filters, Some(&route(prefix("/a")))), Err(RewriteError::TooLong));
}

#[test]
fn a_host_is_rewritten_wherever_the_request_names_it() {
    let rewrite =
        || Filter::Rewrite(Rewrite { hostname: Some("new.example:81".parse().unwrap()), path: None });
    let set = || Filter::RequestHeaders(modifier(&[("host", "new.example:81")], &[], &[]));
    for filters in [[rewrite()], [set()]] {
        let mut parts = request("GET /a", &[("host", "old")]);
        filter::request(&mut parts, &filters, None).unwrap();
        assert_eq!(values(&parts.headers, "host"), ["new.example:81"]);
        assert_eq!(parts.uri, "/a");

        let mut parts = request("GET http://old/a?q", &[("host", "old")]);
        filter::request(&mut parts, &filters, None).unwrap();
        assert_eq!(values(&parts.headers, "host"), ["new.example:81"]);
        assert_eq!(parts.uri, "http://new.example:81/a?q");
    }
    let mut parts = get("http://old/a");
    filter::request(&mut parts, &[rewrite()], None).unwrap();
    assert!(!parts.headers.contains_key("host"), "HTTP/2 has it in the URI");
    assert_eq!(parts.uri, "http://new.example:81/a");
}

fn plain_redirect() -> Redirect {
    Redirect { scheme: None, hostname: None, port: None, path: None, status: StatusCode::FOUND }
}

fn location(parts: &Parts, redirect: &Redirect, matched: PathMatch) -> String {
    let response = filter::redirect(parts, redirect, Some(&route(matched)));
    assert_eq!(response.status(), redirect.status);
    response.headers()["location"].to_str().unwrap().to_owned()
}

#[test]
fn a_redirects_port_follows_the_specification() {
    let came = |host: &str| request("GET /a?q=1", &[("host", host)]);
    let scheme = |scheme: &str| Some(scheme.to_owned());
    for (host, scheme, port, expected) in [
        // No scheme, no port: the client's.
        ("shop:8080", None, None, "http://shop:8080/a?q=1"),
        ("shop", None, None, "http://shop/a?q=1"),
        ("shop:80", None, None, "http://shop/a?q=1"),
        // A scheme brings its own port, which is left out.
        ("shop:8080", scheme("https"), None, "https://shop/a?q=1"),
        ("shop:8080", scheme("http"), None, "http://shop/a?q=1"),
        // A port wins, and is left out where it is the scheme's own.
        ("shop:8080", None, Some(80), "http://shop/a?q=1"),
        ("shop", None, Some(8083), "http://shop:8083/a?q=1"),
        ("shop", None, Some(443), "http://shop:443/a?q=1"),
        ("shop", scheme("https"), Some(443), "https://shop/a?q=1"),
        ("shop", scheme("https"), Some(8443), "https://shop:8443/a?q=1"),
        ("shop", scheme("https"), Some(80), "https://shop:80/a?q=1"),
        ("[::1]:81", None, None, "http://[::1]:81/a?q=1"),
    ] {
        let redirect = Redirect { scheme, port, ..plain_redirect() };
        assert_eq!(location(&came(host), &redirect, PathMatch::Any), expected);
    }
}

#[test]
fn a_redirect_names_host_and_path_as_told() {
    let hostname = Redirect { hostname: Some("example.org".into()), ..plain_redirect() };
    assert_eq!(
        location(&request("GET /a", &[("host", "shop:81")]), &hostname, PathMatch::Any),
        "http://example.org:81/a"
    );
    assert_eq!(location(&get("https://shop/a"), &hostname, PathMatch::Any), "https://example.org/a");
    let full = Redirect { path: Some(PathModifier::Full("/new".into())), ..plain_redirect() };
    assert_eq!(location(&get("http://shop/a?q"), &full, PathMatch::Any), "http://shop/new?q");
    let prefixed = Redirect {
        path: Some(PathModifier::Prefix("/new".into())),
        status: StatusCode::PERMANENT_REDIRECT,
        ..plain_redirect()
    };
    assert_eq!(location(&get("http://shop/old/x"), &prefixed, prefix("/old")), "http://shop/new/x");
}

#[test]
fn a_redirect_is_found_among_the_filters() {
    let filters = [Filter::RequestHeaders(HeaderModifier::default()), Filter::Redirect(plain_redirect())];
    assert!(filter::find_redirect(&filters).is_some());
    assert!(filter::find_redirect(&filters[..1]).is_none());
}

#[test]
fn a_mirror_gets_its_fraction() {
    fastrand::seed(11);
    let mirror = |numerator, denominator| Mirror { backend: None, numerator, denominator };
    let copied = |mirror: &Mirror| (0..10_000).filter(|_| mirror.draw()).count();
    assert_eq!(copied(&mirror(0, 1)), 0);
    assert_eq!(copied(&mirror(1, 1)), 10_000);
    let third = copied(&mirror(1, 3));
    assert!((3_150..3_520).contains(&third), "{third}");
}

#[test]
fn only_mirrors_with_a_backend_are_returned() {
    let backend = Arc::new(crate::config::Backend {
        key: "shop/copy:80".into(),
        protocol: AppProtocol::Http,
        policy: crate::config::Policy::default(),
        state: Arc::default(),
    });
    let mirror = |backend, numerator| Filter::Mirror(Mirror { backend, numerator, denominator: 1 });
    let filters = [mirror(None, 1), mirror(Some(Arc::clone(&backend)), 1), mirror(Some(backend), 0)];
    assert_eq!(filter::mirrors(&filters).count(), 1);
}
