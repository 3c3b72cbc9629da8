//! fio's logs of latency, bandwidth and IOPS: `msec, value, direction, block size[, offset], 0` per line.
//!
//! Rows are kept in memory until the job ends: 40 bytes per op, or per interval with `log_avg_msec`.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    ms: u64,
    value: u64,
    direction: u8,
    block_bytes: u64,
    offset: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    end_ms: u64,
    sum: u64,
    max: u64,
    count: u64,
}

/// One log.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    rows: Vec<Row>,
    average_ms: u64,
    highest: bool,
    windows: [Window; 2],
}

impl Log {
    pub(crate) fn new(average_ms: u64, highest: bool) -> Log {
        let window = Window { end_ms: average_ms, ..Window::default() };
        Log { rows: Vec::new(), average_ms, highest, windows: [window; 2] }
    }

    /// A value of an op that ended `ms` after the start.
    pub(crate) fn add(&mut self, ms: u64, value: u64, direction: usize, block_bytes: u64, offset: u64) {
        if self.average_ms == 0 {
            self.rows.push(Row { ms, value, direction: direction as u8, block_bytes, offset });
            return;
        }
        if ms >= self.windows[direction].end_ms {
            self.close(direction);
            let end_ms = (ms / self.average_ms + 1) * self.average_ms;
            self.windows[direction] = Window { end_ms, ..Window::default() };
        }
        let window = &mut self.windows[direction];
        window.sum += value;
        window.max = window.max.max(value);
        window.count += 1;
    }

    fn close(&mut self, direction: usize) {
        let window = self.windows[direction];
        if let Some(mean) = window.sum.checked_div(window.count) {
            let value = if self.highest { window.max } else { mean };
            let direction = direction as u8;
            self.rows.push(Row { ms: window.end_ms, value, direction, block_bytes: 0, offset: 0 });
        }
    }

    /// Its text; ends the last window.
    pub(crate) fn text(&mut self, with_offset: bool) -> String {
        for direction in 0..2 {
            self.close(direction);
            self.windows[direction].count = 0;
        }
        let mut text = String::with_capacity(self.rows.len() * 24);
        for Row { ms, value, direction, block_bytes, offset } in &self.rows {
            let _ = match with_offset {
                true => writeln!(text, "{ms}, {value}, {direction}, {block_bytes}, {offset}, 0"),
                false => writeln!(text, "{ms}, {value}, {direction}, {block_bytes}, 0"),
            };
        }
        text
    }
}

/// The logs of one clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logs {
    /// slat, clat, lat.
    pub latency: Option<[Log; 3]>,
    pub bandwidth: Option<Log>,
    pub iops: Option<Log>,
}

impl Logs {
    pub(crate) fn for_job(options: &crate::job::JobOptions) -> Option<Logs> {
        let log = || Log::new(options.log_average_ms, options.log_max);
        let logs = Logs {
            latency: options.latency_log.as_ref().map(|_| [log(), log(), log()]),
            bandwidth: options.bandwidth_log.as_ref().map(|_| log()),
            iops: options.iops_log.as_ref().map(|_| log()),
        };
        (logs.latency.is_some() || logs.bandwidth.is_some() || logs.iops.is_some()).then_some(logs)
    }

    /// Writes the files; `number` counts all clones of the run from 1.
    pub(crate) fn write(mut self, options: &crate::job::JobOptions, number: usize) -> Result<(), (PathBuf, io::Error)> {
        let mut files: Vec<(&Option<String>, &str, &mut Log)> = Vec::new();
        if let Some([slat, clat, lat]) = &mut self.latency {
            files.extend([
                (&options.latency_log, "slat", slat),
                (&options.latency_log, "clat", clat),
                (&options.latency_log, "lat", lat),
            ]);
        }
        files.extend(self.bandwidth.iter_mut().map(|log| (&options.bandwidth_log, "bw", log)));
        files.extend(self.iops.iter_mut().map(|log| (&options.iops_log, "iops", log)));
        for (prefix, kind, log) in files {
            let prefix = prefix.as_deref().unwrap_or_default();
            let text = log.text(options.log_offset);
            let (path, append) = match options.log_per_job {
                true => (PathBuf::from(format!("{prefix}_{kind}.{number}.log")), false),
                false => (PathBuf::from(format!("{prefix}_{kind}.log")), number > 1),
            };
            let mut open = std::fs::OpenOptions::new();
            open.create(true).write(true).append(append).truncate(!append);
            let written = open.open(&path).and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
            written.map_err(|cause| (path, cause))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_op_is_a_line_as_fio_writes_it() {
        let mut log = Log::new(0, false);
        log.add(12, 27961, 1, 4096, 8192);
        assert_eq!(log.text(false), "12, 27961, 1, 4096, 0\n");
        assert_eq!(log.text(true), "12, 27961, 1, 4096, 8192, 0\n");
    }

    #[test]
    fn averages_are_of_windows_and_directions_apart() {
        let mut log = Log::new(10, false);
        for (ms, value, direction) in [(1, 10, 0), (9, 30, 0), (9, 7, 1), (12, 5, 0), (35, 8, 0)] {
            log.add(ms, value, direction, 4096, 0);
        }
        assert_eq!(log.text(false), "10, 20, 0, 0, 0\n20, 5, 0, 0, 0\n40, 8, 0, 0, 0\n10, 7, 1, 0, 0\n");
        let mut highest = Log::new(10, true);
        highest.add(1, 10, 0, 4096, 0);
        highest.add(2, 30, 0, 4096, 0);
        assert_eq!(highest.text(false), "10, 30, 0, 0, 0\n");
    }
}
