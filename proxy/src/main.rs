//! `heddle-proxy`, Heddle's sidecar: reads the command line and runs.

use std::process::ExitCode;

use clap::Parser;
use heddle_proxy::{
    cli::{Cli, Command, RunArgs},
    log::Logs,
    redirect, run,
};

/// Fewer page faults and less contention between workers than the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => serve(*args),
        Command::Redirect(args) => match redirect::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&error),
        },
    }
}

fn serve(args: RunArgs) -> ExitCode {
    let (logs, _flush) = match Logs::start(&args.log_level) {
        Ok(started) => started,
        Err(error) => return complain(&anyhow::Error::new(error).context("--log-level")),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&anyhow::Error::new(error).context("no runtime")),
    };
    runtime.block_on(run::run(args, logs)).unwrap_or_else(|error| complain(&error))
}

/// The one line that a person who typed the command needs.
#[allow(clippy::print_stderr)]
fn complain(error: &anyhow::Error) -> ExitCode {
    eprintln!("heddle-proxy: {error:#}");
    ExitCode::FAILURE
}
