//! Whole command lines, with real files through io_uring and with engines that misbehave.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use heliostat_fio::engine::{
    Completion, Engine, EngineContext, EngineError, EngineFacts, EngineKind, Engines, Op, null::Null, uring::IoUring,
};
use heliostat_fio::run_with;
use serde_json::Value;

const ENGINES: Engines<'static> = &[&IoUring, &Null, &Stalling, &Dying];

/// Whether all went well, and the JSON report.
fn run(folder: &Path, arguments: &str) -> (bool, Value) {
    let output = folder.join("out.json");
    let mut words: Vec<String> =
        vec![format!("--output={}", output.display()), "--output-format=json+".into(), "--eta=never".into()];
    words.extend(arguments.replace("DIR", &folder.display().to_string()).split_whitespace().map(str::to_string));
    let fine = run_with(words.into_iter().map(Into::into).collect(), ENGINES).unwrap_or_else(|error| panic!("{error}"));
    let text = fs::read_to_string(output).unwrap();
    (fine, serde_json::from_str(&text).unwrap())
}

fn refusal(arguments: &str) -> (String, u8) {
    let words = arguments.split_whitespace().map(Into::into).collect();
    let error = run_with(words, ENGINES).expect_err("it was accepted");
    (error.to_string(), error.exit_code())
}

#[test]
fn files_are_laid_out_and_every_block_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let (fine, report) = run(
        folder.path(),
        "--directory=DIR --size=4m --name=a --rw=randread --bs=4k --ioengine=io_uring --iodepth=8 --fixedbufs --registerfiles",
    );
    let job = &report["jobs"][0];
    assert!(fine);
    assert_eq!(job["read"]["total_ios"], 1024);
    assert_eq!(job["read"]["io_bytes"], 4 << 20);
    assert_eq!(job["read"]["clat_ns"]["N"], 1024);
    assert_eq!(fs::metadata(folder.path().join("a.0.0")).unwrap().len(), 4 << 20);
    let bins = job["read"]["clat_ns"]["bins"].as_object().unwrap();
    assert_eq!(bins.values().filter_map(Value::as_u64).sum::<u64>(), 1024);
}

/// fio's own tool for histograms, where it is installed.
#[test]
fn fios_tool_for_histograms_reads_our_json_plus() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), "--name=a --ioengine=null --size=4m --bs=4k --rw=randread");
    let tool =
        std::process::Command::new("fio_jsonplus_clat2csv").args(["out.json", "out.csv"]).current_dir(&folder).output();
    let Ok(output) = tool else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(folder.path().join("out_job0.csv")).unwrap();
    let last: Vec<&str> = text.lines().last().unwrap().split(", ").collect();
    assert_eq!((last[5], last[6]), ("1024", "1.0"), "all completions are in the last cumulative count");
}

#[test]
fn clones_of_a_group_are_reported_together_and_walls_hold() {
    let folder = tempfile::tempdir().unwrap();
    let (_, report) = run(
        folder.path(),
        "--directory=DIR --group_reporting --size=1m --name=w --rw=write --bs=64k --numjobs=3 --fsync=4 --end_fsync=1 \
         --name=r --stonewall --rw=read --bs=64k --unlink=1",
    );
    let jobs = report["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 2);
    assert_eq!((&jobs[0]["write"]["total_ios"], &jobs[0]["groupid"]), (&48.into(), &0.into()));
    assert_eq!(jobs[0]["sync"]["total_ios"], 3 * (16 / 4 + 1));
    assert_eq!((&jobs[1]["read"]["total_ios"], &jobs[1]["groupid"]), (&16.into(), &1.into()));
    assert!(!folder.path().join("r.0.0").exists(), "unlink removes what was made");
    assert!(folder.path().join("w.2.0").exists());
}

#[test]
fn verification_passes_and_then_finds_the_one_block_that_was_changed() {
    for checksum in ["crc32c", "xxhash"] {
        let folder = tempfile::tempdir().unwrap();
        let job = format!("--filename=DIR/data --size=1m --bs=4k --ioengine=io_uring --iodepth=8 --verify={checksum}");
        let (fine, report) = run(folder.path(), &format!("{job} --name=w --rw=randwrite"));
        let found = &report["jobs"][0]["heliostat"]["verify"];
        assert!(fine);
        assert_eq!((&found["checked"], &found["wrong"]), (&256.into(), &0.into()));

        let file = fs::OpenOptions::new().read(true).write(true).open(folder.path().join("data")).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 40_960 + 1000).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 40_960 + 1000).unwrap();
        let (fine, report) = run(folder.path(), &format!("{job} --name=r --rw=read"));
        let found = &report["jobs"][0]["heliostat"]["verify"];
        assert!(!fine);
        assert_eq!((&found["checked"], &found["wrong"]), (&256.into(), &1.into()));
        let text = found["reports"][0].as_str().unwrap();
        assert!(text.starts_with("block at offset 40960, 4096 bytes: checksum: expected 0x"), "{text}");
    }
}

#[test]
fn a_verified_job_that_overwrites_expects_the_last_write() {
    let folder = tempfile::tempdir().unwrap();
    let (fine, report) = run(
        folder.path(),
        "--filename=DIR/data --size=64k --io_size=1m --bs=4k --name=w --rw=randwrite --norandommap --ioengine=io_uring \
         --iodepth=8 --verify=crc32c",
    );
    assert!(fine, "{report:#}");
    assert_eq!(report["jobs"][0]["heliostat"]["verify"]["wrong"], 0);
}

#[test]
fn a_rate_is_honoured() {
    let folder = tempfile::tempdir().unwrap();
    for process in ["linear", "poisson"] {
        let (_, report) = run(
            folder.path(),
            &format!(
                "--name=a --ioengine=null --size=1g --rw=randrw --runtime=1 --time_based --rate_iops=4000,1000 \
                 --rwmixread=80 --rate_process={process}"
            ),
        );
        let job = &report["jobs"][0];
        for (direction, rate) in [("read", 4000.0), ("write", 1000.0)] {
            let iops = job[direction]["iops"].as_f64().unwrap();
            assert!((iops / rate - 1.0).abs() < 0.2, "{process} {direction}: {iops}");
            assert!(job[direction]["lat_ns"]["percentile"].is_object(), "rated jobs report total latency");
        }
    }
}

/// Completes everything at once, except that the 100th op takes 300 ms and holds up all others.
struct Stalling;

struct StallingEngine {
    done: Vec<Completion>,
    count: u32,
    buffer: Vec<u8>,
}

impl EngineKind for Stalling {
    fn name(&self) -> &'static str {
        "stalling"
    }
    fn help(&self) -> &'static str {
        "Stalls once"
    }
    fn facts(&self) -> EngineFacts {
        EngineFacts { uses_files: false, stores: false, writes: false, one_at_a_time: false, survives_errors: false }
    }
    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        Ok(Box::new(StallingEngine { done: Vec::new(), count: 0, buffer: vec![0; context.buffer_bytes] }))
    }
}

impl Engine for StallingEngine {
    fn submit(&mut self, ops: &[Op]) -> Result<usize, EngineError> {
        self.done.extend(ops.iter().map(|op| Completion { slot: op.slot, outcome: op.length.into() }));
        Ok(ops.len())
    }
    fn complete(&mut self, _: usize, max: usize, _: Duration, into: &mut Vec<Completion>) -> Result<(), EngineError> {
        let before = self.count;
        self.count += self.done.len() as u32;
        if before < 100 && self.count >= 100 {
            std::thread::sleep(Duration::from_millis(300));
        }
        into.extend(self.done.drain(self.done.len().saturating_sub(max)..));
        Ok(())
    }
    fn buffer(&mut self, _: u32) -> &mut [u8] {
        &mut self.buffer
    }
}

#[test]
fn ops_that_waited_behind_a_stall_are_not_omitted() {
    let folder = tempfile::tempdir().unwrap();
    let (_, report) = run(
        folder.path(),
        "--name=a --ioengine=stalling --size=1g --rw=randread --number_ios=1000 --rate_iops=1000 --percentile_list=50:75:90",
    );
    let read = &report["jobs"][0]["read"];
    let at = |kind: &str, percent: &str| read[kind]["percentile"][percent].as_f64().unwrap() / 1e6;
    // 300 of 1000 ops were due during the stall. The engine alone saw one slow op.
    assert!(at("clat_ns", "90.000000") < 50.0);
    assert!(at("lat_ns", "90.000000") > 150.0, "{}", at("lat_ns", "90.000000"));
    assert!(at("lat_ns", "75.000000") > 10.0);
    assert!(at("lat_ns", "50.000000") < 10.0);
}

/// A client whose server dies after 50 ops: every op fails from then on.
struct Dying;

impl EngineKind for Dying {
    fn name(&self) -> &'static str {
        "dying"
    }
    fn help(&self) -> &'static str {
        "Its server dies"
    }
    fn facts(&self) -> EngineFacts {
        EngineFacts { uses_files: false, stores: false, writes: false, one_at_a_time: false, survives_errors: true }
    }
    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        let engine = StallingEngine { done: Vec::new(), count: 0, buffer: vec![0; context.buffer_bytes] };
        Ok(Box::new(DyingEngine(engine)))
    }
}

struct DyingEngine(StallingEngine);

impl Engine for DyingEngine {
    fn submit(&mut self, ops: &[Op]) -> Result<usize, EngineError> {
        self.0.submit(ops)
    }
    fn complete(&mut self, _: usize, _: usize, _: Duration, into: &mut Vec<Completion>) -> Result<(), EngineError> {
        std::thread::sleep(Duration::from_millis(2));
        for mut completion in self.0.done.drain(..) {
            self.0.count += 1;
            if self.0.count > 50 {
                completion.outcome = -104;
            }
            into.push(completion);
        }
        Ok(())
    }
    fn buffer(&mut self, slot: u32) -> &mut [u8] {
        self.0.buffer(slot)
    }
}

#[test]
fn a_server_that_dies_is_errors_per_second_and_not_a_hang() {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let (fine, report) =
        run(folder.path(), "--name=a --ioengine=dying --rw=randread --time_based --runtime=2500ms --iodepth=4");
    assert!(!fine && began.elapsed() < Duration::from_secs(6));
    let job = &report["jobs"][0];
    assert_eq!((&job["error"], &job["read"]["total_ios"]), (&104.into(), &50.into()));
    let ours = &job["heliostat"];
    let per_second: Vec<u64> = ours["errors_per_second"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
    assert!(per_second.len() >= 2 && per_second.iter().all(|errors| *errors > 50), "{per_second:?}");
    assert!(ours["first_error"].as_str().unwrap().contains("Connection reset"), "{ours}");
}

#[test]
fn an_ordinary_engine_ends_its_job_at_the_first_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("short"), vec![0; 8192]).unwrap();
    let (fine, report) = run(
        folder.path(),
        "--name=a --ioengine=dying --continue_on_error=none --rw=randread --time_based --runtime=20 --iodepth=4",
    );
    assert!(!fine);
    assert!(report["jobs"][0]["heliostat"]["errors"].as_u64().unwrap() <= 4);
    assert!(report["jobs"][0]["elapsed"].as_u64().unwrap() < 10);
}

#[test]
fn logs_have_a_line_per_op_or_per_window() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), "--name=a --ioengine=null --size=40k --bs=4k --rw=read --write_lat_log=DIR/x");
    let text = fs::read_to_string(folder.path().join("x_clat.1.log")).unwrap();
    assert_eq!(text.lines().count(), 10);
    for line in text.lines() {
        let fields: Vec<u64> = line.split(", ").map(|field| field.parse().unwrap()).collect();
        assert_eq!(fields[2..], [0, 4096, 0]);
    }
    run(
        folder.path(),
        "--name=a --ioengine=null --size=1g --rw=read --time_based --runtime=1 --write_iops_log=DIR/y --write_bw_log=DIR/y \
         --iopsavgtime=100 --log_avg_msec=100",
    );
    let text = fs::read_to_string(folder.path().join("y_iops.1.log")).unwrap();
    assert!((6..=12).contains(&text.lines().count()), "{text}");
}

#[test]
fn thinktime_and_ramps_and_percentages_are_taken_into_account() {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let (_, report) = run(
        folder.path(),
        "--name=a --ioengine=null --size=1m --rw=read --number_ios=20 --thinktime=10ms --thinktime_blocks=2",
    );
    assert_eq!(report["jobs"][0]["read"]["total_ios"], 20);
    assert!(began.elapsed() >= Duration::from_millis(90), "{:?}", began.elapsed());
    let (_, report) = run(
        folder.path(),
        "--name=a --ioengine=null --size=1g --rw=read --ramp_time=300ms --runtime=500ms --time_based",
    );
    let runtime = report["jobs"][0]["read"]["runtime"].as_u64().unwrap();
    assert!((490..560).contains(&runtime), "{runtime}");
}

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    for (arguments, says) in [
        ("--name=a --iodpeth=2", "did you mean `iodepth`?"),
        ("--name=a --rw=read", "size is missing"),
        ("--name=a --ioengine=null", "size is missing"),
        ("--name", "--name needs the name"),
        ("--client=host", "--client is not supported"),
        ("--output-format=xml --name=a", "none of normal, json"),
        ("nowhere.fio", "nowhere.fio: No such file"),
        ("--compare one.json", "needs two reports"),
        ("--name=a --size=1m --rw=write --readonly", "--readonly was given"),
        ("--name=a --size=1m --bs=2m --ioengine=null", "do not fit"),
        ("--name=a --size=900t --bsrange=512-4k --rw=randread --ioengine=null", "give norandommap"),
        ("-x", "unknown option `-x`"),
        ("", "no job"),
    ] {
        let (text, code) = refusal(arguments);
        assert!(text.contains(says) && !text.contains('\n'), "{arguments}: {text}");
        assert_eq!(code, 2, "{arguments}: {text}");
    }
}

#[test]
fn a_file_with_a_heliostat_volume_in_it_is_not_overwritten_unless_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume");
    let mut bytes = vec![0; 1 << 20];
    bytes[..8].copy_from_slice(b"HELIOVOL");
    fs::write(&path, &bytes).unwrap();
    let job = format!("--name=a --rw=write --filename={} --eta=never", path.display());
    let (text, code) = refusal(&job);
    assert!(text.contains("holds a Heliostat volume") && text.contains("--allow-destructive="), "{text}");
    assert_eq!(code, 2);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let (fine, _) = run(folder.path(), &format!("{job} --allow-destructive={}", path.display()));
    assert!(fine);
}

#[test]
fn ready_job_files_and_their_includes_are_understood() {
    let jobs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../jobs");
    let mut count = 0;
    for entry in fs::read_dir(jobs).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        // Those of engines that this crate has not are read by the tests of heliostat-bench.
        let is_ours = !["hidb", "verbs", "nvme_cmd"].iter().any(|engine| text.contains(&format!("ioengine={engine}")));
        if is_ours && path.extension().is_some_and(|extension| extension == "fio") {
            let words = vec!["--parse-only".into(), path.clone().into_os_string()];
            run_with(words, ENGINES).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            count += 1;
        }
    }
    assert!(count >= 5);
}

#[test]
fn a_sweep_is_a_table_with_a_row_per_value() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("table");
    let words = format!(
        "--output={} --eta=never --sweep=iodepth=1,2 --name=a --ioengine=null --size=1g --time_based --runtime=100ms",
        output.display()
    );
    assert!(run_with(words.split_whitespace().map(Into::into).collect(), ENGINES).unwrap());
    let text = fs::read_to_string(output).unwrap();
    assert!(text.lines().count() >= 4 && text.contains("<- knee"), "{text}");
}

#[test]
fn a_file_that_cannot_be_written_is_refused_before_the_run() {
    let began = Instant::now();
    for option in ["--output", "--plot", "--write_lat_log", "--write_bw_log"] {
        let job = "--name=a --ioengine=null --size=1g --time_based --runtime=30 --eta=never --output-format=json";
        let (text, code) = refusal(&format!("{option}=/nonexistent/file {job}"));
        assert!(text.contains("/nonexistent/file") && text.contains("No such file"), "{option}: {text}");
        assert_eq!(code, 1);
    }
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn buffers_in_huge_pages_read_the_same_and_are_of_io_uring_only() {
    let folder = tempfile::tempdir().unwrap();
    let job = "--directory=DIR --name=a --rw=write --bs=1m --size=8m --iodepth=4 --ioengine=io_uring --verify=crc32c";
    if fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|text| !text.contains("[never]")) {
        let (fine, report) = run(folder.path(), &format!("{job} --mem=mmaphuge"));
        assert!(fine);
        assert_eq!(report["jobs"][0]["write"]["total_ios"], 8);
    }
    assert!(refusal("--name=a --size=1m --ioengine=io_uring --mem=shm").0.contains("none of malloc, mmap, mmaphuge"));
    assert!(refusal("--name=a --size=1m --ioengine=null --mem=mmap").0.contains("not one of ioengine=null"));
}
