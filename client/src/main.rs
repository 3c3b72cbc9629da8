//! The `heliostat` command: one binary for people.
//!
//! Owns the process: runtime, exit codes (0 done, 1 the request failed, 2 wrong usage), the one line on standard
//! error that says what failed and what to do.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

/// Which log lines are written to standard error, in tracing's filter syntax; warnings when it is not set.
const LOG_VARIABLE: &str = "HELIOSTAT_LOG";

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .init();
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
