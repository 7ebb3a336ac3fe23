//! Messages that no node takes: a warning a while before their time is over, and their end when it is, before the
//! stream drops them.
//!
//! ```text
//! stored ─────────────── warned of ── expired ─────── dropped by the stream
//!        ← last_start less lead → ← lead → ← a day's grace →
//! ```
//!
//! Both go over the stream from its oldest message on, each with a mark of its own up to where that is done; a hub that
//! starts anew begins at the stream's first message. Owns the decision which messages are unread: those that the node's
//! position, or the start of its messages, shows to be at the broker still, and that have no record. Safe to repeat and to
//! do twice at once: records and error events are kept single.

use super::HubError;
use super::fate::{Answer, Letter};
use super::groups::Audience;
use super::nodes::Nodes;
use super::upkeep::{PAGE, PER_PASS, day, page};
use super::{journals, records};
use crate::broker::topology::StreamState;
use crate::model::error_event::Code;
use crate::model::id::{MsgRef, StreamSeq};
use crate::model::message::StreamKind;
use crate::model::name::NodeName;
use crate::model::node::Starts;
use crate::model::record::RecordError;
use crate::model::settings::last_start;
use crate::model::state::State;
use crate::model::time::{Timestamp, rough};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// The longest time before the end at which it is warned of.
const LEAD: Duration = Duration::from_secs(86_400);

/// How long before its end a message is warned of: the last tenth of its time, a day at most.
fn lead(time: Duration) -> Duration {
    (time / 10).min(LEAD)
}

/// Writes `expired` for what no node took in its time. `looked`: up to where that is done.
pub(super) async fn expire(
    nodes: &Nodes,
    stream: StreamKind,
    state: &StreamState,
    looked: &mut StreamSeq,
) -> Result<(), HubError> {
    let Some(age) = state.max_age else { return Ok(()) };
    let mut pass = Pass::new(nodes, stream, state.now.minus(last_start(age)));
    for _ in 0..PER_PASS / PAGE {
        let found = pass.next(StreamSeq(looked.0 + 1).max(state.first)).await?;
        for (letter, node) in found.unread {
            let text = "the node did not take it in the time for which the stream keeps it, less a day";
            let error = RecordError::new(Code::Expired, text);
            let answer = Answer { node: node.to_string(), state: State::Expired, error };
            records::answer(nodes.broker(), &letter, &answer).await?;
        }
        *looked = found.looked.unwrap_or(*looked);
        if found.is_end {
            break;
        }
    }
    Ok(())
}

/// Warns of what no node has taken and will soon expire: one error event for each node and day. `warned`: up to where that
/// is done.
pub(super) async fn warn(
    nodes: &Nodes,
    stream: StreamKind,
    state: &StreamState,
    warned: &mut StreamSeq,
) -> Result<(), HubError> {
    let Some(age) = state.max_age else { return Ok(()) };
    let time = last_start(age);
    let mut pass = Pass::new(nodes, stream, state.now.minus(time - lead(time)));
    let mut waiting: BTreeMap<NodeName, (MsgRef, u64)> = BTreeMap::new();
    let mut looked = *warned;
    for _ in 0..PER_PASS / PAGE {
        let found = pass.next(StreamSeq(looked.0 + 1).max(state.first)).await?;
        for (letter, node) in found.unread {
            waiting.entry(node).or_insert((letter.at, 0)).1 += 1;
        }
        looked = found.looked.unwrap_or(looked);
        if found.is_end {
            break;
        }
    }
    for (node, (oldest, count)) in waiting {
        let ends = oldest.stored_at.plus(time);
        let text = format!(
            "{count} messages for {node} are not taken yet, the oldest {oldest}; in {} it expires",
            rough(ends.since(state.now))
        );
        let cause = format!("edgeward:expires_soon/{stream:?}/{node}/{}", day(state.now));
        nodes.tell(node.as_str(), Code::ExpiresSoon, &text, &cause, state.now).await?;
    }
    *warned = looked;
    Ok(())
}

/// One way over a stream, as far as messages are older than a time.
struct Pass<'a> {
    nodes: &'a Nodes,
    stream: StreamKind,
    due: Timestamp,
    audience: Audience<'a>,
    /// The nodes' positions, asked for once in a pass.
    positions: HashMap<NodeName, Option<StreamSeq>>,
}

/// A page of it.
struct Found {
    /// The messages that no node has taken.
    unread: Vec<(Letter, NodeName)>,
    /// The last message that was looked at, where there was one.
    looked: Option<StreamSeq>,
    /// True where nothing that is old enough follows.
    is_end: bool,
}

impl<'a> Pass<'a> {
    fn new(nodes: &'a Nodes, stream: StreamKind, due: Timestamp) -> Pass<'a> {
        Pass { nodes, stream, due, audience: Audience::new(nodes), positions: HashMap::new() }
    }

    async fn next(&mut self, from: StreamSeq) -> Result<Found, HubError> {
        let page = page(self.nodes, self.stream, from).await?;
        let mut found = Found { unread: Vec::new(), looked: None, is_end: page.is_empty() };
        for message in page {
            if message.stored_at > self.due {
                found.is_end = true;
                break;
            }
            let letter = Letter::read(self.nodes.broker().names(), self.stream, &message);
            let mut unread = Vec::new();
            for node in self.audience.of(&letter).await? {
                if self.is_at_broker(&letter, &node).await? {
                    unread.push(node);
                }
            }
            let unread = records::silent(self.nodes.broker(), &letter, unread).await?;
            found.unread.extend(unread.into_iter().map(|node| (letter.clone(), node)));
            found.looked = Some(message.seq);
        }
        Ok(found)
    }

    /// True where the node's messages have begun by then and its position is before it.
    async fn is_at_broker(&mut self, letter: &Letter, node: &NodeName) -> Result<bool, HubError> {
        let stream = letter.at.stream;
        let Some(spec) = self.nodes.spec(node).await? else { return Ok(false) };
        let position = match self.positions.get(node) {
            Some(position) => *position,
            None => {
                let status = journals::last_status(self.nodes, node).await?;
                let own = status.filter(|(status, _)| status.journal == spec.journal);
                let position = own.map_or_else(Starts::default, |(status, _)| status.position);
                *self.positions.entry(node.clone()).or_insert(*position.get(stream))
            }
        };
        let is_the_nodes = spec.start.get(stream).is_some_and(|start| letter.at.seq >= start);
        // What it has taken it answers itself; what was before its start has another fate.
        Ok(is_the_nodes && position.is_none_or(|last| letter.at.seq > last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warning_comes_a_day_or_a_tenth_before_the_end() {
        let days = |n: u64| Duration::from_secs(n * 86_400);
        assert_eq!(lead(last_start(days(30))), days(1));
        assert_eq!(lead(last_start(days(3))), days(2) / 10);
    }
}
