//! The program `heddle-control-plane`. Everything is in the library, where tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    heddle_control_plane::cli::main()
}
