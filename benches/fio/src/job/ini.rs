//! Job files as text: sections, options, comments, includes. Knows no option.
//!
//! Pure: included files come through a function that the caller gives. Follows HOWTO, "Job file format": everything
//! behind `;` or `#` is a comment, `[global]` sets defaults for the sections below it, `include FILE` pulls options
//! (not sections) into the section it stands in.

use std::path::{Path, PathBuf};

use super::error::{JobError, Place};

const INCLUDES_MAX: usize = 16;

/// One `name=value`; a name alone has an empty value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub place: Place,
    pub name: String,
    pub value: String,
}

/// One section in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub name: String,
    pub settings: Vec<Setting>,
}

impl Section {
    pub(crate) fn is_global(&self) -> bool {
        self.name == "global"
    }
}

/// Reads an included file: given the including file's path and the name as written.
pub(crate) type Include<'a> = &'a dyn Fn(&Path, &str) -> Result<(PathBuf, String), JobError>;

/// The sections of a job file.
pub(crate) fn sections(path: &Path, text: &str, include: Include<'_>) -> Result<Vec<Section>, JobError> {
    let mut sections: Vec<Section> = Vec::new();
    for (place, line) in lines(path, text) {
        if let Some(inner) = line.strip_prefix('[') {
            match inner.split_once(']') {
                Some((name, "")) if !name.trim().is_empty() => {
                    sections.push(Section { name: name.trim().to_string(), settings: Vec::new() });
                }
                _ => return Err(JobError::Line(place, line.to_string())),
            }
            continue;
        }
        let Some(section) = sections.last_mut() else {
            return Err(JobError::NoSection(place, line.to_string()));
        };
        push_line(section, place, path, line, include, 0)?;
    }
    Ok(sections)
}

fn push_line(
    section: &mut Section,
    place: Place,
    path: &Path,
    line: &str,
    include: Include<'_>,
    depth: usize,
) -> Result<(), JobError> {
    if let Some(name) = line.strip_prefix("include").filter(|rest| rest.starts_with(char::is_whitespace)) {
        if depth == INCLUDES_MAX {
            return Err(JobError::Nesting(place));
        }
        let (path, text) = include(path, name.trim())?;
        for (place, line) in lines(&path, &text) {
            if line.starts_with('[') {
                return Err(JobError::IncludedSection(place));
            }
            push_line(section, place, &path, line, include, depth + 1)?;
        }
        return Ok(());
    }
    let (name, value) = line.split_once('=').unwrap_or((line, ""));
    let name = name.trim();
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(JobError::Line(place, line.to_string()));
    }
    section.settings.push(Setting { place, name: name.to_string(), value: value.trim().to_string() });
    Ok(())
}

/// Lines with something in them, without comments, with their place.
fn lines<'a>(path: &'a Path, text: &'a str) -> impl Iterator<Item = (Place, &'a str)> {
    text.lines().enumerate().filter_map(move |(index, line)| {
        let line = line.split([';', '#']).next().unwrap_or_default().trim();
        (!line.is_empty()).then(|| (Place::File(path.to_path_buf(), index + 1), line))
    })
}

/// Reads includes from the file system: beside the including file, else from the current folder.
pub(crate) fn include_from_files(from: &Path, name: &str) -> Result<(PathBuf, String), JobError> {
    let beside = from.parent().unwrap_or(Path::new("")).join(name);
    let path = if beside.exists() { beside } else { PathBuf::from(name) };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok((path, text)),
        Err(cause) => Err(JobError::Read(path, cause.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<Section>, JobError> {
        sections(Path::new("t.fio"), text, &|_, name| match name {
            "common.fio" => Ok((PathBuf::from(name), "thread=1 ; comment\ngroup_reporting\n".into())),
            "loop.fio" => Ok((PathBuf::from(name), "include loop.fio".into())),
            _ => Ok((PathBuf::from(name), "[x]".into())),
        })
    }

    #[test]
    fn comments_blanks_and_includes_are_read_as_fio_reads_them() {
        let text = "; head\n# head\n[global]\n  rw = randread  ; why\ninclude common.fio\n\n[job 1]\nname=x=y\n[global]\n[b]\n";
        let sections = of(text).unwrap();
        let names: Vec<&str> = sections.iter().map(|section| section.name.as_str()).collect();
        assert_eq!(names, ["global", "job 1", "global", "b"]);
        let of_first: Vec<(&str, &str)> =
            sections[0].settings.iter().map(|s| (s.name.as_str(), s.value.as_str())).collect();
        assert_eq!(of_first, [("rw", "randread"), ("thread", "1"), ("group_reporting", "")]);
        assert_eq!(sections[1].settings[0].value, "x=y");
        assert_eq!(sections[0].settings[0].place.to_string(), "t.fio:4");
        assert_eq!(sections[0].settings[1].place.to_string(), "common.fio:1");
    }

    #[test]
    fn what_is_no_job_file_says_where() {
        assert!(of("rw=read").unwrap_err().to_string().starts_with("t.fio:1: option `rw=read` stands before"));
        assert!(of("[a]\n[b\n").unwrap_err().to_string().starts_with("t.fio:2: `[b` is neither"));
        assert!(matches!(of("[a]\ninclude loop.fio"), Err(JobError::Nesting(_))));
        assert!(matches!(of("[a]\ninclude sections.fio"), Err(JobError::IncludedSection(_))));
        assert!(matches!(of("[a]\nhello world"), Err(JobError::Line(..))));
    }
}
