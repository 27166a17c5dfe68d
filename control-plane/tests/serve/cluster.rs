//! A control plane in a cluster, over an API server in this process: what `tests/cluster` shows against a real one, for
//! runs without. The watches' own surprises (410 Gone, repetitions, an outage) are beside the source.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_api::v1::{DiscoveryRequest, ResourceType, resource::Body};
use heddle_control_plane::{
    ca::{Authority, CurrentAuthority, fresh_root},
    cluster::{
        Cluster, lease,
        root::{self, Root},
        status::health::CONDITION,
        trust::ADOPT,
        webhook,
    },
    compile,
    hub::Hub,
    inject,
    metrics::Metrics,
    run::{self, Options, Running},
    source::{self, kubernetes::ledger::Ledger},
};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    api::{ApiServer, SYSTEM},
    client::{Stream, connect, join, name},
    world::{PATIENCE, until_ready},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) async fn start(server: &ApiServer, instance: &str) -> Running {
    let any = ([127, 0, 0, 1], 0).into();
    let options = Options {
        state_dir: "/nowhere".into(),
        listen: any,
        admin_listen: any,
        certificate_lifetime: Duration::from_secs(3600),
        root_adopt_after: ADOPT,
        trust_domain: "cluster.local".to_owned(),
    };
    let injection = webhook::Options {
        listen: any,
        service: "heddle-injector".to_owned(),
        grace: Duration::ZERO,
        settings: inject::Settings::default(),
    };
    let cluster =
        Cluster { client: server.client(), namespace: SYSTEM.to_owned(), instance: instance.to_owned() };
    let running = run::start_in_cluster(options, injection, cluster).await.unwrap();
    until_ready(running.admin_address).await;
    running
}

async fn wait<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE * 3, asked).await.unwrap_or_else(|_| panic!("no sign of {what}"))
}

const LEASE: &str = "{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: heddle-control-plane, namespace: heddle-system}}";

fn holder(server: &ApiServer) -> Option<String> {
    let holder = server.get(LEASE)?["spec"]["holderIdentity"].as_str()?.to_owned();
    (!holder.is_empty()).then_some(holder)
}

fn service(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 9080, appProtocol: http}}]}}}}"
    )
}

fn pod(name: &str, app: &str, ip: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}, annotations: {{heddle.dev/sidecar: 'true'}}}}, \
         spec: {{serviceAccountName: {app}, containers: []}}, status: {{podIP: {ip}}}}}"
    )
}

fn bundle(server: &ApiServer, namespace: &str) -> Option<String> {
    let manifest =
        format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: heddle-ca, namespace: {namespace}}}}}");
    server.get(&manifest)?["data"]["ca.pem"].as_str().map(str::to_owned)
}

/// `type status reason` of the first entry's conditions.
fn conditions(object: &Value, list: &str) -> Vec<String> {
    let all = object["status"][list][0]["conditions"].as_array().cloned().unwrap_or_default();
    let text = |condition: &Value| {
        ["type", "status", "reason"].map(|field| condition[field].as_str().unwrap_or_default()).join(" ")
    };
    all.iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_alone_writes_status_and_events_once_and_another_goes_on_when_it_is_gone() {
    let server = ApiServer::start();
    server.apply(&service("reviews"));
    let route = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: shop}, \
        spec: {parentRefs: [{group: '', kind: Service, name: reviews, port: 9080}], rules: [{backendRefs: [{name: gone, port: 9080}]}]}}";
    server.apply(route);
    let (first, second) = (start(&server, "a").await, start(&server, "b").await);
    let leader = wait("a leader", async || holder(&server)).await;
    let status = async |expected: [&str; 2]| {
        wait("the route's status", async || {
            (conditions(&server.get(route)?, "parents") == expected).then_some(())
        })
        .await;
    };
    status(["Accepted True Accepted", "ResolvedRefs False BackendNotFound"]).await;
    wait("an Event", async || {
        server.all("events").iter().find(|e| e["reason"] == "BackendNotFound").map(drop)
    })
    .await;
    let found = server.get(route).unwrap();
    assert_eq!(found["status"]["parents"][0]["controllerName"], "heddle.dev/control-plane");
    assert_eq!(found["status"]["parents"][0]["conditions"][0]["observedGeneration"], 1);

    // What is there already is not written: of two objects that come, one needs a status.
    server.writes();
    server.apply(&service("unrelated"));
    let policy = "{apiVersion: heddle.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: p, namespace: shop}, spec: {targetRefs: [{group: '', kind: Service, name: nobody}]}}";
    server.apply(policy);
    wait("the policy's status", async || {
        (conditions(&server.get(policy)?, "ancestors") == ["Accepted False TargetNotFound"]).then_some(())
    })
    .await;
    let mut writes = server.writes();
    writes.retain(|write| write.contains("/status"));
    assert_eq!(writes, ["PATCH /apis/heddle.dev/v1alpha1/namespaces/shop/trafficpolicies/p/status"]);

    let (gone, left) = if leader == "a" { (first, second) } else { (second, first) };
    gone.stop().await;
    wait("another leader", async || holder(&server).filter(|name| *name != leader)).await;
    server.apply(&service("gone"));
    status(["Accepted True Accepted", "ResolvedRefs True ResolvedRefs"]).await;
    left.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_somebody_else_wrote_meanwhile_is_looked_at_again_and_not_written_over() {
    let server = ApiServer::start();
    server.apply(&service("reviews"));
    let gateway =
        json!({"parentRef": {"name": "edge"}, "controllerName": "example.com/gateway", "conditions": []});
    let mut route: Value = serde_norway::from_str(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: shop}, \
         spec: {parentRefs: [{name: edge}, {group: '', kind: Service, name: reviews, port: 9080}], rules: [{backendRefs: [{name: reviews, port: 9080}]}]}}",
    )
    .unwrap();
    let manifest = route.to_string();
    server.apply(&manifest);
    let running = start(&server, "a").await;
    wait("our entry", async || (conditions(&server.get(&manifest)?, "parents").len() == 2).then_some(()))
        .await;
    // The other controller replaces the whole status, again and again.
    for _ in 0..5 {
        route["status"] = json!({"parents": [gateway]});
        server.apply(&route.to_string());
        wait("both entries", async || {
            let found = server.get(&manifest)?;
            let parents = found["status"]["parents"].as_array()?.clone();
            (parents.len() == 2 && parents[0] == gateway).then_some(())
        })
        .await;
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_its_certificate_by_the_api_servers_word_and_stays_served_while_it_is_away() {
    let server = ApiServer::start();
    server.apply(&service("reviews"));
    server.apply(&pod("reviews-0", "reviews", "10.0.0.9"));
    let uid = server.apply(&pod("web-0", "web", "10.0.0.1"))["metadata"]["uid"].as_str().unwrap().to_owned();
    server.vouch("good", "web", "web-0", &uid);
    server.vouch("of-an-older-pod", "web", "web-0", "uid-0");
    server.vouch("of-another", "web", "web-1", &uid);
    let running = start(&server, "a").await;
    let dir = tempfile::tempdir().unwrap();
    let ca: PathBuf = dir.path().join("ca.pem");
    let roots = wait("the roots in the pod's namespace", async || bundle(&server, "shop")).await;
    std::fs::write(&ca, &roots).unwrap();
    for (token, code) in [
        ("forged", Code::Unauthenticated),
        ("of-another", Code::PermissionDenied),
        ("of-an-older-pod", Code::FailedPrecondition),
    ] {
        let refused = join(running.address, &ca, token, "shop/web-0").await.err().expect(token);
        assert_eq!(refused.code(), code, "{token}: {refused}");
    }
    let leaf = join(running.address, &ca, "good", "shop/web-0").await.unwrap();
    let reviews = name(ResourceType::Destination, "reviews:9080");
    let open = async || {
        let channel = connect(running.address, &ca, Some(&leaf)).await.unwrap();
        Stream::open(channel, "shop/web-0", vec![], vec![reviews.clone()]).await.unwrap()
    };
    let mut stream = open().await;
    assert_eq!(stream.accept().await.changed.len(), 2);

    // The API server goes: what is known is served, and nobody can prove anything.
    server.leave();
    assert_eq!(open().await.accept().await.changed.len(), 2);
    let refused = join(running.address, &ca, "good", "shop/web-0").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    server.delete(&pod("reviews-0", "reviews", ""));
    server.apply(&pod("reviews-1", "reviews", "10.0.0.10"));
    // It comes back and has forgotten where the watches were; what they missed is made good.
    server.come_back();
    let mut addresses = BTreeSet::from(["10.0.0.9".to_owned()]);
    while addresses != BTreeSet::from(["10.0.0.10".to_owned()]) {
        // A watch tries again after half a minute at most.
        let news = tokio::time::timeout(PATIENCE * 6, stream.read()).await.expect("what was missed");
        let news = news.unwrap().unwrap();
        stream.send(DiscoveryRequest { nonce: news.nonce, ..DiscoveryRequest::default() }).await;
        for body in news.changed.into_iter().filter_map(|resource| resource.body) {
            match body {
                Body::Endpoints(all) => addresses = all.endpoints.into_iter().map(|e| e.address).collect(),
                Body::EndpointsDelta(delta) => {
                    addresses.retain(|address| delta.removed.iter().all(|key| key.address != *address));
                    addresses.extend(delta.upserted.into_iter().map(|e| e.address));
                }
                _ => {}
            }
        }
    }
    join(running.address, &ca, "good", "shop/web-0").await.unwrap();
    running.stop().await;
}

/// The registration as the chart installs it, in short.
pub(crate) const CONFIGURATION: &str = "{apiVersion: admissionregistration.k8s.io/v1, kind: MutatingWebhookConfiguration, metadata: {name: heddle-injector}, \
        webhooks: [{name: namespace.inject.heddle.dev, clientConfig: {service: {name: heddle-injector, namespace: heddle-system}}, sideEffects: None, admissionReviewVersions: [v1]}, \
        {name: pod.inject.heddle.dev, clientConfig: {service: {name: heddle-injector, namespace: heddle-system}}, sideEffects: None, admissionReviewVersions: [v1]}]}";

/// The `caBundle` of each webhook, once all have one.
pub(crate) async fn bundles(server: &ApiServer) -> Vec<String> {
    wait("the caBundle", async || {
        let found = server.get(CONFIGURATION)?;
        let of = |webhook: &Value| webhook["clientConfig"]["caBundle"].as_str().map(str::to_owned);
        found["webhooks"].as_array()?.iter().map(of).collect::<Option<Vec<_>>>()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_that_start_at_once_both_have_the_same_root_and_the_webhook_its_bundle() {
    let server = ApiServer::start();
    server.apply(CONFIGURATION);
    let (first, second) = tokio::join!(start(&server, "a"), start(&server, "b"));
    let made =
        server.writes().into_iter().filter(|write| write.starts_with("POST") && write.ends_with("/secrets"));
    assert_eq!(made.count(), 1);
    let roots = wait("the roots", async || bundle(&server, SYSTEM)).await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &roots).unwrap();
    for replica in [&first, &second] {
        connect(replica.address, &ca, None).await.expect("it is known by the one root");
    }
    let bundles = bundles(&server).await;
    let secret = server.all("secrets").pop().unwrap();
    assert_eq!(bundles.len(), 2, "nothing of the configuration was lost");
    assert!(bundles.iter().all(|bundle| *bundle == secret["data"]["ca.crt"]), "PEM in base64, both");
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_webhook_gets_its_bundle_though_somebody_else_writes_its_configuration_at_the_same_time() {
    let server = ApiServer::start();
    server.apply(CONFIGURATION);
    server.be_quicker(CONFIGURATION);
    let running = start(&server, "a").await;
    assert_eq!(bundles(&server).await.len(), 2);
    running.stop().await;
}

/// A root that ends so long after now.
fn secret(left: Duration) -> String {
    // A fresh one ends in years; one that was made long ago ends soon.
    let now = SystemTime::now();
    let (pem, key) = fresh_root("cluster.local", now).unwrap();
    let life = Authority::from_pem(pem.as_bytes(), key.as_bytes(), pem.as_bytes(), "cluster.local", DAY)
        .unwrap()
        .not_after()
        .duration_since(now)
        .unwrap();
    let (pem, key) = fresh_root("cluster.local", now + left - life).unwrap();
    secret_of(&pem, &key)
}

fn secret_of(pem: &str, key: &str) -> String {
    let base64 = |text: &str| json!(k8s_openapi::ByteString(text.as_bytes().to_vec()));
    json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "heddle-root", "namespace": SYSTEM},
        "data": {"tls.crt": base64(pem), "tls.key": base64(key), "ca.crt": base64(pem)}})
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_ends_soon_is_an_event_and_a_condition_and_so_is_one_that_cannot_be_used() {
    let server = ApiServer::start();
    let deployment = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: heddle-control-plane, namespace: heddle-system}, \
        status: {conditions: [{type: Available, status: 'True'}]}}";
    server.apply(deployment);
    server.apply(&secret(20 * DAY));
    let running = start(&server, "a").await;
    let condition = |found: &Value| {
        let all = found["status"]["conditions"].as_array()?.clone();
        assert_eq!(all[0]["type"], "Available", "the Deployment's own conditions stay");
        all.into_iter().find(|one| one["type"] == CONDITION)
    };
    let until = async |reason: &str| {
        wait(reason, async || condition(&server.get(deployment)?).filter(|one| one["reason"] == reason)).await
    };
    let ends = until("RootExpires").await;
    assert_eq!(ends["status"], "False");
    wait("an Event", async || server.all("events").iter().find(|e| e["reason"] == "RootExpires").map(drop))
        .await;
    server.apply(&secret_of("no certificate", "no key"));
    until("RootUnusable").await;
    server.apply(&secret(3000 * DAY));
    // What signs is still the one that ends: the new one is only trusted yet.
    let again = until("RootExpires").await;
    assert_eq!(again["lastTransitionTime"], ends["lastTransitionTime"]);
    running.stop().await;
    server.writes();
    let running = start(&server, "b").await;
    assert_eq!(until("RootValid").await["status"], "True");
    running.stop().await;
    let mut writes = server.writes();
    writes.retain(|write| write.contains("/deployments/"));
    assert_eq!(writes.len(), 1, "once: {writes:?}");
}

/// One of those who want to lead.
struct Candidate {
    leads: watch::Receiver<bool>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn candidate(client: Client, identity: &'static str) -> Candidate {
    let (leading, leads) = watch::channel(false);
    let stop = CancellationToken::new();
    let own = stop.clone();
    let task = tokio::spawn(async move {
        lease::run(client, SYSTEM, identity.to_owned(), leading, own).await;
    });
    Candidate { leads, stop, task }
}

async fn seconds(count: u64) {
    // In steps, so that answers come in between.
    for _ in 0..count * 10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_died_is_followed_after_its_lease_and_one_that_leaves_at_once() {
    let server = ApiServer::start();
    let first = candidate(server.client(), "a");
    seconds(1).await;
    let second = candidate(server.client(), "b");
    seconds(60).await;
    assert!(*first.leads.borrow() && !*second.leads.borrow(), "who holds it keeps it");
    // It dies without a word.
    first.task.abort();
    seconds(14).await;
    assert!(!*second.leads.borrow());
    seconds(5).await;
    assert!(*second.leads.borrow());
    assert_eq!(server.get(LEASE).unwrap()["spec"]["leaseTransitions"], 1);
    let third = candidate(server.client(), "c");
    seconds(3).await;
    second.stop.cancel();
    second.task.await.unwrap();
    seconds(3).await;
    assert!(*third.leads.borrow());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_reach_the_api_server_stops_before_its_lease_is_anyones() {
    let server = ApiServer::start();
    let first = candidate(server.client(), "a");
    seconds(5).await;
    assert!(*first.leads.borrow());
    server.leave();
    seconds(12).await;
    assert!(!*first.leads.borrow(), "well before fifteen seconds after its last renewal");
    server.come_back();
    seconds(3).await;
    assert!(*first.leads.borrow(), "it is still its own");
}

/// Answers that do not come and refusals, at the worst moments.
#[tokio::test(start_paused = true)]
async fn a_leader_whose_api_server_hangs_stops_before_its_lease_is_anyones() {
    let server = ApiServer::start();
    let first = candidate(server.client(), "a");
    seconds(5).await;
    server.writes();
    while server.writes().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.hang(true);
    seconds(8).await;
    server.leave();
    server.hang(false);
    seconds(2).await;
    server.hang(true);
    // Fifteen seconds after the renewal another may begin.
    tokio::time::sleep(Duration::from_millis(4800)).await;
    assert!(!*first.leads.borrow());
}

/// A followed root, without the rest of a control plane.
struct Followed {
    current: Arc<CurrentAuthority>,
    metrics: Arc<Metrics>,
    problem: watch::Receiver<Option<String>>,
}

async fn follow(server: &ApiServer) -> Followed {
    let (_leading, leads) = watch::channel(true);
    follow_as(server, Arc::default(), leads).await
}

async fn follow_as(server: &ApiServer, ledger: Arc<Ledger>, leads: watch::Receiver<bool>) -> Followed {
    let settings = root::Settings {
        client: server.client(),
        namespace: SYSTEM.to_owned(),
        trust_domain: "cluster.local".to_owned(),
        lifetime: DAY,
        adopt_after: ADOPT,
    };
    let (root, current) = Root::open(settings).await.unwrap();
    let metrics = Metrics::new();
    let hub = Hub::new(compile::Options::default(), current.load().roots(), Arc::clone(&metrics));
    let (problems, problem) = watch::channel(None);
    tokio::spawn({
        let (current, metrics) = (Arc::clone(&current), Arc::clone(&metrics));
        async move { root.follow(current, hub, ledger, metrics, problems, leads).await }
    });
    Followed { current, metrics, problem }
}

#[tokio::test(start_paused = true)]
async fn a_root_that_is_replaced_in_one_write_is_trusted_at_once_and_signs_three_minutes_later() {
    let server = ApiServer::start();
    let Followed { current, metrics, problem } = follow(&server).await;
    let old = current.load().roots()[0].clone();
    server.apply(&secret(3000 * DAY));
    seconds(2).await;
    assert_eq!(current.load().roots().len(), 2, "the new one and the old one");
    let signs_under_old = || {
        let old = [old.clone()];
        !current.load().signs_under(&old).is_empty()
    };
    assert!(signs_under_old(), "not every pod has the new one yet");
    seconds(185).await;
    assert!(!signs_under_old());
    assert!(current.load().roots().contains(&old), "certificates under it live for a day");
    assert_eq!(bundle(&server, SYSTEM).unwrap().matches("BEGIN CERTIFICATE").count(), 2);

    // Another replica starts and knows what is still needed, though the Secret does not say it.
    assert!(follow(&server).await.current.load().roots().contains(&old));

    // What cannot be used changes nothing, and is said until it is mended.
    server.apply(&secret_of("no certificate", "no key"));
    seconds(2).await;
    assert_eq!(metrics.root_unusable.get(), 1);
    assert!(problem.borrow().as_ref().is_some_and(|text| text.contains("heddle-root")), "{problem:?}");
    assert_eq!(current.load().roots().len(), 2);
    server.apply(&secret(3000 * DAY));
    seconds(2).await;
    assert_eq!((metrics.root_unusable.get(), problem.borrow().clone()), (0, None));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_does_not_make_the_root_unusable() {
    let server = ApiServer::start();
    let Followed { metrics, problem, .. } = follow(&server).await;
    server.leave();
    seconds(120).await;
    server.come_back();
    seconds(60).await;
    assert_eq!((metrics.root_unusable.get(), problem.borrow().clone()), (0, None));
    // But one that has no Secret any more does.
    server.delete(&secret(DAY * 100));
    seconds(35).await;
    assert_eq!(metrics.root_unusable.get(), 1);
}

fn labelled(namespace: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, labels: {{heddle.dev/inject: enabled}}}}}}"
    )
}

#[tokio::test(start_paused = true)]
async fn what_is_trusted_is_there_again_within_a_minute_when_somebody_deleted_it() {
    let server = ApiServer::start();
    let _followed = follow(&server).await;
    seconds(5).await;
    server.delete(&format!(
        "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: heddle-ca, namespace: {SYSTEM}}}}}"
    ));
    seconds(63).await;
    assert!(bundle(&server, SYSTEM).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_made_anew_before_anyone_looks_gets_what_is_trusted_again() {
    let server = ApiServer::start();
    server.apply(&labelled("shop"));
    let running = start(&server, "a").await;
    wait("what is trusted", async || bundle(&server, "shop")).await;
    server.delete(&labelled("shop"));
    server.delete("{apiVersion: v1, kind: ConfigMap, metadata: {name: heddle-ca, namespace: shop}}");
    server.apply(&labelled("shop"));
    wait("what is trusted in the new namespace", async || bundle(&server, "shop")).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_loses_the_lease_while_it_publishes_writes_nothing_more() {
    let server = ApiServer::start();
    for number in 0..10 {
        server.apply(&labelled(&format!("n{number}")));
    }
    let (ledger, (tx, mut batches)) = (Arc::<Ledger>::default(), mpsc::channel(16));
    tokio::spawn(source::kubernetes::run(server.client(), Arc::clone(&ledger), tx));
    while let Some(batch) = batches.recv().await {
        batch.notes.enter();
        if batch.synced {
            break;
        }
    }
    let (leading, leads) = watch::channel(false);
    let _followed = follow_as(&server, ledger, leads).await;
    seconds(5).await;
    let published = || {
        let all = server.writes();
        all.iter().filter(|write| write.ends_with("/configmaps/heddle-ca")).count()
    };
    assert_eq!(published(), 0);
    leading.send_replace(true);
    server.after_a_write(move || {
        leading.send_replace(false);
    });
    seconds(5).await;
    assert_eq!(published(), 1);
}
