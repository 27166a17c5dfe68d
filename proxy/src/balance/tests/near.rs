//! Whose hints count, and what happens where they lead to nobody.

use super::*;

/// Who is picked from a place, tried again after each pick.
fn from_place(endpoints: Vec<Endpoint>, place: &Place) -> Vec<usize> {
    let world = World::new(Algorithm::Random, endpoints);
    world.look_from(place);
    let mut picked: Vec<_> = (0..200).map(|_| world.pick().0).collect();
    picked.sort_unstable();
    picked.dedup();
    picked
}

#[test]
fn hints_are_obeyed_only_when_every_serving_endpoint_has_one_and_one_is_for_here() {
    let here = place("a", "n1");
    for (endpoints, expected, why) in [
        (vec![hinted(0, "a", ""), hinted(1, "b", "")], vec![0], "the zone's"),
        (vec![hinted(0, "a", "n2"), hinted(1, "a", "n1"), hinted(2, "b", "n3")], vec![1], "the node's"),
        (vec![hinted(0, "a", "n2"), hinted(1, "b", "n3")], vec![0], "none for the node, so the zone's"),
        (vec![hinted(0, "a", ""), hinted(1, "b", "n1")], vec![0], "not all are for a node, so the zone's"),
        (vec![hinted(0, "a", ""), endpoint(1, 1)], vec![0, 1], "one has no hint"),
        (vec![hinted(0, "b", ""), hinted(1, "c", "")], vec![0, 1], "nothing is for the zone"),
        (vec![hinted(0, "a", ""), draining(1)], vec![0], "who drains has no say"),
        (
            vec![
                Endpoint { draining: true, ..hinted(0, "a", "") },
                Endpoint { draining: true, ..hinted(1, "b", "") },
            ],
            vec![0, 1],
            "all drain",
        ),
    ] {
        assert_eq!(from_place(endpoints, &here), expected, "{why}");
    }
    let two = || vec![hinted(0, "a", "n1"), hinted(1, "b", "n2")];
    assert_eq!(from_place(two(), &place("", "")), [0, 1], "nobody knows where we are");
}

#[test]
fn a_near_endpoint_that_cannot_be_used_gives_way_to_the_others() {
    for algorithm in ALGORITHMS {
        let endpoints = vec![hinted(0, "a", ""), hinted(1, "b", ""), hinted(2, "b", "")];
        let world = World::new(algorithm, endpoints);
        world.look_from(&place("a", "n1"));
        assert_eq!(world.pick().0, 0);
        assert_ne!(world.pick_but(&[0]).unwrap().0, 0, "a retry goes elsewhere");
        assert!(world.fail(0, 5), "it is put out");
        for _ in 0..50 {
            assert_ne!(world.pick().0, 0, "{algorithm:?}");
        }
    }
}
