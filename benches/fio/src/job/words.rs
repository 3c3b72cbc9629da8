//! Values of options that have a syntax of their own: `rw`, `bssplit`, `random_distribution`, lists of files.
//!
//! Pure; called by the setters of the option table.

use std::path::PathBuf;

use super::options::{BlockSizes, Direction, Distribution, FileService};
use super::value::{Result, ValueError, expected, float, integer, integer_in_base};

/// `rw=randread`, `rw=randread:8`, `rw=write:4k`.
pub(crate) fn direction(text: &str) -> Result<(Direction, Option<u64>)> {
    let (word, behind) = text.split_once(':').map_or((text, None), |(word, behind)| (word, Some(behind)));
    let (order, random) = word.strip_prefix("rand").map_or((word, false), |rest| (rest, true));
    let (read, write) = match order {
        "read" => (true, false),
        "write" => (false, true),
        "rw" => (true, true),
        "readwrite" if !random => (true, true),
        "trim" | "trimwrite" => {
            return Err(ValueError::NotServed(format!("{word}: trims are not supported; blkdiscard(8) discards")));
        }
        _ => return expected(text, "one of read, write, randread, randwrite, rw, readwrite, randrw"),
    };
    Ok((Direction { random, read, write }, behind.map(integer).transpose()?))
}

/// One direction of `bssplit`: `4k/10:64k/50:32k/40`; sizes without a weight share what is left.
pub(crate) fn block_split(text: &str, kb_base: u64) -> Result<BlockSizes> {
    let mut parts = Vec::new();
    for part in text.split(':') {
        let (size, weight) = part.split_once('/').unwrap_or((part, ""));
        let weight = match weight.trim() {
            "" => None,
            weight => Some(integer(weight)?.min(1000) as u32),
        };
        parts.push((integer_in_base(size, kb_base)?, weight));
    }
    if parts.len() > 64 {
        return expected(text, "a list of at most 64 block sizes");
    }
    let given: u32 = parts.iter().filter_map(|part| part.1).sum();
    let blank = parts.iter().filter(|part| part.1.is_none()).count() as u32;
    if given > 100 || (blank == 0 && given != 100) {
        return expected(text, format!("a split into 100 percent: its weights add up to {given}"));
    }
    let (share, mut rest) = ((100 - given) / blank.max(1), (100 - given) % blank.max(1));
    let split = parts.into_iter().map(|(size, weight)| {
        let weight = weight.unwrap_or_else(|| {
            let extra = u32::from(rest > 0);
            rest -= extra;
            share + extra
        });
        (size, weight)
    });
    Ok(BlockSizes::Split(split.filter(|part| part.1 > 0).collect()))
}

/// `random`, `zipf:1.2[:0.25]`, `pareto:0.9`, `normal:20`, `zoned:60/10:40/90`, `zoned_abs:60/20G:40/100G`.
pub(crate) fn distribution(text: &str) -> Result<Distribution> {
    let (word, parameters) = text.split_once([':', '=']).unwrap_or((text, ""));
    match word {
        "random" if parameters.is_empty() => return Ok(Distribution::Random),
        "zoned" => {
            let zones = zones(parameters, |text| Ok(integer(text)?.min(1000) as u32))?;
            let range: u32 = zones.iter().map(|zone| zone.1).sum();
            if range != 100 {
                return expected(text, format!("a list of zones that cover 100 percent: they cover {range}"));
            }
            return Ok(Distribution::Zoned(zones));
        }
        "zoned_abs" => return Ok(Distribution::ZonedAbsolute(zones(parameters, integer)?)),
        "zipf" | "pareto" | "normal" | "gauss" => {}
        _ => return expected(text, "one of random, zipf, pareto, normal, zoned, zoned_abs"),
    }
    let mut numbers = parameters.split(':').filter(|part| !part.is_empty()).map(float);
    let value = numbers.next().transpose()?;
    let centre = numbers.next().transpose()?;
    if numbers.next().is_some() || centre.is_some_and(|centre| !(0.0..=1.0).contains(&centre)) {
        return expected(text, "a distribution with a parameter and, behind it, a centre from 0 to 1");
    }
    match (word, value) {
        ("zipf", theta) => match theta.unwrap_or(1.1) {
            theta if theta > 0.0 && theta < 100.0 && theta != 1.0 => Ok(Distribution::Zipf(theta, centre)),
            _ => expected(text, "zipf with a theta above 0, not 1.0"),
        },
        ("pareto", power) => match power.unwrap_or(0.2) {
            power if power > 0.0 && power < 1.0 => Ok(Distribution::Pareto(power, centre)),
            _ => expected(text, "pareto with a power between 0 and 1"),
        },
        (_, Some(deviation)) if deviation > 0.0 && deviation <= 100.0 => {
            Ok(Distribution::Normal(deviation, centre.unwrap_or(0.5)))
        }
        _ => expected(text, "normal with a deviation in percent, above 0 up to 100"),
    }
}

fn zones<T>(text: &str, size: impl Fn(&str) -> Result<T>) -> Result<Vec<(u32, T)>> {
    let mut zones = Vec::new();
    for zone in text.split(':') {
        let Some((share, range)) = zone.split_once('/') else {
            return expected(text, "zones as ACCESSES/RANGE:ACCESSES/RANGE...");
        };
        zones.push((integer(share)?.min(1000) as u32, size(range)?));
    }
    let share: u32 = zones.iter().map(|zone| zone.0).sum();
    if share != 100 || zones.len() > 256 {
        return expected(text, format!("at most 256 zones with 100 percent of accesses: they have {share}"));
    }
    Ok(zones)
}

/// `roundrobin`, `random:8`, `sequential`.
pub(crate) fn file_service(text: &str) -> Result<FileService> {
    let (word, behind) = text.split_once(':').unwrap_or((text, "1"));
    let ops = integer(behind)?.clamp(1, 1 << 30) as u32;
    match word {
        "roundrobin" => Ok(FileService::RoundRobin(ops)),
        "random" => Ok(FileService::Random(ops)),
        "sequential" => Ok(FileService::Sequential),
        "zipf" | "pareto" | "normal" | "gauss" => Err(ValueError::NotServed(format!(
            "{word} over files is not supported; random_distribution={word} over offsets is"
        ))),
        _ => expected(text, "one of roundrobin, random, sequential"),
    }
}

/// Files between colons; a colon inside a name is written `\:`.
pub(crate) fn files(text: &str) -> Vec<PathBuf> {
    let mut names = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let name = names.last_mut().expect("there is always a last name");
        match character {
            '\\' if characters.peek() == Some(&':') => name.extend(characters.next()),
            ':' => names.push(String::new()),
            other => name.push(other),
        }
    }
    names.into_iter().filter(|name| !name.is_empty()).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_have_an_order_and_a_number_behind_them() {
        let random = Direction { random: true, read: true, write: false };
        assert_eq!(direction("randread:8"), Ok((random, Some(8))));
        assert_eq!(direction("write:4k").unwrap().1, Some(4096));
        assert!(direction("randtrim").unwrap_err().to_string().contains("blkdiscard"));
        assert!(direction("randreadwrite").is_err());
    }

    #[test]
    fn splits_without_weights_share_what_is_left() {
        assert_eq!(
            block_split("4k/50:1k/:32k/", 1024),
            Ok(BlockSizes::Split(vec![(4096, 50), (1024, 25), (32768, 25)]))
        );
        assert!(block_split("4k/60:8k/60", 1024).is_err());
        assert!(block_split("4k/60:8k/10", 1024).is_err());
    }

    #[test]
    fn distributions_have_the_parameters_of_the_howto() {
        assert_eq!(distribution("zipf:1.2:0.25"), Ok(Distribution::Zipf(1.2, Some(0.25))));
        assert_eq!(distribution("normal:20"), Ok(Distribution::Normal(20.0, 0.5)));
        assert_eq!(
            distribution("zoned:60/10:30/20:8/30:2/40"),
            Ok(Distribution::Zoned(vec![(60, 10), (30, 20), (8, 30), (2, 40)]))
        );
        assert_eq!(
            distribution("zoned_abs=60/1G:40/2G"),
            Ok(Distribution::ZonedAbsolute(vec![(60, 1 << 30), (40, 2 << 30)]))
        );
        for text in ["zipf:1", "pareto:1.5", "normal:0", "zoned:60/10", "zoned:60/50:40/60", "even"] {
            assert!(distribution(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_colon_in_a_file_name_is_escaped() {
        assert_eq!(files("/dev/sda:a\\:b"), [PathBuf::from("/dev/sda"), PathBuf::from("a:b")]);
    }
}
