//! Where a captured connection was going, and whether whoever made it may use this sidecar.

use std::net::{IpAddr, SocketAddr};

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::worker::Settings;

/// The destination that netfilter's REDIRECT replaced (`SO_ORIGINAL_DST`), or none: the connection was made to
/// the sidecar itself, so this is explicit mode.
#[must_use]
pub fn original_destination(io: &TcpStream) -> Option<SocketAddr> {
    let local = io.local_addr().ok()?;
    let socket = SockRef::from(io);
    let original = match local.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    // Without a conntrack entry the call fails: nothing was redirected.
    let original = original.ok()?.as_socket()?;
    let original = SocketAddr::new(original.ip().to_canonical(), original.port());
    (original != SocketAddr::new(local.ip().to_canonical(), local.port())).then_some(original)
}

/// Whether an outbound connection may come from `source`. Whoever reaches the outbound port speaks with the pod's
/// identity, so only the pod itself may: loopback and its own addresses.
///
/// Where pods are themselves addresses of 127.0.0.0/8 (directory mode on one machine), loopback means 127.0.0.1
/// alone, else every pod of the machine could borrow this one's identity.
#[must_use]
pub fn source_is_this_pod(source: IpAddr, settings: &Settings) -> bool {
    let source = source.to_canonical();
    if settings.pod_ips.contains(&source) {
        return true;
    }
    let pods_are_loopback = settings.pod_ips.iter().any(IpAddr::is_loopback);
    match source {
        IpAddr::V4(v4) if pods_are_loopback => v4 == std::net::Ipv4Addr::LOCALHOST,
        _ => source.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(source: &str, pod_ips: &[&str]) -> bool {
        let settings = Settings {
            pod_ips: pod_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Settings::for_tests()
        };
        source_is_this_pod(source.parse().unwrap(), &settings)
    }

    #[test]
    fn in_a_cluster_loopback_and_the_pods_own_addresses_may_go_out() {
        assert!(allowed("127.0.0.1", &["10.0.0.7"]));
        assert!(allowed("127.9.9.9", &["10.0.0.7"]));
        assert!(allowed("::1", &["10.0.0.7"]));
        assert!(allowed("10.0.0.7", &["10.0.0.7", "fd00::7"]));
        assert!(allowed("fd00::7", &["10.0.0.7", "fd00::7"]));
        assert!(!allowed("10.0.0.8", &["10.0.0.7"]));
        assert!(!allowed("::ffff:10.0.0.8", &["10.0.0.7"]));
    }

    #[test]
    fn a_pod_that_is_a_loopback_address_does_not_speak_for_its_neighbours() {
        assert!(allowed("127.0.0.1", &["127.0.0.2"]));
        assert!(allowed("127.0.0.2", &["127.0.0.2"]));
        assert!(!allowed("127.0.0.3", &["127.0.0.2"]));
    }
}
