//! One message on one node, as a view lays it out.
//!
//! A value without I/O. Owns what follows from a row alone: whether it is settled, since when it is so, whether its node
//! answers. Never decides its state; `view` does.

use super::message::Message;
use crate::model::id::MsgRef;
use crate::model::node::Contact;
use crate::model::record::Record;
use crate::model::state::State;
use crate::model::time::Timestamp;

/// The message that another waits behind in its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// Where it is stored; the time only where the node told it.
    pub head: MsgRef,
    /// True while it runs.
    pub running: bool,
}

/// One message on one node.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// The message.
    pub message: &'a Message,
    /// The node, or the group as `@name` where no node answered for it.
    pub node: String,
    /// What became of it; the late record's state where there is one.
    pub state: State,
    /// The record that says so.
    pub record: Option<&'a Record>,
    /// The terminal record that a late one corrects.
    pub first: Option<&'a Record>,
    /// A cancel was asked for, and the message is not over.
    pub cancel_requested: bool,
    /// The message whose copy this one is; the state is that one's.
    pub copy_of: Option<MsgRef>,
    /// Its start-by has passed and it has not begun.
    pub will_expire: bool,
    /// The node's contact; `None` for a group, and where all is done and nobody asked.
    pub contact: Option<Contact>,
    /// When the node was last heard.
    pub heard_at: Option<Timestamp>,
    /// What it waits behind.
    pub behind: Option<Behind>,
}

impl Row<'_> {
    /// True where nothing more is to be waited for: a terminal state, or one that cannot be known any more.
    pub fn is_settled(&self) -> bool {
        self.state.is_terminal() || self.state == State::Unknown
    }

    /// Since when it is in its state, as far as that is told.
    pub fn since(&self) -> Option<Timestamp> {
        let told = |of: fn(&Record) -> Option<Timestamp>| self.record.and_then(of);
        match self.state {
            State::Queued => Some(self.message.at.stored_at),
            State::Delivered => told(|record| record.received_at),
            State::Running | State::Retrying => told(|record| record.started_at),
            _ => told(|record| record.finished_at),
        }
    }

    /// True where the node does not answer now, so that waiting may take for ever.
    pub fn is_out_of_contact(&self) -> bool {
        !matches!(self.contact, None | Some(Contact::InContact))
    }
}
