//! What the leader writes where people look: conditions and Events; and who leads.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    identity::holder,
    replica::start,
    server::{Server, route, service, wait},
};

/// What `/metrics` says.
pub(crate) async fn metrics(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// `type status reason generation` of each condition of the first entry.
fn conditions(status: &Value, list: &str) -> Vec<String> {
    let all = status[list][0]["conditions"].as_array().cloned().unwrap_or_default();
    all.iter()
        .map(|c| {
            let text = |name: &str| c[name].as_str().unwrap_or_default().to_owned();
            format!("{} {} {} {}", text("type"), text("status"), text("reason"), c["observedGeneration"])
        })
        .collect()
}

async fn until(server: &Server, manifest: &str, list: &str, expected: &[&str]) {
    wait(&format!("{expected:?}"), async || {
        let found = server.get(manifest).await?;
        (conditions(&found.data["status"], list) == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_leader_writes_conditions_and_events_and_another_goes_on_when_it_is_gone() {
    let Some(server) = Server::start().await else { return };
    server.define_all().await;
    let (first, second) = (start(&server, "a").await, start(&server, "b").await);
    let leader = wait("a leader", async || holder(&server).await.filter(|name| !name.is_empty())).await;
    server.apply(&service("reviews", "reviews")).await;
    let manifest = route("reviews", "{name: reviews-v2, port: 9080}");
    server.apply(&manifest).await;
    until(
        &server,
        &manifest,
        "parents",
        &["Accepted True Accepted 1", "ResolvedRefs False BackendNotFound 1"],
    )
    .await;
    let found = server.get(&manifest).await.unwrap();
    assert_eq!(found.data["status"]["parents"][0]["controllerName"], "heddle.dev/control-plane");
    assert_eq!(found.data["status"]["parents"][0]["parentRef"], found.data["spec"]["parentRefs"][0]);
    wait("an Event", async || {
        let request =
            http::Request::get("/apis/events.k8s.io/v1/namespaces/shop/events").body(Vec::new()).unwrap();
        let events: Value = server.client.request(request).await.ok()?;
        let events = events["items"].as_array()?.clone();
        events.iter().any(|e| e["reason"] == "BackendNotFound" && e["regarding"]["name"] == "r").then_some(())
    })
    .await;

    server.apply(&service("reviews-v2", "reviews")).await;
    until(&server, &manifest, "parents", &["Accepted True Accepted 1", "ResolvedRefs True ResolvedRefs 1"])
        .await;

    // A backend elsewhere needs its namespace's leave.
    server.apply("{apiVersion: v1, kind: Namespace, metadata: {name: bank}}").await;
    server.apply(&service("ledger", "ledger").replace("shop", "bank")).await;
    let manifest = route("reviews", "{name: ledger, namespace: bank, port: 9080}");
    server.apply(&manifest).await;
    until(
        &server,
        &manifest,
        "parents",
        &["Accepted True Accepted 2", "ResolvedRefs False RefNotPermitted 2"],
    )
    .await;
    server
        .apply("{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {name: g, namespace: bank}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}}")
        .await;
    until(&server, &manifest, "parents", &["Accepted True Accepted 2", "ResolvedRefs True ResolvedRefs 2"])
        .await;

    // The leader goes; the other writes on.
    let (gone, left) = if leader == "a" { (first, second) } else { (second, first) };
    gone.stop().await;
    wait("another leader", async || holder(&server).await.filter(|name| !name.is_empty() && *name != leader))
        .await;
    let policy = |name: &str, target: &str| {
        format!(
            "{{apiVersion: heddle.dev/v1alpha1, kind: TrafficPolicy, metadata: {{name: {name}, namespace: shop}}, spec: {{targetRefs: [{{kind: Service, name: {target}}}]}}}}"
        )
    };
    // Of two policies the older holds, whatever they are called.
    server.apply(&policy("z", "reviews")).await;
    until(&server, &policy("z", "reviews"), "ancestors", &["Accepted True Accepted 1"]).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    server.apply(&policy("a", "reviews")).await;
    until(&server, &policy("a", "reviews"), "ancestors", &["Accepted False Conflicted 1"]).await;
    server.apply(&policy("lost", "nobody")).await;
    until(&server, &policy("lost", "nobody"), "ancestors", &["Accepted False TargetNotFound 1"]).await;

    // Nothing is written that is there already.
    let before = server.get(&manifest).await.unwrap().metadata.resource_version;
    server.apply(&service("unrelated", "x")).await;
    server.apply(&policy("late", "nobody")).await;
    until(&server, &policy("late", "nobody"), "ancestors", &["Accepted False TargetNotFound 1"]).await;
    assert_eq!(server.get(&manifest).await.unwrap().metadata.resource_version, before);
    left.stop().await;
}
