//! What is known of a set of messages: records, node states and the broker's time laid together.
//!
//! A value without I/O. Records come in any order and any number of times; the rows that follow from them are the same.
//! Records are matched by stream, sequence and stored time, and by the node that their *subject* names, which is the token
//! that a node's rights pin; what a body says about its node is not believed.

use super::message::Message;
use super::nodes::{NodeFacts, StreamFacts};
use super::row::{Behind, Row};
use crate::model::id::{MsgRef, StreamSeq};
use crate::model::name::{NodeName, Target};
use crate::model::node::{Contact, LaneFacts};
use crate::model::record::Record;
use crate::model::state::State;
use crate::model::subject::RecordClass;
use crate::model::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// The node token of records about what no node answers for.
const NOBODY: &str = "_";

/// How far a chain of copies is followed; each is a copy of the first, so one step is enough but for a mistake.
const COPIES: usize = 4;

/// What the records say of one message on one node. Most nodes have one record: the others take no room.
#[derive(Debug, Clone, Default)]
struct Facts {
    ack: Option<Box<Record>>,
    late: Option<Box<Record>>,
    progress: Option<(StreamSeq, Box<Record>)>,
    cancel_requested: bool,
    copy_of: Option<MsgRef>,
}

/// Whom a message to a group was for.
#[derive(Debug, Clone)]
struct Members {
    nodes: Vec<NodeName>,
    /// These are all; false while somebody's join or leave is under way.
    all: bool,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct View {
    messages: Vec<Message>,
    known: HashSet<MsgRef>,
    facts: HashMap<MsgRef, BTreeMap<String, Facts>>,
    nodes: HashMap<String, NodeFacts>,
    /// The members of groups at the messages to those.
    members: HashMap<MsgRef, Members>,
    /// Messages for which a cancel is stored that their node has not answered.
    cancels: HashSet<MsgRef>,
    /// What the streams tell of heads of lanes, by the message and node that may wait behind them.
    heads: HashMap<(MsgRef, String), Option<Behind>>,
    now: Timestamp,
    /// When the oldest record was stored, where older ones have been dropped.
    records_begin: Option<Timestamp>,
}

impl View {
    /// These messages, of which nothing is known yet.
    pub fn new(messages: Vec<Message>) -> View {
        View {
            known: messages.iter().map(|message| message.at).collect(),
            messages,
            facts: HashMap::new(),
            nodes: HashMap::new(),
            members: HashMap::new(),
            cancels: HashSet::new(),
            heads: HashMap::new(),
            now: Timestamp::from_nanos(0),
            records_begin: None,
        }
    }

    /// One more message.
    pub fn push(&mut self, message: Message) {
        self.known.insert(message.at);
        self.messages.push(message);
    }

    /// Keeps these messages only.
    pub fn retain(&mut self, keep: impl Fn(&Message) -> bool) {
        self.messages.retain(keep);
        self.known = self.messages.iter().map(|message| message.at).collect();
    }

    /// True where the message stored there is one of these.
    pub fn holds(&self, at: MsgRef) -> bool {
        self.known.contains(&at)
    }

    /// The messages.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The broker's time at the last reading.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Takes in the records' stream: the broker's time, and from when on it has records.
    pub fn set_records_stream(&mut self, stream: &StreamFacts) {
        self.now = stream.now;
        self.records_begin = stream.first_at.filter(|_| stream.first_seq > StreamSeq(1));
    }

    /// Takes in a node's state.
    pub fn set_node(&mut self, node: String, facts: NodeFacts) {
        self.nodes.insert(node, facts);
    }

    /// Takes in whom a message to a group was for. `all`: nobody's join or leave is under way that decides on more.
    pub fn set_members(&mut self, at: MsgRef, nodes: Vec<NodeName>, all: bool) {
        self.members.insert(at, Members { nodes, all });
    }

    /// Takes in which messages have a cancel that is not answered.
    pub fn set_cancels(&mut self, cancels: HashSet<MsgRef>) {
        self.cancels = cancels;
    }

    /// Takes in behind which message one waits on a node, or that there is none; it weighs more than the node's status.
    pub(super) fn set_head(&mut self, at: MsgRef, node: String, behind: Option<Behind>) {
        self.heads.insert((at, node), behind);
    }

    /// Forgets what [`View::set_head`] told.
    pub(super) fn clear_heads(&mut self) {
        self.heads.clear();
    }

    /// Takes in a record about `about`, stored at `seq` under a subject with this node.
    pub fn add(&mut self, class: RecordClass, node: &str, seq: StreamSeq, about: MsgRef, record: Record) {
        let facts = self.facts.entry(about).or_default().entry(node.to_owned()).or_default();
        match class {
            RecordClass::Ack => facts.ack = Some(Box::new(record)),
            RecordClass::Late => facts.late = Some(Box::new(record)),
            RecordClass::Progress => match record.state {
                State::CancelRequested => facts.cancel_requested = true,
                State::Duplicate => {
                    facts.copy_of = record.duplicate_of.map(|first| MsgRef {
                        stream: first.stream,
                        seq: first.seq,
                        stored_at: first.stored_at,
                    });
                }
                _ if facts.progress.as_ref().is_none_or(|(known, _)| *known < seq) => {
                    facts.progress = Some((seq, Box::new(record)));
                }
                _ => {}
            },
        }
    }

    /// The nodes that have something open.
    pub fn open_nodes(&self) -> Vec<String> {
        let open = self.rows().filter(|row| !row.is_settled() && row.contact.is_some()).map(|row| row.node);
        let set: BTreeSet<String> = open.collect();
        set.into_iter().collect()
    }

    /// One row per message and node, in the order of the messages; a group message has a row for each member and
    /// each node that answered, and one of its own as long as it is not known whom else it is for.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.messages.iter().flat_map(|message| match &message.to {
            Some(Target::Node(node)) => vec![self.row(message, node.to_string(), &[node.as_str(), NOBODY])],
            Some(Target::Group(_)) => self.group_rows(message),
            None => vec![self.row(message, NOBODY.to_owned(), &[NOBODY])],
        })
    }

    fn group_rows<'a>(&'a self, message: &'a Message) -> Vec<Row<'a>> {
        let answered = self.facts.get(&message.at).into_iter().flat_map(BTreeMap::keys);
        let answered = answered.map(String::as_str).filter(|node| *node != NOBODY);
        let members = self.members.get(&message.at);
        let named = members.into_iter().flat_map(|members| &members.nodes).map(NodeName::as_str);
        let nodes: BTreeSet<&str> = answered.chain(named).collect();
        let whole = !nodes.is_empty() && members.is_some_and(|members| members.all);
        let group = (!whole).then(|| self.row(message, message.to_text(), &[NOBODY]));
        group.into_iter().chain(nodes.into_iter().map(|node| self.row(message, node.to_owned(), &[node]))).collect()
    }

    fn row<'a>(&'a self, message: &'a Message, node: String, record_nodes: &[&str]) -> Row<'a> {
        let own = self.facts_of(message.at, record_nodes);
        let copy_of = own.and_then(|facts| facts.copy_of);
        let facts = self.follow_copies(own, record_nodes);
        let (state, record) = facts.map_or((None, None), said);
        let known = self.nodes.get(&node);
        let is_node = !node.starts_with('@') && node != NOBODY;
        let state = state.unwrap_or_else(|| self.state_without_record(message, known));
        let waits = matches!(state, State::Queued | State::Delivered);
        Row {
            message,
            state,
            record,
            first: facts.filter(|f| f.late.is_some()).and_then(|f| f.ack.as_deref()),
            cancel_requested: !state.is_terminal()
                && (facts.is_some_and(|f| f.cancel_requested) || self.cancels.contains(&message.at)),
            copy_of,
            will_expire: waits && message.start_by.is_some_and(|deadline| deadline <= self.now),
            contact: match known {
                _ if !is_node => None,
                Some(facts) => Some(facts.contact(self.now)),
                // Nodes that have nothing open are not asked about.
                None => (!state.is_terminal()).then_some(Contact::Never),
            },
            heard_at: known.and_then(NodeFacts::heard_at),
            behind: known.filter(|_| waits).and_then(|facts| match self.heads.get(&(message.at, node.clone())) {
                Some(head) => *head,
                None => behind(message, facts),
            }),
            node,
        }
    }

    fn facts_of(&self, at: MsgRef, nodes: &[&str]) -> Option<&Facts> {
        let by_node = self.facts.get(&at)?;
        nodes.iter().find_map(|node| by_node.get(*node))
    }

    fn follow_copies<'a>(&'a self, own: Option<&'a Facts>, nodes: &[&str]) -> Option<&'a Facts> {
        let mut facts = own?;
        for _ in 0..COPIES {
            let Some(first) = facts.copy_of else { break };
            match self.facts_of(first, nodes) {
                Some(next) => facts = next,
                None => break,
            }
        }
        Some(facts)
    }

    /// No record: at the broker, on the node, or too old to be told.
    fn state_without_record(&self, message: &Message, node: Option<&NodeFacts>) -> State {
        let status = node.and_then(|facts| facts.status.as_ref()).map(|(status, _)| status);
        let position = status.and_then(|status| *status.position.get(message.at.stream));
        let taken = position.map(|position| message.at.seq <= position);
        let forgotten = self.records_begin.is_some_and(|begin| message.at.stored_at < begin);
        match taken {
            Some(false) => State::Queued,
            _ if forgotten => State::Unknown,
            Some(true) => State::Delivered,
            None => State::Queued,
        }
    }
}

/// The state that records give, and the record to show for it.
fn said(facts: &Facts) -> (Option<State>, Option<&Record>) {
    let progress = facts.progress.as_ref().map(|(_, record)| &**record);
    let record = facts.late.as_deref().or(facts.ack.as_deref()).or(progress);
    let state = match record {
        Some(record) => Some(record.state),
        // A cancel or a copy that the node has told of: it has the message.
        None if facts.cancel_requested || facts.copy_of.is_some() => Some(State::Delivered),
        None => None,
    };
    (state, record)
}

fn behind(message: &Message, node: &NodeFacts) -> Option<Behind> {
    let (status, _) = node.status.as_ref()?;
    let lane = message.lane_text();
    let facts: &LaneFacts = status.lanes.as_ref()?.iter().find(|facts| facts.lane == lane)?;
    let head = facts.head.filter(|head| *head < message.at.seq)?;
    let stored_at = facts.head_stored_at.unwrap_or(Timestamp::from_nanos(0));
    Some(Behind { head: MsgRef { stream: message.at.stream, seq: head, stored_at }, running: facts.running })
}

#[cfg(test)]
mod tests;
