//! The hub's shared feeds: each stored message and each record, until its fate is durable.
//!
//! Owns the carrying out of fates, and what happens where that fails: the message is given back and comes again, so one that
//! cannot be dealt with delays no other.

use super::HubError;
use super::fate::{Fate, Letter, Standing};
use super::nodes::Nodes;
use super::results::Strangers;
use super::{groups, records, results};
use crate::broker::{BrokerError, Delivery, Feed, RawMessage, is_probe};
use crate::killpoint::{Point, here};
use crate::model::message::StreamKind;
use crate::model::subject::{RecordClass, RecordStream};
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;

/// Messages of one stream dealt with at once: enough to hide the round trips to the broker.
const AT_ONCE: usize = 64;

/// Where no more records than these had come, others are let come for a [`BREATH`] before they are looked at.
const FEW: usize = 256;

/// Records come as fast as all nodes work, and hardly one means anything to the hub: taken together they cost it and the
/// broker less. The first one after a while does not wait.
const BREATH: Duration = Duration::from_millis(5);

/// Follows one of the two message streams.
pub(super) async fn follow(nodes: Arc<Nodes>, stream: StreamKind) -> Result<(), HubError> {
    let mut feed = Feed::new(nodes.broker(), nodes.broker().names().stream(stream), None);
    loop {
        let batch = feed.next().await?;
        let each = futures::stream::iter(batch).for_each_concurrent(AT_ONCE, |delivery| async {
            let done = settle(&nodes, stream, &delivery.message).await;
            hand_back(&feed, delivery, done).await;
        });
        each.await;
    }
}

/// Follows the terminal records, for the results that go back to nodes and for leaves that wait for their node.
pub(super) async fn follow_acks(nodes: Arc<Nodes>) -> Result<(), HubError> {
    let names = nodes.broker().names();
    let filter = format!("{}.ack.>", names.prefix());
    let mut feed = Feed::new(nodes.broker(), names.record_stream(RecordStream::Acks), Some(filter));
    let strangers = Strangers::default();
    loop {
        let batch = feed.next().await?;
        let count = batch.len();
        let each = futures::stream::iter(batch).for_each_concurrent(AT_ONCE, |delivery| async {
            let done = told(&nodes, &strangers, &delivery.message).await;
            hand_back(&feed, delivery, done).await;
        });
        each.await;
        if count < FEW {
            tokio::time::sleep(BREATH).await;
        }
    }
}

/// Does what follows from a record. Safe to repeat.
async fn told(nodes: &Nodes, strangers: &Strangers, message: &RawMessage) -> Result<(), HubError> {
    let Some((RecordClass::Ack, subject)) = nodes.broker().names().parse_record(&message.subject) else {
        return Ok(());
    };
    groups::told(nodes, &subject, message).await?;
    results::send_back(nodes, strangers, &subject, message).await
}

async fn hand_back(feed: &Feed, delivery: Delivery, done: Result<(), HubError>) {
    here(Point::Settled);
    let sent = match done {
        Ok(()) => feed.ack(&delivery).await,
        Err(error) => {
            let RawMessage { subject, seq, .. } = &delivery.message;
            tracing::warn!(%subject, %seq, error = %super::chain(&error), "left for later");
            feed.give_back(&delivery).await
        }
    };
    // The connection is closed for good; the feed's next pull ends the loop, and the message comes again elsewhere.
    if let Err(BrokerError::Closed) = sent {
        tracing::debug!(seq = %delivery.message.seq, "not acked");
    }
}

/// Makes a message's fate durable. Safe to repeat.
async fn settle(nodes: &Nodes, stream: StreamKind, message: &RawMessage) -> Result<(), HubError> {
    /// A node made, its events opened, and the message judged by what came of it.
    const STEPS: usize = 3;
    if is_probe(&message.subject) {
        return Ok(());
    }
    let letter = Letter::read(nodes.broker().names(), stream, message);
    for _ in 0..STEPS {
        match letter.judge(standing(nodes, &letter).await?) {
            Fate::Delivered | Fate::Closed => return Ok(()),
            Fate::Waits => return Err(HubError::JoinPending),
            Fate::Answered(answer) => return records::answer(nodes.broker(), &letter, &answer).await,
            Fate::MakeNode(node) => drop(nodes.make(&node).await?),
            Fate::OpenEvents(node) => {
                // Its events may begin behind this one; then it is judged by that.
                if nodes.open_events(&node).await? <= letter.at.seq {
                    return Ok(());
                }
            }
        }
    }
    Err(HubError::Contended { what: message.subject.clone() })
}

async fn standing(nodes: &Nodes, letter: &Letter) -> Result<Standing, HubError> {
    if let Some(group) = letter.group() {
        return groups::standing(nodes, letter, group).await;
    }
    let Some(node) = letter.node() else { return Ok(Standing::Unknown { may_make: false }) };
    Ok(match nodes.spec(node).await? {
        Some(spec) if spec.closing.as_ref().is_some_and(|c| c.covers(letter.at.stream, letter.at.seq)) => {
            Standing::Closing
        }
        Some(spec) => Standing::Known(spec.start),
        None => Standing::Unknown { may_make: nodes.may_make(letter).await? },
    })
}
