//! Who gets picked, and who does not.

mod near;

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::{AppProtocol, BackendState, Ejection, Hints, Place, Policy};

const ALGORITHMS: [Algorithm; 4] =
    [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random];
const QUICK: Duration = Duration::from_millis(2);

/// A backend whose endpoints stand at 127.0.0.1:1 and up, in order.
struct World {
    backend: Backend,
}

impl World {
    fn new(algorithm: Algorithm, endpoints: Vec<Endpoint>) -> Self {
        let state = BackendState::default();
        state.endpoints.store(Arc::new(EndpointSet::new(endpoints.into_iter().map(Arc::new).collect())));
        let policy = Policy { algorithm, ..Policy::default() };
        let backend =
            Backend { key: "shop/a:80".into(), protocol: AppProtocol::Http, policy, state: Arc::new(state) };
        Self { backend }
    }

    fn weighted(algorithm: Algorithm, weights: &[u32]) -> Self {
        Self::new(algorithm, weights.iter().enumerate().map(|(i, w)| endpoint(i, *w)).collect())
    }

    fn even(algorithm: Algorithm, endpoints: usize) -> Self {
        Self::weighted(algorithm, &vec![1; endpoints])
    }

    fn set(&self) -> Arc<EndpointSet> {
        self.backend.state.endpoints.load_full()
    }

    /// The sidecar is there.
    fn look_from(&self, place: &Place) {
        let set = EndpointSet::new(self.set().all.clone()).seen_from(place);
        self.backend.state.endpoints.store(Arc::new(set));
    }

    fn stats(&self, index: usize) -> Arc<EndpointStats> {
        Arc::clone(&self.set().all[index].stats)
    }

    fn pick(&self) -> (usize, LoadGuard) {
        self.pick_but(&[]).expect("there are endpoints")
    }

    fn pick_but(&self, tried: &[usize]) -> Option<(usize, LoadGuard)> {
        let tried: Vec<_> = tried.iter().map(|index| address(*index)).collect();
        let picked = pick(&self.backend, &self.set(), &tried)?;
        Some((usize::from(picked.endpoint.address.port()) - 1, picked.load))
    }

    fn judge(&self, load: &mut LoadGuard, outcome: Outcome) -> bool {
        load.judge(&self.backend, outcome, QUICK)
    }

    /// Lets an endpoint fail, whoever would have been picked; true when the last failure put it out.
    fn fail(&self, index: usize, times: usize) -> bool {
        let stats = self.stats(index);
        (0..times).fold(false, |_, _| {
            self.judge(&mut LoadGuard::new(stats.begin(), clock::now()), Outcome::Failure)
        })
    }

    /// How often each is picked by a client that sends one request after the other, all ending well.
    fn counts(&self, requests: usize) -> Vec<usize> {
        let mut counts = vec![0; self.set().all.len()];
        for _ in 0..requests {
            let (index, mut load) = self.pick();
            counts[index] += 1;
            self.judge(&mut load, Outcome::Success);
        }
        counts
    }
}

fn address(index: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], u16::try_from(index + 1).unwrap()))
}

fn endpoint(index: usize, weight: u32) -> Endpoint {
    Endpoint {
        address: address(index),
        identity: None,
        must_be_meshed: false,
        draining: false,
        weight,
        zone: "".into(),
        pod: "".into(),
        hints: None,
        stats: Arc::default(),
    }
}

fn draining(index: usize) -> Endpoint {
    Endpoint { draining: true, ..endpoint(index, 1) }
}

/// An endpoint that is meant for a zone and for a node; of neither where the text is empty.
fn hinted(index: usize, zone: &str, node: &str) -> Endpoint {
    let list = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty()).into_iter().collect();
    Endpoint { hints: Some(Box::new(Hints { zones: list(zone), nodes: list(node) })), ..endpoint(index, 1) }
}

fn place(zone: &str, node: &str) -> Place {
    Place { zone: zone.to_owned(), node: node.to_owned() }
}

async fn pass(duration: Duration) {
    tokio::time::advance(duration).await;
}

#[test]
fn without_endpoints_nobody_is_picked() {
    for algorithm in ALGORITHMS {
        assert!(World::even(algorithm, 0).pick_but(&[]).is_none());
    }
}

#[test]
fn a_single_endpoint_is_picked_whatever_is_known_of_it() {
    for algorithm in ALGORITHMS {
        let world = World::even(algorithm, 1);
        assert!(!world.fail(0, 100), "the only endpoint is never ejected");
        assert_eq!(world.pick_but(&[0]).unwrap().0, 0);
    }
}

#[test]
fn what_was_tried_is_avoided_while_there_is_another() {
    for algorithm in ALGORITHMS {
        let world = World::even(algorithm, 3);
        for _ in 0..50 {
            assert_eq!(world.pick_but(&[0, 2]).unwrap().0, 1);
        }
        assert!(world.pick_but(&[0, 1, 2]).is_some());
    }
}

#[test]
fn a_draining_endpoint_gets_nothing_new_unless_all_are_draining() {
    for algorithm in ALGORITHMS {
        let world = World::new(algorithm, vec![draining(0), endpoint(1, 1), draining(2)]);
        assert_eq!(world.counts(60), [0, 60, 0]);
        assert_eq!(world.pick_but(&[1]).unwrap().0, 1, "tried is better than draining");
        let world = World::new(algorithm, vec![draining(0), draining(1)]);
        assert!(world.counts(100).iter().all(|count| *count > 0));
    }
}

#[test]
fn an_endpoint_that_would_be_refused_is_picked_only_where_there_is_no_other() {
    for algorithm in ALGORITHMS {
        let strict = |index| Endpoint { must_be_meshed: true, ..endpoint(index, 1) };
        assert_eq!(World::new(algorithm, vec![strict(0), endpoint(1, 1)]).counts(50), [0, 50]);
        assert_eq!(World::new(algorithm, vec![strict(0)]).pick().0, 0);
    }
}

#[test]
fn requests_are_counted_in_until_their_guard_goes() {
    let world = World::even(Algorithm::LeastRequest, 1);
    let first = world.pick();
    let second = world.pick();
    assert_eq!(world.stats(0).in_flight(), 2);
    drop(first);
    assert_eq!(world.stats(0).in_flight(), 1);
    drop(second);
    assert_eq!(world.stats(0).in_flight(), 0);
}

#[test]
fn least_request_keeps_loads_level() {
    fastrand::seed(1);
    let world = World::even(Algorithm::LeastRequest, 4);
    let held: Vec<_> = (0..400).map(|_| world.pick()).collect();
    for index in 0..4 {
        let load = world.stats(index).in_flight();
        assert!((98..=102).contains(&load), "{load}");
    }
    drop(held);
}

#[test]
fn least_request_loads_by_weight() {
    fastrand::seed(2);
    let world = World::weighted(Algorithm::LeastRequest, &[1, 3]);
    let _held: Vec<_> = (0..400).map(|_| world.pick()).collect();
    let heavy = world.stats(1).in_flight();
    assert!((285..=315).contains(&heavy), "{heavy}");
}

#[tokio::test(start_paused = true)]
async fn peak_ewma_turns_from_a_slow_endpoint_and_comes_back_some_day() {
    fastrand::seed(3);
    let world = World::even(Algorithm::PeakEwma, 3);
    let mut slow = 0;
    let mut counts = [0; 3];
    for _ in 0..3_000 {
        let (index, mut load) = world.pick();
        counts[index] += 1;
        let latency = if index == slow { Duration::from_millis(300) } else { QUICK };
        load.judge(&world.backend, Outcome::Success, latency);
        pass(Duration::from_millis(3)).await;
    }
    assert!(counts[0] < 60, "{counts:?}");
    slow = 1;
    let mut counts = [0; 3];
    for _ in 0..60_000 {
        let (index, mut load) = world.pick();
        counts[index] += 1;
        let latency = if index == slow { Duration::from_millis(300) } else { QUICK };
        load.judge(&world.backend, Outcome::Success, latency);
        pass(Duration::from_millis(3)).await;
    }
    assert!(counts[0] > 15_000 && counts[1] < 600, "{counts:?}");
}

#[test]
fn where_weights_differ_they_decide_among_near_equals_and_speed_among_others() {
    fastrand::seed(6);
    let share_of_light = |latency_of_light: Duration| {
        let world = World::weighted(Algorithm::PeakEwma, &[1, 3]);
        let mut light = 0;
        for _ in 0..10_000 {
            let (index, mut load) = world.pick();
            light += usize::from(index == 0);
            load.judge(&world.backend, Outcome::Success, if index == 0 { latency_of_light } else { QUICK });
        }
        light
    };
    let near = share_of_light(QUICK * 9 / 10);
    assert!((2_300..2_700).contains(&near), "{near}");
    // Drawn second, it wins over the slow one; never more often than it is drawn.
    let faster = share_of_light(QUICK / 10);
    assert!((4_100..4_650).contains(&faster), "{faster}");
    let slower = share_of_light(QUICK * 10);
    assert!((450..850).contains(&slower), "{slower}");
}

#[test]
fn a_cold_endpoint_is_not_taken_for_a_fast_one_because_a_client_left() {
    let world = World::even(Algorithm::PeakEwma, 2);
    let mut load = LoadGuard::new(world.stats(0).begin(), clock::now());
    load.judge(&world.backend, Outcome::Neutral, Duration::ZERO);
    assert_eq!(world.stats(0).latency(), None);
}

#[test]
fn a_cold_endpoint_gets_one_request_at_a_time_until_it_answers() {
    fastrand::seed(4);
    let world = World::even(Algorithm::PeakEwma, 3);
    for index in [0, 1] {
        LoadGuard::new(world.stats(index).begin(), clock::now()).judge(
            &world.backend,
            Outcome::Success,
            QUICK,
        );
    }
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(world.pick());
    }
    assert_eq!(world.stats(2).in_flight(), 1, "neither stampeded nor starved");
    held.retain_mut(|(index, load)| {
        if *index == 2 {
            load.judge(&world.backend, Outcome::Success, QUICK);
        }
        *index != 2
    });
    held.extend((0..60).map(|_| world.pick()));
    assert!(world.stats(2).in_flight() > 20);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_given_up_says_that_it_took_at_least_so_long() {
    let world = World::even(Algorithm::PeakEwma, 1);
    let latency = |outcome, latency| {
        LoadGuard::new(world.stats(0).begin(), clock::now()).judge(&world.backend, outcome, latency);
        world.stats(0).latency().unwrap()
    };
    assert_eq!(latency(Outcome::Success, QUICK), QUICK);
    assert_eq!(latency(Outcome::Neutral, QUICK / 2), QUICK);
    assert!(latency(Outcome::Neutral, QUICK * 100) > QUICK * 99);
    assert!(latency(Outcome::Failure, QUICK) > QUICK * 99);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_never_answers_gets_next_to_nothing_though_all_give_up_waiting_for_it() {
    fastrand::seed(6);
    let (hangs, patience, apart) = (0, Duration::from_secs(1), Duration::from_millis(10));
    for warm in [true, false] {
        let world = World::even(Algorithm::PeakEwma, 2);
        for index in [0, 1] {
            if warm || index != hangs {
                world.judge(&mut LoadGuard::new(world.stats(index).begin(), clock::now()), Outcome::Success);
            }
        }
        let (mut waiting, mut sent) = (std::collections::VecDeque::new(), 0);
        // 100 a second for two minutes.
        for _ in 0..12_000 {
            let now = tokio::time::Instant::now();
            while waiting.front().is_some_and(|(until, _)| *until <= now) {
                waiting.pop_front();
            }
            let (index, mut load) = world.pick();
            if index == hangs {
                sent += 1;
                waiting.push_back((now + patience, load));
            } else {
                world.judge(&mut load, Outcome::Success);
            }
            tokio::time::advance(apart).await;
        }
        assert!(sent < 120, "{sent} of 12,000, warm: {warm}");
    }
}

#[test]
fn failing_fast_attracts_nothing() {
    fastrand::seed(5);
    let mut world = World::even(Algorithm::PeakEwma, 3);
    // As if the ceiling had been reached, so that ejection does not help.
    world.backend.policy.ejection.consecutive_failures = u32::MAX;
    let mut failures = 0;
    for _ in 0..300 {
        let (index, mut load) = world.pick();
        let failed = index == 0;
        failures += usize::from(failed);
        let outcome = if failed { Outcome::Failure } else { Outcome::Success };
        load.judge(&world.backend, outcome, if failed { Duration::ZERO } else { QUICK });
    }
    assert!((1..10).contains(&failures), "{failures}");
}

#[test]
fn round_robin_serves_each_in_turn_and_skips_evenly() {
    let world = World::even(Algorithm::RoundRobin, 3);
    assert_eq!(world.counts(300), [100, 100, 100]);
    world.fail(1, 5);
    assert_eq!(world.counts(300), [150, 0, 150]);
}

#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_put_an_endpoint_out_for_a_while() {
    for algorithm in ALGORITHMS {
        let world = World::even(algorithm, 3);
        assert!(!world.fail(0, 4));
        assert!(world.fail(0, 1));
        assert!(world.stats(0).is_ejected());
        assert_eq!(world.counts(100)[0], 0, "{algorithm:?}");
        pass(Duration::from_secs(29)).await;
        assert_eq!(world.counts(100)[0], 0, "{algorithm:?}");
        pass(Duration::from_secs(2)).await;
        assert!(!world.stats(0).is_ejected());
        assert!(world.counts(100)[0] > 0, "{algorithm:?}");
        assert!(!world.fail(0, 1), "it begins anew");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_under_way_when_an_endpoint_was_put_out_does_not_count_on_its_return() {
    fastrand::seed(6);
    let world = World::even(Algorithm::PeakEwma, 3);
    for index in [1, 2] {
        LoadGuard::new(world.stats(index).begin(), clock::now()).judge(
            &world.backend,
            Outcome::Success,
            QUICK,
        );
    }
    let mut under_way: Vec<_> =
        (0..8).map(|_| LoadGuard::new(world.stats(0).begin(), clock::now())).collect();
    assert!(world.fail(0, 5));
    for load in &mut under_way {
        assert!(!world.judge(load, Outcome::Failure));
    }
    drop(under_way);
    pass(Duration::from_secs(31)).await;
    assert_eq!(world.stats(0).consecutive_failures(), 0);
    assert!(world.counts(100)[0] > 10, "it is tried like a new one");
}

#[test]
fn a_success_between_starts_the_count_anew_and_what_says_nothing_does_not() {
    let world = World::even(Algorithm::PeakEwma, 2);
    world.fail(0, 4);
    world.judge(&mut LoadGuard::new(world.stats(0).begin(), clock::now()), Outcome::Neutral);
    assert_eq!(world.stats(0).consecutive_failures(), 4);
    world.judge(&mut LoadGuard::new(world.stats(0).begin(), clock::now()), Outcome::Success);
    assert!(!world.fail(0, 4));
    assert!(world.fail(0, 1));
}

#[test]
fn no_more_than_the_ceiling_are_out_and_then_the_next_waits_its_turn() {
    let world = World::even(Algorithm::PeakEwma, 4);
    assert!(world.fail(0, 5));
    assert!(world.fail(1, 5));
    assert!(!world.fail(2, 50));
    assert!(!world.fail(3, 50));
    let out = (0..4).filter(|index| world.stats(*index).is_ejected()).count();
    assert_eq!(out, 2);
}

#[test]
fn when_all_are_out_all_are_used() {
    for algorithm in ALGORITHMS {
        let world = World::even(algorithm, 4);
        world.fail(0, 5);
        world.fail(1, 5);
        // The two others leave.
        let set = EndpointSet::new(world.set().all[..2].to_vec());
        world.backend.state.endpoints.store(Arc::new(set));
        assert!(world.counts(100).iter().all(|count| *count > 0), "{algorithm:?}");
        assert_eq!(world.pick_but(&[0]).unwrap().0, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn each_ejection_in_a_row_lasts_longer_and_good_behaviour_is_remembered() {
    let world = World::even(Algorithm::PeakEwma, 2);
    let Ejection { base, interval, .. } = world.backend.policy.ejection;
    let out_for = async |times: u32| {
        assert!(world.fail(0, 5));
        pass(base * times - Duration::from_secs(1)).await;
        assert!(world.stats(0).is_ejected(), "{times}");
        pass(Duration::from_secs(1)).await;
        assert!(!world.stats(0).is_ejected(), "{times}");
    };
    for times in 1..=3 {
        out_for(times).await;
    }
    // Two intervals forget two ejections: the next counts as the second.
    pass(interval * 2).await;
    out_for(2).await;
    pass(interval * 50).await;
    out_for(1).await;
    // Bounded at five minutes.
    for times in 2..=10 {
        out_for(times).await;
    }
    assert!(world.fail(0, 5));
    pass(Duration::from_secs(301)).await;
    assert!(!world.stats(0).is_ejected());
}

#[test]
fn workers_that_fail_together_do_not_pass_the_ceiling() {
    let world = World::even(Algorithm::Random, 10);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for index in 0..10 {
                    world.fail(index, 25);
                }
            });
        }
    });
    let out = (0..10).filter(|index| world.stats(*index).is_ejected()).count();
    assert!((1..=5).contains(&out), "{out}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn weights_are_honoured(
        weights in prop::collection::vec(1u32..20, 2..7), algorithm in 0usize..4, seed: u64
    ) {
        fastrand::seed(seed);
        let world = World::weighted(ALGORITHMS[algorithm], &weights);
        // Each is warm: a cold one is tried whatever its weight.
        for index in 0..weights.len() {
            LoadGuard::new(world.stats(index).begin(), clock::now()).judge(&world.backend, Outcome::Success, QUICK);
        }
        let counts = world.counts(5_000);
        let sum: u32 = weights.iter().sum();
        let uniform = weights.iter().all(|weight| *weight == weights[0]);
        for (count, weight) in counts.iter().zip(&weights) {
            let share = *count as f64 / 5_000.0 - f64::from(*weight) / f64::from(sum);
            // Peak EWMA among equals prefers whom it has not seen for longest, so that it is not pure chance.
            let tolerance = if uniform { 0.1 } else { 0.04 };
            prop_assert!(share.abs() < tolerance, "{:?} {weights:?} {counts:?}", ALGORITHMS[algorithm]);
        }
    }

    #[test]
    fn nobody_is_picked_who_is_out_while_another_may_serve(
        kinds in prop::collection::vec((1u32..9, 0u8..4, 0u8..8), 1..9), algorithm in 0usize..4,
        tried in prop::collection::vec(0usize..9, 0..4), seed: u64,
    ) {
        fastrand::seed(seed);
        // 0 draining, 1 failing, others sound; meant for everybody (0), for a zone, and for a node too (from 4 on).
        let endpoints = kinds.iter().enumerate().map(|(index, (weight, kind, hint))| {
            let zone = if hint % 2 == 0 { "a" } else { "b" };
            let node = if *hint >= 4 { "n1" } else { "" };
            let hints = if *hint == 0 { None } else { hinted(index, zone, node).hints };
            Endpoint { draining: *kind == 0, hints, ..endpoint(index, *weight) }
        });
        let world = World::new(ALGORITHMS[algorithm], endpoints.collect());
        world.look_from(&place("a", "n1"));
        for (index, (_, kind, _)) in kinds.iter().enumerate() {
            world.fail(index, if *kind == 1 { 5 } else { 0 });
        }
        let set = world.set();
        let sound = |index: usize| {
            let endpoint = &set.all[index];
            set.candidates.iter().any(|e| e.address == endpoint.address) && !endpoint.stats.is_ejected()
        };
        let fresh = |index: usize| sound(index) && !tried.contains(&index);
        let (any_sound, any_fresh) = ((0..kinds.len()).any(sound), (0..kinds.len()).any(fresh));
        for _ in 0..30 {
            let (index, _load) = world.pick_but(&tried).unwrap();
            prop_assert!(!any_sound || sound(index));
            prop_assert!(!any_fresh || fresh(index));
            prop_assert!(set.candidates.iter().any(|e| e.address == address(index)));
        }
    }
}
