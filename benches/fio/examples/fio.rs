//! The command with the engines of this crate only: for its tests, and for measuring it without building the product.

use std::process::ExitCode;

use heliostat_fio::engine::{null::Null, uring::IoUring};

fn main() -> ExitCode {
    heliostat_fio::main_with(&[&IoUring, &Null], "")
}
