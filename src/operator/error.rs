//! What can go wrong for an operator besides sending (see `send`).

use super::export::Unsendable;
use crate::broker::BrokerError;
use crate::model::id::{IdRef, MessageId};
use crate::model::time::rough;
use std::time::Duration;

/// A question that could not be answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OperatorError {
    /// The broker did not answer, or refused.
    #[error("reading from the broker failed")]
    Broker(#[from] BrokerError),
    /// No message is known under this name.
    #[error("no message `{id}`{}", looked(*.back))]
    NotFound {
        /// What was asked for.
        id: IdRef,
        /// How far back messages were read, where they were.
        back: Option<Duration>,
    },
    /// Several senders used this id.
    #[error("the id `{id}` was used by {}", .senders.join(", "))]
    Ambiguous {
        /// The id.
        id: MessageId,
        /// The senders, sorted.
        senders: Vec<String>,
    },
    /// A name cannot be used.
    #[error(transparent)]
    BadName(#[from] crate::model::name::BadName),
    /// A key of the bucket could not be written.
    #[error("{key} was not written: {error}")]
    NotWritten {
        /// Its subject.
        key: String,
        /// Why not.
        error: String,
    },
    /// `last` needs to know whose.
    #[error("`last` is the newest message of a sender, and no sender is known")]
    NoSender,
    /// The stream does not hold the message any more, and with it went its body.
    #[error("the message `{id}` is not in the stream any more")]
    Gone {
        /// Its name.
        id: IdRef,
    },
    /// The stream does not hold all of a range.
    #[error("the stream holds messages from {first} to {last}; the range goes beyond that")]
    OutOfRange {
        /// The first that is there.
        first: IdRef,
        /// The last.
        last: IdRef,
    },
    /// A range has nothing to be sent again.
    #[error("the range has no message to be sent again{}", others(*.of_others))]
    EmptyRange {
        /// Messages in it that are not the sender's.
        of_others: usize,
    },
    /// More than one call may send again.
    #[error("that is more than {most} messages or {} MiB at once; take a part of it", .most_bytes >> 20)]
    TooMuch {
        /// The most messages.
        most: usize,
        /// The most bytes of bodies.
        most_bytes: usize,
    },
    /// No target of a call ended without success.
    #[error("the message `{id}` failed nowhere")]
    NothingFailed {
        /// The message.
        id: IdRef,
    },
    /// A message cannot be sent again.
    #[error(transparent)]
    Unsendable(#[from] Unsendable),
}

fn others(count: usize) -> String {
    if count == 0 { String::new() } else { format!(": its {count} messages are of other senders") }
}

fn looked(back: Option<Duration>) -> String {
    back.map(|back| format!(" among the records and the messages of the last {}", rough(back))).unwrap_or_default()
}
