//! Numbered notices, and what is missing among them.
//!
//! Invariant: a notice is announced as [`Observed::Next`] at most once, in order.

/// Numbers of notices seen on one connection.
#[derive(Clone, Debug, Default)]
pub struct NoticeSequence {
    last: u64,
}

/// What the number of a notice says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// It follows the last one.
    Next,
    /// This many before it were lost: what is cached may be stale.
    Gap(u64),
    /// It was seen before.
    Old,
}

impl NoticeSequence {
    /// Nothing seen yet; the first number is 1.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes note of a number.
    pub fn observe(&mut self, number: u64) -> Observed {
        if number <= self.last {
            return Observed::Old;
        }
        let missing = number - self.last - 1;
        self.last = number;
        if missing == 0 { Observed::Next } else { Observed::Gap(missing) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_repetitions_are_told_apart() {
        let mut sequence = NoticeSequence::new();
        let seen: Vec<_> = [1, 2, 2, 5, 4, 6, u64::MAX].map(|number| sequence.observe(number)).to_vec();
        use Observed::{Gap, Next, Old};
        assert_eq!(seen, [Next, Next, Old, Gap(2), Old, Next, Gap(u64::MAX - 7)]);
    }
}
