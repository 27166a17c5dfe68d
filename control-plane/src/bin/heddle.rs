//! The program `heddle`. Everything is in the library, where tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    heddle_control_plane::heddle::main()
}
