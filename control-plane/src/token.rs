//! Join tokens of the directory mode: who holds one may join as its service account until it expires.
//!
//! A token is a JWT (RFC 7519), ES256, shaped as Kubernetes' own service-account tokens: `sub` is
//! `system:serviceaccount:NAMESPACE:NAME`, `aud` is `heddle.dev`. The issuer names the signing key by its
//! fingerprint, so a token of another authority is told from a forged one.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use heddle_api::identity::{SpiffeId, TOKEN_AUDIENCE};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::ca::{CaError, files};

/// The signing key, PEM, in the state directory.
pub const KEY_FILE: &str = "token-key.pem";
/// The longest life of a token.
pub const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// The longest token that is read, in bytes.
const MAX_BYTES: usize = 8192;
const SUBJECT: &str = "system:serviceaccount:";

/// Why a token was refused or could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a JWT with the claims that a join token has.
    #[error("the join token is malformed ({0}): give the output of `heddle-control-plane token` unchanged")]
    Malformed(String),
    /// It names another issuer than this authority.
    #[error(
        "the join token is foreign: {issuer:?} issued it, and this control plane is {ours:?}; make one with this \
         control plane's --state-dir"
    )]
    ForeignAuthority {
        /// Who issued it, by its own word.
        issuer: String,
        /// This authority.
        ours: String,
    },
    /// It is ours but meant for somebody else.
    #[error("the join token is foreign: it is for the audience {0:?}, not {TOKEN_AUDIENCE:?}")]
    ForeignAudience(String),
    /// It names this authority, whose key did not sign it.
    #[error("the join token is forged: its signature is not of this control plane's key")]
    Forged,
    /// Its time is over.
    #[error("the join token expired {ago} ago: make a new one with `heddle-control-plane token`")]
    Expired {
        /// How long ago, for people.
        ago: String,
    },
    /// A name that no token can carry.
    #[error("{0:?} is not a name of a namespace or service account")]
    BadName(String),
    /// The library could not sign.
    #[error("signing the token failed: {0}")]
    Signing(String),
}

/// Whom a token speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// The namespace.
    pub namespace: String,
    /// The service account within it.
    pub service_account: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    /// Seconds since the Unix epoch, as `exp`.
    iat: u64,
    exp: u64,
}

/// The key that makes and checks join tokens.
pub struct TokenAuthority {
    issuer: String,
    signing: EncodingKey,
    verifying: DecodingKey,
}

impl TokenAuthority {
    /// Opens the token key in `dir`, and makes it there first where there is none.
    ///
    /// # Errors
    /// When the key's file cannot be read, written or used.
    pub fn open(dir: &Path) -> Result<Self, CaError> {
        let path = dir.join(KEY_FILE);
        let key = files::key(&path)?;
        let unusable = |error: jsonwebtoken::errors::Error| CaError::Content {
            path: path.clone(),
            problem: format!("the token library refuses the key: {error}"),
        };
        let fingerprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.public_key_raw());
        Ok(Self {
            issuer: format!("heddle:{}", crate::hub::hex(&fingerprint.as_ref()[..16])),
            signing: EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).map_err(unusable)?,
            verifying: DecodingKey::from_ec_pem(key.public_key_pem().as_bytes()).map_err(unusable)?,
        })
    }

    /// Makes a token for a service account, good from `now` for `ttl`.
    ///
    /// # Errors
    /// When a name is none.
    pub fn mint(
        &self,
        namespace: &str,
        service_account: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<String, TokenError> {
        for name in [namespace, service_account] {
            SpiffeId::new("x", name, name).map_err(|_| TokenError::BadName(name.to_owned()))?;
        }
        let iat = unix(now);
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: format!("{SUBJECT}{namespace}:{service_account}"),
            aud: TOKEN_AUDIENCE.to_owned(),
            iat,
            exp: iat.saturating_add(ttl.as_secs()),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.signing)
            .map_err(|error| TokenError::Signing(error.to_string()))
    }

    /// Checks a token and says for whom it speaks.
    ///
    /// # Errors
    /// Which of malformed, foreign, forged and expired it is.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Bearer, TokenError> {
        if token.len() > MAX_BYTES {
            return Err(TokenError::Malformed(format!("{} bytes", token.len())));
        }
        let token = token.trim();
        let malformed = |error: jsonwebtoken::errors::Error| TokenError::Malformed(error.to_string());
        jsonwebtoken::decode_header(token).map_err(malformed)?;
        let claimed: Claims = jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(malformed)?;
        if claimed.iss != self.issuer {
            return Err(TokenError::ForeignAuthority { issuer: claimed.iss, ours: self.issuer.clone() });
        }
        // The library checks the signature; the claims are checked below, each with its own error and against `now`.
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation)
            .map_err(|_| TokenError::Forged)?
            .claims;
        if claims.aud != TOKEN_AUDIENCE {
            return Err(TokenError::ForeignAudience(claims.aud));
        }
        let now = unix(now);
        if claims.exp <= now {
            let ago = Duration::from_secs(now - claims.exp);
            return Err(TokenError::Expired { ago: humantime::format_duration(ago).to_string() });
        }
        let subject = claims.sub.strip_prefix(SUBJECT).and_then(|names| names.split_once(':'));
        let (namespace, service_account) =
            subject.ok_or_else(|| TokenError::Malformed(format!("subject {:?}", claims.sub)))?;
        Ok(Bearer { namespace: namespace.to_owned(), service_account: service_account.to_owned() })
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn authority() -> (tempfile::TempDir, TokenAuthority) {
        let dir = tempfile::tempdir().unwrap();
        let authority = TokenAuthority::open(dir.path()).unwrap();
        (dir, authority)
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    #[test]
    fn a_token_speaks_for_its_service_account_also_after_a_restart() {
        let (dir, authority) = authority();
        let token = authority.mint("shop", "web", HOUR, now()).unwrap();
        let again = TokenAuthority::open(dir.path()).unwrap();
        let bearer = again.verify(&token, now()).unwrap();
        assert_eq!((bearer.namespace.as_str(), bearer.service_account.as_str()), ("shop", "web"));
    }

    #[test]
    fn a_token_is_good_until_its_last_second_and_not_longer() {
        let (_dir, authority) = authority();
        let token = authority.mint("shop", "web", HOUR, now()).unwrap();
        assert!(authority.verify(&token, now() + HOUR - Duration::from_secs(1)).is_ok());
        assert!(matches!(authority.verify(&token, now() + HOUR), Err(TokenError::Expired { .. })));
    }

    #[test]
    fn a_token_of_another_authority_is_foreign() {
        let ((_dir, ours), (_other_dir, theirs)) = (authority(), authority());
        let token = theirs.mint("shop", "web", HOUR, now()).unwrap();
        assert!(matches!(ours.verify(&token, now()), Err(TokenError::ForeignAuthority { .. })));
    }

    #[test]
    fn a_token_that_claims_our_name_with_another_key_is_forged() {
        let ((_dir, ours), (_other_dir, mut theirs)) = (authority(), authority());
        theirs.issuer.clone_from(&ours.issuer);
        let token = theirs.mint("shop", "web", HOUR, now()).unwrap();
        assert_eq!(ours.verify(&token, now()), Err(TokenError::Forged));
    }

    #[test]
    fn a_token_without_signature_or_with_a_symmetric_one_is_never_taken() {
        let (_dir, ours) = authority();
        let claims = Claims {
            iss: ours.issuer.clone(),
            sub: "system:serviceaccount:shop:web".to_owned(),
            aud: TOKEN_AUDIENCE.to_owned(),
            iat: 0,
            exp: u64::MAX,
        };
        let secret = EncodingKey::from_secret(ours.issuer.as_bytes());
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &secret).unwrap();
        assert_eq!(ours.verify(&token, now()), Err(TokenError::Forged));
        let body = token.split('.').nth(1).unwrap();
        // {"alg":"none"}
        let none = format!("eyJhbGciOiJub25lIn0.{body}.");
        assert!(ours.verify(&none, now()).is_err());
    }

    #[test]
    fn a_token_for_another_audience_is_foreign() {
        let (_dir, ours) = authority();
        let claims = Claims {
            iss: ours.issuer.clone(),
            sub: "system:serviceaccount:shop:web".to_owned(),
            aud: "elsewhere".to_owned(),
            iat: 0,
            exp: u64::MAX,
        };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &ours.signing).unwrap();
        assert_eq!(ours.verify(&token, now()), Err(TokenError::ForeignAudience("elsewhere".to_owned())));
    }

    #[test]
    fn what_is_no_token_is_malformed() {
        let (_dir, ours) = authority();
        for text in ["", "hello", "a.b.c", "..", &"x".repeat(MAX_BYTES + 1)] {
            assert!(matches!(ours.verify(text, now()), Err(TokenError::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn a_token_needs_names_that_an_identity_can_carry() {
        let (_dir, ours) = authority();
        for (namespace, account) in [("", "web"), ("shop", "we:b"), ("sh/op", "web")] {
            assert!(matches!(ours.mint(namespace, account, HOUR, now()), Err(TokenError::BadName(_))));
        }
    }
}
