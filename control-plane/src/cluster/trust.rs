//! Which roots are trusted while they rotate. Pure.
//!
//! A root that is new is trusted before anything is signed under it; one that is taken out of the Secret stays trusted
//! until the last certificate under it has ended. So neither step of a rotation can part two sidecars.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls_pki_types::CertificateDer;

use crate::{ca::Authority, hub::hex};

/// From when a root is trusted until something is signed under it, unless `--root-adopt-after` says otherwise: streams tell sidecars at once, but the CA file that
/// they know the control plane by comes by the kubelet, which looks every minute or so.
pub const ADOPT: Duration = Duration::from_secs(180);

/// What is trusted, and how long it is needed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trust {
    /// All roots, those of the Secret first.
    pub roots: Vec<CertificateDer<'static>>,
    /// By fingerprint, until when (seconds since the Unix epoch) certificates under it may live.
    pub needed: BTreeMap<String, u64>,
    /// Those of the roots that the Secret has no more.
    pub kept: Vec<String>,
}

/// SHA-256 of a certificate, in hexadecimal.
pub fn fingerprint(certificate: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate).as_ref())
}

impl Trust {
    /// What is trusted from now on: `secret` is the authority as the Secret has it, `signing` the one that signs now.
    #[must_use]
    pub fn next(&self, secret: &Authority, signing: &Authority, now: SystemTime) -> Self {
        let now = unix(now);
        let mut needed = self.needed.clone();
        let all = || secret.roots().iter().chain(&self.roots);
        let all: Vec<_> = all().cloned().collect();
        for root in signing.signs_under(&all) {
            let life = signing.lifetime().as_secs();
            let until = needed.entry(fingerprint(root)).or_default();
            // Written down once for each lifetime, not at each look; so it is kept twice as long at most.
            if *until < now + life {
                *until = now + 2 * life;
            }
        }
        needed.retain(|_, until| *until > now);
        let mut roots = secret.roots().to_vec();
        let mut kept = Vec::new();
        for root in &self.roots {
            let name = fingerprint(root);
            if !roots.contains(root) && needed.contains_key(&name) {
                roots.push(root.clone());
                kept.push(name);
            }
        }
        needed.retain(|name, _| roots.iter().any(|root| fingerprint(root) == *name));
        Self { roots, needed, kept }
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::fresh_root;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    /// A root, its key, and their authority with a bundle.
    fn root() -> (String, String) {
        fresh_root("cluster.local", now()).unwrap()
    }

    fn authority(own: &(String, String), bundle: &[&(String, String)]) -> Authority {
        let bundle: String = bundle.iter().map(|(root, _)| root.as_str()).collect();
        Authority::from_pem(own.0.as_bytes(), own.1.as_bytes(), bundle.as_bytes(), "cluster.local", DAY)
            .unwrap()
    }

    #[test]
    fn a_root_that_signed_stays_trusted_until_the_last_certificate_under_it_has_ended() {
        let (old, new) = (root(), root());
        let only_old = authority(&old, &[&old]);
        let trust = Trust::default().next(&only_old, &only_old, now());
        assert_eq!((trust.roots.len(), trust.kept.len()), (1, 0));
        // All at once: the Secret has the new one alone, and the old one signs for a while yet.
        let only_new = authority(&new, &[&new]);
        let trust = trust.next(&only_new, &only_old, now() + DAY / 2);
        assert_eq!((trust.roots.len(), trust.kept.len()), (2, 1));
        let later = trust.next(&only_new, &only_new, now() + DAY);
        assert_eq!(later.kept.len(), 1, "certificates signed a moment before the change live on");
        let after = later.next(&only_new, &only_new, now() + 3 * DAY);
        assert_eq!(after.roots, only_new.roots());
        assert!(after.kept.is_empty());
    }

    #[test]
    fn a_root_that_never_signed_goes_at_once() {
        let (own, extra) = (root(), root());
        let both = authority(&own, &[&own, &extra]);
        let trust = Trust::default().next(&both, &both, now());
        assert_eq!(trust.roots.len(), 2);
        let one = authority(&own, &[&own]);
        assert_eq!(trust.next(&one, &one, now()).roots.len(), 1);
    }

    #[test]
    fn nothing_is_written_down_anew_while_nothing_changes() {
        let own = root();
        let authority = authority(&own, &[&own]);
        let trust = Trust::default().next(&authority, &authority, now());
        assert_eq!(trust.next(&authority, &authority, now() + DAY / 2), trust);
    }
}
