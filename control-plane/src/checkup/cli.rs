//! `heddle check`.

use std::{io::Write as _, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{Level, Report, gather};

/// The API server has this long for a connection, and for an answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// All of it takes no longer. The client asks again by itself where the API server says that it is busy.
const ALL: Duration = Duration::from_secs(180);

/// How it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What it is told.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// A directory of manifests (*.yaml), instead of a cluster.
    #[arg(long, env = "HEDDLE_MANIFESTS", value_name = "DIR", conflicts_with_all = ["kubeconfig", "context"])]
    manifests: Option<PathBuf>,
    /// The kubeconfig; by default what KUBECONFIG or ~/.kube/config says, or the cluster that this runs in.
    #[arg(long, env = "HEDDLE_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Which of its contexts; by default its current one.
    #[arg(long, env = "HEDDLE_CONTEXT", value_name = "NAME")]
    context: Option<String>,
    /// The namespace that the control plane runs in, or will.
    #[arg(long, env = "HEDDLE_SYSTEM_NAMESPACE", value_name = "NS", default_value = heddle_api::SYSTEM_NAMESPACE)]
    system_namespace: String,
    /// How it is said.
    #[arg(short, long, env = "HEDDLE_OUTPUT", value_name = "HOW", default_value = "text")]
    output: Output,
}

impl CheckArgs {
    /// Looks, and says what it found; whether there was no error in it.
    ///
    /// # Errors
    /// When nothing could be looked at.
    pub fn perform(&self) -> anyhow::Result<bool> {
        let report = match &self.manifests {
            Some(dir) => gather::directory(dir)?,
            None => self.cluster()?,
        };
        let text = match self.output {
            Output::Text => report.to_string(),
            Output::Json => report.json()?,
        };
        match writeln!(std::io::stdout(), "{text}") {
            // Whoever reads has read enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            other => other.context("writing to stdout")?,
        }
        Ok(report.count(Level::Error) == 0)
    }

    fn cluster(&self) -> anyhow::Result<Report> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
        runtime.block_on(async {
            let mut config = self.config().await?;
            config.connect_timeout = Some(TIMEOUT);
            config.read_timeout = Some(TIMEOUT);
            let gathered = gather::cluster(Client::try_from(config)?, &self.system_namespace);
            tokio::time::timeout(ALL, gathered).await.with_context(|| {
                format!("the API server did not answer everything within {ALL:?}: is it busy?")
            })?
        })
    }

    async fn config(&self) -> anyhow::Result<Config> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        Ok(match &self.kubeconfig {
            Some(path) => {
                let read = Kubeconfig::read_from(path);
                let kubeconfig = read.with_context(|| format!("--kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await?
            }
            None if self.context.is_some() => {
                Config::from_kubeconfig(&options).await.context("no kubeconfig with this --context")?
            }
            None => Config::infer()
                .await
                .context("no cluster: give --kubeconfig, set KUBECONFIG, or --manifests DIR")?,
        })
    }
}

/// A cluster, looked at through this client; for tests.
///
/// # Errors
/// When the API server does not answer.
pub async fn cluster(client: Client, system_namespace: &str) -> anyhow::Result<Report> {
    gather::cluster(client, system_namespace).await
}
