//! The program `heddle-control-plane`. Everything is in the library, where tests reach it.

use std::process::ExitCode;

/// With a hundred thousand pods the system's allocator held a third more, and gave back less of what a start takes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    heddle_control_plane::cli::main()
}
