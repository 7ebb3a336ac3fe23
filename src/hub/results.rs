//! Results go back to nodes: what became of a command that a node sent.
//!
//! Owns following the terminal records and sending each on, unchanged, as `control.hub.result`. Twice does no harm: the id is
//! made from the cause, and the node links the second. Nothing is sent for events or control messages.

use super::HubError;
use super::nodes::Nodes;
use super::records::PUBLISH_TIMEOUT;
use crate::broker::{Broker, From, Outgoing, PublishError, RawMessage};
use crate::model::header::names as header;
use crate::model::id::{MessageId, MsgRef};
use crate::model::message::{Kind, StreamKind};
use crate::model::name::NodeName;
use crate::model::record::Record;
use crate::model::subject::{HubVerb, RecordStream, RecordSubject};
use crate::model::time::Timestamp;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Senders that are known to be no nodes, each with a time until which it was none.
///
/// A node is one before it sends, so a message that was stored by then is no node's: all records of one message ask once.
#[derive(Default)]
pub(super) struct Strangers(Mutex<HashMap<NodeName, Timestamp>>);

impl Strangers {
    /// How many are remembered; beyond that all are forgotten.
    const MOST: usize = 1024;

    fn was_one(&self, sender: &NodeName, stored_at: Timestamp) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(sender).is_some_and(|until| stored_at <= *until)
    }

    fn note(&self, sender: NodeName, until: Timestamp) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Strangers::MOST {
            known.clear();
        }
        let last = known.entry(sender).or_insert(until);
        *last = until.max(*last);
    }
}

/// Sends the record that a feed told of back to the node that sent the command, if one did.
pub(super) async fn send_back(
    nodes: &Nodes,
    strangers: &Strangers,
    subject: &RecordSubject,
    told: &RawMessage,
) -> Result<(), HubError> {
    let broker = nodes.broker();
    let commands = broker.names().stream(StreamKind::Commands);
    let about_command = told.headers.get(header::STREAM) == Some(commands.as_str());
    let Ok(sender) = subject.from.parse::<NodeName>() else { return Ok(()) };
    let sent_at = told.headers.get(header::STORED_AT).and_then(|text| text.parse().ok());
    if !about_command || sent_at.is_some_and(|at| strangers.was_one(&sender, at)) {
        return Ok(());
    }
    if nodes.spec(&sender).await?.is_none() {
        // The record was stored before that was asked.
        strangers.note(sender, told.stored_at);
        return Ok(());
    }
    let Some(stored) = fetch(broker, told).await? else { return Ok(()) };
    let record = serde_json::from_slice::<Record>(&stored.body).ok();
    // A node writes what it likes under its own subject; it cannot speak for another.
    let honest = |r: &Record| r.node == subject.node && r.from == subject.from && r.method == subject.method;
    let Some(record) = record.filter(honest) else {
        tracing::warn!(subject = %told.subject, seq = %told.seq, "this record does not say what its subject says");
        return Ok(());
    };
    if record.kind != Some(Kind::Command) {
        return Ok(());
    }
    publish(broker, &sender, &record, stored).await
}

/// The record with its body. A follower of the stream may be behind its leader.
async fn fetch(broker: &Broker, told: &RawMessage) -> Result<Option<RawMessage>, HubError> {
    let acks = broker.names().record_stream(RecordStream::Acks);
    if let Some(found) = broker.get(&acks, told.seq).await? {
        return Ok(Some(found));
    }
    let next = broker.get_next_at_leader(&acks, &told.subject, From::Seq(told.seq)).await?;
    Ok(next.filter(|message| message.seq == told.seq))
}

async fn publish(broker: &Broker, sender: &NodeName, record: &Record, stored: RawMessage) -> Result<(), HubError> {
    let cause = MsgRef { stream: StreamKind::Commands, seq: record.seq, stored_at: record.stored_at };
    let outgoing = control(broker, sender, HubVerb::Result, MessageId::from_cause(cause, &record.node), stored.body);
    match broker.publish(&outgoing, PUBLISH_TIMEOUT).await {
        Ok(_) => Ok(()),
        Err(error @ (PublishError::TooLarge { .. } | PublishError::Unsendable(_))) => {
            // It will not get smaller: the record itself stays where it is.
            tracing::warn!(subject = %outgoing.subject, %error, "this result cannot be sent back");
            Ok(())
        }
        Err(source) => Err(HubError::publish(outgoing.subject, source)),
    }
}

/// A control message of the hub. It has no `Nats-Msg-Id`: a node could use it first and have the hub's swallowed.
pub(super) fn control(
    broker: &Broker,
    to: &NodeName,
    verb: HubVerb,
    id: MessageId,
    body: impl Into<bytes::Bytes>,
) -> Outgoing {
    Outgoing::new(broker.names().hub_control(to, verb), body)
        .with(header::ID, id.to_string())
        .with(header::KIND, Kind::Control.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_is_one_up_to_the_time_of_asking() {
        let (strangers, at) = (Strangers::default(), Timestamp::from_nanos);
        let ops: NodeName = "ops".parse().unwrap();
        assert!(!strangers.was_one(&ops, at(1)));
        strangers.note(ops.clone(), at(5));
        strangers.note(ops.clone(), at(3));
        assert!(strangers.was_one(&ops, at(5)) && !strangers.was_one(&ops, at(6)), "it may be a node by then");
        for n in 0..2 * Strangers::MOST {
            strangers.note(format!("n{n}").parse().unwrap(), at(5));
        }
        assert!(strangers.0.lock().unwrap().len() <= Strangers::MOST);
    }
}
