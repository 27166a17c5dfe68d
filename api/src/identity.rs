//! Workload identities: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::{fmt, str::FromStr, sync::Arc};

/// The one DNS name in the control plane's serving certificate. No workload certificate ever carries a DNS
/// name, so no workload can pass for the control plane; sidecars ask for it whatever host they dialled.
pub const CONTROL_PLANE_DNS_NAME: &str = "control-plane.heddle.internal";

/// Audience of service-account tokens and join tokens.
pub const TOKEN_AUDIENCE: &str = "heddle.dev";

/// The attribute of a workload leaf's subject that names its pod, as [`PodName`] prints it: `UID` (userId, RFC 4519
/// section 2.39). Not the common name, which RFC 5280 (appendix A.1) ends at 64 characters; a pod's name may have 253.
pub const POD_ATTRIBUTE: [u64; 7] = [0, 9, 2342, 19_200_300, 100, 1, 1];

/// A workload's SPIFFE ID. Cheap to clone; compares by the whole URI.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    // Ends of the trust domain and the namespace within the URI.
    domain_end: u16,
    namespace_end: u16,
}

/// Why a text is not a workload's SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>: {problem}")]
pub struct BadSpiffeId {
    text: String,
    problem: &'static str,
}

const SCHEME: &str = "spiffe://";
const NAMESPACE: &str = "/ns/";
const SERVICE_ACCOUNT: &str = "/sa/";

impl SpiffeId {
    /// Puts an ID together.
    ///
    /// # Errors
    /// When a part is empty, longer than 253 bytes or has characters outside `[a-z0-9.-]` (trust domain, names).
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, BadSpiffeId> {
        let uri = format!("{SCHEME}{trust_domain}{NAMESPACE}{namespace}{SERVICE_ACCOUNT}{service_account}");
        for (part, problem) in [
            (trust_domain, "bad trust domain"),
            (namespace, "bad namespace"),
            (service_account, "bad service account"),
        ] {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
            if part.is_empty() || part.len() > 253 || !part.bytes().all(plain) {
                return Err(BadSpiffeId { text: uri, problem });
            }
        }
        let domain_end = SCHEME.len() + trust_domain.len();
        let namespace_end = domain_end + NAMESPACE.len() + namespace.len();
        // The parts are at most 253 bytes each, so both ends fit.
        Ok(Self { uri: uri.into(), domain_end: domain_end as u16, namespace_end: namespace_end as u16 })
    }

    /// The whole URI.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain, without scheme.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..usize::from(self.domain_end)]
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.uri[usize::from(self.domain_end) + NAMESPACE.len()..usize::from(self.namespace_end)]
    }

    /// The service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.uri[usize::from(self.namespace_end) + SERVICE_ACCOUNT.len()..]
    }
}

impl FromStr for SpiffeId {
    type Err = BadSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |problem| BadSpiffeId { text: text.to_owned(), problem };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| bad("no spiffe:// scheme"))?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| bad("no path"))?;
        match path.split('/').collect::<Vec<_>>()[..] {
            ["ns", namespace, "sa", account] => Self::new(domain, namespace, account),
            _ => Err(bad("the path is another")),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

/// A pod's name: `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodName {
    /// The namespace.
    pub namespace: String,
    /// The name within it.
    pub name: String,
}

impl FromStr for PodName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split('/').collect::<Vec<_>>()[..] {
            [namespace, name] if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} is not NAMESPACE/NAME")),
        }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_gives_back_its_parts() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("cluster.local", "shop", "web")
        );
        assert_eq!(id, SpiffeId::new("cluster.local", "shop", "web").unwrap());
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for text in [
            "http://cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local/ns/shop/sa/web/",
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe://cluster.local/ns/shop/sa/web?x",
            "spiffe://cluster.local/ns/SHOP/sa/web",
            "spiffe://cluster.local//ns/shop/sa/web",
            "spiffe:///ns/shop/sa/web",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
