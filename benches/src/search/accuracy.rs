//! How accuracy is written: `recall=0.95`, `probes=32`, `ef=64`, `exact`.

use std::fmt;
use std::str::FromStr;

use heliostat_client::Accuracy;

/// An accuracy, as text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Written(pub Accuracy);

const EXPECTED: &str = "expected recall=PART, probes=LISTS, ef=CANDIDATES or exact";

impl FromStr for Written {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "exact" {
            return Ok(Written(Accuracy::Exact));
        }
        let wrong = || format!("{text:?}: {EXPECTED}");
        let (name, value) = text.split_once('=').ok_or_else(wrong)?;
        let count = || value.parse::<u32>().ok().filter(|count| *count > 0);
        let accuracy = match name {
            "recall" => value.parse().ok().filter(|part| *part > 0.0 && *part <= 1.0).map(Accuracy::Recall),
            "probes" => count().map(Accuracy::Probes),
            "ef" => count().map(Accuracy::Ef),
            _ => None,
        };
        accuracy.map(Written).ok_or_else(wrong)
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Accuracy::Usual => f.write_str("default"),
            Accuracy::Exact => f.write_str("exact"),
            Accuracy::Recall(part) => write!(f, "recall={part}"),
            Accuracy::Probes(lists) => write!(f, "probes={lists}"),
            Accuracy::Ef(candidates) => write!(f, "ef={candidates}"),
        }
    }
}

/// Reads `probes=1,2,4,recall=0.95,exact`: a number without a name has that of the one before it.
///
/// # Errors
/// One sentence that names what can't be read.
pub fn parse_list(list: &str) -> Result<Vec<Written>, String> {
    let (mut all, mut name) = (Vec::new(), None);
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let named = match (item.split_once('='), name) {
            (Some((named, _)), _) => {
                name = Some(named);
                item.to_string()
            }
            (None, Some(name)) if item != "exact" => format!("{name}={item}"),
            _ => item.to_string(),
        };
        all.push(named.parse()?);
    }
    match all.is_empty() {
        true => Err(format!("no parameter: {EXPECTED}")),
        false => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_name_before_them() {
        let written =
            |list: &str| -> Vec<String> { parse_list(list).unwrap().iter().map(ToString::to_string).collect() };
        assert_eq!(written("probes=1, 2,4"), ["probes=1", "probes=2", "probes=4"]);
        assert_eq!(written("ef=16,exact,32,recall=0.9,1"), ["ef=16", "exact", "ef=32", "recall=0.9", "recall=1"]);
        assert_eq!(parse_list("exact").unwrap(), [Written(Accuracy::Exact)]);
    }

    #[test]
    fn what_is_no_accuracy_is_named() {
        for list in [
            "",
            ",",
            "7",
            "probes",
            "probes=0",
            "probes=x",
            "recall=0",
            "recall=1.5",
            "recall=NaN",
            "depth=3",
            "exact,5",
        ] {
            let error = parse_list(list).unwrap_err();
            assert!(error.contains("recall=PART"), "{list}: {error}");
        }
    }
}
