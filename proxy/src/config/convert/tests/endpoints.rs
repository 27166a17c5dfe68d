//! Endpoints in, with what is known of those that stay.

use super::*;

fn endpoint(address: &str, port: u32) -> v1::Endpoint {
    let identity = "spiffe://cluster.local/ns/shop/sa/reviews".into();
    v1::Endpoint { address: address.into(), port, identity, ..Default::default() }
}

fn set(endpoints: Vec<v1::Endpoint>, previous: &EndpointSet) -> Result<EndpointSet, ConvertError> {
    super::super::endpoints(&v1::Endpoints { endpoints }, previous)
}

#[test]
fn endpoints_are_taken_over_with_their_defaults() {
    let draining =
        v1::Endpoint { state: v1::EndpointState::Draining.into(), weight: 7, ..endpoint("fd00::1", 81) };
    let outside = v1::Endpoint { identity: String::new(), must_be_meshed: true, ..endpoint("10.0.0.2", 80) };
    let set = set(vec![endpoint("10.0.0.1", 80), draining, outside], &EndpointSet::default()).unwrap();
    assert_eq!((set.all.len(), set.candidates.len()), (3, 2));
    assert_eq!(set.all[0].identity.as_ref().unwrap().service_account(), "reviews");
    assert_eq!((set.all[0].weight, set.all[1].weight), (1, 7));
    assert_eq!(set.all[1].address.to_string(), "[fd00::1]:81");
    assert!(set.all[1].draining && set.all[2].must_be_meshed && set.all[2].identity.is_none());
}

#[test]
fn an_endpoint_that_stays_keeps_what_is_known_of_it() {
    let first =
        set(vec![endpoint("10.0.0.1", 80), endpoint("10.0.0.2", 80)], &EndpointSet::default()).unwrap();
    let backend = convert(&message()).unwrap().default.unwrap();
    let mut picked = crate::balance::pick(&backend, &first, &[first.all[1].address]).unwrap();
    picked.load.judge(&backend, Outcome::Failure, Duration::from_millis(1));

    let draining = v1::Endpoint { state: v1::EndpointState::Draining.into(), ..endpoint("10.0.0.1", 80) };
    let second = set(vec![endpoint("10.0.0.3", 80), draining], &first).unwrap();
    assert_eq!((second.all[1].stats.consecutive_failures(), second.all[1].stats.in_flight()), (1, 1));
    assert_eq!(second.all[0].stats.consecutive_failures(), 0);

    // The address has gone to somebody else.
    let identity = "spiffe://cluster.local/ns/shop/sa/other".into();
    let third = set(vec![v1::Endpoint { identity, ..endpoint("10.0.0.1", 80) }], &second).unwrap();
    assert_eq!(third.all[0].stats.consecutive_failures(), 0);
}

#[test]
fn endpoints_that_make_no_sense_are_refused_by_field() {
    let cases = [
        (endpoint("reviews", 80), "endpoints[1].address: \"reviews\" is not an IP address"),
        (endpoint("10.0.0.2", 0), "endpoints[1].port: 0 is not a port"),
        (endpoint("10.0.0.2", 65_536), "endpoints[1].port: 65536"),
        (endpoint("10.0.0.1", 80), "endpoints[1].address: 10.0.0.1:80 comes twice"),
        (v1::Endpoint { identity: "reviews".into(), ..endpoint("10.0.0.2", 80) }, "endpoints[1].identity: "),
    ];
    for (bad, expected) in cases {
        let error =
            set(vec![endpoint("10.0.0.1", 80), bad], &EndpointSet::default()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
