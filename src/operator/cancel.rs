//! Cancelling: which messages are meant, and one cancel for each, told to every target of it.
//!
//! Owns resolving what a person says to (sender, id) and targets before anything is sent, and what is known of cancels
//! that no node has answered yet. A cancel is a wish: what became of the message is told by its own record.

use super::error::OperatorError;
use super::find::find;
use super::history::stored_since;
use super::nodes::{statuses, stream_facts};
use super::pages::each_message;
use super::records::read_records;
use super::row::Row;
use super::send::{Delivery, Draft, SendOptions, send};
use super::targets::{left_since, resolve};
use super::view::View;
use super::watch::Watch;
use crate::broker::{Broker, BrokerError, From as Begin, LAST_SUBJECTS, RawMessage};
use crate::model::header::id_of;
use crate::model::id::{IdRef, MessageId, MsgRef, StreamSeq};
use crate::model::message::{Kind, StreamKind};
use crate::model::name::{BadName, NodeName, Sender, Target};
use crate::model::state::State;
use crate::model::subject::{Names, RecordClass, RecordStream, RecordSubject};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::time::Duration;

/// The verb.
const VERB: &str = "cancel";

/// Cancels on their way at once; each may have several targets.
const AT_ONCE: usize = 16;

/// Which messages are to be cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// One call, by any of its names; `since` tells how far back an id is looked for.
    One {
        /// Its name.
        id: IdRef,
        /// How far back.
        since: Option<Duration>,
    },
    /// Every message of a sender since then that is not over.
    Since(Duration),
    /// Every message of a sender to this node since then that has not begun, as far as is known.
    Queued {
        /// The node.
        node: NodeName,
        /// How far back.
        since: Duration,
    },
}

/// One message on one node (or group) that a cancel is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meant {
    /// Its sender.
    pub from: Sender,
    /// Its id.
    pub id: MessageId,
    /// Whom it was sent to; the cancel goes there, too.
    pub to: Target,
    /// The node, or the group as `@name`.
    pub node: String,
    /// Where it is stored.
    pub at: MsgRef,
    /// Its state as it is known.
    pub state: State,
    /// The first line of its body.
    pub preview: String,
}

/// What a cancel is about: what can be cancelled still, and what is over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Not over.
    pub open: Vec<Meant>,
    /// Over, or not to be known any more; only where one call was named.
    pub over: Vec<Meant>,
}

/// The body of the verb.
#[derive(Debug, Serialize, Deserialize)]
struct Body {
    id: MessageId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<Sender>,
}

/// Finds out which messages are meant. `whose` is the sender of them; an id may be anybody's.
pub async fn plan(broker: &Broker, which: &Which, whose: Option<&Sender>) -> Result<Plan, OperatorError> {
    let (view, queued_only) = match which {
        Which::One { id, since } => {
            let call = find(broker, id, whose, *since).await?;
            return Ok(one_call(Watch::of(broker, &call).await?.view()));
        }
        Which::Since(since) => (open_since(broker, whose, None, *since).await?, false),
        Which::Queued { node, since } => (open_since(broker, whose, Some(node), *since).await?, true),
    };
    let wanted = |row: &Row<'_>| !row.is_settled() && (!queued_only || has_not_begun(row.state));
    let open = view.rows().filter(wanted).filter_map(|row| meant(&row)).collect();
    Ok(Plan { open, over: Vec::new() })
}

fn one_call(view: &View) -> Plan {
    let mut plan = Plan::default();
    for row in view.rows() {
        let list = if row.is_settled() { &mut plan.over } else { &mut plan.open };
        list.extend(meant(&row));
    }
    plan
}

fn has_not_begun(state: State) -> bool {
    matches!(state, State::Queued | State::Delivered)
}

/// What can be cancelled: a command or an event of a sender, to somebody, that reads as one. Anything else was refused.
fn meant(row: &Row<'_>) -> Option<Meant> {
    let message = row.message;
    if !matches!(message.kind, Some(Kind::Command | Kind::Event)) {
        return None;
    }
    Some(Meant {
        from: message.from.parse().ok()?,
        id: message.id.clone(),
        to: message.to.clone()?,
        node: row.node.clone(),
        at: message.at,
        state: row.state,
        preview: message.preview.clone(),
    })
}

async fn open_since(
    broker: &Broker,
    whose: Option<&Sender>,
    node: Option<&NodeName>,
    since: Duration,
) -> Result<View, OperatorError> {
    let whose = whose.ok_or(OperatorError::NoSender)?;
    let acks = stream_facts(broker, &broker.names().record_stream(RecordStream::Acks)).await?;
    let begin = acks.now.minus(since);
    let mut view = View::new(stored_since(broker, whose, node, begin).await?);
    view.set_records_stream(&acks);
    read_records(broker, &mut view, whose.as_str(), node, begin).await?;
    resolve(broker, &mut view).await?;
    for (node, facts) in statuses(broker, &view.open_nodes()).await? {
        view.set_node(node, facts);
    }
    Ok(view)
}

/// The cancels of these messages, as `me` sends them: one for each (sender, id), to all its targets.
pub fn drafts(open: &[Meant], me: &Sender) -> Result<Vec<Draft>, BadName> {
    by_message(open).iter().map(|((from, id), to)| draft(from, id, to, me)).collect()
}

type ByMessage<'a> = BTreeMap<(&'a Sender, &'a MessageId), BTreeSet<&'a Target>>;

fn by_message(open: &[Meant]) -> ByMessage<'_> {
    let mut targets = ByMessage::new();
    for meant in open {
        targets.entry((&meant.from, &meant.id)).or_default().insert(&meant.to);
    }
    targets
}

fn draft(from: &Sender, id: &MessageId, to: &BTreeSet<&Target>, me: &Sender) -> Result<Draft, BadName> {
    let body = Body { id: id.clone(), from: (from != me).then(|| from.clone()) };
    // Serializing two names cannot fail.
    let body = serde_json::to_vec(&body).unwrap_or_default();
    Ok(Draft::new(to.iter().copied().cloned().collect(), Kind::Control, VERB.parse()?, body))
}

/// Stores the cancels of these messages, as `me` sends them, and tells for each message what came of it, in their order.
/// Behind those: the cancels for nodes that have left a group since its message was stored.
pub async fn cancel(
    broker: &Broker,
    me: &Sender,
    open: &[Meant],
    options: &SendOptions,
) -> Result<Vec<Delivery>, OperatorError> {
    let (mut deliveries, mut gone) = (send_cancels(broker, me, open, options).await?, Vec::new());
    let mut looked = HashSet::new();
    for (meant, delivery) in open.iter().zip(&deliveries) {
        // A group's message has a row for each member; who has left is looked for once.
        if let (Target::Group(group), Ok(sent)) = (&meant.to, &delivery.result)
            && looked.insert(meant.at)
        {
            let left = left_since(broker, group, meant.at, sent.seq).await?;
            gone.extend(left.into_iter().map(|node| Meant { to: Target::Node(node), ..meant.clone() }));
        }
    }
    deliveries.extend(send_cancels(broker, me, &gone, options).await?);
    Ok(deliveries)
}

async fn send_cancels(
    broker: &Broker,
    me: &Sender,
    open: &[Meant],
    options: &SendOptions,
) -> Result<Vec<Delivery>, OperatorError> {
    let messages = by_message(open);
    let drafts: Vec<Draft> = drafts(open, me)?;
    let sends = drafts.iter().map(|draft| send(broker, me, draft, options));
    let sent: Vec<Vec<Delivery>> = futures::stream::iter(sends).buffered(AT_ONCE).collect().await;
    let mut results = BTreeMap::new();
    for (key, deliveries) in messages.into_keys().zip(sent) {
        results.extend(deliveries.into_iter().map(|delivery| ((key, delivery.to.clone()), delivery)));
    }
    let of = |meant: &Meant| results.get(&((&meant.from, &meant.id), meant.to.clone())).cloned();
    Ok(open.iter().filter_map(of).collect())
}

/// The cancels that were sent for the messages of a view and that no node has answered.
#[derive(Debug, Clone, Default)]
pub(super) struct CancelReader {
    read_to: Option<StreamSeq>,
    /// By the subject of the cancel's own record: the message.
    unanswered: BTreeMap<String, MsgRef>,
}

impl CancelReader {
    /// Reads the cancels stored since the last reading, and whether they are answered.
    pub(super) async fn read(&mut self, broker: &Broker, view: &mut View) -> Result<(), BrokerError> {
        let open = |row: &Row<'_>| !row.is_settled();
        let Some(first) = view.rows().filter(open).map(|row| row.message.at).min_by_key(|at| at.stored_at) else {
            return Ok(());
        };
        let begin = match (self.read_to, first.stream) {
            (None, StreamKind::Commands) => Begin::Seq(first.seq),
            (None, StreamKind::Events) => Begin::Time(first.stored_at),
            (Some(last), _) => Begin::Seq(StreamSeq(last.0 + 1)),
        };
        let names = broker.names();
        let (stream, filter) =
            (names.stream(StreamKind::Commands), format!("{}.msg.*.control.*.{VERB}", names.prefix()));
        let mut found = Vec::new();
        each_message(broker, &stream, &filter, begin, |raw| {
            self.read_to = Some(raw.seq);
            found.extend(Asked::read(names, &raw));
            ControlFlow::Continue(())
        })
        .await?;
        if !found.is_empty() {
            self.match_up(names, view, found);
        }
        self.drop_answered(broker).await?;
        view.set_cancels(self.unanswered.values().copied().collect());
        Ok(())
    }

    /// Which messages of the view these cancels are about.
    fn match_up(&mut self, names: &Names, view: &View, found: Vec<Asked>) {
        type Named<'a> = (String, &'a str, &'a MessageId);
        let mut open: HashMap<Named<'_>, Vec<(String, MsgRef)>> = HashMap::new();
        for row in view.rows().filter(|row| !row.is_settled()) {
            let message = row.message;
            open.entry((message.to_text(), &message.from, &message.id)).or_default().push((row.node, message.at));
        }
        for Asked { to, by, cancel, whose, id } in found {
            for (node, at) in open.get(&(to.to_string(), whose.as_str(), &id)).into_iter().flatten() {
                let (node, from) = (node.clone(), by.to_string());
                let answer = RecordSubject { node, from, method: VERB.to_owned(), id: cancel.clone() };
                self.unanswered.insert(names.record(RecordClass::Ack, &answer), *at);
            }
        }
    }

    async fn drop_answered(&mut self, broker: &Broker) -> Result<(), BrokerError> {
        let subjects: Vec<String> = self.unanswered.keys().cloned().collect();
        for some in subjects.chunks(LAST_SUBJECTS) {
            let page = broker.read_last(&broker.names().record_stream(RecordStream::Acks), some).await?;
            for answer in page.messages {
                self.unanswered.remove(&answer.subject);
            }
        }
        Ok(())
    }
}

/// A cancel as it is stored.
struct Asked {
    to: Target,
    by: Sender,
    /// The cancel's own id.
    cancel: MessageId,
    whose: Sender,
    id: MessageId,
}

impl Asked {
    /// `None` where no node would take it as a cancel.
    fn read(names: &Names, raw: &RawMessage) -> Option<Asked> {
        let subject = names.parse_message(&raw.subject).ok()?;
        let Body { id, from } = serde_json::from_slice(&raw.body).ok()?;
        let at = MsgRef { stream: StreamKind::Commands, seq: raw.seq, stored_at: raw.stored_at };
        let whose = from.unwrap_or_else(|| subject.from.clone());
        Some(Asked { to: subject.to, by: subject.from, cancel: id_of(&raw.headers, at), whose, id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::Timestamp;

    fn meant(from: &str, id: &str, to: &str) -> Meant {
        Meant {
            from: from.parse().unwrap(),
            id: MessageId::try_from(id.to_owned()).unwrap(),
            to: to.parse().unwrap(),
            node: to.to_owned(),
            at: MsgRef { stream: StreamKind::Commands, seq: StreamSeq(1), stored_at: Timestamp::from_nanos(1) },
            state: State::Queued,
            preview: String::new(),
        }
    }

    #[test]
    fn a_call_has_one_cancel_for_all_its_targets_and_names_its_sender_where_it_is_another() {
        let open =
            [meant("ops", "a", "n1"), meant("ops", "a", "n2"), meant("ops", "s7", "n1"), meant("bob", "a", "n1")];
        let drafts = drafts(&open, &"ops".parse().unwrap()).unwrap();
        let said: Vec<(String, usize)> =
            drafts.iter().map(|d| (String::from_utf8(d.body.to_vec()).unwrap(), d.targets().len())).collect();
        let expected = [(r#"{"id":"a","from":"bob"}"#, 1), (r#"{"id":"a"}"#, 2), (r#"{"id":"s7"}"#, 1)];
        assert_eq!(said, expected.map(|(body, targets)| (body.to_owned(), targets)));
        assert!(drafts.iter().all(|draft| draft.kind == Kind::Control && draft.method.as_str() == "cancel"));
    }
}
