//! The Gateway API's matches and filters, one by one, as its users see them.

use heddle_tests::{
    client::{Answer, empty},
    manifest,
};
use http::{Method, Request};

use crate::shop::{self, HOST, Shop};

async fn rules(shop: &Shop, rules: &str) {
    // A catch-all of its own header marks the moment when the route is in force.
    let marked = format!(
        "{rules}  - matches: [{{path: {{type: Exact, value: /in-force}}}}]\n    \
         filters: [{{type: RequestRedirect, requestRedirect: {{statusCode: 302, path: {{type: ReplaceFullPath, replaceFullPath: /yes}}}}}}]\n"
    );
    shop.world.save("route.yaml", &manifest::http_route("shop/route", "reviews", 9080, &marked)).unwrap();
    shop.web.answers(HOST, "/in-force", |answer| answer.status == 302).await;
}

async fn get(shop: &Shop, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().uri(format!("http://{HOST}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    shop.web.http1().await.unwrap().send(request.body(empty()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn matches_on_path_header_query_and_method_go_by_precedence() {
    let shop = shop::open(3).await;
    rules(
        &shop,
        "  - matches: [{path: {type: PathPrefix, value: /}}]
    backendRefs: [{name: reviews-v1, port: 9080}]
  - matches:
    - {path: {type: PathPrefix, value: /api}, headers: [{name: X-User, value: tester}]}
    - {queryParams: [{name: v, value: \"3\"}]}
    backendRefs: [{name: reviews-v3, port: 9080}]
  - matches: [{path: {type: PathPrefix, value: /api}}, {path: {type: RegularExpression, value: \"/re+x\"}}, {method: DELETE}]
    backendRefs: [{name: reviews-v2, port: 9080}]
",
    )
    .await;
    for (path, headers, version) in [
        ("/", &[][..], "v1"),
        ("/apix", &[], "v1"),
        ("/api", &[], "v2"),
        ("/api/x", &[], "v2"),
        ("/api/x", &[("x-user", "tester")], "v3"),
        ("/api/x", &[("x-user", "other")], "v2"),
        ("/x?v=3", &[], "v3"),
        ("/x?v=33", &[], "v1"),
        ("/reeex", &[], "v2"),
    ] {
        let answer = get(&shop, path, headers).await;
        assert_eq!(
            answer.answered_by(),
            version,
            "{path} {headers:?}: {} {}",
            answer.status,
            answer.reason()
        );
    }
    let answer = shop.web.http1().await.unwrap().request(Method::DELETE, HOST, "/x", empty()).await.unwrap();
    assert_eq!(answer.answered_by(), "v2");
}

#[tokio::test]
async fn a_route_that_matches_nothing_is_404_by_name() {
    let shop = shop::open(1).await;
    rules(&shop, "  - matches: [{path: {type: Exact, value: /only}}]\n    backendRefs: [{name: reviews-v1, port: 9080}]\n")
        .await;
    assert_eq!(get(&shop, "/only", &[]).await.status, 200);
    let answer = get(&shop, "/else", &[]).await;
    assert_eq!((answer.status, answer.reason()), (404, "NoRoute"));
}

#[tokio::test]
async fn headers_are_changed_both_ways() {
    let shop = shop::open(1).await;
    rules(
        &shop,
        "  - filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-set, value: mesh}], add: [{name: x-add, value: two}], remove: [x-gone]}
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: x-version, value: hidden}], add: [{name: x-new, value: here}]}
    backendRefs: [{name: reviews-v1, port: 9080}]
",
    )
    .await;
    let answer = get(&shop, "/headers", &[("x-set", "mine"), ("x-add", "one"), ("x-gone", "1")]).await;
    assert_eq!((answer.header("x-version"), answer.header("x-new")), ("hidden", "here"));
    let seen = shop.reviews[0].app().seen().pop().unwrap();
    assert_eq!(seen.headers["x-set"], "mesh");
    let added: Vec<_> = seen.headers.get_all("x-add").iter().map(|v| v.to_str().unwrap()).collect();
    assert!(added.join(",").contains("one") && added.join(",").contains("two"), "{added:?}");
    assert!(!seen.headers.contains_key("x-gone"));
}

#[tokio::test]
async fn urls_are_rewritten_and_redirected() {
    let shop = shop::open(1).await;
    rules(
        &shop,
        "  - matches: [{path: {type: PathPrefix, value: /api}}]
    filters:
    - type: URLRewrite
      urlRewrite: {hostname: inner.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}
    backendRefs: [{name: reviews-v1, port: 9080}]
  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {hostname: new.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 301}
",
    )
    .await;
    assert_eq!(get(&shop, "/api/things?a=b", &[]).await.status, 200);
    let seen = shop.reviews[0].app().seen().pop().unwrap();
    assert_eq!(
        (seen.uri.to_string().as_str(), seen.headers["host"].to_str().unwrap()),
        ("/v2/things?a=b", "inner.example")
    );
    let answer = get(&shop, "/old/page?q=1", &[]).await;
    assert_eq!(answer.status, 301);
    let location = answer.header("location");
    assert!(location.starts_with("http://new.example") && location.contains("/new/page"), "{location}");
}

#[tokio::test]
async fn a_mirror_gets_a_copy_and_its_answer_is_nobodys_business() {
    let shop = shop::open(2).await;
    shop.reviews[1].app().behave(heddle_tests::app::Mode::Status(500));
    rules(
        &shop,
        "  - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: reviews-v2, port: 9080}}}]
    backendRefs: [{name: reviews-v1, port: 9080}]
",
    )
    .await;
    for _ in 0..10 {
        let answer = get(&shop, "/copied", &[]).await;
        assert_eq!((answer.status, answer.answered_by()), (200, "v1"));
    }
    heddle_tests::eventually("the copies arrive", || async {
        let copies = shop.reviews[1].app().seen().iter().filter(|seen| seen.uri.path() == "/copied").count();
        anyhow::ensure!(copies == 10, "{copies}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_routes_own_timeouts_hold() {
    let shop = shop::open(1).await;
    rules(
        &shop,
        "  - matches: [{path: {type: PathPrefix, value: /sleep}}]
    timeouts: {request: 300ms}
    backendRefs: [{name: reviews-v1, port: 9080}]
",
    )
    .await;
    assert_eq!(get(&shop, "/sleep/1", &[]).await.status, 200);
    let answer = get(&shop, "/sleep/3000", &[]).await;
    assert_eq!((answer.status, answer.reason()), (504, "RequestTimeout"));
}
