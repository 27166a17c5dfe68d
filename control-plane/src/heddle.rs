//! The program `heddle`, for people: `heddle inject`, `heddle check`.

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{checkup, inject};

/// Heddle's command line for people.
#[derive(Debug, Parser)]
#[command(name = "heddle", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Adds the sidecar to the pods and workloads of manifests, and prints them: what the webhook does in a cluster.
    Inject(inject::cli::InjectArgs),
    /// Looks at a cluster, before or after Heddle is installed, or at a directory of manifests, and says what is wrong, why,
    /// and what to do. Ends with 1 when there is an error.
    Check(checkup::cli::CheckArgs),
}

/// The program. Ends with 0, with 1 and a reason when something failed, or with 2 for a wrong command line.
#[must_use]
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Inject(args) => args.perform().map(|()| true),
        Command::Check(args) => args.perform(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Where stderr is closed there is nobody to tell.
            let _written = writeln!(std::io::stderr(), "heddle: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
