//! What the broker knows of nodes, and of its own time: contact is judged by the broker's clock.
//!
//! Owns reading node state. Never writes it.

use super::error::OperatorError;
use super::pages::each_message;
use crate::broker::{Broker, BrokerError, From as Begin, LAST_SUBJECTS, RawMessage};
use crate::model::id::StreamSeq;
use crate::model::message::StreamKind;
use crate::model::name::{NodeName, near};
use crate::model::node::{Contact, PerStream, Spec, Status};
use crate::model::subject::{NodeKey, RecordStream};
use crate::model::time::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// What is known of one node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeFacts {
    /// The hub's word.
    pub spec: Option<Spec>,
    /// The node's own word, and when it was stored.
    pub status: Option<(Status, Timestamp)>,
    /// When a journal last asked to be this node.
    pub hello_at: Option<Timestamp>,
}

impl NodeFacts {
    /// The node's contact at `now`, by the broker's clock.
    pub fn contact(&self, now: Timestamp) -> Contact {
        self.status.as_ref().map_or(Contact::Never, |(status, stored_at)| status.contact(*stored_at, now))
    }

    /// When the node was last heard.
    pub fn heard_at(&self) -> Option<Timestamp> {
        self.status.as_ref().map(|(_, stored_at)| *stored_at)
    }

    pub(super) fn take(&mut self, key: NodeKey, raw: &RawMessage) {
        match key {
            NodeKey::Spec => self.spec = serde_json::from_slice(&raw.body).ok(),
            NodeKey::Status => self.status = serde_json::from_slice(&raw.body).ok().map(|s| (s, raw.stored_at)),
            NodeKey::Hello => self.hello_at = Some(raw.stored_at),
        }
    }
}

/// A stream at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamFacts {
    /// The broker's time.
    pub now: Timestamp,
    /// The first sequence that is still there.
    pub first_seq: StreamSeq,
    /// When that was stored.
    pub first_at: Option<Timestamp>,
    /// The last sequence.
    pub last_seq: StreamSeq,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    ts: Option<Timestamp>,
    state: InfoState,
}

#[derive(Deserialize)]
struct InfoState {
    first_seq: StreamSeq,
    last_seq: StreamSeq,
    /// An empty stream has the year 1 here, which is no time of ours.
    #[serde(default)]
    first_ts: Option<String>,
}

/// What STREAM.INFO says of a stream.
pub async fn stream_facts(broker: &Broker, stream: &str) -> Result<StreamFacts, BrokerError> {
    let info: Info = broker.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await?;
    Ok(StreamFacts {
        now: info.ts.unwrap_or_else(Timestamp::local_now),
        first_seq: info.state.first_seq,
        first_at: info.state.first_ts.and_then(|text| text.parse().ok()),
        last_seq: info.state.last_seq,
    })
}

/// Every node with all that is known of it, by name.
pub async fn nodes(broker: &Broker) -> Result<BTreeMap<String, NodeFacts>, OperatorError> {
    let names = broker.names();
    let (stream, filter) = (names.record_stream(RecordStream::Nodes), format!("$KV.{}.>", names.bucket()));
    let mut all: BTreeMap<String, NodeFacts> = BTreeMap::new();
    each_message(broker, &stream, &filter, Begin::Seq(StreamSeq(1)), |raw| {
        if let Some((key, node)) = read_key(broker, &raw.subject) {
            all.entry(node.to_owned()).or_default().take(key, &raw);
        }
        ControlFlow::Continue(())
    })
    .await?;
    Ok(all)
}

/// All that is known of one node.
pub async fn node(broker: &Broker, node: &NodeName) -> Result<NodeFacts, OperatorError> {
    let keys = [NodeKey::Spec, NodeKey::Status, NodeKey::Hello];
    Ok(read_keys(broker, &keys, &[node.to_string()]).await?.remove(node.as_str()).unwrap_or_default())
}

/// How many stored messages its consumers have still to give to a node; `None` where it has no consumer, or none that
/// answers.
pub async fn waiting_for(broker: &Broker, node: &NodeName) -> Result<PerStream<Option<u64>>, OperatorError> {
    let mut waiting = PerStream::default();
    for stream in StreamKind::ALL {
        let progress = broker.consumer_progress(stream, node).await?;
        *waiting.get_mut(stream) = progress.map(|progress| progress.pending);
    }
    Ok(waiting)
}

/// The last `status` of these nodes, where they have one.
pub(super) async fn statuses(broker: &Broker, nodes: &[String]) -> Result<Vec<(String, NodeFacts)>, BrokerError> {
    Ok(read_keys(broker, &[NodeKey::Status], nodes).await?.into_iter().collect())
}

/// The last `spec` and `status` of these nodes, where they have one.
pub(super) async fn facts_of(broker: &Broker, nodes: &[String]) -> Result<BTreeMap<String, NodeFacts>, BrokerError> {
    read_keys(broker, &[NodeKey::Spec, NodeKey::Status], nodes).await
}

async fn read_keys(
    broker: &Broker,
    keys: &[NodeKey],
    nodes: &[String],
) -> Result<BTreeMap<String, NodeFacts>, BrokerError> {
    let names = broker.names();
    let mut found: BTreeMap<String, NodeFacts> = BTreeMap::new();
    let subjects: Vec<String> =
        nodes.iter().flat_map(|node| keys.iter().map(|key| names.node_key(*key, node))).collect();
    for some in subjects.chunks(LAST_SUBJECTS) {
        let page = broker.read_last(&names.record_stream(RecordStream::Nodes), some).await?;
        for raw in page.messages {
            if let Some((key, node)) = read_key(broker, &raw.subject) {
                found.entry(node.to_owned()).or_default().take(key, &raw);
            }
        }
    }
    Ok(found)
}

/// Which key of which node a subject of the bucket is; `None` for what is no node's, as the hub's probe.
pub(super) fn read_key<'a>(broker: &Broker, subject: &'a str) -> Option<(NodeKey, &'a str)> {
    let key = subject.strip_prefix("$KV.")?.strip_prefix(&broker.names().bucket())?.strip_prefix('.')?;
    let (first, node) = key.split_once('.')?;
    let key = [NodeKey::Spec, NodeKey::Status, NodeKey::Hello].into_iter().find(|k| k.as_str() == first)?;
    node.parse::<NodeName>().is_ok().then_some((key, node))
}

/// A node that nobody has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownNode {
    /// Its name.
    pub node: NodeName,
    /// Known names that are near in spelling, nearest first.
    pub near: Vec<String>,
}

/// Those of `wanted` that the hub has no `spec` of and that never asked in.
pub async fn unknown_nodes(broker: &Broker, wanted: &[NodeName]) -> Result<Vec<UnknownNode>, OperatorError> {
    let texts: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    let specs = read_keys(broker, &[NodeKey::Spec], &texts).await?;
    let is_known = |node: &NodeName| specs.get(node.as_str()).is_some_and(|facts| facts.spec.is_some());
    let missing: Vec<&NodeName> = wanted.iter().filter(|node| !is_known(node)).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let known = nodes(broker).await?;
    let unknown = missing.into_iter().filter(|node| !known.contains_key(node.as_str()));
    Ok(unknown
        .map(|node| {
            let near = near(node.as_str(), known.keys().map(String::as_str));
            UnknownNode { node: node.clone(), near: near.into_iter().map(str::to_owned).collect() }
        })
        .collect())
}
