//! `cargo bench-mesh`: the benchmarks, see `heddle_tests::bench`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use heddle_tests::{
    bench::{
        control_plane,
        data_plane::{self, Peer, table},
    },
    binaries,
};

/// Measures the mesh in one run on this machine: its proxies beside their peers, its control plane at the hands of
/// simulated sidecars.
///
/// Writes tables to standard output, JSON and plots to target/bench/. What is not installed is left out and named.
#[derive(Debug, Parser)]
#[command(name = "cargo bench-mesh")]
struct Cli {
    /// What to measure; without it, everything.
    #[command(subcommand)]
    part: Option<Part>,

    /// Of the data plane, this workload only. Repeatable, or separated by commas; an unknown name lists them all.
    #[arg(long, global = true, value_delimiter = ',')]
    only: Vec<String>,

    /// Who takes part in the data plane's.
    #[arg(long, global = true, value_delimiter = ',', value_enum, default_values_t = Peer::ALL)]
    peers: Vec<Peer>,

    /// How long one measurement of the data plane takes.
    #[arg(long, global = true, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,

    /// How often each measurement of the data plane is done; tables have medians.
    #[arg(long, global = true, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,

    /// One round of a second each, and tiny clusters: whether it works, not how fast.
    #[arg(long, global = true)]
    smoke: bool,

    /// The data plane's table in Markdown, as in the README; the control plane's always is.
    #[arg(long, global = true)]
    markdown: bool,

    /// Finished release programs; without it they are built, the sidecar as it is shipped.
    #[arg(long, global = true, value_name = "DIR", env = "HEDDLE_BIN_DIR")]
    bin_dir: Option<PathBuf>,

    /// Where JSON, Markdown and plots are written [default: target/bench].
    #[arg(long, global = true, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Where results go without `--out`.
fn results() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench")
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Part {
    /// Everything.
    All,
    /// Pairs of proxies under load.
    DataPlane,
    /// The control plane: clusters of several sizes, and up to thousands of simulated sidecars.
    ControlPlane(ControlPlane),
}

/// One cluster instead of the whole plan.
#[derive(Args, Clone, Copy, Debug, Default)]
struct ControlPlane {
    /// Services, each with 20 endpoints.
    #[arg(long, requires = "streams")]
    services: Option<usize>,

    /// Connected sidecars.
    #[arg(long, requires = "services")]
    streams: Option<usize>,

    /// Changes measured at each step.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    changes: Option<u32>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error),
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    match &cli.bin_dir {
        Some(directory) => binaries::take_from(directory),
        // A debug build of this is a test of the harness, for which a debug build of the sidecar will do.
        None if cfg!(debug_assertions) => {}
        None => binaries::ship_sidecar(),
    }
    match cli.part.unwrap_or(Part::All) {
        Part::All => {
            data_plane(cli)?;
            control_plane(cli, ControlPlane::default())
        }
        Part::DataPlane => data_plane(cli),
        Part::ControlPlane(part) => control_plane(cli, part),
    }
}

fn data_plane(cli: &Cli) -> anyhow::Result<()> {
    let plan = data_plane::Plan {
        only: cli.only.clone(),
        peers: cli.peers.clone(),
        length: Duration::from_secs(if cli.smoke { 1 } else { cli.seconds }),
        warm_up: Duration::from_secs(if cli.smoke { 0 } else { 1 }),
        starts: if cli.smoke { 1 } else { 10 },
        rounds: if cli.smoke { 1 } else { cli.rounds.into() },
    };
    // Children end with the thread that started them, so it is this one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let out = cli.out.clone().unwrap_or_else(results);
    let report = runtime.block_on(data_plane::run(&plan, |report| report.write(&out)))?;
    print!("{}", if cli.markdown { table::markdown(&report) } else { table::plain(&report) });
    Ok(())
}

fn control_plane(cli: &Cli, part: ControlPlane) -> anyhow::Result<()> {
    use control_plane::{Plan, SizePlan};
    let mut plan = if cli.smoke { Plan::smoke() } else { Plan::full() };
    if let Some((services, streams)) = part.services.zip(part.streams) {
        plan.sizes = vec![SizePlan { services, endpoints_each: 20, streams: vec![streams] }];
    }
    if let Some(changes) = part.changes {
        plan.changes = changes as usize;
    }
    // The sidecars are all in this process, on every core; the control plane is a child of this thread, which
    // `block_on` stays on.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(control_plane::run(&plan, say))?;
    control_plane::publish(&report, &cli.out.clone().unwrap_or_else(results))?;
    print!("{}", report.markdown());
    Ok(())
}

/// Progress, for whoever waits.
#[allow(clippy::print_stderr)]
fn say(line: &str) {
    eprintln!("{line}");
}

/// The one line that a person who typed the command needs.
#[allow(clippy::print_stderr)]
fn complain(error: &anyhow::Error) -> ExitCode {
    eprintln!("bench-mesh: {error:#}");
    ExitCode::FAILURE
}
