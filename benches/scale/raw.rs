//! What many nodes are compared with: the same stream operations by async-nats alone, in the same bed.
//!
//! The same means: the streams and the consumers are those that the hub has made, for nodes that have gone since; each raw
//! node has a connection and an open pull, and for each message stores a record where there is none, acks, and stores a
//! status, with the headers and bodies of real ones; the records are followed as the broker repeats them. What is left out is
//! the hub, which reads along, the sessions, and the command line.

use async_nats::{Client, ConnectOptions, HeaderMap, Message, Subscriber, jetstream};
use edgeward::model::header::names as header;
use edgeward::model::id::{MessageId, MsgRef, StreamSeq};
use edgeward::model::message::StreamKind;
use edgeward::model::name::NodeName;
use edgeward::model::record::{By, Record};
use edgeward::model::state::State;
use edgeward::model::time::Timestamp;
use futures::StreamExt;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Connections that are made at once.
const AT_ONCE: usize = 64;

/// Publishes that may be without their answer, as many as an operator's.
const IN_FLIGHT: usize = 64;

/// As long as a light node waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// Raw nodes in the place of others; they end when this is dropped.
pub struct RawNodes {
    names: Vec<NodeName>,
    operator: Client,
    _tasks: JoinSet<()>,
}

impl RawNodes {
    /// One for each of these, whose consumers are there and pulled by nobody.
    pub async fn start(url: &str, names: Vec<NodeName>) -> RawNodes {
        let connect = |name: NodeName| async move { (connected(url).await, name) };
        let links: Vec<_> = futures::stream::iter(names.clone()).map(connect).buffer_unordered(AT_ONCE).collect().await;
        let mut tasks = JoinSet::new();
        for (client, name) in links {
            let inbox = client.new_inbox();
            let frames = client.subscribe(inbox.clone()).await.expect("a subscription");
            let node = RawNode { client, name, inbox };
            node.pull().await;
            node.client.flush().await.expect("flushed");
            tasks.spawn(node.live(frames));
        }
        let operator = connected(url).await;
        RawNodes { names, operator, _tasks: tasks }
    }

    /// A message to each: until the last record is seen.
    pub async fn each(&self, id: &str) -> Duration {
        let targets: Vec<&str> = self.names.iter().map(NodeName::as_str).collect();
        self.send(&targets, id).await
    }

    /// One message to all.
    pub async fn all(&self, id: &str) -> Duration {
        self.send(&["@all"], id).await
    }

    async fn send(&self, targets: &[&str], id: &str) -> Duration {
        let began = Instant::now();
        let records = self.operator.subscribe(format!("fleet.stored.ack.*.raw.ping.{id}")).await;
        let records = records.expect("a subscription").take(self.names.len()).count();
        let jetstream = patient(&self.operator);
        let publish = |to: &&str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ID, id);
            headers.insert(header::KIND, "command");
            headers.insert(header::MSG_ID, format!("raw.{id}.{to}"));
            let sent = jetstream.publish_with_headers(format!("fleet.msg.{to}.command.raw.ping"), headers, "".into());
            async { sent.await.expect("sent").await.expect("stored") }
        };
        let publishes: Vec<_> = targets.iter().map(publish).collect();
        let stored = futures::stream::iter(publishes).buffered(IN_FLIGHT).count();
        tokio::join!(stored, records);
        began.elapsed()
    }
}

/// A connection, for which a broker that has thousands to end and to make may take long.
async fn connected(url: &str) -> Client {
    let options = ConnectOptions::new().connection_timeout(PATIENCE).request_timeout(Some(PATIENCE));
    options.connect(url).await.expect("a connection")
}

fn patient(client: &Client) -> jetstream::Context {
    let mut jetstream = jetstream::new(client.clone());
    jetstream.set_timeout(PATIENCE);
    jetstream
}

struct RawNode {
    client: Client,
    name: NodeName,
    inbox: String,
}

impl RawNode {
    async fn pull(&self) {
        let request = json!({ "batch": 512, "expires": 30_000_000_000_u64, "idle_heartbeat": 5_000_000_000_u64 });
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.FLEET_COMMANDS.{}", self.name);
        let sent = self.client.publish_with_reply(subject, self.inbox.clone(), request.to_string().into());
        sent.await.expect("sent");
    }

    async fn live(self, mut frames: Subscriber) {
        let jetstream = patient(&self.client);
        while let Some(frame) = frames.next().await {
            match frame.status.map(|status| status.as_u16()) {
                None => self.answer(&jetstream, &frame).await,
                Some(100) => {}
                Some(_) => self.pull().await,
            }
        }
    }

    async fn answer(&self, jetstream: &jetstream::Context, message: &Message) {
        let Some(reply) = message.reply.clone() else { return };
        let number = |token: usize| reply.split('.').nth(token).and_then(|number| number.parse().ok());
        let (Some(seq), Some(stored_at)) = (number(5), number(7)) else { panic!("{reply}") };
        let stored_at = Timestamp::from_nanos(i64::try_from(stored_at).expect("a time"));
        let at = MsgRef { stream: StreamKind::Commands, seq: StreamSeq(seq), stored_at };
        let id = message.headers.as_ref().and_then(|headers| headers.get(header::ID)).expect("an id");
        let given = MessageId::given(id.as_str()).expect("an id");
        let stream = "FLEET_COMMANDS".to_owned();
        let record = Record::bare(given, at, stream, self.name.as_str(), State::Succeeded, By::Node);
        let mut headers = HeaderMap::new();
        record.headers().0.iter().for_each(|(name, value)| headers.insert(name.as_str(), value.as_str()));
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        let subject = format!("fleet.ack.{}.raw.ping.{id}", self.name);
        let stored = jetstream.publish_with_headers(subject, headers, record.encode().into()).await;
        stored.expect("sent").await.expect("stored");
        self.client.publish(reply, "+ACK".into()).await.expect("acked");
        let status = json!({ "v": 1, "node": self.name, "interval_s": 3600, "position": { "commands": seq } });
        let key = format!("$KV.FLEET_NODES.status.{}", self.name);
        let stored = jetstream.publish(key, status.to_string().into()).await;
        stored.expect("sent").await.expect("stored");
    }
}
