//! Patterns of names as people type them: `ship*`, `ship?-web`.
//!
//! Owns the two wildcards: `*` for any text, `?` for one character. Never matches anything but names.

use super::name::{BadName, is_token_char};

/// The longest pattern; a name has at most 63 characters.
const LONGEST: usize = 128;

/// A pattern of names; without a wildcard it is a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// True where it can match more than one name.
    pub fn is_wild(&self) -> bool {
        self.0.contains(['*', '?'])
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True where the whole name matches.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // Where the last `*` stands, and up to where it has matched: on a mismatch it takes one more character.
        let mut star: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, n));
                    p += 1;
                }
                Some(b'?') => (p, n) = (p + 1, n + 1),
                Some(c) if *c == name[n] => (p, n) = (p + 1, n + 1),
                _ => match star {
                    Some((at, taken)) => {
                        star = Some((at, taken + 1));
                        (p, n) = (at + 1, taken + 1);
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|c| *c == b'*')
    }
}

impl std::str::FromStr for Pattern {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Pattern, BadName> {
        let bad = |reason: &str| BadName::new("name pattern", text, reason);
        if text.is_empty() {
            return Err(bad("is empty"));
        }
        if text.len() > LONGEST {
            return Err(bad("is too long"));
        }
        match text.chars().all(|c| is_token_char(c) || c == '*' || c == '?') {
            true => Ok(Pattern(text.to_owned())),
            false => Err(bad("may have letters, digits, `_`, `-` and the wildcards `*` and `?`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wildcards_match_as_in_a_shell() {
        for (pattern, name, matches) in [
            ("ship1", "ship1", true),
            ("ship1", "ship10", false),
            ("ship*", "ship", true),
            ("*-web", "north-web", true),
            ("*-web", "north-web-2", false),
            ("ship?", "ship", false),
            ("s*p?*", "shipship1", true),
            ("**", "x", true),
        ] {
            assert_eq!(pattern.parse::<Pattern>().unwrap().matches(name), matches, "{pattern} {name}");
        }
        for bad in ["", "a.b", "a b", "ship[1]"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_name_matches_itself_with_parts_left_out(name in "[a-z]{1,12}", from in 0usize..12, len in 0usize..12) {
            let from = from.min(name.len());
            let to = (from + len).min(name.len());
            let pattern: Pattern = format!("{}*{}", &name[..from], &name[to..]).parse().unwrap();
            prop_assert!(pattern.matches(&name));
        }
    }
}
