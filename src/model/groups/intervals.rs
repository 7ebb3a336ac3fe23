//! Memberships as the node knows them: between marks that it has taken, corrected by what `spec` says.
//!
//! Owns whether a message is for the node, and from where it has to read again. Never decides who is to be a member.

use crate::model::id::StreamSeq;
use crate::model::message::StreamKind;
use crate::model::name::GroupName;
use crate::model::node::Spec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One membership as the node knows it: behind `join`, before `leave`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// The mark of the join.
    pub join: StreamSeq,
    /// The mark of the leave.
    pub leave: Option<StreamSeq>,
    /// The last word to read again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<StreamSeq>,
    /// That is still to be done, from there on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<StreamSeq>,
}

impl Interval {
    fn new(join: StreamSeq, leave: Option<StreamSeq>) -> Interval {
        Interval { join, leave, again: None, due: None }
    }
}

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// A member from here on.
    Join(GroupName),
    /// A member up to here.
    Leave(GroupName),
    /// No mark of its own: messages since then may have been passed over, read again.
    Again {
        /// The group.
        group: GroupName,
        /// The join: the node may have left and joined anew since.
        join: StreamSeq,
        /// From here on; without it, from the join on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<StreamSeq>,
    },
}

/// The memberships of a node in one stream, as its journal keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Intervals(BTreeMap<GroupName, Vec<Interval>>);

impl Intervals {
    /// Takes in a mark; one that says what is so already changes nothing.
    pub fn mark(&mut self, mark: &Mark, seq: StreamSeq) {
        let (Mark::Join(group) | Mark::Leave(group) | Mark::Again { group, .. }) = mark;
        let known = self.0.entry(group.clone()).or_default();
        if let Mark::Again { join, from, .. } = mark {
            // It comes again itself when that is done.
            let is_news = |i: &&mut Interval| i.join == *join && i.again.is_none_or(|last| seq > last);
            if let Some(interval) = known.iter_mut().find(is_news) {
                let from = from.unwrap_or(*join);
                interval.due = Some(interval.due.map_or(from, |due| due.min(from)));
                interval.again = Some(seq);
            }
            return;
        }
        // A mark that comes again, after the stream was restored, is an old one.
        if known.iter().any(|i| seq <= i.join || i.leave.is_some_and(|leave| seq <= leave)) {
            return;
        }
        let open = known.last_mut().filter(|i| i.leave.is_none());
        match (mark, open) {
            (Mark::Join(_), None) => known.push(Interval::new(seq, None)),
            (Mark::Leave(_), Some(interval)) => interval.leave = Some(seq),
            (Mark::Join(_), Some(_)) | (Mark::Leave(_), None) | (Mark::Again { .. }, _) => {}
        }
    }

    /// From where the stream is to be read again, where that is due.
    pub fn due(&self) -> Option<StreamSeq> {
        self.0.values().flatten().filter_map(|i| i.due).min()
    }

    /// It is being read again.
    pub fn begun_again(&mut self) {
        self.0.values_mut().flatten().for_each(|i| i.due = None);
    }

    /// Takes in what `spec` says of one stream, which is true whatever marks the node has seen.
    pub fn learn(&mut self, spec: &Spec, stream: StreamKind) {
        for member in &spec.groups {
            let (Ok(group), Some(join)) = (member.name.parse(), *member.join.get(stream)) else { continue };
            let leave = *member.leave.get(stream);
            let known = self.0.entry(group).or_default();
            match known.iter_mut().find(|i| i.join == join) {
                Some(interval) => interval.leave = interval.leave.or(leave),
                None => known.push(Interval::new(join, leave)),
            }
            known.sort_by_key(|i| i.join);
        }
    }

    /// True where the node is a member of the group for a message stored there.
    pub fn contains(&self, group: &GroupName, seq: StreamSeq) -> bool {
        let within = |i: &Interval| seq > i.join && i.leave.is_none_or(|leave| seq < leave);
        *group == GroupName::all() || self.0.get(group).is_some_and(|known| known.iter().any(within))
    }

    /// True where the node is a member there or was one before.
    pub fn was_member(&self, group: &GroupName, seq: StreamSeq) -> bool {
        *group == GroupName::all() || self.0.get(group).is_some_and(|known| known.iter().any(|i| seq > i.join))
    }
}
