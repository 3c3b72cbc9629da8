//! The `heliostat` command: one binary for people.
//!
//! Owns the process: runtime, exit codes (0 done, 1 the request failed, 2 wrong usage), the one line on standard
//! error that says what failed and what to do.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("heliostat: the runtime can't start: {error}: check the limits on threads");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(cli::run(arguments));
    // Decoding threads may still block on input; they end with the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(line) = failure.line() {
                eprintln!("heliostat: {line}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}
