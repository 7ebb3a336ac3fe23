//! Joins and leaves carried out, and who a group's message is for.
//!
//! ```text
//! spec.want_groups ─ plan: pending in spec ─ join: events opened → filters set → marks published → J in spec → filters looked at
//!                                          └ leave: marks published → L in spec → ack floors past L → filters set
//! ```
//!
//! Every step is a compare-and-set, or harmless to repeat: marks have an id that was in `spec` before them, and the first
//! with that id counts, whoever published it. So a hub may die behind any step, and two may work at once. Decides nothing
//! about memberships itself; that is `model::groups`.
//!
//! The broker has no compare-and-set for filters. An update of a hub that died, or was slow, may land late and take a filter
//! away, seen or unseen:
//!
//! ```text
//! look: a filter is missing ─────────→ `again` from the join on ──────────┐
//! look: others are to be changed ────→ `again` from the look's ack floor ─┴→ update → look → the word, where anything was stored
//!                ↑ a late update that lands here is overwritten by ours, and was reckoned with
//! ```
//!
//! What is not reckoned with: a consumer that is lost with its server while its filters are wrong, since it is made anew with
//! the right ones and nobody knows what it had passed over; and a late update between a join's look and its marks that is put
//! right, before `spec` knows the marks, by a hub that is not at that join.

use super::HubError;
use super::fate::{Letter, Standing};
use super::nodes::Nodes;
use super::records::PUBLISH_TIMEOUT;
use super::results::control;
use crate::broker::{From, Outgoing, RawMessage};
use crate::killpoint::{Point, here};
use crate::model::groups::{Belongs, Done, Mark, Step, members};
use crate::model::header::names as header;
use crate::model::id::{MessageId, StreamSeq};
use crate::model::message::{Kind, StreamKind};
use crate::model::name::{GroupName, NodeName, Sender, Target};
use crate::model::node::{Spec, Starts};
use crate::model::subject::{HubVerb, RecordSubject};
use uuid::Uuid;

/// Begins what is wanted and goes on with what is under way, as far as that goes now.
pub(super) async fn carry_out(nodes: &Nodes, spec: &Spec) -> Result<(), HubError> {
    let node = &spec.node;
    let _one = nodes.joining(node).await;
    let spec = nodes.change(node, |spec| spec.plan_groups(Uuid::new_v4)).await?;
    here(Point::Planned);
    for step in spec.group_steps() {
        match step {
            Step::Join { group, marker } => {
                let were_set = nodes.set_filters(node).await?;
                nodes.open_events(node).await?;
                nodes.set_filters(node).await?;
                here(Point::Filtered);
                let was_marked = finish(nodes, node, marker, &Mark::Join(group.clone())).await?;
                if was_marked && !were_set {
                    // The filters were taken away behind the marks, or another hub was at this, too.
                    nodes.read_again_from_join(node, group).await?;
                }
                // Taken away between the look and the marks they would be found by nobody soon.
                nodes.set_filters(node).await?;
            }
            step @ Step::Again { .. } => say_again(nodes, node, step).await?,
            Step::Leave { group, marker } => drop(finish(nodes, node, marker, &Mark::Leave(group)).await?),
            Step::Drain { marker, until } => drain(nodes, node, marker, until).await?,
        }
    }
    Ok(())
}

/// Publishes both marks and writes where they are; true where one of them had been there already.
async fn finish(nodes: &Nodes, node: &NodeName, marker: Uuid, mark: &Mark) -> Result<bool, HubError> {
    let mut at = Starts::default();
    let mut was_there = false;
    for stream in StreamKind::ALL {
        let (seq, is_old) = publish(nodes, node, stream, marker, mark).await?;
        *at.get_mut(stream) = Some(seq);
        was_there |= is_old;
        here(Point::Marked);
    }
    nodes.change(node, |spec| spec.group_done(marker, Done::Marked(at))).await?;
    here(Point::MarksKnown);
    let (is_member, group) = match mark {
        Mark::Leave(group) => (false, group),
        Mark::Join(group) | Mark::Again { group, .. } => (true, group),
    };
    let [commands, events] = [at.commands, at.events].map(|seq| seq.map(|seq| seq.0));
    tracing::info!(%node, %group, is_member, commands, events, "marked in both streams");
    Ok(was_there)
}

/// Has a node read again what its consumers may have passed over: once the filters are right, and where anything was stored.
async fn say_again(nodes: &Nodes, node: &NodeName, step: Step) -> Result<(), HubError> {
    nodes.set_filters(node).await?;
    // That may have found more to read again.
    let is_due = |spec: &Spec| spec.group_steps().contains(&step);
    if !nodes.read_again(node).await?.is_some_and(|spec| is_due(&spec)) {
        return Ok(());
    }
    let Step::Again { group, marker, join, from } = step else { return Ok(()) };
    let mut at = Starts::default();
    for stream in StreamKind::ALL {
        let (Some(join), Some(from)) = (*join.get(stream), *from.get(stream)) else { continue };
        if has_messages(nodes, stream, &group, from).await? {
            let word = Mark::Again { group: group.clone(), join, from: Some(from) };
            *at.get_mut(stream) = Some(publish(nodes, node, stream, marker, &word).await?.0);
            tracing::info!(%node, %group, ?stream, %from, "has to read again");
        }
    }
    nodes.change(node, |spec| spec.again_said(marker, at)).await.map(drop)
}

/// True where something is stored for a group behind this place.
async fn has_messages(
    nodes: &Nodes,
    stream: StreamKind,
    group: &GroupName,
    behind: StreamSeq,
) -> Result<bool, HubError> {
    let (broker, names) = (nodes.broker(), nodes.broker().names());
    let filter = names.target_filter(&Target::Group(group.clone()));
    let from = From::Seq(StreamSeq(behind.0 + 1));
    Ok(broker.get_next_at_leader(&names.stream(stream), &filter, from).await?.is_some())
}

/// A record tells that a node has taken a mark: a leave that waited for that is over.
pub(super) async fn told(nodes: &Nodes, subject: &RecordSubject, told: &RawMessage) -> Result<(), HubError> {
    let is_mark = subject.from == Sender::hub().as_str() && subject.method == HubVerb::Member.as_str();
    let (true, Ok(node)) = (is_mark, subject.node.parse::<NodeName>()) else { return Ok(()) };
    let draining = |spec: &Spec| spec.group_steps().iter().any(|step| matches!(step, Step::Drain { .. }));
    let Some(spec) = nodes.read_again(&node).await?.filter(|spec| draining(spec)) else { return Ok(()) };
    carry_out(nodes, &spec).await?;
    let stream = told.headers.get(header::STREAM).and_then(|name| nodes.broker().names().stream_kind(name));
    // The broker hears of the ack beside the record, and perhaps a moment later.
    let Some(stream) = stream else { return Ok(()) };
    let floor = nodes.broker().consumer_progress(stream, &node).await?.map(|progress| progress.ack_floor);
    let waits = |step: &Step| matches!(step, Step::Drain { until, .. } if floor < *until.get(stream));
    let spec = nodes.read_again(&node).await?;
    if spec.is_some_and(|spec| spec.group_steps().iter().any(waits)) { Err(HubError::JoinPending) } else { Ok(()) }
}

/// The filters go once nothing before the leave is left to take. Where one was missing until now, there may be: the node reads
/// again first, as `spec` says then.
async fn drain(nodes: &Nodes, node: &NodeName, marker: Uuid, until: Starts) -> Result<(), HubError> {
    nodes.set_filters(node).await?;
    let drains = |spec: &Spec| spec.group_steps().contains(&Step::Drain { marker, until });
    if !nodes.read_again(node).await?.is_some_and(|spec| drains(&spec)) {
        return Ok(());
    }
    for stream in StreamKind::ALL {
        let progress = nodes.broker().consumer_progress(stream, node).await?;
        if progress.is_none_or(|progress| Some(progress.ack_floor) < *until.get(stream)) {
            return Ok(());
        }
    }
    nodes.change(node, |spec| spec.group_done(marker, Done::Drained(until))).await?;
    here(Point::Drained);
    nodes.set_filters(node).await.map(drop)
}

/// Publishes a mark, and gives the sequence of the first one with its id, and whether that was there before: another hub may
/// have stored it long ago, when the broker no longer knows a duplicate.
async fn publish(
    nodes: &Nodes,
    node: &NodeName,
    stream: StreamKind,
    marker: Uuid,
    mark: &Mark,
) -> Result<(StreamSeq, bool), HubError> {
    let broker = nodes.broker();
    let body = serde_json::to_vec(mark).map_err(|e| HubError::Internal(e.to_string()))?;
    // Records of both go under different names.
    let text = match stream {
        StreamKind::Commands => marker.to_string(),
        StreamKind::Events => format!("{marker}-e"),
    };
    let id = MessageId::given(&text).map_err(|e| HubError::Internal(e.to_string()))?;
    let outgoing = match stream {
        StreamKind::Commands => control(broker, node, HubVerb::Member, id, body),
        StreamKind::Events => Outgoing::new(broker.names().hub_mark(node), body)
            .with(header::ID, id.to_string())
            .with(header::KIND, Kind::Event.as_str()),
    };
    let outgoing = outgoing.with(header::MSG_ID, marker.to_string());
    let subject = outgoing.subject.clone();
    let stored = broker.publish(&outgoing, PUBLISH_TIMEOUT).await.map_err(|e| HubError::publish(subject.clone(), e))?;
    let name = broker.names().stream(stream);
    let mut from = StreamSeq(1);
    while let Some(found) = broker.get_next_at_leader(&name, &subject, From::Seq(from)).await? {
        if found.seq >= stored.seq {
            break;
        }
        if found.headers.get(header::ID) == Some(text.as_str()) {
            return Ok((found.seq, true));
        }
        from = StreamSeq(found.seq.0 + 1);
    }
    Ok((stored.seq, stored.duplicate))
}

/// How a message to a group stands. What memory says is asked again of the leader: a leave that lies before the message
/// was pending in `spec` before that, so a read that comes after the message knows of it.
///
/// Of `@all` a node is a member from its start on, so nobody may answer in its place that could still get a start before
/// the message: one that is in `spec` without a start is waited for, and so are the messages before this one, which may
/// make nodes. Whatever makes a node later looks up the stream's end after it wrote `spec`, and begins behind the message.
pub(super) async fn standing(nodes: &Nodes, letter: &Letter, group: &GroupName) -> Result<Standing, HubError> {
    let (stream, seq) = (letter.at.stream, letter.at.seq);
    if *group == GroupName::all() && stream == StreamKind::Events {
        open_for_all(nodes, seq).await?;
    }
    let belongs = |spec: &Spec| spec.belongs(group, stream, seq);
    if let Some(spec) = nodes.find(|spec| belongs(spec) == Belongs::Member)
        && let Some(spec) = nodes.read_again(&spec.node).await?
        && belongs(&spec) == Belongs::Member
    {
        return Ok(Standing::Members);
    }
    let all = nodes.read_all().await?;
    Ok(match all.iter().map(belongs).max().unwrap_or(Belongs::No) {
        Belongs::Member => Standing::Members,
        Belongs::Pending => Standing::Pending,
        // A node that an earlier message is about to make begins before this one.
        Belongs::No if *group == GroupName::all() && !nodes.broker().is_settled_below(stream, seq).await? => {
            Standing::Pending
        }
        Belongs::No => Standing::NoMembers,
    })
}

/// An event for everybody is the first one for those that had none.
async fn open_for_all(nodes: &Nodes, seq: StreamSeq) -> Result<(), HubError> {
    let without = |spec: &Spec| spec.start.commands.is_some() && spec.start.events.is_none();
    if nodes.find(without).is_none() {
        return Ok(());
    }
    for spec in nodes.read_all().await?.iter().filter(|spec| without(spec)) {
        nodes.open_events_at(&spec.node, Some(seq)).await?;
    }
    Ok(())
}

/// Who messages are for, in one way over a stream: what is decided about nodes is read once.
pub(super) struct Audience<'a> {
    nodes: &'a Nodes,
    specs: Option<Vec<Spec>>,
}

impl<'a> Audience<'a> {
    pub(super) fn new(nodes: &'a Nodes) -> Audience<'a> {
        Audience { nodes, specs: None }
    }

    /// The node that it is for, or the members of the group at its sequence; nobody where it names none.
    pub(super) async fn of(&mut self, letter: &Letter) -> Result<Vec<NodeName>, HubError> {
        let Some(group) = letter.group() else { return Ok(letter.node().cloned().into_iter().collect()) };
        let specs = match self.specs.take() {
            Some(specs) => specs,
            None => self.nodes.read_all().await?,
        };
        let found = members(&specs, group, letter.at.stream, letter.at.seq);
        self.specs = Some(specs);
        Ok(found)
    }
}
