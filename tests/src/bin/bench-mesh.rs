//! `cargo bench-mesh`: the benchmarks, see `heddle_tests::bench`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use heddle_tests::{
    bench::data_plane::{self, Peer, table},
    binaries,
};

/// Measures the mesh beside its peers, in one run on this machine.
///
/// Writes a table to standard output, JSON and plots to target/bench/. What is not installed is left out and named.
#[derive(Debug, Parser)]
#[command(name = "cargo bench-mesh")]
struct Cli {
    /// What to measure; without it, everything.
    #[command(subcommand)]
    part: Option<Part>,

    /// This workload only. Repeatable, or separated by commas; an unknown name lists them all.
    #[arg(long, global = true, value_delimiter = ',')]
    only: Vec<String>,

    /// Who takes part.
    #[arg(long, global = true, value_delimiter = ',', value_enum, default_values_t = Peer::ALL)]
    peers: Vec<Peer>,

    /// How long one measurement takes.
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,

    /// How often each measurement is done; tables have medians.
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,

    /// One round of a second each: whether it works, not how fast.
    #[arg(long, global = true)]
    smoke: bool,

    /// The table in Markdown, as in the README.
    #[arg(long, global = true)]
    markdown: bool,

    /// Finished release programs; without it they are built.
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
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error),
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    if let Some(directory) = &cli.bin_dir {
        binaries::take_from(directory);
    }
    // Children end with the thread that started them, so it is this one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match cli.part.unwrap_or(Part::All) {
        Part::All | Part::DataPlane => runtime.block_on(data_plane(cli)),
    }
}

async fn data_plane(cli: &Cli) -> anyhow::Result<()> {
    let plan = data_plane::Plan {
        only: cli.only.clone(),
        peers: cli.peers.clone(),
        length: Duration::from_secs(if cli.smoke { 1 } else { cli.seconds }),
        warm_up: Duration::from_secs(if cli.smoke { 0 } else { 1 }),
        rounds: if cli.smoke { 1 } else { cli.rounds.into() },
    };
    let report = data_plane::run(&plan).await?;
    report.write(&cli.out.clone().unwrap_or_else(results))?;
    print!("{}", if cli.markdown { table::markdown(&report) } else { table::plain(&report) });
    Ok(())
}

/// The one line that a person who typed the command needs.
#[allow(clippy::print_stderr)]
fn complain(error: &anyhow::Error) -> ExitCode {
    eprintln!("bench-mesh: {error:#}");
    ExitCode::FAILURE
}
