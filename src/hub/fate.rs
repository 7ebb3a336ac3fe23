//! What becomes of a stored message, by its sequence.
//!
//! Owns the decision: the node's consumer delivers it, a node has to be made first, or the hub answers because no node can.
//! Pure: what is known comes in, a value goes out.

use crate::broker::RawMessage;
use crate::model::admit::Rejected;
use crate::model::error_event::Code;
use crate::model::header::id_of;
use crate::model::id::{MessageId, MsgRef};
use crate::model::message::{Kind, StreamKind};
use crate::model::name::{GroupName, NodeName, Target};
use crate::model::node::Starts;
use crate::model::record::{By, Record, RecordError};
use crate::model::state::State;
use crate::model::subject::{BadSubject, LooseSubject, MsgSubject, Names, RecordSubject};

/// The node of a record for which no node can be named.
pub(super) const NOBODY: &str = "_";

/// A stored message as far as the hub looks at it: subject and headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Where and when it was stored.
    pub at: MsgRef,
    id: MessageId,
    loose: LooseSubject,
    parsed: Result<MsgSubject, BadSubject>,
}

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The node's consumer gives it to the node.
    Delivered,
    /// The node is not there, or not ready yet; it is made, and then the message judged again.
    MakeNode(NodeName),
    /// The node has no consumer for events yet, or this is the event for which it gets one.
    OpenEvents(NodeName),
    /// It was a replaced journal's; what closes those answers it.
    Closed,
    /// Whether anybody is to answer is not decided yet; it is judged again later.
    Waits,
    /// No node can answer; the hub does.
    Answered(Answer),
}

/// The hub's answer to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The node's token, or `_`.
    pub node: String,
    /// How it ends.
    pub state: State,
    /// Why.
    pub error: RecordError,
}

/// What is known about the node or group that a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// There is such a node; its messages begin here.
    Known(Starts),
    /// There is; the message is one of those that a replaced journal left.
    Closing,
    /// It is for a group with members.
    Members,
    /// It is for a group that somebody is joining or leaving.
    Pending,
    /// It is for a group without members, or an unknown one.
    NoMembers,
    /// There is none, and this message may make it one or not.
    Unknown {
        /// True where it may.
        may_make: bool,
    },
}

impl Letter {
    /// Reads a message of one of the two message streams.
    pub fn read(names: &Names, stream: StreamKind, message: &RawMessage) -> Letter {
        let at = MsgRef { stream, seq: message.seq, stored_at: message.stored_at };
        Letter {
            at,
            id: id_of(&message.headers, at),
            loose: names.read_loosely(&message.subject),
            parsed: names.parse_message(&message.subject),
        }
    }

    /// The node that it is for, where it is for one.
    pub fn node(&self) -> Option<&NodeName> {
        match &self.loose.to {
            Some(Target::Node(node)) => Some(node),
            _ => None,
        }
    }

    /// The group that it is for, where it is for one.
    pub fn group(&self) -> Option<&GroupName> {
        match &self.loose.to {
            Some(Target::Group(group)) => Some(group),
            _ => None,
        }
    }

    /// True where it is of a shape that may make a node of an unknown name: a command or an event that can be read. Whether
    /// its sender is a node itself is for the caller to know.
    pub fn is_well_formed(&self) -> bool {
        self.parsed.as_ref().is_ok_and(|subject| subject.kind != Kind::Control)
    }

    /// The sender's token, where it is a name that a node can have.
    pub fn sender_node(&self) -> Option<NodeName> {
        self.loose.from.parse().ok()
    }

    /// What becomes of it. `standing` is that of the node or group that it is for.
    pub fn judge(&self, standing: Standing) -> Fate {
        let node = match &self.loose.to {
            Some(Target::Node(node)) => node,
            Some(Target::Group(_)) if standing == Standing::Members => return Fate::Delivered,
            Some(Target::Group(_)) if standing == Standing::Pending => return Fate::Waits,
            Some(Target::Group(group)) => {
                let text = format!("no node was a member of `@{group}` when this was stored");
                return answered(NOBODY, State::Undeliverable, Code::UnknownGroup, text);
            }
            None => {
                let text = self.parsed.as_ref().err().map_or_else(|| "names no node".to_owned(), ToString::to_string);
                return answered(NOBODY, State::Refused, Code::BadSubject, text);
            }
        };
        let starts = match standing {
            Standing::Known(starts) => starts,
            Standing::Closing => return Fate::Closed,
            Standing::Members | Standing::Pending | Standing::NoMembers => return Fate::Waits,
            Standing::Unknown { may_make: true } => return Fate::MakeNode(node.clone()),
            Standing::Unknown { may_make: false } => {
                let text = format!("there is no node `{node}`");
                return answered(node.as_str(), State::Undeliverable, Code::UnknownNode, text);
            }
        };
        match (*starts.get(self.at.stream), self.at.stream) {
            (None, StreamKind::Commands) => Fate::MakeNode(node.clone()),
            (None, StreamKind::Events) => Fate::OpenEvents(node.clone()),
            (Some(start), _) if self.at.seq < start => {
                let text = format!("stored before the first message of `{node}`, {start}");
                answered(node.as_str(), State::Undeliverable, Code::BeforeStart, text)
            }
            // A hub may have died after it wrote the start: its announcement is repeated with the event itself.
            (Some(start), StreamKind::Events) if self.at.seq == start => Fate::OpenEvents(node.clone()),
            (Some(_), _) => Fate::Delivered,
        }
    }

    /// The subject of its terminal record on `node`.
    pub fn record_subject(&self, node: &str) -> RecordSubject {
        let LooseSubject { from, method, .. } = &self.loose;
        RecordSubject { node: node.to_owned(), from: from.clone(), method: method.clone(), id: self.id.clone() }
    }

    /// The hub's record of it.
    pub fn record(&self, names: &Names, answer: &Answer) -> Record {
        let rejected = Rejected {
            at: self.at,
            id: self.id.clone(),
            from: self.loose.from.clone(),
            method: self.loose.method.clone(),
            kind: self.loose.kind,
            lane: self.parsed.as_ref().ok().and_then(|s| s.lane.as_ref()).map(ToString::to_string),
            error: answer.error.clone(),
        };
        rejected.record(names, &answer.node, answer.state, By::Hub)
    }
}

fn answered(node: &str, state: State, code: Code, text: String) -> Fate {
    Fate::Answered(Answer { node: node.to_owned(), state, error: RecordError::new(code, text) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::header::RawHeaders;
    use crate::model::id::StreamSeq;
    use crate::model::node::PerStream;
    use crate::model::time::Timestamp;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn letter(stream: StreamKind, subject: &str, seq: u64) -> Letter {
        let message = RawMessage {
            subject: subject.to_owned(),
            seq: StreamSeq(seq),
            stored_at: Timestamp::from_nanos(0),
            headers: RawHeaders::default(),
            body: Bytes::new(),
        };
        Letter::read(&Names::default(), stream, &message)
    }

    fn known(commands: u64, events: Option<u64>) -> Standing {
        Standing::Known(PerStream { commands: Some(StreamSeq(commands)), events: events.map(StreamSeq) })
    }

    fn n1() -> NodeName {
        "n1".parse().unwrap()
    }

    fn code(fate: Fate) -> (String, State, Code) {
        match fate {
            Fate::Answered(Answer { node, state, error }) => (node, state, error.code),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn fate_is_by_sequence() {
        let command = |seq| letter(StreamKind::Commands, "fleet.msg.n1.command.ops.shell", seq);
        assert_eq!(command(5).judge(known(5, None)), Fate::Delivered);
        let early = command(4).judge(known(5, None));
        assert_eq!(code(early), ("n1".to_owned(), State::Undeliverable, Code::BeforeStart));
        assert_eq!(command(4).judge(Standing::Closing), Fate::Closed);
        assert_eq!(command(4).judge(Standing::Known(Starts::default())), Fate::MakeNode(n1()), "made by half");
    }

    #[test]
    fn the_first_event_opens_the_stream_and_repeats_it() {
        let event = |seq| letter(StreamKind::Events, "fleet.msg.n1.event.ops.log", seq);
        assert_eq!(event(3).judge(known(9, None)), Fate::OpenEvents(n1()));
        assert_eq!(event(3).judge(known(9, Some(3))), Fate::OpenEvents(n1()));
        assert_eq!(event(4).judge(known(9, Some(3))), Fate::Delivered);
        assert_eq!(code(event(2).judge(known(9, Some(3)))).2, Code::BeforeStart);
    }

    #[test]
    fn unknown_names_are_made_or_answered() {
        let command = letter(StreamKind::Commands, "fleet.msg.n1.command.ops.shell", 5);
        assert_eq!(command.judge(Standing::Unknown { may_make: true }), Fate::MakeNode(n1()));
        let refused = command.judge(Standing::Unknown { may_make: false });
        assert_eq!(code(refused), ("n1".to_owned(), State::Undeliverable, Code::UnknownNode));
        let group = letter(StreamKind::Commands, "fleet.msg.@all.command.ops.shell", 5);
        assert_eq!(group.judge(Standing::Members), Fate::Delivered);
        assert_eq!(group.judge(Standing::Pending), Fate::Waits);
        let group = group.judge(Standing::NoMembers);
        assert_eq!(code(group), ("_".to_owned(), State::Undeliverable, Code::UnknownGroup));
    }

    #[test]
    fn what_no_node_can_refuse_the_hub_does() {
        let to_nobody = letter(StreamKind::Commands, "fleet.msg.a$b.command.ops.shell", 5);
        assert_eq!(code(to_nobody.judge(known(1, None))), ("_".to_owned(), State::Refused, Code::BadSubject));
        let two_lanes = letter(StreamKind::Commands, "fleet.msg.n1.command.ops.shell.a.b", 5);
        assert_eq!(two_lanes.judge(known(1, None)), Fate::Delivered, "the node refuses it");
        assert!(!two_lanes.is_well_formed(), "and it makes no node");
        let control = letter(StreamKind::Commands, "fleet.msg.n1.control.ops.cancel", 5);
        assert!(!control.is_well_formed());
    }

    proptest! {
        #[test]
        fn every_message_has_a_fate_and_a_record(
            subject in "fleet\\.msg(\\.[a-z0-9@$*>é]{0,6}){0,8}",
            seq in 1u64..10,
            start in proptest::option::of(1u64..10),
            may_make: bool,
        ) {
            let letter = letter(StreamKind::Commands, &subject, seq);
            let standing = start.map_or(Standing::Unknown { may_make }, |start| known(start, None));
            if let Fate::Answered(answer) = letter.judge(standing) {
                prop_assert!(answer.state.is_terminal());
                let names = Names::default();
                let record = letter.record(&names, &answer);
                prop_assert_eq!(record.by, By::Hub);
                let subject = names.record(crate::model::subject::RecordClass::Ack, &letter.record_subject(&answer.node));
                prop_assert!(names.parse_record(&subject).is_some(), "{}", subject);
            }
        }
    }
}
