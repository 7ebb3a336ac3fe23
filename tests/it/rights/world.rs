//! A nats-server under the sample configuration, with the streams that the hub makes, and users of it.
//!
//! Owns the server's process and folder. Uses raw async-nats: what is tested is the broker's judgement, not our client.

use async_nats::{Client, ConnectOptions, Event, HeaderMap, Message};
use bytes::Bytes;
use edgeward::model::rights::conf::{User, render_conf, sample_users};
use edgeward::model::rights::{Only, Role, inbox};
use edgeward::model::subject::Names;
use futures::StreamExt;
use nkeys::KeyPair;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

pub const PATIENCE: Duration = Duration::from_secs(20);
const EXTRA: [&str; 3] = ["van3", "bob", "eye"];
const MESSAGES: [&str; 2] = ["FLEET_COMMANDS", "FLEET_EVENTS"];

/// A server that is stopped with this value.
pub struct World {
    server: Child,
    seeds: BTreeMap<String, String>,
    pub url: String,
    folder: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

pub fn sample_key_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/sample-keys").join(format!("{name}.nk"))
}

impl World {
    /// Starts a server with the sample's users and three more: the node `van3`, which may send commands, the operator
    /// `bob`, who may send `log` to `ship1`, and the observer `eye`. `more` is added to the configuration.
    pub async fn start(more: &str) -> World {
        let folder = tempfile::tempdir().unwrap();
        let mut users = sample_users().unwrap();
        let mut seeds: BTreeMap<String, String> = users
            .iter()
            .map(|user| (user.name.to_string(), std::fs::read_to_string(sample_key_file(user.name.as_str())).unwrap()))
            .map(|(name, seed)| (name, seed.trim().to_owned()))
            .collect();
        for name in EXTRA {
            let pair = KeyPair::new_user();
            seeds.insert(name.to_owned(), pair.seed().unwrap());
            users.push(User { name: name.parse().unwrap(), role: extra_role(name), key: pair.public_key() });
        }
        let store = folder.path().join("store").to_string_lossy().into_owned();
        let conf = render_conf(&Names::default(), &users)
            .replace("sync_interval: always", "sync_interval: \"2m\"")
            .replace("\"nats-data\"", &format!("{store:?}"));
        let path = folder.path().join("nats-server.conf");
        std::fs::write(&path, format!("{conf}\n{more}\n")).unwrap();
        let server = Command::new(crate::harness::nats_server_binary())
            .arg("-c")
            .arg(&path)
            .args(["-a", "127.0.0.1", "-p", "-1", "-l"])
            .arg(folder.path().join("log"))
            .arg("--ports_file_dir")
            .arg(folder.path())
            .stdin(Stdio::null())
            .spawn()
            .expect("nats-server starts");
        let mut world = World { server, seeds, url: String::new(), folder };
        world.url = world.wait_for_port().await;
        world.make_streams().await;
        world
    }

    async fn wait_for_port(&mut self) -> String {
        let file = self.folder.path().join(format!("nats-server_{}.ports", self.server.id()));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if let Some(url) =
                serde_json::from_str::<Value>(&text).ok().and_then(|v| v["nats"][0].as_str().map(Into::into))
            {
                return url;
            }
            assert!(self.server.try_wait().unwrap().is_none(), "nats-server ended at once: {}", self.log());
            assert!(Instant::now() < deadline, "nats-server wrote no ports file: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    async fn make_streams(&self) {
        let hub = self.user("hub").await;
        let republish = json!({"src": "fleet.>", "dest": "fleet.stored.>"});
        let streams = [
            json!({"name": "FLEET_COMMANDS", "subjects": ["fleet.msg.*.command.*.>", "fleet.msg.*.control.*.>"], "discard": "new"}),
            json!({"name": "FLEET_EVENTS", "subjects": ["fleet.msg.*.event.*.>"], "discard": "new"}),
            json!({"name": "FLEET_ACKS", "subjects": ["fleet.ack.>", "fleet.progress.>", "fleet.late.>"], "republish": republish}),
            json!({"name": "FLEET_OUTPUT", "subjects": ["fleet.output.>"], "republish": republish}),
            json!({"name": "FLEET_ERRORS", "subjects": ["fleet.error.>"], "republish": republish}),
            json!({"name": "KV_FLEET_NODES", "subjects": ["$KV.FLEET_NODES.>"], "max_msgs_per_subject": 1,
                "deny_delete": true, "allow_rollup_hdrs": false,
                "republish": {"src": "$KV.FLEET_NODES.>", "dest": "fleet.stored.nodes.>"}}),
        ];
        for mut stream in streams {
            stream["storage"] = "file".into();
            stream["allow_direct"] = true.into();
            stream["max_consumers"] = 1000.into();
            let subject = format!("$JS.API.STREAM.CREATE.{}", stream["name"].as_str().unwrap());
            hub.ask(&subject, &stream.to_string()).await;
        }
        for node in ["ship1", "ship2", "van3"] {
            for stream in MESSAGES {
                let config = json!({"durable_name": node, "name": node, "ack_policy": "all", "max_deliver": -1,
                    "ack_wait": 3_600_000_000_000_u64, "deliver_policy": "by_start_sequence", "opt_start_seq": 1,
                    "filter_subjects": [format!("fleet.msg.{node}.>")]});
                let request = json!({"stream_name": stream, "action": "create", "config": config});
                hub.ask(&format!("$JS.API.CONSUMER.CREATE.{stream}.{node}"), &request.to_string()).await;
            }
            hub.ask(&format!("$KV.FLEET_NODES.spec.{node}"), r#"{"v":1}"#).await;
        }
    }

    /// Connects one of the users.
    pub async fn user(&self, name: &str) -> Connected {
        let (events, refusals) = mpsc::unbounded_channel();
        let client = ConnectOptions::with_nkey(self.seeds[name].clone())
            .custom_inbox_prefix(inbox(name))
            .request_timeout(Some(PATIENCE))
            .event_callback(move |event| {
                let events = events.clone();
                async move {
                    if let Event::ServerError(error) = event {
                        let _ = events.send(error.to_string().to_lowercase());
                    }
                }
            })
            .connect(&self.url)
            .await
            .unwrap_or_else(|error| panic!("{name} cannot connect: {error}"));
        Connected { client, refusals }
    }
}

fn extra_role(name: &str) -> Role {
    let log = || Only::These(vec!["log".parse().unwrap()]);
    match name {
        "van3" => Role::Node { may_command: true },
        "bob" => Role::Operator { targets: Only::These(vec!["ship1".parse().unwrap()]), methods: log() },
        _ => Role::Observer,
    }
}

/// A connected user, and what the broker refused it.
pub struct Connected {
    pub client: Client,
    refusals: mpsc::UnboundedReceiver<String>,
}

impl Connected {
    /// Asks and gets an answer that is no error.
    pub async fn ask(&self, subject: &str, body: &str) -> Value {
        let answer = self.answer(subject, HeaderMap::new(), body).await;
        let value: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
        assert!(value.get("error").is_none(), "{subject}: {value}");
        value
    }

    /// Asks with headers and gets whatever comes.
    pub async fn answer(&self, subject: &str, headers: HeaderMap, body: &str) -> Message {
        let (subject, body) = (subject.to_owned(), Bytes::copy_from_slice(body.as_bytes()));
        let answer = self.client.request_with_headers(subject.clone(), headers, body).await;
        answer.unwrap_or_else(|error| panic!("{subject}: {error}"))
    }

    /// The replies of a request: `most` of them, or all up to the one without a body that ends them.
    pub async fn answers(&self, subject: &str, body: String, most: usize) -> Vec<Message> {
        let inbox = self.client.new_inbox();
        let mut replies = self.client.subscribe(inbox.clone()).await.unwrap();
        self.client.publish_with_reply(subject.to_owned(), inbox, body.into()).await.unwrap();
        let mut messages = Vec::new();
        while messages.len() < most {
            let next = tokio::time::timeout(PATIENCE, replies.next()).await;
            let message = next.unwrap_or_else(|_| panic!("cut after {} messages", messages.len())).unwrap();
            match message.status {
                Some(status) if status.as_u16() >= 200 && message.payload.is_empty() => break,
                _ => messages.push(message),
            }
        }
        messages
    }

    /// Publishes without waiting for anything.
    pub async fn send(&self, subject: &str, reply: &str, body: &str) {
        let body = Bytes::copy_from_slice(body.as_bytes());
        self.client.publish_with_reply(subject.to_owned(), reply.to_owned(), body).await.unwrap();
    }

    /// Publishes and waits until the broker has refused it.
    pub async fn refused(&mut self, subject: &str) {
        let reply = self.client.new_inbox();
        self.send(subject, &reply, "{}").await;
        self.wait_for_refusal("publish", subject).await;
    }

    /// Subscribes and waits until the broker has refused it.
    pub async fn refused_to_subscribe(&mut self, subject: &str) {
        let _subscription = self.client.subscribe(subject.to_owned()).await.unwrap();
        self.wait_for_refusal("subscription", subject).await;
    }

    async fn wait_for_refusal(&mut self, verb: &str, subject: &str) {
        let wanted = format!("permissions violation for {verb} to \"{}\"", subject.to_lowercase());
        let found = async {
            while let Some(refusal) = self.refusals.recv().await {
                if refusal.contains(&wanted) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("not refused: {verb} to {subject}"));
    }

    /// As the hub: how many messages each subject of all streams has.
    pub async fn stored(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for stream in ["FLEET_COMMANDS", "FLEET_EVENTS", "FLEET_ACKS", "FLEET_OUTPUT", "FLEET_ERRORS", "KV_FLEET_NODES"]
        {
            let info = self.ask(&format!("$JS.API.STREAM.INFO.{stream}"), r#"{"subjects_filter":">"}"#).await;
            let Some(subjects) = info["state"]["subjects"].as_object() else { continue };
            all.extend(subjects.iter().map(|(subject, count)| (subject.clone(), count.as_u64().unwrap())));
        }
        all
    }

    /// As the hub: the ack floor of a consumer.
    pub async fn ack_floor(&self, stream: &str, consumer: &str) -> u64 {
        let info = self.ask(&format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}"), "").await;
        info["ack_floor"]["stream_seq"].as_u64().unwrap()
    }
}
