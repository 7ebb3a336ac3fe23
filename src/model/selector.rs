//! Selectors: nodes by their labels, `role=web,env!=prod`.
//!
//! Owns the text and what it means: every term holds; `!=` also holds where the node does not have the label. No I/O.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Which labels a node has to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Vec<Term>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    key: String,
    value: String,
    /// `=`, else `!=`.
    is: bool,
}

/// Why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at column {column}; a selector reads role=web,env!=prod")]
pub struct BadSelector {
    /// What is wrong, a fragment.
    reason: &'static str,
    /// Where, counted in characters from 1.
    column: usize,
}

impl Selector {
    /// True for a node with these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|term| (labels.get(&term.key) == Some(&term.value)) == term.is)
    }
}

impl FromStr for Selector {
    type Err = BadSelector;
    fn from_str(text: &str) -> Result<Selector, BadSelector> {
        let mut column = 1;
        let mut terms = Vec::new();
        for part in text.split(',') {
            terms.push(term(part, column)?);
            column += part.chars().count() + 1;
        }
        Ok(Selector(terms))
    }
}

/// One term that begins at this column.
fn term(text: &str, column: usize) -> Result<Term, BadSelector> {
    if text.is_empty() {
        return Err(BadSelector { reason: "a term is missing", column });
    }
    let Some((left, value)) = text.split_once('=') else {
        return Err(BadSelector { reason: "`=` or `!=` is missing", column: column + text.chars().count() });
    };
    let (key, is) = left.strip_suffix('!').map_or((left, true), |key| (key, false));
    let second = column + left.chars().count() + 1;
    match () {
        () if key.is_empty() => Err(BadSelector { reason: "the label is missing", column }),
        () if value.starts_with('=') => Err(BadSelector { reason: "one `=` is enough", column: second }),
        () if value.is_empty() => Err(BadSelector { reason: "the value is missing", column: second }),
        () => match text.chars().position(char::is_whitespace) {
            Some(at) => Err(BadSelector { reason: "no blank is allowed", column: column + at }),
            None => Ok(Term { key: key.to_owned(), value: value.to_owned(), is }),
        },
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Term { key, value, is }) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let sign = if *is { "=" } else { "!=" };
            write!(f, "{comma}{key}{sign}{value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_term_holds() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let selector: Selector = "role=web,env!=prod".parse().unwrap();
        assert!(selector.matches(&labels(&[("role", "web"), ("env", "test")])));
        assert!(selector.matches(&labels(&[("role", "web")])), "a label that is not there is not that value");
        assert!(!selector.matches(&labels(&[("role", "web"), ("env", "prod")])));
        assert!(!selector.matches(&labels(&[("env", "test")])));
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        for (text, column) in [
            ("", 1),
            ("a=b,", 5),
            ("a=b,,c=d", 5),
            ("a=b,röle", 9),
            ("a=b,=c", 5),
            ("a=b,!=c", 5),
            ("a==b", 3),
            ("a=", 3),
            ("a=b, c=d", 5),
        ] {
            assert_eq!(text.parse::<Selector>().map_err(|error| error.column), Err(column), "{text}");
        }
    }

    proptest! {
        #[test]
        fn it_reads_what_it_writes(terms in proptest::collection::vec(("[a-z]{1,5}", "[a-z0-9.]{1,5}", any::<bool>()), 1..5)) {
            let selector = Selector(terms.into_iter().map(|(key, value, is)| Term { key, value, is }).collect());
            prop_assert_eq!(selector.to_string().parse(), Ok(selector));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = text.parse::<Selector>().is_ok();
        }
    }
}
