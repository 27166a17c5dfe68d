//! What a request or a connection asks for, as a name that discovery knows.

use std::{borrow::Cow, net::IpAddr};

use http::uri::Authority;

use crate::reason::Reason;

/// Names under it are the cluster's own, so a trailing dot does not send them to DNS.
const CLUSTER_DOMAIN: &str = ".cluster.local";
/// The port of a name without one. What comes to the sidecar as HTTP goes on as HTTP, whatever scheme it was
/// written with: an `https` URI in plaintext is a proxy's business, and that takes CONNECT.
pub const HTTP_PORT: u16 = 80;
/// RFC 1035, 2.3.4, with room for a port.
const LONGEST: usize = 253 + 6;

/// Whom a request is for.
#[derive(Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// `host:port`, lower-case, without trailing dot: the name to subscribe to.
    pub key: Cow<'a, str>,
    /// Skip the mesh: the name ended with a dot and is not the cluster's.
    pub dns_only: bool,
}

impl<'a> Name<'a> {
    /// From an authority; `default_port` where it has none.
    ///
    /// # Errors
    /// [`Reason::BadRequest`] with a sentence when the authority carries user information, a port that is none,
    /// or is too long.
    pub fn of(authority: &'a Authority, default_port: u16) -> Result<Self, (Reason, String)> {
        let text = authority.as_str();
        let bad = |why: &str| Err((Reason::BadRequest, format!("the authority {text:?} {why}")));
        if text.len() > LONGEST {
            return bad("is too long for a name");
        }
        if text.contains('@') {
            return bad("carries user information");
        }
        let host = authority.host();
        let port = match text.strip_prefix(host).and_then(|rest| rest.strip_prefix(':')) {
            None | Some("") => None,
            Some(digits) => match digits.parse::<u16>() {
                Ok(port) if port != 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Some(port),
                _ => return bad("has no port between 1 and 65535"),
            },
        };
        let bare = host.strip_suffix('.').unwrap_or(host);
        if bare.is_empty() {
            return bad("has no host");
        }
        let dotted = bare.len() != host.len();
        let is_plain = port.is_some() && !dotted && !host.bytes().any(|b| b.is_ascii_uppercase());
        // The usual case needs no new string.
        let key = if is_plain {
            Cow::Borrowed(text)
        } else {
            Cow::Owned(format!("{}:{}", bare.to_ascii_lowercase(), port.unwrap_or(default_port)))
        };
        let dns_only = dotted && !bare.to_ascii_lowercase().ends_with(CLUSTER_DOMAIN);
        Ok(Self { key, dns_only })
    }

    /// Host (without brackets) and port.
    #[must_use]
    pub fn host_and_port(&self) -> (&str, u16) {
        // `of` put both in.
        let (host, port) = self.key.rsplit_once(':').unwrap_or((&self.key, "0"));
        (host.trim_start_matches('[').trim_end_matches(']'), port.parse().unwrap_or(0))
    }

    /// The address, where the host is one.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.host_and_port().0.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Result<(String, bool), Reason> {
        let authority: Authority = text.parse().map_err(|_| Reason::BadRequest)?;
        Name::of(&authority, 80).map(|n| (n.key.into_owned(), n.dns_only)).map_err(|(reason, _)| reason)
    }

    #[test]
    fn a_name_gets_its_port_and_one_spelling() {
        for (text, key, dns_only) in [
            ("reviews:9080", "reviews:9080", false),
            ("Reviews.Shop:9080", "reviews.shop:9080", false),
            ("reviews", "reviews:80", false),
            ("reviews:", "reviews:80", false),
            ("reviews.shop.svc.cluster.local.:9080", "reviews.shop.svc.cluster.local:9080", false),
            ("example.com.", "example.com:80", true),
            ("10.0.0.1:80", "10.0.0.1:80", false),
            ("[fd00::1]:80", "[fd00::1]:80", false),
            ("[FD00::1]", "[fd00::1]:80", false),
        ] {
            assert_eq!(name(text), Ok((key.to_owned(), dns_only)), "{text}");
        }
    }

    #[test]
    fn an_authority_that_is_none_is_refused() {
        for text in ["user@reviews:80", "reviews:0", "reviews:65536", "reviews:+80", ".", &"a".repeat(300)] {
            assert_eq!(name(text), Err(Reason::BadRequest), "{text}");
        }
    }

    #[test]
    fn an_address_is_seen_in_both_families() {
        for (text, host) in [("10.0.0.1:80", "10.0.0.1"), ("[fd00::1]:80", "fd00::1")] {
            let authority: Authority = text.parse().unwrap();
            let name = Name::of(&authority, 80).unwrap();
            assert_eq!(name.host_and_port(), (host, 80));
            assert_eq!(name.address(), host.parse().ok());
        }
    }
}
