//! Reading the records of messages into a view.
//!
//! Owns under which subjects the records of one (sender, id) stand, and that each is read once. Never follows; `watch`
//! does.

use super::pages::each_message;
use super::view::View;
use crate::broker::{Broker, BrokerError, From as Begin, RawMessage};
use crate::model::id::{MessageId, MsgRef, StreamSeq};
use crate::model::name::{NodeName, Target};
use crate::model::record::Record;
use crate::model::subject::{Names, RecordClass, RecordStream, RecordSubject};
use crate::model::time::Timestamp;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// Every class of record.
pub(super) const CLASSES: [RecordClass; 3] = [RecordClass::Ack, RecordClass::Progress, RecordClass::Late];

/// Reads the records of one sender and id, each time from where it stopped.
#[derive(Debug, Clone)]
pub(super) struct RecordReader {
    from: String,
    id: MessageId,
    read_to: StreamSeq,
    /// Nodes under whose ack subject another message of the same id stands: their record of ours has a longer name.
    taken: BTreeSet<String>,
}

impl RecordReader {
    /// Nothing read yet.
    pub(super) fn new(from: &str, id: &MessageId) -> RecordReader {
        RecordReader { from: from.to_owned(), id: id.clone(), read_to: StreamSeq(0), taken: BTreeSet::new() }
    }

    /// Reads what was stored up to `last` (the records' stream as it is now) since the last reading.
    pub(super) async fn read(&mut self, broker: &Broker, view: &mut View, last: StreamSeq) -> Result<(), BrokerError> {
        if last < self.read_to {
            // The stream was made anew.
            self.read_to = StreamSeq(0);
        }
        if last > self.read_to {
            let begin = Begin::Seq(StreamSeq(self.read_to.0 + 1));
            let stream = broker.names().record_stream(RecordStream::Acks);
            for class in CLASSES {
                let pattern = broker.names().record_pattern(class, &self.from, self.id.as_str());
                each_message(broker, &stream, &pattern, begin, |raw| {
                    self.take(broker.names(), view, &raw);
                    ControlFlow::Continue(())
                })
                .await?;
            }
            self.read_to = last;
        }
        self.read_reused(broker, view).await
    }

    /// Takes in one record. False where it is none.
    pub(super) fn take(&mut self, names: &Names, view: &mut View, raw: &RawMessage) -> bool {
        let Some((class, subject, about)) = take_record(names, view, raw) else { return false };
        if class == RecordClass::Ack && !view.holds(about) {
            self.taken.insert(subject.node);
        }
        true
    }

    /// Where another message's ack stands under our id, ours is under `<id>-s<sequence>`.
    async fn read_reused(&self, broker: &Broker, view: &mut View) -> Result<(), BrokerError> {
        if self.taken.is_empty() {
            return Ok(());
        }
        let names = broker.names();
        let open = view.rows().filter(|row| !row.is_settled() && self.taken.contains(&row.node));
        let subjects: Vec<String> = open
            .filter(|row| matches!(row.message.to, Some(Target::Node(_))))
            .map(|row| RecordSubject {
                node: row.node.clone(),
                from: self.from.clone(),
                method: row.message.method.clone(),
                id: self.id.reused(row.message.at.seq),
            })
            .map(|subject| names.record(RecordClass::Ack, &subject))
            .collect();
        for subject in subjects {
            if let Some(raw) = broker.get_last(&names.record_stream(RecordStream::Acks), &subject).await? {
                take_record(names, view, &raw);
            }
        }
        Ok(())
    }
}

/// Reads all records of a sender's messages on one node or on any, stored since `begin`, into the view that holds them.
/// What a message wrote is kept of those alone that the view holds: of the others only copies need to know the state.
pub(super) async fn read_records(
    broker: &Broker,
    view: &mut View,
    from: &str,
    node: Option<&NodeName>,
    begin: Timestamp,
) -> Result<(), BrokerError> {
    let names = broker.names();
    let node = node.map_or("*", NodeName::as_str);
    for class in CLASSES {
        let pattern = format!("{}.{}.{node}.{from}.>", names.prefix(), class.as_str());
        each_message(broker, &names.record_stream(RecordStream::Acks), &pattern, Begin::Time(begin), |raw| {
            if let Some((class, subject, about, record)) = parse_record(names, &raw) {
                let record = if view.holds(about) { record } else { record.without_output() };
                view.add(class, &subject.node, raw.seq, about, record);
            }
            ControlFlow::Continue(())
        })
        .await?;
    }
    Ok(())
}

/// A record as it is stored, with the message that it is about; `None` where it does not read as one.
pub(super) fn parse_record(names: &Names, raw: &RawMessage) -> Option<(RecordClass, RecordSubject, MsgRef, Record)> {
    let (class, subject) = names.parse_record(&raw.subject)?;
    let record: Record = serde_json::from_slice(&raw.body).ok()?;
    let stream = names.stream_kind(&record.stream)?;
    let about = MsgRef { stream, seq: record.seq, stored_at: record.stored_at };
    Some((class, subject, about, record))
}

/// Puts a record into the view; `None` where it does not read as one.
fn take_record(names: &Names, view: &mut View, raw: &RawMessage) -> Option<(RecordClass, RecordSubject, MsgRef)> {
    let (class, subject, about, record) = parse_record(names, raw)?;
    view.add(class, &subject.node, raw.seq, about, record);
    Some((class, subject, about))
}
