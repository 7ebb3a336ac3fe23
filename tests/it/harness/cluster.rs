//! Three nats-servers that are one broker: each may be killed and come back, with its disk or without.

use super::broker::nats_server_binary;
use super::wait::{SOON, wait_until};
use async_nats::{HeaderMap, Message};
use edgeward::server::{Options, Server};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::time::timeout;

/// What nats-server takes at most to elect a leader: it waits 4 to 9 s for a word of the old one, and votes may split.
pub const ELECTION: Duration = Duration::from_secs(20);

/// Three servers; they end, with their folders, when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    pub servers: Vec<Server>,
    folders: TempDir,
}

impl Cluster {
    /// Three servers that know each other, and tell no client of the others.
    pub async fn start() -> Cluster {
        let folders = tempfile::tempdir().unwrap();
        // All at once, so that no two are the same.
        let listeners: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let routes: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(listeners);
        let all: Vec<String> = routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let starts = routes.iter().enumerate().map(|(n, port)| {
            let mut options = Options::new(nats_server_binary(), folder(folders.path(), n));
            options.sync_always = true;
            options.ready_within = SOON;
            options.extra_config = format!(
                "server_name: \"s{n}\"\n\
                 cluster {{ name: c, listen: \"127.0.0.1:{port}\", no_advertise: true, routes: [{}] }}",
                all.join(", ")
            );
            Server::start(options)
        });
        let servers = futures::future::try_join_all(starts).await.unwrap();
        Cluster { servers, folders }
    }

    /// The addresses of all of them.
    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(Server::url).collect()
    }

    /// Takes a killed server's disk.
    pub fn lose_disk(&self, n: usize) {
        fs::remove_dir_all(folder(self.folders.path(), n).join("jetstream")).unwrap();
    }

    /// The number of the server that leads a node's consumer of commands.
    pub async fn holder(&self, node: &str) -> usize {
        wait_until(SOON, "the consumer's server", async || {
            let info = self.ask(&format!("CONSUMER.INFO.FLEET_COMMANDS.{node}")).await?;
            number(info["cluster"]["leader"].as_str()?)
        })
        .await
    }

    /// The number of the server that leads a stream.
    pub async fn leader(&self, stream: &str) -> usize {
        wait_until(SOON, format!("the leader of {stream}"), async || {
            let info = self.ask(&format!("STREAM.INFO.{stream}")).await?;
            number(info["cluster"]["leader"].as_str()?)
        })
        .await
    }

    /// What keeps this many copies of each of the six streams, its leader's included, from being there and current.
    pub async fn lacks(&self, copies: usize) -> Option<String> {
        let Some(answer) = self.ask("STREAM.LIST").await else { return Some("no answer".to_owned()) };
        let streams = answer["streams"].as_array().cloned().unwrap_or_default();
        let is_whole = |stream: &Value| {
            let others = stream["cluster"]["replicas"].as_array().cloned().unwrap_or_default();
            let good = others.iter().filter(|copy| copy["current"] == true && copy["offline"] != true).count();
            stream["cluster"]["leader"].is_string() && good + 1 >= copies
        };
        let whole = streams.len() == 6 && streams.iter().all(is_whole);
        (!whole).then(|| answer.to_string())
    }

    /// Waits until every copy of every stream is there and current.
    pub async fn whole(&self) {
        wait_until(2 * SOON, "all copies current", async || self.lacks(3).await.map_or(Ok(()), Err)).await;
    }

    /// How long after `since` each of these has a leader that answers: the API's own, and the streams'. What it asks for
    /// changes nothing.
    pub async fn led(&self, since: Instant) -> Vec<(&'static str, Duration)> {
        const ASKED: [(&str, &str); 4] = [
            ("API", "$JS.API.STREAM.NAMES"),
            ("FLEET_COMMANDS", "fleet.msg.probe.command.probe.probe"),
            ("FLEET_ACKS", "fleet.ack.probe.probe.probe.probe"),
            ("FLEET_NODES", "$KV.FLEET_NODES.status.probe"),
        ];
        let client = self.client().await.unwrap();
        let led = ASKED.map(|(name, subject)| {
            let client = client.clone();
            async move {
                wait_until(ELECTION, format!("a leader of {name}"), async || {
                    // No subject has this as its last sequence: refused by the leader, whose word it is.
                    let mut headers = HeaderMap::new();
                    headers.insert("Nats-Expected-Last-Subject-Sequence", "999999999");
                    let asked = client.request_with_headers(subject, headers, "".into());
                    timeout(Duration::from_millis(300), asked).await.ok()?.ok()
                })
                .await;
                (name, since.elapsed())
            }
        });
        futures::future::join_all(led).await
    }

    /// What a server that runs says to this API request.
    async fn ask(&self, path: &str) -> Option<Value> {
        let answer: Message = self.client().await?.request(format!("$JS.API.{path}"), "".into()).await.ok()?;
        serde_json::from_slice(&answer.payload).ok()
    }

    async fn client(&self) -> Option<async_nats::Client> {
        let url = self.servers.iter().find(|server| server.pid().is_some()).map(Server::url)?;
        async_nats::connect(url).await.ok()
    }
}

fn folder(folders: &Path, n: usize) -> std::path::PathBuf {
    folders.join(format!("nats{n}"))
}

fn number(name: &str) -> Option<usize> {
    name.strip_prefix('s')?.parse().ok()
}
