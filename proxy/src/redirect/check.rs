//! Whether the redirect rules are there, seen from the sidecar. A pod's rules can be gone after a restored checkpoint,
//! or where somebody flushed them; then traffic would pass by the mesh unseen.
//!
//! The sidecar may not list rules: that takes `CAP_NET_ADMIN`. But among them is one for itself alone, which leads its
//! connection to port 15009 of loopback, where nobody listens, to its port 15020. So it asks there for a word that only
//! it knows. Rules come and go as one table, so one rule stands for all.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::anyhow;
use heddle_api::ports;
use tokio::time::{sleep, timeout};

use crate::{
    admin::Token,
    probe::http::{self, Target},
};

/// Where the sidecar answers with its word.
pub const PAGE: &str = "/redirect-check";
/// Between looks while all is well: one connection on loopback.
const CALM: Duration = Duration::from_secs(5);
/// Between looks while the rules are missing.
const ALERT: Duration = Duration::from_secs(1);
/// In which the word must be there.
const PATIENCE: Duration = Duration::from_secs(2);
/// Looks in a row without it before a sidecar that was ready is not any more: a busy machine may miss one.
const STRIKES: u32 = 2;

/// A word that is one process's alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance(String);

impl Instance {
    /// A new one: 128 random bits.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new() -> anyhow::Result<Self> {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow!("the system has no random numbers"))?;
        Ok(Self(format!("{:032x}", u128::from_ne_bytes(bytes))))
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Looks for ever, and tells readiness.
pub async fn watch(rules: Token, instance: Instance) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::REDIRECT_CHECK));
    // Until they were seen for the first time, nothing is ready anyway.
    let mut misses = STRIKES;
    let mut seen = false;
    loop {
        match look(address, &instance).await {
            Ok(()) => {
                if misses > 0 {
                    tracing::info!("the pod's traffic is redirected to this sidecar");
                    rules.ready();
                }
                (misses, seen) = (0, true);
            }
            Err(reason) => {
                misses = misses.saturating_add(1);
                if misses >= STRIKES {
                    let reason = complaint(&reason);
                    rules.not_ready(&reason);
                    // Once, and then each minute.
                    if misses == STRIKES || (misses - STRIKES) % 60 == 1 {
                        tracing::error!(seen_before = seen, "{reason}");
                    }
                }
            }
        }
        sleep(if misses == 0 { CALM } else { ALERT }).await;
    }
}

fn complaint(reason: &str) -> String {
    format!(
        "the netfilter rules that lead this pod's traffic through its sidecar are missing, so traffic passes by the mesh \
         ({reason}). `heddle-proxy redirect` writes them, in Kubernetes as the init container heddle-redirect: replace the pod"
    )
}

async fn look(address: SocketAddr, instance: &Instance) -> Result<(), String> {
    let get = http::get(Target { address, https: None }, PAGE);
    let answer =
        timeout(PATIENCE, get).await.map_err(|_| format!("{address}: no answer within {PATIENCE:?}"))?;
    let answer = answer?;
    if answer.body != instance.to_string().as_bytes() {
        return Err(format!("{address}: somebody else answered"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// What `look` makes of an answer with this body.
    async fn look_at(body: String, instance: &Instance) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut io, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let read = io.read(&mut head).await.unwrap();
            assert!(head[..read].starts_with(b"GET /redirect-check HTTP/1.1\r\n"));
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            io.write_all(answer.as_bytes()).await.unwrap();
        });
        let looked = look(address, instance).await;
        server.await.unwrap();
        looked
    }

    #[tokio::test]
    async fn only_this_sidecars_own_word_shows_that_the_rules_are_there() {
        let instance = Instance::new().unwrap();
        assert_eq!(look_at(instance.to_string(), &instance).await, Ok(()));
        let other = Instance::new().unwrap();
        assert!(look_at(other.to_string(), &instance).await.unwrap_err().contains("somebody else"));
    }

    #[tokio::test]
    async fn where_nobody_listens_the_rules_are_missing() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = look(address, &Instance::new().unwrap()).await.unwrap_err();
        assert!(error.contains("refused"), "{error}");
    }
}
