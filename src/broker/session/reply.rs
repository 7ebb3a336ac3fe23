//! The reply subject of a delivered message: where it is stored, and its place in the consumer's order (ADR-15).

use crate::model::id::{MsgRef, StreamSeq};
use crate::model::message::StreamKind;
use crate::model::time::Timestamp;

/// What a reply subject tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) at: MsgRef,
    /// From 1 since the last reset.
    pub(super) consumer_seq: u64,
    /// How many messages wait behind this one.
    pub(super) pending: u64,
}

impl Delivery {
    /// Reads `$JS.ACK.<stream>.<consumer>.<delivered>.<seq>.<consumer seq>.<time>.<pending>`, or the longer form with
    /// domain and account before the stream; that one may grow at its end.
    pub(super) fn parse(reply: &str, stream: StreamKind) -> Option<Delivery> {
        let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let first = match tokens.len() {
            7 => 3,
            9.. => 5,
            _ => return None,
        };
        let number = |at: usize| tokens.get(first + at)?.parse::<u64>().ok();
        let stored_at = Timestamp::from_nanos(i64::try_from(number(2)?).ok()?);
        Some(Delivery {
            at: MsgRef { stream, seq: StreamSeq(number(0)?), stored_at },
            consumer_seq: number(1)?,
            pending: number(3)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let short =
            Delivery::parse("$JS.ACK.FLEET_COMMANDS.ship1.1.42.7.1790000000000000001.3", StreamKind::Commands).unwrap();
        let long = "$JS.ACK._.yyrAQgBn.FLEET_COMMANDS.ship1.1.42.7.1790000000000000001.3.extra";
        assert_eq!(Delivery::parse(long, StreamKind::Commands), Some(short));
        assert_eq!((short.at.seq, short.consumer_seq, short.pending), (StreamSeq(42), 7, 3));
        assert_eq!(short.at.stored_at.nanos(), 1_790_000_000_000_000_001);
        for bad in ["", "$JS.ACK.a.b", "$JS.ACK.s.c.1.x.7.9.3", "_INBOX.x"] {
            assert_eq!(Delivery::parse(bad, StreamKind::Commands), None, "{bad}");
        }
    }
}
