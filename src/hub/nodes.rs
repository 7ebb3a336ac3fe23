//! The nodes as the hub knows them: `spec.<node>`, and where their messages begin.
//!
//! Owns the making of nodes; keeping their consumers is `consumers`. Every step is a compare-and-set or harmless to repeat,
//! so a hub may die between any two and another go on, and two may work at once. What is kept in memory is a copy of `spec`,
//! one per node; where it says nothing, the stream's leader is asked.

use super::HubError;
use super::fate::Letter;
use super::locks::Locks;
use super::records::{self, PUBLISH_TIMEOUT};
use super::results::control;
use crate::broker::{Broker, Ensured, From, Outgoing, PublishError, RawMessage};
use crate::model::error_event::{Code, ErrorEvent, Severity};
use crate::model::id::{MessageId, MsgRef, StreamSeq};
use crate::model::message::StreamKind;
use crate::model::name::NodeName;
use crate::model::node::{Hello, Spec};
use crate::model::subject::{HubVerb, NodeKey, RecordStream};
use crate::model::time::Timestamp;
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::sync::MutexGuard;
use uuid::Uuid;

/// How often a lost compare-and-set is tried again: each loss means that somebody else got on.
pub(super) const ROUNDS: usize = 20;

/// How a key of the bucket stands.
struct Entry {
    /// Its last sequence; 0 where there never was one.
    revision: u64,
    /// What it says; `None` where it is not there.
    spec: Option<Spec>,
    /// When it was removed, if it was.
    removed_at: Option<Timestamp>,
}

/// A `spec` as last seen.
struct Known {
    spec: Arc<Spec>,
    revision: u64,
}

/// The nodes.
pub(super) struct Nodes {
    broker: Broker,
    auto_nodes: bool,
    known: RwLock<HashMap<NodeName, Known>>,
    making: Locks,
    joining: Locks,
}

impl Nodes {
    /// Nothing known yet. `auto_nodes`: a message to an unknown name makes a node of it.
    pub(super) fn new(broker: Broker, auto_nodes: bool) -> Nodes {
        Nodes { broker, auto_nodes, known: RwLock::default(), making: Locks::new(), joining: Locks::new() }
    }

    pub(super) fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Held while a node's joins and leaves are carried out: each step would only find the other's work.
    pub(super) async fn joining(&self, node: &NodeName) -> MutexGuard<'_, ()> {
        self.joining.lock(node).await
    }

    /// What is decided about a node; `None` where there is no such node. What is not in memory is asked of the leader, so
    /// that "no such node" is never said of one that another hub has just made.
    pub(super) async fn spec(&self, node: &NodeName) -> Result<Option<Arc<Spec>>, HubError> {
        if let Some(spec) = self.remembered(node) {
            return Ok(Some(spec));
        }
        let entry = self.read(node).await?;
        Ok(entry.spec.map(|spec| self.remember(node, spec, entry.revision)))
    }

    /// True where this journal is known to be the node's and its messages have a beginning.
    pub(super) fn is_journal(&self, hello: &Hello) -> bool {
        self.remembered(&hello.node)
            .is_some_and(|spec| spec.journal == Some(hello.journal) && spec.start.commands.is_some())
    }

    /// True where this message may make a node of the unknown name that it is for.
    pub(super) async fn may_make(&self, letter: &Letter) -> Result<bool, HubError> {
        if !self.auto_nodes || !letter.is_well_formed() {
            return Ok(false);
        }
        match letter.sender_node() {
            Some(sender) => Ok(self.spec(&sender).await?.is_none()),
            None => Ok(true),
        }
    }

    /// Sees to it that the node is there, has a start, and a consumer that begins there.
    pub(super) async fn make(&self, node: &NodeName) -> Result<Arc<Spec>, HubError> {
        let _one = self.making.lock(node).await;
        let entry = self.read(node).await?;
        let spec = match entry.spec {
            Some(spec) => self.remember(node, spec, entry.revision),
            None => self.create(node, entry.removed_at).await?,
        };
        let (spec, start) = match spec.start.commands {
            Some(start) => (spec, start),
            None => {
                let first = self.first_message(node, StreamKind::Commands, From::Seq(StreamSeq(1))).await?;
                self.set_start(node, StreamKind::Commands, first).await?
            }
        };
        if self.ensure(&spec, StreamKind::Commands, start).await? == Ensured::Made {
            tracing::info!(%node, %start, "node has its consumer");
        }
        Ok(spec)
    }

    /// Sees to it that the node has a consumer for events, and knows of it.
    pub(super) async fn open_events(&self, node: &NodeName) -> Result<StreamSeq, HubError> {
        self.open_events_at(node, None).await
    }

    /// The same, its events beginning no later than at this one for everybody.
    pub(super) async fn open_events_at(&self, node: &NodeName, at: Option<StreamSeq>) -> Result<StreamSeq, HubError> {
        let spec = self.make(node).await?;
        let _one = self.making.lock(node).await;
        let (spec, start) = match spec.start.events {
            Some(start) => (spec, start),
            None => {
                let first = self.first_message(node, StreamKind::Events, From::Seq(StreamSeq(1))).await?;
                self.set_start(node, StreamKind::Events, at.map_or(first, |at| at.min(first))).await?
            }
        };
        self.ensure(&spec, StreamKind::Events, start).await?;
        self.announce_events(node, start).await?;
        Ok(start)
    }

    /// One of those in memory, in no order.
    pub(super) fn find(&self, wanted: impl Fn(&Spec) -> bool) -> Option<Arc<Spec>> {
        let known = self.known.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        known.values().find(|known| wanted(&known.spec)).map(|known| known.spec.clone())
    }

    /// What is decided about a node, as the leader has it.
    pub(super) async fn read_again(&self, node: &NodeName) -> Result<Option<Arc<Spec>>, HubError> {
        let entry = self.read(node).await?;
        Ok(entry.spec.map(|spec| self.remember(node, spec, entry.revision)))
    }

    /// What is decided about every node. One that cannot be read is told of by the scan and is no member of anything.
    pub(super) async fn read_all(&self) -> Result<Vec<Spec>, HubError> {
        let names = self.broker.names();
        let (bucket, keys) = (names.record_stream(RecordStream::Nodes), names.node_key(NodeKey::Spec, "*"));
        let all = self.broker.read_all(&bucket, &keys, From::Seq(StreamSeq(1)), usize::MAX).await?;
        Ok(all.iter().filter_map(|message| read_entry(message).ok()?.spec).collect())
    }

    /// Publishes an error event about `node`, once for each cause.
    pub(super) async fn tell(
        &self,
        node: &str,
        code: Code,
        text: &str,
        cause: &str,
        at: Timestamp,
    ) -> Result<(), HubError> {
        self.tell_as(Severity::Error, node, code, text, cause, at).await
    }

    /// The same, of another severity.
    pub(super) async fn tell_as(
        &self,
        severity: Severity,
        node: &str,
        code: Code,
        text: &str,
        cause: &str,
        at: Timestamp,
    ) -> Result<(), HubError> {
        let id = Uuid::new_v5(&Uuid::NAMESPACE_URL, cause.as_bytes());
        let event = ErrorEvent { id, ..ErrorEvent::new(node, severity, code, text, at) };
        records::tell_once(&self.broker, &event).await
    }

    /// When what is decided about a node was written last; `None` where there is no such node.
    pub(super) async fn decided_at(&self, node: &NodeName) -> Result<Option<Timestamp>, HubError> {
        let bucket = self.broker.names().record_stream(RecordStream::Nodes);
        let last = self.broker.get_last_at_leader(&bucket, &self.key(node)).await?;
        Ok(last.map(|message| message.stored_at))
    }

    /// Makes the key, or reads the one that another hub made first.
    async fn create(&self, node: &NodeName, removed_at: Option<Timestamp>) -> Result<Arc<Spec>, HubError> {
        let mut fresh = Spec::new(node.clone());
        fresh.retention_s = self.broker.retention().await?.map(|age| age.as_secs());
        if let Some(time) = removed_at {
            // The mark of the removal goes with this write, and what came before it is not this node's.
            fresh.start.commands = Some(self.first_message(node, StreamKind::Commands, From::Time(time)).await?);
        }
        self.change_or(node, Some(fresh), |_| false).await
    }

    async fn set_start(
        &self,
        node: &NodeName,
        stream: StreamKind,
        first: StreamSeq,
    ) -> Result<(Arc<Spec>, StreamSeq), HubError> {
        let set = |spec: &mut Spec| {
            let start = spec.start.get_mut(stream);
            let open = start.is_none();
            start.get_or_insert(first);
            open
        };
        let spec = self.change(node, set).await?;
        let start = spec.start.get(stream).unwrap_or(first);
        Ok((spec, start))
    }

    /// Where a node's messages begin: at the first one that has no answer and, for a node that is only being made, that by
    /// itself could have made it; else behind the last one stored. Two hubs come to the same.
    async fn first_message(&self, node: &NodeName, stream: StreamKind, from: From) -> Result<StreamSeq, HubError> {
        // Looked up first: whatever is stored after this is above it.
        let behind_all = StreamSeq(self.broker.last_seq(stream).await?.0 + 1);
        let being_made = stream == StreamKind::Commands;
        if being_made && !self.auto_nodes {
            // All that is there was or will be told undeliverable.
            return Ok(behind_all);
        }
        let (name, filter) = (self.broker.names().stream(stream), self.broker.names().node_filter(node));
        let mut from = from;
        loop {
            let Some(found) = self.broker.get_next_at_leader(&name, &filter, from).await? else {
                return Ok(behind_all);
            };
            let letter = Letter::read(self.broker.names(), stream, &found);
            let counts = !being_made || self.may_make(&letter).await?;
            if counts && !records::is_answered(&self.broker, &letter, node.as_str()).await? {
                return Ok(found.seq);
            }
            from = From::Seq(StreamSeq(found.seq.0 + 1));
        }
    }

    async fn announce_events(&self, node: &NodeName, start: StreamSeq) -> Result<(), HubError> {
        let stream = self.broker.names().stream(StreamKind::Events);
        let first = self.broker.get(&stream, start).await?;
        let stored_at = first.map_or(Timestamp::from_nanos(0), |message| message.stored_at);
        let cause = MsgRef { stream: StreamKind::Events, seq: start, stored_at };
        let id = MessageId::from_cause(cause, node.as_str());
        let outgoing = control(&self.broker, node, HubVerb::Events, id, json!({ "start": start }).to_string());
        self.broker.publish(&outgoing, PUBLISH_TIMEOUT).await.map_err(|e| HubError::publish(outgoing.subject, e))?;
        tracing::info!(%node, %start, "node has its consumer for events");
        Ok(())
    }

    /// Changes a `spec` that is there. `change` says whether it changed anything.
    pub(super) async fn change(
        &self,
        node: &NodeName,
        change: impl FnMut(&mut Spec) -> bool,
    ) -> Result<Arc<Spec>, HubError> {
        self.change_or(node, None, change).await
    }

    /// Changes a `spec`, or puts `fresh` where there is none.
    async fn change_or(
        &self,
        node: &NodeName,
        fresh: Option<Spec>,
        mut change: impl FnMut(&mut Spec) -> bool,
    ) -> Result<Arc<Spec>, HubError> {
        for _ in 0..ROUNDS {
            let entry = self.read(node).await?;
            let spec = match (entry.spec, &fresh) {
                (Some(mut spec), _) => {
                    if !change(&mut spec) {
                        return Ok(self.remember(node, spec, entry.revision));
                    }
                    spec
                }
                (None, Some(fresh)) => fresh.clone(),
                (None, None) => return Err(HubError::NodeRemoved(node.clone())),
            };
            let body = serde_json::to_vec(&spec).map_err(|e| HubError::Internal(e.to_string()))?;
            let key = self.key(node);
            match self
                .broker
                .publish(&Outgoing::new(key.clone(), body).expecting_last(entry.revision), PUBLISH_TIMEOUT)
                .await
            {
                Ok(stored) => return Ok(self.remember(node, spec, stored.seq.0)),
                // Somebody else wrote; or, without a word, perhaps we did: what is there tells.
                Err(PublishError::WrongLast | PublishError::Unknown) => {}
                Err(source) => return Err(HubError::publish(key, source)),
            }
        }
        Err(HubError::Contended { what: self.key(node) })
    }

    async fn read(&self, node: &NodeName) -> Result<Entry, HubError> {
        let bucket = self.broker.names().record_stream(RecordStream::Nodes);
        match self.broker.get_last_at_leader(&bucket, &self.key(node)).await? {
            None => Ok(Entry { revision: 0, spec: None, removed_at: None }),
            Some(message) => read_entry(&message),
        }
    }

    pub(super) fn key(&self, node: &NodeName) -> String {
        self.broker.names().node_key(NodeKey::Spec, node.as_str())
    }

    fn remembered(&self, node: &NodeName) -> Option<Arc<Spec>> {
        let known = self.known.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        known.get(node).map(|known| known.spec.clone())
    }

    fn remember(&self, node: &NodeName, spec: Spec, revision: u64) -> Arc<Spec> {
        let spec = Arc::new(spec);
        let mut known = self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let newer = known.get(node).is_none_or(|known| known.revision < revision);
        if newer {
            known.insert(node.clone(), Known { spec: spec.clone(), revision });
        }
        spec
    }

    /// Forgets every node, to be read again.
    pub(super) fn forget(&self) {
        self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
    }

    /// Takes note of a `spec` as it was stored; one that was removed is forgotten.
    pub(super) fn note(&self, node: &NodeName, message: &RawMessage) -> Result<Option<Arc<Spec>>, HubError> {
        let entry = read_entry(message)?;
        match entry.spec {
            Some(spec) => Ok(Some(self.remember(node, spec, entry.revision))),
            None => {
                let mut known = self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner);
                if known.get(node).is_some_and(|known| known.revision < entry.revision) {
                    known.remove(node);
                }
                Ok(None)
            }
        }
    }

    /// Puts the retention into the `spec`s that say another.
    pub(super) async fn keep_retention(&self, spec: &Spec, retention: Option<Duration>) -> Result<(), HubError> {
        let seconds = retention.map(|age| age.as_secs());
        if spec.retention_s == seconds {
            return Ok(());
        }
        let set = |spec: &mut Spec| {
            let differs = spec.retention_s != seconds;
            spec.retention_s = seconds;
            differs
        };
        self.change(&spec.node, set).await.map(drop)
    }
}

/// Reads a message of the bucket: a `spec`, or the mark of its removal.
fn read_entry(message: &RawMessage) -> Result<Entry, HubError> {
    let revision = message.seq.0;
    if message.headers.get("KV-Operation").is_some() {
        return Ok(Entry { revision, spec: None, removed_at: Some(message.stored_at) });
    }
    let spec = serde_json::from_slice(&message.body).map_err(|e| HubError::BadRecord {
        key: message.subject.clone(),
        revision,
        reason: e.to_string(),
    })?;
    Ok(Entry { revision, spec: Some(spec), removed_at: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::header::RawHeaders;
    use bytes::Bytes;

    fn stored(headers: RawHeaders, body: &'static str) -> RawMessage {
        let stored_at = Timestamp::from_nanos(9);
        RawMessage { subject: "k".into(), seq: StreamSeq(4), stored_at, headers, body: Bytes::from(body) }
    }

    #[test]
    fn a_key_is_there_or_removed_or_unreadable() {
        let there = read_entry(&stored(RawHeaders::default(), r#"{"v":1,"node":"n1"}"#)).unwrap();
        assert!(there.spec.is_some() && there.revision == 4);
        let removed = read_entry(&stored(RawHeaders::default().with("KV-Operation", "DEL"), "")).unwrap();
        assert_eq!((removed.spec, removed.removed_at), (None, Some(Timestamp::from_nanos(9))));
        assert!(matches!(read_entry(&stored(RawHeaders::default(), "{")), Err(HubError::BadRecord { .. })));
    }
}
