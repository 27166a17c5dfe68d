//! The program `heddle-control-plane`. Everything is in the library, where tests reach it.

use std::process::ExitCode;

/// As in the sidecar: a start makes and drops a hundred thousand objects, and a change wakes a thousand streams.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    heddle_control_plane::cli::main()
}
