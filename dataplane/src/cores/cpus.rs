//! Which CPUs the cell's cores may be pinned to.
//!
//! Called by [`super::Cores::start`].

use glommio::CpuSet;

/// The CPUs this process may run on.
pub(super) fn usable() -> Vec<usize> {
    let allowed = affinity();
    let online = CpuSet::online().map(|set| set.into_iter().map(|location| location.cpu).collect::<Vec<_>>());
    let mut cpus = online.unwrap_or_default();
    cpus.retain(|cpu| allowed.as_ref().is_none_or(|allowed| allowed.contains(cpu)));
    cpus.sort_unstable();
    cpus
}

/// The CPUs in the affinity mask of this thread, `None` when the kernel does not say.
fn affinity() -> Option<Vec<usize>> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cpus = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(cpus)
}
