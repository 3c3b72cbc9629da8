//! Job files of the shapes that people share, and those that must be refused.

use super::options::Direction;
use super::*;
use crate::engine::null::Null;
use crate::engine::uring::IoUring;

const ENGINES: Engines<'static> = &[&IoUring, &Null];

fn jobs(text: &str) -> JobSet<'static> {
    parse_job_file(text, ENGINES).unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(text: &str) -> String {
    match parse_job_file(text, ENGINES) {
        Ok(_) => panic!("was accepted: {text}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_random_read_job_as_people_share_them() {
    let set = jobs(
        "; a drive under random reads\n[global]\nname=rand-read\nfilename=rand-read\nrw=randread\nbs=4K\ndirect=0\n\
         numjobs=1\ntime_based\nruntime=900\n\n[file1]\nsize=10G\nioengine=libaio\niodepth=16\n",
    );
    let job = &set.jobs[0];
    assert_eq!((job.name.as_str(), job.depth, job.engine.name()), ("file1", 16, "io_uring"));
    assert_eq!(job.options.runtime_us, Some(900_000_000));
    assert_eq!(job.engine_text(), "libaio (served by io_uring)");
    assert_eq!(job.options.direction, Direction { random: true, read: true, write: false });
    assert_eq!(set.global[0], ("name".into(), "rand-read".into()));
}

#[test]
fn several_globals_mixes_and_walls() {
    let set = jobs(
        "[global]\nioengine=io_uring\ndirect=1\nsize=1g\n[seq]\nrw=write\nbs=1m\n[wall]\nstonewall\nrw=randrw\nrwmixwrite=30\n\
         bssplit=4k/10:64k/50:32k/40\niodepth=32\niodepth_batch=8\niodepth_batch_complete=4\n[global]\nbs=16k,8k\n[last]\nnew_group\nnumjobs=4\nrate_iops=100,50\n",
    );
    let [seq, wall, last] = &set.jobs[..] else { panic!("three jobs") };
    assert_eq!((seq.group, seq.wave, wall.group, wall.wave, last.group, last.wave), (0, 0, 1, 1, 2, 1));
    assert_eq!((wall.read_percent, wall.batch_submit, wall.batch_complete_min), (70, 8, 4));
    assert_eq!(last.blocks, [BlockSizes::Fixed(16384), BlockSizes::Fixed(8192)]);
    assert_eq!((last.options.clones, last.is_rated(), last.percentiles_of[2]), (4, true, true));
}

#[test]
fn shapes_of_jobs_that_people_share() {
    // Four threads on files of their own, one direction after the other, depth of one.
    let set = jobs(
        "; threads\n[global]\ndirect=1\nsize=512m\nbsrange=4k-4k\ntimeout=60\nnumjobs=4\t; clones\n[w]\nrw=write\n[rw]\nstonewall\n\
         rw=randwrite\n[r]\nstonewall\nrw=read\n",
    );
    assert_eq!(set.jobs.iter().map(|job| job.wave).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(set.jobs.iter().all(|job| job.blocks[0] == BlockSizes::Fixed(4096) && job.options.clones == 4));
    // Several depths at once, unbuffered by its other name.
    let set = jobs(
        "[global]\nioengine=libaio\nbuffered=0\nrw=randread\nbs=128k\nsize=512m\ndirectory=/data\n[a]\niodepth=4\n[b]\niodepth=32\n",
    );
    assert!(set.jobs.iter().all(|job| job.options.direct));
    assert_eq!(set.jobs.iter().map(|job| job.depth).collect::<Vec<_>>(), [4, 32]);
    // Verification, and a fill with a log and a description.
    jobs("[v]\nrw=randwrite\nbs=4k\ndirect=1\nioengine=libaio\niodepth=16\nverify=crc32c\nsize=1g\n");
    let set = jobs(
        "[global]\nioengine=libaio\ndirect=1\ngroup_reporting\nfilename=/dev/x\n[fill]\ndescription=The fill\nrw=write\n\
         iodepth=16\nbs=1M\n[steady]\nstonewall\nrw=randwrite\nbs=4K\nnumjobs=4\nwrite_bw_log=log\nwrite_lat_log\n",
    );
    assert_eq!(set.jobs[1].options.bandwidth_log.as_deref(), Some("log"));
    assert_eq!(set.jobs[1].options.latency_log.as_deref(), Some("steady"), "a log without a name has the job's");
    jobs("[job]\nioengine=null\nrw=randread\nnorandommap\nsize=1280m\nbs=4k\nrandom_distribution=zipf:0.5\n");
}

#[test]
fn a_synchronous_engine_keeps_one_op_in_flight_and_says_so() {
    let set = jobs("[a]\niodepth=8\nsize=1m");
    assert_eq!(set.jobs[0].depth, 1);
    assert_eq!(set.jobs[0].notes.len(), 2);
}

#[test]
fn what_fio_has_and_we_have_not_is_told_apart_from_nonsense() {
    assert_eq!(
        refusal("[a]\nrw=randtrim"),
        "job file:2: rw: randtrim: trims are not supported; blkdiscard(8) discards"
    );
    assert_eq!(
        refusal("[a]\nsize=1m\nread_iolog=x"),
        "job file:3: fio's option `read_iolog` is not supported: I/O traces are neither written nor replayed"
    );
    assert_eq!(refusal("[a]\niodpeth=4"), "job file:2: unknown option `iodpeth`; did you mean `iodepth`?");
    assert!(refusal("[a]\nwombat=4").ends_with("unknown option `wombat`"));
    assert!(refusal("[a]\nverify=md5").contains("use crc32c or xxhash"));
    assert!(refusal("[a]\nioengine=rados").contains("there are: io_uring, null"));
    assert!(refusal("[a]\nioengine=null\nfixedbufs=1\nsize=1m").contains("is not one of ioengine=null"));
}

#[test]
fn contradictions_are_one_clear_line() {
    for (text, says) in [
        ("time_based", "time_based needs a runtime"),
        ("rate=1m\nrate_iops=10", "rate and rate_iops"),
        ("rwmixread=70\nrwmixwrite=70", "do not add up to 100"),
        ("direct=1\nbs=1000", "multiple of 512"),
        ("verify=crc32c\nrw=randrw", "a mix is not supported"),
        ("verify=crc32c\nrw=write\nbsrange=4k-8k", "blocks of one size"),
        ("verify=crc32c\nrw=write\nioengine=null", "an engine that stores"),
        ("fixedbufs=maybe", "fixedbufs: `maybe` is not 0 or 1"),
        ("bs=0", "at least 1"),
        ("iodepth=0", "from 1 to"),
        ("runtime=", "`` is not time"),
        ("bssplit=4k/60", "100 percent"),
    ] {
        let line = refusal(&format!("[a]\nioengine=io_uring\nsize=1m\n{text}\n"));
        assert!(line.contains(says) && !line.contains('\n'), "{text}: {line}");
    }
    assert!(refusal("[global]\nsize=1m\n").starts_with("no job"));
}

#[test]
fn every_option_of_fio_is_in_one_of_the_two_lists_and_in_one_only() {
    for option in table::OPTIONS {
        assert!(not_supported_because(option.name).is_none(), "{} is in both lists", option.name);
    }
    let mut known: Vec<&str> = table::OPTIONS.iter().map(|option| option.name).collect();
    known.extend(elsewhere::NOT_SUPPORTED.iter().map(|(name, _)| *name));
    known.sort_unstable();
    let all = known.len();
    known.dedup();
    assert_eq!(known.len(), all, "an option is listed twice");
    let of_fio = include_str!("../../tests/fio-3.33/options.txt");
    let of_engine = |name| ENGINES.iter().any(|engine| engine.options().iter().any(|option| option.name == name));
    for name in of_fio.split_whitespace() {
        let listed = table::find(name).is_some() || not_supported_because(name).is_some();
        assert!(listed || of_engine(name), "fio's {name} is in no list");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_jobs_or_one_line(text in "(\\[[a-z]{0,6}\\]\n|[a-z_]{1,8}=[0-9a-z:/%,.(){}$-]{0,9}\n|\\PC{0,20}\n){0,12}") {
        if let Err(error) = parse_job_file(&text, ENGINES) {
            proptest::prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn known_options_with_any_value_do_not_panic(index in 0usize..200, value in "[0-9a-zA-Z:/%,.()*^-]{0,16}") {
        let option = &table::OPTIONS[index % table::OPTIONS.len()];
        let _ = parse_job_file(&format!("[a]\nioengine=io_uring\nsize=1m\n{}={value}\n", option.name), ENGINES);
    }

    #[test]
    fn order_of_independent_options_does_not_matter(shuffled in proptest::sample::subsequence(vec!["rw=randwrite", "bs=8k", "iodepth=4", "runtime=3", "randseed=7"], 5)) {
        let forward = jobs(&format!("[a]\nioengine=io_uring\nsize=1m\n{}", shuffled.join("\n")));
        let backward: Vec<&str> = shuffled.into_iter().rev().collect();
        let backward = jobs(&format!("[a]\nioengine=io_uring\nsize=1m\n{}", backward.join("\n")));
        let mut options = [forward.jobs[0].options.clone(), backward.jobs[0].options.clone()];
        options.iter_mut().for_each(|options| options.given.clear());
        proptest::prop_assert_eq!(&options[0], &options[1]);
    }
}
