//! Where a message stream that is made anew begins: above every sequence that old records name.
//!
//! Owns that search. It happens once, when a message stream is missing; it keeps one page in memory.

use crate::broker::connect::Broker;
use crate::broker::error::BrokerError;
use crate::broker::read::{From, Page, Query, RawMessage};
use crate::model::header::names;
use crate::model::id::StreamSeq;
use crate::model::message::StreamKind;
use crate::model::node::Starts;
use crate::model::subject::RecordStream;
use serde::Deserialize;

/// Sequences above this are nobody's: JSON numbers are exact up to here, and a forged record must not use up the rest.
const LARGEST: u64 = 1 << 53;

/// The sequence from which a new stream of this kind can begin so that none is given twice.
///
/// Records come in the order in which messages ended, so the largest sequence may be in any of them: all are looked at.
pub(super) async fn sequence_above_records(broker: &Broker, kind: StreamKind) -> Result<StreamSeq, BrokerError> {
    let names = broker.names();
    let stream = names.stream(kind);
    let mut largest = 0;
    let acks = names.record_stream(RecordStream::Acks);
    visit(broker, &acks, ">", |record| {
        largest = largest.max(named_by_record(record, &stream).unwrap_or(0));
    })
    .await?;
    let nodes = names.record_stream(RecordStream::Nodes);
    visit(broker, &nodes, ">", |entry| {
        largest = largest.max(named_by_node(entry, kind).unwrap_or(0));
    })
    .await?;
    Ok(StreamSeq(largest + 1))
}

fn named_by_record(record: &RawMessage, stream: &str) -> Option<u64> {
    let is_about = record.headers.get(names::STREAM) == Some(stream);
    let seq = record.headers.get(names::SEQ)?.parse().ok();
    seq.filter(|seq| is_about && *seq < LARGEST)
}

/// A node's `spec` and `status` name the first and the last message that it knows.
fn named_by_node(entry: &RawMessage, kind: StreamKind) -> Option<u64> {
    #[derive(Deserialize)]
    struct Known {
        #[serde(default)]
        start: Starts,
        #[serde(default)]
        position: Starts,
    }
    let known: Known = serde_json::from_slice(&entry.body).ok()?;
    // A start is where messages will be; the position is one that was there.
    let start = known.start.get(kind).map_or(0, |seq| seq.0.saturating_sub(1));
    let position = known.position.get(kind).map_or(0, |seq| seq.0);
    Some(start.max(position)).filter(|seq| *seq < LARGEST)
}

async fn visit(
    broker: &Broker,
    stream: &str,
    filter: &str,
    mut see: impl FnMut(&RawMessage),
) -> Result<(), BrokerError> {
    /// Records are small; a page of them is some megabytes at most.
    const PAGE: usize = 1000;
    let mut next = StreamSeq(1);
    loop {
        let query = Query { stream: stream.to_owned(), filter: filter.to_owned(), from: From::Seq(next), batch: PAGE };
        let page = match broker.read(&query).await {
            Ok(page) => page,
            // The stream is not there either.
            Err(BrokerError::NoResponders { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let Page { messages, pending } = page;
        messages.iter().for_each(&mut see);
        match messages.last() {
            Some(last) if pending > 0 => next = StreamSeq(last.seq.0 + 1),
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::header::RawHeaders;
    use crate::model::time::Timestamp;
    use bytes::Bytes;

    fn message(headers: RawHeaders, body: &'static str) -> RawMessage {
        let (seq, stored_at) = (StreamSeq(1), Timestamp::from_nanos(0));
        RawMessage { subject: String::new(), seq, stored_at, headers, body: Bytes::from(body) }
    }

    #[test]
    fn records_name_sequences_of_their_stream_alone() {
        let record =
            |seq: &str| message(RawHeaders::default().with(names::STREAM, "FLEET_COMMANDS").with(names::SEQ, seq), "");
        assert_eq!(named_by_record(&record("42"), "FLEET_COMMANDS"), Some(42));
        assert_eq!(named_by_record(&record("42"), "FLEET_EVENTS"), None);
        assert_eq!(named_by_record(&record("18446744073709551615"), "FLEET_COMMANDS"), None, "forged");
        assert_eq!(named_by_record(&message(RawHeaders::default(), ""), "FLEET_COMMANDS"), None);
    }

    #[test]
    fn nodes_name_their_start_and_position() {
        let spec = message(RawHeaders::default(), r#"{"start":{"commands":7,"events":null}}"#);
        assert_eq!(named_by_node(&spec, StreamKind::Commands), Some(6));
        let status = message(RawHeaders::default(), r#"{"position":{"commands":9,"events":3}}"#);
        assert_eq!(named_by_node(&status, StreamKind::Commands), Some(9));
        assert_eq!(named_by_node(&status, StreamKind::Events), Some(3));
    }
}
