//! The source over an API of the test's own making: what a real one does when it restarts, forgets, or repeats itself.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Ready, ready},
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, Receiver, UnboundedSender};
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};

use super::{Batch, run};
use crate::{
    compile::{Mesh, Options},
    object::Kind,
};

/// An API server in this process: lists and watches, and nothing else.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    version: u64,
    objects: HashMap<&'static str, Vec<Value>>,
    watches: Vec<(&'static str, UnboundedSender<Bytes>)>,
    gateway: bool,
    /// Heddle's definitions were deleted, or it does not know yet that they are there.
    undefined: bool,
    /// Discovery says of every group that there is none.
    mute: bool,
    away: bool,
    /// Versions before this one are forgotten: whoever asks from there gets 410 Gone.
    forgotten: u64,
    lists: usize,
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn answer(status: StatusCode, value: &Value) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed());
    *response.status_mut() = status;
    response
}

fn failure(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "x", "message": "x"})
}

impl State {
    fn answer(&mut self, uri: &http::Uri) -> Answer {
        let query = uri.query().unwrap_or_default();
        let last = uri.path().rsplit('/').next().unwrap_or_default();
        if self.away {
            return answer(StatusCode::SERVICE_UNAVAILABLE, &failure(503));
        }
        let Some(plural) = Kind::ALL.map(Kind::plural).into_iter().find(|plural| *plural == last) else {
            return self.resources(uri.path());
        };
        if !self.defines(plural) {
            return answer(StatusCode::NOT_FOUND, &failure(404));
        }
        if !query.contains("watch=true") {
            self.lists += 1;
            let items = self.objects.get(plural).cloned().unwrap_or_default();
            let list = json!({"kind": "List", "apiVersion": "v1", "items": items,
                "metadata": {"resourceVersion": self.version.to_string()}});
            return answer(StatusCode::OK, &list);
        }
        let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        if from.and_then(|text| text.parse::<u64>().ok()).is_some_and(|from| from < self.forgotten) {
            return answer(StatusCode::GONE, &failure(410));
        }
        let (tx, rx) = mpsc::unbounded_channel();
        self.watches.push((plural, tx));
        let frames = UnboundedReceiverStream::new(rx).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
        Response::new(BoxBody::new(StreamBody::new(frames)))
    }

    fn defines(&self, plural: &str) -> bool {
        match plural {
            "httproutes" | "grpcroutes" => self.gateway,
            "tcproutes" | "referencegrants" => false,
            "trafficpolicies" | "accesspolicies" | "meshpolicies" => !self.undefined,
            _ => true,
        }
    }

    fn resources(&self, path: &str) -> Answer {
        let of = |kinds: &[Kind]| {
            let one = |kind: &Kind| json!({"name": kind.plural(), "kind": kind.as_str(), "namespaced": true, "singularName": "", "verbs": []});
            let list: Vec<_> = kinds.iter().map(one).collect();
            answer(
                StatusCode::OK,
                &json!({"kind": "APIResourceList", "groupVersion": "x", "resources": list}),
            )
        };
        match path {
            _ if self.mute => answer(StatusCode::NOT_FOUND, &failure(404)),
            "/apis/heddle.dev/v1alpha1" if !self.undefined => {
                of(&[Kind::TrafficPolicy, Kind::AccessPolicy, Kind::MeshPolicy])
            }
            "/apis/gateway.networking.k8s.io/v1" if self.gateway => of(&[Kind::HttpRoute, Kind::GrpcRoute]),
            _ => answer(StatusCode::NOT_FOUND, &failure(404)),
        }
    }

    fn tell(&mut self, plural: &'static str, event: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({"type": event, "object": object})));
        self.watches.retain(|(other, tx)| *other != plural || tx.send(line.clone()).is_ok());
    }
}

impl Api {
    fn client(&self) -> Client {
        Client::new(self.clone(), "heddle-system")
    }

    fn edit<T>(&self, edit: impl FnOnce(&mut State) -> T) -> T {
        edit(&mut self.0.lock().unwrap())
    }

    /// A Pod of Service `reviews`; told to those who watch.
    fn pod(&self, name: &str, ip: &str) {
        self.edit(|state| {
            state.version += 1;
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "shop", "labels": {"app": "reviews"}, "resourceVersion": state.version.to_string()},
                "spec": {"containers": []}, "status": {"podIP": ip}});
            let pods = state.objects.entry("pods").or_default();
            pods.retain(|other| other["metadata"]["name"] != name);
            pods.push(pod.clone());
            // Twice: what repeats itself changes nothing.
            state.tell("pods", "ADDED", &pod);
            state.tell("pods", "MODIFIED", &pod);
        });
    }

    fn remove(&self, name: &str) {
        self.edit(|state| {
            state.version += 1;
            let pods = state.objects.entry("pods").or_default();
            let index = pods.iter().position(|pod| pod["metadata"]["name"] == name).unwrap();
            let pod = pods.remove(index);
            state.tell("pods", "DELETED", &pod);
        });
    }

    /// Watches end without a word, and nobody is let in.
    fn leave(&self) {
        self.edit(|state| {
            state.away = true;
            state.watches.clear();
        });
    }

    /// Back, with no memory of what happened.
    fn come_back(&self) {
        self.edit(|state| {
            state.away = false;
            state.forgotten = state.version + 1;
            state.version += 1;
        });
    }
}

impl tower_service::Service<Request<Body>> for Api {
    type Response = Answer;
    type Error = Infallible;
    type Future = Ready<Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        ready(Ok(self.edit(|state| state.answer(request.uri()))))
    }
}

struct World {
    api: Api,
    mesh: Mesh,
    batches: Receiver<Batch>,
    problems: Vec<String>,
}

impl World {
    async fn start() -> Self {
        Self::over(Api::default()).await
    }

    /// With a Service and a Pod.
    async fn over(api: Api) -> Self {
        api.edit(|state| {
            state.version = 1;
            let service = json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "reviews", "namespace": "shop", "resourceVersion": "1"},
                "spec": {"selector": {"app": "reviews"}, "ports": [{"port": 80}]}});
            state.objects.insert("services", vec![service]);
        });
        api.pod("a", "10.0.0.1");
        let (tx, batches) = mpsc::channel(16);
        tokio::spawn(run(api.client(), Arc::default(), tx));
        let mut world = Self { api, mesh: Mesh::new(Options::default()), batches, problems: Vec::new() };
        while !world.take().await {}
        world
    }

    async fn take(&mut self) -> bool {
        let batch = self.batches.recv().await.unwrap();
        self.mesh.apply(batch.changes);
        if let Some(problems) = batch.problems {
            self.problems = problems.iter().map(ToString::to_string).collect();
        }
        batch.synced
    }

    fn endpoints(&self) -> Vec<String> {
        let found = self.mesh.endpoints("shop/reviews:80").value.unwrap().endpoints;
        found.into_iter().map(|endpoint| endpoint.address).collect()
    }

    /// With paused time this ends, or nothing would ever happen again.
    async fn until(&mut self, expected: &[&str]) {
        while self.endpoints() != expected {
            self.take().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_changes_is_followed() {
    let mut world = World::start().await;
    assert_eq!(world.endpoints(), ["10.0.0.1"]);
    world.api.pod("b", "10.0.0.2");
    world.until(&["10.0.0.1", "10.0.0.2"]).await;
    world.api.remove("a");
    world.until(&["10.0.0.2"]).await;
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_and_410_everything_is_listed_again_and_until_then_nothing_is_forgotten() {
    let mut world = World::start().await;
    let lists = world.api.edit(|state| state.lists);
    world.api.leave();
    world.api.remove("a");
    world.api.pod("b", "10.0.0.2");
    // Minutes of an API server that is away: what is known stays.
    tokio::time::sleep(std::time::Duration::from_secs(300)).await;
    assert!(world.batches.try_recv().is_err());
    assert_eq!(world.endpoints(), ["10.0.0.1"]);
    world.api.come_back();
    world.until(&["10.0.0.2"]).await;
    assert!(world.api.edit(|state| state.lists) > lists, "410 Gone is answered by a new list");
}

#[tokio::test(start_paused = true)]
async fn a_cluster_without_the_gateway_api_does_without_and_notices_when_it_comes() {
    let mut world = World::start().await;
    let without = |problems: &[String]| problems.iter().any(|p| p.contains("the cluster has no HTTPRoute"));
    assert!(without(&world.problems), "{:?}", world.problems);
    world.api.edit(|state| {
        state.gateway = true;
        let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "r", "namespace": "shop", "resourceVersion": "1"},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "reviews"}], "rules": [{}]}});
        state.objects.insert("httproutes", vec![route]);
    });
    let routed = |mesh: &Mesh| !mesh.destination("shop", "reviews:80").value.unwrap().http_routes.is_empty();
    while !routed(&world.mesh) || without(&world.problems) {
        world.take().await;
    }
}

impl World {
    /// With a policy that denies; then some time of an API server that has been edited.
    async fn guarded() -> Self {
        let api = Api::default();
        api.edit(|state| {
            let policy = json!({"apiVersion": "heddle.dev/v1alpha1", "kind": "AccessPolicy",
                "metadata": {"name": "p", "namespace": "shop", "resourceVersion": "1"},
                "spec": {"targetRefs": [{"kind": "Namespace", "name": "shop"}], "action": "Deny", "rules": []}});
            state.objects.insert("accesspolicies", vec![policy]);
        });
        let world = Self::over(api).await;
        assert!(world.is_guarded());
        world
    }

    fn is_guarded(&self) -> bool {
        !self.mesh.inbound(&"shop/a".parse().unwrap()).value.unwrap().access.is_empty()
    }

    /// Lets time pass; whether the policy was there all along.
    async fn after(&mut self, seconds: u64) -> bool {
        let mut guarded = true;
        // In steps, so that answers come in between.
        for _ in 0..seconds * 10 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            while let Ok(batch) = self.batches.try_recv() {
                self.mesh.apply(batch.changes);
            }
            guarded &= self.is_guarded();
        }
        guarded
    }
}

#[tokio::test(start_paused = true)]
async fn discovery_alone_makes_no_kind_missing() {
    let mut world = World::guarded().await;
    let lists = world.api.edit(|state| state.lists);
    world.api.edit(|state| state.mute = true);
    assert!(world.after(300).await);
    let asked = world.api.edit(|state| state.lists) - lists;
    assert!(asked < 100, "it is looked whether a list says the same, now and then: {asked}");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_does_not_know_its_definitions_for_a_moment_makes_no_kind_missing() {
    let mut world = World::guarded().await;
    // It is just when somebody looks.
    world.after(19).await;
    world.api.edit(|state| {
        (state.undefined, state.mute) = (true, true);
        // It has restarted.
        state.watches.clear();
    });
    assert!(world.after(2).await);
    world.api.edit(|state| (state.undefined, state.mute) = (false, false));
    assert!(world.after(60).await);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_starts_beside_such_an_api_server_waits_for_its_word() {
    let api = Api::default();
    api.edit(|state| (state.undefined, state.mute) = (true, true));
    tokio::spawn({
        let api = api.clone();
        async move {
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            api.edit(|state| (state.undefined, state.mute) = (false, false));
        }
    });
    let world = World::over(api).await;
    assert!(world.problems.iter().all(|problem| !problem.contains("AccessPolicy")), "{:?}", world.problems);
}

#[tokio::test(start_paused = true)]
async fn a_definition_that_is_deleted_takes_its_objects_along() {
    let mut world = World::guarded().await;
    world.api.edit(|state| state.undefined = true);
    world.after(40).await;
    assert!(!world.is_guarded(), "though its watch says nothing");
    world.api.edit(|state| state.undefined = false);
    world.after(10).await;
    assert!(world.is_guarded());
}
