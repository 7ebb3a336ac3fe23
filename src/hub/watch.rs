//! Node state as it changes, and all of it again and again.
//!
//! Owns following `spec` and `hello`, and the scan that puts right whatever was missed: at start, at every reconnect and
//! every half minute. Both are safe to repeat.

use super::HubError;
use super::nodes::Nodes;
use super::{groups, journals};
use crate::broker::{Broker, BrokerError, From, RawMessage};
use crate::model::error_event::Code;
use crate::model::id::StreamSeq;
use crate::model::jitter::Backoff;
use crate::model::message::StreamKind;
use crate::model::name::NodeName;
use crate::model::node::{Hello, Spec};
use crate::model::subject::{NodeKey, RecordStream};
use futures::StreamExt;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// What a follower may miss is found this much later.
const SCAN_EVERY: Duration = Duration::from_secs(30);

/// Nodes worked on at once: enough to hide the round trips, few enough for the API's queue.
const AT_ONCE: usize = 16;

/// Follows `spec` for the copies in memory.
pub(super) async fn follow_specs(nodes: Arc<Nodes>) -> Result<(), HubError> {
    let mut specs = nodes.broker().follow_nodes(&format!("{}.*", NodeKey::Spec.as_str())).await?;
    while let Some(message) = specs.next().await {
        let Some(node) = node_of(nodes.broker(), NodeKey::Spec, &message) else { continue };
        if let Err(error) = nodes.note(&node, &message) {
            report(&nodes, &node, &message, &error).await;
        }
    }
    Err(HubError::from(BrokerError::Closed))
}

/// Follows `spec` for joins and leaves that are wanted or under way, and carries them out.
pub(super) async fn follow_wishes(nodes: Arc<Nodes>) -> Result<(), HubError> {
    let specs = nodes.broker().follow_nodes(&format!("{}.*", NodeKey::Spec.as_str())).await?;
    let messages = futures::stream::unfold(specs, |mut specs| async {
        let message = specs.next().await?;
        Some((message, specs))
    });
    let carry_out = |message: RawMessage| {
        let nodes = Arc::clone(&nodes);
        async move {
            let Some(node) = node_of(nodes.broker(), NodeKey::Spec, &message) else { return };
            // What cannot be read is told by whoever keeps the copies.
            let Ok(Some(spec)) = nodes.note(&node, &message) else { return };
            let wanted = spec.as_ref().clone().plan_groups(uuid::Uuid::new_v4);
            if !wanted && spec.group_steps().is_empty() {
                return;
            }
            if let Err(error) = groups::carry_out(&nodes, &spec).await {
                report(&nodes, &node, &message, &error).await;
            }
        }
    };
    messages.for_each_concurrent(AT_ONCE, carry_out).await;
    Err(HubError::from(BrokerError::Closed))
}

/// Follows `hello` and answers each.
pub(super) async fn follow_hellos(nodes: Arc<Nodes>) -> Result<(), HubError> {
    let hellos = nodes.broker().follow_nodes(&format!("{}.*", NodeKey::Hello.as_str())).await?;
    let messages = futures::stream::unfold(hellos, |mut hellos| async {
        let message = hellos.next().await?;
        Some((message, hellos))
    });
    messages.for_each_concurrent(AT_ONCE, |message| greet(&nodes, message, News::Fresh)).await;
    Err(HubError::from(BrokerError::Closed))
}

/// Scans for ever; `ready` is told after the first scan that went through.
pub(super) async fn scan(nodes: Arc<Nodes>, ready: Option<oneshot::Sender<()>>) -> Result<(), HubError> {
    let mut ready = ready;
    let mut link = nodes.broker().link();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        nodes.broker().wait_up().await?;
        let times = link.borrow_and_update().times;
        let wait = match scan_once(&nodes).await {
            Ok(()) => {
                backoff.reset();
                // Nobody may be waiting.
                ready.take().map(|ready| ready.send(()));
                SCAN_EVERY
            }
            Err(error) => {
                tracing::warn!(error = %super::chain(&error), "the nodes could not be looked through; trying again");
                nodes.broker().shortened(backoff.next_wait())
            }
        };
        let reconnected = link.wait_for(|link| link.times > times);
        if let Ok(Err(_)) = tokio::time::timeout(wait, reconnected).await {
            return Err(HubError::from(BrokerError::Closed));
        }
    }
}

async fn scan_once(nodes: &Nodes) -> Result<(), HubError> {
    let broker = nodes.broker();
    let retention = broker.retention().await?;
    let commands = broker.consumer_names(StreamKind::Commands).await?;
    let events = broker.consumer_names(StreamKind::Events).await?;
    let bucket = broker.names().record_stream(RecordStream::Nodes);
    let all = |key| {
        let pattern = broker.names().node_key(key, "*");
        let bucket = bucket.clone();
        async move { broker.read_all(&bucket, &pattern, From::Seq(StreamSeq(1)), usize::MAX).await }
    };
    let specs = all(NodeKey::Spec).await?;
    let each = futures::stream::iter(specs).for_each_concurrent(AT_ONCE, |message| {
        let (commands, events) = (&commands, &events);
        async move {
            let Some(node) = node_of(broker, NodeKey::Spec, &message) else { return };
            let done = async {
                let Some(spec) = nodes.note(&node, &message)? else { return Ok(()) };
                nodes.keep_retention(&spec, retention).await?;
                complete(nodes, &spec, commands, events).await
            };
            if let Err(error) = done.await {
                report(nodes, &node, &message, &error).await;
            }
        }
    });
    each.await;
    let hellos = all(NodeKey::Hello).await?;
    futures::stream::iter(hellos).for_each_concurrent(AT_ONCE, |message| greet(nodes, message, News::Old)).await;
    Ok(())
}

/// Finishes what a hub began, and makes consumers that are missing.
async fn complete(
    nodes: &Nodes,
    spec: &Spec,
    commands: &HashSet<String>,
    events: &HashSet<String>,
) -> Result<(), HubError> {
    let node = &spec.node;
    if spec.start.commands.is_none() || !commands.contains(node.as_str()) {
        nodes.make(node).await?;
    }
    if spec.start.events.is_some() && !events.contains(node.as_str()) {
        nodes.open_events(node).await?;
    }
    if !spec.groups.is_empty() || spec.want_groups.is_some() {
        groups::carry_out(nodes, spec).await?;
        nodes.set_filters(node).await?;
    }
    journals::close(nodes, spec).await
}

/// Whether a word is said now or was found later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Fresh,
    Old,
}

async fn greet(nodes: &Nodes, message: RawMessage, news: News) {
    let Some(node) = node_of(nodes.broker(), NodeKey::Hello, &message) else { return };
    // One that was removed has no body.
    if message.body.is_empty() {
        return;
    }
    let said = serde_json::from_slice::<Hello>(&message.body).map_err(|e| e.to_string());
    let hello = said.and_then(|hello| match hello.node == node {
        true => Ok(hello),
        false => Err(format!("it speaks for `{}`", hello.node)),
    });
    let result = match hello {
        // Kept, it was answered long ago; what is missing the scan has seen. Said now, its agent misses something.
        Ok(hello) if news == News::Old && nodes.is_journal(&hello) => Ok(()),
        Ok(hello) => journals::greet(nodes, &hello, message.stored_at).await,
        Err(reason) => Err(HubError::BadRecord { key: message.subject.clone(), revision: message.seq.0, reason }),
    };
    if let Err(error) = result {
        report(nodes, &node, &message, &error).await;
    }
}

/// The node of a key of the bucket; keys of other shapes are nobody's.
fn node_of(broker: &Broker, key: NodeKey, message: &RawMessage) -> Option<NodeName> {
    message.subject.strip_prefix(&broker.names().node_key(key, ""))?.parse().ok()
}

/// One node's trouble is told and does not keep the others: the next scan looks again.
async fn report(nodes: &Nodes, node: &NodeName, message: &RawMessage, error: &HubError) {
    tracing::warn!(%node, error = %super::chain(error), "this node is left as it is");
    if let HubError::BadRecord { key, revision, reason } = error {
        let cause = format!("edgeward:bad_record/{key}/{revision}");
        let text = format!("{key} cannot be read: {reason}");
        if let Err(error) = nodes.tell(node.as_str(), Code::BadRecord, &text, &cause, message.stored_at).await {
            tracing::warn!(%node, error = %super::chain(&error), "nor could that be told");
        }
    }
}
