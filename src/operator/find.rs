//! From what a person calls a message to the messages themselves.
//!
//! Owns how far back is looked, and by which way. Never reads what became of them.

use super::error::OperatorError;
use super::message::Message;
use super::nodes::stream_facts;
use super::pages::each_message;
use crate::broker::{Broker, BrokerError, From as Begin};
use crate::model::id::{IdRef, MessageId, MsgRef, StreamSeq};
use crate::model::message::StreamKind;
use crate::model::name::Sender;
use crate::model::record::Record;
use crate::model::subject::{RecordClass, RecordStream};
use crate::model::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

/// How far back messages are read where nothing tells a time.
const LOOK_BACK: Duration = Duration::from_secs(24 * 3600);

/// A sender's clock may be off by this much against the broker's before a UUIDv7 misleads.
const CLOCKS_DIFFER: Duration = Duration::from_secs(300);

/// All messages of one call are stored within this time; it is the dedup window.
const ONE_CALL: Duration = Duration::from_secs(3600);

/// The messages of one (sender, id): one, or one for each target of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The sender's token, or `_`.
    pub from: String,
    /// The id.
    pub id: MessageId,
    /// The messages, in stream order, commands first; never empty.
    pub messages: Vec<Message>,
}

/// Which stretch of the streams to read.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    begin: Timestamp,
    end: Option<Timestamp>,
}

/// Finds a message. An id is looked for among `from`'s own messages first, then among everybody's; `since` tells how far
/// back messages are read, where the id itself does not tell a time.
pub async fn find(
    broker: &Broker,
    what: &IdRef,
    from: Option<&Sender>,
    since: Option<Duration>,
) -> Result<Call, OperatorError> {
    match what {
        IdRef::Stored(stream, seq) => {
            let found = message_at(broker, *stream, *seq).await?;
            found.map(one).ok_or_else(|| OperatorError::NotFound { id: what.clone(), back: None })
        }
        IdRef::Last => {
            let from = from.ok_or(OperatorError::NoSender)?;
            let newest = newest(broker, from).await?;
            let newest = newest.ok_or_else(|| OperatorError::NotFound { id: what.clone(), back: None })?;
            whole_call(broker, newest).await
        }
        IdRef::Id(id) => {
            let back = since.unwrap_or(LOOK_BACK);
            if let Some(from) = from
                && let Some(call) = by_id(broker, from.as_str(), id, since).await?
            {
                return Ok(call);
            }
            let call = by_id(broker, "*", id, since).await?;
            call.ok_or_else(|| OperatorError::NotFound { id: what.clone(), back: Some(back) })
        }
    }
}

fn one(message: Message) -> Call {
    Call { from: message.from.clone(), id: message.id.clone(), messages: vec![message] }
}

/// All messages of the call whose last one this is.
async fn whole_call(broker: &Broker, last: Message) -> Result<Call, OperatorError> {
    let end = last.at.stored_at;
    let begin = match last.id.made_at() {
        // Stored under its own name: nobody else has it.
        None if last.id == MessageId::derived(last.at.stream, last.at.seq) => return Ok(one(last)),
        Some(made) => made.minus(CLOCKS_DIFFER).max(end.minus(ONE_CALL)),
        None => end.minus(ONE_CALL),
    };
    let messages = read_stretch(broker, &last.from, &last.id, Stretch { begin, end: Some(end) }).await?;
    // A message that expired meanwhile is still the one that was asked for.
    Ok(if messages.is_empty() { one(last) } else { Call { from: last.from, id: last.id, messages } })
}

/// The message stored at a sequence.
pub(super) async fn message_at(
    broker: &Broker,
    stream: StreamKind,
    seq: StreamSeq,
) -> Result<Option<Message>, BrokerError> {
    // Streams count from 1, and the broker takes 0 for no sequence at all.
    if seq == StreamSeq(0) {
        return Ok(None);
    }
    let raw = broker.get(&broker.names().stream(stream), seq).await?;
    Ok(raw.map(|raw| Message::read(broker.names(), stream, &raw)))
}

/// The sender's newest command or event.
async fn newest(broker: &Broker, from: &Sender) -> Result<Option<Message>, BrokerError> {
    let mut newest: Option<Message> = None;
    for stream in StreamKind::ALL {
        let kind = match stream {
            StreamKind::Commands => "command",
            StreamKind::Events => "event",
        };
        let filter = format!("{}.msg.*.{kind}.{from}.>", broker.names().prefix());
        let raw = broker.get_last_matching(&broker.names().stream(stream), &filter).await?;
        let message = raw.map(|raw| Message::read(broker.names(), stream, &raw));
        newest = newest.into_iter().chain(message).max_by_key(|message| message.at.stored_at);
    }
    Ok(newest)
}

/// The messages of an id: those that records name, and those that are read in the stretch of time where they can be.
async fn by_id(
    broker: &Broker,
    from: &str,
    id: &MessageId,
    since: Option<Duration>,
) -> Result<Option<Call>, OperatorError> {
    let now = stream_facts(broker, &broker.names().stream(StreamKind::Commands)).await?.now;
    let back = Stretch { begin: now.minus(since.unwrap_or(LOOK_BACK)), end: None };
    let told = id.made_at().filter(|_| since.is_none());
    let stretch = told.map_or(back, |made| Stretch {
        begin: made.minus(CLOCKS_DIFFER),
        end: Some(made.plus(ONE_CALL + CLOCKS_DIFFER)),
    });
    let mut messages = read_stretch(broker, from, id, stretch).await?;
    let read: BTreeSet<(StreamKind, StreamSeq)> = messages.iter().map(|m| (m.at.stream, m.at.seq)).collect();
    for at in recorded(broker, from, id).await? {
        if !read.contains(&(at.stream, at.seq))
            && let Some(message) = message_at(broker, at.stream, at.seq).await?
            && message.id == *id
        {
            messages.push(message);
        }
    }
    if messages.is_empty() && told.is_some() {
        // The clock that made the id may be wrong by more than a little.
        messages = read_stretch(broker, from, id, back).await?;
    }
    messages.sort_by_key(|message| message.at);
    let senders: BTreeSet<String> = messages.iter().map(|message| message.from.clone()).collect();
    let mut senders = senders.into_iter();
    match (senders.next(), senders.next()) {
        (None, _) => Ok(None),
        (Some(from), None) => Ok(Some(Call { from, id: id.clone(), messages })),
        (Some(first), Some(second)) => {
            let senders = [first, second].into_iter().chain(senders).collect();
            Err(OperatorError::Ambiguous { id: id.clone(), senders })
        }
    }
}

async fn read_stretch(
    broker: &Broker,
    from: &str,
    id: &MessageId,
    stretch: Stretch,
) -> Result<Vec<Message>, BrokerError> {
    let mut found = Vec::new();
    for stream in StreamKind::ALL {
        let filter = format!("{}.msg.*.*.{from}.>", broker.names().prefix());
        let begin = Begin::Time(stretch.begin);
        each_message(broker, &broker.names().stream(stream), &filter, begin, |raw| {
            if stretch.end.is_some_and(|end| raw.stored_at > end) {
                return ControlFlow::Break(());
            }
            let message = Message::read(broker.names(), stream, &raw);
            if message.id == *id {
                found.push(message);
            }
            ControlFlow::Continue(())
        })
        .await?;
    }
    Ok(found)
}

/// The messages that records of this id are about.
async fn recorded(broker: &Broker, from: &str, id: &MessageId) -> Result<Vec<MsgRef>, BrokerError> {
    let names = broker.names();
    let mut about: BTreeMap<(StreamKind, StreamSeq), MsgRef> = BTreeMap::new();
    for class in [RecordClass::Ack, RecordClass::Progress] {
        let pattern = names.record_pattern(class, from, id.as_str());
        let stream = names.record_stream(RecordStream::Acks);
        each_message(broker, &stream, &pattern, Begin::Seq(StreamSeq(1)), |raw| {
            let record: Option<Record> = serde_json::from_slice(&raw.body).ok();
            if let Some(record) = record
                && let Some(stream) = names.stream_kind(&record.stream)
            {
                let at = MsgRef { stream, seq: record.seq, stored_at: record.stored_at };
                about.insert((stream, record.seq), at);
            }
            ControlFlow::Continue(())
        })
        .await?;
    }
    Ok(about.into_values().collect())
}
