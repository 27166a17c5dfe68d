//! Each sentence of DESIGN.md's 'Access, where it is easy to be wrong', and what follows from it.

use super::*;

const ADDRESS: &str = "10.1.2.3";

fn policy(name: &str, action: v1::AccessAction, clauses: Vec<v1::AccessClause>) -> v1::AccessRule {
    v1::AccessRule { name: name.into(), action: action.into(), clauses }
}

fn allow(clauses: Vec<v1::AccessClause>) -> v1::AccessRule {
    policy("shop/allow", v1::AccessAction::Allow, clauses)
}

fn deny(clauses: Vec<v1::AccessClause>) -> v1::AccessRule {
    policy("shop/deny", v1::AccessAction::Deny, clauses)
}

fn clause(from: Vec<v1::AccessSource>, to: Vec<v1::AccessOperation>) -> v1::AccessClause {
    v1::AccessClause { from, to }
}

fn accounts(names: &[&str]) -> v1::AccessSource {
    v1::AccessSource { service_accounts: texts(names), ..Default::default() }
}

fn namespaces(names: &[&str]) -> v1::AccessSource {
    v1::AccessSource { namespaces: texts(names), ..Default::default() }
}

fn cidrs(ranges: &[&str]) -> v1::AccessSource {
    v1::AccessSource { cidrs: texts(ranges), ..Default::default() }
}

fn anyone() -> v1::AccessSource {
    v1::AccessSource { anyone: true, ..Default::default() }
}

fn operation(methods: &[&str], paths: &[&str]) -> v1::AccessOperation {
    v1::AccessOperation { methods: texts(methods), paths: texts(paths) }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn rules(policies: &[v1::AccessRule]) -> AccessRules {
    AccessRules::new(policies).unwrap()
}

/// `shop/web`, or nobody for "".
fn ask(rules: &AccessRules, who: &str, method: &str, path: &str) -> Decision {
    with_caller(who, ADDRESS, |caller| rules.http(caller, &method.parse().unwrap(), path))
}

fn ask_tcp(rules: &AccessRules, who: &str) -> Decision {
    with_caller(who, ADDRESS, |caller| rules.tcp(caller))
}

fn with_caller(who: &str, address: &str, decide: impl FnOnce(Caller<'_>) -> Decision) -> Decision {
    let identity = who.split_once('/').map(|(ns, sa)| SpiffeId::new("cluster.local", ns, sa).unwrap());
    decide(Caller { identity: identity.as_ref(), address: address.parse().unwrap() })
}

fn allowed(rules: &AccessRules, who: &str, method: &str, path: &str) -> bool {
    ask(rules, who, method, path) == Decision::Allow
}

fn denied_by(name: &str) -> Decision {
    Decision::Deny { policy: Some(name.into()) }
}

const NONE_MATCHED: Decision = Decision::Deny { policy: None };

#[test]
fn without_policies_everybody_may() {
    let rules = rules(&[]);
    assert!(rules.is_empty());
    assert!(allowed(&rules, "", "GET", "/../x"));
    assert_eq!(ask_tcp(&rules, ""), Decision::Allow);
}

#[test]
fn an_allow_denies_the_rest() {
    let rules = rules(&[allow(vec![clause(vec![accounts(&["shop/web"])], vec![])])]);
    assert!(allowed(&rules, "shop/web", "POST", "/any"));
    assert_eq!(ask(&rules, "shop/other", "GET", "/any"), NONE_MATCHED);
    assert_eq!(ask(&rules, "ops/web", "GET", "/any"), NONE_MATCHED);
    assert_eq!(ask_tcp(&rules, "shop/web"), Decision::Allow);
    assert_eq!(ask_tcp(&rules, "shop/other"), NONE_MATCHED);
}

#[test]
fn a_deny_alone_denies_only_what_it_names() {
    let rules = rules(&[deny(vec![clause(vec![namespaces(&["evil"])], vec![])])]);
    assert_eq!(ask(&rules, "evil/web", "GET", "/"), denied_by("shop/deny"));
    assert!(allowed(&rules, "shop/web", "GET", "/"));
}

#[test]
fn deny_beats_allow_whatever_their_order() {
    let allow = allow(vec![clause(vec![namespaces(&["shop"])], vec![])]);
    let deny = deny(vec![clause(vec![accounts(&["shop/web"])], vec![operation(&["DELETE"], &[])])]);
    for policies in [[allow.clone(), deny.clone()], [deny, allow]] {
        let rules = rules(&policies);
        assert_eq!(ask(&rules, "shop/web", "DELETE", "/"), denied_by("shop/deny"));
        assert!(allowed(&rules, "shop/web", "GET", "/"));
        assert!(allowed(&rules, "shop/other", "DELETE", "/"));
    }
}

#[test]
fn several_allows_are_one_list() {
    let rules = rules(&[
        allow(vec![clause(vec![accounts(&["shop/a"])], vec![])]),
        allow(vec![clause(vec![accounts(&["shop/b"])], vec![])]),
    ]);
    assert!(allowed(&rules, "shop/a", "GET", "/") && allowed(&rules, "shop/b", "GET", "/"));
    assert!(!allowed(&rules, "shop/c", "GET", "/"));
}

#[test]
fn an_allow_without_rules_denies_all_and_a_deny_without_rules_nobody() {
    assert_eq!(ask(&rules(&[allow(vec![])]), "shop/web", "GET", "/"), NONE_MATCHED);
    assert!(allowed(&rules(&[deny(vec![])]), "shop/web", "GET", "/"));
}

#[test]
fn entries_of_a_list_are_alternatives_and_fields_of_one_entry_conditions() {
    let both = v1::AccessSource { namespaces: texts(&["shop"]), ..cidrs(&["10.1.0.0/16"]) };
    let from = vec![both, accounts(&["ops/admin"])];
    let to = vec![operation(&["GET", "HEAD"], &["/a", "/b"]), operation(&["POST"], &[])];
    let rules = rules(&[allow(vec![clause(from, to)])]);
    let at = |who: &str, address: &str| {
        with_caller(who, address, |caller| rules.http(caller, &Method::POST, "/")) == Decision::Allow
    };
    assert!(at("shop/web", "10.1.9.9"));
    assert!(!at("shop/web", "10.2.0.1"));
    assert!(!at("other/web", "10.1.9.9"));
    assert!(at("ops/admin", "10.2.0.1"));
    for (method, path, expected) in [
        ("GET", "/a", true),
        ("HEAD", "/b", true),
        ("GET", "/c", false),
        ("POST", "/c", true),
        ("PUT", "/a", false),
    ] {
        assert_eq!(allowed(&rules, "shop/web", method, path), expected, "{method} {path}");
    }
}

#[test]
fn a_caller_without_identity_matches_the_from_of_every_deny() {
    for source in [accounts(&["shop/web"]), namespaces(&["ops"]), anyone()] {
        let rules = rules(&[deny(vec![clause(vec![source], vec![])])]);
        assert_eq!(ask(&rules, "", "GET", "/"), denied_by("shop/deny"));
        assert_eq!(ask_tcp(&rules, ""), denied_by("shop/deny"));
    }
    let rules = rules(&[deny(vec![clause(vec![accounts(&["shop/web"])], vec![operation(&["POST"], &[])])])]);
    assert!(allowed(&rules, "", "GET", "/"), "what it asks for is known");
}

#[test]
fn a_caller_without_identity_matches_no_allow_but_for_cidrs_and_anyone() {
    for source in [accounts(&["shop/web"]), namespaces(&["shop"])] {
        assert!(!allowed(&rules(&[allow(vec![clause(vec![source], vec![])])]), "", "GET", "/"));
    }
    for from in [vec![cidrs(&["10.0.0.0/8"])], vec![anyone()], vec![]] {
        assert!(allowed(&rules(&[allow(vec![clause(from, vec![])])]), "", "GET", "/"));
    }
    assert!(!allowed(&rules(&[allow(vec![clause(vec![cidrs(&["10.2.0.0/16"])], vec![])])]), "", "GET", "/"));
    let known = v1::AccessSource { namespaces: texts(&["shop"]), ..cidrs(&["10.0.0.0/8"]) };
    assert!(!allowed(&rules(&[allow(vec![clause(vec![known], vec![])])]), "", "GET", "/"));
    let anyone_there = v1::AccessSource { anyone: true, ..cidrs(&["10.2.0.0/16"]) };
    assert!(!allowed(&rules(&[allow(vec![clause(vec![anyone_there], vec![])])]), "", "GET", "/"));
}

#[test]
fn an_address_needs_no_identity_so_that_a_deny_by_cidr_names_only_its_range() {
    let rules = rules(&[deny(vec![clause(vec![cidrs(&["10.1.2.3", "fd00::/8"])], vec![])])]);
    let at = |address: &str| with_caller("", address, |caller| rules.tcp(caller)) == Decision::Allow;
    assert!(!at("10.1.2.3") && !at("::ffff:10.1.2.3") && !at("fd00::1"));
    assert!(at("10.1.2.4") && at("fe80::1"));
}

#[test]
fn on_opaque_tcp_a_rule_with_to_matches_every_deny_and_no_allow() {
    let to = vec![operation(&["GET"], &["/a"])];
    let from = vec![accounts(&["shop/web"])];
    assert_eq!(
        ask_tcp(&rules(&[deny(vec![clause(from.clone(), to.clone())])]), "shop/web"),
        denied_by("shop/deny")
    );
    assert_eq!(ask_tcp(&rules(&[deny(vec![clause(from.clone(), to.clone())])]), "shop/b"), Decision::Allow);
    assert_eq!(ask_tcp(&rules(&[allow(vec![clause(from, to)])]), "shop/web"), NONE_MATCHED);
}

#[test]
fn an_action_that_is_not_known_denies_everything() {
    for action in [0, 3, -1, 99] {
        let mut unknown = deny(vec![]);
        unknown.action = action;
        let rules = rules(&[allow(vec![clause(vec![anyone()], vec![])]), unknown]);
        assert_eq!(ask(&rules, "shop/web", "GET", "/"), denied_by("shop/deny"));
        assert_eq!(ask_tcp(&rules, "shop/web"), denied_by("shop/deny"));
    }
}

#[test]
fn an_entry_with_nothing_that_this_version_knows_matches_every_deny_and_no_allow() {
    for clause in [
        clause(vec![v1::AccessSource::default()], vec![]),
        clause(vec![], vec![v1::AccessOperation::default()]),
    ] {
        assert!(!allowed(&rules(&[allow(vec![clause.clone()])]), "shop/web", "GET", "/"));
        assert!(!allowed(&rules(&[deny(vec![clause])]), "shop/web", "GET", "/"));
    }
}

#[test]
fn a_star_stands_for_whatever_follows() {
    let rules = rules(&[allow(vec![clause(vec![], vec![operation(&[], &["/reviews/*", "/exact", "/v*"])])])]);
    for (path, expected) in [
        ("/reviews/1", true),
        ("/reviews/", true),
        ("/reviews/1/2", true),
        ("/reviews", false),
        ("/reviewsx", false),
        ("/exact", true),
        ("/exact/", false),
        ("/v1", true),
        ("/", false),
        ("", false),
    ] {
        assert_eq!(allowed(&rules, "shop/web", "GET", path), expected, "{path}");
    }
}

#[test]
fn methods_are_case_sensitive_and_may_be_unusual() {
    let rules = rules(&[allow(vec![clause(vec![], vec![operation(&["GET", "PURGE"], &[])])])]);
    assert!(allowed(&rules, "shop/web", "PURGE", "/") && !allowed(&rules, "shop/web", "get", "/"));
}

/// Ways to write `/admin/users` that pass a careless prefix of `/public/`.
const DISGUISES: [&str; 16] = [
    "/public/../admin/users",
    "/public/%2e%2e/admin/users",
    "/public/.%2E/admin/users",
    "/public/..%2fadmin/users",
    "/public%2f..%2fadmin%2Fusers",
    "/public/..\\admin\\users",
    "/public/..%5cadmin/users",
    "/public/..;/admin/users",
    "/public/..;x=y/admin/users",
    "/public/..%3b/admin/users",
    "/public/%252e%252e/admin/users",
    "/public/..%252fadmin/users",
    "/public//../../admin/users",
    "/public/x/../..//admin/users",
    "/public/../admin/users%00",
    "/public/./../%61dmin/users",
];

#[test]
fn a_path_is_denied_if_any_reading_is() {
    let rules = rules(&[deny(vec![clause(vec![], vec![operation(&[], &["/admin/*"])])])]);
    for path in DISGUISES.into_iter().chain([
        "//admin/users",
        "//host/admin/users",
        "/./admin/users",
        "/%61dmin/users",
        "/admin%2fusers",
        "/admin;v=1/users",
        "\\admin\\users",
        "/admin\\users",
        "/admin/%00",
    ]) {
        assert_eq!(ask(&rules, "shop/web", "GET", path), denied_by("shop/deny"), "{path}");
    }
    for path in ["/public/a", "/administration", "/public/admin/users", "/public/%20"] {
        assert!(allowed(&rules, "shop/web", "GET", path), "{path}");
    }
}

#[test]
fn a_path_is_allowed_only_if_every_reading_is() {
    let rules = rules(&[allow(vec![clause(vec![], vec![operation(&[], &["/public/*"])])])]);
    for path in DISGUISES {
        assert_eq!(ask(&rules, "shop/web", "GET", path), NONE_MATCHED, "{path}");
    }
    for path in ["/public/a%20b", "/public/a;v=1", "/public/./a", "/public/a//b", "/public/a%2fb"] {
        assert!(allowed(&rules, "shop/web", "GET", path), "{path}");
    }
    // Two allows, each of which allows one reading alone.
    let halves = AccessRules::new(&[
        allow(vec![clause(vec![], vec![operation(&[], &["/public/../admin"])])]),
        allow(vec![clause(vec![], vec![operation(&[], &["/admin"])])]),
    ]);
    assert!(
        allowed(&halves.unwrap(), "shop/web", "GET", "/public/../admin"),
        "each reading is allowed by some"
    );
}

#[test]
fn a_policys_path_may_be_written_in_escapes() {
    for (pattern, path) in [
        ("/group%2fsecret", "/group%2Fsecret"),
        ("/group%2Fsecret", "/group%2fsecret"),
        ("/group%2fsecret*", "/group%2Fsecret/issues"),
        ("/a%40b", "/a@b"),
        ("/a@b", "/a%40b"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/caf%C3%A9/*", "/café/menu"),
        ("/café", "/caf%C3%A9"),
    ] {
        let rules = rules(&[deny(vec![clause(vec![], vec![operation(&[], &[pattern])])])]);
        assert!(!allowed(&rules, "shop/web", "GET", path), "Deny {pattern}, {path}");
        assert!(allowed(&rules, "shop/web", "GET", "/group/other"), "Deny {pattern}");
    }
    // An escaped slash may be read as a slash, which this names not.
    for (pattern, path, may) in
        [("/caf%c3%a9", "/café", true), ("/caf%c3%a9", "/caf%C3%A9", true), ("/a%2fb", "/a%2Fb", false)]
    {
        let rules = rules(&[allow(vec![clause(vec![], vec![operation(&[], &[pattern])])])]);
        assert_eq!(allowed(&rules, "shop/web", "GET", path), may, "Allow {pattern}, {path}");
    }
}

#[test]
fn a_path_with_more_readings_than_are_counted_matches_every_deny_and_no_allow() {
    let path = format!("/public/{}", "//h\\x/;a/.%2f%5c%00;b%252f%252e//%2e/./;/%25%32%66/".repeat(4));
    let by_path = |pattern| vec![clause(vec![], vec![operation(&[], &[pattern])])];
    assert!(!allowed(&rules(&[deny(by_path("/nowhere"))]), "shop/web", "GET", &path));
    assert!(!allowed(&rules(&[allow(by_path("*"))]), "shop/web", "GET", &path));
    let rules = rules(&[allow(vec![clause(vec![], vec![operation(&["GET"], &[])])])]);
    assert!(allowed(&rules, "shop/web", "GET", &path), "the path does not matter here");
}

#[test]
fn nonsense_is_refused_by_field() {
    let source = |source| allow(vec![clause(vec![], vec![]), clause(vec![source], vec![])]);
    let target = |target| allow(vec![clause(vec![], vec![target])]);
    let cases = [
        (
            source(accounts(&["shop/web", "web"])),
            "access[0].clauses[1].from[0].service_accounts[1]: \"web\" is not",
        ),
        (source(accounts(&["a/b/c"])), "service_accounts[0]: "),
        (
            source(cidrs(&["10.0.0.0/33"])),
            "access[0].clauses[1].from[0].cidrs[0]: \"10.0.0.0/33\" is neither",
        ),
        (target(operation(&[], &["/a/*/b"])), "access[0].clauses[0].to[0].paths[0]: \"/a/*/b\" has *"),
        (target(operation(&[], &["/a/**"])), "has * elsewhere"),
        (target(operation(&[], &["admin"])), "does not begin with /"),
        (target(operation(&["GE T"], &[])), "methods[0]: \"GE T\" is not an HTTP method"),
    ];
    for (policy, expected) in cases {
        let error = AccessRules::new(&[policy]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
