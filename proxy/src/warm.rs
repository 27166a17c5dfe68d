//! A warm start: what other pods of the workload talk to is asked for, and connected to, before the sidecar says that it
//! is ready. The application's first request then waits for neither discovery nor a handshake, nor for the series that it
//! is counted in to be made; and it is not the first on its connection ([`crate::carrier::ahead`]).
//!
//! Which names those are is the control plane's to say (`DiscoveryResponse.expected`), and only a hint: nothing here can
//! fail, everything is bounded by number and by [`LIMIT`]. What nobody uses is let go as anything else that nobody uses.

use std::{net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use heddle_api::carrier::Form;
use http::{Version, uri::Authority};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    config::{AppProtocol, Backend, Destination, Endpoint, EndpointSet, Route},
    outbound::{SeriesKey, peer},
    reason::Reason,
    store::Lookup,
    worker::Worker,
};

/// What a sidecar with everything else in place waits at most before it says that it is ready.
pub const LIMIT: Duration = Duration::from_millis(500);
/// Endpoints of a backend that each worker connects to. Where there are more, the first request may meet a cold one.
const ENDPOINTS: usize = 4;
/// Connections of a worker.
const CONNECTIONS: usize = 64;
/// Series made of one endpoint's requests: one for each route that leads to it.
const SERIES: usize = 4;
/// A peer that starts at the same time may not listen yet.
const AGAIN: Duration = Duration::from_millis(20);

/// Asks for what is expected, connects to it and sends a request there. Returns when all is done or [`LIMIT`] has passed;
/// dials that are under way then end by themselves.
pub async fn warm(worker: &Rc<Worker>) {
    let names = worker.store.expected().await;
    let all = async {
        let mut lookups = JoinSet::new();
        for name in names.iter() {
            let (worker, name) = (Rc::clone(worker), Arc::clone(name));
            lookups.spawn_local(async move {
                let found = worker.store.lookup(&name).await;
                (name, found)
            });
        }
        let (mut dials, mut room) = (JoinSet::new(), CONNECTIONS);
        while let Some(found) = lookups.join_next().await {
            let Ok((name, Ok(slot))) = found else { continue };
            let Lookup::Mesh(destination) = slot.load() else { continue };
            let namespace =
                worker.identity.current().map(|credentials| credentials.id.namespace().to_owned());
            let authority = authority(&name, &destination.service, namespace.as_deref());
            for (backend, endpoint) in targets(&destination, room) {
                room -= 1;
                for key in series(&destination, &backend, &endpoint).take(SERIES) {
                    worker.series.get(&worker.metrics, &key);
                }
                let asked = authority.clone().filter(|_| speaks_http(&destination, &backend));
                dials.spawn_local(connect(Rc::clone(worker), asked, backend, endpoint));
            }
        }
        while dials.join_next().await.is_some() {}
    };
    if timeout(LIMIT, all).await.is_err() {
        tracing::debug!(names = names.len(), "not all that was expected could be connected to in time");
    }
}

/// Where requests for a destination may go: some endpoints of each of its backends.
fn targets(destination: &Destination, room: usize) -> Vec<(Arc<Backend>, Arc<Endpoint>)> {
    let routed = destination.rules.iter().map(|rule| &rule.split).chain(&destination.tcp);
    let routed = routed.flat_map(|split| &split.entries).filter(|entry| entry.weight > 0);
    let mut backends: Vec<_> = routed.filter_map(|entry| entry.backend.as_ref()).collect();
    if backends.is_empty() {
        backends.extend(&destination.default);
    }
    backends.sort_by(|a, b| a.key.cmp(&b.key));
    backends.dedup_by(|a, b| a.key == b.key);
    let mut targets = Vec::new();
    for backend in backends {
        let set: &EndpointSet = &backend.state.endpoints.load();
        // Those that requests will go to.
        let (members, wheel) =
            set.near.as_ref().map_or((&set.candidates, &set.wheel), |near| (&near.members, &near.wheel));
        let mut drawn = Vec::new();
        if members.len() <= ENDPOINTS {
            drawn.extend(0..members.len());
        } else {
            drawn.extend((0..ENDPOINTS).filter_map(|_| wheel.random()));
            drawn.sort_unstable();
            drawn.dedup();
        }
        targets.extend(drawn.into_iter().map(|at| (backend.clone(), members[at].clone())));
    }
    targets.truncate(room);
    targets
}

/// What requests that go to an endpoint are counted in, if they are of the version that is likely.
fn series<'a>(
    destination: &'a Destination,
    backend: &'a Arc<Backend>,
    endpoint: &'a Endpoint,
) -> impl Iterator<Item = SeriesKey> + 'a {
    let is_this = |other: &Arc<Backend>| Arc::ptr_eq(other, backend);
    let leads_here = move |route: &&Route| {
        let entries = destination.rules.get(route.rule).into_iter().flat_map(|rule| &rule.split.entries);
        entries.filter(|entry| entry.weight > 0).filter_map(|entry| entry.backend.as_ref()).any(is_this)
    };
    let routes = destination.routes.iter().filter(leads_here).map(|route| Some(Arc::clone(&route.name)));
    let without = destination.routes.is_empty() && destination.default.as_ref().is_some_and(is_this);
    let opaque = [destination.protocol, backend.protocol].contains(&AppProtocol::Opaque);
    routes.chain(without.then_some(None)).filter(move |_| !opaque).map(|route| SeriesKey {
        service: Arc::clone(&destination.service),
        backend: Arc::clone(&backend.key),
        route,
        version: if backend.protocol == AppProtocol::Http2 { Version::HTTP_2 } else { Version::HTTP_11 },
        mtls: endpoint.identity.is_some(),
    })
}

/// The authority that applications will likely write for a name: the name, without HTTP's own port. Where it is an address,
/// since connections are redirected, the Service's name as pods of this namespace mostly write it.
fn authority(name: &str, service: &str, namespace: Option<&str>) -> Option<Authority> {
    let (host, port) = name.rsplit_once(':')?;
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let service = service.split_once('/').filter(|_| is_address);
    let host = match service.and_then(|(of, rest)| Some((of, rest.rsplit_once(':')?.0))) {
        Some((of, service)) if namespace == Some(of) => service.to_owned(),
        Some((of, service)) => format!("{service}.{of}"),
        None => host.to_owned(),
    };
    if port == "80" { host.parse().ok() } else { format!("{host}:{port}").parse().ok() }
}

/// Whether requests are certain to follow. A port that declares nothing may be no HTTP server's, and a sidecar of an
/// earlier version would pass on to it what is meant for the sidecar.
fn speaks_http(destination: &Destination, backend: &Backend) -> bool {
    destination.protocol != AppProtocol::Opaque
        && matches!(backend.protocol, AppProtocol::Http | AppProtocol::Http1 | AppProtocol::Http2)
}

/// Connects to an endpoint's sidecar, and sends it a request of our own if there is an authority for it. An endpoint without
/// a sidecar has no handshake to save.
async fn connect(
    worker: Rc<Worker>,
    authority: Option<Authority>,
    backend: Arc<Backend>,
    endpoint: Arc<Endpoint>,
) {
    let form = match backend.protocol {
        AppProtocol::Opaque => Form::Tcp,
        AppProtocol::Http2 => Form::Http2,
        AppProtocol::Http1 | AppProtocol::Http | AppProtocol::Detect => Form::Http1,
    };
    let Ok(Some(peer)) = peer(&worker, &endpoint, form) else { return };
    let within = backend.policy.connect_timeout;
    let attempt = async || match authority.clone() {
        Some(authority) => worker.carrier.ask_ahead(&peer, authority, within).await,
        None => worker.carrier.connect_ahead(&peer, within).await,
    };
    while let Err(error) = attempt().await {
        tracing::debug!(address = %peer.address, error = error.source, "not warmed ahead of the first request");
        if error.reason != Reason::ConnectFailed {
            return;
        }
        sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use heddle_api::v1;

    use super::*;
    use crate::config::{BackendState, Place, convert};

    fn weighted(backend: &str, weight: u32) -> v1::WeightedBackend {
        v1::WeightedBackend { backend: backend.to_owned(), weight, filters: vec![] }
    }

    fn endpoint(n: usize) -> v1::Endpoint {
        v1::Endpoint { address: format!("10.0.0.{n}"), port: 80, ..v1::Endpoint::default() }
    }

    /// Of three backends with so many endpoints each; the rule sends everything to the first two, and nothing to the
    /// third by its weight.
    fn destination(endpoints: usize) -> Destination {
        let backend = |key: &str| v1::Backend { key: key.to_owned(), ..v1::Backend::default() };
        let message = v1::Destination {
            service: "shop/a:80".to_owned(),
            http_routes: vec![v1::HttpRoute::default()],
            http_rules: vec![v1::HttpRule {
                backends: vec![weighted("shop/a:80", 1), weighted("shop/b:80", 1), weighted("shop/c:80", 0)],
                ..v1::HttpRule::default()
            }],
            backends: vec![backend("shop/a:80"), backend("shop/b:80"), backend("shop/c:80")],
            default_backend: "shop/a:80".to_owned(),
            ..v1::Destination::default()
        };
        let mut state = |_: &str| {
            let state = BackendState::default();
            let message = v1::Endpoints { endpoints: (1..=endpoints).map(endpoint).collect() };
            state.endpoints.store(Arc::new(convert::endpoints(&message, &EndpointSet::default()).unwrap()));
            Arc::new(state)
        };
        convert::destination(&message, &mut state).unwrap()
    }

    #[test]
    fn every_backend_that_gets_requests_is_warmed_and_no_other() {
        let targets = targets(&destination(2), CONNECTIONS);
        let mut keys: Vec<_> = targets.iter().map(|(backend, _)| &*backend.key).collect();
        keys.dedup();
        assert_eq!((keys, targets.len()), (vec!["shop/a:80", "shop/b:80"], 4));
    }

    #[test]
    fn what_is_meant_for_callers_elsewhere_is_not_warmed() {
        let destination = destination(0);
        let in_zone = |n: usize, zone: &str| v1::Endpoint { for_zones: vec![zone.to_owned()], ..endpoint(n) };
        let message = v1::Endpoints { endpoints: vec![in_zone(1, "a"), in_zone(2, "b"), in_zone(3, "b")] };
        let set = convert::endpoints(&message, &EndpointSet::default()).unwrap();
        let here = Place { zone: "b".to_owned(), node: String::new() };
        let state = &destination.rules[0].split.entries[0].backend.as_ref().unwrap().state;
        state.endpoints.store(Arc::new(set.seen_from(&here)));
        let warmed: Vec<_> =
            targets(&destination, CONNECTIONS).iter().map(|(_, e)| e.address.to_string()).collect();
        assert_eq!(warmed, ["10.0.0.2:80", "10.0.0.3:80"]);
    }

    /// Told by the addresses of the names, as [`SeriesKey`]s are.
    #[test]
    fn a_series_is_made_for_each_route_to_the_endpoint() {
        let destination = destination(1);
        let [(a, endpoint), (b, _)] = &targets(&destination, CONNECTIONS)[..] else { panic!("two backends") };
        for backend in [a, b] {
            let [key] = &series(&destination, backend, endpoint).collect::<Vec<_>>()[..] else {
                panic!("one")
            };
            assert!(
                Arc::ptr_eq(&key.service, &destination.service) && Arc::ptr_eq(&key.backend, &backend.key)
            );
            assert!(Arc::ptr_eq(key.route.as_ref().unwrap(), &destination.routes[0].name));
            assert_eq!((key.version, key.mtls), (Version::HTTP_11, false));
        }
        let weightless = destination.rules[0].split.entries[2].backend.clone().unwrap();
        assert_eq!(series(&destination, &weightless, endpoint).count(), 0);
        let without = Destination { routes: Vec::new(), default: Some(Arc::clone(a)), ..destination };
        let keys: Vec<_> = series(&without, a, endpoint).collect();
        assert_eq!((keys.len(), keys[0].route.is_none()), (1, true));
        assert_eq!(series(&without, b, endpoint).count(), 0);
        let opaque = Destination { protocol: AppProtocol::Opaque, ..without };
        assert_eq!(series(&opaque, a, endpoint).count(), 0);
    }

    #[test]
    fn the_request_ahead_has_the_authority_that_applications_write() {
        let written = |name, service| authority(name, service, Some("shop")).map(|a| a.to_string());
        for (name, service, host) in [
            ("web:80", "shop/web:80", "web"),
            ("web.other:8080", "other/web:8080", "web.other:8080"),
            ("10.96.0.7:80", "shop/web:80", "web"),
            ("10.96.0.7:8080", "other/web:8080", "web.other:8080"),
            ("[fd00::1]:80", "shop/web:80", "web"),
            ("10.0.0.1:80", "no Service", "10.0.0.1"),
        ] {
            assert_eq!(written(name, service).unwrap(), host);
        }
        assert_eq!(written("no host:80", "shop/web:80"), None);
    }

    #[test]
    fn of_a_backend_with_many_endpoints_some_are_warmed() {
        let warmed = targets(&destination(100), CONNECTIONS).len();
        assert!((1..=2 * ENDPOINTS).contains(&warmed), "{warmed}");
        assert_eq!(targets(&destination(100), 1).len(), 1);
    }
}
