//! The command line (contract: DESIGN.md, 'Command lines'). Every flag has an environment variable of the same
//! name with the prefix `HEDDLE_`; lists are comma-separated there.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use heddle_api::{identity::PodName, ports, probe::Probes};
use ipnet::IpNet;

use crate::redirect::PortRange;

/// Heddle's sidecar.
#[derive(Debug, Parser)]
#[command(name = "heddle-proxy", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the sidecar can be asked to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve one pod's traffic until SIGTERM.
    Run(Box<RunArgs>),
    /// Write the netfilter rules that lead the pod's TCP through the sidecar, and exit. Twice is the same as once.
    Redirect(Box<RedirectArgs>),
}

/// Flags of `redirect`.
#[derive(Clone, Debug, Args)]
pub struct RedirectArgs {
    /// The user that the sidecar runs as; its traffic alone is not redirected.
    #[arg(long, env = "HEDDLE_PROXY_UID", value_name = "UID", default_value_t = PROXY_UID,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub proxy_uid: u32,

    /// Ports or ranges that the application reaches without the mesh.
    #[arg(long, env = "HEDDLE_EXCLUDE_OUTBOUND_PORTS", value_name = "PORTS", value_delimiter = ',')]
    pub exclude_outbound_ports: Vec<PortRange>,

    /// Ports or ranges of the application that are reached without the mesh.
    #[arg(long, env = "HEDDLE_EXCLUDE_INBOUND_PORTS", value_name = "PORTS", value_delimiter = ',')]
    pub exclude_inbound_ports: Vec<PortRange>,

    /// Addresses that the application reaches without the mesh.
    #[arg(long, env = "HEDDLE_EXCLUDE_OUTBOUND_CIDRS", value_name = "CIDRS", value_delimiter = ',')]
    pub exclude_outbound_cidrs: Vec<IpNet>,

    /// Print the rules in nft's language and change nothing.
    #[arg(long, env = "HEDDLE_DRY_RUN")]
    pub dry_run: bool,

    /// Remove the rules.
    #[arg(long, env = "HEDDLE_UNDO")]
    pub undo: bool,
}

/// The user that sidecars run as, unless told otherwise (contract).
pub const PROXY_UID: u32 = heddle_api::PROXY_UID;

/// Flags of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The control plane, https://HOST:PORT.
    #[arg(long, env = "HEDDLE_CONTROL_PLANE", value_name = "URL", value_parser = url)]
    pub control_plane: http::Uri,

    /// The control plane's CA certificate, PEM. Read anew at each connect.
    #[arg(long, env = "HEDDLE_CONTROL_PLANE_CA", value_name = "FILE")]
    pub control_plane_ca: PathBuf,

    /// The token that says who this pod is. Read anew at each connect.
    #[arg(long, env = "HEDDLE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: PathBuf,

    /// The pod that this sidecar serves.
    #[arg(long, env = "HEDDLE_POD", value_name = "NAMESPACE/NAME")]
    pub pod: PodName,

    /// The pod's address; all five ports listen on it, unless --expect-redirect is given. Repeat for a second family.
    /// Without it the pod's addresses are those of the network interfaces, and the sidecar listens where netfilter
    /// redirects to: what a pod sends is redirected to 127.0.0.1:15001.
    #[arg(long, env = "HEDDLE_POD_IP", value_name = "IP", value_delimiter = ',')]
    pub pod_ip: Vec<IpAddr>,

    /// Outbound capture and explicit proxy. Repeatable.
    #[arg(long, env = "HEDDLE_OUTBOUND_LISTEN", value_name = "ADDR", value_delimiter = ',')]
    pub outbound_listen: Vec<SocketAddr>,

    /// Inbound plaintext. Repeatable.
    #[arg(long, env = "HEDDLE_INBOUND_LISTEN", value_name = "ADDR", value_delimiter = ',')]
    pub inbound_listen: Vec<SocketAddr>,

    /// Inbound mTLS from other sidecars. Repeatable.
    #[arg(long, env = "HEDDLE_MESH_LISTEN", value_name = "ADDR", value_delimiter = ',')]
    pub mesh_listen: Vec<SocketAddr>,

    /// Admin: /metrics, /ready, /config, /log-level. Repeatable.
    #[arg(long, env = "HEDDLE_ADMIN_LISTEN", value_name = "ADDR", value_delimiter = ',')]
    pub admin_listen: Vec<SocketAddr>,

    /// /ready and /metrics for kubelet and Prometheus. Repeatable.
    #[arg(long, env = "HEDDLE_METRICS_LISTEN", value_name = "ADDR", value_delimiter = ',')]
    pub metrics_listen: Vec<SocketAddr>,

    /// A listener whose destination is one Service port, for programs that speak no HTTP. Repeatable.
    #[arg(long, env = "HEDDLE_FORWARD", value_name = "LISTEN=NAME:PORT", value_delimiter = ',')]
    pub forward: Vec<Forward>,

    /// Traffic threads [default: the CPU limit rounded up, at most 4].
    #[arg(long, env = "HEDDLE_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: Option<u16>,

    /// The longest that open connections may take to end after SIGTERM.
    #[arg(long, env = "HEDDLE_DRAIN_TIME", default_value = "30s", value_parser = duration)]
    pub drain_time: Duration,

    /// The pod's traffic is redirected: the ports listen as in a cluster, and the sidecar is ready only while the rules
    /// of `heddle-proxy redirect` are there.
    #[arg(long, env = "HEDDLE_EXPECT_REDIRECT")]
    pub expect_redirect: bool,

    /// The probes and hooks that `/probe/<container>/<kind>` replays, as JSON; the injector writes it.
    #[arg(long, env = "HEDDLE_PROBES", value_name = "JSON")]
    pub probes: Option<Probes>,

    /// How long a client may be silent before the server is asked whether it speaks first.
    #[arg(long, env = "HEDDLE_DETECT_TIMEOUT", default_value = "100ms", value_parser = duration)]
    pub detect_timeout: Duration,

    /// How long a peer may take nothing of an answer that is ready for it, or send nothing of a request's body that is
    /// waited for, before it loses stream or connection. Streams that have nothing to say may rest.
    #[arg(long, env = "HEDDLE_STALL_TIMEOUT", default_value = "60s", value_parser = time_limit)]
    pub stall_timeout: Duration,

    /// Bytes of header names plus values that a request or response may have.
    #[arg(long, env = "HEDDLE_HEADER_LIMIT", default_value_t = 65_536,
          value_parser = clap::value_parser!(u32).range(1_024..=1_048_576))]
    pub header_limit: u32,

    /// What is logged, as tracing's filter directives.
    #[arg(long, env = "HEDDLE_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

/// One `--forward`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The Service port, `name:port`, lower-case.
    pub name: String,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (listen, name) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is not LISTEN=NAME:PORT: no '='"))?;
        let listen =
            listen.parse().map_err(|_| format!("{listen:?} is not ADDRESS:PORT, such as 127.0.0.2:5432"))?;
        let port = name.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            return Err(format!("{name:?} is not NAME:PORT, such as postgres.shop:5432"));
        }
        Ok(Self { listen, name: name.to_ascii_lowercase() })
    }
}

fn url(text: &str) -> Result<http::Uri, String> {
    let uri: http::Uri = text.parse().map_err(|error| format!("{error}"))?;
    if uri.scheme_str() != Some("https") || uri.host().is_none() || uri.path() != "/" {
        return Err("it is not https://HOST:PORT".to_owned());
    }
    Ok(uri)
}

fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

fn time_limit(text: &str) -> Result<Duration, String> {
    match duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer than nothing".to_owned()),
        Ok(limit) => Ok(limit),
        Err(error) => Err(error.to_string()),
    }
}

/// Where the five ports listen.
#[derive(Debug, PartialEq, Eq)]
pub struct Listeners {
    /// 15001.
    pub outbound: Vec<SocketAddr>,
    /// 15006.
    pub inbound: Vec<SocketAddr>,
    /// 15008.
    pub mesh: Vec<SocketAddr>,
    /// 15000.
    pub admin: Vec<SocketAddr>,
    /// 15020.
    pub metrics: Vec<SocketAddr>,
}

impl RunArgs {
    /// Whether a listener that no flag names is where a cluster has it, and may do without IPv6.
    #[must_use]
    pub fn as_in_a_cluster(&self) -> bool {
        self.pod_ip.is_empty() || self.expect_redirect
    }

    /// Every listener, defaults filled in: with `--pod-ip` all on those addresses; in a cluster outbound and admin on
    /// loopback, the others on all addresses.
    #[must_use]
    pub fn listeners(&self) -> Listeners {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        let everywhere = [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)];
        let choose = |given: &[SocketAddr], default: &[IpAddr], port: u16| -> Vec<SocketAddr> {
            if !given.is_empty() {
                return given.to_vec();
            }
            let ips = if self.as_in_a_cluster() { default } else { &self.pod_ip };
            ips.iter().map(|&ip| SocketAddr::new(ip, port)).collect()
        };
        Listeners {
            outbound: choose(&self.outbound_listen, &loopback, ports::OUTBOUND),
            inbound: choose(&self.inbound_listen, &everywhere, ports::INBOUND),
            mesh: choose(&self.mesh_listen, &everywhere, ports::MESH),
            admin: choose(&self.admin_listen, &loopback, ports::ADMIN),
            metrics: choose(&self.metrics_listen, &everywhere, ports::METRICS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &[&str]) -> RunArgs {
        let base = ["heddle-proxy", "run", "--control-plane", "https://127.0.0.1:15010"];
        let files = ["--control-plane-ca", "ca.pem", "--token-file", "token", "--pod", "shop/web"];
        let Command::Run(args) = Cli::parse_from(base.iter().chain(&files).chain(extra)).command else {
            panic!("it is run");
        };
        *args
    }

    #[test]
    fn with_a_pod_ip_everything_listens_there() {
        let listeners = parse(&["--pod-ip", "127.0.0.2", "--admin-listen", "127.0.0.9:1"]).listeners();
        assert_eq!(listeners.outbound, ["127.0.0.2:15001".parse().unwrap()]);
        assert_eq!(listeners.mesh, ["127.0.0.2:15008".parse().unwrap()]);
        assert_eq!(listeners.admin, ["127.0.0.9:1".parse().unwrap()]);
        assert_eq!(listeners.metrics, ["127.0.0.2:15020".parse().unwrap()]);
    }

    #[test]
    fn a_redirected_pods_address_is_no_place_to_listen() {
        let redirected = parse(&["--pod-ip", "10.0.0.2,fd00::2", "--expect-redirect"]);
        assert_eq!(redirected.listeners(), parse(&[]).listeners());
        assert_eq!(redirected.pod_ip.len(), 2);
    }

    #[test]
    fn every_flag_has_its_environment_variable() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments() {
                let Some(long) = argument.get_long().filter(|long| !matches!(*long, "help" | "version"))
                else {
                    continue;
                };
                let expected = format!("HEDDLE_{}", long.replace('-', "_").to_uppercase());
                assert_eq!(argument.get_env().and_then(|name| name.to_str()), Some(&*expected), "--{long}");
            }
        }
    }

    #[test]
    fn the_sidecar_is_no_root() {
        let parsed = Cli::try_parse_from(["heddle-proxy", "redirect", "--proxy-uid", "0"]);
        assert!(parsed.unwrap_err().to_string().contains("1.."), "all of root's traffic would pass by");
    }

    #[test]
    fn in_a_cluster_what_speaks_for_the_pod_is_on_loopback_only() {
        let listeners = parse(&[]).listeners();
        for address in listeners.outbound.iter().chain(&listeners.admin) {
            assert!(address.ip().is_loopback(), "{address}");
        }
        for address in listeners.inbound.iter().chain(&listeners.mesh).chain(&listeners.metrics) {
            assert!(address.ip().is_unspecified(), "{address}");
        }
    }

    #[test]
    fn a_stalled_peer_gets_a_minute_unless_told_otherwise_and_never_nothing() {
        assert_eq!(parse(&[]).stall_timeout, crate::meter::STALL);
        assert_eq!(parse(&["--stall-timeout", "5s"]).stall_timeout, Duration::from_secs(5));
        assert!(time_limit("0s").is_err());
    }

    #[test]
    fn a_forward_says_what_is_wrong_with_it() {
        assert_eq!(
            "127.0.0.2:5432=Postgres.shop:5432".parse(),
            Ok(Forward { listen: "127.0.0.2:5432".parse().unwrap(), name: "postgres.shop:5432".into() })
        );
        for (text, word) in [("x", "no '='"), ("5432=a:1", "ADDRESS:PORT"), ("127.0.0.1:1=a", "NAME:PORT")] {
            let error = text.parse::<Forward>().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
