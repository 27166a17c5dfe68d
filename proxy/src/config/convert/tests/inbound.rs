//! A pod's own side in.

use super::*;

fn pod() -> v1::Inbound {
    v1::Inbound { identity: "spiffe://cluster.local/ns/shop/sa/reviews".into(), ..Default::default() }
}

#[test]
fn a_pods_own_side_is_taken_over_with_its_defaults() {
    let plain = super::super::inbound(&pod()).unwrap();
    assert_eq!((plain.access_log, plain.terminating), (AccessLog::Errors, false));
    assert_eq!((plain.port(80).mtls, plain.port(80).protocol), (MtlsMode::Permissive, AppProtocol::Detect));
    assert!(plain.port(80).access.is_empty());

    let port = v1::InboundPort {
        port: 9080,
        protocol: v1::AppProtocol::Http2.into(),
        mtls: v1::MtlsMode::Permissive.into(),
        authorities: vec!["Reviews:9080".into()],
        ..Default::default()
    };
    let full = super::super::inbound(&v1::Inbound {
        mtls: v1::MtlsMode::Strict.into(),
        ports: vec![port],
        terminating: true,
        access: vec![v1::AccessRule { name: "shop/none".into(), action: 1, clauses: vec![] }],
        access_log: v1::AccessLog::All.into(),
        opaque_ports: vec![4_000],
        zone: "a".into(),
        node: "n1".into(),
        ..pod()
    })
    .unwrap();
    assert!(full.terminating);
    assert_eq!((full.port(9080).mtls, full.port(9080).protocol), (MtlsMode::Permissive, AppProtocol::Http2));
    assert!(full.port(9080).access.is_empty(), "a port's own rules replace those of the rest");
    assert_eq!(full.port(1).mtls, MtlsMode::Strict);
    assert!(!full.port(1).access.is_empty());
    assert_eq!(full.port_of_authority("reviews:9080"), Some(9080));
    assert_eq!((full.access_log, full.opaque_ports), (AccessLog::All, vec![4_000]));
    assert_eq!((&*full.place.zone, &*full.place.node), ("a", "n1"));
}

#[test]
fn a_pods_own_side_that_makes_no_sense_is_refused_by_field() {
    let port = |port| v1::InboundPort { port, ..Default::default() };
    let bad_path = v1::AccessOperation { paths: vec!["a".into()], ..Default::default() };
    let clauses = vec![v1::AccessClause { to: vec![bad_path], ..Default::default() }];
    let access = vec![v1::AccessRule { name: "shop/a".into(), action: 1, clauses }];
    let cases = [
        (v1::Inbound { identity: String::new(), ..pod() }, "identity: "),
        (v1::Inbound { opaque_ports: vec![1, 0], ..pod() }, "opaque_ports[1]: 0 is not a port"),
        (v1::Inbound { ports: vec![port(80), port(80)], ..pod() }, "ports[1].port: 80 comes twice"),
        (
            v1::Inbound { ports: vec![v1::InboundPort { access, ..port(80) }], ..pod() },
            "ports[0].access[0].clauses[0].to[0].paths[0]: \"a\" does not begin with /",
        ),
    ];
    for (message, expected) in cases {
        let error = super::super::inbound(&message).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
