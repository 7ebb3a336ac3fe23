//! What can go wrong for an operator besides sending (see `send`).

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
    /// `last` needs to know whose.
    #[error("`last` is the newest message of a sender, and no sender is known")]
    NoSender,
}

fn looked(back: Option<Duration>) -> String {
    back.map(|back| format!(" among the records and the messages of the last {}", rough(back))).unwrap_or_default()
}
