//! Lists of nodes: which are wanted, in which order, and how they change.
//!
//! Owns selecting and following. What is followed may miss a change while the link is down, so all of it is read again now
//! and then. Never writes node state.

use super::error::OperatorError;
use super::nodes::{NodeFacts, nodes, read_key, stream_facts};
use crate::broker::{Broker, BrokerError, Follower};
use crate::model::node::Contact;
use crate::model::pattern::Pattern;
use crate::model::subject::RecordStream;
use crate::model::time::Timestamp;
use futures::FutureExt;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How often all nodes are read again while they are followed.
const READ_AGAIN: Duration = Duration::from_secs(60);

/// How often contact is judged anew: a node falls silent without a word.
const LOOK: Duration = Duration::from_secs(1);

/// Which nodes; nothing said means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFilter {
    /// One of these matches the name.
    pub names: Vec<Pattern>,
    /// The node's contact is one of these.
    pub contacts: Vec<Contact>,
    /// The node has all of these labels, with these values.
    pub labels: Vec<(String, String)>,
}

impl NodeFilter {
    /// True for a node that is wanted.
    pub fn wants(&self, node: &str, facts: &NodeFacts, now: Timestamp) -> bool {
        let labels = facts.status.as_ref().and_then(|(status, _)| status.labels.as_ref());
        let has = |(key, value): &(String, String)| labels.and_then(|all| all.get(key)) == Some(value);
        (self.names.is_empty() || self.names.iter().any(|pattern| pattern.matches(node)))
            && (self.contacts.is_empty() || self.contacts.contains(&facts.contact(now)))
            && self.labels.iter().all(has)
    }
}

/// All nodes as they are known, kept up to date.
pub struct NodeList {
    broker: Broker,
    /// Where it is to be kept up to date.
    follower: Option<Follower>,
    nodes: BTreeMap<String, NodeFacts>,
    /// The broker's time at the last reading, and when that was here.
    read: (Timestamp, Instant),
}

impl NodeList {
    /// Reads all nodes; with `follow` it can be kept up to date.
    pub async fn open(broker: &Broker, follow: bool) -> Result<NodeList, OperatorError> {
        let follower = if follow { Some(broker.follow_nodes("*.*").await?) } else { None };
        let (nodes, read) = read(broker).await?;
        Ok(NodeList { broker: broker.clone(), follower, nodes, read })
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> &BTreeMap<String, NodeFacts> {
        &self.nodes
    }

    /// The broker's time now, nearly.
    pub fn now(&self) -> Timestamp {
        self.read.0.plus(self.read.1.elapsed())
    }

    /// Waits a second, takes in what came meanwhile, and reads all again where it is due. Safe to drop and call again.
    pub async fn changed(&mut self) -> Result<(), OperatorError> {
        tokio::time::sleep(LOOK).await;
        while let Some(raw) = self.follower.as_mut().and_then(|follower| follower.next().now_or_never()) {
            let raw = raw.ok_or(BrokerError::Closed)?;
            if let Some((key, node)) = read_key(&self.broker, &raw.subject) {
                self.nodes.entry(node.to_owned()).or_default().take(key, &raw);
            }
        }
        if self.read.1.elapsed() >= READ_AGAIN {
            match read(&self.broker).await {
                Ok((nodes, read)) => (self.nodes, self.read) = (nodes, read),
                Err(OperatorError::Broker(BrokerError::Closed)) => return Err(BrokerError::Closed.into()),
                Err(error) => tracing::debug!(?error, "reading again later"),
            }
        }
        Ok(())
    }
}

async fn read(broker: &Broker) -> Result<(BTreeMap<String, NodeFacts>, (Timestamp, Instant)), OperatorError> {
    let now = stream_facts(broker, &broker.names().record_stream(RecordStream::Nodes)).await?.now;
    let read = (now, Instant::now());
    Ok((nodes(broker).await?, read))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_wanted_by_name_contact_and_all_labels() {
        let now = Timestamp::from_nanos(0);
        let status = r#"{"v":1,"node":"ship1","labels":{"site":"north","role":"web"}}"#;
        let facts = NodeFacts { status: Some((serde_json::from_str(status).unwrap(), now)), ..NodeFacts::default() };
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let wants = |filter: NodeFilter| filter.wants("ship1", &facts, now);
        assert!(wants(NodeFilter::default()));
        let names = vec!["van*".parse().unwrap(), "ship?".parse().unwrap()];
        assert!(wants(NodeFilter { names: names.clone(), ..NodeFilter::default() }));
        assert!(!wants(NodeFilter { names: names[..1].to_vec(), ..NodeFilter::default() }));
        assert!(!wants(NodeFilter { contacts: vec![Contact::Silent], ..NodeFilter::default() }));
        let labels = vec![pair("site", "north"), pair("role", "web")];
        assert!(wants(NodeFilter { labels, ..NodeFilter::default() }));
        let labels = vec![pair("site", "north"), pair("role", "db")];
        assert!(!wants(NodeFilter { labels, ..NodeFilter::default() }));
    }
}
