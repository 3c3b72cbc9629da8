//! Jobs: what fio's words say should be done.
//!
//! Pure but for reading job files. Text becomes sections (`ini`), sections become options (`table`, `value`, `words`),
//! options become jobs that can run (`check`). Called by the command line and by the fuzz target.
//!
//! Invariant: every option is honoured or is an error that names it; none is ignored in silence.

use std::path::Path;

mod check;
mod elsewhere;
mod error;
mod expand;
mod expression;
mod ini;
mod options;
pub(crate) mod table;
pub(crate) mod value;
mod words;

pub use check::Job;
pub(crate) use elsewhere::because as not_supported_because;
pub use error::{JobError, Place};
pub use expand::Surroundings;
pub(crate) use ini::{Section, Setting, include_from_files};
pub(crate) use options::{
    BlockSizes, Checksum, ContinueOnError, CpuPolicy, Distribution, Fallocate, FileService, JobOptions, RateProcess,
    SyncWrites,
};

use crate::engine::Engines;

/// Jobs in the order in which they were written.
#[derive(Clone)]
pub struct JobSet<'e> {
    /// What the first `[global]` sections said, as written.
    pub(crate) global: Vec<(String, String)>,
    pub(crate) jobs: Vec<Job<'e>>,
}

/// Collects sections into jobs.
pub(crate) struct JobSetBuilder<'e, 'a> {
    engines: Engines<'e>,
    here: &'a Surroundings,
    only: Vec<String>,
    /// Set last in every job: what a sweep changes.
    overrides: Vec<Setting>,
    set: JobSet<'e>,
    defaults: JobOptions,
    group: usize,
    wave: usize,
}

impl<'e, 'a> JobSetBuilder<'e, 'a> {
    /// `only` names the sections that run; empty is all. `overrides` are set last in every job.
    pub(crate) fn new(
        engines: Engines<'e>,
        here: &'a Surroundings,
        only: Vec<String>,
        overrides: Vec<Setting>,
    ) -> Self {
        JobSetBuilder {
            engines,
            here,
            only,
            overrides,
            set: JobSet { global: Vec::new(), jobs: Vec::new() },
            defaults: JobOptions::default(),
            group: 0,
            wave: 0,
        }
    }

    /// All sections of a job file. Defaults of one file do not reach the next, but those of the command line do.
    pub(crate) fn file(&mut self, path: &Path, text: &str, include: ini::Include<'_>) -> Result<(), JobError> {
        let of_command_line = self.defaults.clone();
        for section in ini::sections(path, text, include)? {
            self.section(section)?;
        }
        self.defaults = of_command_line;
        Ok(())
    }

    /// One section: `global` changes the defaults, any other is a job.
    pub(crate) fn section(&mut self, section: Section) -> Result<(), JobError> {
        let mut options = self.defaults.clone();
        options.given.clear();
        for setting in &section.settings {
            self.apply(&mut options, setting)?;
        }
        if section.is_global() {
            self.set.global.append(&mut options.given);
            options.name = None;
            self.defaults = options;
            return Ok(());
        }
        if !self.only.is_empty() && !self.only.contains(&section.name) {
            return Ok(());
        }
        for setting in &self.overrides {
            self.apply(&mut options, setting)?;
        }
        let (first, wall) = (self.set.jobs.is_empty(), options.stonewall);
        self.group += usize::from(!first && (wall || options.new_group));
        self.wave += usize::from(!first && wall);
        let job = Job::check(&section.name, options, self.engines, (self.group, self.wave))?;
        self.set.jobs.push(job);
        Ok(())
    }

    fn apply(&self, options: &mut JobOptions, setting: &Setting) -> Result<(), JobError> {
        let (name, place) = (setting.name.as_str(), setting.place.clone());
        let value = self.here.expand(&setting.value);
        let Some(option) = table::find(name) else {
            let of_engines = || self.engines.iter().flat_map(|engine| engine.options());
            if of_engines().any(|option| option.name == name) {
                options.of_engine.retain(|(known, _)| known != name);
                options.of_engine.push((name.to_string(), value.clone()));
                options.given.push((name.to_string(), value));
                return Ok(());
            }
            let name = name.to_string();
            if let Some(because) = not_supported_because(&name) {
                return Err(JobError::NotSupported { place, name, because });
            }
            let suggestion = error::closest(&name, table::names().chain(of_engines().map(|option| option.name)));
            return Err(JobError::Unknown { place, name, suggestion });
        };
        if value.is_empty() && !option.is_switch() && !(option.takes == "text" || setting.value.contains("${")) {
            let cause = value::ValueError::Expected { text: String::new(), expected: option.takes.to_string() };
            return Err(JobError::Value { place, name: name.to_string(), cause });
        }
        option.set(options, &value).map_err(|cause| JobError::Value { place, name: name.to_string(), cause })?;
        let shown = if value.is_empty() && option.is_switch() { "1".to_string() } else { value };
        options.given.push((option.name.to_string(), shown));
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<JobSet<'e>, JobError> {
        match self.set.jobs.is_empty() {
            true => Err(JobError::NoJob),
            false => Ok(self.set),
        }
    }
}

/// Reads a job file without touching the machine: what tests and the fuzz target call. Includes are empty files.
pub fn parse_job_file<'e>(text: &str, engines: Engines<'e>) -> Result<JobSet<'e>, JobError> {
    let here = Surroundings::none();
    let mut builder = JobSetBuilder::new(engines, &here, Vec::new(), Vec::new());
    builder.file(Path::new("job file"), text, &|_, name| Ok((name.into(), String::new())))?;
    builder.finish()
}

#[cfg(test)]
mod tests;
