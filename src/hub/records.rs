//! What the hub writes: terminal records for what no node can answer, and error events.
//!
//! Owns how they are kept single: by compare-and-set on their subject, so that two hubs, or one that died and its
//! successor, may both write. Never decides what they say.

use super::HubError;
use super::fate::{Answer, Letter};
use crate::broker::{Broker, From, Outgoing, PublishError, Query, RawMessage};
use crate::model::error_event::ErrorEvent;
use crate::model::id::StreamSeq;
use crate::model::name::NodeName;
use crate::model::record::{DuplicateOf, Record};
use crate::model::state::State;
use crate::model::subject::{RecordClass, RecordStream, RecordSubject};
use std::collections::HashSet;
use std::time::Duration;

/// How long the broker's word is waited for.
pub(super) const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes the hub's answer to a message, unless it has one.
pub(super) async fn answer(broker: &Broker, letter: &Letter, answer: &Answer) -> Result<(), HubError> {
    let names = broker.names();
    let subject = letter.record_subject(&answer.node);
    let record = letter.record(names, answer);
    let ack = names.record(RecordClass::Ack, &subject);
    let outgoing = Outgoing { subject: ack.clone(), headers: record.headers(), body: record.encode().into() };
    match broker.publish(&outgoing.expecting_last(0), PUBLISH_TIMEOUT).await {
        Ok(_) => {
            tracing::debug!(message = %letter.at, node = %answer.node, state = %answer.state, code = %answer.error.code, "answered");
            Ok(())
        }
        Err(PublishError::WrongLast) => link(broker, &subject, record).await,
        Err(source) => Err(HubError::publish(ack, source)),
    }
}

/// A record stands there already: this message's own, and all is done; or that of another message with the same sender and
/// id, whose copy this one is then, which a progress record tells.
async fn link(broker: &Broker, subject: &RecordSubject, record: Record) -> Result<(), HubError> {
    let names = broker.names();
    let acks = names.record_stream(RecordStream::Acks);
    let ack = names.record(RecordClass::Ack, subject);
    let found = broker.get_last_at_leader(&acks, &ack).await?;
    // Gone since, or its leader is: what is to be said of this message is asked again.
    let found = found.ok_or(HubError::Contended { what: ack })?;
    // One that is none of ours stays as it is.
    let Ok(standing) = serde_json::from_slice::<Record>(&found.body) else { return Ok(()) };
    if is_same(&standing, &record) {
        return Ok(());
    }
    let Some(stream) = names.stream_kind(&standing.stream) else { return Ok(()) };
    let progress = names.record(RecordClass::Progress, subject);
    if last_record(broker, &acks, &progress).await?.is_some_and(|told| is_same(&told, &record)) {
        return Ok(());
    }
    let original = DuplicateOf { stream, seq: standing.seq, stored_at: standing.stored_at };
    let record = Record { state: State::Duplicate, error: None, duplicate_of: Some(original), ..record };
    let outgoing = Outgoing { subject: progress.clone(), headers: record.headers(), body: record.encode().into() };
    broker.publish(&outgoing, PUBLISH_TIMEOUT).await.map(drop).map_err(|e| HubError::publish(progress, e))
}

fn is_same(a: &Record, b: &Record) -> bool {
    (a.stream.as_str(), a.seq, a.stored_at) == (b.stream.as_str(), b.seq, b.stored_at)
}

/// The last record of a subject; `None` where there is none, or it is not one of ours.
async fn last_record(broker: &Broker, stream: &str, subject: &str) -> Result<Option<Record>, HubError> {
    let found = broker.get_last_at_leader(stream, subject).await?;
    Ok(found.and_then(|message| serde_json::from_slice(&message.body).ok()))
}

/// True where this message has a terminal record on `node`.
pub(super) async fn is_answered(broker: &Broker, letter: &Letter, node: &str) -> Result<bool, HubError> {
    let names = broker.names();
    let subject = names.record(RecordClass::Ack, &letter.record_subject(node));
    let record = last_record(broker, &names.record_stream(RecordStream::Acks), &subject).await?;
    Ok(record.is_some_and(|r| r.is_about(&names.stream(letter.at.stream), letter.at)))
}

/// True where it is told what became of this message on `node`: by its own terminal record, under its id or, where another
/// message had used that, under a longer one; or as a copy of another message.
pub(super) async fn is_told(broker: &Broker, letter: &Letter, node: &str) -> Result<bool, HubError> {
    let names = broker.names();
    let (acks, stream) = (names.record_stream(RecordStream::Acks), names.stream(letter.at.stream));
    let subject = letter.record_subject(node);
    let reused = RecordSubject { id: subject.id.reused(letter.at.seq), ..subject.clone() };
    for (class, subject) in
        [(RecordClass::Ack, &subject), (RecordClass::Ack, &reused), (RecordClass::Progress, &subject)]
    {
        let record = last_record(broker, &acks, &names.record(class, subject)).await?;
        let tells = |r: &Record| class == RecordClass::Ack || r.state == State::Duplicate;
        match record {
            Some(record) if record.is_about(&stream, letter.at) && tells(&record) => return Ok(true),
            // Nothing stands under its id: then it has no longer one and is no copy.
            None if class == RecordClass::Ack && *subject != reused => return Ok(false),
            _ => {}
        }
    }
    Ok(false)
}

/// Who of these, for all of whom the message was, has not told what became of it. A few are asked for one by one, of more
/// all records of the message are read.
pub(super) async fn silent(
    broker: &Broker,
    letter: &Letter,
    everybody: Vec<NodeName>,
) -> Result<Vec<NodeName>, HubError> {
    /// So many cost less one by one.
    const FEW: usize = 3;
    if everybody.len() > FEW {
        let mut silent: HashSet<NodeName> = everybody.iter().cloned().collect();
        let at = letter.record_subject("*");
        let reused = at.id.reused(letter.at.seq);
        for (class, id) in [(RecordClass::Ack, &at.id), (RecordClass::Ack, &reused), (RecordClass::Progress, &at.id)] {
            if !silent.is_empty() {
                let pattern = broker.names().record_pattern(class, &at.from, id.as_str());
                strike_out_told(broker, letter, class, &pattern, &mut silent).await?;
            }
        }
        return Ok(everybody.into_iter().filter(|node| silent.contains(node)).collect());
    }
    let mut silent = Vec::new();
    for node in everybody {
        if !is_told(broker, letter, node.as_str()).await? {
            silent.push(node);
        }
    }
    Ok(silent)
}

/// Strikes out who has told by the records of this pattern. They are looked at page by page: with what they say of output
/// all together may be large.
async fn strike_out_told(
    broker: &Broker,
    letter: &Letter,
    class: RecordClass,
    pattern: &str,
    silent: &mut HashSet<NodeName>,
) -> Result<(), HubError> {
    /// Records read at once.
    const PAGE: usize = 256;
    let names = broker.names();
    let stream = names.stream(letter.at.stream);
    let mut from = StreamSeq(1);
    loop {
        let acks = names.record_stream(RecordStream::Acks);
        let query = Query { stream: acks, filter: pattern.to_owned(), from: From::Seq(from), batch: PAGE };
        let page = broker.read(&query).await?;
        for message in &page.messages {
            let record: Option<Record> = serde_json::from_slice(&message.body).ok();
            let tells = |r: &Record| {
                r.is_about(&stream, letter.at) && (class == RecordClass::Ack || r.state == State::Duplicate)
            };
            let node = names.parse_record(&message.subject).and_then(|(_, subject)| subject.node.parse().ok());
            if let (true, Some(node)) = (record.is_some_and(|r| tells(&r)), node) {
                silent.remove::<NodeName>(&node);
            }
        }
        match page.messages.last() {
            Some(last) if page.pending > 0 => from = StreamSeq(last.seq.0 + 1),
            _ => return Ok(()),
        }
    }
}

/// Publishes an error event, unless one with its id is stored already: an id made from the cause is told once, whatever
/// hubs come and go.
pub(super) async fn tell_once(broker: &Broker, event: &ErrorEvent) -> Result<(), HubError> {
    /// Losing this often in a row means that something else writes these events in a loop.
    const ROUNDS: usize = 5;
    /// Error events of one node and code that are looked through for one that is told already.
    const LOOK_BACK: usize = 1000;
    let names = broker.names();
    let stream = names.record_stream(RecordStream::Errors);
    let subject = names.error(&event.node, event.severity.as_str(), event.code.as_str());
    for _ in 0..ROUNDS {
        let last = broker.get_last_at_leader(&stream, &subject).await?;
        let told = broker.read_all(&stream, &subject, From::Seq(StreamSeq(1)), LOOK_BACK).await?;
        if told.iter().chain(&last).any(|message| is_event(message, event)) {
            return Ok(());
        }
        let outgoing = Outgoing::new(subject.clone(), event.encode()).expecting_last(last.map_or(0, |m| m.seq.0));
        match broker.publish(&outgoing, PUBLISH_TIMEOUT).await {
            Ok(_) => return Ok(()),
            Err(PublishError::WrongLast) => {}
            Err(source) => return Err(HubError::publish(subject, source)),
        }
    }
    Err(HubError::Contended { what: subject })
}

fn is_event(message: &RawMessage, event: &ErrorEvent) -> bool {
    serde_json::from_slice::<ErrorEvent>(&message.body).is_ok_and(|told| told.id == event.id)
}
