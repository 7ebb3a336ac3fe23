//! Whom a message waits behind, as the streams tell. A node's status tells it, too, but is up to a beat old, and lanes fill
//! in between.
//!
//! The messages of a lane on one node come by the node's own subject and by those of its groups; this walks back along
//! them to the one that the node has told to be at work. Owns that walk and its bounds. What no record tells, it does not
//! guess.

use super::find::message_at;
use super::message::Message;
use super::nodes::facts_of;
use super::records::parse_record;
use super::row::{Behind, Row};
use super::view::View;
use crate::broker::{Broker, BrokerError};
use crate::model::message::Kind;
use crate::model::name::{GroupName, Target};
use crate::model::node::Contact;
use crate::model::state::State;
use crate::model::subject::{RecordClass, RecordStream, RecordSubject};

/// So many rows are asked about in one reading; the others have to wait for their node's status.
const ROWS: usize = 8;

/// So many messages of a lane are walked over: each comes with its body. A longer queue is in the node's next status.
const STEPS: usize = 8;

/// What the records of a message say of the place in the lane behind it.
enum Place {
    /// It has begun and is not over: the head of its lane.
    Head(Behind),
    /// It has begun and is over, and so are all before it.
    Free,
    /// It has not begun, or its node has not told so.
    Unknown,
}

/// Tells the view which messages those wait behind that have not begun: what no status has told, and what one told that
/// is over since.
pub(super) async fn find_heads(broker: &Broker, view: &mut View) -> Result<(), BrokerError> {
    view.clear_heads();
    let asked: Vec<(Message, String, Option<Behind>)> =
        view.rows().filter(has_not_begun).take(ROWS).map(|row| (row.message.clone(), row.node, row.behind)).collect();
    let nodes: Vec<String> = asked.iter().map(|(_, node, _)| node.clone()).collect();
    let facts = facts_of(broker, &nodes).await?;
    for (message, node, told) in asked {
        let behind = match told {
            Some(behind) if !is_over(broker, behind, &node).await? => told,
            _ => {
                let spec = facts.get(&node).and_then(|facts| facts.spec.as_ref());
                let groups = spec.into_iter().flat_map(|spec| &spec.groups).map(|member| format!("@{}", member.name));
                let everybody = Target::Group(GroupName::all()).to_string();
                let ways: Vec<String> = groups.chain([everybody, node.clone()]).collect();
                head(broker, &message, &node, &ways).await?
            }
        };
        view.set_head(message.at, node, behind);
    }
    Ok(())
}

fn has_not_begun(row: &Row<'_>) -> bool {
    matches!(row.state, State::Queued | State::Delivered)
        && row.contact == Some(Contact::InContact)
        && matches!(row.message.kind, Some(Kind::Command | Kind::Event))
}

/// True where a head that a status told of has its terminal record by now.
async fn is_over(broker: &Broker, behind: Behind, node: &str) -> Result<bool, BrokerError> {
    let Some(message) = message_at(broker, behind.head.stream, behind.head.seq).await? else { return Ok(false) };
    Ok(matches!(place_behind(broker, &message, node).await?, Place::Free))
}

/// Walks back from `message` along the subjects by which its lane on the node is reached.
async fn head(broker: &Broker, message: &Message, node: &str, ways: &[String]) -> Result<Option<Behind>, BrokerError> {
    let names = broker.names();
    let (stream, lane) = (names.stream(message.at.stream), message.lane_text());
    let subjects: Vec<String> = ways.iter().map(|to| format!("{}.msg.{to}.{lane}", names.prefix())).collect();
    let mut before = message.at.seq;
    for _ in 0..STEPS {
        let page = broker.read_last_before(&stream, &subjects, before).await?;
        let Some(raw) = page.messages.iter().max_by_key(|raw| raw.seq) else { return Ok(None) };
        match place_behind(broker, &Message::read(names, message.at.stream, raw), node).await? {
            Place::Head(behind) => return Ok(Some(behind)),
            Place::Free => return Ok(None),
            Place::Unknown => before = raw.seq,
        }
    }
    Ok(None)
}

async fn place_behind(broker: &Broker, message: &Message, node: &str) -> Result<Place, BrokerError> {
    let names = broker.names();
    let subject = RecordSubject {
        node: node.to_owned(),
        from: message.from.clone(),
        method: message.method.clone(),
        id: message.id.clone(),
    };
    let subjects = [RecordClass::Ack, RecordClass::Progress].map(|class| names.record(class, &subject));
    let told = broker.read_last(&names.record_stream(RecordStream::Acks), &subjects).await?;
    let about_it = told.messages.iter().filter_map(|raw| parse_record(names, raw));
    let begun = about_it.filter(|(_, _, about, record)| *about == message.at && record.started_at.is_some());
    Ok(begun.fold(Place::Unknown, |place, (class, _, about, record)| match (place, class) {
        (_, RecordClass::Ack) | (Place::Free, _) => Place::Free,
        _ => Place::Head(Behind { head: about, running: record.state == State::Running }),
    }))
}
