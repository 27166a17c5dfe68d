//! The names by which applications ask: which Service, pod or address a subscription means.

use std::net::{IpAddr, SocketAddr};

use crate::object::Name;

/// What a name means, before anyone looked whether it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// An address and port: of a Service or of a pod.
    Address(IpAddr, u16),
    /// A Service's port.
    Service(Name, u16),
    /// One pod of a Service.
    Pod { hostname: String, service: Name, port: u16 },
}

/// Reads `IP:PORT`, `NAME:PORT`, `NAME.NS:PORT`, `NAME.NS.svc[.DOMAIN]:PORT` or `POD.SERVICE.NS.svc[.DOMAIN]:PORT`;
/// `None` for every other name, which the mesh has no say in.
pub(super) fn parse(text: &str, caller_namespace: &str, cluster_domain: &str) -> Option<Asked> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        // "::ffff:10.0.0.7" is another way to write 10.0.0.7, and no way around the mesh.
        return Some(Asked::Address(address.ip().to_canonical(), address.port()));
    }
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let dotted = host.strip_suffix('.');
    let host = dotted.unwrap_or(host);
    let inside = host.strip_suffix(cluster_domain).and_then(|rest| rest.strip_suffix('.'));
    // A dot at the end makes a name absolute; outside of the cluster's domain that is DNS's business.
    if dotted.is_some() && inside.is_none() {
        return None;
    }
    let (host, qualified) = match inside {
        Some(rest) => (rest.strip_suffix(".svc")?, true),
        None => host.strip_suffix(".svc").map_or((host, false), |rest| (rest, true)),
    };
    let labels: Vec<&str> = host.split('.').collect();
    if labels.iter().any(|label| label.is_empty()) {
        return None;
    }
    match (labels[..].as_ref(), qualified) {
        ([name], false) => Some(Asked::Service(Name::new(caller_namespace, *name), port)),
        ([name, namespace], _) => Some(Asked::Service(Name::new(*namespace, *name), port)),
        ([pod, service, namespace], true) => {
            Some(Asked::Pod { hostname: (*pod).to_owned(), service: Name::new(*namespace, *service), port })
        }
        _ => None,
    }
}

/// A backend's key: what its Endpoints are named by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BackendKey {
    /// `namespace/service:port`, or `…@IP` for one endpoint of it.
    Service(Name, u16, Option<IpAddr>),
    /// `namespace/pod/name:port@IP`: a pod's port that no Service leads to.
    Pod(Name, u16, IpAddr),
}

impl std::fmt::Display for BackendKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(name, port, None) => write!(f, "{name}:{port}"),
            Self::Service(name, port, Some(ip)) => write!(f, "{name}:{port}@{ip}"),
            Self::Pod(name, port, ip) => write!(f, "{}/pod/{}:{port}@{ip}", name.namespace, name.name),
        }
    }
}

impl BackendKey {
    /// Reads one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (rest, ip) = match text.split_once('@') {
            Some((rest, ip)) => (rest, Some(ip.parse().ok()?)),
            None => (text, None),
        };
        let (name, port) = rest.rsplit_once(':')?;
        let port = port.parse().ok()?;
        match (name.split('/').collect::<Vec<_>>()[..].as_ref(), ip) {
            ([namespace, service], ip) => Some(Self::Service(Name::new(*namespace, *service), port, ip)),
            ([namespace, "pod", pod], Some(ip)) => Some(Self::Pod(Name::new(*namespace, *pod), port, ip)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_name_is_understood() {
        let asked = |text| parse(text, "web", "cluster.local");
        let reviews = |namespace| Some(Asked::Service(Name::new(namespace, "reviews"), 80));
        assert_eq!(asked("reviews:80"), reviews("web"));
        for text in [
            "reviews.shop:80",
            "reviews.shop.svc:80",
            "reviews.shop.svc.cluster.local:80",
            "reviews.shop.svc.cluster.local.:80",
        ] {
            assert_eq!(asked(text), reviews("shop"), "{text}");
        }
        assert_eq!(
            asked("db-0.db.shop.svc.cluster.local:5432"),
            Some(Asked::Pod { hostname: "db-0".into(), service: Name::new("shop", "db"), port: 5432 })
        );
        assert_eq!(asked("127.0.0.7:80"), Some(Asked::Address([127, 0, 0, 7].into(), 80)));
        assert_eq!(asked("[::ffff:127.0.0.7]:80"), Some(Asked::Address([127, 0, 0, 7].into(), 80)));
        assert_eq!(asked("[::1]:80"), Some(Asked::Address("::1".parse().unwrap(), 80)));
    }

    #[test]
    fn names_that_are_not_the_meshs_are_left_to_dns() {
        for text in [
            "reviews",
            "reviews:0",
            "reviews:x",
            "example.com.:80",
            "reviews.:80",
            "api.example.com:443",
            "reviews.svc:80",
            ".shop:80",
            "shop.cluster.local:80",
            ":80",
        ] {
            assert_eq!(parse(text, "web", "cluster.local"), None, "{text}");
        }
    }

    #[test]
    fn a_backend_key_reads_back_as_it_was_written() {
        for text in
            ["shop/reviews:80", "shop/db:5432@10.0.0.1", "shop/db:5432@fd00::1", "shop/pod/web-0:80@10.0.0.1"]
        {
            assert_eq!(BackendKey::parse(text).unwrap().to_string(), text);
        }
        for text in ["reviews:80", "shop/reviews", "shop/pod/web:80", "a/b/c/d:80", "shop/reviews:80@x"] {
            assert_eq!(BackendKey::parse(text), None, "{text}");
        }
    }
}
