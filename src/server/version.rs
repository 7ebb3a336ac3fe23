//! Versions as the NATS binaries print them, compared as numbers.

use std::cmp::Ordering;
use std::fmt;

/// A version such as `2.15.1` or `2.14.0-RC.1`. A pre-release is lower than its release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    numbers: [u32; 3],
    pre: Option<String>,
}

impl Version {
    /// The release `major.minor.patch`.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { numbers: [major, minor, patch], pre: None }
    }

    /// The first version in what a program printed for `--version` (`nats-server: v2.15.1`, `v0.5.1`).
    /// `None` where it names none, as development builds do.
    pub fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(Self::parse)
    }

    fn parse(word: &str) -> Option<Self> {
        let word = word.strip_prefix('v').unwrap_or(word);
        let (numbers, pre) = match word.split_once('-') {
            Some((numbers, pre)) => (numbers, Some(pre.to_owned())),
            None => (word, None),
        };
        let mut parts = numbers.split('.').map(|part| part.parse().ok());
        let numbers = [parts.next()??, parts.next()??, parts.next()??];
        parts.next().is_none().then_some(Self { numbers, pre })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        self.pre.iter().try_for_each(|pre| write!(f, "-{pre}"))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (&self.pre, &other.pre) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(mine), Some(theirs)) => mine.cmp(theirs),
        })
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_binaries_print() {
        assert_eq!(Version::find("nats-server: v2.15.1\n"), Some(Version::new(2, 15, 1)));
        assert_eq!(Version::find("v0.5.1\n"), Some(Version::new(0, 5, 1)));
        let candidate = Version::find("nats-server: v2.14.0-RC.1").unwrap();
        assert_eq!(candidate.to_string(), "2.14.0-RC.1");
        for none in ["", "development", "nats-server: v2", "2.14", "1.2.3.4", "a.b.c", "v-1.2.3"] {
            assert_eq!(Version::find(none), None, "{none}");
        }
    }

    #[test]
    fn orders_by_number_and_puts_candidates_before_releases() {
        let of = |text| Version::find(text).unwrap();
        assert!(of("2.9.20") < of("2.14.0"));
        assert!(of("2.14.0-RC.1") < of("2.14.0"));
        assert!(of("2.14.0") < of("2.15.0-RC.1"));
        assert!(of("2.14.0") <= Version::new(2, 14, 0));
    }
}
