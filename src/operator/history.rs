//! The messages of the past, with what became of them.
//!
//! Owns which messages are wanted and that memory holds only what is shown. Filters by the message itself apply before the
//! limit is counted, and so does a filter by state, which is why that one reads all records of the time.

use super::error::OperatorError;
use super::message::Message;
use super::nodes::{statuses, stream_facts};
use super::pages::each_message;
use super::records::{RecordReader, read_records};
use super::row::Row;
use super::targets::resolve;
use super::view::View;
use crate::broker::{Broker, BrokerError, From as Begin, RawMessage};
use crate::model::admit::is_mark;
use crate::model::id::{MessageId, StreamSeq};
use crate::model::message::{Kind, StreamKind};
use crate::model::name::{MethodName, NodeName, Sender, Target};
use crate::model::state::State;
use crate::model::subject::RecordStream;
use crate::model::time::{Since, Timestamp};
use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::time::Duration;

/// The first stretch of time that is read back; the next are each six times as long, so that a short list out of a long
/// past costs little.
const FIRST_STRETCH: Duration = Duration::from_secs(600);

/// The records of more ids than this are read sender by sender, not id by id.
const FEW: usize = 8;

/// Which messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryFilter {
    /// From when on.
    pub since: Since,
    /// Until when; without it up to now.
    pub until: Option<Since>,
    /// Only messages to this node or group.
    pub to: Option<Target>,
    /// Only messages of this sender.
    pub from: Option<Sender>,
    /// Only messages of this method.
    pub method: Option<MethodName>,
    /// Only messages of this kind; without it commands and events.
    pub kind: Option<Kind>,
    /// Only messages with a row in one of these states; without any in whatever state.
    pub states: Vec<State>,
    /// Only messages whose body has this text, whatever its case.
    pub text: Option<String>,
    /// At most so many, the newest.
    pub limit: usize,
}

/// A stretch of time.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    begin: Timestamp,
    end: Option<Timestamp>,
}

/// The newest messages that match, oldest first, with what is known of them.
pub async fn history(broker: &Broker, filter: &HistoryFilter) -> Result<View, OperatorError> {
    let acks = stream_facts(broker, &broker.names().record_stream(RecordStream::Acks)).await?;
    let all = Stretch { begin: filter.since.begin(acks.now), end: filter.until.map(|until| until.begin(acks.now)) };
    let messages = if filter.states.is_empty() {
        newest(broker, filter, all, acks.now).await?
    } else {
        within(broker, &HistoryFilter { limit: usize::MAX, ..filter.clone() }, all).await?
    };
    let mut view = View::new(messages);
    view.set_records_stream(&acks);
    read_all_records(broker, &mut view, acks.last_seq).await?;
    resolve(broker, &mut view).await?;
    for (node, facts) in statuses(broker, &view.open_nodes()).await? {
        view.set_node(node, facts);
    }
    if !filter.states.is_empty() {
        let mut matching: BTreeSet<_> = view
            .rows()
            .filter(|row| filter.wants_row(row))
            .map(|row| (row.message.at.stored_at, row.message.at))
            .collect();
        while matching.len() > filter.limit {
            matching.pop_first();
        }
        view.retain(|message| matching.contains(&(message.at.stored_at, message.at)));
    }
    Ok(view)
}

async fn read_all_records(broker: &Broker, view: &mut View, last: StreamSeq) -> Result<(), BrokerError> {
    let ids: BTreeSet<(String, MessageId)> = view.messages().iter().map(|m| (m.from.clone(), m.id.clone())).collect();
    if ids.len() <= FEW {
        for (from, id) in ids {
            RecordReader::new(&from, &id).read(broker, view, last).await?;
        }
        return Ok(());
    }
    let senders: BTreeSet<String> = ids.into_iter().map(|(from, _)| from).collect();
    for from in senders {
        let stored = view.messages().iter().filter(|m| m.from == from).map(|m| m.at.stored_at);
        if let Some(begin) = stored.min() {
            read_records(broker, view, &from, None, begin).await?;
        }
    }
    Ok(())
}

/// Reads back in longer and longer stretches, until there are enough.
async fn newest(
    broker: &Broker,
    filter: &HistoryFilter,
    all: Stretch,
    now: Timestamp,
) -> Result<Vec<Message>, BrokerError> {
    let end = all.end.unwrap_or(now);
    let mut back = FIRST_STRETCH;
    loop {
        let begin = end.minus(back).max(all.begin);
        let found = within(broker, filter, Stretch { begin, ..all }).await?;
        if found.len() >= filter.limit || begin <= all.begin {
            return Ok(found);
        }
        back *= 6;
    }
}

/// The newest messages of a stretch, `limit` of them at most.
async fn within(broker: &Broker, filter: &HistoryFilter, stretch: Stretch) -> Result<Vec<Message>, BrokerError> {
    let mut all: Vec<Message> = Vec::new();
    for stream in StreamKind::ALL {
        let Some(subject) = subject(broker, filter, stream) else { continue };
        let mut newest: VecDeque<Message> = VecDeque::new();
        each_message(broker, &broker.names().stream(stream), &subject, Begin::Time(stretch.begin), |raw| {
            if stretch.end.is_some_and(|end| raw.stored_at > end) {
                return ControlFlow::Break(());
            }
            let message = Message::read(broker.names(), stream, &raw);
            if filter.wants(&message, &raw) {
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
        since: Since::At(begin),
        until: None,
        to: node.cloned().map(Target::Node),
        from: Some(from.clone()),
        method: None,
        kind: None,
        states: Vec::new(),
        text: None,
        limit: usize::MAX,
    };
    within(broker, &filter, Stretch { begin, end: None }).await
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
    fn wants(&self, message: &Message, raw: &RawMessage) -> bool {
        let all = self.kind.is_some() || self.from.is_some() || self.method.is_some();
        (all || !is_hubs_mark(message))
            && self.method.as_ref().is_none_or(|method| message.method == method.as_str())
            && self.text.as_ref().is_none_or(|text| has_text(&raw.body, text))
    }

    /// True for a row in one of the states that are asked for.
    pub fn wants_row(&self, row: &Row<'_>) -> bool {
        self.states.is_empty() || self.states.contains(&row.state)
    }
}

/// A join or leave as the events' stream has it: control in all but its kind, and told only where it is asked for.
fn is_hubs_mark(message: &Message) -> bool {
    message.from == Sender::hub().as_str() && message.kind.is_some_and(|kind| is_mark(kind, &message.method))
}

fn has_text(body: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(body).to_lowercase().contains(&text.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_looked_for_in_the_whole_body_whatever_its_case() {
        assert!(has_text(b"cd /srv\nSystemctl RESTART app", "systemctl restart"));
        assert!(has_text(b"\xff\x00app", "APP"));
        assert!(!has_text(b"app", "web"));
    }
}
