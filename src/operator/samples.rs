//! Messages for the unit tests of this folder, as the broker has them and as they are read.

use super::message::Message;
use crate::broker::RawMessage;
use crate::model::header::RawHeaders;
use crate::model::id::{MessageId, MsgRef, StreamSeq};
use crate::model::message::{Kind, StreamKind};
use crate::model::time::Timestamp;
use bytes::Bytes;

/// A stored message: the seventh, a second after the beginning of time.
pub(super) fn raw(subject: &str, headers: &[(&str, &str)], body: &[u8]) -> RawMessage {
    RawMessage {
        subject: subject.to_owned(),
        seq: StreamSeq(7),
        stored_at: Timestamp::from_nanos(1_000_000_000),
        headers: RawHeaders(headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()),
        body: Bytes::copy_from_slice(body),
    }
}

/// A stored command's place; the higher the later.
pub(super) fn at(seq: u64) -> MsgRef {
    let stored_at = Timestamp::from_nanos(seq.cast_signed() * 10);
    MsgRef { stream: StreamKind::Commands, seq: StreamSeq(seq), stored_at }
}

/// The command `a` of `ops` for the method `shell`.
pub(super) fn message(to: &str, seq: u64) -> Message {
    Message {
        at: at(seq),
        id: MessageId::given("a").unwrap(),
        to: Some(to.parse().unwrap()),
        kind: Some(Kind::Command),
        from: "ops".to_owned(),
        method: "shell".to_owned(),
        lane: None,
        start_by: None,
        preview: String::new(),
        size: 0,
    }
}
