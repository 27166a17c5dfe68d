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

/// For one attempt, connecting included.
const ATTEMPT: Duration = Duration::from_secs(10);
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
    #[error("the control plane refused {method} for {pod}: {problem} ({code:?})")]
    Refused {
        /// `Join` or `Renew`.
        method: &'static str,
        /// This pod.
        pod: String,
        /// gRPC's code.
        code: Code,
        /// In the control plane's words.
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
    #[error("the control plane did not answer within {} s", ATTEMPT.as_secs())]
    Timeout,
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
        let error = match tokio::time::timeout(ATTEMPT, attempt).await {
            Ok(Ok(credentials)) => return credentials,
            Ok(Err(error)) => error,
            Err(_) => JoinError::Timeout,
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
        identity.set_problem(Some(error.to_string()));
        if turned_away {
            tracing::debug!(%error, "trying the token instead");
            continue;
        }
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
        problem: control_plane::causes(&status),
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
