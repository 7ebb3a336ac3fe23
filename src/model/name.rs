//! The names that appear as NATS subject tokens, parsed once at the border.
//!
//! Owns the rules of which text is a node, a sender, a group, a method or a lane. Never decides what a name may do.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{text}` {reason}")]
pub struct BadName {
    /// What the text was meant to be, such as `node name`.
    pub what: &'static str,
    /// The text, shortened to 80 characters, control characters escaped.
    pub text: String,
    /// What is wrong with it, a fragment that follows the text.
    pub reason: String,
}

impl BadName {
    pub(crate) fn new(what: &'static str, text: &str, reason: impl Into<String>) -> Self {
        let text = text.chars().take(80).collect::<String>().escape_debug().to_string();
        BadName { what, text, reason: reason.into() }
    }
}

/// True for the characters that every edgeward token is made of.
pub(crate) fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

pub(crate) fn check_token(what: &'static str, text: &str, max: usize) -> Result<(), BadName> {
    if text.is_empty() {
        return Err(BadName::new(what, text, "is empty"));
    }
    if let Some(c) = text.chars().find(|c| !is_token_char(*c)) {
        let reason = format!("contains `{}`; only letters, digits, `_` and `-` are allowed", c.escape_debug());
        return Err(BadName::new(what, text, reason));
    }
    if text.len() > max {
        return Err(BadName::new(what, text, format!("is {} characters long; {max} is the limit", text.len())));
    }
    Ok(())
}

fn check_node(what: &'static str, text: &str) -> Result<(), BadName> {
    check_token(what, text, 63)?;
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(BadName::new(what, text, "does not start with a letter or digit"));
    }
    Ok(())
}

/// Makes a cheap-to-clone name type: parsing, `Display`, serde as a string.
macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text: one NATS subject token.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl std::str::FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                let check: fn(&str) -> Result<(), BadName> = $check;
                check(text)?;
                Ok($name(text.into()))
            }
        }
        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.to_string()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_type!(
    /// A host with an agent: 1–63 of `[A-Za-z0-9_-]`, starting with a letter or digit, not `hub`.
    NodeName,
    |text| {
        check_node("node name", text)?;
        if text == "hub" { Err(BadName::new("node name", text, "is reserved")) } else { Ok(()) }
    }
);

name_type!(
    /// Who sends: an operator, a node or the hub. Senders and nodes share one namespace.
    Sender,
    |text| check_node("sender", text)
);

name_type!(
    /// A set of nodes, written without its `@`.
    GroupName,
    |text| check_node("group", text)
);

name_type!(
    /// What to do: 1–64 of `[A-Za-z0-9_-]`. For control messages this is the verb.
    MethodName,
    |text| check_token("method", text, 64)
);

name_type!(
    /// The last, optional token of a message's subject, which makes a lane of its own.
    LaneToken,
    |text| check_token("lane", text, 64)
);

impl Sender {
    /// The hub as a sender.
    pub fn hub() -> Sender {
        Sender("hub".into())
    }

    /// True for the hub.
    pub fn is_hub(&self) -> bool {
        &*self.0 == "hub"
    }

    /// The node of this name, unless it is the hub.
    pub fn as_node(&self) -> Option<NodeName> {
        self.0.parse().ok()
    }
}

impl From<NodeName> for Sender {
    fn from(node: NodeName) -> Sender {
        Sender(node.0)
    }
}

impl GroupName {
    /// `@all`: every node.
    pub fn all() -> GroupName {
        GroupName("all".into())
    }
}

/// Where a message goes: a node, or every member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// One node.
    Node(NodeName),
    /// `@name`.
    Group(GroupName),
}

impl Target {
    /// The group, where it is one.
    pub fn group(&self) -> Option<&GroupName> {
        match self {
            Target::Group(group) => Some(group),
            Target::Node(_) => None,
        }
    }
}

impl std::str::FromStr for Target {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Target, BadName> {
        match text.strip_prefix('@') {
            Some(group) => Ok(Target::Group(group.parse()?)),
            None => Ok(Target::Node(text.parse()?)),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = BadName;
    fn try_from(text: String) -> Result<Target, BadName> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> String {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Node(node) => write!(f, "{node}"),
            Target::Group(group) => write!(f, "@{group}"),
        }
    }
}

/// The names in `known` that are near `text` in spelling (edit distance of at most half of its length), nearest first.
pub fn near<'a>(text: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let limit = (text.chars().count() / 2).clamp(1, 3);
    let mut found: Vec<(usize, &str)> =
        known.map(|name| (edit_distance(text, name), name)).filter(|(distance, _)| *distance <= limit).collect();
    found.sort();
    found.into_iter().map(|(_, name)| name).take(3).collect()
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_plain_tokens() {
        for good in ["ship1", "a", "0-x_y", &"n".repeat(63)] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "a.b", "*", ">", "-a", "_a", "hub", "a b", "é", &"n".repeat(64), "@web"] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
        assert!("hub".parse::<Sender>().unwrap().is_hub());
        assert_eq!("@web".parse::<Target>().unwrap().to_string(), "@web");
        assert!("@".parse::<Target>().is_err());
    }

    #[test]
    fn a_bad_name_tells_what_is_wrong() {
        let error = "ship.1".parse::<NodeName>().unwrap_err().to_string();
        assert_eq!(error, "node name `ship.1` contains `.`; only letters, digits, `_` and `-` are allowed");
    }

    #[test]
    fn near_names_are_found_nearest_first() {
        assert_eq!(near("shpi1", ["ship1", "ship2", "van"].into_iter()), vec!["ship1"]);
        assert_eq!(near("ship", ["ship22", "ship1", "van"].into_iter()), vec!["ship1", "ship22"]);
        assert!(near("truck", ["ship1", "van"].into_iter()).is_empty());
    }
}
