//! fio's words for engines of any kind.
//!
//! People who run storage judge it with [fio](https://github.com/axboe/fio). This crate reads fio's job files and
//! command line, makes the ops that they describe, measures what engines do with them, and reports it as fio does. It
//! knows no Heliostat: `heliostat-bench` adds engines for cells and fabrics by implementing [`engine::EngineKind`], and
//! calls [`main_with`]. None of fio's code is in here; its HOWTO is the specification.
//!
//! Rooms
//! - [`engine`]: the trait, and the engines `null` and `io_uring`.
//! - `job`: job files and options, from one table.
//! - `pattern`: which op is next.
//! - `run`: threads, waves, the loop of a job.
//! - `measure`: what is counted.
//! - `report`: fio's human form, JSON, terse.
//! - `help`, [`manual`]: the options in text, as a man page, and for completions.
//! - `compare`, [`plot`], `sweep`: two reports, a picture (whose colours and scales others may use), several runs.
//! - `files`, `guard`, `verify`: laying out, not destroying, and finding wrong blocks.

mod command;
mod compare;
pub mod engine;
mod files;
mod guard;
mod help;
mod job;
#[cfg(feature = "manual")]
pub mod manual;
mod measure;
mod pattern;
#[cfg(feature = "plot")]
pub mod plot;
mod report;
mod run;
mod sweep;
mod verify;

pub use command::{main_with, run_with};
pub use job::{JobError, JobSet, parse_job_file};
pub use run::Interrupts;
