//! The nodes' durable consumers, which the hub alone makes.
//!
//! Owns their settings, and that making one twice is harmless. Never pulls from one.

use super::api::{API_TIMEOUT, ASK_AGAIN, TIMES};
use super::connect::Broker;
use super::error::BrokerError;
use crate::model::id::StreamSeq;
use crate::model::message::StreamKind;
use crate::model::name::{NodeName, Target};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;

/// An ack that was lost is put right by the next session's reset, not by a redelivery: this is the last net.
const ACK_WAIT_NS: u64 = 3600 * 1_000_000_000;

/// Bounds what one node may hold unacked; more than any batch that an agent takes.
const MAX_ACK_PENDING: u64 = 1024;

/// A live agent has one pull open; the rest are those of connections that the broker has not yet seen die.
const MAX_WAITING: u64 = 16;

/// How long a consumer that lives takes to tell of itself, as a rule; one whose server is gone never does.
const INFO_TIMEOUT: Duration = Duration::from_secs(1);

const CONSUMER_NOT_FOUND: u64 = 10014;
/// The name is taken by a consumer with other settings.
const CONSUMER_EXISTS: [u64; 3] = [10148, 10105, 10013];

/// What became of a request to have a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ensured {
    /// It was there, and serves.
    Found,
    /// It was made now.
    Made,
    /// It was there, and has been changed just now: its filters were others, or another hub was faster.
    Changed,
    /// It is there, its filters are others, and some are relied on: a change of them has to be prepared. It is left as it is.
    Differs {
        /// Those of the relied on that it does not reach.
        lacking: Vec<Target>,
        /// Up to where all is acked that it has given out.
        ack_floor: StreamSeq,
    },
}

/// How far a consumer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The last message that it gave out, or was set behind.
    pub delivered: StreamSeq,
    /// The last message up to which all are acked, or was set behind.
    pub ack_floor: StreamSeq,
    /// How many it has given out since it was made or set.
    pub deliveries: u64,
    /// How many it has still to give out.
    pub pending: u64,
}

#[derive(Deserialize)]
struct ConsumerInfo {
    config: ConsumerConfig,
    delivered: Place,
    ack_floor: Place,
    #[serde(default)]
    num_pending: u64,
}

#[derive(Deserialize)]
struct Place {
    consumer_seq: u64,
    stream_seq: StreamSeq,
}

#[derive(Deserialize)]
struct ConsumerConfig {
    #[serde(default)]
    ack_policy: String,
    #[serde(default)]
    deliver_policy: String,
    #[serde(default)]
    opt_start_seq: u64,
    #[serde(default)]
    filter_subject: Option<String>,
    #[serde(default)]
    filter_subjects: Vec<String>,
}

impl ConsumerConfig {
    /// True where it gives the node all that it should get: a consumer that begins earlier does, too.
    fn serves(&self, start: StreamSeq) -> bool {
        self.ack_policy == "all" && self.deliver_policy == "by_start_sequence" && self.opt_start_seq <= start.0
    }

    fn lacks(&self, filter: &String) -> bool {
        !self.filter_subjects.iter().chain(&self.filter_subject).any(|found| found == filter)
    }

    /// True where it reaches these and nothing else.
    fn reaches(&self, filters: &[String]) -> bool {
        let found: HashSet<&String> = self.filter_subjects.iter().chain(&self.filter_subject).collect();
        found == filters.iter().collect()
    }
}

impl Broker {
    /// Makes the node's consumer on a stream, beginning at `start`, for messages to `targets`, unless one is there that
    /// serves; one that serves but for its filters has them changed and stays where it is, unless there are any that are
    /// `relied_on`.
    pub async fn ensure_consumer(
        &self,
        stream: StreamKind,
        node: &NodeName,
        start: StreamSeq,
        targets: &[Target],
        relied_on: &[Target],
    ) -> Result<Ensured, BrokerError> {
        let name = self.names.stream(stream);
        let filters: Vec<String> = targets.iter().map(|target| self.names.target_filter(target)).collect();
        let mut begins = start.0.max(1);
        let mut action = "create";
        let mut is_lost = false;
        let mut found = self.consumer(&name, node.as_str(), INFO_TIMEOUT).await;
        // A single server takes no consumer with it and lives: it is busy, as with a thousand nodes that come at once.
        if matches!(found, Err(BrokerError::Timeout { .. })) && !self.is_clustered() {
            found = self.consumer(&name, node.as_str(), API_TIMEOUT).await;
        }
        match found {
            Ok(Some(found)) if found.config.serves(start) && found.config.reaches(&filters) => {
                return Ok(Ensured::Found);
            }
            Ok(Some(found)) if found.config.serves(start) => {
                if !relied_on.is_empty() {
                    let lacks = |target: &&Target| found.config.lacks(&self.names.target_filter(target));
                    let lacking = relied_on.iter().filter(lacks).cloned().collect();
                    return Ok(Ensured::Differs { lacking, ack_floor: found.ack_floor.stream_seq });
                }
                (action, begins) = ("update", found.config.opt_start_seq);
            }
            Ok(None) => {}
            Ok(Some(_)) => {
                // A start never changes, so one that is wrong cannot be put right; the agent's reset finds its place again.
                tracing::warn!(%node, stream = %name, "its consumer does not serve; it is made anew");
                self.api::<Value>(&format!("CONSUMER.DELETE.{name}.{node}"), &Value::Null).await?;
            }
            // The server that had it is gone, if the stream itself answers.
            Err(BrokerError::Timeout { .. }) => {
                self.last_seq(stream).await?;
                tracing::warn!(%node, stream = %name, "its consumer is lost with its server; it is made anew");
                is_lost = true;
            }
            Err(error) => return Err(error),
        }
        let body = json!({
            "stream_name": name,
            "action": action,
            "config": {
                "durable_name": node,
                "name": node,
                "ack_policy": "all",
                "ack_wait": ACK_WAIT_NS,
                "max_deliver": -1,
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": begins,
                "num_replicas": 1,
                "max_ack_pending": MAX_ACK_PENDING,
                "max_waiting": MAX_WAITING,
                "filter_subjects": filters,
            },
        });
        let made = if is_lost { self.replace(&name, node, &body).await } else { self.create(&name, node, &body).await };
        match made {
            Ok(()) => Ok(if action == "create" { Ensured::Made } else { Ensured::Changed }),
            // Another hub was faster, with a start of its own: `spec` has one only, so the next look finds them equal.
            Err(error) if error.code().is_some_and(|code| CONSUMER_EXISTS.contains(&code)) => Ok(Ensured::Changed),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, stream: &str, node: &NodeName, body: &Value) -> Result<(), BrokerError> {
        self.api::<Value>(&format!("CONSUMER.CREATE.{stream}.{node}"), body).await.map(drop)
    }

    /// Makes a consumer in place of one whose server is gone. Both orders are given again and again: as long as the API has
    /// no leader either may be heard by nobody, and on the lost one alone the other is never answered.
    async fn replace(&self, stream: &str, node: &NodeName, body: &Value) -> Result<(), BrokerError> {
        let path = format!("CONSUMER.CREATE.{stream}.{node}");
        let mut last = Ok(());
        for _ in 0..TIMES {
            self.order_delete(stream, node).await?;
            last = self.api_within::<Value>(&path, body, ASK_AGAIN).await.map(drop);
            if !matches!(last, Err(BrokerError::Timeout { .. })) {
                break;
            }
        }
        last
    }

    /// How far the node's consumer has come; `None` where it has none, or none that answers.
    pub async fn consumer_progress(
        &self,
        stream: StreamKind,
        node: &NodeName,
    ) -> Result<Option<Progress>, BrokerError> {
        self.durable_progress(&self.names.stream(stream), node.as_str()).await
    }

    /// The same of any durable consumer.
    pub(super) async fn durable_progress(&self, stream: &str, name: &str) -> Result<Option<Progress>, BrokerError> {
        let found = match self.consumer(stream, name, INFO_TIMEOUT).await {
            Err(BrokerError::Timeout { .. }) => None,
            found => found?,
        };
        Ok(found.map(|info| Progress {
            delivered: info.delivered.stream_seq,
            ack_floor: info.ack_floor.stream_seq,
            deliveries: info.delivered.consumer_seq,
            pending: info.num_pending,
        }))
    }

    async fn consumer(
        &self,
        stream: &str,
        consumer: &str,
        within: Duration,
    ) -> Result<Option<ConsumerInfo>, BrokerError> {
        match self.api_within(&format!("CONSUMER.INFO.{stream}.{consumer}"), &Value::Null, within).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.code() == Some(CONSUMER_NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Orders a consumer's end without waiting for it: where its server is gone no answer comes, and it is carried out.
    async fn order_delete(&self, stream: &str, node: &NodeName) -> Result<(), BrokerError> {
        let subject = format!("{}.CONSUMER.DELETE.{stream}.{node}", self.api);
        let reply = self.client.new_inbox();
        self.client.publish_with_reply(subject, reply, Bytes::new()).await.map_err(|_| BrokerError::Closed)
    }

    /// The names of all consumers on a stream.
    pub async fn consumer_names(&self, stream: StreamKind) -> Result<HashSet<String>, BrokerError> {
        #[derive(Deserialize)]
        struct Names {
            total: usize,
            #[serde(default)]
            consumers: Option<Vec<String>>,
        }
        let path = format!("CONSUMER.NAMES.{}", self.names.stream(stream));
        let mut all = HashSet::new();
        let mut offset = 0;
        loop {
            let page: Names = self.api(&path, &json!({ "offset": offset })).await?;
            let names = page.consumers.unwrap_or_default();
            offset += names.len();
            let empty = names.is_empty();
            all.extend(names);
            if empty || offset >= page.total {
                return Ok(all);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_serves_from_its_start_on_and_reaches_its_filters_alone() {
        let parse = |text: &str| serde_json::from_str::<ConsumerConfig>(text).unwrap();
        let ours = r#"{"ack_policy":"all","deliver_policy":"by_start_sequence","opt_start_seq":5,"filter_subjects":["f.n.>"]}"#;
        assert!(parse(ours).serves(StreamSeq(5)));
        assert!(parse(ours).serves(StreamSeq(9)));
        assert!(!parse(ours).serves(StreamSeq(4)), "it would skip a message");
        let reaches =
            |filters: &[&str]| parse(ours).reaches(&filters.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(reaches(&["f.n.>"]) && !reaches(&["f.m.>"]) && !reaches(&["f.n.>", "f.@web.>"]));
        assert!(!parse(&ours.replace("\"all\"", "\"explicit\"")).serves(StreamSeq(5)));
    }
}
