//! From a batch of objects to the streams that it concerns.

use std::time::SystemTime;

use serde_json::json;

use super::*;
use crate::object::{Change, Object};

fn service(name: &str) -> Change {
    let object = json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80}]},
    });
    upsert(Object::Service(Arc::new(serde_json::from_value(object).unwrap())))
}

fn pod(app: &str, address: &str) -> Change {
    let object = json!({
        "metadata": {"name": format!("{app}-{address}"), "namespace": "shop", "labels": {"app": app}},
        "spec": {"containers": []},
        "status": {"podIP": address},
    });
    upsert(Object::Pod(Arc::new(serde_json::from_value(object).unwrap())))
}

fn upsert(object: Object) -> Change {
    Change::Upsert(object)
}

fn batch(changes: Vec<Change>) -> Batch {
    Batch { changes, synced: true, ..Batch::default() }
}

fn hub() -> Arc<Hub> {
    Hub::new(Options::default(), &[], Metrics::new())
}

fn stream(hub: &Hub, pod: &str) -> Arc<streams::Stream> {
    let address = ([127, 0, 0, 1], 1).into();
    hub.streams().connect(&pod.parse().unwrap(), address, String::new(), SystemTime::UNIX_EPOCH)
}

fn endpoints(name: &str) -> Key {
    Key::Endpoints(format!("shop/{name}:80").into())
}

#[test]
fn a_pod_that_comes_is_compiled_into_its_own_service_and_wakes_that_ones_subscribers_alone() {
    let hub = hub();
    hub.apply(batch(vec![service("a"), service("b")]));
    let (one, two) = (stream(&hub, "shop/one"), stream(&hub, "shop/two"));
    hub.subscribe(one.id, &endpoints("a"));
    hub.subscribe(two.id, &endpoints("b"));
    let before = (hub.current(&endpoints("a")).unwrap(), hub.metrics.compiled.get());
    hub.apply(batch(vec![pod("a", "10.0.0.1")]));
    assert_eq!((one.take_dirty(), two.take_dirty()), ([endpoints("a")].into(), [].into()));
    assert_eq!(hub.metrics.compiled.get() - before.1, 1);
    assert_ne!(hub.current(&endpoints("a")).unwrap().version, before.0.version);
    assert_eq!(hub.former(&endpoints("a"), &before.0.version), Some(before.0));
}

#[test]
fn a_resource_is_compiled_once_for_all_its_subscribers() {
    let hub = hub();
    hub.apply(batch(vec![service("a")]));
    let streams: Vec<_> = (0..50).map(|n| stream(&hub, &format!("shop/{n}"))).collect();
    for stream in &streams {
        hub.subscribe(stream.id, &endpoints("a"));
    }
    let before = hub.metrics.compiled.get();
    hub.apply(batch(vec![pod("a", "10.0.0.1")]));
    assert_eq!(hub.metrics.compiled.get() - before, 1);
    assert!(streams.iter().all(|stream| stream.take_dirty() == [endpoints("a")].into()));
}

#[test]
fn what_does_not_exist_yet_is_followed_too() {
    let hub = hub();
    let stream = stream(&hub, "shop/one");
    let key = Key::Destination { namespace: "shop".into(), name: "a:80".into() };
    hub.subscribe(stream.id, &key);
    assert_eq!(hub.current(&key).unwrap().body, None);
    hub.apply(batch(vec![service("a")]));
    assert_eq!(stream.take_dirty(), [key.clone()].into());
    assert!(hub.current(&key).unwrap().body.is_some());
}

#[test]
fn who_unsubscribed_or_disconnected_is_not_woken_and_nothing_is_kept_for_it() {
    let hub = hub();
    hub.apply(batch(vec![service("a")]));
    let stream = stream(&hub, "shop/one");
    hub.subscribe(stream.id, &endpoints("a"));
    hub.unsubscribe(stream.id, &endpoints("a"));
    hub.apply(batch(vec![pod("a", "10.0.0.1")]));
    assert_eq!((stream.take_dirty(), hub.current(&endpoints("a"))), ([].into(), None));
    hub.streams().disconnect(stream.id);
    assert!(hub.streams().statuses().is_empty());
}

#[test]
fn a_pods_oldest_stream_gives_way_to_one_too_many() {
    let hub = hub();
    let streams: Vec<_> = (0..4).map(|_| stream(&hub, "shop/web-0")).collect();
    let other = stream(&hub, "shop/other");
    let replaced: Vec<bool> = streams.iter().map(|stream| stream.replaced.is_cancelled()).collect();
    assert_eq!((replaced, other.replaced.is_cancelled()), (vec![true, false, false, false], false));
}
