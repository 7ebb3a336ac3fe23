//! Where a session begins, and what the broker says of the consumer.
//!
//! Owns the choice of the first sequence. Never resets and never pulls.

use super::super::connect::Broker;
use super::super::error::BrokerError;
use super::{Found, Resume, SessionError, Start};
use crate::model::id::StreamSeq;
use crate::model::name::NodeName;
use crate::model::time::Timestamp;
use serde::Deserialize;
use std::time::Duration;

/// An anchor above this size is not fetched again only to be recognised, where the broker's ack floor proves as much.
const LARGE_ANCHOR: u64 = 16 * 1024;

#[derive(Deserialize)]
pub(super) struct ConsumerInfo {
    created: String,
    #[serde(default)]
    ts: Option<Timestamp>,
    ack_floor: Floor,
}

#[derive(Deserialize)]
struct Floor {
    stream_seq: StreamSeq,
}

impl ConsumerInfo {
    /// The start that this answer tells of.
    pub(super) fn start(&self, found: Found, is_caught_up: bool) -> Start {
        Start {
            found,
            broker_time: self.ts.unwrap_or_else(Timestamp::local_now),
            created: self.created.clone(),
            is_caught_up,
        }
    }
}

/// The sequence to begin at.
pub(super) async fn place(
    broker: &Broker,
    name: &str,
    node: &NodeName,
    resume: &Resume,
) -> Result<StreamSeq, SessionError> {
    let Some((last, size)) = resume.last else { return Ok(resume.start) };
    if size > LARGE_ANCHOR {
        let path = format!("CONSUMER.INFO.{name}.{node}");
        // One whose server is gone never tells.
        let info: ConsumerInfo = broker.api_within(&path, &serde_json::Value::Null, resume.patience).await?;
        if info.ack_floor.stream_seq == last.seq && Some(&info.created) == resume.created.as_ref() {
            return Ok(StreamSeq(last.seq.0 + 1));
        }
    }
    Ok(last.seq.max(resume.start))
}

/// A consumer that is missing answers no RESET at all; asking for it tells.
pub(super) async fn missing_or(
    broker: &Broker,
    name: &str,
    node: &NodeName,
    error: BrokerError,
    patience: Duration,
) -> SessionError {
    const CONSUMER_NOT_FOUND: u64 = 10014;
    const STREAM_NOT_FOUND: u64 = 10059;
    let path = format!("CONSUMER.INFO.{name}.{node}");
    let info = broker.api_within::<serde_json::Value>(&path, &serde_json::Value::Null, patience).await;
    match info.err().and_then(|e| e.code()) {
        Some(CONSUMER_NOT_FOUND | STREAM_NOT_FOUND) => SessionError::ConsumerMissing,
        _ => error.into(),
    }
}
