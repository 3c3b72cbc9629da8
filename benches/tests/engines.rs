//! The engines of this crate that need no cell: `verbs` over the user-space soft-RoCE, and `glommio` on a file.

use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Exit code, standard output and standard error.
fn run(words: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat-bench"));
    let done = command.args(words).stdin(Stdio::null()).output().unwrap();
    (done.status.code().unwrap_or(-1), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
}

fn report(words: &[&str]) -> Value {
    let all: Vec<&str> = words.iter().copied().chain(["--name=x", "--output-format=json", "--eta=never"]).collect();
    let (code, output, errors) = run(&all);
    assert_eq!(code, 0, "{words:?}: {output}{errors}");
    serde_json::from_str(&output).unwrap()
}

#[test]
fn every_verb_moves_what_it_was_asked_to() {
    for (words, way, bytes) in [
        (vec!["--verb=send", "--rw=write", "--bs=4k", "--iodepth=16"], "write", 4096),
        (vec!["--verb=write", "--rw=write", "--bs=64k", "--iodepth=8"], "write", 65536),
        (vec!["--verb=read", "--rw=read", "--bs=64k", "--iodepth=8"], "read", 65536),
        (vec!["--rw=read", "--bs=512", "--iodepth=4", "--events=1"], "read", 512),
        (vec!["--verb=fetch_add", "--rw=write", "--bs=8", "--iodepth=4"], "write", 8),
        (vec!["--verb=compare_swap", "--rw=write", "--bs=8"], "write", 8),
        (vec!["--verb=send", "--rw=write", "--bs=8", "--ping_pong=1"], "write", 8),
        (vec!["--verb=write", "--rw=write", "--bs=64", "--ping_pong=1"], "write", 64),
    ] {
        let all: Vec<&str> =
            ["--ioengine=verbs", "--size=1g", "--number_ios=40"].into_iter().chain(words.iter().copied()).collect();
        let found = report(&all);
        assert_eq!(found["jobs"][0][way]["total_ios"], 40, "{words:?}");
        assert_eq!(found["jobs"][0][way]["io_bytes"], 40 * bytes, "{words:?}");
    }
}

#[test]
fn a_job_and_its_peer_may_be_two_processes() {
    let mut serving = Command::new(env!("CARGO_BIN_EXE_heliostat-bench"));
    let serving = serving.args(["serve-verbs", "--listen", "127.0.0.1:0"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut peer = serving.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(peer.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let hostname = format!("--hostname={}", line.trim().strip_prefix("ready ").unwrap());
    let words =
        ["--ioengine=verbs", "--verb=write", "--rw=write", "--bs=4k", "--iodepth=4", "--size=1g", "--number_ios=100"];
    let with: Vec<&str> = words.into_iter().chain([hostname.as_str(), "--numjobs=2", "--group_reporting"]).collect();
    let found = report(&with);
    // A peer that goes ends the job, with an error.
    let mut lasting = Command::new(env!("CARGO_BIN_EXE_heliostat-bench"));
    let lasting = lasting.args(["--name=x", "--time_based", "--runtime=60", "--eta=never"]).args(&with[..6]);
    let lasting =
        lasting.arg(&hostname).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    peer.kill().unwrap();
    peer.wait().unwrap();
    let started = std::time::Instant::now();
    let ended = lasting.wait_with_output().unwrap();
    assert!(!ended.status.success());
    assert!(started.elapsed() < std::time::Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!(found["jobs"][0]["write"]["total_ios"], 200);
}

#[test]
fn the_device_layer_writes_what_it_reads_back_and_notices_damage() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("file");
    let place = format!("--filename={}", path.display());
    let words = ["--ioengine=glommio", "--direct=1", "--bs=16k", "--iodepth=8", "--size=8m", "--verify=crc32c", &place];
    let with = |rw: &'static str| -> Vec<&str> { words.into_iter().chain([rw]).collect() };
    let found = report(&with("--rw=randwrite"));
    assert_eq!(found["jobs"][0]["write"]["io_bytes"], 8 << 20);
    let found = report(&with("--rw=read"));
    assert_eq!(found["jobs"][0]["read"]["total_ios"], 512);

    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(5 * 16384 + 999)).unwrap();
    file.write_all(b"damage").unwrap();
    file.sync_all().unwrap();
    drop(file);
    let all: Vec<&str> = with("--rw=read").into_iter().chain(["--name=x", "--eta=never"]).collect();
    let (code, output, errors) = run(&all);
    assert_ne!(code, 0);
    assert!(format!("{output}{errors}").contains("81920"), "the block's offset: {output}{errors}");
}

#[test]
fn what_an_engine_can_not_do_is_said_in_one_line() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let place = format!("--filename={}", folder.path().join("file").display());
    for (words, part) in [
        (vec!["--ioengine=glommio", "--rw=read", "--bs=4k"], "direct=1"),
        (vec!["--ioengine=glommio", "--rw=read", "--bs=5k", "--direct=1"], "4096"),
        (vec!["--ioengine=nvme_cmd", "--rw=read", "--filename=/dev/null"], "/dev/ngXnY"),
        (vec!["--ioengine=io_uring_cmd", "--rw=read", "--filename=/dev/null"], "/dev/ngXnY"),
        (vec!["--ioengine=nvme_cmd", "--rw=write", "--filename=/dev/ng99n99"], "No such file"),
        (vec!["--ioengine=nvme_cmd", "--rw=read", "--cmd_type=scsi"], "cmd_type"),
        (vec!["--ioengine=glommio", "--rw=read", "--filename=/dev/null", "--direct=1"], "neither a file"),
        (vec!["--ioengine=verbs", "--rw=write", "--bs=16", "--verb=fetch_add"], "bs=8"),
        (vec!["--ioengine=verbs", "--rw=write", "--bs=8", "--verb=shout"], "compare_swap"),
        (vec!["--ioengine=verbs", "--rw=write", "--bs=8", "--ping_pong=1", "--iodepth=2"], "iodepth=1"),
        (vec!["--ioengine=verbs", "--rw=write", "--bs=8", "--device=nothing_0"], "nothing_0"),
        (
            vec![
                "--ioengine=hidb-point",
                "--rw=randread",
                "--table=t",
                "--where=a = $rand(1,9)",
                "--answer_digest=first",
            ],
            "answer_digest",
        ),
        (vec!["--ioengine=verbs", "--rw=write", "--bs=8", "--hostname=127.0.0.1:1"], "serve-verbs"),
    ] {
        let all: Vec<&str> =
            ["--name=x", "--size=1m", place.as_str()].into_iter().chain(words.iter().copied()).collect();
        let (code, output, errors) = run(&all);
        assert_ne!(code, 0, "{words:?}");
        assert!(format!("{output}{errors}").contains(part), "{words:?}: {output}{errors}");
    }
}

#[test]
fn a_profile_is_a_report_with_the_machine_and_what_was_left_out() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output = format!("--output={}", folder.path().join("report.md").display());
    let (code, text, errors) = run(&["--profile", "quick", &output]);
    assert_eq!(code, 0, "{text}{errors}");
    let report = std::fs::read_to_string(folder.path().join("report.md")).unwrap();
    for part in
        ["| processor |", "| kernel |", "## Measuring", "## Fabric", "WRITE of 64 KiB", "no --filename", "no --connect"]
    {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert!(!report.contains("failed"), "{report}");
}

#[test]
fn the_ready_job_files_are_right() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
    let mut read = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "fio") {
            continue;
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat-bench"));
        command.arg("--parse-only").arg(&path).stdin(Stdio::null());
        command.envs([
            ("CELL", "hidb://cell:7400"),
            ("DEVICE", "soft"),
            ("PEER", "peer"),
            ("QUERIES", "q.npy"),
            ("TARGET", "/nowhere/file"),
        ]);
        let done = command.output().unwrap();
        assert!(done.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&done.stderr));
        read += 1;
    }
    assert!(read >= 10, "{read}");
}

#[test]
fn the_man_page_and_completions_have_the_engines_options() {
    for words in [&["man"][..], &["completions", "bash"], &["completions", "zsh"], &["completions", "fish"]] {
        let (code, text, errors) = run(words);
        assert_eq!(code, 0, "{errors}");
        for word in ["serve", "ioengine", "ping_pong", "answer_digest", "spin_us"] {
            assert!(text.contains(word) || text.contains(&word.replace('_', "\\_")), "{words:?}: {word}");
        }
    }
}
