//! The line on the terminal while jobs run, in fio's words:
//! `Jobs: 2 (f=2): [r(1),w(1)][50.0%][r=142MiB/s,w=61MiB/s][r=36.5k,w=15k IOPS][eta 00m:01s]`.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::quantity;
use crate::job::Job;
use crate::run::{Progress, State};

const REDRAW: Duration = Duration::from_millis(500);

/// Draws it, or prints a line per interval where no terminal is.
pub(crate) struct Line {
    bar: Option<ProgressBar>,
    lines: Option<Duration>,
    last: Option<(Instant, [(u64, u64); 2])>,
    last_line: Instant,
    text: String,
}

impl Line {
    /// `drawn`: in place; `lines`: a new line per interval (`--eta-newline`).
    pub(crate) fn new(drawn: bool, lines: Option<Duration>) -> Line {
        let bar = drawn.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Line { bar, lines, last: None, last_line: Instant::now(), text: String::new() }
    }

    pub(crate) fn update(&mut self, progress: &Progress<'_>) {
        if self.bar.is_none() && self.lines.is_none() {
            return;
        }
        let now = Instant::now();
        let (since, before) = match self.last {
            Some((at, _)) if now - at < REDRAW => return,
            Some((at, before)) => (now - at, before),
            None => (progress.elapsed.max(Duration::from_millis(1)), [(0, 0); 2]),
        };
        self.last = Some((now, progress.done));
        let per_second = |now: u64, before: u64| (now.saturating_sub(before) as f64 / since.as_secs_f64()) as u64;
        let rates = [0, 1].map(|d| {
            let (now, before) = (progress.done[d], before[d]);
            (per_second(now.0, before.0), per_second(now.1, before.1))
        });
        self.text = text(progress, rates);
        if let Some(bar) = &self.bar {
            bar.set_message(self.text.clone());
        }
        if let Some(interval) = self.lines
            && self.last_line.elapsed() >= interval
        {
            self.last_line = now;
            eprintln!("{}", self.text);
        }
    }

    /// Takes the line away, for a report to stand there.
    pub(crate) fn clear(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            bar.reset();
        }
        self.last = None;
    }
}

/// The line, from ops and bytes per second of reads and writes.
fn text(progress: &Progress<'_>, rates: [(u64, u64); 2]) -> String {
    let running = progress.clones.iter().filter(|(_, state)| *state != State::Done).count();
    let files: usize = progress
        .clones
        .iter()
        .filter(|(_, state)| *state != State::Done)
        .map(|(job, _)| job.options.filenames.len().max(job.options.file_count as usize))
        .sum();
    let mut letters: Vec<(char, usize)> = Vec::new();
    for (job, state) in &progress.clones {
        let letter = letter(job, *state);
        match letters.last_mut() {
            Some((last, count)) if *last == letter => *count += 1,
            _ => letters.push((letter, 1)),
        }
    }
    let letters: Vec<String> = letters.iter().map(|(letter, count)| format!("{letter}({count})")).collect();
    let (share, eta) = match progress.planned {
        Some(planned) => {
            let share = (progress.elapsed.as_secs_f64() / planned.as_secs_f64()).min(1.0) * 100.0;
            let left = planned.saturating_sub(progress.elapsed).as_secs();
            (format!("{share:.1}%"), format!("{:02}m:{:02}s", left / 60, left % 60))
        }
        None => ("-.-%".into(), "--m:--s".into()),
    };
    let used: Vec<usize> = (0..2).filter(|d| progress.done[*d].0 > 0).collect();
    let join = |of: &dyn Fn(usize) -> String| used.iter().map(|d| of(*d)).collect::<Vec<_>>().join(",");
    let names = ["r", "w"];
    let bandwidth = join(&|d| format!("{}={}", names[d], quantity(rates[d].1, 4, true, "B/s")));
    let iops = join(&|d| format!("{}={}", names[d], quantity(rates[d].0, 4, false, "")));
    format!("Jobs: {running} (f={files}): [{}][{share}][{bandwidth}][{iops} IOPS][eta {eta}]", letters.join(","))
}

fn letter(job: &Job<'_>, state: State) -> char {
    let direction = job.options.direction;
    match state {
        State::Opening | State::Waiting => 'P',
        State::Ramping => '/',
        State::Verifying => 'V',
        State::Done => '_',
        State::Running => match (direction.random, direction.read, direction.write) {
            (false, true, true) => 'M',
            (true, true, true) => 'm',
            (false, true, false) => 'R',
            (true, true, false) => 'r',
            (false, false, _) => 'W',
            (true, false, _) => 'w',
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::null::Null;
    use crate::job::parse_job_file;

    #[test]
    fn the_line_has_the_parts_of_fios() {
        let set =
            parse_job_file("[a]\nioengine=null\nrw=randread\nsize=1m\n[b]\nioengine=null\nrw=write\nsize=1m", &[&Null]);
        let set = set.unwrap_or_else(|error| panic!("{error}"));
        let progress = Progress {
            clones: vec![(&set.jobs[0], State::Running), (&set.jobs[0], State::Running), (&set.jobs[1], State::Done)],
            elapsed: Duration::from_secs(30),
            planned: Some(Duration::from_secs(120)),
            done: [(10, 40_960), (0, 0)],
        };
        assert_eq!(
            text(&progress, [(36_450, 149_302_372), (0, 0)]),
            "Jobs: 2 (f=2): [r(2),_(1)][25.0%][r=142MiB/s][r=36.5k IOPS][eta 01m:30s]"
        );
    }
}
