//! What a reader of a report must know of the machine: two sites can't compare numbers without it.
//!
//! Owns [`facts`]. Everything is read from `/proc` and `/sys`; what is not there is left out.

use std::fs;
use std::path::{Path, PathBuf};

use heliostat_dataplane::device::nvme;

/// Names and values, in the order of a report.
pub fn facts(drive: Option<&Path>) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let mut add = |name, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            facts.push((name, value));
        }
    };
    add("processor", processor());
    add("frequency governor", line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"));
    add("memory", memory("MemTotal:"));
    add("huge pages", huge_pages());
    add("kernel", line("/proc/sys/kernel/osrelease"));
    add("drive", drive.and_then(drive_of));
    for (index, nic) in nics().into_iter().enumerate() {
        add(if index == 0 { "network" } else { "" }, Some(nic));
    }
    facts
}

fn line(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()?.lines().next().map(|line| line.trim().to_string())
}

fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    let count = text.lines().filter(|line| line.starts_with("processor")).count();
    Some(format!("{count} x {}", model.unwrap_or("unknown")))
}

fn memory(name: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes: f64 =
        text.lines().find_map(|line| line.strip_prefix(name))?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(format!("{:.1} GiB", kibibytes / f64::from(1 << 20)))
}

fn huge_pages() -> Option<String> {
    let reserved = line("/proc/sys/vm/nr_hugepages")?;
    let text = line("/sys/kernel/mm/transparent_hugepage/enabled")?;
    let transparent =
        text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("unknown", |(mode, _)| mode);
    Some(format!("{reserved} reserved, transparent: {transparent}"))
}

/// The block device under a file, or the device itself.
fn drive_of(path: &Path) -> Option<String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let there = path.ancestors().find(|place| place.exists()).unwrap_or(Path::new("."));
    if let Ok(Some(block_device)) = nvme::block_device_of(there) {
        return Some(format!("{} by passthrough", drive_of(&block_device)?));
    }
    let metadata = fs::metadata(there).ok()?;
    let number = if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() };
    let (major, minor) = (libc::major(number), libc::minor(number));
    let mut folder: PathBuf = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    if !folder.join("queue").exists() {
        folder.pop();
    }
    let name = folder.file_name()?.to_string_lossy().into_owned();
    let model = line(folder.join("device/model")).unwrap_or_else(|| "no model".into());
    let sectors: f64 = line(folder.join("size"))?.parse().ok()?;
    let scheduler = line(folder.join("queue/scheduler")).unwrap_or_default();
    let kind = if metadata.file_type().is_block_device() { "raw" } else { "by a file system" };
    Some(format!("{name} ({model}, {:.0} GB, {kind}, scheduler {scheduler})", sectors * 512.0 / 1e9))
}

/// Network interfaces that lead somewhere, with their speed.
fn nics() -> Vec<String> {
    let Ok(folder) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    let mut found: Vec<String> = folder
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .map(|entry| {
            let speed = line(entry.path().join("speed")).filter(|speed| !speed.starts_with('-'));
            let speed = speed.map_or("speed unknown".into(), |speed| format!("{speed} Mb/s"));
            let mtu = line(entry.path().join("mtu")).unwrap_or_default();
            format!("{} ({speed}, MTU {mtu})", entry.file_name().to_string_lossy())
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_processor_memory_a_kernel_and_a_drive() {
        let here = std::env::temp_dir().join("not/there/yet");
        let names = facts(Some(&here));
        for wanted in ["processor", "memory", "kernel"] {
            assert!(names.iter().any(|(name, value)| *name == wanted && !value.is_empty()), "{wanted}: {names:?}");
        }
    }
}
