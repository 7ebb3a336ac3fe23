//! How messages are told apart: ids, stored positions, and how a person refers to one.
//!
//! Owns the rule of which id a message has and which ids a person may give. Never looks one up.

use super::message::StreamKind;
use super::name::{BadName, check_token};
use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use uuid::Uuid;

/// A sequence in one of the streams, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamSeq(pub u64);

impl fmt::Display for StreamSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One stored message, told from every other for ever: sequences alone repeat when a stream is made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MsgRef {
    /// The stream it is stored in.
    pub stream: StreamKind,
    /// Its sequence there.
    pub seq: StreamSeq,
    /// When the broker stored it.
    pub stored_at: Timestamp,
}

impl fmt::Display for MsgRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.stream.letter(), self.seq)
    }
}

/// The id of a message that people see: given by the sender, or `s42`/`e42` from where it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MessageId(Arc<str>);

impl MessageId {
    /// A fresh id, as our tools make them: a UUIDv7, which tells the time from which to look for it.
    pub fn fresh() -> MessageId {
        MessageId(Uuid::now_v7().to_string().into())
    }

    /// An id that a sender gives: 1–64 of `[A-Za-z0-9_-]`, and nothing that reads as another way to name a message.
    pub fn given(text: &str) -> Result<MessageId, BadName> {
        check_token("id", text, 64)?;
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        let sequence = text.strip_prefix(['s', 'e']).is_some_and(digits);
        let reason = match text {
            "last" => "is reserved",
            t if t.starts_with('-') => "starts with `-`",
            t if digits(t) => "is all digits, which reads as a stored sequence",
            _ if sequence => "reads as a stored sequence",
            _ => return Ok(MessageId(text.into())),
        };
        Err(BadName::new("id", text, reason))
    }

    /// The id of a message whose sender gave none: `s42` for commands and control, `e42` for events.
    pub fn derived(stream: StreamKind, seq: StreamSeq) -> MessageId {
        MessageId(format!("{}{seq}", stream.letter()).into())
    }

    /// The id under which a record goes when another message's record already stands under this one.
    pub fn reused(&self, seq: StreamSeq) -> MessageId {
        MessageId(format!("{}-s{seq}", self.0).into())
    }

    /// One id for a message that two hubs may both send about `cause` and `node`: UUIDv5, the same wherever it is made.
    pub fn from_cause(cause: MsgRef, node: &str) -> MessageId {
        let name = format!("{}/{}/{}/{node}", cause.stream.letter(), cause.seq, cause.stored_at);
        MessageId(Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("edgeward:{name}").as_bytes()).to_string().into())
    }

    /// The id as text: one subject token.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For a UUIDv7: when it was made, so that a search can begin there.
    pub fn made_at(&self) -> Option<Timestamp> {
        let uuid = Uuid::parse_str(&self.0).ok().filter(|u| u.get_version_num() == 7)?;
        let (secs, nanos) = uuid.get_timestamp()?.to_unix();
        let nanos = i64::try_from(secs).ok()?.checked_mul(1_000_000_000)?.checked_add(i64::from(nanos))?;
        Some(Timestamp::from_nanos(nanos))
    }
}

impl TryFrom<String> for MessageId {
    type Error = BadName;
    /// Reads an id that edgeward wrote: any token, the derived forms too.
    fn try_from(text: String) -> Result<MessageId, BadName> {
        check_token("id", &text, 90)?;
        Ok(MessageId(text.into()))
    }
}

impl From<MessageId> for String {
    fn from(id: MessageId) -> String {
        id.0.to_string()
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How a person names a message on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdRef {
    /// An id, to be found by its records or its sender's messages.
    Id(MessageId),
    /// `42`, `s42` (a command's stored sequence) or `e42` (an event's).
    Stored(StreamKind, StreamSeq),
    /// The sender's own newest message.
    Last,
}

impl std::str::FromStr for IdRef {
    type Err = BadName;
    fn from_str(text: &str) -> Result<IdRef, BadName> {
        if text == "last" {
            return Ok(IdRef::Last);
        }
        let (stream, digits) = match text.strip_prefix('e') {
            Some(rest) => (StreamKind::Events, rest),
            None => (StreamKind::Commands, text.strip_prefix('s').unwrap_or(text)),
        };
        if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
            let seq = digits.parse().map_err(|_| BadName::new("sequence", text, "is too large"))?;
            return Ok(IdRef::Stored(stream, StreamSeq(seq)));
        }
        MessageId::given(text).map(IdRef::Id)
    }
}

impl fmt::Display for IdRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdRef::Id(id) => write!(f, "{id}"),
            IdRef::Stored(StreamKind::Commands, seq) => write!(f, "{seq}"),
            IdRef::Stored(StreamKind::Events, seq) => write!(f, "e{seq}"),
            IdRef::Last => f.write_str("last"),
        }
    }
}

/// Identifies a node's journal for ever; a node whose journal was lost gets a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JournalId(pub Uuid);

impl JournalId {
    /// A new journal's id.
    pub fn fresh() -> JournalId {
        JournalId(Uuid::new_v4())
    }
}

impl fmt::Display for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_never_reads_as_another_way_to_name_a_message() {
        for good in ["restart-7", "s42x", "e", "s", "A_b-c", "last1"] {
            assert!(MessageId::given(good).is_ok(), "{good}");
        }
        for bad in ["", "42", "s42", "e42", "last", "-x", "a.b", "a b", &"x".repeat(65)] {
            assert!(MessageId::given(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn references_are_ids_sequences_or_last() {
        let stored = |stream, seq| IdRef::Stored(stream, StreamSeq(seq));
        assert_eq!("42".parse::<IdRef>().unwrap(), stored(StreamKind::Commands, 42));
        assert_eq!("s42".parse::<IdRef>().unwrap(), stored(StreamKind::Commands, 42));
        assert_eq!("e42".parse::<IdRef>().unwrap(), stored(StreamKind::Events, 42));
        assert_eq!("last".parse::<IdRef>().unwrap(), IdRef::Last);
        assert!(matches!("restart-7".parse::<IdRef>().unwrap(), IdRef::Id(_)));
        assert!("99999999999999999999999".parse::<IdRef>().is_err());
    }

    #[test]
    fn a_fresh_id_tells_its_time_and_is_allowed() {
        let id = MessageId::fresh();
        assert!(MessageId::given(id.as_str()).is_ok());
        let age = Timestamp::local_now().since(id.made_at().unwrap());
        assert!(age.as_secs() < 5, "{age:?}");
        assert!(MessageId::given("restart-7").unwrap().made_at().is_none());
    }

    #[test]
    fn two_hubs_make_the_same_id_for_one_cause() {
        let cause = MsgRef { stream: StreamKind::Commands, seq: StreamSeq(7), stored_at: Timestamp::from_nanos(5) };
        assert_eq!(MessageId::from_cause(cause, "a"), MessageId::from_cause(cause, "a"));
        assert_ne!(MessageId::from_cause(cause, "a"), MessageId::from_cause(cause, "b"));
    }
}
