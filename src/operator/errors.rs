//! The errors stream: what failed, from a moment on, and on as it happens.
//!
//! Owns that each error event is told once and in order, whatever the link does. Never judges one.

use super::error::OperatorError;
use super::nodes::stream_facts;
use crate::broker::{Broker, BrokerError, Follower, From as Begin, Query, RawMessage};
use crate::model::error_event::{ErrorEvent, Severity};
use crate::model::id::StreamSeq;
use crate::model::name::NodeName;
use crate::model::subject::RecordStream;
use crate::model::time::{Since, Timestamp};
use futures::FutureExt;
use std::collections::VecDeque;
use std::time::Duration;

/// Error events read at once.
const PAGE: usize = 256;

/// How long a follower waits before it reads again: a plain subscription may miss events.
const READ_AGAIN: Duration = Duration::from_secs(3);

/// Which error events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorFilter {
    /// Only those of this node.
    pub node: Option<NodeName>,
    /// Only those that matter at least so much.
    pub severity: Option<Severity>,
}

/// An error event with where and when it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredError {
    /// Its sequence.
    pub seq: StreamSeq,
    /// When the broker stored it.
    pub stored_at: Timestamp,
    /// The node that its subject names, which rights pin, or `hub`.
    pub node: String,
    /// The event.
    pub event: ErrorEvent,
}

/// Reads the errors stream from a moment on.
pub struct ErrorLog {
    broker: Broker,
    filter: ErrorFilter,
    follower: Option<Follower>,
    next: Begin,
    ready: VecDeque<StoredError>,
    at_end: bool,
}

impl ErrorLog {
    /// From `since` on. With `follow` it does not end with what is there now.
    pub async fn open(
        broker: &Broker,
        filter: ErrorFilter,
        since: Since,
        follow: bool,
    ) -> Result<ErrorLog, OperatorError> {
        let follower =
            if follow { Some(broker.follow(&format!("{}.error.>", broker.names().prefix())).await?) } else { None };
        let now = stream_facts(broker, &broker.names().record_stream(RecordStream::Errors)).await?.now;
        let next = Begin::Time(since.begin(now));
        Ok(ErrorLog { broker: broker.clone(), filter, follower, next, ready: VecDeque::new(), at_end: false })
    }

    /// The next error event, in stream order. `None`: that was all (never while following). Safe to drop and call again.
    pub async fn next(&mut self) -> Result<Option<StoredError>, OperatorError> {
        loop {
            if let Some(error) = self.ready.pop_front() {
                return Ok(Some(error));
            }
            if !self.at_end {
                match self.read_page().await {
                    Ok(()) => continue,
                    // A follower outlives a link that is down.
                    Err(
                        BrokerError::Timeout { .. } | BrokerError::NoResponders { .. } | BrokerError::LinkLost { .. },
                    ) if self.follower.is_some() => {
                        self.at_end = true;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            let Some(follower) = &mut self.follower else { return Ok(None) };
            // Any new event means: read on from where we are. That way nothing is missed and nothing comes twice.
            if let Ok(None) = tokio::time::timeout(READ_AGAIN, follower.next()).await {
                return Err(BrokerError::Closed.into());
            }
            while let Some(Some(_)) = follower.next().now_or_never() {}
            self.at_end = false;
        }
    }

    async fn read_page(&mut self) -> Result<(), BrokerError> {
        let names = self.broker.names();
        let node = self.filter.node.as_ref().map_or("*", NodeName::as_str);
        let query = Query {
            stream: names.record_stream(RecordStream::Errors),
            filter: names.error(node, "*", "*"),
            from: self.next,
            batch: PAGE,
        };
        let page = self.broker.read(&query).await?;
        if let Some(last) = page.messages.last() {
            self.next = Begin::Seq(StreamSeq(last.seq.0 + 1));
        }
        self.at_end = page.messages.is_empty() || page.pending == 0;
        let read = page.messages.iter().filter_map(|raw| read_error(names.prefix(), raw));
        self.ready.extend(read.filter(|error| self.filter.severity.is_none_or(|least| error.event.severity >= least)));
        Ok(())
    }
}

/// The last error event of each kind (severity and code) about a node, the newest first.
pub async fn last_errors(broker: &Broker, node: &NodeName) -> Result<Vec<StoredError>, OperatorError> {
    let names = broker.names();
    let of_node = names.error(node.as_str(), "*", "*");
    let page = broker.read_last(&names.record_stream(RecordStream::Errors), &[of_node]).await?;
    let mut errors: Vec<StoredError> = page.messages.iter().filter_map(|raw| read_error(names.prefix(), raw)).collect();
    errors.sort_by_key(|error| std::cmp::Reverse(error.seq));
    Ok(errors)
}

fn read_error(prefix: &str, raw: &RawMessage) -> Option<StoredError> {
    let event: ErrorEvent = serde_json::from_slice(&raw.body).ok()?;
    let node = raw.subject.strip_prefix(prefix)?.strip_prefix(".error.")?.split('.').next()?.to_owned();
    Some(StoredError { seq: raw.seq, stored_at: raw.stored_at, node, event })
}
