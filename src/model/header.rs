//! The headers of a message: parsing what arrives, writing what leaves.
//!
//! Owns names, values and their limits. Never fills in a default; that is `settings`.

use super::id::MessageId;
use super::message::Kind;
use super::time::{StartBy, format_duration, parse_duration};
use std::time::Duration;

/// Header names, as edgeward writes them; they are matched without case.
pub mod names {
    /// The id that people see.
    pub const ID: &str = "Fleet-Id";
    /// The broker's dedup key.
    pub const MSG_ID: &str = "Nats-Msg-Id";
    /// Repeats the subject's kind.
    pub const KIND: &str = "Fleet-Kind";
    /// How long one run may take.
    pub const TIMEOUT: &str = "Fleet-Timeout";
    /// Do not begin later.
    pub const START_BY: &str = "Fleet-Start-By";
    /// Further tries after a failed one.
    pub const RETRIES: &str = "Fleet-Retries";
    /// The wait before the first further try.
    pub const RETRY_WAIT: &str = "Fleet-Retry-Wait";
    /// What to do with a run that a host crash broke off.
    pub const ON_CRASH: &str = "Fleet-On-Crash";
    /// The stream sequence this message repeats.
    pub const REPLAY_OF: &str = "Fleet-Replay-Of";
    /// An operator's signature; kept, not checked.
    pub const SIGNATURE: &str = "Fleet-Signature";
    /// Who signed.
    pub const SIGNER: &str = "Fleet-Signer";
    /// When it was signed.
    pub const SIGNED_AT: &str = "Fleet-Signed-At";
    /// A record's state.
    pub const STATE: &str = "Fleet-State";
    /// The stream of the message that a record is about.
    pub const STREAM: &str = "Fleet-Stream";
    /// The sequence of the message that a record is about.
    pub const SEQ: &str = "Fleet-Seq";
    /// When the message that a record is about was stored.
    pub const STORED_AT: &str = "Fleet-Stored-At";
    /// Of which stream a chunk of output is.
    pub const OUTPUT: &str = "Fleet-Output";
    /// Where in that stream it begins, in bytes.
    pub const OFFSET: &str = "Fleet-Offset";
    /// Which try wrote it.
    pub const ATTEMPT: &str = "Fleet-Attempt";
    /// Stands for a header line that the client could not read: its text, escaped and shortened.
    pub const MALFORMED: &str = "Edgeward-Malformed";
    /// Compare-and-set on the last message of the subject.
    pub const EXPECTED_LAST_SUBJECT_SEQ: &str = "Nats-Expected-Last-Subject-Sequence";
}

/// Headers in order, as they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawHeaders(pub Vec<(String, String)>);

impl RawHeaders {
    /// The first value of a header, its name matched without case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Appends a header.
    pub fn push(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), value.into()));
    }

    /// With one more header.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> RawHeaders {
        self.push(name, value);
        self
    }

    /// True where the message carries headers that only the broker writes: somebody had it store an answer of its own.
    pub fn from_broker(&self) -> Option<&str> {
        const BROKER_ONLY: [&str; 2] = ["Nats-Stream", "Nats-Sequence"];
        BROKER_ONLY.into_iter().find(|name| self.get(name).is_some())
    }
}

/// How often a failed try is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retries {
    /// So many further tries.
    Times(u32),
    /// Until it succeeds or is cancelled.
    Unlimited,
}

impl Retries {
    /// True where another try is allowed after `attempt` tries.
    pub fn allow(self, attempt: u32) -> bool {
        match self {
            Retries::Times(further) => attempt <= further,
            Retries::Unlimited => true,
        }
    }
}

impl std::str::FromStr for Retries {
    type Err = String;
    fn from_str(text: &str) -> Result<Retries, String> {
        match text.trim() {
            "unlimited" => Ok(Retries::Unlimited),
            number => number.parse().map(Retries::Times).map_err(|_| "is not a number or `unlimited`".to_owned()),
        }
    }
}

impl std::fmt::Display for Retries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Retries::Times(n) => write!(f, "{n}"),
            Retries::Unlimited => f.write_str("unlimited"),
        }
    }
}

/// What to do with a run that a host crash broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCrash {
    /// End it `interrupted`.
    Report,
    /// Run it again.
    Rerun,
}

impl std::str::FromStr for OnCrash {
    type Err = String;
    fn from_str(text: &str) -> Result<OnCrash, String> {
        match text.trim() {
            "report" => Ok(OnCrash::Report),
            "rerun" => Ok(OnCrash::Rerun),
            _ => Err("is not `report` or `rerun`".to_owned()),
        }
    }
}

impl std::fmt::Display for OnCrash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            OnCrash::Report => "report",
            OnCrash::Rerun => "rerun",
        })
    }
}

/// The headers that steer a message, parsed. What is absent stays `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MsgHeaders {
    /// `Fleet-Id`.
    pub id: Option<MessageId>,
    /// `Fleet-Timeout`.
    pub timeout: Option<Duration>,
    /// `Fleet-Start-By`.
    pub start_by: Option<StartBy>,
    /// `Fleet-Retries`.
    pub retries: Option<Retries>,
    /// `Fleet-Retry-Wait`.
    pub retry_wait: Option<Duration>,
    /// `Fleet-On-Crash`.
    pub on_crash: Option<OnCrash>,
    /// `Fleet-Replay-Of`.
    pub replay_of: Option<u64>,
}

/// A header that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("header `{name}` {reason}")]
pub struct BadHeader {
    /// The header's name as it was written, shortened.
    pub name: String,
    /// What is wrong, a fragment.
    pub reason: String,
}

impl MsgHeaders {
    /// Reads the `Fleet-*` headers of a message of this kind. Unknown ones, repeated ones, values that do not parse, and
    /// lines that are no header at all are refused by name: what does not parse is never defaulted.
    pub fn parse(raw: &RawHeaders, kind: Kind) -> Result<MsgHeaders, BadHeader> {
        if let Some(line) = raw.get(names::MALFORMED) {
            // It is escaped already.
            return Err(BadHeader { name: line.chars().take(200).collect(), reason: "cannot be read".to_owned() });
        }
        let mut headers = MsgHeaders::default();
        let mut seen: Vec<String> = Vec::new();
        for (name, value) in &raw.0 {
            let lower = name.to_ascii_lowercase();
            if !lower.starts_with("fleet-") {
                continue;
            }
            if seen.contains(&lower) {
                return Err(bad(name, "is given twice"));
            }
            headers.read(&lower, value, kind).map_err(|reason| bad(name, reason))?;
            seen.push(lower);
        }
        Ok(headers)
    }

    fn read(&mut self, lower: &str, value: &str, kind: Kind) -> Result<(), String> {
        match lower {
            "fleet-id" => self.id = Some(MessageId::given(value).map_err(|e| e.reason)?),
            "fleet-kind" if value == kind.as_str() => {}
            "fleet-kind" => return Err(format!("is `{}`, the subject says `{kind}`", short(value))),
            "fleet-timeout" => {
                let timeout = parse_duration(value).map_err(|e| e.to_string())?;
                if timeout.is_zero() {
                    return Err("is zero".to_owned());
                }
                self.timeout = Some(timeout);
            }
            "fleet-start-by" => self.start_by = Some(value.parse().map_err(|e: super::time::BadTime| e.to_string())?),
            "fleet-retries" => self.retries = Some(value.parse()?),
            "fleet-retry-wait" => self.retry_wait = Some(parse_duration(value).map_err(|e| e.to_string())?),
            "fleet-on-crash" => self.on_crash = Some(value.parse()?),
            "fleet-replay-of" => self.replay_of = Some(value.parse().map_err(|_| "is not a stream sequence")?),
            "fleet-signature" | "fleet-signer" | "fleet-signed-at" => {}
            _ => return Err("is not known".to_owned()),
        }
        Ok(())
    }

    /// Writes them, for a message of this kind.
    pub fn write(&self, kind: Kind, raw: &mut RawHeaders) {
        let mut put = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                raw.push(name, value);
            }
        };
        put(names::ID, self.id.as_ref().map(ToString::to_string));
        put(names::KIND, Some(kind.to_string()));
        put(names::TIMEOUT, self.timeout.map(format_duration));
        put(names::START_BY, self.start_by.map(|s| s.to_string()));
        put(names::RETRIES, self.retries.map(|r| r.to_string()));
        put(names::RETRY_WAIT, self.retry_wait.map(format_duration));
        put(names::ON_CRASH, self.on_crash.map(|o| o.to_string()));
        put(names::REPLAY_OF, self.replay_of.map(|s| s.to_string()));
    }
}

/// The id that a message without readable `Fleet-Id` has: its `Nats-Msg-Id` where that is an allowed id.
pub fn id_of(raw: &RawHeaders, at: super::id::MsgRef) -> MessageId {
    let given = match raw.get(names::ID) {
        Some(id) => MessageId::given(id).ok(),
        None => raw.get(names::MSG_ID).and_then(|id| MessageId::given(id).ok()),
    };
    given.unwrap_or_else(|| MessageId::derived(at.stream, at.seq))
}

fn bad(name: &str, reason: impl Into<String>) -> BadHeader {
    BadHeader { name: short(name), reason: reason.into() }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{MsgRef, StreamSeq};
    use crate::model::message::StreamKind;
    use crate::model::time::Timestamp;

    fn raw(pairs: &[(&str, &str)]) -> RawHeaders {
        RawHeaders(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn what_is_written_reads_back() {
        let headers = MsgHeaders {
            id: Some(MessageId::given("restart-7").unwrap()),
            timeout: Some(Duration::from_secs(90)),
            start_by: Some(StartBy::After(Duration::from_secs(300))),
            retries: Some(Retries::Unlimited),
            retry_wait: Some(Duration::from_millis(250)),
            on_crash: Some(OnCrash::Rerun),
            replay_of: Some(7),
        };
        let mut written = RawHeaders::default();
        headers.write(Kind::Command, &mut written);
        assert_eq!(MsgHeaders::parse(&written, Kind::Command).unwrap(), headers);
    }

    #[test]
    fn names_are_matched_without_case_and_foreign_ones_are_left_alone() {
        let headers = MsgHeaders::parse(&raw(&[("fleet-TIMEOUT", "5s"), ("X-Trace", "1")]), Kind::Command).unwrap();
        assert_eq!(headers.timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn what_does_not_parse_is_refused_by_name() {
        for (name, value) in [
            ("Fleet-Timeout", "soon"),
            ("Fleet-Timeout", "0s"),
            ("Fleet-Retries", "-1"),
            ("Fleet-On-Crash", "maybe"),
            ("Fleet-Kind", "event"),
            ("Fleet-Id", "s42"),
            ("Fleet-Colour", "red"),
            ("Fleet-Replay-Of", "x"),
        ] {
            let error = MsgHeaders::parse(&raw(&[(name, value)]), Kind::Command).unwrap_err();
            assert_eq!(error.name, name);
        }
        let unread = MsgHeaders::parse(&raw(&[(names::MALFORMED, "no colon")]), Kind::Command).unwrap_err();
        assert_eq!(unread.to_string(), "header `no colon` cannot be read");
        assert!(MsgHeaders::parse(&raw(&[("Fleet-Id", "a"), ("fleet-id", "b")]), Kind::Command).is_err());
    }

    #[test]
    fn the_id_falls_back_to_the_msg_id_and_then_to_the_sequence() {
        let at = MsgRef { stream: StreamKind::Events, seq: StreamSeq(9), stored_at: Timestamp::from_nanos(0) };
        assert_eq!(id_of(&raw(&[("Fleet-Id", "a"), ("Nats-Msg-Id", "b")]), at).as_str(), "a");
        assert_eq!(id_of(&raw(&[("Nats-Msg-Id", "b")]), at).as_str(), "b");
        assert_eq!(id_of(&raw(&[("Nats-Msg-Id", "a.b.c")]), at).as_str(), "e9");
        assert_eq!(id_of(&raw(&[("Fleet-Id", "s1"), ("Nats-Msg-Id", "b")]), at).as_str(), "e9");
        assert_eq!(id_of(&raw(&[]), at).as_str(), "e9");
    }

    #[test]
    fn retries_count_further_tries() {
        assert!(!Retries::Times(0).allow(1));
        assert!(Retries::Times(2).allow(2));
        assert!(!Retries::Times(2).allow(3));
        assert!(Retries::Unlimited.allow(1_000_000));
    }
}
