//! Where a session begins, and what the broker says of the consumer.
//!
//! Owns the choice of what is looked at first. Never resets and never pulls.

use super::super::connect::Broker;
use super::super::error::BrokerError;
use super::{Found, Resume, SessionError, Start};
use crate::model::id::{MsgRef, StreamSeq};
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

/// Where to look first.
pub(super) enum Place {
    /// The session begins here, without a look: nothing was taken yet, or the broker's ack floor tells enough.
    Trusted(StreamSeq),
    /// The anchor must be there.
    At { position: MsgRef, anchor: MsgRef },
}

/// Chooses where to look first.
pub(super) async fn place(
    broker: &Broker,
    name: &str,
    node: &NodeName,
    resume: &Resume,
) -> Result<Place, SessionError> {
    let (Some(position), Some((anchor, size))) = (resume.last, resume.anchor) else {
        return Ok(Place::Trusted(resume.start));
    };
    if anchor.seq < resume.start {
        return Ok(Place::Trusted(resume.start));
    }
    if size > LARGE_ANCHOR {
        let info: ConsumerInfo = broker.api(&format!("CONSUMER.INFO.{name}.{node}"), &serde_json::Value::Null).await?;
        if info.ack_floor.stream_seq == anchor.seq && Some(&info.created) == resume.created.as_ref() {
            return Ok(Place::Trusted(StreamSeq(anchor.seq.0 + 1)));
        }
    }
    Ok(Place::At { position, anchor })
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
