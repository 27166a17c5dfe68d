//! The webhook's own certificate. The mesh's authority signs it: all replicas have the same root, so one `caBundle` is right
//! for each of them, and a new certificate needs no new bundle.

use std::{sync::Arc, time::SystemTime};

use rustls::{ServerConfig, crypto::aws_lc_rs};

use crate::{
    ca::{Authority, CurrentAuthority},
    tls::{
        TlsError,
        serving::{ServingTls, due},
    },
};

/// Issues the first certificate, for the names under which the API server reaches a Service. Returns when it must be
/// replaced as well.
///
/// # Errors
/// When the authority cannot sign, or a name is none.
pub fn for_service(
    authority: Arc<CurrentAuthority>,
    service: &str,
    namespace: &str,
    now: SystemTime,
) -> Result<(Arc<ServingTls>, SystemTime), TlsError> {
    let names =
        [format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")].to_vec();
    ServingTls::new(authority, "the webhook's certificate", now, move |authority, now| {
        configure(authority, &names, now)
    })
}

fn configure(
    authority: &Authority,
    names: &[String],
    now: SystemTime,
) -> Result<(Arc<ServerConfig>, SystemTime), TlsError> {
    let (issued, key) = authority.serving_as("Heddle webhook", names, now)?;
    let due = due(&issued);
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(issued.chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), due))
}
