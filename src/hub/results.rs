//! Results go back to nodes: what became of a command that a node sent (PROTOCOL §5).
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
use crate::model::subject::{HubVerb, RecordClass, RecordStream};

/// Sends the record that a feed told of back to the node that sent the command, if one did.
pub(super) async fn send_back(nodes: &Nodes, told: &RawMessage) -> Result<(), HubError> {
    let broker = nodes.broker();
    let names = broker.names();
    let Some((RecordClass::Ack, subject)) = names.parse_record(&told.subject) else { return Ok(()) };
    let about_command = told.headers.get(header::STREAM) == Some(names.stream(StreamKind::Commands).as_str());
    let Ok(sender) = subject.from.parse::<NodeName>() else { return Ok(()) };
    if !about_command || nodes.spec(&sender).await?.is_none() {
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
