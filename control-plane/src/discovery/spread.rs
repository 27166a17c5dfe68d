//! Streams spread over the replicas of the control plane again: after a rolling update those that came back first went to
//! whoever was first there, and the last replica has none.
//!
//! Every replica knows how many pods have a sidecar and how many replicas are ready, and so what its share is. One that has
//! clearly more lets go of what is too much, the longest connected first and few at a time: the stream ends in good order,
//! and its sidecar, which goes on serving what it holds, opens another through the Service. The replicas need not speak
//! with each other.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior};

use crate::{compile::Census, hub::Hub, metrics::Metrics, object::Name};

/// The Service that leads sidecars to the replicas, in the control plane's namespace.
pub const SERVICE: &str = "heddle-control-plane";
/// The replicas must have been the same for so long: in the midst of a rollout whoever moves, moves twice.
const SETTLE: Duration = Duration::from_secs(10);
/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);
/// Streams that end within a [`LOOK`]: a hundredth of what there is, at most this many. A stream that comes anew costs its
/// new replica some two milliseconds of CPU.
const AT_ONCE: usize = 50;
/// What does not help ends: so many times the surplus may move until the replicas change, or until [`REST`] is over. Where
/// every stream that ends comes back here, the Service leads nowhere else, and moving more would only disturb.
const PATIENCE: usize = 4;
/// After moving in vain.
const REST: Duration = Duration::from_secs(600);

/// What a replica does about its streams; decides once a [`LOOK`]. Pure.
#[derive(Debug)]
struct Spreader {
    replicas: BTreeSet<IpAddr>,
    since: Instant,
    moving: bool,
    /// How many may still move; none: it was not necessary, or it has helped.
    left: Option<usize>,
}

impl Spreader {
    fn new(now: Instant) -> Self {
        Self { replicas: BTreeSet::new(), since: now, moving: false, left: None }
    }

    /// How many of `own` streams are to end now.
    fn look(&mut self, census: Census, own: usize, now: Instant) -> usize {
        let rested = self.left == Some(0) && now >= self.since + REST;
        if census.replicas != self.replicas || rested {
            *self = Self { replicas: census.replicas, ..Self::new(now) };
        }
        if self.replicas.len() < 2 || now < self.since + SETTLE || self.left == Some(0) {
            return 0;
        }
        let share = census.sidecars.max(own).div_ceil(self.replicas.len());
        let surplus = own.saturating_sub(share);
        // A Service spreads by chance, so a little more than the share is no reason to begin.
        let slack = (share / 10).max(1);
        self.moving = surplus > if self.moving { 0 } else { slack };
        if !self.moving {
            self.left = None;
            return 0;
        }
        let left = self.left.get_or_insert(surplus * PATIENCE);
        let count = surplus.min(AT_ONCE).min((own / 100).max(1)).min(*left);
        *left -= count;
        if *left == 0 {
            self.since = now;
            tracing::warn!(
                own,
                share,
                "streams that were to go to other replicas come back: does the Service lead to all of them?"
            );
        }
        count
    }
}

/// Ends streams that are too many for this replica of `service`, for ever.
pub async fn run(hub: Arc<Hub>, service: Name, metrics: Arc<Metrics>) {
    hub.synced().await;
    let mut spreader = Spreader::new(Instant::now());
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let own = hub.streams().pods();
        let count = spreader.look(hub.census(&service), own, Instant::now());
        if count > 0 {
            let moved = hub.streams().send_away(count);
            metrics.moved.inc_by(moved as u64);
            tracing::debug!(moved, own, replicas = spreader.replicas.len(), "streams sent to other replicas");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::json;

    use super::*;
    use crate::{
        compile::Options,
        hub::streams::Stream,
        object::{Change, Object},
        source::Batch,
    };

    fn replicas(count: u8) -> BTreeSet<IpAddr> {
        (1..=count).map(|last| IpAddr::from([10, 0, 0, last])).collect()
    }

    fn census(count: u8, sidecars: usize) -> Census {
        Census { replicas: replicas(count), sidecars }
    }

    /// Looks once a second, and lets what ends come back where `returns` says; how many moved each second.
    fn simulate(
        spreader: &mut Spreader,
        census: &Census,
        own: &mut usize,
        seconds: usize,
        returns: bool,
    ) -> Vec<usize> {
        let begin = Instant::now();
        let look = |n: usize| {
            let count = spreader.look(census.clone(), *own, begin + LOOK * n as u32);
            *own -= if returns { 0 } else { count };
            count
        };
        (0..seconds).map(look).collect()
    }

    #[test]
    fn one_replica_and_one_that_has_its_share_keep_everything() {
        for (count, sidecars, own) in
            [(1, 100, 100), (0, 100, 100), (2, 100, 50), (2, 100, 55), (3, 4, 2), (2, 1, 1), (2, 0, 0)]
        {
            let mut spreader = Spreader::new(Instant::now());
            let mut left = own;
            let moved = simulate(&mut spreader, &census(count, sidecars), &mut left, 60, false);
            assert_eq!(
                moved.iter().sum::<usize>(),
                0,
                "{count} replicas, {sidecars} sidecars, {own} streams"
            );
        }
    }

    #[test]
    fn what_is_too_much_goes_slowly_until_the_share_is_reached() {
        for (sidecars, own, at_once, expected) in
            [(1000, 1000, 10, 500), (10_000, 10_000, 50, 5000), (10, 10, 1, 5)]
        {
            let mut spreader = Spreader::new(Instant::now());
            let mut left = own;
            let moved = simulate(&mut spreader, &census(2, sidecars), &mut left, 600, false);
            assert!(
                moved[..SETTLE.as_secs() as usize].iter().all(|count| *count == 0),
                "the rollout is not over"
            );
            assert_eq!(moved.iter().max(), Some(&at_once));
            assert_eq!((left, moved.iter().sum::<usize>()), (own - expected, expected));
        }
    }

    #[test]
    fn while_replicas_come_and_go_nothing_moves() {
        let mut spreader = Spreader::new(Instant::now());
        let begin = Instant::now();
        for second in 0..120 {
            // Another replica every five seconds.
            let count = 2 + u8::try_from(second / 5).unwrap();
            assert_eq!(spreader.look(census(count, 100), 100, begin + LOOK * second), 0);
        }
    }

    #[test]
    fn moving_in_vain_ends_and_is_tried_again_after_a_rest_or_when_the_replicas_change() {
        let mut spreader = Spreader::new(Instant::now());
        let mut own = 100;
        let moved = simulate(&mut spreader, &census(2, 100), &mut own, 500, true);
        assert_eq!(moved.iter().sum::<usize>(), 50 * PATIENCE);
        assert_eq!(*moved.last().unwrap(), 0);
        // Once the rest is over it is tried again, as often as that goes on.
        let mut spreader = Spreader::new(Instant::now());
        let moved = simulate(&mut spreader, &census(2, 100), &mut own, 2000, true);
        assert_eq!(moved.iter().sum::<usize>(), 3 * 50 * PATIENCE);
        let later = Instant::now() + LOOK * 2000;
        assert_eq!(spreader.look(census(3, 100), 100, later), 0);
        assert!(spreader.look(census(3, 100), 100, later + SETTLE) > 0, "the replicas changed");
    }

    #[test]
    fn what_helped_once_is_not_counted_against_the_next_time() {
        let mut spreader = Spreader::new(Instant::now());
        for _ in 0..20 {
            let mut own = 100;
            simulate(&mut spreader, &census(2, 100), &mut own, 100, false);
            assert_eq!(own, 50);
        }
    }

    fn upsert(object: Object) -> Change {
        Change::Upsert(object)
    }

    fn pod(name: &str) -> Change {
        let object = json!({
            "metadata": {"name": name, "namespace": "shop", "annotations": {"heddle.dev/sidecar": "true"}},
            "spec": {"containers": []},
        });
        upsert(Object::Pod(Arc::new(serde_json::from_value(object).unwrap())))
    }

    fn slice(name: &str, addresses: &[(&str, bool)]) -> Change {
        let endpoints: Vec<_> = addresses
            .iter()
            .map(|(address, ready)| json!({"addresses": [address], "conditions": {"ready": ready}}))
            .collect();
        let object = json!({
            "metadata": {"name": name, "namespace": "heddle-system", "labels": {"kubernetes.io/service-name": SERVICE}},
            "addressType": "IPv4", "ports": [{"name": "discovery", "port": 15010}], "endpoints": endpoints,
        });
        upsert(Object::EndpointSlice(Arc::new(serde_json::from_value(object).unwrap())))
    }

    fn service() -> Name {
        Name::new("heddle-system", SERVICE)
    }

    fn connect(hub: &Hub, pod: &str) -> Arc<Stream> {
        let address = ([127, 0, 0, 1], 1).into();
        hub.streams().connect(&pod.parse().unwrap(), address, String::new(), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn only_ready_replicas_count_and_each_once_whatever_its_addresses() {
        let hub = Hub::new(Options::default(), &[], Metrics::new());
        let changes = vec![
            slice("a", &[("10.0.0.1", true), ("10.0.0.2", false), ("10.0.0.3", true)]),
            slice("b", &[("fd00::1", true), ("fd00::3", true)]),
            pod("web-0"),
        ];
        hub.apply(Batch { changes, synced: true, ..Batch::default() });
        let census = hub.census(&service());
        assert_eq!(census.sidecars, 1);
        assert_eq!(census.replicas, BTreeSet::from(["10.0.0.1", "10.0.0.3"].map(|ip| ip.parse().unwrap())));
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_connected_streams_go_first_and_the_rest_stay_untouched() {
        let metrics = Metrics::new();
        let hub = Hub::new(Options::default(), &[], Arc::clone(&metrics));
        let names: Vec<_> = (0..10).map(|n| format!("web-{n}")).collect();
        let mut changes: Vec<_> = names.iter().map(|name| pod(name)).collect();
        changes.push(slice("a", &[("10.0.0.1", true)]));
        hub.apply(Batch { changes, synced: true, ..Batch::default() });
        let streams: Vec<_> = names.iter().map(|name| connect(&hub, &format!("shop/{name}"))).collect();
        let task = tokio::spawn(run(Arc::clone(&hub), service(), metrics.clone()));
        tokio::time::sleep(SETTLE * 6).await;
        assert_eq!(metrics.moved.get(), 0, "there is nobody else");
        // Another replica comes: half of the streams are its.
        let changes = vec![slice("a", &[("10.0.0.1", true), ("10.0.0.2", true)])];
        hub.apply(Batch { changes, synced: true, ..Batch::default() });
        for seconds in 0..60 {
            tokio::time::sleep(LOOK).await;
            let gone: Vec<_> = streams.iter().filter(|stream| stream.moved.is_cancelled()).collect();
            assert!(gone.len() <= seconds + 1, "one at a time");
            for stream in gone {
                hub.streams().disconnect(stream.id);
            }
        }
        let moved: Vec<_> = streams.iter().map(|stream| stream.moved.is_cancelled()).collect();
        assert_eq!(moved, [true, true, true, true, true, false, false, false, false, false]);
        assert_eq!(metrics.moved.get(), 5);
        task.abort();
    }
}
