//! Names that are let go, and what bounds them.

use super::*;

#[test]
fn a_name_that_nobody_uses_is_let_go_and_one_in_use_is_not() {
    let mut world = World::new();
    world.know("idle:80");
    world.know("busy:80");
    world.know("kept:80");
    let kept = world.shared.names.load().get("kept:80").cloned().unwrap();
    for _ in 0..LONG {
        world.shared.names.load().get("busy:80").unwrap().mark_used();
        world.tick(1);
    }
    // One sweep more: the first found the names still marked from their beginning.
    world.tick(30);
    world.shared.names.load().get("busy:80").unwrap().mark_used();
    world.tick(1);
    let visible = |world: &World| ["idle:80", "busy:80", "kept:80"].map(|name| world.visible(name));
    assert_eq!(visible(&world), [false, true, true]);
    assert_eq!(world.unsubscribed(), ["idle:80"]);
    // The kept one is let go once nobody has it.
    drop(kept);
    world.tick(LONG + 30);
    assert!(!world.visible("kept:80"));
}

#[test]
fn a_name_that_somebody_took_while_it_left_comes_back() {
    let mut world = World::new();
    world.know("late:80");
    let before = world.shared.names.load_full();
    let mut ticks = 0;
    while world.visible("late:80") {
        world.tick(1);
        ticks += 1;
        assert!(ticks < 1000, "never let go");
    }
    // A worker that still reads the map of a moment ago.
    let slot = before.get("late:80").cloned().unwrap();
    drop(before);
    world.tick(1);
    assert!(world.visible("late:80"));
    assert!(world.unsubscribed().is_empty());
    world.hear(
        vec![destination("late:80", "d1", &[REVIEWS]), endpoints(REVIEWS, "e1", &["10.0.0.1"])],
        vec![],
    );
    assert_eq!(addresses(&slot), ["10.0.0.1"]);
}

#[test]
fn while_the_stream_is_down_nothing_expires() {
    let mut world = World::new();
    world.know("idle:80");
    world.tick(299);
    world.held.disconnected("gone".to_owned());
    world.tick(10 * LONG);
    assert!(world.visible("idle:80"));
    let id = world.identity.current().unwrap().id.clone();
    world.held.hello(&id);
    world.held.connected();
    world.tick(1);
    assert!(world.visible("idle:80"));
}

#[test]
fn a_full_store_gives_up_the_longest_unused_name() {
    let mut world = World::with(Limits { names: 2, ..Limits::DEFAULT });
    world.know("old:80");
    world.tick(60);
    world.know("new:80");
    let mut answer = world.ask("third:80");
    world.hear(vec![], absent("third:80"));
    assert!(answer.try_recv().is_ok());
    world.tick(1);
    assert_eq!(world.unsubscribed(), ["old:80"]);
    assert_eq!(["old:80", "new:80", "third:80"].map(|n| world.visible(n)), [false, true, true]);
}

#[test]
fn a_store_full_of_names_in_use_refuses_more() {
    let mut world = World::with(Limits { names: 2, ..Limits::DEFAULT });
    world.know("a:80");
    let _kept = world.ask("a:80").try_recv().unwrap();
    let mut pending = world.ask("b:80");
    world.said();
    assert_eq!(world.ask("c:80").try_recv().unwrap_err(), TryRecvError::Closed);
    assert_eq!(pending.try_recv().unwrap_err(), TryRecvError::Empty);
    assert!(world.subscribed().is_empty());
    world.held.publish();
    assert_eq!(world.shared.status.load().refused_names, 1);
}

#[test]
fn without_a_stream_a_full_store_gives_up_nothing_that_is_answered() {
    let mut world = World::with(Limits { names: 1, ..Limits::DEFAULT });
    world.know("a:80");
    world.held.disconnected("gone".to_owned());
    assert_eq!(world.ask("b:80").try_recv().unwrap_err(), TryRecvError::Closed);
    assert!(world.visible("a:80"));
}

#[test]
fn waiters_are_bounded_and_those_that_gave_up_do_not_count() {
    let mut world = World::with(Limits { waiters: 2, ..Limits::DEFAULT });
    let mut first = world.ask("a:80");
    let second = world.ask("a:80");
    assert_eq!(world.ask("a:80").try_recv().unwrap_err(), TryRecvError::Closed);
    drop(second);
    world.tick(1);
    let mut fourth = world.ask("b:80");
    world.hear(vec![], [absent("a:80"), absent("b:80")].concat());
    assert!(first.try_recv().is_ok() && fourth.try_recv().is_ok());
}

#[test]
fn a_backend_is_remembered_for_a_while_after_its_last_destination() {
    let mut world = World::new();
    let there =
        || vec![destination("reviews:9080", "d1", &[REVIEWS]), endpoints(REVIEWS, "e1", &["10.0.0.1"])];
    let state = |slot: &Slot| match slot.peek() {
        Lookup::Mesh(destination) => destination.default.as_ref().unwrap().state.clone(),
        Lookup::NotInMesh => panic!("in the mesh"),
    };
    let mut answer = world.ask("reviews:9080");
    world.hear(there(), vec![]);
    let slot = answer.try_recv().unwrap();
    let before = state(&slot);
    world.hear(vec![], absent("reviews:9080"));
    world.tick(100);
    world.hear(there(), vec![]);
    assert!(Arc::ptr_eq(&before, &state(&slot)));
    world.hear(vec![], absent("reviews:9080"));
    world.tick(400);
    world.hear(there(), vec![]);
    assert!(!Arc::ptr_eq(&before, &state(&slot)));
}

#[test]
fn endpoints_that_nobody_follows_any_more_are_not_presented() {
    let mut world = World::new();
    let _answer = world.ask("reviews:9080");
    world.hear(
        vec![destination("reviews:9080", "d1", &[REVIEWS]), endpoints(REVIEWS, "e1", &["10.0.0.1"])],
        vec![],
    );
    world.hear(vec![], absent("reviews:9080"));
    // A difference that crossed with it is no reason to complain.
    assert_eq!(world.hear(vec![delta(REVIEWS, "e1", "e2", &["10.0.0.2"], &[])], vec![]), []);
    let first = world.held.hello(&world.identity.current().unwrap().id);
    let held = first.hello.unwrap().held;
    assert!(held.iter().all(|h| h.name.as_ref().unwrap().name != REVIEWS), "{held:?}");
}
