//! The nodes' durable consumers (PROTOCOL §2), which the hub alone makes.
//!
//! Owns their settings, and that making one twice is harmless. Never pulls from one.

use super::connect::Broker;
use super::error::BrokerError;
use crate::model::id::StreamSeq;
use crate::model::message::StreamKind;
use crate::model::name::NodeName;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashSet;

/// An ack that was lost is put right by the next session's reset, not by a redelivery: this is the last net.
const ACK_WAIT_NS: u64 = 3600 * 1_000_000_000;

/// Bounds what one node may hold unacked; more than any batch that an agent takes.
const MAX_ACK_PENDING: u64 = 1024;

/// A live agent has one pull open; the rest are those of connections that the broker has not yet seen die.
const MAX_WAITING: u64 = 16;

const CONSUMER_NOT_FOUND: u64 = 10014;
/// The name is taken by a consumer with other settings.
const CONSUMER_EXISTS: [u64; 3] = [10148, 10105, 10013];

/// What became of a request to have a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ensured {
    /// It was there, and serves.
    Found,
    /// It was made now.
    Made,
}

#[derive(Deserialize)]
struct ConsumerInfo {
    config: ConsumerConfig,
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
    fn serves(&self, filter: &str, start: StreamSeq) -> bool {
        let filters = self.filter_subjects.iter().chain(&self.filter_subject);
        self.ack_policy == "all"
            && self.deliver_policy == "by_start_sequence"
            && self.opt_start_seq <= start.0
            && filters.eq([filter])
    }
}

impl Broker {
    /// Makes the node's consumer on a stream, beginning at `start`, unless one is there that serves.
    pub async fn ensure_consumer(
        &self,
        stream: StreamKind,
        node: &NodeName,
        start: StreamSeq,
    ) -> Result<Ensured, BrokerError> {
        let name = self.names.stream(stream);
        let filter = self.names.node_filter(node);
        if let Some(found) = self.consumer(&name, node).await? {
            if found.serves(&filter, start) {
                return Ok(Ensured::Found);
            }
            // A start never changes, so one that is wrong cannot be put right; the agent's reset finds its place again.
            tracing::warn!(%node, stream = %name, "its consumer does not serve; it is made anew");
            self.api::<Value>(&format!("CONSUMER.DELETE.{name}.{node}"), &Value::Null).await?;
        }
        let body = json!({
            "stream_name": name,
            "action": "create",
            "config": {
                "durable_name": node,
                "name": node,
                "ack_policy": "all",
                "ack_wait": ACK_WAIT_NS,
                "max_deliver": -1,
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": start.0.max(1),
                "num_replicas": 1,
                "max_ack_pending": MAX_ACK_PENDING,
                "max_waiting": MAX_WAITING,
                "filter_subjects": [filter],
            },
        });
        match self.api::<Value>(&format!("CONSUMER.CREATE.{name}.{node}"), &body).await {
            Ok(_) => Ok(Ensured::Made),
            // Another hub was faster, with a start of its own: `spec` has one only, so the next look finds them equal.
            Err(error) if error.code().is_some_and(|code| CONSUMER_EXISTS.contains(&code)) => Ok(Ensured::Found),
            Err(error) => Err(error),
        }
    }

    async fn consumer(&self, stream: &str, node: &NodeName) -> Result<Option<ConsumerConfig>, BrokerError> {
        match self.api::<ConsumerInfo>(&format!("CONSUMER.INFO.{stream}.{node}"), &Value::Null).await {
            Ok(info) => Ok(Some(info.config)),
            Err(error) if error.code() == Some(CONSUMER_NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
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
    fn a_consumer_serves_from_its_start_on_with_its_node_alone() {
        let parse = |text: &str| serde_json::from_str::<ConsumerConfig>(text).unwrap();
        let ours = r#"{"ack_policy":"all","deliver_policy":"by_start_sequence","opt_start_seq":5,"filter_subjects":["f.n.>"]}"#;
        assert!(parse(ours).serves("f.n.>", StreamSeq(5)));
        assert!(parse(ours).serves("f.n.>", StreamSeq(9)));
        assert!(!parse(ours).serves("f.n.>", StreamSeq(4)), "it would skip a message");
        assert!(!parse(ours).serves("f.m.>", StreamSeq(5)));
        assert!(!parse(&ours.replace("\"all\"", "\"explicit\"")).serves("f.n.>", StreamSeq(5)));
    }
}
