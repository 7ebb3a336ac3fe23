//! A broker, a hub and some agents, ready for messages.

use super::broker::TestBroker;
use super::cli::Cli;
use super::process::Process;
use super::wait::{SOON, wait_until};
use edgeward::broker::{Broker, Outgoing, RawMessage, Stored};
use edgeward::model::header::RawHeaders;
use edgeward::model::id::StreamSeq;
use edgeward::model::node::Status;
use edgeward::model::record::Record;
use edgeward::model::subject::{NodeKey, RecordStream};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a publish may take.
const PUBLISH: Duration = Duration::from_secs(10);

/// A broker, a hub, agents with a beat of one second, and a connection of the test's own.
#[derive(Debug)]
pub struct Fleet {
    agents: BTreeMap<String, Process>,
    /// The hub.
    pub hub: Process,
    /// The test's own connection.
    pub client: Broker,
    /// The broker; dropped last, so that nothing complains about its end.
    pub broker: TestBroker,
}

impl Fleet {
    /// All of it, each node having been in contact.
    pub async fn start(nodes: &[&str]) -> Fleet {
        Fleet::at(TestBroker::start().await, nodes).await
    }

    /// The same at a broker that is there.
    pub async fn at(broker: TestBroker, nodes: &[&str]) -> Fleet {
        let client = broker.client().await;
        let mut hub = Process::hub(&broker.url());
        hub.start();
        let mut fleet = Fleet { agents: BTreeMap::new(), hub, client, broker };
        let url = fleet.broker.url();
        for node in nodes {
            fleet.agents.insert((*node).to_owned(), Process::agent(node, &url));
            fleet.agent(node).start();
        }
        for node in nodes {
            fleet.contact_after(node, StreamSeq(0)).await;
        }
        fleet
    }

    /// Adds an agent and starts it, without waiting for contact.
    pub fn add(&mut self, node: &str, mut agent: Process) {
        agent.start();
        self.agents.insert(node.to_owned(), agent);
    }

    /// A node's agent.
    pub fn agent(&mut self, node: &str) -> &mut Process {
        self.agents.get_mut(node).unwrap_or_else(|| panic!("no agent for {node}"))
    }

    /// Starts a node's agent and waits until it says how it is: a status stored after this call.
    pub async fn start_agent(&mut self, node: &str) -> Status {
        let before = self.status_message(node).await.map_or(StreamSeq(0), |message| message.seq);
        self.agent(node).start();
        self.contact_after(node, before).await
    }

    /// A node's last status.
    pub async fn status(&self, node: &str) -> Option<Status> {
        self.status_message(node).await.and_then(|message| serde_json::from_slice(&message.body).ok())
    }

    async fn status_message(&self, node: &str) -> Option<RawMessage> {
        let names = self.client.names();
        self.client
            .get_last(&names.record_stream(RecordStream::Nodes), &names.node_key(NodeKey::Status, node))
            .await
            .ok()?
    }

    async fn contact_after(&self, node: &str, before: StreamSeq) -> Status {
        wait_until(SOON, format!("a status of {node} after {before}"), async || {
            let message = self.status_message(node).await.ok_or("no status")?;
            let text = String::from_utf8_lossy(&message.body).into_owned();
            let status: Status = serde_json::from_slice(&message.body).map_err(|e| format!("{e}: {text}"))?;
            if message.seq > before && status.stopped != Some(true) { Ok(status) } else { Err(text) }
        })
        .await
    }

    /// Publishes a raw message and waits for the broker's word.
    pub async fn publish(&self, subject: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Stored {
        let mut message = Outgoing::new(subject, body.as_ref().to_vec());
        message.headers = headers.iter().fold(RawHeaders::default(), |all, (n, v)| all.with(n, *v));
        self.client.publish(&message, PUBLISH).await.unwrap_or_else(|error| panic!("{subject}: {error}"))
    }

    /// Sends a command to a node as `ops`; its id is the one that its sequence gives it: `s<sequence>`.
    pub async fn command(&self, node: &str, method: &str, body: impl AsRef<[u8]>) -> String {
        let stored = self.publish(&format!("fleet.msg.{node}.command.ops.{method}"), &[], body).await;
        format!("s{}", stored.seq.0)
    }

    /// Waits for the terminal record of a message.
    pub async fn record(&self, node: &str, from: &str, method: &str, id: &str) -> Record {
        self.record_within(SOON, node, from, method, id).await
    }

    /// The same with a deadline of the caller's own.
    pub async fn record_within(&self, within: Duration, node: &str, from: &str, method: &str, id: &str) -> Record {
        let subject = format!("fleet.ack.{node}.{from}.{method}.{id}");
        let stream = self.client.names().record_stream(RecordStream::Acks);
        wait_until(within, format!("the record {subject}"), async || {
            let message = self.client.get_last(&stream, &subject).await.map_err(|e| e.to_string())?;
            let message = message.ok_or("no such record")?;
            serde_json::from_slice(&message.body)
                .map_err(|e| format!("{e}: {}", String::from_utf8_lossy(&message.body)))
        })
        .await
    }

    /// Waits for the first progress record of a message: it runs, and has done so for a while.
    pub async fn record_progress(&self, node: &str, from: &str, method: &str, id: &str) -> Record {
        let subject = format!("fleet.progress.{node}.{from}.{method}.{id}");
        let stream = self.client.names().record_stream(RecordStream::Acks);
        wait_until(SOON, format!("the record {subject}"), async || {
            let message = self.client.get_last(&stream, &subject).await.map_err(|e| e.to_string())?;
            serde_json::from_slice(&message.ok_or("no such record")?.body).map_err(|e| e.to_string())
        })
        .await
    }

    /// Sends a command to a node as `ops` and waits for what became of it.
    pub async fn run(&self, node: &str, method: &str, body: impl AsRef<[u8]>) -> Record {
        let id = self.command(node, method, body).await;
        self.record(node, "ops", method, &id).await
    }

    /// `edgeward` as the operator `ops` at this broker.
    pub fn cli(&self) -> Cli {
        Cli::edgeward(&self.broker.url())
    }
}
