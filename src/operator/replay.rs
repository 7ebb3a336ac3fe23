//! Sending messages of the past again, in the order in which they were stored.
//!
//! Owns finding out what is to be sent before anything is: where one message is gone or cannot be sent, nothing is. Each is
//! a new message with an id of its own that names the one it repeats (`Fleet-Replay-Of`); the targets of one call share an
//! id again, so that they can be waited for together.

use super::error::OperatorError;
use super::export::{Exported, Unsendable};
use super::find::find;
use super::message::Message;
use super::nodes::stream_facts;
use super::pages::each_message;
use super::row::Row;
use super::send::Draft;
use super::watch::Watch;
use crate::broker::{Broker, BrokerError, From as Begin};
use crate::model::header::MsgHeaders;
use crate::model::id::{IdRef, MessageId, MsgRef, StreamSeq};
use crate::model::message::{Kind, StreamKind};
use crate::model::name::{Sender, Target};
use crate::model::state::State;
use crate::model::time::{StartBy, Timestamp};
use futures::{StreamExt, TryStreamExt};
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::time::Duration;

/// Messages that are sent again by one call at most.
pub const MOST: usize = 10_000;

/// Bytes of bodies that one call holds at most.
const MOST_BYTES: usize = 256 << 20;

/// Reads on their way at once.
const AT_ONCE: usize = 16;

/// Which messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Again {
    /// One call, by any of its names.
    Call {
        /// Its name.
        id: IdRef,
        /// How far back it is looked for.
        since: Option<Duration>,
    },
    /// One call on those nodes alone where it ended without success.
    Failed {
        /// Its name.
        id: IdRef,
        /// How far back it is looked for.
        since: Option<Duration>,
    },
    /// A range of stored sequences, both ends included: the messages of one sender in it, or of all.
    Range {
        /// The stream.
        stream: StreamKind,
        /// The first.
        first: StreamSeq,
        /// The last.
        last: StreamSeq,
        /// Of everybody, not of one sender.
        everybody: bool,
    },
    /// Those of a file.
    Messages(Vec<Exported>),
}

/// One message that is to be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeat {
    /// The message that it repeats.
    pub of: MsgRef,
    /// What is sent.
    pub draft: Draft,
    /// True where the message had a deadline that has passed, which the new one is without.
    pub deadline_dropped: bool,
}

/// What is to be sent, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repeats {
    /// The messages.
    pub messages: Vec<Repeat>,
    /// How many messages of other senders the range has, which are left out.
    pub of_others: usize,
}

/// A message and to whom it goes now.
type Meant = (Exported, Vec<Target>);

/// Finds out what is to be sent. `whose` is the sender of a range and of `last`; `to`: whom it all goes to instead.
pub async fn plan(
    broker: &Broker,
    what: Again,
    whose: Option<&Sender>,
    to: &[Target],
) -> Result<Repeats, OperatorError> {
    let mut of_others = 0;
    let meant: Vec<Meant> = match what {
        Again::Call { id, since } => {
            let call = find(broker, &id, whose, since).await?;
            check_size(&call.messages)?;
            let all = call.messages.iter().map(|message| (message.at, message.to.clone().into_iter().collect()));
            read_all(broker, all.collect()).await?
        }
        Again::Failed { id, since } => {
            let call = find(broker, &id, whose, since).await?;
            check_size(&call.messages)?;
            let failed = failed(&Watch::of(broker, &call).await?);
            if failed.is_empty() {
                return Err(OperatorError::NothingFailed { id });
            }
            read_all(broker, failed).await?
        }
        Again::Range { stream, first, last, everybody } => {
            let whose = if everybody { None } else { Some(whose.ok_or(OperatorError::NoSender)?) };
            let found = range(broker, stream, (first, last), whose).await?;
            of_others = found.1;
            found.0
        }
        Again::Messages(all) => all.into_iter().map(meant).collect::<Result<_, _>>()?,
    };
    let now = stream_facts(broker, &broker.names().stream(StreamKind::Commands)).await?.now;
    Ok(Repeats { messages: repeats(meant, to, now)?, of_others })
}

/// A message that goes to whom it went before.
fn meant(message: Exported) -> Result<Meant, Unsendable> {
    let target = message.target()?;
    Ok((message, vec![target]))
}

fn check_size(messages: &[Message]) -> Result<(), OperatorError> {
    let bytes: usize = messages.iter().map(|message| message.size).sum();
    if messages.len() > MOST || bytes > MOST_BYTES { Err(too_much()) } else { Ok(()) }
}

fn too_much() -> OperatorError {
    OperatorError::TooMuch { most: MOST, most_bytes: MOST_BYTES }
}

/// Where a call ended without success, and was not ended on purpose: each message with those nodes.
fn failed(watch: &Watch) -> Vec<(MsgRef, Vec<Target>)> {
    use State::{Expired, Failed, Interrupted, Refused, TimedOut, Undeliverable};
    let is_failed =
        |row: &Row<'_>| matches!(row.state, Failed | TimedOut | Interrupted | Refused | Expired | Undeliverable);
    let mut all: Vec<(MsgRef, Vec<Target>)> = Vec::new();
    for row in watch.view().rows().filter(is_failed) {
        // A group that nobody answered for stays the group.
        let Ok(target) = row.node.parse::<Target>() else { continue };
        match all.last_mut() {
            Some((at, targets)) if *at == row.message.at => targets.push(target),
            _ => all.push((row.message.at, vec![target])),
        }
    }
    all
}

async fn read_all(broker: &Broker, wanted: Vec<(MsgRef, Vec<Target>)>) -> Result<Vec<Meant>, OperatorError> {
    let reads = wanted.into_iter().map(|(at, targets)| async move {
        let raw = broker.get(&broker.names().stream(at.stream), at.seq).await?;
        let raw = raw.filter(|raw| raw.stored_at == at.stored_at);
        let raw = raw.ok_or(OperatorError::Gone { id: IdRef::Stored(at.stream, at.seq) })?;
        Ok::<Meant, OperatorError>((Exported::of(broker.names(), at.stream, &raw)?, targets))
    });
    futures::stream::iter(reads).buffered(AT_ONCE).try_collect().await
}

/// What is needed to send these messages again, in the order given; those that no node would take are told apart.
pub async fn export(broker: &Broker, messages: &[Message]) -> Result<(Vec<Exported>, Vec<Unsendable>), OperatorError> {
    let reads = messages.iter().map(|message| async move {
        let at = message.at;
        let raw = broker.get(&broker.names().stream(at.stream), at.seq).await?;
        Ok::<_, BrokerError>(match raw.filter(|raw| raw.stored_at == at.stored_at) {
            Some(raw) => Exported::of(broker.names(), at.stream, &raw),
            None => Err(Unsendable { at, reason: "it is not in the stream any more".to_owned() }),
        })
    });
    let read: Vec<_> = futures::stream::iter(reads).buffered(AT_ONCE).try_collect().await?;
    let (mut sendable, mut unsendable) = (Vec::new(), Vec::new());
    for one in read {
        match one {
            Ok(message) => sendable.push(message),
            Err(error) => unsendable.push(error),
        }
    }
    Ok((sendable, unsendable))
}

/// The commands (or events) of a range, and how many others it has.
async fn range(
    broker: &Broker,
    stream: StreamKind,
    (first, last): (StreamSeq, StreamSeq),
    whose: Option<&Sender>,
) -> Result<(Vec<Meant>, usize), OperatorError> {
    let name = broker.names().stream(stream);
    let there = stream_facts(broker, &name).await?;
    let (from, to) = (IdRef::Stored(stream, there.first_seq), IdRef::Stored(stream, there.last_seq));
    if first < there.first_seq || last > there.last_seq {
        return Err(OperatorError::OutOfRange { first: from, last: to });
    }
    let kind = if stream == StreamKind::Commands { Kind::Command } else { Kind::Event };
    let filter = format!("{}.msg.*.{kind}.>", broker.names().prefix());
    let (mut found, mut of_others, mut bytes) = (Vec::new(), 0, 0);
    let mut error: Option<OperatorError> = None;
    each_message(broker, &name, &filter, Begin::Seq(first), |raw| {
        if raw.seq > last {
            return ControlFlow::Break(());
        }
        let message = Message::read(broker.names(), stream, &raw);
        if whose.is_some_and(|whose| message.from != whose.as_str()) {
            of_others += 1;
            return ControlFlow::Continue(());
        }
        bytes += raw.body.len();
        match Exported::of(broker.names(), stream, &raw).and_then(meant) {
            Ok(one) if found.len() < MOST && bytes <= MOST_BYTES => found.push(one),
            Ok(_) => error = Some(too_much()),
            Err(unsendable) => error = Some(unsendable.into()),
        }
        if error.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .await?;
    match error {
        Some(error) => Err(error),
        None if found.is_empty() => Err(OperatorError::EmptyRange { of_others }),
        None => Ok((found, of_others)),
    }
}

/// The messages to be sent, in the order in which the old ones were stored.
fn repeats(mut meant: Vec<Meant>, to: &[Target], now: Timestamp) -> Result<Vec<Repeat>, Unsendable> {
    meant.sort_by_key(|(message, _)| message.at().stored_at);
    if !to.is_empty() {
        keep_one_of_each_call(&mut meant);
    }
    let mut ids: HashMap<(String, MessageId), MessageId> = HashMap::new();
    let mut all = Vec::with_capacity(meant.len());
    for (message, targets) in meant {
        let targets = if to.is_empty() { targets } else { to.to_vec() };
        let mut draft = Draft::new(targets, message.kind, message.method.clone(), message.body()?);
        if to.is_empty() {
            // Sent to others than before, two targets of one call would be the same message twice.
            draft.id = ids.entry((message.from.clone(), message.id.clone())).or_insert(draft.id).clone();
        }
        draft.lane = message.lane.clone();
        let headers = message.steering()?;
        let is_past = |start_by: &StartBy| matches!(start_by, StartBy::At(time) if *time <= now);
        let deadline_dropped = headers.start_by.as_ref().is_some_and(is_past);
        let start_by = headers.start_by.filter(|start_by| !is_past(start_by));
        draft.headers = MsgHeaders { start_by, replay_of: Some(message.seq.0), ..headers };
        all.push(Repeat { of: message.at(), draft, deadline_dropped });
    }
    Ok(all)
}

/// A call to several targets is as many messages; who stands for all of them now gets it once.
fn keep_one_of_each_call(meant: &mut Vec<Meant>) {
    let firsts: Vec<bool> = {
        let mut seen = HashSet::new();
        meant.iter().map(|(message, _)| seen.insert(message.of_its_call())).collect()
    };
    let mut firsts = firsts.into_iter();
    meant.retain(|_| firsts.next() == Some(true));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message(seq: u64, id: &str, to: &str, start_by: Option<&str>) -> Meant {
        let headers = start_by.map(|time| json!({ "Fleet-Start-By": time })).unwrap_or(json!({}));
        let stored_at = Timestamp::from_nanos(i64::try_from(seq).unwrap());
        let exported = json!({ "v": 1, "stream": "commands", "seq": seq, "stored_at": stored_at, "id": id, "from": "ops",
            "to": to, "kind": "command", "method": "shell", "headers": headers, "body": "x" });
        meant(serde_json::from_value(exported).unwrap()).unwrap()
    }

    #[test]
    fn a_call_is_one_call_again_in_the_old_order_and_says_what_it_repeats() {
        let old = vec![message(9, "b", "n1", None), message(4, "a", "n1", None), message(5, "a", "n2", None)];
        let new = repeats(old.clone(), &[], Timestamp::from_nanos(100)).unwrap();
        assert_eq!(new.iter().map(|one| one.of.seq.0).collect::<Vec<_>>(), [4, 5, 9]);
        assert_eq!(new.iter().map(|one| one.draft.headers.replay_of).collect::<Vec<_>>(), [Some(4), Some(5), Some(9)]);
        assert_eq!(new[0].draft.id, new[1].draft.id);
        assert!(new[0].draft.id != new[2].draft.id && new[0].draft.id.as_str() != "a");
    }

    #[test]
    fn a_call_goes_once_to_each_of_those_who_get_it_instead() {
        let other = |seq, body: &str| {
            let (one, targets) = message(seq, "a", "n3", None);
            let mut one = json!(one);
            one["body"] = json!(body);
            (serde_json::from_value(one).unwrap(), targets)
        };
        let old =
            vec![message(9, "b", "n1", None), message(4, "a", "n1", None), message(5, "a", "n2", None), other(6, "y")];
        let to = ["n7".parse().unwrap(), "n8".parse().unwrap()];
        let new = repeats(old, &to, Timestamp::from_nanos(100)).unwrap();
        assert_eq!(
            new.iter().map(|one| one.of.seq.0).collect::<Vec<_>>(),
            [4, 6, 9],
            "the second of a call is the first"
        );
        assert!(new.iter().all(|one| one.draft.to == to));
        assert_ne!(new[0].draft.id, new[1].draft.id, "what shares an id and says something else is to run, too");
    }

    #[test]
    fn a_deadline_that_has_passed_does_not_come_again() {
        let past = message(1, "a", "n1", Some("1970-01-01T00:00:01Z"));
        let after = message(2, "b", "n1", Some("5m"));
        let new = repeats(vec![past, after], &[], Timestamp::from_nanos(2_000_000_000)).unwrap();
        assert!(new[0].deadline_dropped && new[0].draft.headers.start_by.is_none());
        assert!(!new[1].deadline_dropped && new[1].draft.headers.start_by.is_some());
    }
}
