//! The root's health as a condition of the control plane's Deployment, for `kubectl describe` and `kubectl wait`.
//!
//! A Deployment is what every installation has, and its controller keeps conditions that it does not know.

use std::time::{Duration, SystemTime};

use k8s_openapi::{api::apps::v1::Deployment, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    ca::Authority,
    cluster::root::{MANAGER, SECRET, WARN},
};

/// The Deployment that the chart installs.
pub const DEPLOYMENT: &str = "heddle-control-plane";
/// The condition's type.
pub const CONDITION: &str = "heddle.dev/RootHealthy";
/// What is there is looked at so often, whatever is known: somebody may have written over it.
const LOOK: Duration = Duration::from_secs(60);

/// What the condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// `True` or `False`.
    pub status: &'static str,
    /// One word.
    pub reason: &'static str,
    /// A sentence; the same as long as the state is.
    pub message: String,
}

/// How the root fares: `authority` signs, `problem` is what makes the Secret unusable. Pure.
#[must_use]
pub fn health(authority: &Authority, problem: Option<&str>, now: SystemTime) -> Health {
    let end = authority.not_after();
    let left = end.duration_since(now).unwrap_or_default();
    let date = humantime::format_rfc3339_seconds(end);
    let (reason, message) = if left.is_zero() {
        (
            "RootExpired",
            format!("The root ended at {date}: nothing is signed any more. Give Secret {SECRET} another."),
        )
    } else if let Some(problem) = problem {
        ("RootUnusable", format!("The root that was there before stays in use until {date}: {problem}."))
    } else if left < WARN {
        (
            "RootExpires",
            format!(
                "The root ends at {date}: add a new one to ca.crt of Secret {SECRET} now, and sign with it in a day."
            ),
        )
    } else {
        let message = format!("The root signs until {date}.");
        return Health { status: "True", reason: "RootValid", message };
    };
    Health { status: "False", reason, message }
}

/// Writes the condition.
pub(super) struct Reporter {
    api: Api<Deployment>,
    /// What is there as far as we know, and since when.
    known: Option<(Health, Instant)>,
    /// When writing failed, or there was nothing to write to.
    failed: Option<Instant>,
}

impl Reporter {
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), known: None, failed: None }
    }

    /// Another leader may write meanwhile.
    pub(super) fn forget(&mut self) {
        self.known = None;
    }

    /// Sees to it that the condition is there.
    pub(super) async fn report(&mut self, health: Health) {
        let known = self.known.as_ref().is_some_and(|(known, at)| *known == health && at.elapsed() < LOOK);
        if known || self.failed.is_some_and(|at| at.elapsed() < LOOK) {
            return;
        }
        let now = Instant::now();
        self.failed = match self.write(&health).await {
            Ok(true) => None,
            // Not installed by the chart.
            Ok(false) => Some(now),
            Err(error) => {
                tracing::warn!(%error, "the condition {CONDITION} of Deployment {DEPLOYMENT} could not be written");
                Some(now)
            }
        };
        self.known = self.failed.is_none().then_some((health, now));
    }

    /// Writes it where something else is there. Whether there is a Deployment.
    async fn write(&self, health: &Health) -> Result<bool, kube::Error> {
        let Some(found) = self.api.get_opt(DEPLOYMENT).await? else { return Ok(false) };
        let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
        let old = conditions.into_iter().find(|condition| condition.type_ == CONDITION);
        let same = |old: &k8s_openapi::api::apps::v1::DeploymentCondition| {
            old.status == health.status
                && old.reason.as_deref() == Some(health.reason)
                && old.message.as_deref() == Some(&health.message)
        };
        if old.as_ref().is_some_and(same) {
            return Ok(true);
        }
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let since = old.filter(|old| old.status == health.status).and_then(|old| old.last_transition_time);
        let since = since.map_or_else(|| json!(now), |since| json!(since));
        // A strategic merge finds the condition by its type, and touches no other.
        let patch = json!({"status": {"conditions": [{
            "type": CONDITION, "status": health.status, "reason": health.reason, "message": health.message,
            "lastUpdateTime": now, "lastTransitionTime": since,
        }]}});
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match self.api.patch_status(DEPLOYMENT, &params, &Patch::Strategic(&patch)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::fresh_root;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn a_root_is_healthy_until_a_month_before_its_end_and_says_what_to_do_from_then_on() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (root, key) = fresh_root("cluster.local", now).unwrap();
        let (root, key) = (root.as_bytes(), key.as_bytes());
        let authority = Authority::from_pem(root, key, root, "cluster.local", DAY).unwrap();
        let end = authority.not_after();
        let says = |problem: Option<&str>, at: SystemTime| {
            let health = health(&authority, problem, at);
            (health.status, health.reason, health.message)
        };
        let (status, reason, message) = says(None, now);
        assert_eq!((status, reason), ("True", "RootValid"));
        assert!(message.starts_with("The root signs until 20"), "{message}");
        let (status, reason, message) = says(None, end - 29 * DAY);
        assert_eq!((status, reason), ("False", "RootExpires"));
        assert!(message.contains("add a new one to ca.crt of Secret heddle-root"), "{message}");
        assert_eq!(says(None, end - 29 * DAY), says(None, end - DAY), "nothing new to write each day");
        assert_eq!(says(None, end).1, "RootExpired");
        let (_, reason, message) = says(Some("it has no tls.key"), now);
        assert_eq!(reason, "RootUnusable");
        assert!(message.ends_with("it has no tls.key."), "{message}");
        assert_eq!(says(Some("x"), end).1, "RootExpired", "the worse of two");
    }
}
