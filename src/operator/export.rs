//! Messages outside the broker: what is needed to send the same again, as lines of JSON.
//!
//! Owns the format of an export: a first line that says what it is, then one message a line, in the order in which they were
//! stored. A body is kept to the byte. Signatures and dedup keys are not part of it: they are of the message that was sent.

use crate::broker::RawMessage;
use crate::model::header::{MsgHeaders, RawHeaders, id_of, names};
use crate::model::id::{MessageId, MsgRef, StreamSeq};
use crate::model::message::{Kind, StreamKind};
use crate::model::name::{LaneToken, MethodName, Target};
use crate::model::subject::Names;
use crate::model::time::Timestamp;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hash::Hash;

/// What the first line says.
const WHAT: &str = "edgeward messages";

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    v: u32,
    export: String,
}

/// A message that can be sent again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    /// The format: 1.
    pub v: u32,
    /// The stream that held it.
    pub stream: StreamKind,
    /// Its sequence there.
    pub seq: StreamSeq,
    /// When it was stored.
    pub stored_at: Timestamp,
    /// Its id.
    pub id: MessageId,
    /// Its sender's token.
    pub from: String,
    /// Whom it was for.
    pub to: String,
    /// Its kind.
    pub kind: Kind,
    /// Its method.
    pub method: MethodName,
    /// Its lane token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<LaneToken>,
    /// Its headers that steer how it is run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The body, where it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    /// The body in base64, where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

/// Why a message cannot be sent again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at} cannot be sent again: {reason}")]
pub struct Unsendable {
    /// Where it is stored.
    pub at: MsgRef,
    /// What is in the way.
    pub reason: String,
}

/// Why a text is no export.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadExport {
    /// The first line says something else, or nothing.
    #[error("it is no export of `edgeward history --export`")]
    NoExport,
    /// It is one of a newer release.
    #[error("it is an export of a newer release (format {0})")]
    Newer(u32),
    /// Two files in one: which order was meant is not known.
    #[error("line {line}: a second export begins here; replay one file after the other")]
    Second {
        /// The line, from 1.
        line: usize,
    },
    /// A line is no message.
    #[error("line {line} is no message: {reason}")]
    Line {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// There is nothing after the first line.
    #[error("there is no message in it")]
    Empty,
}

impl Exported {
    /// What is needed to send a stored message again.
    pub fn of(names_: &Names, stream: StreamKind, raw: &RawMessage) -> Result<Exported, Unsendable> {
        let at = MsgRef { stream, seq: raw.seq, stored_at: raw.stored_at };
        let bad = |reason: String| Unsendable { at, reason };
        let subject = names_.parse_message(&raw.subject).map_err(|error| bad(format!("its subject {error}")))?;
        if subject.kind == Kind::Control {
            return Err(bad("control messages have verbs of their own".to_owned()));
        }
        let headers = MsgHeaders::parse(&raw.headers, subject.kind).map_err(|error| bad(error.to_string()))?;
        let mut steering = RawHeaders::default();
        MsgHeaders { id: None, replay_of: None, ..headers }.write(subject.kind, &mut steering);
        let steering = steering.0.into_iter().filter(|(name, _)| name != names::KIND).collect();
        let (body, body_base64) = match std::str::from_utf8(&raw.body) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(BASE64.encode(&raw.body))),
        };
        Ok(Exported {
            v: 1,
            stream,
            seq: raw.seq,
            stored_at: raw.stored_at,
            id: id_of(&raw.headers, at),
            from: subject.from.to_string(),
            to: subject.to.to_string(),
            kind: subject.kind,
            method: subject.method,
            lane: subject.lane,
            headers: steering,
            body,
            body_base64,
        })
    }

    /// Where it was stored.
    pub fn at(&self) -> MsgRef {
        MsgRef { stream: self.stream, seq: self.seq, stored_at: self.stored_at }
    }

    /// What the messages of one call to several targets have in common.
    pub(super) fn of_its_call(&self) -> impl Eq + Hash + '_ {
        let Exported { from, id, kind, method, lane, body, body_base64, .. } = self;
        (from, id, kind, method, lane, body, body_base64)
    }

    /// Whom it was for.
    pub fn target(&self) -> Result<Target, Unsendable> {
        self.to.parse().map_err(|error: crate::model::name::BadName| self.bad(error.to_string()))
    }

    /// Its headers.
    pub fn steering(&self) -> Result<MsgHeaders, Unsendable> {
        let raw = RawHeaders(self.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect());
        MsgHeaders::parse(&raw, self.kind).map_err(|error| self.bad(error.to_string()))
    }

    /// Its body.
    pub fn body(&self) -> Result<Bytes, Unsendable> {
        match (&self.body, &self.body_base64) {
            (Some(text), None) => Ok(Bytes::from(text.clone())),
            (None, Some(encoded)) => {
                let decoded = BASE64.decode(encoded);
                decoded.map(Bytes::from).map_err(|error| self.bad(format!("`body_base64`: {error}")))
            }
            _ => Err(self.bad("it has no body, or two".to_owned())),
        }
    }

    fn bad(&self, reason: String) -> Unsendable {
        Unsendable { at: self.at(), reason }
    }
}

/// The text of an export.
pub fn write(messages: &[Exported]) -> String {
    // Serializing these structs cannot fail: their keys are strings and they hold no foreign type.
    let line = |text: Result<String, serde_json::Error>| text.unwrap_or_default() + "\n";
    let head = line(serde_json::to_string(&Head { v: 1, export: WHAT.to_owned() }));
    messages.iter().fold(head, |text, message| text + &line(serde_json::to_string(message)))
}

/// Reads an export.
pub fn read(text: &str) -> Result<Vec<Exported>, BadExport> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let head = lines.next().and_then(|(_, line)| serde_json::from_str::<Head>(line).ok());
    match head {
        Some(head) if head.export == WHAT && head.v == 1 => {}
        Some(head) if head.export == WHAT => return Err(BadExport::Newer(head.v)),
        _ => return Err(BadExport::NoExport),
    }
    let mut messages = Vec::new();
    for (at, line) in lines {
        let line_number = at + 1;
        if serde_json::from_str::<Head>(line).is_ok() {
            return Err(BadExport::Second { line: line_number });
        }
        let bad = |reason: String| BadExport::Line { line: line_number, reason };
        let message: Exported = serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
        let checked = message.target().map(drop).and_then(|()| message.steering().map(drop));
        checked.and_then(|()| message.body().map(drop)).map_err(|error| bad(error.reason))?;
        messages.push(message);
    }
    if messages.is_empty() { Err(BadExport::Empty) } else { Ok(messages) }
}

#[cfg(test)]
mod tests {
    use super::super::samples::raw;
    use super::*;
    use proptest::prelude::*;

    fn exported(subject: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Exported, Unsendable> {
        Exported::of(&Names::default(), StreamKind::Commands, &raw(subject, headers, body))
    }

    #[test]
    fn what_steers_a_message_is_kept_and_what_names_it_is_not() {
        let headers = [("fleet-timeout", "20s"), ("Fleet-Id", "a"), ("Fleet-Replay-Of", "3"), ("Nats-Msg-Id", "x")];
        let message = exported("fleet.msg.ship1.command.ops.shell.l1", &headers, b"uname -a").unwrap();
        assert_eq!(message.headers.into_iter().collect::<Vec<_>>(), [("Fleet-Timeout".to_owned(), "20s".to_owned())]);
        assert_eq!((message.id.as_str(), message.to.as_str()), ("a", "ship1"));
        assert_eq!(message.lane.map(|lane| lane.to_string()), Some("l1".to_owned()));
    }

    #[test]
    fn what_no_node_would_take_is_not_sent_again() {
        for (subject, headers) in [
            ("fleet.msg.ship1.command.ops.shell.a.b", &[][..]),
            ("fleet.msg.ship1.control.ops.cancel", &[]),
            ("fleet.msg.ship1.command.ops.shell", &[("Fleet-Colour", "red")]),
        ] {
            let error = exported(subject, headers, b"x").unwrap_err();
            assert!(error.to_string().starts_with("s7 cannot be sent again: "), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_export_is_told_with_its_line() {
        let one = write(&[exported("fleet.msg.ship1.command.ops.shell", &[], b"x").unwrap()]);
        assert_eq!(read(""), Err(BadExport::NoExport));
        assert_eq!(read("{\"to\":\"ship1\"}"), Err(BadExport::NoExport));
        assert_eq!(read(&write(&[])), Err(BadExport::Empty));
        assert_eq!(read(&one.replace("\"v\":1,\"export\"", "\"v\":2,\"export\"")), Err(BadExport::Newer(2)));
        assert_eq!(read(&format!("{one}{one}")), Err(BadExport::Second { line: 3 }));
        for (from, to) in
            [("\"body\":\"x\"", "\"bodi\":\"x\""), ("\"body\":\"x\"", "\"v2\":1"), ("ship1", "sh.ip1"), ("}\n", "\n")]
        {
            let broken = one.lines().next().unwrap().to_owned() + "\n" + &one.lines().nth(1).unwrap().replace(from, to);
            let broken = if from == "}\n" { one.trim_end().trim_end_matches('}').to_owned() } else { broken };
            assert!(matches!(read(&broken), Err(BadExport::Line { line: 2, .. })), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn an_export_reads_back_to_the_byte(bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 1..4)) {
            let all: Vec<Exported> = bodies
                .iter()
                .map(|body| exported("fleet.msg.@web.command.ops.shell", &[("Fleet-Retries", "2")], body).unwrap())
                .collect();
            let again = read(&write(&all)).unwrap();
            prop_assert_eq!(&again, &all);
            for (message, body) in again.iter().zip(&bodies) {
                prop_assert_eq!(&message.body().unwrap()[..], &body[..]);
            }
        }
    }
}
