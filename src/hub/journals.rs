//! Which journal is a node, and what becomes of the messages of one that was replaced.
//!
//! Owns the answer to `hello`, and the closing: every older message gets a terminal record before `spec.closing` goes. The
//! change of journals is one compare-and-set that says what has to be closed and how far the old journal may have come, so
//! a hub may die behind any step, and two hubs close in the same way. Makes no nodes and no consumers itself.

use super::HubError;
use super::fate::{Answer, Letter};
use super::nodes::Nodes;
use super::records;
use crate::broker::{From, Progress, RawMessage};
use crate::model::error_event::Code;
use crate::model::groups::Belongs;
use crate::model::id::{JournalId, StreamSeq};
use crate::model::message::StreamKind;
use crate::model::name::{GroupName, NodeName, Target};
use crate::model::node::{Closing, Contact, Hello, PerStream, Spec, Starts, Status};
use crate::model::record::{Record, RecordError};
use crate::model::state::State;
use crate::model::subject::{NodeKey, RecordStream};
use crate::model::time::Timestamp;
use futures::future::try_join_all;
use std::collections::BTreeSet;
use std::time::Duration;

/// A journal that has never said how it is counts as silent so long after it became the node: two beats of the default.
const NEVER_HEARD: Duration = Duration::from_secs(60);

/// Messages closed at once: enough to hide the round trips, few enough for the API's queue.
const AT_ONCE: usize = 16;

/// What the hub knows of the journal that is the node now.
#[derive(Debug, Clone, Copy)]
struct Current<'a> {
    journal: JournalId,
    /// When `spec` was written last.
    decided_at: Timestamp,
    /// The last status under the node's name, and when it was stored.
    status: Option<(&'a Status, Timestamp)>,
}

impl Current<'_> {
    /// True where another journal that spoke up at `said_at` may take its place.
    ///
    /// A word older than the node's own last one is no reason: who asked then may be gone.
    fn may_be_replaced(&self, said_at: Timestamp) -> bool {
        match self.status.filter(|(status, _)| status.journal == Some(self.journal)) {
            Some((_, stored_at)) if said_at <= stored_at => false,
            Some((status, stored_at)) => {
                matches!(status.contact(stored_at, said_at), Contact::Stopped | Contact::Silent)
            }
            None => said_at.since(self.decided_at) > NEVER_HEARD,
        }
    }
}

/// The last message that a journal may have taken from a stream: by its own word, by its records, and by what its consumer
/// has given out, which no beat is late for.
fn may_have_taken(
    start: StreamSeq,
    position: Option<StreamSeq>,
    record: Option<StreamSeq>,
    consumer: Option<Progress>,
) -> Option<StreamSeq> {
    let said = position.max(record);
    let given = consumer.map(|progress| {
        let last = progress.delivered.max(progress.ack_floor);
        // Nothing since a reset: it was set to the last message taken, which it would give next.
        if progress.deliveries == 0 && said.is_some() { StreamSeq(last.0 + 1) } else { last }
    });
    said.max(given).filter(|last| *last >= start)
}

/// How a message of a replaced journal ends that has no terminal record.
fn ending(closing: &Closing, letter: &Letter, node: &NodeName) -> Answer {
    let journal = closing.journal.map_or_else(|| "unknown".to_owned(), |id| id.to_string());
    let (state, error) = if closing.may_have_taken(letter.at.stream, letter.at.seq) {
        let text = format!("journal {journal} was replaced before it told what became of this; it may have run");
        (State::Interrupted, RecordError::new(Code::Interrupted, text))
    } else {
        let text = format!("journal {journal} was replaced before it had taken this");
        (State::Undeliverable, RecordError::new(Code::BeforeStart, text))
    };
    Answer { node: node.to_string(), state, error }
}

/// A journal asks to be this node, or finds that something is missing.
pub(super) async fn greet(nodes: &Nodes, hello: &Hello, said_at: Timestamp) -> Result<(), HubError> {
    let node = &hello.node;
    let mut spec = nodes.make(node).await?;
    if spec.journal.is_none() {
        let take = |spec: &mut Spec| {
            let free = spec.journal.is_none();
            spec.journal.get_or_insert(hello.journal);
            free
        };
        spec = nodes.change(node, take).await?;
        tracing::info!(%node, journal = spec.journal.map(tracing::field::display), "first contact");
    }
    match spec.journal {
        Some(current) if current != hello.journal => replace_or_refuse(nodes, &spec, current, hello, said_at).await,
        // What it lacks can only be a consumer.
        _ => nodes.ensure_consumers(&spec).await.map(drop),
    }
}

async fn replace_or_refuse(
    nodes: &Nodes,
    spec: &Spec,
    current: JournalId,
    hello: &Hello,
    said_at: Timestamp,
) -> Result<(), HubError> {
    let node = &spec.node;
    let stored = last_status(nodes, node).await?;
    let status = stored.as_ref().map(|(status, stored_at)| (status, *stored_at));
    let decided_at = nodes.decided_at(node).await?.ok_or_else(|| HubError::NodeRemoved(node.clone()))?;
    if !(Current { journal: current, decided_at, status }).may_be_replaced(said_at) {
        let text = format!(
            "journal {} asks to be this node, which is journal {current}: two agents with this name, or a lost journal; \
             it is left waiting until the other has stopped or is two beats silent",
            hello.journal
        );
        let cause = format!("edgeward:second_journal/{node}/{}", hello.journal);
        return nodes.tell(node.as_str(), Code::SecondJournal, &text, &cause, said_at).await;
    }
    // One closing at a time: what is being closed says where the next one begins.
    close(nodes, spec).await?;
    let closing = closing(nodes, spec, current, status).await?;
    let replace = |spec: &mut Spec| {
        let still = spec.journal == Some(current) && spec.closing.is_none() && spec.start == closing.start;
        if still {
            spec.journal = Some(hello.journal);
            spec.start = closing.until;
            spec.closing = Some(closing.clone());
            // Marks that lie before the new journal's start it would never see.
            spec.renew_marks(uuid::Uuid::new_v4);
        }
        still
    };
    let spec = nodes.change(node, replace).await?;
    tracing::warn!(%node, old = %current, new = ?spec.journal, "another journal is this node now");
    let text =
        format!("journal {} took the place of journal {current}, which had stopped or was silent", hello.journal);
    let cause = format!("edgeward:journal_replaced/{node}/{current}/{}", hello.journal);
    nodes.tell(node.as_str(), Code::JournalReplaced, &text, &cause, said_at).await?;
    close(nodes, &spec).await
}

/// The last status under a node's name, and when it was stored.
pub(super) async fn last_status(nodes: &Nodes, node: &NodeName) -> Result<Option<(Status, Timestamp)>, HubError> {
    let names = nodes.broker().names();
    let (bucket, key) = (names.record_stream(RecordStream::Nodes), names.node_key(NodeKey::Status, node.as_str()));
    let last = nodes.broker().get_last_at_leader(&bucket, &key).await?;
    // One that cannot be read says nothing; a node that was removed has no body.
    let read = |message: RawMessage| Some((serde_json::from_slice(&message.body).ok()?, message.stored_at));
    Ok(last.and_then(read))
}

/// All that is stored up to now is the old journal's, as far as it had a beginning in the stream.
async fn closing(
    nodes: &Nodes,
    spec: &Spec,
    journal: JournalId,
    status: Option<(&Status, Timestamp)>,
) -> Result<Closing, HubError> {
    let broker = nodes.broker();
    let status = status.filter(|(status, _)| status.journal == Some(journal));
    let position = status.map_or_else(Starts::default, |(status, _)| status.position);
    let records = last_told(nodes, &spec.node, journal, status.map(|(_, stored_at)| stored_at)).await?;
    let mut closing =
        Closing { journal: Some(journal), start: spec.start, taken: Starts::default(), until: Starts::default() };
    for stream in StreamKind::ALL {
        let Some(start) = *spec.start.get(stream) else { continue };
        let consumer = broker.consumer_progress(stream, &spec.node).await?;
        *closing.taken.get_mut(stream) = may_have_taken(start, *position.get(stream), *records.get(stream), consumer);
        let end = StreamSeq(broker.last_seq(stream).await?.0 + 1);
        *closing.until.get_mut(stream) = Some(end.max(start));
    }
    Ok(closing)
}

/// The highest sequences that records of this journal are about, stored since its last status, which tells the rest.
async fn last_told(
    nodes: &Nodes,
    node: &NodeName,
    journal: JournalId,
    since: Option<Timestamp>,
) -> Result<Starts, HubError> {
    let broker = nodes.broker();
    let names = broker.names();
    let acks = names.record_stream(RecordStream::Acks);
    let mut told: Starts = PerStream::default();
    for class in ["ack", "progress"] {
        let filter = format!("{}.{class}.{node}.>", names.prefix());
        let mut from = From::Time(since.unwrap_or(Timestamp::from_nanos(0)));
        while let Some(message) = broker.get_next_at_leader(&acks, &filter, from).await? {
            from = From::Seq(StreamSeq(message.seq.0 + 1));
            let Ok(record) = serde_json::from_slice::<Record>(&message.body) else { continue };
            if let (Some(stream), true) = (names.stream_kind(&record.stream), record.journal == Some(journal)) {
                let last = told.get_mut(stream);
                *last = (*last).max(Some(record.seq));
            }
        }
    }
    Ok(told)
}

/// Closes what a replaced journal left open, and says in `spec` that it is closed. Safe to repeat and to do twice at once.
pub(super) async fn close(nodes: &Nodes, spec: &Spec) -> Result<(), HubError> {
    let Some(closing) = &spec.closing else { return Ok(()) };
    // Of what is older than the first record kept nobody knows whether it had one.
    let known_since = nodes.broker().dropped_until(RecordStream::Acks).await?;
    for stream in StreamKind::ALL {
        let (Some(start), Some(until)) = (*closing.start.get(stream), *closing.until.get(stream)) else { continue };
        for target in ever_reached(spec) {
            let mut from = start;
            loop {
                let letters = next_letters(nodes, &target, stream, from, until).await?;
                let Some(last) = letters.last() else { break };
                from = StreamSeq(last.at.seq.0 + 1);
                let its = letters.iter().filter(|letter| was_for(spec, letter));
                let known = its.filter(|letter| known_since.is_none_or(|first| letter.at.stored_at >= first));
                try_join_all(known.map(|letter| end(nodes, closing, letter, &spec.node))).await?;
            }
        }
    }
    let done = |spec: &mut Spec| {
        let ours = spec.closing.as_ref() == Some(closing);
        if ours {
            spec.closing = None;
        }
        ours
    };
    nodes.change(&spec.node, done).await?;
    tracing::info!(node = %spec.node, "what its old journal left open is closed");
    Ok(())
}

/// All targets whose messages its old journal may have had to answer.
fn ever_reached(spec: &Spec) -> BTreeSet<Target> {
    let groups = spec.groups.iter().filter_map(|m| m.name.parse().ok()).map(Target::Group);
    spec.targets().into_iter().chain(groups).collect()
}

/// True where a message to one of those targets was for the node.
fn was_for(spec: &Spec, letter: &Letter) -> bool {
    let member = |group: &GroupName| spec.belongs(group, letter.at.stream, letter.at.seq) == Belongs::Member;
    letter.group().is_none_or(|group| *group == GroupName::all() || member(group))
}

/// The next messages for a target below `until`; none where there are no more.
async fn next_letters(
    nodes: &Nodes,
    target: &Target,
    stream: StreamKind,
    from: StreamSeq,
    until: StreamSeq,
) -> Result<Vec<Letter>, HubError> {
    let names = nodes.broker().names();
    let (name, filter) = (names.stream(stream), names.target_filter(target));
    let mut letters = Vec::with_capacity(AT_ONCE);
    let mut from = from;
    while letters.len() < AT_ONCE {
        match nodes.broker().get_next_at_leader(&name, &filter, From::Seq(from)).await? {
            Some(message) if message.seq < until => {
                from = StreamSeq(message.seq.0 + 1);
                letters.push(Letter::read(names, stream, &message));
            }
            _ => break,
        }
    }
    Ok(letters)
}

async fn end(nodes: &Nodes, closing: &Closing, letter: &Letter, node: &NodeName) -> Result<(), HubError> {
    if records::is_told(nodes.broker(), letter, node.as_str()).await? {
        return Ok(());
    }
    records::answer(nodes.broker(), letter, &ending(closing, letter, node)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(0).plus(Duration::from_secs(seconds))
    }

    fn status(journal: JournalId, stopped: bool) -> Status {
        let text =
            serde_json::json!({ "v": 1, "node": "n1", "journal": journal, "interval_s": 1.0, "stopped": stopped });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_journal_is_replaced_only_when_it_has_stopped_or_is_two_beats_silent() {
        let (journal, other) = (JournalId::fresh(), JournalId::fresh());
        let (alive, stopped, foreign) = (status(journal, false), status(journal, true), status(other, false));
        let current = |status| Current { journal, decided_at: at(0), status };
        assert!(!current(Some((&alive, at(10)))).may_be_replaced(at(12)), "one beat may be late");
        assert!(current(Some((&alive, at(10)))).may_be_replaced(at(13)));
        assert!(current(Some((&stopped, at(10)))).may_be_replaced(at(11)));
        assert!(!current(Some((&stopped, at(10)))).may_be_replaced(at(9)), "who asked before that may be gone");
        assert!(!current(None).may_be_replaced(at(60)));
        assert!(current(None).may_be_replaced(at(61)));
        assert!(!current(Some((&foreign, at(1)))).may_be_replaced(at(30)), "another journal's status says nothing");
    }

    #[test]
    fn how_far_a_journal_may_have_come_is_the_furthest_trace_of_it() {
        let seq = |n| Some(StreamSeq(n));
        let given = |delivered, ack_floor, deliveries| {
            Some(Progress { delivered: StreamSeq(delivered), ack_floor: StreamSeq(ack_floor), deliveries, pending: 0 })
        };
        assert_eq!(may_have_taken(StreamSeq(5), None, None, None), None);
        assert_eq!(may_have_taken(StreamSeq(5), None, None, given(4, 4, 0)), None, "nothing was ever given out");
        assert_eq!(may_have_taken(StreamSeq(5), seq(7), None, given(4, 4, 0)), seq(7));
        assert_eq!(may_have_taken(StreamSeq(5), seq(7), seq(9), given(8, 7, 1)), seq(9));
        assert_eq!(may_have_taken(StreamSeq(5), seq(7), None, given(12, 7, 5)), seq(12), "given out, not yet told");
        assert_eq!(
            may_have_taken(StreamSeq(5), seq(7), None, given(19, 19, 0)),
            seq(20),
            "reset to the last one taken"
        );
        assert_eq!(may_have_taken(StreamSeq(50), seq(7), None, given(12, 7, 5)), None, "below its start");
    }
}
