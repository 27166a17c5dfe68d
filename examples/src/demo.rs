//! The demo: a whole mesh on this machine, with traffic, and what a mesh is for happening before your eyes.
//!
//! `cargo demo` plays the story (see [`story`]) in about 35 seconds and exits with 0 if the mesh saved every
//! request that it should have. `cargo demo -- --serve` starts the same shop and stays up.

mod act;
mod screen;
mod shop;
mod story;

use std::process::ExitCode;

use clap::Parser;

/// A whole service mesh on this machine: control plane, four pods with sidecars, mTLS, live policy changes.
#[derive(Debug, Parser)]
#[command(name = "cargo demo --", bin_name = "cargo demo --")]
struct Args {
    /// Stay up and print commands to try, instead of playing the story.
    #[arg(long)]
    serve: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = if args.serve { shop::serve().await.map(|()| true) } else { story::play().await };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("the demo could not go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}
