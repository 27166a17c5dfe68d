//! Who may call: deny beats allow, and an Allow denies what no Allow names.
//!
//! Wherever something cannot be known (no identity, a request inside opaque TCP, a path with too many readings, a
//! clause this sidecar does not understand) it matches every Deny and no Allow.

mod clause;

#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc};

use heddle_api::{identity::SpiffeId, v1};
use http::Method;

use crate::{
    config::convert::{ConvertError, each},
    path::Readings,
};
use clause::{Clause, Request};

/// Whoever asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// From its certificate; none: it came in plaintext.
    pub identity: Option<&'a SpiffeId>,
    /// The peer's address.
    pub address: IpAddr,
}

/// May it, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may.
    Allow,
    /// It may not.
    Deny {
        /// The Deny that matched, `namespace/name`. None: there are Allows, and none matched.
        policy: Option<Arc<str>>,
    },
}

/// The policies of one port.
#[derive(Debug, Default)]
pub struct AccessRules {
    policies: Vec<Policy>,
}

/// One AccessPolicy.
#[derive(Debug)]
struct Policy {
    name: Arc<str>,
    action: Action,
    clauses: Vec<Clause>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Allow,
    Deny,
    /// One that a later version brought: denies everything.
    Unknown,
}

impl AccessRules {
    /// Checks and keeps the policies.
    ///
    /// # Errors
    /// When a CIDR, a service account or a path pattern is none.
    pub fn new(messages: &[v1::AccessRule]) -> Result<Self, ConvertError> {
        let policies = each("access", messages, |message| {
            let action = match v1::AccessAction::try_from(message.action) {
                Ok(v1::AccessAction::Allow) => Action::Allow,
                Ok(v1::AccessAction::Deny) => Action::Deny,
                Ok(v1::AccessAction::Unspecified) | Err(_) => Action::Unknown,
            };
            let clauses = each("clauses", &message.clauses, Clause::new)?;
            Ok(Policy { name: message.name.as_str().into(), action, clauses })
        })?;
        Ok(Self { policies })
    }

    /// Whether nobody is kept out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// An HTTP request, by its path as it came (without query): allowed if every reading of the path is.
    #[must_use]
    pub fn http(&self, caller: Caller<'_>, method: &Method, path: &str) -> Decision {
        if self.is_empty() {
            return Decision::Allow;
        }
        let readings = Readings::of(path);
        let unreadable = (!readings.complete()).then_some(None);
        readings
            .iter()
            .map(Some)
            .chain(unreadable)
            .map(|path| self.decide(caller, Request::Http { method, path }))
            .find(|decision| *decision != Decision::Allow)
            .unwrap_or(Decision::Allow)
    }

    /// An opaque TCP connection.
    #[must_use]
    pub fn tcp(&self, caller: Caller<'_>) -> Decision {
        self.decide(caller, Request::Opaque)
    }

    fn decide(&self, caller: Caller<'_>, request: Request<'_>) -> Decision {
        let mut allows = false;
        let mut allowed = false;
        for policy in &self.policies {
            let matches = |in_doubt| policy.clauses.iter().any(|c| c.matches(caller, request, in_doubt));
            let denied = match policy.action {
                Action::Unknown => true,
                Action::Deny => matches(true),
                Action::Allow => {
                    allows = true;
                    allowed = allowed || matches(false);
                    false
                }
            };
            if denied {
                return Decision::Deny { policy: Some(Arc::clone(&policy.name)) };
            }
        }
        if allows && !allowed { Decision::Deny { policy: None } } else { Decision::Allow }
    }
}
