//! What is replaced inside values before they are read: `${VARIABLE}` and fio's keywords `$pagesize`, `$mb_memory` and
//! `$ncpus`, with simple arithmetic on the keywords (`8*$mb_memory`).
//!
//! Invariant: with the same [`Surroundings`] the same text gives the same value; nothing here asks the machine.

use super::expression;

/// What the machine and the environment say.
pub struct Surroundings {
    /// Value of an environment variable; missing is the empty text.
    pub variable: Box<dyn Fn(&str) -> String>,
    /// Bytes in a page of memory.
    pub page_bytes: u64,
    /// Megabytes of memory.
    pub memory_mb: u64,
    /// CPUs online.
    pub cpus: u64,
}

impl Surroundings {
    /// Of this process on this machine.
    pub fn of_this_process() -> Self {
        let memory_kb = std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| text.lines().next()?.split_whitespace().nth(1)?.parse::<u64>().ok());
        Surroundings {
            variable: Box::new(|name| std::env::var(name).unwrap_or_default()),
            page_bytes: rustix::param::page_size() as u64,
            memory_mb: memory_kb.unwrap_or(0) / 1024,
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        }
    }

    /// Empty environment, small round machine: for tests and fuzzing.
    pub fn none() -> Self {
        Surroundings { variable: Box::new(|_| String::new()), page_bytes: 4096, memory_mb: 1024, cpus: 2 }
    }

    /// The value with everything replaced.
    pub(crate) fn expand(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let (mut rest, mut arithmetic) = (text, false);
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some((name, behind)) = rest.strip_prefix("${").and_then(|inner| inner.split_once('}')) {
                out.push_str(&(self.variable)(name));
                rest = behind;
                continue;
            }
            let keywords = [("$pagesize", self.page_bytes), ("$mb_memory", self.memory_mb), ("$ncpus", self.cpus)];
            match keywords.into_iter().find_map(|(name, value)| Some((value, rest.strip_prefix(name)?))) {
                Some((value, behind)) => {
                    out.push_str(&value.to_string());
                    (rest, arithmetic) = (behind, true);
                }
                None => {
                    out.push('$');
                    rest = &rest[1..];
                }
            }
        }
        out.push_str(rest);
        if arithmetic && let Some(value) = expression::evaluate(&out, &|number| number.parse().ok()) {
            return (value.max(0.0) as u64).to_string();
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_keywords_and_arithmetic_are_replaced() {
        let here = Surroundings {
            variable: Box::new(|name| if name == "SIZE" { "64m".into() } else { String::new() }),
            page_bytes: 4096,
            memory_mb: 1000,
            cpus: 4,
        };
        assert_eq!(here.expand("${SIZE}"), "64m");
        assert_eq!(here.expand("a${NOPE}b"), "ab");
        assert_eq!(here.expand("8*$mb_memory"), "8000");
        assert_eq!(here.expand("$ncpus"), "4");
        assert_eq!(here.expand("$pagesize/2"), "2048");
        assert_eq!(here.expand("/data/$user-${SIZE"), "/data/$user-${SIZE");
        assert_eq!(here.expand("0-$ncpus,9k"), "0-4,9k");
    }
}
