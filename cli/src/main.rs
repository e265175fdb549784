//! The command `nightlatch`.

use std::process::ExitCode;

fn main() -> ExitCode {
    nightlatch_cli::main()
}
