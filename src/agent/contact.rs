//! First contact: the hub says whether this journal is the node, and where its messages begin.
//!
//! An agent whose journal is not the one in `spec` writes `hello` and takes nothing until `spec` names it.

use super::node::Node;
use crate::broker::{BrokerError, Outgoing};
use crate::model::jitter::Backoff;
use crate::model::node::{Hello, Spec};
use crate::model::subject::{NodeKey, RecordStream};
use std::time::Duration;

/// How long the broker may take to store a hello; it is said again.
const WITHIN: Duration = Duration::from_secs(2);

/// Waits until `spec` names this journal and tells where commands begin. Ends early only with an error of the link.
pub(crate) async fn admitted(node: &Node) -> Result<Spec, BrokerError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut waits = 0u32;
    loop {
        let spec = read_spec(node).await?;
        match spec {
            Some(spec) if spec.journal == Some(node.journal.id()) && spec.start.commands.is_some() => return Ok(spec),
            Some(Spec { journal: Some(other), .. }) if other != node.journal.id() => {
                if waits == 0 {
                    tracing::warn!(ours = %node.journal.id(), theirs = %other, "another journal is this node; waiting");
                }
                hello(node).await;
            }
            _ => hello(node).await,
        }
        waits += 1;
        tokio::time::sleep(node.broker.shortened(backoff.next_wait())).await;
    }
}

/// The `spec`, while it names this journal and no other run has written the node's status.
pub(crate) async fn ours(node: &Node) -> Result<Option<Spec>, BrokerError> {
    let spec = read_spec(node).await?.filter(|spec| spec.journal == Some(node.journal.id()));
    Ok(if super::status::is_ours(node).await? { spec } else { None })
}

/// This node's `spec`, where there is one.
pub(crate) async fn read_spec(node: &Node) -> Result<Option<Spec>, BrokerError> {
    let stream = node.names.record_stream(RecordStream::Nodes);
    let subject = node.names.node_key(NodeKey::Spec, node.name.as_str());
    let Some(found) = node.broker.get_last(&stream, &subject).await? else { return Ok(None) };
    match serde_json::from_slice(&found.body) {
        Ok(spec) => Ok(Some(spec)),
        // A deleted key has an empty body.
        Err(_) if found.body.is_empty() => Ok(None),
        Err(error) => Err(BrokerError::BadAnswer { what: subject, reason: error.to_string() }),
    }
}

/// Asks the hub for what is missing: to be the node, or, where this journal is, for its consumers. Where the link went down
/// meanwhile it is said once more on the new one.
pub(crate) async fn hello(node: &Node) {
    let hello = Hello { v: 1, node: node.name.clone(), journal: node.journal.id(), started_at: Some(node.started_at) };
    let subject = node.names.node_key(NodeKey::Hello, node.name.as_str());
    let Ok(body) = serde_json::to_vec(&hello) else { return };
    let message = Outgoing::new(subject, body);
    for _ in 0..2 {
        let times = node.broker.link().borrow().times;
        let Err(error) = node.broker.publish(&message, WITHIN).await else { return };
        tracing::debug!(%error, "hello");
        if node.broker.wait_up().await.is_err() || node.broker.link().borrow().times == times {
            return;
        }
    }
}
