//! Sending as `send` and `run` do it: known nodes only, and every failure told with its target.

use super::config::Loaded;
use super::error::{CliError, chain};
use super::exit::ExitCode;
use super::say;
use crate::broker::Broker;
use crate::model::id::MessageId;
use crate::model::name::{GroupName, NodeName, Target};
use crate::operator::{Delivery, Draft, SendError, SendOptions, Sent, send, unknown_groups, unknown_nodes};
use std::collections::BTreeSet;

/// What came of sending one message to its targets.
pub(super) struct SendResult {
    /// What was stored, and for whom.
    pub(super) stored: Vec<(Target, Sent)>,
    /// The exit code that the failures ask for, where there were any.
    pub(super) failed: Option<ExitCode>,
}

/// Refuses nodes that were never seen and groups that nobody is in, unless they may be new.
pub(super) async fn check_nodes(
    broker: &Broker,
    drafts: impl IntoIterator<Item = &Draft>,
    new: bool,
) -> Result<(), CliError> {
    if new {
        return Ok(());
    }
    let (mut nodes, mut groups) = (BTreeSet::new(), BTreeSet::new());
    for to in drafts.into_iter().flat_map(|draft| &draft.to) {
        match to {
            Target::Node(node) => drop(nodes.insert(node.clone())),
            Target::Group(group) => drop(groups.insert(group.clone())),
        }
    }
    let (nodes, groups): (Vec<NodeName>, Vec<GroupName>) = (nodes.into_iter().collect(), groups.into_iter().collect());
    let refused = |error: CliError, hint: &str| {
        let message = format!("{}; nothing was sent", error.message);
        let error = CliError { message, ..error };
        // A broker that does not tell refuses nobody.
        if error.exit == ExitCode::Usage { error.hint(hint) } else { error }
    };
    known(broker, &nodes).await.map_err(|error| refused(error, "--new sends to a node that is still to come"))?;
    known_groups(broker, &groups).await.map_err(|error| refused(error, "--new sends to it all the same"))
}

/// Refuses groups that no node is in or ever was in, and names what is near in spelling.
async fn known_groups(broker: &Broker, groups: &[GroupName]) -> Result<(), CliError> {
    let unknown = unknown_groups(broker, groups).await?;
    if unknown.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = unknown.iter().map(|one| format!("@{}", one.group)).collect();
    let mut error = CliError::usage(format!("unknown group {}", names.join(", ")));
    for one in unknown.iter().filter(|one| !one.near.is_empty()) {
        error = error.hint(format!("near @{}: {}", one.group, one.near.join(", ")));
    }
    Err(error.hint("`edgeward node NODE --groups NAMES` puts a node into groups"))
}

/// Refuses nodes that were never seen, and names what is near in spelling.
pub(super) async fn known(broker: &Broker, nodes: &[NodeName]) -> Result<(), CliError> {
    let unknown = unknown_nodes(broker, nodes).await?;
    if unknown.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = unknown.iter().map(|u| format!("`{}`", u.node)).collect();
    let never = if names.len() == 1 { "was never seen" } else { "were never seen" };
    let mut error = CliError::usage(format!("{} {never}", names.join(", ")));
    for one in unknown.iter().filter(|one| !one.near.is_empty()) {
        error = error.hint(format!("near `{}`: {}", one.node, one.near.join(", ")));
    }
    if unknown.iter().any(|one| one.node.as_str() == GroupName::all().as_str()) {
        error = error.hint("every node is `@all`");
    }
    Err(error.hint("`edgeward nodes` lists the nodes"))
}

/// Stores the message for every target. Failures are told; it is an error only where nothing was stored.
pub(super) async fn store(broker: &Broker, loaded: &Loaded, draft: &Draft) -> Result<SendResult, CliError> {
    judge(send(broker, loaded.sender()?, draft, &SendOptions::default()).await, Some(&draft.id))
}

/// Tells failures of sending; it is an error only where nothing was stored. With the id `repeat` it can be sent again.
pub(super) fn judge(deliveries: Vec<Delivery>, repeat: Option<&MessageId>) -> Result<SendResult, CliError> {
    let mut result = SendResult { stored: Vec::new(), failed: None };
    let mut errors: Vec<(Target, SendError)> = Vec::new();
    for Delivery { to, result: outcome } in deliveries {
        match outcome {
            Ok(sent) => result.stored.push((to, sent)),
            Err(error) => errors.push((to, error)),
        }
    }
    let Some((_, first)) = errors.first() else { return Ok(result) };
    let exit = exit_of(&errors, result.stored.is_empty());
    let mut error = CliError::new(exit, failure_text(&errors, first));
    if exit == ExitCode::Unknown {
        error = error.hint(match repeat {
            Some(id) => format!("repeat safely with the same id: --id {id}"),
            None => "repeat safely".to_owned(),
        });
    }
    if matches!(first, SendError::Denied { subject } if subject.contains(".control.")) {
        error = error.hint("of control messages an operator may send his own cancels; all others are for admins");
    }
    if matches!(first, SendError::Refused(crate::broker::PublishError::NoStream)) {
        error = error.hint("`edgeward hub` or `edgeward init` makes the streams");
    }
    if result.stored.is_empty() {
        return Err(error);
    }
    say(error.text().trim_end());
    result.failed = Some(exit);
    Ok(result)
}

/// An error after storing: what became of the message is not known here, but can be asked for.
pub(super) fn stored_but(error: CliError, draft: &Draft) -> CliError {
    let exit = if error.message.is_empty() { error.exit } else { ExitCode::Unknown };
    CliError { exit, ..error }.hint(format!("the message is stored: edgeward status {}", draft.id))
}

fn failure_text(errors: &[(Target, SendError)], first: &SendError) -> String {
    /// Targets named in one line.
    const NAMED: usize = 8;
    let mut targets: Vec<String> = errors.iter().take(NAMED).map(|(to, _)| to.to_string()).collect();
    if errors.len() > NAMED {
        targets.push(format!("and {} more", errors.len() - NAMED));
    }
    format!("{}: {}", targets.join(", "), chain(first))
}

/// Of several failures the one that matters most: not known, then a mistake, then no right, then refused.
fn exit_of(errors: &[(Target, SendError)], nothing_stored: bool) -> ExitCode {
    let code = |error: &SendError| match error {
        SendError::Unknown | SendError::Unread(_) => (0, ExitCode::Unknown),
        SendError::TooLarge { .. } | SendError::IdUsed { .. } | SendError::Unsendable(_) => (1, ExitCode::Usage),
        SendError::Denied { .. } => (2, ExitCode::Refused),
        SendError::Refused(_) if nothing_stored => (3, ExitCode::Broker),
        SendError::Refused(_) => (3, ExitCode::Refused),
    };
    errors.iter().map(|(_, error)| code(error)).min_by_key(|(rank, _)| *rank).map_or(ExitCode::Broker, |(_, exit)| exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::PublishError;

    #[test]
    fn what_is_not_known_weighs_more_than_what_was_refused() {
        let to = |error| ("ship1".parse().unwrap(), error);
        let refused = || to(SendError::Refused(PublishError::NoStream));
        assert_eq!(exit_of(&[refused(), to(SendError::Unknown)], true).code(), 6);
        assert_eq!(exit_of(&[refused()], true).code(), 8);
        assert_eq!(exit_of(&[refused()], false).code(), 7, "something was stored");
        assert_eq!(exit_of(&[refused(), to(SendError::Denied { subject: "s".into() })], true).code(), 7);
    }
}
