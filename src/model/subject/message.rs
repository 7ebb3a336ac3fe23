//! A message's subject, taken apart: what it names, and the lane that it stands in.
//!
//! Owns the values; how they are written and read is [`Names`](super::Names)'.

use super::RecordSubject;
use crate::model::id::MessageId;
use crate::model::message::Kind;
use crate::model::name::{BadName, GroupName, LaneToken, MethodName, NodeName, Sender, Target};

/// A message's subject: `fleet.msg.<to>.<kind>.<from>.<method>[.<lane>]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MsgSubject {
    /// Whom it is for.
    pub to: Target,
    /// What kind it is.
    pub kind: Kind,
    /// Who sent it; the broker's permissions pin this token.
    pub from: Sender,
    /// What to do; for control messages the verb.
    pub method: MethodName,
    /// A lane of its own.
    pub lane: Option<LaneToken>,
}

impl MsgSubject {
    /// The lane: the subject but for `<to>`.
    pub fn lane_key(&self) -> LaneKey {
        LaneKey { kind: self.kind, from: self.from.clone(), method: self.method.clone(), lane: self.lane.clone() }
    }

    /// The subject of the record of this message on `node`.
    pub fn record(&self, node: &NodeName, id: MessageId) -> RecordSubject {
        RecordSubject { node: node.to_string(), from: self.from.to_string(), method: self.method.to_string(), id }
    }

    /// True where the group of this message is `@all`.
    pub fn is_for_all(&self) -> bool {
        self.to == Target::Group(GroupName::all())
    }
}

/// Messages of one node with the same kind, sender, method and lane token: in order inside, concurrent with others.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneKey {
    /// Command or event.
    pub kind: Kind,
    /// The sender.
    pub from: Sender,
    /// The method.
    pub method: MethodName,
    /// The lane token.
    pub lane: Option<LaneToken>,
}

impl std::fmt::Display for LaneKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.kind, self.from, self.method)?;
        self.lane.as_ref().map_or(Ok(()), |lane| write!(f, ".{lane}"))
    }
}

/// What could be read of a subject that may not be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LooseSubject {
    /// The target, where it reads as one.
    pub to: Option<Target>,
    /// The kind, where it reads as one.
    pub kind: Option<Kind>,
    /// The sender's token, or `_`.
    pub from: String,
    /// The method's token, or `_`.
    pub method: String,
}

/// Why a subject is not a message's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the subject {reason}")]
pub struct BadSubject {
    /// What is wrong, a fragment.
    pub reason: String,
}

impl BadSubject {
    pub(super) fn new(reason: &str) -> BadSubject {
        BadSubject { reason: reason.to_owned() }
    }
}

impl From<BadName> for BadSubject {
    fn from(bad: BadName) -> BadSubject {
        BadSubject { reason: format!("has a bad token: {bad}") }
    }
}
