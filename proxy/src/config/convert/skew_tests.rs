//! What a control plane says that is newer than this sidecar.

use std::sync::Arc;

use heddle_api::v1::{self, AccessLog as Logs};
use http::StatusCode;

use super::*;
use crate::config::{
    Algorithm, Destination, EndpointSet, Policy, RetryPolicy,
    inbound::{AccessLog, MtlsMode},
};

/// A number that no enum has yet.
const FUTURE: i32 = 99;

fn destination_with(policy: v1::TrafficPolicy, protocol: i32) -> Destination {
    let key = "shop/v1:80".to_owned();
    let backend = v1::Backend { key: key.clone(), protocol, policy: Some(policy) };
    let message = v1::Destination {
        service: "shop/reviews:80".into(),
        protocol,
        backends: vec![backend],
        default_backend: key,
        ..Default::default()
    };
    destination(&message, &mut |_| Arc::default()).unwrap()
}

fn policy_of(destination: &Destination) -> &Policy {
    &destination.default.as_ref().unwrap().policy
}

#[test]
fn an_algorithm_and_a_protocol_of_the_future_count_as_undeclared() {
    let policy = v1::TrafficPolicy { algorithm: FUTURE, idle_timeout_ms: 7, ..Default::default() };
    let destination = destination_with(policy, FUTURE);
    assert_eq!(destination.protocol, AppProtocol::Detect);
    assert_eq!(policy_of(&destination).algorithm, Algorithm::PeakEwma);
    assert_eq!(policy_of(&destination).idle_timeout.as_millis(), 7, "what is known holds");
}

#[test]
fn a_condition_of_the_future_makes_no_retries_and_takes_none_away() {
    let retry = |on: Vec<i32>| {
        let retry = Some(v1::RetryPolicy { attempts: 2, on, ..Default::default() });
        let destination = destination_with(v1::TrafficPolicy { retry, ..Default::default() }, 0);
        policy_of(&destination).retry.clone()
    };
    let known = retry(vec![v1::RetryOn::ConnectFailure.into(), v1::RetryOn::RetryOn5xx.into()]);
    let more = retry(vec![FUTURE, v1::RetryOn::ConnectFailure.into(), v1::RetryOn::RetryOn5xx.into()]);
    assert_eq!(more, known);
    let RetryPolicy { attempts, on_connect_failure, on_reset, on_status, .. } = retry(vec![FUTURE]);
    assert_eq!((attempts, on_connect_failure, on_reset), (2, false, false), "not what nobody asked for");
    assert!(!on_status.contains(StatusCode::SERVICE_UNAVAILABLE));
}

#[test]
fn an_endpoint_in_a_state_of_the_future_gets_nothing_new_while_others_serve() {
    let endpoint = |address: &str, state| v1::Endpoint {
        address: address.into(),
        port: 80,
        state,
        ..Default::default()
    };
    let message = v1::Endpoints { endpoints: vec![endpoint("10.0.0.1", FUTURE), endpoint("10.0.0.2", 0)] };
    let set = endpoints(&message, &EndpointSet::default()).unwrap();
    assert_eq!(set.candidates.len(), 1);
    assert_eq!(set.candidates[0].address.to_string(), "10.0.0.2:80");
    assert!(set.all[0].draining);
}

#[test]
fn a_mode_of_the_future_is_strict_and_the_rest_of_the_pods_side_holds() {
    let port = v1::InboundPort { port: 80, protocol: FUTURE, mtls: FUTURE, ..Default::default() };
    let message = v1::Inbound {
        identity: "spiffe://cluster.local/ns/shop/sa/reviews".into(),
        mtls: FUTURE,
        access_log: FUTURE,
        terminating: true,
        ports: vec![port, v1::InboundPort { port: 81, mtls: 1, ..Default::default() }],
        ..Default::default()
    };
    let inbound = inbound(&message).unwrap();
    assert_eq!((inbound.other.mtls, inbound.port(80).mtls), (MtlsMode::Strict, MtlsMode::Strict));
    assert_eq!(inbound.port(80).protocol, AppProtocol::Detect);
    assert_eq!(inbound.port(81).mtls, MtlsMode::Permissive);
    assert!(inbound.terminating);
    assert_eq!(inbound.access_log, AccessLog::default());
    let unspecified = super::inbound(&v1::Inbound { access_log: Logs::Unspecified.into(), ..message });
    assert_eq!(unspecified.unwrap().access_log, AccessLog::default());
}
