//! Any text is a set of jobs or one line about why not; what was accepted has at least one job.
#![no_main]

use heliostat_fio::engine::{null::Null, uring::IoUring};
use heliostat_fio::parse_job_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(error) = parse_job_file(text, &[&IoUring, &Null]) {
        let line = error.to_string();
        assert!(!line.is_empty());
    }
});
