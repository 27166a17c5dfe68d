//! What a port's declaration says of its protocol (KEP-3726 and the names that users of meshes write).

use heddle_api::{OPAQUE_PORTS, v1::AppProtocol};

use super::facts::{ServicePort, Target};

/// What `appProtocol` or, without one, the port's name says; `None` when they say nothing that is known.
pub(super) fn declared(port: &ServicePort) -> Option<AppProtocol> {
    match port.app_protocol.as_deref() {
        Some(protocol) => word(&protocol.to_ascii_lowercase()),
        // gRPC-Web is HTTP of any version, whatever its name begins with.
        None if port.name.starts_with("grpc-web") => Some(AppProtocol::Http1),
        // "http-web" is as good as "http".
        None => word(port.name.split('-').next().unwrap_or_default()),
    }
}

fn word(word: &str) -> Option<AppProtocol> {
    match word {
        "http" | "http1" | "kubernetes.io/ws" | "ws" => Some(AppProtocol::Http1),
        "kubernetes.io/h2c" | "h2c" | "http2" | "grpc" => Some(AppProtocol::Http2),
        "https" | "tls" | "tcp" | "kubernetes.io/wss" | "wss" => Some(AppProtocol::Opaque),
        _ => None,
    }
}

/// Whether a port that declares nothing is opaque: built in, or by a MeshPolicy. The Service's number counts, since
/// callers see it, and so does the pod's.
pub(super) fn opaque_by_number(port: &ServicePort, extra: &[u32]) -> bool {
    let opaque = |number: u16| OPAQUE_PORTS.contains(&number) || extra.contains(&u32::from(number));
    opaque(port.number) || matches!(port.target, Target::Number(number) if opaque(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, app_protocol: Option<&str>) -> ServicePort {
        ServicePort {
            name: name.to_owned(),
            number: 80,
            target: Target::Number(8080),
            app_protocol: app_protocol.map(str::to_owned),
        }
    }

    #[test]
    fn the_declaration_wins_over_the_name() {
        for (name, app_protocol, expected) in [
            ("", None, None),
            ("http", None, Some(AppProtocol::Http1)),
            ("http-web", None, Some(AppProtocol::Http1)),
            ("httpish", None, None),
            ("grpc", None, Some(AppProtocol::Http2)),
            ("grpc-web", None, Some(AppProtocol::Http1)),
            ("grpc-web", Some("http"), Some(AppProtocol::Http1)),
            ("http", Some("kubernetes.io/h2c"), Some(AppProtocol::Http2)),
            ("tcp-redis", None, Some(AppProtocol::Opaque)),
            ("https", None, Some(AppProtocol::Opaque)),
            ("x", Some("kubernetes.io/ws"), Some(AppProtocol::Http1)),
            ("http", Some("example.com/mine"), None),
        ] {
            assert_eq!(declared(&port(name, app_protocol)), expected, "{name} {app_protocol:?}");
        }
    }

    #[test]
    fn a_port_is_opaque_by_either_of_its_numbers() {
        assert!(!opaque_by_number(&port("", None), &[]));
        assert!(opaque_by_number(&port("", None), &[8080]));
        assert!(opaque_by_number(&port("", None), &[80]));
        assert!(opaque_by_number(&ServicePort { number: 3306, ..port("", None) }, &[]));
    }
}
