//! The groups that this node is a member of, by stream sequence.
//!
//! Owns the copy in memory of what the journal keeps (`journal::members`). Marks in the streams change that in the commit
//! that takes them; what `spec` says of marks that this journal never saw is learnt before a session begins. The copy knows
//! each mark a moment before the journal does; one that is not kept comes again. Decides no membership.

use super::control;
use super::node::Node;
use crate::journal::JournalError;
use crate::model::groups::{Intervals, Mark};
use crate::model::id::{IdRef, MsgRef, StreamSeq};
use crate::model::message::{StoredMessage, StreamKind};
use crate::model::name::{GroupName, NodeName, Target};
use crate::model::node::{PerStream, Spec};
use std::sync::{Arc, PoisonError, RwLock};

/// Memberships, and whose messages reach the node.
pub(crate) struct Groups {
    known: RwLock<PerStream<Intervals>>,
    targets: RwLock<Arc<[Target]>>,
}

impl Groups {
    /// No member of anything but `@all`.
    pub(crate) fn new(node: &NodeName) -> Groups {
        let targets = vec![Target::Node(node.clone()), Target::Group(GroupName::all())];
        Groups { known: RwLock::default(), targets: RwLock::new(targets.into()) }
    }

    /// Takes in a mark that is being taken: messages behind it in the same batch are judged by it.
    pub(crate) fn mark(&self, mark: &Mark, at: MsgRef) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).get_mut(at.stream).mark(mark, at.seq);
    }

    /// From where a stream is to be read again, where that is due.
    pub(crate) fn due(&self, stream: StreamKind) -> Option<StreamSeq> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(stream).due()
    }

    /// The journal has it: the stream is being read again.
    fn begun_again(&self, stream: StreamKind) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).get_mut(stream).begun_again();
    }

    /// True where the node is a member of the group for the message stored there.
    fn is_member(&self, group: &GroupName, stream: StreamKind, seq: StreamSeq) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(stream).contains(group, seq)
    }

    /// True where it is one, or was one before.
    fn was_member(&self, group: &GroupName, stream: StreamKind, seq: StreamSeq) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(stream).was_member(group, seq)
    }

    /// To whom the messages are that its consumers give it.
    pub(crate) fn targets(&self) -> Arc<[Target]> {
        Arc::clone(&self.targets.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes in `spec`; true where it says something new.
    fn learn(&self, spec: &Spec) -> bool {
        *self.targets.write().unwrap_or_else(PoisonError::into_inner) = spec.targets().into();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let before = known.clone();
        StreamKind::ALL.into_iter().for_each(|stream| known.get_mut(stream).learn(spec, stream));
        *known != before
    }
}

impl Node {
    /// Takes up what the journal kept.
    pub(crate) async fn load_groups(&self) -> Result<(), JournalError> {
        let kept = self.journal.members().await?;
        *self.groups.known.write().unwrap_or_else(PoisonError::into_inner) = kept;
        Ok(())
    }

    /// Learns from `spec` what the marks in the streams have not told this journal.
    pub(crate) async fn learn_groups(&self, spec: &Spec) -> Result<(), JournalError> {
        if self.groups.learn(spec) { self.journal.learn_members(spec.clone()).await } else { Ok(()) }
    }

    /// Goes back to where messages may have been passed over: those that the journal does not know are taken when they come
    /// again.
    pub(crate) async fn read_again(&self, stream: StreamKind) -> Result<(), JournalError> {
        let Some(from) = self.groups.due(stream) else { return Ok(()) };
        tracing::info!(?stream, %from, "messages to a group may have been passed over; reading again");
        self.journal.go_back(stream, from, self.groups.targets()).await?;
        // Not before: a full disk would have it forgotten.
        self.groups.begun_again(stream);
        Ok(())
    }

    /// True where the message is not for this node: to a group that it is no member of at that place. Such a message gets
    /// no record here.
    ///
    /// A cancel is also for those that the message it names was for and that have left since. Where the name does not tell
    /// the place, all take it that may have that message. It does nothing about one that was not for this node, which is
    /// not in the journal; whoever is a member where the cancel lies says so.
    pub(crate) fn is_for_others(&self, message: &StoredMessage) -> bool {
        let subject = self.names.read_loosely(&message.subject);
        let Some(Target::Group(group)) = &subject.to else { return false };
        let MsgRef { stream, seq, .. } = message.at;
        let had_its_message = match control::cancelled(&subject, &message.body) {
            None => false,
            Some(IdRef::Stored(stream, seq)) => self.groups.is_member(group, stream, seq),
            Some(_) => self.groups.was_member(group, stream, seq),
        };
        !had_its_message && !self.groups.is_member(group, stream, seq)
    }
}
