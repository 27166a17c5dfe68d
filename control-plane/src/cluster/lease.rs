//! Who leads among the replicas: a `coordination.k8s.io` Lease, as client-go's leader election keeps it.
//!
//! Another's lease is judged by how long we have seen it unchanged, on our own clock: clocks of machines differ. The
//! leader stops leading before anyone else may begin.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// The Lease's name.
pub const NAME: &str = "heddle-control-plane";
/// Unchanged for so long, it is anyone's.
const DURATION: Duration = Duration::from_secs(15);
/// Without a renewal for so long, the leader stops leading. It looks only between questions, so [`PERIOD`] and [`TIMEOUT`] may
/// come on top, and all three must be over before [`DURATION`] is.
const DEADLINE: Duration = Duration::from_secs(8);
/// An answer is waited for so long: a renewal that hangs must not keep the leader leading.
const TIMEOUT: Duration = Duration::from_secs(4);
/// How often it is renewed, or looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// Takes part in the election until told to stop; `leading` says whether this replica leads.
pub async fn run(
    client: Client,
    namespace: &str,
    identity: String,
    leading: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let mut election = Election { api: Api::namespaced(client, namespace), identity, observed: None };
    let mut renewed: Option<Instant> = None;
    loop {
        let began = Instant::now();
        let outcome = tokio::time::timeout(TIMEOUT, election.step()).await;
        match outcome {
            Ok(Ok(true)) => renewed = Some(began),
            Ok(Ok(false)) => renewed = None,
            Ok(Err(error)) => tracing::debug!(%error, "the lease could not be read or written"),
            Err(_) => tracing::debug!("no answer about the lease"),
        }
        let leads = renewed.is_some_and(|at| at.elapsed() < DEADLINE);
        if leading.send_if_modified(|led| std::mem::replace(led, leads) != leads) {
            let identity = &election.identity;
            if leads {
                tracing::info!(%identity, "leading: this replica writes status");
            } else {
                tracing::warn!(%identity, "not leading any more");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => break,
        }
    }
    if leading.send_replace(false) {
        // Somebody else may begin at once.
        let _released = tokio::time::timeout(PERIOD, election.release()).await;
    }
}

struct Election {
    api: Api<Lease>,
    identity: String,
    /// Another's lease, and since when we see it like this.
    observed: Option<(LeaseSpec, Instant)>,
}

/// What is to be done about a lease.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Renew,
    TakeOver,
    Wait,
}

impl Election {
    /// One look; whether we lead.
    async fn step(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(NAME).await? else {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(None)) };
            return written(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let now = Instant::now();
        if self.observed.as_ref().is_none_or(|(seen, _)| *seen != spec) {
            self.observed = Some((spec.clone(), now));
        }
        let since = self.observed.as_ref().map_or(now, |(_, since)| *since);
        match decide(&spec, &self.identity, now - since) {
            Step::Wait => Ok(false),
            step => {
                let former = (step == Step::Renew).then_some(&spec);
                let mut next = self.spec(former);
                if step == Step::TakeOver {
                    next.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
                }
                lease.spec = Some(next);
                // The resource version in it makes one of two win.
                written(self.api.replace(NAME, &PostParams::default(), &lease).await)
            }
        }
    }

    fn spec(&self, former: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            acquire_time: former.and_then(|spec| spec.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(former.and_then(|spec| spec.lease_transitions).unwrap_or(0)),
            ..LeaseSpec::default()
        }
    }

    async fn release(&mut self) -> Result<(), kube::Error> {
        let mut lease = self.api.get(NAME).await?;
        if let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_ref() == Some(&self.identity)
        {
            spec.holder_identity = Some(String::new());
            written(self.api.replace(NAME, &PostParams::default(), &lease).await)?;
        }
        Ok(())
    }
}

/// Whether a write came through; that somebody else was quicker is no error.
fn written(outcome: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match outcome {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn decide(spec: &LeaseSpec, identity: &str, unchanged: Duration) -> Step {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let duration = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
    if holder == identity {
        Step::Renew
    } else if holder.is_empty() || unchanged >= Duration::from_secs(duration) {
        Step::TakeOver
    } else {
        Step::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_anyones_once_it_was_not_renewed_for_its_duration_as_we_saw_it() {
        let spec = |holder: &str| LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            // A clock that is years behind changes nothing.
            renew_time: Some(MicroTime(Timestamp::UNIX_EPOCH)),
            ..LeaseSpec::default()
        };
        let seconds = Duration::from_secs;
        assert_eq!(decide(&spec("a"), "a", seconds(100)), Step::Renew);
        assert_eq!(decide(&spec("b"), "a", seconds(14)), Step::Wait);
        assert_eq!(decide(&spec("b"), "a", seconds(15)), Step::TakeOver);
        assert_eq!(decide(&spec(""), "a", seconds(0)), Step::TakeOver);
    }

    #[test]
    fn a_leader_that_cannot_renew_stops_before_another_begins() {
        assert!(DEADLINE + PERIOD + TIMEOUT < DURATION && PERIOD + TIMEOUT < DEADLINE);
    }
}
