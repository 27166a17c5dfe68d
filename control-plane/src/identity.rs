//! Who may have which certificate: `Join` with a token, `Renew` with the current certificate.
//!
//! Either way the pod must be known to the mesh, carry the sidecar's annotation, and run as the service account that
//! the caller has proven. The leaf says what the mesh knows of the pod, never what the caller wrote.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use heddle_api::{
    SIDECAR_ANNOTATION,
    identity::{PodName, SpiffeId},
    v1::{self, identity_server::Identity},
};
use tonic::{Request, Response, Status};

use crate::{
    ca::{CaError, CurrentAuthority},
    cluster::review::{ReviewError, TokenReviewer},
    hub::Hub,
    metrics::{Metrics, Refused},
    tls::Caller,
    token::{Bearer, TokenAuthority, TokenError},
};

/// How long a request waits for the first reading of the objects.
const SYNC_TIMEOUT: Duration = Duration::from_secs(1);

/// Why somebody got no certificate.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Review(#[from] ReviewError),
    #[error("the token is of pod {token}, and --pod says {pod}")]
    OtherPod { token: PodName, pod: PodName },
    #[error(
        "the token is of an instance of Pod {pod} with the uid {token}, and the Pod has {}: it was replaced, or its newer state has not come here yet", actual.as_deref().unwrap_or("none")
    )]
    Uid { pod: PodName, token: String, actual: Option<String> },
    #[error("in a cluster a certificate is renewed by Join with the service-account token")]
    RenewByToken,
    #[error("pod {0}")]
    PodName(String),
    #[error("the control plane has not read its objects yet: try again in a moment")]
    NotSynced,
    #[error(
        "the token is of namespace {token:?}, the pod {pod} is not: use a token made with --namespace {}", pod.namespace
    )]
    Namespace { token: String, pod: PodName },
    #[error("there is no Pod {0}: add it to the manifests, or correct --pod")]
    NoPod(PodName),
    #[error("Pod {0} is not meshed: annotate it with {SIDECAR_ANNOTATION}: \"true\"")]
    NotMeshed(PodName),
    #[error(
        "Pod {0} has finished: its status.phase is Succeeded or Failed, so nobody speaks for it any more"
    )]
    Finished(PodName),
    #[error(
        "Pod {pod} has serviceAccountName {actual:?}, but {proven:?} was proven: use a token made with \
         --service-account {actual}, or correct the Pod"
    )]
    ServiceAccount { pod: PodName, actual: String, proven: String },
    #[error("the service account of Pod {0} makes no SPIFFE ID: {1}")]
    Id(PodName, String),
    #[error(transparent)]
    Authority(#[from] CaError),
}

impl Refusal {
    /// How it is told to the sidecar, and counted.
    fn status(&self) -> (Refused, Status) {
        let text = self.to_string();
        match self {
            Self::Token(TokenError::Malformed(_)) => (Refused::MalformedToken, Status::unauthenticated(text)),
            Self::Token(TokenError::Expired { .. }) => (Refused::ExpiredToken, Status::unauthenticated(text)),
            Self::Token(TokenError::ForeignAuthority { .. } | TokenError::ForeignAudience(_)) => {
                (Refused::ForeignToken, Status::unauthenticated(text))
            }
            Self::Token(TokenError::Forged | TokenError::BadName(_) | TokenError::Signing(_)) => {
                (Refused::ForgedToken, Status::unauthenticated(text))
            }
            Self::PodName(_) | Self::Authority(CaError::Csr(_)) => {
                (Refused::BadRequest, Status::invalid_argument(text))
            }
            Self::Review(ReviewError::Unavailable(_)) => {
                (Refused::ReviewUnavailable, Status::unavailable(text))
            }
            Self::Review(ReviewError::Refused(_)) => (Refused::ForgedToken, Status::unauthenticated(text)),
            Self::Review(ReviewError::Malformed(_) | ReviewError::Unbound) => {
                (Refused::MalformedToken, Status::unauthenticated(text))
            }
            Self::OtherPod { .. } => (Refused::ForeignPod, Status::permission_denied(text)),
            // The watch may be behind the kubelet: the sidecar tries again.
            Self::Uid { .. } => (Refused::ForeignPod, Status::failed_precondition(text)),
            Self::RenewByToken => (Refused::RenewByToken, Status::failed_precondition(text)),
            Self::NotSynced => (Refused::NotSynced, Status::unavailable(text)),
            Self::Namespace { .. } | Self::ServiceAccount { .. } => {
                (Refused::ForeignPod, Status::permission_denied(text))
            }
            Self::Finished(_) => (Refused::NoPod, Status::failed_precondition(text)),
            Self::NoPod(_) => (Refused::NoPod, Status::not_found(text)),
            Self::NotMeshed(_) => (Refused::NotMeshed, Status::failed_precondition(text)),
            Self::Id(..) => (Refused::BadRequest, Status::failed_precondition(text)),
            // What is wrong with the state directory is the operator's business, not the caller's.
            Self::Authority(_) => (
                Refused::Internal,
                Status::internal("the certificate could not be signed: see the control plane's log"),
            ),
        }
    }
}

/// Who says whom a token speaks for.
pub enum Verifier {
    /// This control plane, which signed it.
    JoinToken(TokenAuthority),
    /// The cluster's API server.
    TokenReview(TokenReviewer),
}

/// Whom a token speaks for.
struct Proven {
    bearer: Bearer,
    /// The pod and its uid, where the token is bound to one.
    pod: Option<(PodName, String)>,
}

impl Verifier {
    async fn verify(&self, token: &str, now: SystemTime) -> Result<Proven, Refusal> {
        match self {
            Self::JoinToken(tokens) => Ok(Proven { bearer: tokens.verify(token, now)?, pod: None }),
            Self::TokenReview(reviewer) => {
                let found = reviewer.review(token).await?;
                let pod = PodName { namespace: found.bearer.namespace.clone(), name: found.pod };
                Ok(Proven { bearer: found.bearer, pod: Some((pod, found.uid)) })
            }
        }
    }
}

/// The gRPC service `heddle.v1.Identity`.
pub struct IdentityService {
    hub: Arc<Hub>,
    authority: Arc<CurrentAuthority>,
    verifier: Verifier,
    metrics: Arc<Metrics>,
}

impl IdentityService {
    /// Puts it together.
    #[must_use]
    pub const fn new(
        hub: Arc<Hub>,
        authority: Arc<CurrentAuthority>,
        verifier: Verifier,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { hub, authority, verifier, metrics }
    }

    async fn join_at(&self, request: &v1::JoinRequest, now: SystemTime) -> Result<v1::Certificate, Refusal> {
        let proven = self.verifier.verify(&request.token, now).await?;
        let pod: PodName = request.pod.parse().map_err(Refusal::PodName)?;
        if proven.bearer.namespace != pod.namespace {
            return Err(Refusal::Namespace { token: proven.bearer.namespace, pod });
        }
        let uid = match proven.pod {
            Some((token, _)) if token != pod => return Err(Refusal::OtherPod { token, pod }),
            Some((_, uid)) => Some(uid),
            None => None,
        };
        self.certify(&proven.bearer, uid, &pod, &request.csr, now).await
    }

    /// Signs for a pod whose service account the caller has proven, and whose uid where there is one.
    async fn certify(
        &self,
        proven: &Bearer,
        uid: Option<String>,
        pod: &PodName,
        csr: &[u8],
        now: SystemTime,
    ) -> Result<v1::Certificate, Refusal> {
        // After a restart the objects are there in a moment; that is quicker than trying again.
        tokio::time::timeout(SYNC_TIMEOUT, self.hub.synced()).await.map_err(|_| Refusal::NotSynced)?;
        let facts = self.hub.pod(pod).ok_or_else(|| Refusal::NoPod(pod.clone()))?;
        if !facts.meshed {
            return Err(Refusal::NotMeshed(pod.clone()));
        }
        if facts.finished {
            return Err(Refusal::Finished(pod.clone()));
        }
        if let Some(token) = uid.filter(|uid| facts.uid.as_ref() != Some(uid)) {
            return Err(Refusal::Uid { pod: pod.clone(), token, actual: facts.uid });
        }
        if facts.service_account != proven.service_account {
            return Err(Refusal::ServiceAccount {
                pod: pod.clone(),
                actual: facts.service_account,
                proven: proven.service_account.clone(),
            });
        }
        let authority = self.authority.load();
        let id = SpiffeId::new(authority.trust_domain(), &pod.namespace, &facts.service_account)
            .map_err(|error| Refusal::Id(pod.clone(), error.to_string()))?;
        let issued = authority.workload(csr, &id, pod, now)?;
        let bytes = |der: &[u8]| Bytes::copy_from_slice(der);
        Ok(v1::Certificate {
            chain: issued.chain.iter().map(|der| bytes(der)).collect(),
            roots: authority.roots().iter().map(|der| bytes(der)).collect(),
            not_before: unix(issued.not_before),
            not_after: unix(issued.not_after),
            trust_domain: authority.trust_domain().to_owned(),
        })
    }

    /// Counts, logs and answers.
    fn finish(
        &self,
        what: &'static str,
        pod: &str,
        caller: &Caller,
        outcome: Result<v1::Certificate, Refusal>,
    ) -> Result<Response<v1::Certificate>, Status> {
        match outcome {
            Ok(certificate) => {
                self.metrics.certificates.inc();
                tracing::debug!(pod, address = %caller.address, not_after = certificate.not_after, "{what}: signed");
                Ok(Response::new(certificate))
            }
            Err(refusal) => {
                let (reason, status) = refusal.status();
                self.metrics.refused(reason);
                tracing::warn!(pod, address = %caller.address, reason = %refusal, "{what}: refused");
                Err(status)
            }
        }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::Certificate>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let pod: String = request.pod.chars().take(320).collect();
        self.finish("join", &pod, &caller, self.join_at(&request, SystemTime::now()).await)
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::Certificate>, Status> {
        let caller = Caller::of(&request)?;
        let peer = caller.identified(&self.metrics)?;
        let proven = Bearer {
            namespace: peer.id.namespace().to_owned(),
            service_account: peer.id.service_account().to_owned(),
        };
        let outcome = match self.verifier {
            Verifier::TokenReview(_) => Err(Refusal::RenewByToken),
            Verifier::JoinToken(_) => {
                self.certify(&proven, None, &peer.pod, &request.get_ref().csr, SystemTime::now()).await
            }
        };
        self.finish("renew", &peer.pod.to_string(), &caller, outcome)
    }
}

fn unix(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
