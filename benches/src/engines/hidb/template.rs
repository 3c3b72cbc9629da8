//! Predicates with variables: `where=l_orderkey = $rand(1,60000000)`.
//!
//! Owns [`Template`] and the variables. Called by the engines of this folder.
//!
//! | variable | value |
//! | --- | --- |
//! | `$rand(1,100)` | a whole number between both, each as likely, from the job's `randseed` |
//! | `$key(1,100)` | a whole number between both, where the job's `rw` and `random_distribution` point in its `size` |
//!
//! Invariant: what is written in place of a variable is a number, so that a predicate's meaning can't change.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A text with variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// The texts around the variables; one more than those.
    texts: Vec<String>,
    variables: Vec<Variable>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variable {
    Random { from: i64, to: i64 },
    Key { from: i64, to: i64 },
}

/// Where values come from.
#[derive(Clone, Debug)]
pub struct Values(ChaCha8Rng);

impl Values {
    /// As the seed says.
    pub fn new(seed: u64) -> Self {
        Values(ChaCha8Rng::seed_from_u64(seed))
    }

    fn of(&mut self, variable: Variable, place: u64) -> i64 {
        match variable {
            Variable::Random { from, to } => self.0.random_range(from..=to),
            Variable::Key { from, to } => {
                let count = (i128::from(to) - i128::from(from) + 1) as u128;
                (i128::from(from) + (u128::from(place) % count) as i128) as i64
            }
        }
    }
}

impl Template {
    /// Reads one.
    ///
    /// # Errors
    /// One sentence that names what can't be read.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut texts, mut variables) = (Vec::new(), Vec::new());
        let (mut rest, mut before) = (text, String::new());
        while let Some(at) = rest.find('$') {
            before.push_str(&rest[..at]);
            let named = &rest[at + 1..];
            let name: String =
                named.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect();
            let Some((range, after)) =
                named[name.len()..].trim_start().strip_prefix('(').and_then(|range| range.split_once(')'))
            else {
                return Err(format!("${name} in {text:?} has no range: write ${name}(from,to)"));
            };
            let ends: Vec<_> = range.split(',').map(|end| end.trim().parse::<i64>()).collect();
            let [Ok(from), Ok(to)] = ends[..] else {
                return Err(format!("${name}({range}) in {text:?}: expected two whole numbers, from and to"));
            };
            if from > to {
                return Err(format!("${name}({range}) in {text:?} is empty: {from} is more than {to}"));
            }
            variables.push(match name.as_str() {
                "rand" => Variable::Random { from, to },
                "key" => Variable::Key { from, to },
                _ => {
                    return Err(format!(
                        "${name} in {text:?} is no variable: there are $rand(from,to) and $key(from,to)"
                    ));
                }
            });
            texts.push(std::mem::take(&mut before));
            rest = after;
        }
        before.push_str(rest);
        texts.push(before);
        Ok(Template { texts, variables })
    }

    /// Whether it is another predicate from op to op.
    pub fn changes(&self) -> bool {
        let mut ends = self.variables.iter().map(|variable| match variable {
            Variable::Random { from, to } | Variable::Key { from, to } => (from, to),
        });
        ends.any(|(from, to)| from != to)
    }

    /// The text with values in it; `place` is the op's place in the job's distribution.
    pub fn fill(&self, values: &mut Values, place: u64) -> String {
        self.write(|index| values.of(self.variables[index], place).to_string())
    }

    /// The text with `$1`, `$2` ... in place of the variables.
    pub fn with_parameters(&self) -> String {
        self.write(|index| format!("${}", index + 1))
    }

    /// The values alone, in order.
    pub fn values<'t>(&'t self, values: &'t mut Values, place: u64) -> impl Iterator<Item = i64> + 't {
        self.variables.iter().map(move |variable| values.of(*variable, place))
    }

    fn write(&self, mut value: impl FnMut(usize) -> String) -> String {
        let mut text = self.texts[0].clone();
        for (index, after) in self.texts[1..].iter().enumerate() {
            text.push_str(&value(index));
            text.push_str(after);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn variables_get_values_and_the_rest_stays() {
        let template = Template::parse("a = $key(10,19) and b < $rand( -5 , -5 )").unwrap();
        assert_eq!(template.with_parameters(), "a = $1 and b < $2");
        assert_eq!(template.fill(&mut Values::new(1), 3), "a = 13 and b < -5");
        assert_eq!(template.fill(&mut Values::new(1), 13), "a = 13 and b < -5");
        assert_eq!(template.values(&mut Values::new(1), 9).collect::<Vec<_>>(), [19, -5]);
        assert_eq!(Template::parse("").unwrap().fill(&mut Values::new(1), 0), "");
        assert_eq!(Template::parse("$key(1,1)").unwrap().fill(&mut Values::new(1), 7), "1");
    }

    #[test]
    fn what_is_no_variable_is_named() {
        for (text, part) in [
            ("a = $rand", "$rand(from,to)"),
            ("a = $rand(1", "$rand(from,to)"),
            ("a = $rand(1,x)", "two whole numbers"),
            ("a = $rand(1,2,3)", "two whole numbers"),
            ("a = $rand(2,1)", "2 is more than 1"),
            ("a = $zipf(1,2)", "no variable"),
            ("a = $1", "$1(from,to)"),
        ] {
            let error = Template::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn values_lie_within_their_range_and_follow_the_seed(from in any::<i64>(), to in any::<i64>(), seed: u64, place: u64) {
            let (from, to) = (from.min(to), from.max(to));
            let template = Template::parse(&format!("$rand({from},{to})$key({from},{to})")).unwrap();
            let first: Vec<i64> = template.values(&mut Values::new(seed), place).collect();
            prop_assert!(first.iter().all(|value| (from..=to).contains(value)));
            prop_assert_eq!(first, template.values(&mut Values::new(seed), place).collect::<Vec<_>>());
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            let _ = Template::parse(&text);
        }
    }
}
