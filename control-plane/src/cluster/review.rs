//! TokenReview: asks the API server whose a projected service-account token is.
//!
//! The kubelet binds such a token to its pod; the API server says to which (`authentication.kubernetes.io/pod-name` and
//! `pod-uid`), and refuses it once that pod is gone.

use std::time::Duration;

use heddle_api::identity::TOKEN_AUDIENCE;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{Api, Client, api::PostParams};
use tokio::sync::Semaphore;

use crate::token::Bearer;

/// Reviews at once: a cluster that starts whole must not take the API server down with it.
const REVIEWS: usize = 64;
/// A review, the wait for its turn included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest token that is sent on, in bytes.
const MAX_BYTES: usize = 16 * 1024;
const SUBJECT: &str = "system:serviceaccount:";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Why a token proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The API server gave no answer, or does not let this control plane ask.
    #[error("the API server could not be asked about the token: {0}")]
    Unavailable(String),
    /// The API server does not take it: forged, expired, for another audience, of a pod that is gone.
    #[error(
        "the API server refuses the token: {0}; it must be a projected one for the audience {TOKEN_AUDIENCE}"
    )]
    Refused(String),
    /// It cannot be a service account's token.
    #[error("the token is malformed: {0}")]
    Malformed(String),
    /// It is of a service account, but of no pod.
    #[error("the token is not bound to a pod: use a projected volume (serviceAccountToken), not a Secret")]
    Unbound,
}

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reviewed {
    /// The service account.
    pub bearer: Bearer,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
}

/// Asks the API server.
pub struct TokenReviewer {
    api: Api<TokenReview>,
    turns: Semaphore,
}

impl TokenReviewer {
    /// Asks through `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { api: Api::all(client), turns: Semaphore::new(REVIEWS) }
    }

    /// Whose a token is.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub async fn review(&self, token: &str) -> Result<Reviewed, ReviewError> {
        let token = token.trim();
        if token.is_empty() || token.len() > MAX_BYTES {
            return Err(ReviewError::Malformed(format!("{} bytes", token.len())));
        }
        let spec =
            TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let ask = async {
            let _turn = self.turns.acquire().await;
            self.api.create(&PostParams::default(), &review).await
        };
        match tokio::time::timeout(TIMEOUT, ask).await {
            Ok(Ok(review)) => read(review),
            Ok(Err(error)) => Err(ReviewError::Unavailable(error.to_string())),
            Err(_) => Err(ReviewError::Unavailable(format!("no answer in {TIMEOUT:?}"))),
        }
    }
}

fn read(review: TokenReview) -> Result<Reviewed, ReviewError> {
    let status = review.status.unwrap_or_default();
    if status.authenticated != Some(true) {
        return Err(ReviewError::Refused(
            status.error.unwrap_or_else(|| "it is not authenticated".to_owned()),
        ));
    }
    // An authenticator that knows nothing of audiences names none: its word is not about ours.
    if !status.audiences.iter().flatten().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(ReviewError::Refused("it is for another audience".to_owned()));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let (namespace, service_account) = name
        .strip_prefix(SUBJECT)
        .and_then(|names| names.split_once(':'))
        .ok_or_else(|| ReviewError::Malformed(format!("it is of {name:?}, which is no service account")))?;
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Ok(value.clone()),
        _ => Err(ReviewError::Unbound),
    };
    Ok(Reviewed {
        bearer: Bearer { namespace: namespace.to_owned(), service_account: service_account.to_owned() },
        pod: one(POD_NAME)?,
        uid: one(POD_UID)?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn review(status: &Value) -> Result<Reviewed, ReviewError> {
        read(serde_json::from_value(json!({"metadata": {}, "spec": {}, "status": status})).unwrap())
    }

    fn good() -> Value {
        json!({"authenticated": true, "audiences": ["heddle.dev"], "user": {
            "username": "system:serviceaccount:shop:web",
            "extra": {POD_NAME: ["web-0"], POD_UID: ["u-1"]}}})
    }

    #[test]
    fn a_bound_token_speaks_for_its_pod_alone() {
        let found = review(&good()).unwrap();
        assert_eq!((found.bearer.namespace.as_str(), found.bearer.service_account.as_str()), ("shop", "web"));
        assert_eq!((found.pod.as_str(), found.uid.as_str()), ("web-0", "u-1"));
    }

    #[test]
    fn what_the_api_server_does_not_vouch_for_proves_nothing() {
        let with = |path: &str, value: Value| {
            let mut status = good();
            *status.pointer_mut(path).unwrap() = value;
            review(&status).unwrap_err()
        };
        assert!(matches!(with("/authenticated", json!(false)), ReviewError::Refused(_)));
        assert!(matches!(
            with("/audiences", json!(["https://kubernetes.default.svc"])),
            ReviewError::Refused(_)
        ));
        assert!(matches!(with("/audiences", Value::Null), ReviewError::Refused(_)));
        assert!(matches!(with("/user/username", json!("system:admin")), ReviewError::Malformed(_)));
        assert!(matches!(with("/user/extra", json!({})), ReviewError::Unbound));
        assert!(matches!(with("/user/extra", json!({POD_NAME: ["web-0"]})), ReviewError::Unbound));
        assert!(matches!(review(&Value::Null), Err(ReviewError::Refused(_))));
    }
}
