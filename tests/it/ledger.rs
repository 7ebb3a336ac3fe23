//! What the streams hold about a message: read back whole and counted, for tests about what must be there exactly once.

use crate::harness::{Fleet, SOON, wait_until};
use edgeward::broker::{From, RawMessage};
use edgeward::model::error_event::{Code, ErrorEvent, Severity};
use edgeward::model::id::StreamSeq;
use edgeward::model::record::Record;
use edgeward::model::subject::RecordStream;

/// More than any test stores.
const LIMIT: usize = 20_000;

/// Every message of a record stream whose subject matches, in stream order.
pub async fn stored(fleet: &Fleet, stream: RecordStream, filter: &str) -> Vec<RawMessage> {
    let stream = fleet.client.names().record_stream(stream);
    let read = fleet.client.read_all(&stream, filter, From::Seq(StreamSeq(1)), LIMIT).await;
    read.unwrap_or_else(|error| panic!("{stream} {filter}: {error}"))
}

/// Every record whose subject matches, in stream order; what is no record is left out.
pub async fn records(fleet: &Fleet, filter: &str) -> Vec<Record> {
    let stored = stored(fleet, RecordStream::Acks, filter).await;
    stored.iter().filter_map(|message| serde_json::from_slice(&message.body).ok()).collect()
}

/// The terminal records about one stored message, under whatever subject.
pub async fn acks_of(fleet: &Fleet, stream: &str, seq: StreamSeq) -> Vec<Record> {
    let all = records(fleet, "fleet.ack.>").await;
    all.into_iter().filter(|record| record.stream == stream && record.seq == seq).collect()
}

/// Waits for the first terminal record about a stored message, under whatever subject.
pub async fn ack_of(fleet: &Fleet, stream: &str, seq: StreamSeq) -> Record {
    let what = format!("the terminal record of {stream} {seq}");
    wait_until(SOON, what, async || acks_of(fleet, stream, seq).await.into_iter().next()).await
}

/// Waits for the error event about a message with this code; it has the severity and the process that it should have.
pub async fn error_of(fleet: &Fleet, node: &str, severity: Severity, code: Code, id: &str) -> ErrorEvent {
    let filter = format!("fleet.error.{node}.{}.{code}", severity.as_str());
    wait_until(SOON, format!("an error event {filter} about {id}"), async || {
        let stored = stored(fleet, RecordStream::Errors, &filter).await;
        let events = stored.iter().filter_map(|message| serde_json::from_slice::<ErrorEvent>(&message.body).ok());
        let about = |event: &ErrorEvent| event.msg_id.as_ref().is_some_and(|of| of.as_str() == id);
        events.into_iter().find(about).inspect(|event| assert_eq!((event.code, event.severity), (code, severity)))
    })
    .await
}
