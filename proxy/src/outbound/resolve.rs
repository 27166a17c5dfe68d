//! Names outside the mesh, by DNS.

use std::{cell::OnceCell, fmt, net::SocketAddr, time::Duration};

use hickory_resolver::TokioResolver;

/// The longest that one name may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The system's resolver (`/etc/resolv.conf`, `/etc/hosts`), made at the first use; a worker's own, since its
/// background tasks live on the worker's runtime.
#[derive(Default)]
pub struct Resolver(OnceCell<TokioResolver>);

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl Resolver {
    /// The addresses of a host, at least one, with the port put in.
    ///
    /// # Errors
    /// A sentence that says why there is none.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        let resolver = self.system()?;
        let found = tokio::time::timeout(TIMEOUT, resolver.lookup_ip(host))
            .await
            .map_err(|_| format!("no answer from DNS for {host} in {TIMEOUT:?}"))?
            .map_err(|error| format!("DNS knows no {host}: {error}"))?;
        let addresses: Vec<_> = found.iter().map(|ip| SocketAddr::new(ip, port)).collect();
        if addresses.is_empty() { Err(format!("DNS has no address for {host}")) } else { Ok(addresses) }
    }

    fn system(&self) -> Result<&TokioResolver, String> {
        if let Some(resolver) = self.0.get() {
            return Ok(resolver);
        }
        let resolver = TokioResolver::builder_tokio()
            .and_then(hickory_resolver::ResolverBuilder::build)
            .map_err(|error| format!("the system's DNS configuration cannot be used: {error}"))?;
        Ok(self.0.get_or_init(|| resolver))
    }
}
