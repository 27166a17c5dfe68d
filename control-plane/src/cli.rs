//! The command line: `run`, `token`, `crds`, `ready`. Every flag has an environment variable of its name with the prefix
//! `HEDDLE_`.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use heddle_api::{
    identity::SpiffeId,
    log,
    resources::{AccessPolicy, MeshPolicy, TrafficPolicy},
};
use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::CustomResourceExt as _;

use crate::{
    ca::{self, files},
    cluster::{Cluster, webhook},
    inject, ready, run,
    token::{self, TokenAuthority},
};

/// Heddle's control plane.
#[derive(Debug, Parser)]
#[command(name = "heddle-control-plane", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves sidecars.
    Run(Box<RunArgs>),
    /// Prints a join token.
    Token(TokenArgs),
    /// Prints the custom resource definitions as YAML.
    Crds,
    /// Asks a control plane whether it is ready; ends with 1 and its answer when it is not in time.
    Ready(ReadyArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Directory of manifests (*.yaml); its changes are followed. Without it the cluster's objects are: the one that
    /// this process runs in, or that KUBECONFIG names.
    #[arg(long, env = "HEDDLE_MANIFESTS", value_name = "DIR", requires = "state_dir")]
    manifests: Option<PathBuf>,
    /// Where the certificate authority and the token key live, with --manifests. DIR/ca.pem is what sidecars trust.
    #[arg(long, env = "HEDDLE_STATE_DIR", value_name = "DIR", requires = "manifests")]
    state_dir: Option<PathBuf>,
    /// Where sidecars connect.
    #[arg(long, env = "HEDDLE_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:15010")]
    listen: SocketAddr,
    /// Where /ready, /metrics, /diagnostics and /streams are.
    #[arg(long, env = "HEDDLE_ADMIN_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:15014")]
    admin_listen: SocketAddr,
    /// How long a workload's certificate is good: 3s to 24h.
    #[arg(long, env = "HEDDLE_CERTIFICATE_LIFETIME", value_name = "TIME", default_value = "24h", value_parser = lifetime)]
    certificate_lifetime: Duration,
    /// The trust domain of all identities.
    #[arg(long, env = "HEDDLE_TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local", value_parser = trust_domain)]
    trust_domain: String,
    /// In a cluster, a new root signs once it has been trusted for so long, which the roots that pods mount take to
    /// arrive: 0s to 24h.
    #[arg(long, env = "HEDDLE_ROOT_ADOPT_AFTER", value_name = "TIME", default_value = "3m", value_parser = adopt_after)]
    root_adopt_after: Duration,
    #[command(flatten)]
    injection: InjectionArgs,
    /// What is logged: off, error, warn, info, debug, trace, or a list of target=level.
    #[arg(long, env = "HEDDLE_LOG", value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    log: String,
}

/// Of the injector's webhook; without a cluster there is none.
#[derive(Debug, Args)]
#[command(next_help_heading = "Injection, in a cluster")]
struct InjectionArgs {
    /// Where the API server asks about new pods.
    #[arg(long, env = "HEDDLE_WEBHOOK_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:15017")]
    webhook_listen: SocketAddr,
    /// The Service by which the API server reaches it.
    #[arg(long, env = "HEDDLE_WEBHOOK_SERVICE", value_name = "NAME", default_value = inject::webhook::registration::NAME)]
    webhook_service: String,
    /// After SIGTERM it is answered for so long: until the Service leads nobody here. 0s to 60s.
    #[arg(long, env = "HEDDLE_WEBHOOK_GRACE", value_name = "TIME", default_value = "5s", value_parser = grace)]
    webhook_grace: Duration,
    /// Where sidecars find the control plane, https://HOST:PORT; by default its Service in its own namespace.
    #[arg(long, env = "HEDDLE_CONTROL_PLANE_ADDRESS", value_name = "URL", value_parser = control_plane_address)]
    control_plane_address: Option<String>,
    /// The sidecars' image; by default heddle-proxy of this version.
    #[arg(long, env = "HEDDLE_SIDECAR_IMAGE", value_name = "IMAGE")]
    sidecar_image: Option<String>,
    /// When it is pulled; by default as Kubernetes decides by its tag.
    #[arg(long, env = "HEDDLE_SIDECAR_IMAGE_PULL_POLICY", value_name = "WHEN", value_parser = ["Always", "IfNotPresent", "Never"])]
    sidecar_image_pull_policy: Option<String>,
    /// What sidecars log, unless their pod's annotation says otherwise.
    #[arg(long, env = "HEDDLE_SIDECAR_LOG", value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    sidecar_log: String,
    /// What sidecars ask for and may use, as JSON of a container's `resources`; annotations of a pod go over it.
    #[arg(long, env = "HEDDLE_SIDECAR_RESOURCES", value_name = "JSON", value_parser = inject::settings::resources)]
    sidecar_resources: Option<ResourceRequirements>,
}

impl InjectionArgs {
    fn options(self, namespace: &str) -> webhook::Options {
        let common = inject::Settings::default();
        let address = || inject::settings::control_plane(namespace);
        let settings = inject::Settings {
            image: self.sidecar_image.unwrap_or(common.image),
            image_pull_policy: self.sidecar_image_pull_policy,
            control_plane: self.control_plane_address.unwrap_or_else(address),
            log_level: self.sidecar_log,
            resources: self.sidecar_resources.unwrap_or(common.resources),
            ..inject::Settings::default()
        };
        webhook::Options {
            listen: self.webhook_listen,
            service: self.webhook_service,
            grace: self.webhook_grace,
            settings,
        }
    }
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// The control plane's state directory.
    #[arg(long, env = "HEDDLE_STATE_DIR", value_name = "DIR")]
    state_dir: PathBuf,
    /// The pod's namespace.
    #[arg(long, env = "HEDDLE_NAMESPACE", value_name = "NS")]
    namespace: String,
    /// The pod's serviceAccountName.
    #[arg(long, env = "HEDDLE_SERVICE_ACCOUNT", value_name = "SA")]
    service_account: String,
    /// How long the token is good: 1s to 366d.
    #[arg(long, env = "HEDDLE_TTL", value_name = "TIME", default_value = "24h", value_parser = ttl)]
    ttl: Duration,
}

#[derive(Debug, Args)]
struct ReadyArgs {
    /// Its admin listener.
    #[arg(long, env = "HEDDLE_ADMIN", value_name = "HOST:PORT", default_value = "127.0.0.1:15014")]
    admin: String,
    /// What must take a TCP connection besides. Repeatable.
    #[arg(long, env = "HEDDLE_CONNECT", value_name = "HOST:PORT", value_delimiter = ',')]
    connect: Vec<String>,
    /// How long it is asked again: 0s to 10m.
    #[arg(long, env = "HEDDLE_TIMEOUT", value_name = "TIME", default_value = "60s", value_parser = patience)]
    timeout: Duration,
}

/// The program. Ends with 0, with 1 and a reason when something failed, or with 2 for a wrong command line.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::parse().command.perform() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where stderr is closed there is nobody to tell.
            let _written = writeln!(std::io::stderr(), "heddle-control-plane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Command {
    fn perform(self) -> anyhow::Result<()> {
        match self {
            Self::Run(args) => args.perform(),
            Self::Token(args) => args.perform(),
            Self::Crds => print(&crds()?),
            Self::Ready(args) => ready::wait(&args.admin, &args.connect, args.timeout),
        }
    }
}

impl RunArgs {
    fn perform(self) -> anyhow::Result<()> {
        tracing_subscriber::fmt()
            .with_env_filter(log::filter(&self.log)?)
            .with_writer(std::io::stderr)
            .init();
        let options = run::Options {
            state_dir: self.state_dir.unwrap_or_default(),
            listen: self.listen,
            admin_listen: self.admin_listen,
            certificate_lifetime: self.certificate_lifetime,
            trust_domain: self.trust_domain,
            root_adopt_after: self.root_adopt_after,
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting threads")?;
        runtime.block_on(async {
            let running = match self.manifests {
                Some(manifests) => run::start(options, manifests).await?,
                None => {
                    let cluster = Cluster::infer().await?;
                    let injection = self.injection.options(&cluster.namespace);
                    run::start_in_cluster(options, injection, cluster).await?
                }
            };
            running.until_signalled().await
        })
    }
}

impl TokenArgs {
    fn perform(self) -> anyhow::Result<()> {
        files::state_dir(&self.state_dir)?;
        let tokens = TokenAuthority::open(&self.state_dir)?;
        let token = tokens.mint(&self.namespace, &self.service_account, self.ttl, SystemTime::now())?;
        print(&token)
    }
}

/// The definitions of Heddle's kinds, one YAML document each.
fn crds() -> anyhow::Result<String> {
    let all = [TrafficPolicy::crd(), AccessPolicy::crd(), MeshPolicy::crd()];
    let documents: Result<Vec<_>, _> = all.iter().map(serde_norway::to_string).collect();
    Ok(documents.context("writing YAML")?.join("---\n"))
}

fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        // Whoever reads has read enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to stdout"),
    }
}

fn lifetime(text: &str) -> Result<Duration, String> {
    between(text, ca::MIN_LIFETIME, ca::MAX_LIFETIME)
}

fn adopt_after(text: &str) -> Result<Duration, String> {
    between(text, Duration::ZERO, ca::MAX_LIFETIME)
}

fn grace(text: &str) -> Result<Duration, String> {
    between(text, Duration::ZERO, Duration::from_secs(60))
}

/// Sidecars refuse what is no such URL, and each would say so by itself.
fn control_plane_address(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|error| format!("{error}; write it as https://HOST:PORT"))?;
    let is_bare = uri.path() == "/" && uri.query().is_none();
    if uri.scheme_str() != Some("https") || uri.port_u16().is_none() || !is_bare || text.ends_with('/') {
        return Err("write it as https://HOST:PORT".to_owned());
    }
    Ok(text.to_owned())
}

fn patience(text: &str) -> Result<Duration, String> {
    between(text, Duration::ZERO, Duration::from_secs(600))
}

fn ttl(text: &str) -> Result<Duration, String> {
    between(text, Duration::from_secs(1), token::MAX_TTL)
}

fn between(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let time =
        humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 90s, 15m or 24h"))?;
    if !(least..=most).contains(&time) {
        let [least, most] = [least, most].map(humantime::format_duration);
        return Err(format!("must be {least} to {most}"));
    }
    Ok(time)
}

fn trust_domain(text: &str) -> Result<String, String> {
    SpiffeId::new(text, "x", "x")
        .map_err(|_| "a trust domain has lower-case letters, digits, '-' and '.'".to_owned())?;
    Ok(text.to_owned())
}

fn log_filter(text: &str) -> Result<String, String> {
    log::filter(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_environment_variable() {
        for command in Cli::command().get_subcommands() {
            for flag in command.get_arguments().filter_map(|a| a.get_long().map(|long| (a, long))) {
                let (argument, long) = flag;
                if matches!(long, "help" | "version") {
                    continue;
                }
                let expected = format!("HEDDLE_{}", long.replace('-', "_").to_uppercase());
                assert_eq!(
                    argument.get_env().and_then(|name| name.to_str()),
                    Some(expected.as_str()),
                    "--{long}"
                );
            }
        }
    }

    #[test]
    fn the_definitions_of_all_kinds_are_printed_as_yaml() {
        let text = crds().unwrap();
        let kinds: Vec<String> = text
            .split("---\n")
            .map(|document| {
                let value: serde_norway::Value = serde_norway::from_str(document).unwrap();
                assert_eq!(value["spec"]["group"], heddle_api::GROUP);
                value["spec"]["names"]["kind"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(kinds, ["TrafficPolicy", "AccessPolicy", "MeshPolicy"]);
    }

    #[test]
    fn the_definitions_in_the_chart_are_those_that_are_printed() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/heddle/crds");
        let path = std::path::Path::new(dir).join("heddle.dev.yaml");
        let printed = format!("{}\n", crds().unwrap().trim_end());
        if std::env::var_os("HEDDLE_REWRITE").is_some() {
            std::fs::write(&path, &printed).unwrap();
        }
        let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            checked_in == printed,
            "{} is out of date: HEDDLE_REWRITE=1 cargo nextest run -p heddle-control-plane the_definitions_in_the_chart",
            path.display()
        );
    }

    #[test]
    fn what_every_sidecar_would_choke_on_is_refused_before_the_first_starts() {
        for text in ["https://a", "http://a:1", "https://a:1/", "https://a:1/x", "a:1"] {
            assert!(control_plane_address(text).is_err(), "{text}");
        }
        assert!(control_plane_address("https://heddle-control-plane.mesh.svc:15010").is_ok());
        for (text, word) in [
            ("{", "JSON"),
            (r#"{"limit": {}}"#, "limit"),
            (r#"{"limits": {"memory": "many"}}"#, "limits.memory"),
            (r#"{"requests": {"cpu": "-1"}}"#, "requests.cpu"),
            (r#"{"requests": {"memory": "1Gi"}, "limits": {"memory": "512Mi"}}"#, "limits.memory, 512Mi"),
            (r#"{"requests": {"cpu": "1.1"}, "limits": {"cpu": "1090m"}}"#, "requests.cpu"),
            (r#"{"limits": {"cpus": "1"}}"#, "limits.cpus"),
            (r#"{"requests": {"hugepages-2Mi": "4Mi"}}"#, "requests.hugepages-2Mi"),
        ] {
            let error = inject::settings::resources(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        for flag in ["--log", "--sidecar-log"] {
            let run = |level| Cli::try_parse_from(["heddle-control-plane", "run", flag, level]);
            for level in ["warning", "info,", "", "heddle_proxy=loud"] {
                let error = run(level).unwrap_err().to_string();
                assert!(error.contains(flag), "{error}");
            }
            assert!(run("warning").unwrap_err().to_string().contains("(off, error, warn"));
            assert!(run("info,heddle_proxy::carrier=debug").is_ok());
        }
        let even = r#"{"requests": {"memory": "1Gi"}, "limits": {"memory": "1024Mi", "example.org/nic": 1}}"#;
        inject::settings::resources(even).unwrap();
        let resources = inject::settings::resources(r#"{"requests": {"cpu": "100m"}}"#).unwrap();
        assert_eq!(resources.requests.unwrap()["cpu"].0, "100m");
    }

    #[test]
    fn a_new_root_signs_after_three_minutes_unless_told_otherwise() {
        let run = |more: &[&str]| {
            let args = [&["heddle-control-plane", "run"], more].concat();
            match Cli::parse_from(args).command {
                Command::Run(run) => run.root_adopt_after,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(run(&[]), crate::cluster::trust::ADOPT);
        assert_eq!(run(&["--root-adopt-after", "2s"]), Duration::from_secs(2));
        assert!(adopt_after("25h").is_err());
    }

    #[test]
    fn a_lifetime_out_of_bounds_is_refused_with_the_bounds() {
        assert_eq!(lifetime("10s"), Ok(Duration::from_secs(10)));
        for text in ["25h", "1s", "10", "soon"] {
            assert!(lifetime(text).is_err(), "{text}");
        }
        assert!(lifetime("25h").unwrap_err().contains("3s to 1day"));
    }
}
