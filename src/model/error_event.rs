//! Error events: the durable record of a failure, and the one list of codes.
//!
//! Owns codes, severities and the JSON shape. Never decides what to do about a failure.

use super::id::MessageId;
use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// How much a failure matters to an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// One message did not succeed.
    Warning,
    /// Part of a node or the hub does not work as it should.
    Error,
    /// Somebody has to act.
    Critical,
}

impl Severity {
    /// The subject token.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
            Severity::Critical => "critical",
        }
    }
}

/// Makes the enum of codes with its names and documentation table.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Stable codes of error events and of `error` in records.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Code {
            $($(#[doc = $doc])+ #[serde(rename = $name)] $variant,)+
            /// A code of a newer release.
            #[serde(other, rename = "other")]
            Other,
        }

        impl Code {
            /// Every code with what it means, for the documentation.
            pub const TABLE: &'static [(&'static str, &'static str)] = &[$(($name, concat!($($doc),+))),+];

            /// The code as text: a subject token.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Code::$variant => $name,)+
                    Code::Other => "other",
                }
            }
        }
    };
}

codes! {
    /// A command exited with another code than 0, or a handler ended with an error.
    Failed = "failed",
    /// A run took longer than its timeout and was killed.
    TimedOut = "timed_out",
    /// A message was not accepted by the node; the record's own error says why.
    Refused = "refused",
    /// The start-by time passed before the message could begin.
    Expired = "expired",
    /// The message was cancelled.
    Cancelled = "cancelled",
    /// A run was broken off by a crash or a stop and may have done part of its work.
    Interrupted = "interrupted",
    /// A handler panicked.
    Panicked = "panicked",
    /// The subject is not of a message's shape.
    BadSubject = "bad_subject",
    /// A `Fleet-*` header is unknown, repeated or does not parse.
    BadHeader = "bad_header",
    /// The body is not what the method takes.
    BadBody = "bad_body",
    /// The message carries headers that only the broker writes.
    BrokerHeaders = "broker_headers",
    /// No handler has this name.
    UnknownMethod = "unknown_method",
    /// The method is not of this kind.
    WrongKind = "wrong_kind",
    /// The node's policy does not allow it.
    Policy = "policy",
    /// A signature is missing or wrong.
    Signature = "signature",
    /// The lane's or sender's share of the journal is full.
    LaneFull = "lane_full",
    /// The message is too large.
    TooLarge = "too_large",
    /// There is no node of this name.
    UnknownNode = "unknown_node",
    /// The group is unknown or has no members.
    UnknownGroup = "unknown_group",
    /// The message was stored before the node's first.
    BeforeStart = "before_start",
    /// A program could not be started.
    Spawn = "spawn",
    /// A file or folder could not be used.
    Io = "io",
    /// The content of `inmsg.txt` was not accepted.
    BadInmsg = "bad_inmsg",
    /// Another journal than the node's own asks to be this node.
    SecondJournal = "second_journal",
    /// Another journal took the place of the node's own, which had stopped or was silent.
    JournalReplaced = "journal_replaced",
    /// Another run of the same journal is at work: a copied disk.
    Twin = "twin",
    /// The node's consumer on the broker is missing.
    ConsumerMissing = "consumer_missing",
    /// The stream does not hold what was taken last: an older copy was put back, its end was deleted, or it was made anew.
    StreamChanged = "stream_changed",
    /// An entry of the outbox cannot be published as it is.
    OutboxParked = "outbox_parked",
    /// The journal could not be written for a while, or was damaged and is begun anew.
    Journal = "journal",
    /// A record of edgeward's own on the broker does not parse.
    BadRecord = "bad_record",
    /// Messages that their node has not taken will soon reach the time until which they may begin.
    ExpiresSoon = "expires_soon",
    /// A stream is filling up.
    StreamFull = "stream_full",
    /// The broker stores nothing in a stream, since its disk was full: make room, then restart nats-server.
    StreamWriteDead = "stream_write_dead",
    /// The broker refuses what edgeward's rights should allow.
    Permission = "permission",
    /// A part of the agent failed and was started again.
    PartFailed = "part_failed",
    /// A process is stopped because it failed; its messages stay queued.
    ProcessStopped = "process_stopped",
    /// The agent ends because of a failure and is not started again.
    Shutdown = "shutdown",
}

impl Code {
    /// True for the failure of a try: of the process, not of its message.
    pub fn is_of_a_try(self) -> bool {
        matches!(self, Code::Failed | Code::TimedOut | Code::Panicked)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What an error kernel decides about a failure; later ones weigh more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Directive {
    /// Go on.
    Continue,
    /// One more try.
    Retry,
    /// Restart the process.
    Restart,
    /// Stop the process; its messages stay queued.
    Stop,
    /// End the agent, for systemd not to restart.
    Shutdown,
}

impl Directive {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Directive::Continue => "continue",
            Directive::Retry => "retry",
            Directive::Restart => "restart",
            Directive::Stop => "stop",
            Directive::Shutdown => "shutdown",
        }
    }
}

/// One failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorEvent {
    /// The format: 1.
    pub v: u32,
    /// Its own id.
    pub id: Uuid,
    /// The node concerned, or `hub`.
    pub node: String,
    /// The process (method) or part that failed.
    pub process: Option<String>,
    /// How much it matters.
    pub severity: Severity,
    /// What happened.
    pub code: Code,
    /// One line for people.
    pub message: String,
    /// The message concerned.
    pub msg_id: Option<MessageId>,
    /// Which try.
    pub attempt: Option<u32>,
    /// When.
    pub at: Timestamp,
    /// What was decided.
    pub directive: Option<Directive>,
    /// How many failures of this code, process and severity it stands for, where they came too fast to be told one by
    /// one; the last of them is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl ErrorEvent {
    /// A failure of `node`, not of a message.
    pub fn new(node: &str, severity: Severity, code: Code, message: impl AsRef<str>, at: Timestamp) -> ErrorEvent {
        let message = super::record::RecordError::new(code, message).message;
        ErrorEvent {
            v: 1,
            id: Uuid::now_v7(),
            node: node.to_owned(),
            process: None,
            severity,
            code,
            message,
            msg_id: None,
            attempt: None,
            at,
            directive: None,
            count: None,
        }
    }

    /// The event's JSON.
    pub fn encode(&self) -> Vec<u8> {
        // Serializing this struct cannot fail: its keys are strings and it holds no foreign type.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_subject_tokens_and_read_back() {
        for (name, meaning) in Code::TABLE {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
            assert!(!meaning.trim().is_empty(), "{name}");
            let code: Code = serde_json::from_value((*name).into()).unwrap();
            assert_eq!(code.as_str(), *name);
        }
        assert_eq!(serde_json::from_str::<Code>("\"from_the_future\"").unwrap(), Code::Other);
    }
}
