//! Three nats-servers with three copies of each stream: any one of them may be killed and come back, with its disk or without.

use crate::harness::{Process, SOON, nats_server_binary, wait_until};
use edgeward::broker::{Access, Broker, ConnectOptions, Outgoing};
use edgeward::model::id::StreamSeq;
use edgeward::model::record::Record;
use edgeward::model::state::State;
use edgeward::model::subject::{Names, RecordStream};
use edgeward::server::{Options, Server};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What a new leader takes: nats-server waits 4 to 9 s before it elects one, and a stream and a bucket may need one each.
const ELECTION: Duration = Duration::from_secs(20);

struct Cluster {
    servers: Vec<Server>,
    folders: TempDir,
}

impl Cluster {
    async fn start() -> Cluster {
        let folders = tempfile::tempdir().unwrap();
        // All at once, so that no two are the same.
        let listeners: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let routes: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(listeners);
        let all: Vec<String> = routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let starts = routes.iter().enumerate().map(|(n, port)| {
            let mut options = Options::new(nats_server_binary(), folders.path().join(format!("nats{n}")));
            options.sync_always = true;
            options.ready_within = SOON;
            options.extra_config = format!(
                "server_name: \"s{n}\"\ncluster {{ name: c, listen: \"127.0.0.1:{port}\", routes: [{}] }}",
                all.join(", ")
            );
            Server::start(options)
        });
        let servers = futures::future::try_join_all(starts).await.unwrap();
        Cluster { servers, folders }
    }

    fn urls(&self) -> Vec<String> {
        self.servers.iter().map(Server::url).collect()
    }

    async fn client(&self) -> Broker {
        let options = ConnectOptions {
            servers: self.urls(),
            access: Access::Open,
            tls_ca: None,
            insecure: false,
            name: "test".to_owned(),
            identity: None,
            names: Names::default(),
            api_prefix: None,
            keep_trying: true,
        };
        let broker = Broker::connect(&options).await.unwrap();
        broker.wait_up().await.unwrap();
        broker
    }

    /// What a server that runs says to this API request.
    async fn ask(&self, path: &str) -> Option<Value> {
        let url = self.servers.iter().find(|server| server.pid().is_some()).map(Server::url)?;
        let client = async_nats::connect(url).await.ok()?;
        let answer = client.request(format!("$JS.API.{path}"), "".into()).await.ok()?;
        serde_json::from_slice(&answer.payload).ok()
    }

    /// The number of the server that holds a node's consumer of commands.
    async fn holder(&self, node: &str) -> usize {
        wait_until(SOON, "the consumer's server", async || {
            let info = self.ask(&format!("CONSUMER.INFO.FLEET_COMMANDS.{node}")).await?;
            info["cluster"]["leader"].as_str()?.strip_prefix('s')?.parse().ok()
        })
        .await
    }

    /// Waits until every copy of every stream is there and current.
    async fn whole(&self) {
        wait_until(2 * SOON, "all copies current", async || {
            let answer = self.ask("STREAM.LIST").await.ok_or_else(|| "no answer".to_owned())?;
            let streams = answer["streams"].as_array().cloned().unwrap_or_default();
            let current = |stream: &Value| {
                let copies = stream["cluster"]["replicas"].as_array().cloned().unwrap_or_default();
                let good = |copy: &Value| copy["current"] == true && copy["offline"] != true;
                stream["cluster"]["leader"].is_string() && copies.len() == 2 && copies.iter().all(good)
            };
            if streams.len() == 6 && streams.iter().all(current) { Ok(()) } else { Err(answer.to_string()) }
        })
        .await;
    }

    fn lose_disk(&self, n: usize) {
        fs::remove_dir_all(self.folders.path().join(format!("nats{n}/jetstream"))).unwrap();
    }
}

/// Sends until it is stored; once, whatever the broker said on the way.
async fn send(client: &Broker, node: &str, id: &str, body: &str) -> StreamSeq {
    let message = Outgoing::new(format!("fleet.msg.{node}.command.ops.shell"), body.to_owned())
        .with("Fleet-Id", id)
        .with("Nats-Msg-Id", id);
    wait_until(ELECTION + SOON, "it is stored", async || {
        client.publish(&message, Duration::from_secs(1)).await.map(|stored| stored.seq)
    })
    .await
}

async fn result(client: &Broker, node: &str, id: &str) -> Record {
    let acks = client.names().record_stream(RecordStream::Acks);
    let subject = format!("fleet.ack.{node}.ops.shell.{id}");
    wait_until(ELECTION + SOON, &subject, async || {
        let message = client.get_last(&acks, &subject).await.map_err(|e| e.to_string())?.ok_or("none")?;
        serde_json::from_slice(&message.body).map_err(|e| e.to_string())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_loses_nothing_with_its_disk_or_without() {
    let mut cluster = Cluster::start().await;
    let urls = cluster.urls().join(",");
    let mut hub = Process::hub(&urls).env("EDGEWARD_HUB__REPLICAS", "3");
    hub.start();
    let nodes = ["ship", "van", "bike"];
    let mut agents: Vec<Process> = nodes.iter().map(|node| Process::agent(node, &urls)).collect();
    agents.iter_mut().for_each(Process::start);
    let client = cluster.client().await;
    let out = tempfile::tempdir().unwrap();
    let mut sent = Vec::new();
    for (round, keeps_disk) in [("start", true), ("with", true), ("without", false)] {
        let killed = if round == "start" { None } else { Some(cluster.holder("ship").await) };
        if let Some(n) = killed {
            cluster.servers[n].kill().await.unwrap();
        }
        let began = Instant::now();
        for number in 0..4 {
            for node in nodes {
                let id = format!("{round}-{node}-{number}");
                let line = format!("echo {id} >> {}/{node}", out.path().display());
                let seq = send(&client, node, &id, &line).await;
                sent.push((node, seq, id));
            }
        }
        for (node, seq, id) in sent.iter().filter(|(_, _, id)| id.starts_with(&format!("{round}-"))) {
            let record = result(&client, node, id).await;
            assert_eq!((record.state, record.seq), (State::Succeeded, *seq), "{id}");
        }
        // 5 s for a lost consumer, and what the servers take to agree on new leaders before that.
        assert!(began.elapsed() < ELECTION + Duration::from_secs(5), "{round}: {:?}", began.elapsed());
        if let Some(n) = killed {
            if !keeps_disk {
                cluster.lose_disk(n);
            }
            cluster.servers[n].restart().await.unwrap();
        }
        cluster.whole().await;
    }
    for node in nodes {
        let lines = fs::read_to_string(out.path().join(node)).unwrap();
        let expected: Vec<&str> = sent.iter().filter(|(to, ..)| *to == node).map(|(.., id)| id.as_str()).collect();
        assert_eq!(lines.lines().collect::<Vec<_>>(), expected, "each once, in order");
    }
}
