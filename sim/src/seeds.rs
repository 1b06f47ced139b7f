//! Regression seeds (`sim/seeds.toml`), and where a push begins to explore.

use std::process::Command;

use crate::{load::Simpler, rng::fnv};

/// A seed that once failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regression {
    pub seed: u64,
    pub commit: String,
    pub found: String,
    /// What the load is made simpler by.
    pub simpler: Vec<Simpler>,
}

/// The seeds that once failed.
///
/// # Errors
/// Names the line that is not of the form which the file's head describes.
pub fn regressions() -> Result<Vec<Regression>, String> {
    parse(include_str!("../seeds.toml"))
}

fn parse(text: &str) -> Result<Vec<Regression>, String> {
    let mut seeds: Vec<Regression> = Vec::new();
    for (line, number) in text.lines().map(str::trim).zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = || {
            format!("seeds.toml, line {number}: neither [[seed]] nor seed, commit, simpler or found: {line}")
        };
        if line == "[[seed]]" {
            seeds.push(Regression {
                seed: 0,
                commit: String::new(),
                found: String::new(),
                simpler: Vec::new(),
            });
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(wrong)?;
        let text = || value.trim().strip_prefix('"')?.strip_suffix('"').map(str::to_owned);
        let seed = seeds.last_mut().ok_or_else(wrong)?;
        match key.trim() {
            "seed" => seed.seed = value.trim().parse().map_err(|_| wrong())?,
            "commit" => seed.commit = text().ok_or_else(wrong)?,
            "simpler" => {
                let all = text().ok_or_else(wrong)?;
                let named = |name: &str| Simpler::ALL.iter().find(|simpler| simpler.name() == name).copied();
                seed.simpler = all.split(", ").map(named).collect::<Option<_>>().ok_or_else(wrong)?;
            }
            "found" => seed.found = text().ok_or_else(wrong)?,
            _ => return Err(wrong()),
        }
    }
    Ok(seeds)
}

/// Where the seeds of this commit begin: each push explores anew. Without a history (an archive of the sources, a
/// machine without git) they begin at 1.
pub fn of_this_commit() -> u64 {
    let head =
        Command::new("git").args(["rev-parse", "HEAD"]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    match head {
        // Below 2^48, so that the numbers stay readable and a range never wraps.
        Ok(head) if head.status.success() => fnv(0xcbf2_9ce4_8422_2325, head.stdout.trim_ascii()) >> 16,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read_with_what_they_found() {
        let text = "# head\n[[seed]]\nseed = 7\ncommit = \"abc\"\nsimpler = \"OneServer, Short\"\nfound = \"a = b\"\n";
        let simpler = vec![Simpler::OneServer, Simpler::Short];
        let wanted = Regression { seed: 7, commit: "abc".into(), found: "a = b".into(), simpler };
        assert_eq!(parse(text).unwrap(), [wanted]);
    }

    #[test]
    fn a_line_of_another_form_is_named() {
        let error = parse("[[seed]]\nsed = 7\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("sed = 7"), "{error}");
    }

    #[test]
    fn the_file_can_be_read() {
        regressions().unwrap();
    }
}
