//! An API server in this process, under `kube`'s own client: it stores, lists, watches, patches and refuses as a real one
//! does, as far as the control plane goes, and can be away, forget, and be asked what was written.
//!
//! What it does not know: schemas, admission, ownership of fields, RBAC. The suite against a real one is for those.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};

/// The control plane's namespace.
pub(crate) const SYSTEM: &str = "heddle-system";
/// What it serves, besides what everybody has.
const DEFINED: [(&str, &[&str]); 4] = [
    ("heddle.dev/v1alpha1", &["TrafficPolicy", "AccessPolicy", "MeshPolicy"]),
    ("gateway.networking.k8s.io/v1", &["HTTPRoute", "GRPCRoute"]),
    ("gateway.networking.k8s.io/v1alpha2", &["TCPRoute"]),
    ("gateway.networking.k8s.io/v1beta1", &["ReferenceGrant"]),
];

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// An API server; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct ApiServer(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    /// Everything that happened: version, whose, and the line that a watch says.
    history: Vec<(u64, Key, Bytes)>,
    watches: Vec<(Place, UnboundedSender<Bytes>)>,
    /// Versions before this one are forgotten: whoever watches from there gets 410 Gone.
    forgotten: u64,
    away: bool,
    /// It takes requests and answers none.
    hangs: bool,
    /// What TokenReview says of a token.
    tokens: HashMap<String, Value>,
    /// `METHOD path` of each request that changed something.
    writes: Vec<String>,
    /// Whose next change by version meets one that was quicker.
    quicker: Option<Key>,
    /// What happens right after the next request that changes something.
    after_a_write: Option<Box<dyn FnOnce() + Send>>,
}

/// Where an object is: group, plural, namespace, name.
type Key = (String, String, String, String);

/// A request's place.
#[derive(Clone, Debug)]
struct Place {
    group: String,
    plural: String,
    /// Empty: all.
    namespace: String,
    /// Empty: all.
    name: String,
    status: bool,
}

impl Place {
    fn of(path: &str) -> Option<Self> {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        let group = match parts.next()? {
            "api" => String::new(),
            _ => parts.next()?.to_owned(),
        };
        let _version = parts.next()?;
        let rest: Vec<_> = parts.collect();
        let (namespace, rest) = match rest[..] {
            ["namespaces", namespace, ref rest @ ..] if !rest.is_empty() => (namespace, rest.to_vec()),
            _ => ("", rest),
        };
        let [plural, ref rest @ ..] = rest[..] else { return None };
        let name = rest.first().copied().unwrap_or_default();
        Some(Self {
            group,
            plural: plural.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            status: rest.get(1) == Some(&"status"),
        })
    }

    fn key(&self) -> Key {
        (self.group.clone(), self.plural.clone(), self.namespace.clone(), self.name.clone())
    }

    fn holds(&self, (group, plural, namespace, name): &Key) -> bool {
        let fits = |own: &str, other: &str| own.is_empty() || own == other;
        self.group == *group
            && self.plural == *plural
            && fits(&self.namespace, namespace)
            && fits(&self.name, name)
    }
}

fn answer(status: StatusCode, value: &Value) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed());
    *response.status_mut() = status;
    response
}

fn failure(status: StatusCode, reason: &str) -> Answer {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": status.as_u16(), "reason": reason, "message": reason});
    answer(status, &body)
}

impl State {
    fn handle(&mut self, method: &Method, uri: &http::Uri, kind: &str, body: &[u8]) -> Answer {
        if self.away {
            return failure(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable");
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let Some(place) = Place::of(uri.path()) else { return self.resources(uri.path()) };
        match *method {
            Method::GET if uri.query().is_some_and(|query| query.contains("watch=true")) => {
                self.watch(&place, uri.query().unwrap_or_default())
            }
            Method::GET => self.read(&place, uri.query().unwrap_or_default()),
            Method::POST if place.plural == "tokenreviews" => self.review(body),
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let place = Place { name, ..place };
                if self.objects.contains_key(&place.key()) {
                    return failure(StatusCode::CONFLICT, "AlreadyExists");
                }
                self.wrote(method, uri);
                answer(StatusCode::CREATED, &self.put(&place, body))
            }
            Method::PUT => self.change(method, uri, &place, |_| body),
            Method::PATCH => {
                let created = kind.contains("apply-patch") && !self.objects.contains_key(&place.key());
                if created && !place.status {
                    self.wrote(method, uri);
                    return answer(StatusCode::CREATED, &self.put(&place, body));
                }
                let strategic = kind.contains("strategic");
                self.change(method, uri, &place, |mut old| {
                    let patch = if strategic { by_key(&old, body) } else { body };
                    json_patch::merge(&mut old, &patch);
                    old
                })
            }
            Method::DELETE => match self.objects.remove(&place.key()) {
                Some(object) => {
                    self.wrote(method, uri);
                    self.version += 1;
                    self.tell(&place.key(), "DELETED", &object);
                    answer(StatusCode::OK, &object)
                }
                None => failure(StatusCode::NOT_FOUND, "NotFound"),
            },
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    fn wrote(&mut self, method: &Method, uri: &http::Uri) {
        self.writes.push(format!("{method} {}", uri.path()));
        if let Some(happens) = self.after_a_write.take() {
            happens();
        }
    }

    /// An object that is there becomes another, unless somebody was quicker.
    fn change(
        &mut self,
        method: &Method,
        uri: &http::Uri,
        place: &Place,
        next: impl FnOnce(Value) -> Value,
    ) -> Answer {
        let Some(old) = self.objects.get(&place.key()).cloned() else {
            return failure(StatusCode::NOT_FOUND, "NotFound");
        };
        let mut new = next(old.clone());
        let version = &new["metadata"]["resourceVersion"];
        if !version.is_null() && self.quicker.take_if(|key| *key == place.key()).is_some() {
            self.put(place, old);
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        if !version.is_null() && *version != old["metadata"]["resourceVersion"] {
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        // Its status is another resource than the rest.
        if place.status {
            let status = new["status"].take();
            new = old.clone();
            new["status"] = status;
        } else if !old["status"].is_null() {
            new["status"] = old["status"].clone();
        }
        if new == old {
            return answer(StatusCode::OK, &old);
        }
        self.wrote(method, uri);
        answer(StatusCode::OK, &self.put(place, new))
    }

    /// Stores an object, and tells it.
    fn put(&mut self, place: &Place, mut object: Value) -> Value {
        self.version += 1;
        let key = place.key();
        let old = self.objects.get(&key);
        let generation = match old {
            Some(old) if old["spec"] == object["spec"] => old["metadata"]["generation"].clone(),
            Some(old) => json!(old["metadata"]["generation"].as_u64().unwrap_or_default() + 1),
            None => json!(1),
        };
        let uid =
            old.map_or_else(|| json!(format!("uid-{}", self.version)), |old| old["metadata"]["uid"].clone());
        let meta = &mut object["metadata"];
        meta["resourceVersion"] = json!(self.version.to_string());
        meta["generation"] = generation;
        meta["uid"] = uid;
        meta["name"] = json!(place.name);
        if meta["creationTimestamp"].is_null() {
            meta["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        if !place.namespace.is_empty() {
            meta["namespace"] = json!(place.namespace);
        }
        let event = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.objects.insert(key.clone(), object.clone());
        self.tell(&key, event, &object);
        object
    }

    fn tell(&mut self, key: &Key, event: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({"type": event, "object": object})));
        self.history.push((self.version, key.clone(), line.clone()));
        self.watches.retain(|(place, tx)| !place.holds(key) || tx.send(line.clone()).is_ok());
    }

    fn read(&self, place: &Place, query: &str) -> Answer {
        if !place.name.is_empty() {
            return self.objects.get(&place.key()).map_or_else(
                || failure(StatusCode::NOT_FOUND, "NotFound"),
                |object| answer(StatusCode::OK, object),
            );
        }
        let place = selected(place, query);
        let items: Vec<_> = self.objects.iter().filter(|(key, _)| place.holds(key)).map(|(_, o)| o).collect();
        let list = json!({"kind": "List", "apiVersion": "v1", "items": items,
            "metadata": {"resourceVersion": self.version.to_string()}});
        answer(StatusCode::OK, &list)
    }

    fn watch(&mut self, place: &Place, query: &str) -> Answer {
        let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let from = from.and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
        if from < self.forgotten {
            return failure(StatusCode::GONE, "Expired");
        }
        let place = selected(place, query);
        let (tx, rx) = mpsc::unbounded_channel();
        for (_, _, line) in
            self.history.iter().filter(|(version, key, _)| *version > from && place.holds(key))
        {
            let _sent = tx.send(line.clone());
        }
        self.watches.push((place, tx));
        let frames = UnboundedReceiverStream::new(rx).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
        Response::new(BoxBody::new(StreamBody::new(frames)))
    }

    fn review(&self, mut review: Value) -> Answer {
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        let unknown = || json!({"authenticated": false, "error": "invalid bearer token"});
        review["status"] = self.tokens.get(token).cloned().unwrap_or_else(unknown);
        answer(StatusCode::CREATED, &review)
    }

    fn resources(&self, path: &str) -> Answer {
        let group = path.strip_prefix("/apis/").unwrap_or_default();
        let Some((_, kinds)) = DEFINED.into_iter().find(|(defined, _)| *defined == group) else {
            return failure(StatusCode::NOT_FOUND, "NotFound");
        };
        let one = |kind: &&str| {
            let name = kind.to_lowercase();
            let plural =
                name.strip_suffix('y').map_or_else(|| format!("{name}s"), |stem| format!("{stem}ies"));
            json!({"name": plural, "kind": kind, "namespaced": true, "singularName": "", "verbs": []})
        };
        let list: Vec<_> = kinds.iter().map(one).collect();
        answer(StatusCode::OK, &json!({"kind": "APIResourceList", "groupVersion": group, "resources": list}))
    }
}

/// With `fieldSelector=metadata.name=…`.
fn selected(place: &Place, query: &str) -> Place {
    let name = query.split('&').find_map(|pair| {
        let selector = pair.strip_prefix("fieldSelector=metadata.name")?;
        selector.strip_prefix("%3D").or_else(|| selector.strip_prefix('='))
    });
    Place { name: name.unwrap_or(&place.name).to_owned(), ..place.clone() }
}

/// A strategic merge patch as a merge patch: members of lists are found by their `name` or `type`.
fn by_key(old: &Value, patch: Value) -> Value {
    let key =
        |member: &Value| ["name", "type"].into_iter().find_map(|key| member[key].as_str().map(str::to_owned));
    match patch {
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (name.clone(), by_key(&old[&name], value))).collect()
        }
        Value::Array(members) if members.iter().all(|member| key(member).is_some()) => {
            let mut all = old.as_array().cloned().unwrap_or_default();
            for member in members {
                match all.iter_mut().find(|other| key(other) == key(&member)) {
                    Some(other) => {
                        let patch = by_key(other, member);
                        json_patch::merge(other, &patch);
                    }
                    None => all.push(member),
                }
            }
            Value::Array(all)
        }
        other => other,
    }
}

impl ApiServer {
    /// With namespaces `heddle-system` and `shop`.
    pub(crate) fn start() -> Self {
        let _first = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let server = Self::default();
        for name in [SYSTEM, "shop"] {
            server.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}"));
        }
        server
    }

    /// Speaks to it.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.clone(), SYSTEM)
    }

    fn edit<T>(&self, edit: impl FnOnce(&mut State) -> T) -> T {
        edit(&mut self.0.lock().unwrap())
    }

    /// Stores a manifest, status and all.
    pub(crate) fn apply(&self, manifest: &str) -> Value {
        let value: Value = serde_norway::from_str(manifest).unwrap();
        self.edit(|state| state.put(&place_of(&value), value))
    }

    /// An object as it is now.
    pub(crate) fn get(&self, manifest: &str) -> Option<Value> {
        let value: Value = serde_norway::from_str(manifest).unwrap();
        self.edit(|state| state.objects.get(&place_of(&value).key()).cloned())
    }

    /// Somebody else writes an object, with nothing new, just ahead of the next change of it.
    pub(crate) fn be_quicker(&self, manifest: &str) {
        let value: Value = serde_norway::from_str(manifest).unwrap();
        self.edit(|state| state.quicker = Some(place_of(&value).key()));
    }

    /// Something happens right after the next request that changes something.
    pub(crate) fn after_a_write(&self, happens: impl FnOnce() + Send + 'static) {
        self.edit(|state| state.after_a_write = Some(Box::new(happens)));
    }

    /// Deletes it.
    pub(crate) fn delete(&self, manifest: &str) {
        let value: Value = serde_norway::from_str(manifest).unwrap();
        self.edit(|state| {
            let key = place_of(&value).key();
            let object = state.objects.remove(&key).expect("it is there");
            state.version += 1;
            state.tell(&key, "DELETED", &object);
        });
    }

    /// All objects of a plural.
    pub(crate) fn all(&self, plural: &str) -> Vec<Value> {
        self.edit(|state| {
            state.objects.iter().filter(|((_, own, ..), _)| own == plural).map(|(_, o)| o.clone()).collect()
        })
    }

    /// What TokenReview says of a token from now on: a pod's, by its uid.
    pub(crate) fn vouch(&self, token: &str, account: &str, pod: &str, uid: &str) {
        let status = json!({"authenticated": true, "audiences": ["heddle.dev"], "user": {
            "username": format!("system:serviceaccount:shop:{account}"),
            "extra": {"authentication.kubernetes.io/pod-name": [pod], "authentication.kubernetes.io/pod-uid": [uid]}}});
        self.edit(|state| state.tokens.insert(token.to_owned(), status));
    }

    /// `METHOD path` of the requests since the last call that changed something.
    pub(crate) fn writes(&self) -> Vec<String> {
        self.edit(|state| std::mem::take(&mut state.writes))
    }

    /// Whether it takes requests and answers none.
    pub(crate) fn hang(&self, hangs: bool) {
        self.edit(|state| state.hangs = hangs);
    }

    /// Watches end without a word, and nobody is let in.
    pub(crate) fn leave(&self) {
        self.edit(|state| {
            state.away = true;
            state.watches.clear();
        });
    }

    /// Back, with no memory of what happened: whoever watches from before gets 410 Gone.
    pub(crate) fn come_back(&self) {
        self.edit(|state| {
            state.version += 1;
            (state.away, state.forgotten) = (false, state.version);
            state.history.clear();
        });
    }
}

/// Where a manifest's object is.
fn place_of(value: &Value) -> Place {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&value["apiVersion"]);
    let (group, _) = version.split_once('/').unwrap_or(("", &version));
    let kind = text(&value["kind"]).to_lowercase();
    let plural = kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"));
    Place {
        group: group.to_owned(),
        plural,
        namespace: text(&value["metadata"]["namespace"]),
        name: text(&value["metadata"]["name"]),
        status: false,
    }
}

impl tower_service::Service<Request<Body>> for ApiServer {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            if server.edit(|state| state.hangs) {
                return std::future::pending().await;
            }
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let kind =
                head.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
            Ok(server.edit(|state| state.handle(&head.method, &head.uri, kind, &body)))
        })
    }
}
