//! A reader that has read enough, as `| head -1` does: no words, no panic, no run that nobody sees.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The exit code, and what stood on standard error, of this test binary run as the command with a reader of one line.
fn read_one_line(words: &str) -> (Option<i32>, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "command", "--nocapture", "--ignored", "-q"])
        .env("WORDS", words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = BufReader::with_capacity(64, child.stdout.take().unwrap());
    for _ in 0..3 {
        reader.read_line(&mut String::new()).unwrap();
    }
    drop(reader);
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    (child.wait().unwrap().code(), errors)
}

#[test]
#[ignore = "the child of the tests here"]
fn command() {
    let words = std::env::var("WORDS").unwrap();
    let ended =
        heliostat_fio::run_with(words.split(' ').map(Into::into).collect(), &[&heliostat_fio::engine::null::Null]);
    std::process::exit(ended.map_or_else(|error| error.exit_code().into(), |_| 0));
}

#[test]
fn a_closed_pipe_ends_the_command_quietly() {
    let began = Instant::now();
    let run = "--name=a --ioengine=null --size=1g --time_based --runtime=60 --status-interval=1 --eta=never";
    assert_eq!(read_one_line(run), (Some(141), String::new()));
    assert!(began.elapsed() < Duration::from_secs(20));
}
