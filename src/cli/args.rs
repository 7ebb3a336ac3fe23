//! Argument types that several verbs share.

use crate::model::id::IdRef;
use crate::model::name::{Sender, Target};
use crate::model::time::{BadTime, Since, Timestamp, parse_duration};
use std::str::FromStr;
use std::time::Duration;

/// Targets, separated by commas: `ship1`, `ship1,ship2`, `@web`, `@all`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TargetList(pub(super) Vec<Target>);

impl FromStr for TargetList {
    type Err = String;
    fn from_str(text: &str) -> Result<TargetList, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let targets: Result<Vec<Target>, _> = parts.map(str::parse).collect();
        match targets {
            Ok(targets) if targets.is_empty() => Err("names no target".to_owned()),
            Ok(targets) => Ok(TargetList(targets)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A message, and where to look for it.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct IdArgs {
    /// The message: its id, 42 or s42 (a command's stored sequence), e42 (an event's), or `last` (mine).
    #[arg(value_name = "ID")]
    pub(super) id: IdRef,
    #[command(flatten)]
    pub(super) search: SearchArgs,
}

/// Where to look for a message.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct SearchArgs {
    /// Whose message; mine by default.
    #[arg(long, value_name = "NAME")]
    pub(super) from: Option<Sender>,
    /// How far back to look for an id: 24h, or a time such as 2026-11-23T21:00:00Z [default: 24h].
    #[arg(long, value_name = "WHEN")]
    since: Option<Since>,
}

impl SearchArgs {
    /// How far back to look for an id.
    pub(super) fn since(&self) -> Option<Duration> {
        self.since.map(|since| since.back(Timestamp::local_now()))
    }
}

/// A duration as an argument.
pub(super) fn duration(text: &str) -> Result<Duration, BadTime> {
    parse_duration(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_a_list() {
        let list: TargetList = "ship1, @web".parse().unwrap();
        assert_eq!(list.0.iter().map(ToString::to_string).collect::<Vec<_>>(), ["ship1", "@web"]);
        assert!(" , ".parse::<TargetList>().unwrap_err().contains("no target"));
        assert!("a.b".parse::<TargetList>().unwrap_err().contains("a.b"));
    }
}
