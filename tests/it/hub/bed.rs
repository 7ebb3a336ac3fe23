//! A nats-server and hubs inside the test, and what is on the broker as plain values.

use crate::harness::open_to;
use edgeward::broker::{Broker, ConnectOptions, From, Outgoing, RawMessage};
use edgeward::hub::{self, HubError, HubOptions};
use edgeward::model::config::HubConfig;
use edgeward::model::id::{JournalId, StreamSeq};
use edgeward::model::name::NodeName;
use edgeward::model::node::{Hello, Spec};
use edgeward::model::record::Record;
use edgeward::model::subject::{NodeKey, RecordStream};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A nats-server that ends with the test.
pub struct Server {
    child: Child,
    pub port: u16,
    pub dir: tempfile::TempDir,
}

pub fn spawn(port: u16, dir: &Path, arguments: &[&str]) -> Child {
    Command::new(crate::harness::nats_server_binary())
        .args(["-a", "127.0.0.1", "-p", &port.to_string()])
        .args(["-sd".as_ref(), dir.as_os_str()])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nats-server starts")
}

impl Server {
    pub fn start(arguments: &[&str]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = spawn(port, dir.path(), arguments);
        Server { child, port, dir }
    }

    /// As after a power cut: killed, and started again on what it had stored.
    pub fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(self.port, self.dir.path(), &["-js"]);
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn options(&self) -> ConnectOptions {
        open_to(vec![self.url()])
    }

    pub async fn broker(&self) -> Broker {
        let broker = Broker::connect(&self.options()).await.unwrap();
        tokio::time::timeout(DEADLINE, broker.wait_up()).await.expect("nats-server starts").unwrap();
        broker
    }

    pub async fn raw(&self) -> Raw {
        Raw(async_nats::connect(self.url()).await.unwrap())
    }

    /// A hub that is ready.
    pub async fn hub(&self, config: HubConfig) -> Hub {
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let hub = self.hub_unready(config, Some(ready));
        tokio::time::timeout(DEADLINE, is_ready).await.expect("the hub is ready").unwrap();
        hub
    }

    pub fn hub_unready(&self, config: HubConfig, ready: Option<tokio::sync::oneshot::Sender<()>>) -> Hub {
        let stop = CancellationToken::new();
        let task = tokio::spawn(hub::run(HubOptions { connect: self.options(), config, ready }, stop.clone()));
        Hub { stop, task }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The JetStream API as any client has it.
pub struct Raw(pub async_nats::Client);

impl Raw {
    /// The answer, errors and all.
    pub async fn ask(&self, path: &str) -> Value {
        let answer = self.0.request(format!("$JS.API.{path}"), "".into()).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }
}

pub struct Hub {
    pub stop: CancellationToken,
    pub task: JoinHandle<Result<(), HubError>>,
}

impl Hub {
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// As `kill -9` does: at whatever step it is.
    pub fn kill(self) {
        self.task.abort();
    }
}

pub const DEADLINE: Duration = Duration::from_secs(20);

pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn config(auto_nodes: bool) -> HubConfig {
    HubConfig { store_bytes: 1 << 30, auto_nodes: Some(auto_nodes), ..HubConfig::default() }
}

pub fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

pub async fn publish(broker: &Broker, subject: &str, id: Option<&str>) -> StreamSeq {
    let mut message = Outgoing::new(subject, "true");
    if let Some(id) = id {
        message = message.with("Fleet-Id", id);
    }
    broker.publish(&message, DEADLINE).await.unwrap().seq
}

pub async fn spec(broker: &Broker, node: &str) -> Option<Spec> {
    let names = broker.names();
    let key = names.node_key(NodeKey::Spec, node);
    let entry = broker.get_last(&names.record_stream(RecordStream::Nodes), &key).await.unwrap()?;
    Some(serde_json::from_slice(&entry.body).unwrap())
}

pub async fn record(broker: &Broker, subject: &str) -> Option<Record> {
    let acks = broker.names().record_stream(RecordStream::Acks);
    let stored = broker.get_last(&acks, subject).await.unwrap()?;
    Some(serde_json::from_slice(&stored.body).unwrap())
}

pub async fn all(broker: &Broker, stream: &str, filter: &str) -> Vec<RawMessage> {
    broker.read_all(stream, filter, From::Seq(StreamSeq(1)), usize::MAX).await.unwrap()
}

pub async fn hello(broker: &Broker, node: &str) -> JournalId {
    let journal = JournalId::fresh();
    let hello = Hello { v: 1, node: name(node), journal, started_at: None };
    let key = broker.names().node_key(NodeKey::Hello, node);
    let body = serde_json::to_vec(&hello).unwrap();
    broker.publish(&Outgoing::new(key, body), DEADLINE).await.unwrap();
    journal
}

pub async fn with_start(broker: &Broker, node: &str) -> Spec {
    eventually("a spec with a start", || async { spec(broker, node).await.filter(|s| s.start.commands.is_some()) })
        .await
}

pub async fn consumer(raw: &Raw, stream: &str, node: &str) -> Value {
    eventually("a consumer", || async {
        Some(raw.ask(&format!("CONSUMER.INFO.{stream}.{node}")).await).filter(|info| info.get("error").is_none())
    })
    .await
}
