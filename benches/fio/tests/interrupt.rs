//! Ctrl-C, in a process of its own: the signal is of the whole process.

use std::time::{Duration, Instant};

use heliostat_fio::engine::{Engines, null::Null};
use heliostat_fio::run_with;

#[test]
fn ctrl_c_ends_the_run_and_prints_the_results_so_far() {
    const ENGINES: Engines<'static> = &[&Null];
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.json");
    let words = format!(
        "--output={} --output-format=json --eta=never --name=a --ioengine=null --size=1g --time_based --runtime=60 --name=b \
         --stonewall --ioengine=null --size=1m",
        output.display()
    );
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(700));
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::INT).unwrap();
    });
    let began = Instant::now();
    let fine = run_with(words.split_whitespace().map(Into::into).collect(), ENGINES).unwrap();
    assert!(!fine && began.elapsed() < Duration::from_secs(10));
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(output).unwrap()).unwrap();
    assert_eq!(report["jobs"].as_array().unwrap().len(), 1, "what had not begun is not reported");
    assert!(report["jobs"][0]["read"]["total_ios"].as_u64().unwrap() > 1000);
}
