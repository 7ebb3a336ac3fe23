//! What a message is: its kind, the stream it lives in, and the message as the broker stores it.
//!
//! Owns the shapes every other part passes on. Never decides whether a message may run (see `admit`).

use super::header::RawHeaders;
use super::id::MsgRef;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which of the two message streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamKind {
    /// Commands and control messages.
    Commands,
    /// Events.
    Events,
}

impl StreamKind {
    /// Both, in the order in which they are set up.
    pub const ALL: [StreamKind; 2] = [StreamKind::Commands, StreamKind::Events];

    /// The letter of ids derived from a sequence: `s42`, `e42`.
    pub fn letter(self) -> char {
        match self {
            StreamKind::Commands => 's',
            StreamKind::Events => 'e',
        }
    }
}

/// What kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Runs on the node; its result comes back in the ack.
    Command,
    /// Is delivered and acked.
    Event,
    /// Steers the node itself.
    Control,
}

impl Kind {
    /// The subject token.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Command => "command",
            Kind::Event => "event",
            Kind::Control => "control",
        }
    }

    /// The stream that stores messages of this kind.
    pub fn stream(self) -> StreamKind {
        match self {
            Kind::Command | Kind::Control => StreamKind::Commands,
            Kind::Event => StreamKind::Events,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Kind {
    type Err = super::name::BadName;
    fn from_str(text: &str) -> Result<Kind, Self::Err> {
        match text {
            "command" => Ok(Kind::Command),
            "event" => Ok(Kind::Event),
            "control" => Ok(Kind::Control),
            _ => Err(super::name::BadName::new("kind", text, "is not `command`, `event` or `control`")),
        }
    }
}

/// A message as a stream holds it, not yet judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// Where and when it was stored.
    pub at: MsgRef,
    /// The subject it was published to.
    pub subject: String,
    /// Its headers, in order, as the broker gave them.
    pub headers: RawHeaders,
    /// The body.
    pub body: Bytes,
}
