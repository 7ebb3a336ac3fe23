//! What can go wrong at the broker.
//!
//! Owns the distinction that exit codes and retries rest on: refused, unreachable, or not known.

use super::api::has_no_leader;
use std::time::Duration;

/// A request to the broker failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    /// The address, credentials or options cannot be used; trying again will not help.
    #[error("{0}")]
    Options(String),
    /// The broker does not let us in.
    #[error("the broker at {servers} {}", if *.given { "does not accept these credentials" } else { "wants credentials, and there are none" })]
    NotAccepted {
        /// The addresses tried.
        servers: String,
        /// True where it was given credentials.
        given: bool,
    },
    /// No broker could be reached.
    #[error("no broker at {servers}: {reason}")]
    Unreachable {
        /// The addresses tried.
        servers: String,
        /// The last error.
        reason: String,
    },
    /// The broker answered with an error.
    #[error("the broker refused {what}: {description} (code {code})")]
    Refused {
        /// What was asked for.
        what: String,
        /// JetStream's error code.
        code: u64,
        /// The broker's words.
        description: String,
    },
    /// Nothing listens on the API: JetStream off, the stream or consumer missing, or no import for it.
    #[error("nobody answers {what}")]
    NoResponders {
        /// What was asked for.
        what: String,
    },
    /// No answer came in time.
    #[error("no answer to {what} within {} ms", after.as_millis())]
    Timeout {
        /// What was asked for.
        what: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The link went down before an answer came; whether the broker did it is not known.
    #[error("the link was lost before an answer to {what} came")]
    LinkLost {
        /// What was asked for.
        what: String,
    },
    /// The broker does not let us ask this.
    #[error("no right to publish to `{subject}`")]
    Denied {
        /// The subject.
        subject: String,
    },
    /// The broker does not let us hear answers under our name: the credentials are another's.
    #[error("no right to the inbox `{inbox}`: these credentials belong to another name")]
    DeniedInbox {
        /// The first token of the inbox, `_INBOX_<name>`.
        inbox: String,
    },
    /// The connection's task has ended; only a new connection helps.
    #[error("the connection is closed")]
    Closed,
    /// The answer could not be read.
    #[error("the answer to {what} cannot be read: {reason}")]
    BadAnswer {
        /// What was asked for.
        what: String,
        /// Why not.
        reason: String,
    },
}

impl BrokerError {
    /// True where the configuration, the rights or the broker's set-up have to change first: trying again will not help.
    pub fn is_final(&self) -> bool {
        use BrokerError::{Denied, DeniedInbox, NotAccepted, Options};
        matches!(self, Options(_) | NotAccepted { .. } | Denied { .. } | DeniedInbox { .. })
    }

    /// JetStream's error code, where the broker refused.
    pub fn code(&self) -> Option<u64> {
        match self {
            BrokerError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// A publish did not end with the broker's word that it is stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// Another message is the last one on the subject: compare-and-set failed (10071).
    #[error("the subject already holds another message")]
    WrongLast,
    /// The broker refused to store it; it is not stored.
    #[error("the broker refused to store it: {description} (code {code})")]
    Refused {
        /// JetStream's error code.
        code: u64,
        /// The broker's words.
        description: String,
    },
    /// It exceeds the broker's limit; it was not sent.
    #[error("{size} bytes are more than the broker takes ({limit})")]
    TooLarge {
        /// Its size with headers.
        size: usize,
        /// The broker's `max_payload`.
        limit: usize,
    },
    /// No stream takes this subject, or the broker allows nobody to hear it; it is not stored.
    #[error("no stream takes the subject")]
    NoStream,
    /// The broker does not let us publish there; it is not stored.
    #[error("no right to publish to `{subject}`")]
    Denied {
        /// The subject.
        subject: String,
    },
    /// It cannot be sent as it is.
    #[error("it cannot be sent: {0}")]
    Unsendable(String),
    /// No answer, or one that leaves open whether it will be stored.
    #[error("the broker did not say whether it stored it")]
    Unknown,
    /// The connection's task has ended; whether it is stored is not known.
    #[error("the connection is closed")]
    Closed,
}

impl PublishError {
    /// True where nobody stores it until a cluster has elected a leader: on a cluster it may be tried again.
    pub fn lacks_leader(&self) -> bool {
        match self {
            PublishError::NoStream => true,
            PublishError::Refused { code, .. } => has_no_leader(*code),
            _ => false,
        }
    }

    /// True where trying the same again cannot help.
    pub fn is_final(&self) -> bool {
        match self {
            PublishError::TooLarge { .. } | PublishError::Unsendable(_) => true,
            // 400-class JetStream errors about the message itself; a full stream (10077) or a lost leader may heal.
            PublishError::Refused { code, .. } => matches!(code, 10054 | 10060 | 10070 | 10165 | 10166),
            _ => false,
        }
    }
}
