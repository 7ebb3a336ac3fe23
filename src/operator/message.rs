//! A stored message as its sender sees it again: whom it is for, which id it has, until when it may begin.
//!
//! Owns reading whatever the streams hold, also what no node will accept. Never keeps a body.

use crate::broker::RawMessage;
use crate::model::header::{MsgHeaders, id_of};
use crate::model::id::{MessageId, MsgRef};
use crate::model::message::{Kind, StreamKind};
use crate::model::name::Target;
use crate::model::settings::{Defaults, Settings};
use crate::model::subject::Names;
use crate::model::time::Timestamp;

/// How many characters of a body are kept, to be recognised by.
const PREVIEW: usize = 80;

/// A message of `FLEET_COMMANDS` or `FLEET_EVENTS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where and when it was stored.
    pub at: MsgRef,
    /// Its id, derived from the sequence where its sender gave none.
    pub id: MessageId,
    /// Whom it is for, where that can be read.
    pub to: Option<Target>,
    /// Its kind, where that can be read.
    pub kind: Option<Kind>,
    /// The sender's token, or `_`.
    pub from: String,
    /// The method's token, or `_`.
    pub method: String,
    /// The lane token.
    pub lane: Option<String>,
    /// When it may no longer begin, where the message says so itself.
    pub start_by: Option<Timestamp>,
    /// The first line of the body, cut, control characters escaped; empty where it is not text.
    pub preview: String,
    /// The body's size in bytes.
    pub size: usize,
}

impl Message {
    /// Reads what can be read of a stored message.
    pub fn read(names: &Names, stream: StreamKind, raw: &RawMessage) -> Message {
        let at = MsgRef { stream, seq: raw.seq, stored_at: raw.stored_at };
        let loose = names.read_loosely(&raw.subject);
        let parsed = names.parse_message(&raw.subject).ok();
        let headers = loose.kind.and_then(|kind| MsgHeaders::parse(&raw.headers, kind).ok());
        // Without a header the deadline is weeks away and depends on the node's spec: not worth a word here.
        let start_by = match (&parsed, &headers) {
            (Some(subject), Some(headers)) if headers.start_by.is_some() => {
                let defaults = Defaults::default();
                Some(Settings::resolve(headers, subject.kind, &subject.method, at.stored_at, &defaults).start_by)
            }
            _ => None,
        };
        Message {
            at,
            id: id_of(&raw.headers, at),
            to: loose.to,
            kind: loose.kind,
            from: loose.from,
            method: loose.method,
            lane: parsed.and_then(|subject| subject.lane).map(|lane| lane.to_string()),
            start_by,
            preview: preview(&raw.body),
            size: raw.body.len(),
        }
    }

    /// The node it is for, or the group as `@name`, or `_`.
    pub fn to_text(&self) -> String {
        self.to.as_ref().map_or_else(|| "_".to_owned(), ToString::to_string)
    }

    /// Its lane on any node, as `status` writes lanes.
    pub fn lane_text(&self) -> String {
        let kind = self.kind.map_or("_", Kind::as_str);
        let base = format!("{kind}.{}.{}", self.from, self.method);
        match &self.lane {
            Some(lane) => format!("{base}.{lane}"),
            None => base,
        }
    }
}

fn preview(body: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(&body[..body.len().min(PREVIEW * 4)]).or_else(|e| match e.error_len() {
        // Cut inside a character.
        None => std::str::from_utf8(&body[..e.valid_up_to()]),
        Some(_) => Err(e),
    }) else {
        return String::new();
    };
    let line = text.trim_start().lines().next().unwrap_or_default();
    line.chars().take(PREVIEW).flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::samples::raw;
    use super::*;

    #[test]
    fn a_message_is_read_with_its_lane_and_deadline() {
        let raw = raw("fleet.msg.ship1.command.ops.shell.l1", &[("Fleet-Id", "a"), ("Fleet-Start-By", "1s")], b"ls\nx");
        let message = Message::read(&Names::default(), StreamKind::Commands, &raw);
        assert_eq!((message.id.as_str(), message.preview.as_str()), ("a", "ls"));
        assert_eq!(message.lane_text(), "command.ops.shell.l1");
        assert_eq!(message.start_by, Some(Timestamp::from_nanos(2_000_000_000)));
    }

    #[test]
    fn what_no_node_accepts_is_read_as_far_as_it_goes() {
        let raw = raw("fleet.msg.ship1.command.o$s.shell.a.b", &[("Fleet-Nonsense", "1")], &[0xff; 400]);
        let message = Message::read(&Names::default(), StreamKind::Commands, &raw);
        assert_eq!((message.from.as_str(), message.id.as_str(), message.preview.as_str()), ("_", "s7", ""));
        assert_eq!(message.to_text(), "ship1");
    }
}
