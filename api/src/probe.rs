//! What the injector tells a sidecar of its pod's probes and hooks, so that `/probe/<container>/<kind>` can replay them. It
//! travels as JSON in an environment variable of the sidecar's container.
//!
//! Only what the pod's spec declared is in it, with ports as numbers: the sidecar does not know the pod's names. A hook does
//! something, so it is asked for with a token as the query, which kubelet reads in the pod's spec and nobody else knows
//! who reaches the sidecar's port. It is part of the place's name here, so that sidecars from before there were tokens
//! read it too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Probes and hooks of a pod together; it has a handful.
pub const MOST: usize = 256;
/// Bytes of the JSON: what fits into an environment variable with room to spare (128 KiB each on Linux).
const LONGEST: usize = 96 * 1024;
/// Seconds that a replay may take; a hook may last as long as a pod takes to terminate.
pub const LONGEST_SECONDS: u32 = 3600;

/// What nobody can guess: 128 bits. One pod has one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token(u128);

/// All of a pod's, by place and kind. A place is a container; of its hooks, the container and the token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Probes(BTreeMap<String, BTreeMap<Kind, Probe>>);

/// When kubelet asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// `startupProbe`
    Startup,
    /// `livenessProbe`
    Liveness,
    /// `readinessProbe`
    Readiness,
    /// `lifecycle.postStart`
    PostStart,
    /// `lifecycle.preStop`
    PreStop,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// What is done.
    #[serde(flatten)]
    pub action: Action,
    /// It has failed when this many seconds are over.
    pub timeout_seconds: u32,
}

/// What a probe does, at the pod's own address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// A GET.
    HttpGet(HttpGet),
    /// A connection.
    TcpSocket {
        /// To this port.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// At this port.
        port: u16,
        /// For this service; empty is the server as a whole.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        service: String,
    },
}

/// A GET, as the pod's spec declares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGet {
    /// At this port.
    pub port: u16,
    /// For this path, with its query.
    pub path: String,
    /// Over TLS, whatever the certificate says, as kubelet does it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub https: bool,
    /// With these headers, name and value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::Startup, Self::Liveness, Self::Readiness, Self::PostStart, Self::PreStop];

    /// As the path spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::PostStart => "postStart",
            Self::PreStop => "preStop",
        }
    }

    /// Whether it is a lifecycle hook, of which kubelet does not look at the status.
    #[must_use]
    pub const fn is_hook(self) -> bool {
        matches!(self, Self::PostStart | Self::PreStop)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Token {
    /// Of random bits.
    #[must_use]
    pub const fn new(bits: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bits))
    }

    /// What a container's hooks are found at. No container's name has a dot.
    #[must_use]
    pub fn place(self, container: &str) -> String {
        format!("{container}.{}", self.query())
    }

    /// As the query of a hook's path spells it.
    #[must_use]
    pub fn query(self) -> String {
        format!("{:032x}", self.0)
    }

    fn of(place: &str) -> Option<Self> {
        let (_, token) = place.split_once('.')?;
        (token.len() == 32).then(|| u128::from_str_radix(token, 16).ok().map(Self))?
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Probes {
    /// Adds one; what was there for that place and kind is replaced.
    pub fn insert(&mut self, place: &str, kind: Kind, probe: Probe) {
        self.0.entry(place.to_owned()).or_default().insert(kind, probe);
    }

    /// The one that a path asks for: what follows `/probe/`, with its query. How long that takes tells nothing of a token.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<(Kind, &Probe)> {
        let (path, token) = path.split_once('?').map_or((path, None), |(path, token)| (path, Some(token)));
        let (container, kind) = path.split_once('/').filter(|(container, _)| !container.contains('.'))?;
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
        let place = token.map_or_else(|| container.to_owned(), |token| format!("{container}.{token}"));
        let (_, kinds) = self.0.iter().find(|(known, _)| same(known, &place))?;
        Some((kind, kinds.get(&kind)?))
    }

    /// The token of those that are there.
    #[must_use]
    pub fn token(&self) -> Option<Token> {
        self.0.keys().find_map(|place| Token::of(place))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ports that are asked.
    #[must_use]
    pub fn ports(&self) -> BTreeSet<u16> {
        self.all()
            .map(|probe| match &probe.action {
                Action::HttpGet(get) => get.port,
                Action::TcpSocket { port } | Action::Grpc { port, .. } => *port,
            })
            .collect()
    }

    fn all(&self) -> impl Iterator<Item = &Probe> {
        self.0.values().flat_map(BTreeMap::values)
    }

    /// What it must be for a sidecar to take it.
    fn check(&self) -> Result<(), String> {
        if self.all().count() > MOST {
            return Err(format!("more than {MOST} probes and hooks"));
        }
        for (container, kinds) in &self.0 {
            for (kind, probe) in kinds {
                let problem = |what: &str| Err(format!("{container}/{kind}: {what}"));
                if !(1..=LONGEST_SECONDS).contains(&probe.timeout_seconds) {
                    return problem(&format!("timeoutSeconds is not 1 to {LONGEST_SECONDS}"));
                }
                if matches!(&probe.action, Action::HttpGet(get) if !get.path.starts_with('/')) {
                    return problem("the path does not begin with '/'");
                }
            }
        }
        if self.ports().contains(&0) {
            return Err("a port is 0".to_owned());
        }
        Ok(())
    }
}

/// Compares in a time that depends on the lengths alone.
fn same(one: &str, other: &str) -> bool {
    let differ =
        one.bytes().zip(other.bytes()).fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b)));
    one.len() == other.len() && differ == 0
}

impl FromStr for Probes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("{} bytes of probes; at most {LONGEST} are taken", text.len()));
        }
        let probes: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        probes.check()?;
        Ok(probes)
    }
}

impl fmt::Display for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = concat!(
        r#"{"web":{"liveness":{"httpGet":{"port":8080,"path":"/live?x=1","https":true,"headers":[["X-A","b"]]},"#,
        r#""timeoutSeconds":1},"readiness":{"tcpSocket":{"port":9000},"timeoutSeconds":2},"#,
        r#""preStop":{"grpc":{"port":9001},"timeoutSeconds":60}}}"#
    );

    #[test]
    fn what_the_injector_writes_is_what_the_sidecar_reads() {
        let probes: Probes = TEXT.parse().unwrap();
        assert_eq!(probes.to_string(), TEXT);
        let (kind, probe) = probes.find("web/readiness").unwrap();
        assert_eq!((kind, &probe.action), (Kind::Readiness, &Action::TcpSocket { port: 9000 }));
        assert_eq!(probes.ports().len(), 3);
        for unknown in ["web", "web/startup", "other/liveness", "web/liveness/", ""] {
            assert_eq!(probes.find(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn who_does_not_know_the_token_finds_nothing() {
        let token = Token::new([0xab; 16]);
        let place = token.place("web");
        assert_eq!(place, "web.abababababababababababababababab");
        let probe = Probe { action: Action::TcpSocket { port: 9000 }, timeout_seconds: 1 };
        let mut probes = Probes::default();
        assert_eq!(probes.token(), None);
        probes.insert(&place, Kind::PreStop, probe);
        let probes: Probes = probes.to_string().parse().unwrap();
        assert_eq!(probes.token(), Some(token));
        let query = token.query();
        assert!(probes.find(&format!("web/preStop?{query}")).is_some());
        let other = Token::new([0; 16]).query();
        for path in [
            "web/preStop".to_owned(),
            "web/preStop?".to_owned(),
            format!("web/preStop?{other}"),
            format!("web/preStop?{query}0"),
            format!("web/preStop?{}", &query[..31]),
            format!("{place}/preStop"),
            format!("web/liveness?{query}"),
        ] {
            assert_eq!(probes.find(&path), None, "{path}");
        }
    }

    #[test]
    fn what_no_pod_can_declare_is_refused_with_its_place() {
        let one = |probe: &str| format!(r#"{{"web":{{"liveness":{probe}}}}}"#).parse::<Probes>().unwrap_err();
        let error = one(r#"{"httpGet":{"port":80,"path":"x"},"timeoutSeconds":1}"#);
        assert!(error.contains("web/liveness: the path"), "{error}");
        assert!(one(r#"{"tcpSocket":{"port":80},"timeoutSeconds":0}"#).contains("timeoutSeconds"));
        assert!(one(r#"{"tcpSocket":{"port":0},"timeoutSeconds":1}"#).contains("port is 0"));
        assert!(one(r#"{"exec":{},"timeoutSeconds":1}"#).contains("Action"));
        let long = format!("\"{}\"", "x".repeat(LONGEST));
        assert!(long.parse::<Probes>().unwrap_err().contains("at most"));
    }
}
