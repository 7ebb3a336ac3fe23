//! How full a stream is, and how far it goes.
//!
//! Owns reading that, purging from the oldest message on, and giving a stream more room. Never decides when.

use super::explain;
use crate::broker::connect::Broker;
use crate::broker::error::BrokerError;
use crate::model::id::StreamSeq;
use crate::model::message::StreamKind;
use crate::model::subject::RecordStream;
use crate::model::time::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// A stream's extent, as its leader knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    /// The first sequence kept; 0 where it never held a message.
    pub first: StreamSeq,
    /// The last sequence stored; 0 where it never held a message.
    pub last: StreamSeq,
    /// How many messages it holds.
    pub messages: u64,
    /// How many bytes they take.
    pub bytes: u64,
    /// How many it may take; `None` without a limit.
    pub max_bytes: Option<u64>,
    /// How long it keeps a message; `None` without a limit.
    pub max_age: Option<Duration>,
    /// When its first message was stored.
    pub first_at: Timestamp,
    /// When its last message was stored.
    pub last_at: Timestamp,
    /// The broker's time.
    pub now: Timestamp,
    /// When it was made.
    pub created: Timestamp,
    /// Where it was made to begin, where that is not at 1: above what old records named.
    pub begins_at: Option<StreamSeq>,
}

impl StreamState {
    /// True where it is fuller than so many hundredths of its limit.
    pub fn is_above(&self, percent: u64) -> bool {
        self.max_bytes.is_some_and(|limit| self.bytes > limit / 100 * percent)
    }
}

#[derive(Deserialize)]
struct Info {
    config: Config,
    state: State,
    ts: Timestamp,
    created: Timestamp,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    max_age: u64,
    #[serde(default)]
    max_bytes: i64,
    #[serde(default)]
    first_seq: Option<StreamSeq>,
}

#[derive(Deserialize)]
struct State {
    first_seq: StreamSeq,
    last_seq: StreamSeq,
    messages: u64,
    bytes: u64,
    first_ts: Timestamp,
    last_ts: Timestamp,
}

impl Broker {
    /// How a stream stands.
    pub async fn stream_state(&self, stream: &str) -> Result<StreamState, BrokerError> {
        let Info { config, state, ts, created } = self.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await?;
        Ok(StreamState {
            first: state.first_seq,
            last: state.last_seq,
            messages: state.messages,
            bytes: state.bytes,
            max_bytes: u64::try_from(config.max_bytes).ok().filter(|bytes| *bytes > 0),
            max_age: Some(config.max_age).filter(|age| *age > 0).map(Duration::from_nanos),
            first_at: state.first_ts,
            last_at: state.last_ts,
            now: ts,
            created,
            begins_at: config.first_seq.filter(|first| first.0 > 1),
        })
    }

    /// The last sequence of a message stream, as its leader knows it; 0 where it never held a message.
    pub async fn last_seq(&self, stream: StreamKind) -> Result<StreamSeq, BrokerError> {
        self.stream_state(&self.names().stream(stream)).await.map(|state| state.last)
    }

    /// Up to when a stream of records has lost what it held, to age or size: the time of its first record kept, or, where it
    /// is empty, of the last one that it had. `None` where it holds all that it ever did.
    pub async fn dropped_until(&self, stream: RecordStream) -> Result<Option<Timestamp>, BrokerError> {
        let state = self.stream_state(&self.names().record_stream(stream)).await?;
        Ok(match state {
            StreamState { first: StreamSeq(0 | 1), .. } => None,
            StreamState { messages: 0, last_at, .. } => Some(last_at),
            StreamState { first_at, .. } => Some(first_at),
        })
    }

    /// How long both message streams keep what they hold; `None` where that has no limit.
    pub async fn retention(&self) -> Result<Option<Duration>, BrokerError> {
        let mut ages = Vec::new();
        for kind in StreamKind::ALL {
            ages.extend(self.stream_state(&self.names().stream(kind)).await?.max_age);
        }
        Ok(ages.into_iter().min())
    }

    /// Removes all messages of a stream below this sequence.
    pub async fn purge_below(&self, stream: &str, seq: StreamSeq) -> Result<(), BrokerError> {
        self.api::<Value>(&format!("STREAM.PURGE.{stream}"), &json!({ "seq": seq })).await.map(drop)
    }

    /// Sets how many bytes a stream may take.
    pub async fn set_max_bytes(&self, stream: &str, bytes: u64) -> Result<(), BrokerError> {
        #[derive(Deserialize)]
        struct Whole {
            config: Map<String, Value>,
        }
        let Whole { mut config } = self.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await?;
        config.insert("max_bytes".to_owned(), json!(bytes));
        let updated = self.api::<Value>(&format!("STREAM.UPDATE.{stream}"), &Value::Object(config)).await;
        updated.map(drop).map_err(|error| explain(self, stream, error))
    }
}
