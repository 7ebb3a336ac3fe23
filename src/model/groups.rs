//! Membership of groups, decided in the stream: a node is a member between two marks that lie in the streams
//! themselves, so that joins and leaves are exact to the sequence whatever its consumer is doing.
//!
//! Each membership in a `spec` is a small machine; what it says by (`pending`, `join`, `leave`):
//!
//! ```text
//! wanted → joining (id, –, –) ─ filters, then marks stored → member (–, J, –)
//!                                                              │ no longer wanted
//! closed (–, J, L) ← ack floors past L ─ draining (id, J, L) ← marks stored ─ leaving (id, J, –)
//! ```
//!
//! A consumer's filters cannot be changed by compare-and-set: what a hub sent and died, or a link held up, may arrive at any
//! time and take away the filter of a group that the node is in. Whoever finds one missing writes `again` into the
//! membership, puts the filter right, and then has the node read again from its join on. And whoever changes filters for
//! another reason writes `again` beforehand for the groups that he found there: between his look and his change such an
//! arrival would be overwritten and found by nobody. What was acked by then needs no second reading, so that one begins at
//! the ack floor of the look, and is called off where nothing for the group was stored since. What a node knows it does not
//! run twice.
//!
//! `pending` is the id of the marks. It is written before they are published, so whoever comes later, another hub too,
//! publishes the same and finds the same sequences. Owns these steps, and who is a member of what at which sequence. Never
//! publishes and never reads; whoever carries out a [`Step`] tells what came of it by [`Done`].

mod intervals;

use super::id::StreamSeq;
use super::message::StreamKind;
use super::name::{GroupName, NodeName, Target};
use super::node::{Membership, Spec, Starts};
pub use intervals::{Interval, Intervals, Mark};
use std::collections::BTreeSet;
use uuid::Uuid;

/// What has to be done next about a membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Set the filters, then publish the marks of a join with this id.
    Join {
        /// The group.
        group: GroupName,
        /// The id of the marks.
        marker: Uuid,
    },
    /// Publish the marks of a leave with this id.
    Leave {
        /// The group.
        group: GroupName,
        /// The id of the marks.
        marker: Uuid,
    },
    /// Set the filters, then tell the node, under this id, to read again.
    Again {
        /// The group.
        group: GroupName,
        /// The id of that word.
        marker: Uuid,
        /// The join.
        join: Starts,
        /// From where on, in each stream that is concerned.
        from: Starts,
    },
    /// Wait until the node has taken all up to its leave.
    Drain {
        /// The id of the marks.
        marker: Uuid,
        /// Where its ack floors have to be.
        until: Starts,
    },
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// The marks are stored, there.
    Marked(Starts),
    /// The node has taken all up to its leave, its ack floors being here or behind.
    Drained(Starts),
}

/// Whether a node is a member of a group at a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Belongs {
    /// It is not.
    No,
    /// Marks are being published; once their sequences are known it is clear.
    Pending,
    /// It is.
    Member,
}

impl Membership {
    fn is_marked(marks: &Starts) -> bool {
        marks.commands.is_some() && marks.events.is_some()
    }

    fn is_joining(&self) -> bool {
        !Membership::is_marked(&self.join)
    }

    fn is_over(&self) -> bool {
        Membership::is_marked(&self.leave)
    }

    /// Joined, and not over.
    fn is_relied_on(&self) -> bool {
        !self.is_joining() && (self.pending.is_some() || !self.is_over())
    }

    fn step(&self) -> Option<Step> {
        let group = self.name.parse().ok()?;
        if let Some(marker) = self.again {
            return Some(Step::Again { group, marker, join: self.join, from: self.again_from });
        }
        let marker = self.pending?;
        Some(match (self.is_joining(), self.is_over()) {
            (true, _) => Step::Join { group, marker },
            (false, false) => Step::Leave { group, marker },
            (false, true) => Step::Drain { marker, until: self.taken_at() },
        })
    }

    /// Notes that a stream has to be read again from here on, but not from before its join; with what has to be already.
    fn must_read(&mut self, stream: StreamKind, from: StreamSeq) {
        let from = self.join.get(stream).map_or(from, |join| from.max(join));
        let noted = self.again_from.get_mut(stream);
        *noted = Some(noted.map_or(from, |noted| noted.min(from)));
    }

    /// Where a node has to be that has taken all up to its leave: also what it was told to read again, which it acks when
    /// it comes there once more.
    fn taken_at(&self) -> Starts {
        let later = |stream| *self.leave.get(stream).max(self.again_at.get(stream));
        Starts { commands: later(StreamKind::Commands), events: later(StreamKind::Events) }
    }

    fn at(&self, stream: StreamKind, seq: StreamSeq) -> Belongs {
        let Some(join) = *self.join.get(stream) else {
            return if self.pending.is_some() { Belongs::Pending } else { Belongs::No };
        };
        match *self.leave.get(stream) {
            _ if seq <= join => Belongs::No,
            Some(leave) if seq >= leave => Belongs::No,
            None if self.pending.is_some() => Belongs::Pending,
            _ => Belongs::Member,
        }
    }
}

impl Spec {
    /// Begins what is wanted and not under way, with a fresh id for each; true where that changed anything.
    pub fn plan_groups(&mut self, mut fresh: impl FnMut() -> Uuid) -> bool {
        let Some(wanted) = &self.want_groups else { return false };
        let all = GroupName::all();
        let wanted: BTreeSet<&str> = wanted
            .iter()
            .filter(|name| name.parse::<GroupName>().is_ok_and(|g| g != all))
            .map(String::as_str)
            .collect();
        let mut changed = false;
        for member in self.groups.iter_mut().filter(|m| !m.is_over() && m.pending.is_none()) {
            if !wanted.contains(member.name.as_str()) {
                member.pending = Some(fresh());
                changed = true;
            }
        }
        for name in wanted {
            // One that is leaving is waited for: a group is joined anew behind its leave.
            if !self.groups.iter().any(|m| m.name == name && !m.is_over()) {
                let (join, leave) = (Starts::default(), Starts::default());
                let pending = Some(fresh());
                self.groups.push(Membership {
                    name: name.to_owned(),
                    join,
                    leave,
                    pending,
                    again: None,
                    again_from: Starts::default(),
                    again_at: Starts::default(),
                });
                changed = true;
            }
        }
        changed
    }

    /// What has to be done.
    pub fn group_steps(&self) -> Vec<Step> {
        self.groups.iter().filter_map(Membership::step).collect()
    }

    /// Takes in what came of the step with this id; false where that is known or no longer of account.
    pub fn group_done(&mut self, marker: Uuid, done: Done) -> bool {
        let Some(member) = self.groups.iter_mut().find(|m| m.pending == Some(marker)) else { return false };
        match (done, member.is_joining(), member.is_over()) {
            (Done::Marked(join), true, _) => {
                member.join = join;
                member.pending = None;
            }
            (Done::Marked(leave), false, false) => member.leave = leave,
            // Where it is to read again since, its filters have to stay.
            (Done::Drained(until), false, true) if member.again.is_none() && member.taken_at() == until => {
                member.pending = None;
            }
            _ => return false,
        }
        true
    }

    /// The groups that its consumers must not be without unnoticed: it is in them, or may still have to take what was stored
    /// while it was.
    pub fn groups_relied_on(&self) -> impl Iterator<Item = GroupName> {
        self.groups.iter().filter(|m| m.is_relied_on()).filter_map(|m| m.name.parse().ok())
    }

    /// What was stored for one of these groups may have been passed over: the node has to read again from here on, in each
    /// stream that is named. Each time with a fresh id, because an earlier word may have been read before this happened. True
    /// where it is relied on for any of them.
    pub fn read_again(&mut self, groups: &[GroupName], from: Starts, mut fresh: impl FnMut() -> Uuid) -> bool {
        let is_meant = |m: &Membership| groups.iter().any(|group| group.as_str() == m.name);
        let mut changed = false;
        for member in self.groups.iter_mut().filter(|m| m.is_relied_on() && is_meant(m)) {
            for stream in StreamKind::ALL {
                if let Some(from) = *from.get(stream) {
                    member.must_read(stream, from);
                }
            }
            member.again = Some(fresh());
            changed = true;
        }
        changed
    }

    /// The word with this id is stored, there, or was not needed in a stream; false where that is known.
    pub fn again_said(&mut self, marker: Uuid, at: Starts) -> bool {
        let Some(member) = self.groups.iter_mut().find(|m| m.again == Some(marker)) else { return false };
        (member.again, member.again_from) = (None, Starts::default());
        for stream in StreamKind::ALL {
            let said = member.again_at.get_mut(stream);
            *said = (*said).max(*at.get(stream));
        }
        true
    }

    /// Has pending marks published anew, for a journal that begins behind those that may be stored.
    pub fn renew_marks(&mut self, mut fresh: impl FnMut() -> Uuid) {
        for member in self.groups.iter_mut().filter(|m| m.pending.is_some() && !m.is_over()) {
            member.pending = Some(fresh());
        }
    }

    /// The groups that its consumers have to reach.
    pub fn groups_reached(&self) -> BTreeSet<GroupName> {
        let open = self.groups.iter().filter(|m| m.pending.is_some() || !m.is_over());
        open.filter_map(|m| m.name.parse().ok()).collect()
    }

    /// All targets whose messages its consumers have to reach: itself, `@all`, and its groups.
    pub fn targets(&self) -> Vec<Target> {
        let groups = std::iter::once(GroupName::all()).chain(self.groups_reached());
        std::iter::once(Target::Node(self.node.clone())).chain(groups.map(Target::Group)).collect()
    }

    /// Whether it is a member of the group for a message stored there.
    pub fn belongs(&self, group: &GroupName, stream: StreamKind, seq: StreamSeq) -> Belongs {
        if *group == GroupName::all() {
            return match *self.start.get(stream) {
                Some(start) if seq >= start => Belongs::Member,
                // It is being made; where it begins is not known yet.
                None if stream == StreamKind::Commands => Belongs::Pending,
                _ => Belongs::No,
            };
        }
        let of_group = self.groups.iter().filter(|m| m.name == group.as_str());
        of_group.map(|m| m.at(stream, seq)).max().unwrap_or(Belongs::No)
    }
}

/// The members of a group for a message stored there, of these nodes. Of `@all` those that have been in contact.
pub fn members<'a>(
    specs: impl IntoIterator<Item = &'a Spec>,
    group: &GroupName,
    stream: StreamKind,
    seq: StreamSeq,
) -> Vec<NodeName> {
    let counts = |spec: &&Spec| {
        spec.belongs(group, stream, seq) == Belongs::Member && (*group != GroupName::all() || spec.journal.is_some())
    };
    specs.into_iter().filter(counts).map(|spec| spec.node.clone()).collect()
}

/// True where nobody's join or leave is under way that decides whether a message stored there is for it.
pub fn is_decided<'a>(
    specs: impl IntoIterator<Item = &'a Spec>,
    group: &GroupName,
    stream: StreamKind,
    seq: StreamSeq,
) -> bool {
    specs.into_iter().all(|spec| spec.belongs(group, stream, seq) != Belongs::Pending)
}

#[cfg(test)]
mod tests;
