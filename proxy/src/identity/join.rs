//! Obtains the certificate and renews it at two thirds of its life, for as long as the sidecar runs.
//!
//! The first one comes by `Join`, with a token. Later ones by `Renew`, with the certificate that is still good (as
//! directory mode wants it, where the token may be long gone); a control plane that refuses that (in a cluster it
//! may) is asked by `Join` with the token read anew. Each certificate has a key of its own.
//!
//! A discovery stream that is up lives on when the certificate changes: TLS asked for it once. Should the server end
//! a stream because the certificate it began with has expired, the store reconnects at once with the newest.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_api::v1::{self, identity_client::IdentityClient};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tonic::Code;

use super::{
    ControlPlaneConfig, Credentials, CredentialsError, Identity, Trust,
    backoff::{Backoff, Patience},
    control_plane::{self, ConnectError},
    trust::BadTrust,
};

/// For one attempt, connecting included. Less when the certificate has less than twice that to live.
const ATTEMPT: Duration = Duration::from_secs(10);
const SHORTEST_ATTEMPT: Duration = Duration::from_secs(1);
/// A projected service-account token is some 1 to 2 KiB.
const MAX_TOKEN: usize = 64 * 1024;

/// Why there is no (newer) certificate.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The token file cannot be read.
    #[error("cannot read the token file {}: {source}", .path.display())]
    Token {
        /// `--token-file`.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The control plane said no, or nothing.
    #[error("the control plane refused {method} for {pod}: {problem}")]
    Refused {
        /// `Join` or `Renew`.
        method: &'static str,
        /// This pod.
        pod: String,
        /// gRPC's code.
        code: Code,
        /// In the control plane's words, with the code.
        problem: String,
    },
    /// No key or no request could be made.
    #[error("cannot make a key and a certificate request: {0}")]
    Request(#[from] rcgen::Error),
    /// What came is no trust bundle.
    #[error(transparent)]
    Trust(#[from] BadTrust),
    /// What came is no certificate for us.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// It took too long.
    #[error("the control plane did not answer within {0:?}")]
    Timeout(Duration),
}

/// How the next certificate is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Join,
    Renew,
}

impl How {
    /// `failures`: attempts in vain since the last certificate. `refused`: the control plane will not renew.
    fn choose(certificate_is_good: bool, failures: u32, refused: bool) -> Self {
        // After two vain attempts, in turns: the certificate may be what is wrong, or the token.
        if certificate_is_good && !refused && (failures < 2 || failures % 2 == 1) {
            Self::Renew
        } else {
            Self::Join
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Join => "Join",
            Self::Renew => "Renew",
        }
    }
}

/// Joins, then renews for ever.
pub(super) async fn run(config: ControlPlaneConfig, identity: Arc<Identity>) {
    let mut patience = Patience::default();
    loop {
        let credentials = obtain(&config, &identity, &mut patience).await;
        patience.reset();
        let renew_at = renewal(SystemTime::now(), credentials.not_after, fastrand::f64());
        tracing::info!(id = %credentials.id, remaining = ?credentials.remaining(), "certificate obtained");
        identity.publish(credentials);
        sleep_until(renew_at).await;
    }
}

/// Tries until it works.
async fn obtain(config: &ControlPlaneConfig, identity: &Identity, patience: &mut Patience) -> Credentials {
    let mut backoff = Backoff::new();
    let mut failures = 0;
    let mut refused = false;
    loop {
        let current = identity.current();
        let good = current.as_ref().filter(|c| !c.remaining().is_zero());
        let how = How::choose(good.is_some(), failures, refused);
        let attempt = async {
            match (how, good) {
                (How::Renew, Some(credentials)) => renew(config, identity, credentials).await,
                _ => join(config, identity).await,
            }
        };
        let limit = good.map_or(ATTEMPT, |c| (c.remaining() / 2).clamp(SHORTEST_ATTEMPT, ATTEMPT));
        let error = match tokio::time::timeout(limit, attempt).await {
            Ok(Ok(credentials)) => return credentials,
            Ok(Err(error)) => error,
            Err(_) => JoinError::Timeout(limit),
        };
        failures += 1;
        // The server's decision, not the network's: the token may do what the certificate does not.
        let turned_away = how == How::Renew
            && matches!(
                &error,
                JoinError::Refused {
                    code: Code::PermissionDenied
                        | Code::FailedPrecondition
                        | Code::Unauthenticated
                        | Code::Unimplemented,
                    ..
                }
            );
        refused |= turned_away;
        if turned_away {
            // In a cluster it is so at every renewal: no failure while the token is to be tried.
            tracing::debug!(%error, "trying the token instead");
            continue;
        }
        identity.failed(error.to_string());
        if patience.speak() {
            match good {
                None => tracing::warn!(%error, "waiting for the control plane: no certificate yet"),
                Some(c) => {
                    tracing::warn!(%error, remaining = ?c.remaining(), "the certificate is not renewed yet");
                }
            }
        }
        // A certificate of ten seconds leaves three for all attempts, one of a day leaves hours.
        let hurry = good.map_or(Duration::MAX, |c| c.remaining() / 8);
        tokio::time::sleep(backoff.pause_within(hurry)).await;
    }
}

async fn join(config: &ControlPlaneConfig, identity: &Identity) -> Result<Credentials, JoinError> {
    let token_error = |source| JoinError::Token { path: config.token.clone(), source };
    let token = tokio::fs::read_to_string(&config.token).await.map_err(token_error)?;
    let token = token.trim().to_owned();
    if token.is_empty() || token.len() > MAX_TOKEN {
        let problem = format!("{} bytes are no token", token.len());
        return Err(token_error(io::Error::new(io::ErrorKind::InvalidData, problem)));
    }
    let (key, csr) = key_and_request()?;
    let channel = control_plane::connect(config, identity, None).await?;
    let request = v1::JoinRequest { token, pod: config.pod.to_string(), csr: csr.into() };
    let answer = IdentityClient::new(channel).join(request).await.map_err(refused(config, How::Join))?;
    credentials(config, &answer.into_inner(), &key)
}

async fn renew(
    config: &ControlPlaneConfig,
    identity: &Identity,
    current: &Credentials,
) -> Result<Credentials, JoinError> {
    let (key, csr) = key_and_request()?;
    let channel = control_plane::connect(config, identity, Some(current)).await?;
    let request = v1::RenewRequest { csr: csr.into() };
    let answer = IdentityClient::new(channel).renew(request).await.map_err(refused(config, How::Renew))?;
    credentials(config, &answer.into_inner(), &key)
}

fn refused(config: &ControlPlaneConfig, how: How) -> impl Fn(tonic::Status) -> JoinError {
    let pod = config.pod.to_string();
    move |status| JoinError::Refused {
        method: how.as_str(),
        pod: pod.clone(),
        code: status.code(),
        problem: control_plane::words(&status),
    }
}

/// An ECDSA P-256 key and a request that says nothing but its public half: the control plane takes nothing else.
fn key_and_request() -> Result<(KeyPair, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key)?.der().to_vec();
    Ok((key, csr))
}

fn credentials(
    config: &ControlPlaneConfig,
    answer: &v1::Certificate,
    key: &KeyPair,
) -> Result<Credentials, JoinError> {
    let trust = Arc::new(Trust::new(&answer.trust_domain, &answer.roots)?);
    let chain = answer.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    Ok(Credentials::new(chain, key, config.pod.clone(), trust)?)
}

/// When to renew: at two thirds of what is left at the most, up to a fifteenth earlier by chance (0 to 1), so that
/// sidecars that started together do not renew together.
fn renewal(now: SystemTime, not_after: SystemTime, chance: f64) -> SystemTime {
    let left = not_after.duration_since(now).unwrap_or_default();
    now + left.mul_f64(2.0 / 3.0 - chance / 15.0)
}

/// Sleeps by the wall clock, which certificates go by: a machine that was suspended wakes to what is due.
async fn sleep_until(time: SystemTime) {
    const STEP: Duration = Duration::from_secs(30);
    loop {
        let left = time.duration_since(SystemTime::now()).unwrap_or_default();
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(STEP)).await;
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;
    use crate::identity::testing::{Authority, control_plane::ControlPlane};

    fn join(config: &ControlPlaneConfig) -> Arc<Identity> {
        let identity = Arc::new(Identity::new());
        tokio::spawn(run(config.clone(), identity.clone()));
        identity
    }

    /// Waits, without limit of its own, for what a task on this runtime will do.
    async fn until(mut done: impl FnMut() -> bool) {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn a_good_certificate_renews_itself_and_a_token_helps_out() {
        use How::{Join, Renew};
        let choices = |good, refused| [0, 1, 2, 3, 4].map(|failures| How::choose(good, failures, refused));
        assert_eq!(choices(true, false), [Renew, Renew, Join, Renew, Join]);
        assert_eq!(choices(true, true), [Join; 5]);
        assert_eq!(choices(false, false), [Join; 5]);
    }

    #[test]
    fn renewal_comes_at_two_thirds_of_the_life_or_a_little_before() {
        let now = SystemTime::now();
        for (life, chance, expected) in
            [(30, 0.0, 20.0), (30, 1.0, 18.0), (10, 0.0, 20.0 / 3.0), (0, 0.5, 0.0)]
        {
            let renewal = renewal(now, now + Duration::from_secs(life), chance);
            let after = renewal.duration_since(now).unwrap().as_secs_f64();
            assert!((after - expected).abs() < 0.001, "{life} s, {chance}: {after}");
        }
        assert_eq!(renewal(now, now - Duration::from_secs(5), 0.0), now);
    }

    #[tokio::test]
    async fn a_sidecar_joins_with_its_token_and_is_who_the_control_plane_says() {
        let control_plane = ControlPlane::start().await;
        let identity = join(&control_plane.config);
        identity.ready().await;
        let credentials = identity.current().unwrap();
        assert_eq!(credentials.id.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(credentials.trust.roots(), [control_plane.authority.root()]);
        assert_eq!(control_plane.calls(), ["Join first"]);
        assert_eq!(identity.problem(), None);
    }

    #[tokio::test]
    async fn certificates_of_a_few_seconds_follow_each_other_without_a_gap() {
        let control_plane = ControlPlane::start().await;
        control_plane.answer([3, 3, 3600].map(|s| Ok(Duration::from_secs(s))));
        let identity = join(&control_plane.config);
        identity.ready().await;
        let first = identity.current().unwrap();
        until(|| {
            assert!(!identity.current().unwrap().remaining().is_zero(), "a gap");
            control_plane.calls().len() == 3 && identity.current().unwrap().remaining().as_secs() > 60
        })
        .await;
        assert_eq!(control_plane.calls(), ["Join first", "Renew", "Renew"]);
        let keys = [first, identity.current().unwrap()].map(|c| c.key.key.public_key().unwrap().to_vec());
        assert_ne!(keys[0], keys[1], "each certificate has a key of its own");
    }

    #[tokio::test]
    async fn where_renewal_is_refused_the_token_is_read_anew() {
        let control_plane = ControlPlane::start().await;
        let refused = Status::permission_denied("this cluster wants a token");
        control_plane.answer([Ok(Duration::from_secs(3)), Err(refused)]);
        let identity = join(&control_plane.config);
        identity.ready().await;
        std::fs::write(control_plane.file("token"), "second").unwrap();
        until(|| control_plane.calls().len() == 3).await;
        assert_eq!(control_plane.calls(), ["Join first", "Renew", "Join second"]);
        until(|| identity.requests() == (2, 0)).await;
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_the_control_planes_words_until_a_token_does() {
        let control_plane = ControlPlane::start().await;
        control_plane.answer([Err(Status::unauthenticated("the token expired at noon"))]);
        let identity = join(&control_plane.config);
        until(|| identity.problem().is_some()).await;
        let problem = identity.problem().unwrap();
        for part in ["Join", "shop/web-0", "the token expired at noon"] {
            assert!(problem.contains(part), "{part:?} in {problem:?}");
        }
        std::fs::write(control_plane.file("token"), "second").unwrap();
        identity.ready().await;
        assert_eq!(
            (control_plane.calls().last().unwrap().as_str(), identity.problem()),
            ("Join second", None)
        );
    }

    #[tokio::test]
    async fn files_that_are_missing_are_named_and_waited_for() {
        let control_plane = ControlPlane::start().await;
        let (ca, token) = (control_plane.file("ca.pem"), control_plane.file("token"));
        std::fs::remove_file(&ca).unwrap();
        std::fs::remove_file(&token).unwrap();
        let identity = join(&control_plane.config);
        let named = |file: &'static str| {
            let identity = identity.clone();
            async move { until(|| identity.problem().is_some_and(|p| p.contains(file))).await }
        };
        named("token file").await;
        std::fs::write(&token, "\n").unwrap();
        named("0 bytes are no token").await;
        std::fs::write(&token, "first").unwrap();
        named("CA file").await;
        std::fs::write(&ca, "not PEM").unwrap();
        named("no CERTIFICATE block").await;
        std::fs::write(&ca, control_plane.authority.root_pem()).unwrap();
        identity.ready().await;
    }

    #[tokio::test]
    async fn a_control_plane_of_another_authority_gets_no_token() {
        let control_plane = ControlPlane::start().await;
        std::fs::write(control_plane.file("ca.pem"), Authority::new("cluster.local").root_pem()).unwrap();
        let identity = join(&control_plane.config);
        until(|| identity.problem().is_some()).await;
        let problem = identity.problem().unwrap();
        assert!(problem.contains("cannot connect") && problem.contains("certificate"), "{problem}");
        assert!(control_plane.calls().is_empty());
    }

    #[tokio::test]
    async fn a_certificate_of_another_key_or_authority_is_not_taken() {
        let control_plane = ControlPlane::start().await;
        let (key, csr) = key_and_request().unwrap();
        let names = || vec![rcgen::SanType::URI("spiffe://cluster.local/ns/shop/sa/web".try_into().unwrap())];
        let answer = |authority: &Authority| v1::Certificate {
            chain: vec![authority.certify(&csr, names(), Duration::from_secs(60)).to_vec().into()],
            roots: vec![control_plane.authority.root().to_vec().into()],
            trust_domain: "cluster.local".to_owned(),
            ..v1::Certificate::default()
        };
        assert!(credentials(&control_plane.config, &answer(&control_plane.authority), &key).is_ok());
        let foreign = credentials(&control_plane.config, &answer(&Authority::new("cluster.local")), &key);
        assert!(matches!(foreign, Err(JoinError::Credentials(CredentialsError::Certificate(_)))));
        let other_key = KeyPair::generate().unwrap();
        let mismatch = credentials(&control_plane.config, &answer(&control_plane.authority), &other_key);
        assert!(matches!(mismatch, Err(JoinError::Credentials(CredentialsError::Tls(_)))));
        let empty = v1::Certificate { chain: vec![], ..answer(&control_plane.authority) };
        assert!(credentials(&control_plane.config, &empty, &key).is_err());
    }
}
