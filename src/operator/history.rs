//! The messages of the past, with what became of them.

use super::error::OperatorError;
use super::message::Message;
use super::nodes::{statuses, stream_facts};
use super::pages::each_message;
use super::records::RecordReader;
use super::view::View;
use crate::broker::{Broker, BrokerError, From as Begin};
use crate::model::id::MessageId;
use crate::model::message::{Kind, StreamKind};
use crate::model::name::{MethodName, NodeName, Sender, Target};
use crate::model::subject::RecordStream;
use crate::model::time::Timestamp;
use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::time::Duration;

/// The first stretch of time that is read back; the next are each six times as long, so that a short list out of a long
/// past costs little.
const FIRST_STRETCH: Duration = Duration::from_secs(600);

/// Which messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryFilter {
    /// How far back.
    pub since: Duration,
    /// Only messages to this node or group.
    pub to: Option<Target>,
    /// Only messages of this sender.
    pub from: Option<Sender>,
    /// Only messages of this method.
    pub method: Option<MethodName>,
    /// Only messages of this kind; without it commands and events.
    pub kind: Option<Kind>,
    /// At most so many, the newest.
    pub limit: usize,
}

/// The newest messages that match, oldest first, with what is known of them.
pub async fn history(broker: &Broker, filter: &HistoryFilter) -> Result<View, OperatorError> {
    let acks = stream_facts(broker, &broker.names().record_stream(RecordStream::Acks)).await?;
    let messages = newest(broker, filter, acks.now).await?;
    let ids: BTreeSet<(String, MessageId)> = messages.iter().map(|m| (m.from.clone(), m.id.clone())).collect();
    let mut view = View::new(messages);
    view.set_records_stream(&acks);
    for (from, id) in ids {
        RecordReader::new(&from, &id).read(broker, &mut view, acks.last_seq).await?;
    }
    for (node, facts) in statuses(broker, &view.open_nodes()).await? {
        view.set_node(node, facts);
    }
    Ok(view)
}

async fn newest(broker: &Broker, filter: &HistoryFilter, now: Timestamp) -> Result<Vec<Message>, BrokerError> {
    let mut back = FIRST_STRETCH.min(filter.since);
    loop {
        let found = since(broker, filter, now.minus(back)).await?;
        if found.len() >= filter.limit || back >= filter.since {
            return Ok(found);
        }
        back = (back * 6).min(filter.since);
    }
}

/// The newest messages stored since `begin`, `limit` of them at most.
async fn since(broker: &Broker, filter: &HistoryFilter, begin: Timestamp) -> Result<Vec<Message>, BrokerError> {
    let mut all: Vec<Message> = Vec::new();
    for stream in StreamKind::ALL {
        let Some(subject) = subject(broker, filter, stream) else { continue };
        let mut newest: VecDeque<Message> = VecDeque::new();
        each_message(broker, &broker.names().stream(stream), &subject, Begin::Time(begin), |raw| {
            let message = Message::read(broker.names(), stream, &raw);
            if filter.wants(&message) {
                newest.push_back(message);
                if newest.len() > filter.limit {
                    newest.pop_front();
                }
            }
            ControlFlow::Continue(())
        })
        .await?;
        all.extend(newest);
    }
    all.sort_by_key(|message| message.at.stored_at);
    Ok(all.split_off(all.len().saturating_sub(filter.limit)))
}

/// Every command and event of a sender stored since `begin`, to one node or to anybody.
pub(super) async fn stored_since(
    broker: &Broker,
    from: &Sender,
    node: Option<&NodeName>,
    begin: Timestamp,
) -> Result<Vec<Message>, BrokerError> {
    let filter = HistoryFilter {
        since: Duration::MAX,
        to: node.cloned().map(Target::Node),
        from: Some(from.clone()),
        method: None,
        kind: None,
        limit: usize::MAX,
    };
    since(broker, &filter, begin).await
}

/// The narrowest subject of a stream that holds all that is wanted; `None` where it holds nothing of it.
fn subject(broker: &Broker, filter: &HistoryFilter, stream: StreamKind) -> Option<String> {
    if filter.kind.is_some_and(|kind| kind.stream() != stream) {
        return None;
    }
    let kind = match (filter.kind, stream) {
        (Some(kind), _) => kind,
        (None, StreamKind::Commands) => Kind::Command,
        (None, StreamKind::Events) => Kind::Event,
    };
    let to = filter.to.as_ref().map_or_else(|| "*".to_owned(), ToString::to_string);
    let from = filter.from.as_ref().map_or("*", Sender::as_str);
    Some(format!("{}.msg.{to}.{kind}.{from}.>", broker.names().prefix()))
}

impl HistoryFilter {
    fn wants(&self, message: &Message) -> bool {
        self.method.as_ref().is_none_or(|method| message.method == method.as_str())
    }
}
