//! A node behind a link of its own, whose commands write numbers into a file: what ran twice, never, or out of order shows.

use super::broker::TestBroker;
use super::fleet::Fleet;
use super::process::Process;
use super::proxy::Proxy;
use super::wait::{SOON, wait_until};
use edgeward::broker::{From, Outgoing};
use edgeward::model::id::StreamSeq;
use edgeward::model::record::Record;
use edgeward::model::state::State;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// A fleet of one node behind a link of its own, whose commands write numbers into a file, in one lane.
#[derive(Debug)]
pub struct Ship {
    /// All of it.
    pub fleet: Fleet,
    /// The node's link.
    pub proxy: Proxy,
    /// How many numbers were sent.
    pub count: usize,
    folder: TempDir,
}

impl Ship {
    /// A ship in contact.
    pub async fn start() -> Ship {
        let broker = TestBroker::start().await;
        let port = broker.server.port();
        Ship::behind(broker, port, |agent| agent).await
    }

    /// A ship whose link leads to this port of this machine, its agent changed.
    pub async fn behind(broker: TestBroker, port: u16, change: impl FnOnce(Process) -> Process) -> Ship {
        let mut fleet = Fleet::at(broker, &[]).await;
        let proxy = Proxy::start(port).await;
        fleet.add("ship1", change(Process::agent("ship1", &proxy.url())));
        wait_until(SOON, "contact", async || fleet.status("ship1").await).await;
        Ship { fleet, proxy, folder: tempfile::tempdir().unwrap(), count: 0 }
    }

    /// The file of numbers.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("f")
    }

    /// The id of a number's message.
    pub fn id(n: usize) -> String {
        format!("n{n}")
    }

    /// Sends the next numbers. A publish that the broker did not answer is repeated with the same id.
    pub async fn send(&mut self, count: usize) {
        for _ in 0..count {
            let body = format!("echo {} >> {}", self.count, self.file().display());
            self.send_body(body).await;
        }
    }

    /// Sends the next number with a body of the test's own.
    pub async fn send_body(&mut self, body: String) {
        let id = Ship::id(self.count);
        let message = Outgoing::new("fleet.msg.ship1.command.ops.shell", body).with("Nats-Msg-Id", id);
        wait_until(SOON, "the broker to store it", async || {
            self.fleet.client.publish(&message, Duration::from_secs(1)).await
        })
        .await;
        self.count += 1;
    }

    /// What was written so far.
    pub fn lines(&self) -> Vec<String> {
        fs::read_to_string(self.file()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Waits until a number was written.
    pub async fn has(&self, n: usize) {
        wait_until(SOON, format!("line {n}"), async || {
            let lines = self.lines();
            if lines.contains(&n.to_string()) { Ok(()) } else { Err(format!("{lines:?}")) }
        })
        .await;
    }

    /// All that was sent has succeeded, once and in order.
    pub async fn all_ran(&self) {
        for n in 0..self.count {
            assert_eq!(self.record(n).await.state, State::Succeeded, "{n}");
        }
        let expected: Vec<String> = (0..self.count).map(|n| n.to_string()).collect();
        assert_eq!(self.lines(), expected);
    }

    /// Waits for the record of a number.
    pub async fn record(&self, n: usize) -> Record {
        self.fleet.record("ship1", "ops", "shell", &Ship::id(n)).await
    }

    /// A connection without edgeward.
    pub async fn raw(&self) -> async_nats::Client {
        async_nats::connect(self.fleet.broker.url()).await.unwrap()
    }

    /// The JetStream API's answer; an error fails the test.
    pub async fn api(&self, path: &str, body: Value) -> Value {
        let answer = self.raw().await.request(format!("$JS.API.{path}"), body.to_string().into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert!(answer.get("error").is_none(), "{path}: {answer}");
        answer
    }

    /// How many error events of this code the node has told.
    pub async fn errors(&self, code: &str) -> usize {
        let filter = format!("fleet.error.ship1.*.{code}");
        self.fleet.client.read_all("FLEET_ERRORS", &filter, From::Seq(StreamSeq(1)), 100).await.unwrap().len()
    }

    /// Waits until the agent has said so, as often as that.
    pub async fn says(&mut self, text: &str, times: usize) {
        wait_until(SOON, format!("`{text}` from the agent"), async || {
            self.fleet.agent("ship1").stderr().matches(text).count() >= times
        })
        .await;
    }
}
