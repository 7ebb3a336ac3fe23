//! What the hub does by itself as time passes and streams fill up: expiry, purging, more room, lost consumers.

use crate::harness::{Fleet, SOON, TestBroker, open_to, wait_until};
use edgeward::broker::{Broker, From, Outgoing};
use edgeward::hub::{self, HubOptions};
use edgeward::model::config::HubConfig;
use edgeward::model::header::id_of;
use edgeward::model::id::{JournalId, MessageId, MsgRef, StreamSeq};
use edgeward::model::message::StreamKind;
use edgeward::model::node::Spec;
use edgeward::model::record::{By, Record};
use edgeward::model::state::State;
use edgeward::model::subject::{RecordClass, RecordSubject};
use edgeward::operator::want_groups;
use serde_json::json;
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A hub in this process, with settings that no file allows; it ends with the guard.
async fn hub(broker: &TestBroker, config: HubConfig) -> DropGuard {
    let connect = open_to(vec![broker.url()]);
    let (told, ready) = tokio::sync::oneshot::channel();
    let stop = CancellationToken::new();
    tokio::spawn(hub::run(HubOptions { connect, config, ready: Some(told) }, stop.clone()));
    tokio::time::timeout(SOON, ready).await.unwrap().unwrap();
    stop.drop_guard()
}

async fn put(client: &Broker, subject: &str, body: impl Into<Vec<u8>>) -> StreamSeq {
    client.publish(&Outgoing::new(subject, body.into()), SOON).await.unwrap().seq
}

async fn record(client: &Broker, subject: &str) -> Option<Record> {
    let found = client.get_last("FLEET_ACKS", subject).await.unwrap()?;
    Some(serde_json::from_slice(&found.body).unwrap())
}

async fn full_events(client: &Broker) -> Vec<String> {
    let filter = "fleet.error.hub.*.stream_full";
    let all = client.read_all("FLEET_ERRORS", filter, From::Seq(StreamSeq(1)), 100).await.unwrap();
    all.iter().map(|message| String::from_utf8_lossy(&message.body).into_owned()).collect()
}

#[tokio::test]
async fn what_no_node_took_in_time_expires_and_what_one_took_does_not() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let config = HubConfig { store_bytes: 1 << 30, retention: Duration::from_secs(20), ..HubConfig::default() };
    let _hub = hub(&broker, config).await;
    // A node that has taken its message, by its own word.
    let journal = JournalId::fresh();
    put(&client, "$KV.FLEET_NODES.hello.van", json!({ "v": 1, "node": "van", "journal": journal }).to_string()).await;
    let taken = put(&client, "fleet.msg.van.command.ops.shell", "true").await;
    let status = json!({ "v": 1, "node": "van", "journal": journal, "position": { "commands": taken } });
    put(&client, "$KV.FLEET_NODES.status.van", status.to_string()).await;
    let waiting = put(&client, "fleet.msg.ship.command.ops.shell", "true").await;
    let subject = format!("fleet.ack.ship.ops.shell.s{waiting}");
    let expired = wait_until(SOON, "its end", async || record(&client, &subject).await).await;
    assert_eq!((expired.state, expired.by), (State::Expired, By::Hub));
    assert!(client.get("FLEET_COMMANDS", waiting).await.unwrap().is_some(), "in time: the message is still there");
    assert!(record(&client, &format!("fleet.ack.van.ops.shell.s{taken}")).await.is_none(), "the node answers that");
    // To everybody: one that was never in contact is not counted, and the other does not take it.
    let to_all = put(&client, "fleet.msg.@all.command.ops.shell", "true").await;
    let subject_of = |node: &str| format!("fleet.ack.{node}.ops.shell.s{to_all}");
    let expired = wait_until(SOON, "its end", async || record(&client, &subject_of("van")).await).await;
    assert_eq!((expired.state, expired.by), (State::Expired, By::Hub));
    assert!(record(&client, &subject_of("ship")).await.is_none());
    // It was told of before.
    let filter = "fleet.error.*.error.expires_soon";
    let warnings = client.read_all("FLEET_ERRORS", filter, From::Seq(StreamSeq(1)), 100).await.unwrap();
    let [warning, _] = &warnings[..] else { panic!("one warning for each node: {warnings:?}") };
    assert_eq!(warning.subject, "fleet.error.ship.error.expires_soon");
    assert!(String::from_utf8_lossy(&warning.body).contains(&format!("the oldest s{waiting}")), "{warning:?}");
    let told = client.get_last("FLEET_ACKS", &subject).await.unwrap().unwrap();
    assert!(warning.stored_at < told.stored_at, "in time");
}

#[tokio::test]
async fn a_full_stream_loses_what_is_closed_and_grows_for_what_is_open() {
    const SMALL: u64 = 8 << 20;
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let config = HubConfig {
        store_bytes: 1 << 30,
        retention: Duration::from_secs(100),
        auto_nodes: Some(false),
        ..HubConfig::default()
    };
    let _hub = hub(&broker, config).await;
    client.set_max_bytes("FLEET_COMMANDS", SMALL).await.unwrap();
    // Nobody's messages are answered at once, and may go.
    let body = vec![b'#'; 900_000];
    for _ in 0..8 {
        put(&client, "fleet.msg.nobody.command.ops.shell", body.clone()).await;
    }
    wait_until(SOON, "the purge", async || {
        let state = client.stream_state("FLEET_COMMANDS").await.unwrap();
        state.first > StreamSeq(1) && !state.is_above(80)
    })
    .await;
    assert_eq!(client.stream_state("FLEET_COMMANDS").await.unwrap().max_bytes, Some(SMALL));
    assert!(full_events(&client).await.is_empty());

    // A node's that is away may not.
    let hello = json!({ "v": 1, "node": "ship", "journal": JournalId::fresh() }).to_string();
    put(&client, "$KV.FLEET_NODES.hello.ship", hello).await;
    let ready = async || client.get_last("KV_FLEET_NODES", "$KV.FLEET_NODES.spec.ship").await.unwrap();
    wait_until(SOON, "the node", async || {
        ready().await.is_some_and(|spec| String::from_utf8_lossy(&spec.body).contains("\"commands\":9"))
    })
    .await;
    let first = put(&client, "fleet.msg.ship.command.ops.shell", body.clone()).await;
    for _ in 0..7 {
        // The stream may be full for as long as the hub takes to see it.
        let message = Outgoing::new("fleet.msg.ship.command.ops.shell", body.clone());
        wait_until(SOON, "room", async || client.publish(&message, SOON).await).await;
    }
    let told = wait_until(SOON, "the error event", async || full_events(&client).await.pop()).await;
    assert!(told.contains("FLEET_COMMANDS") && told.contains("ship"), "{told}");
    let state = client.stream_state("FLEET_COMMANDS").await.unwrap();
    assert!(state.max_bytes > Some(SMALL) && state.first <= first, "{state:?}");
    assert!(client.get("FLEET_COMMANDS", first).await.unwrap().is_some(), "nothing open was purged");
}

#[tokio::test]
async fn sizes_stay_until_they_are_shared_out_anew() {
    let fleet = Fleet::start(&["ship"]).await;
    let size = async |stream| fleet.client.stream_state(stream).await.unwrap().max_bytes.unwrap();
    let (commands, nodes) = (size("FLEET_COMMANDS").await, size("KV_FLEET_NODES").await);
    let larger = fleet.cli().env("EDGEWARD_HUB__STORE_BYTES", "2147483648");
    larger.run(&["init"]).await.ok();
    assert_eq!(size("FLEET_COMMANDS").await, commands);
    let said = larger.run(&["init", "--resize"]).await.ok();
    assert!(said.contains("FLEET_COMMANDS: 204 MiB -> 409 MiB"), "{said}");
    assert_eq!((size("FLEET_COMMANDS").await / commands, size("KV_FLEET_NODES").await), (2, nodes));
    let smaller = fleet.cli().env("EDGEWARD_HUB__STORE_BYTES", "1073741824");
    smaller.run(&["init", "--resize"]).await.ok();
    assert_eq!(size("FLEET_COMMANDS").await, commands);
}

#[tokio::test]
async fn a_consumer_that_is_gone_is_made_again_when_its_node_asks() {
    let fleet = Fleet::start(&["ship"]).await;
    let before = fleet.run("ship", "ping", "").await;
    let raw = async_nats::connect(fleet.broker.url()).await.unwrap();
    raw.request("$JS.API.CONSUMER.DELETE.FLEET_COMMANDS.ship", "".into()).await.unwrap();
    // Well before the next look at all nodes.
    let id = fleet.command("ship", "ping", "").await;
    let after = fleet.record_within(Duration::from_secs(10), "ship", "ops", "ping", &id).await;
    assert_eq!((before.state, after.state), (State::Succeeded, State::Succeeded));
}

/// A record of a message, under a subject that need not be its own.
async fn tell(client: &Broker, class: RecordClass, subject: &RecordSubject, at: MsgRef, state: State) {
    let stream = client.names().stream(at.stream);
    let record = Record::bare(subject.id.clone(), at, stream, &subject.node, state, By::Node);
    put(client, &client.names().record(class, subject), record.encode()).await;
}

/// Joins nodes that are never there to the group `web`, and answers for them what the hub sends them.
async fn join(client: &Broker, nodes: &[&str]) {
    for node in nodes {
        let hello = json!({ "v": 1, "node": node, "journal": JournalId::fresh() }).to_string();
        put(client, &format!("$KV.FLEET_NODES.hello.{node}"), hello).await;
        let (name, web) = (node.parse().unwrap(), "web".parse().unwrap());
        wait_until(SOON, "the node", async || want_groups(client, &name, std::slice::from_ref(&web)).await.unwrap())
            .await;
    }
    for node in nodes {
        wait_until(SOON, format!("{node} to be a member"), async || {
            let found = client.get_last("KV_FLEET_NODES", &format!("$KV.FLEET_NODES.spec.{node}")).await.unwrap();
            let spec: Spec = serde_json::from_slice(&found.unwrap().body).unwrap();
            !spec.groups.is_empty() && spec.group_steps().is_empty()
        })
        .await;
    }
    let sent = client.read_all("FLEET_COMMANDS", "fleet.msg.*.control.hub.>", From::Seq(StreamSeq(1)), 1000).await;
    for message in sent.unwrap() {
        let at = MsgRef { stream: StreamKind::Commands, seq: message.seq, stored_at: message.stored_at };
        let subject = client.names().parse_message(&message.subject).unwrap();
        let Some(node) = message.subject.split('.').nth(2).and_then(|node| node.parse().ok()) else { continue };
        let subject = subject.record(&node, id_of(&message.headers, at));
        // Some are sent twice, under one id.
        let is_copy = record(client, &client.names().record(RecordClass::Ack, &subject)).await.is_some();
        let (class, state) =
            if is_copy { (RecordClass::Progress, State::Duplicate) } else { (RecordClass::Ack, State::Succeeded) };
        tell(client, class, &subject, at, state).await;
    }
}

/// Whether the members have told is seen by what keeps a full stream from being purged: who stands open is named.
#[tokio::test]
async fn a_groups_message_is_open_until_each_of_its_members_has_told() {
    const SMALL: u64 = 8 << 20;
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let config = HubConfig { store_bytes: 1 << 30, retention: Duration::from_secs(100), ..HubConfig::default() };
    let _hub = hub(&broker, config).await;
    client.set_max_bytes("FLEET_COMMANDS", SMALL).await.unwrap();
    join(&client, &["m1", "m2", "m3", "m4", "m5", "m6"]).await;
    let body = vec![b'#'; 900_000];
    let again = MessageId::given("again").unwrap();
    let of = |node: &str, id: &MessageId| RecordSubject {
        node: node.to_owned(),
        from: "ops".to_owned(),
        method: "shell".to_owned(),
        id: id.clone(),
    };
    let message = Outgoing::new("fleet.msg.@web.command.ops.shell", body.clone()).with("Fleet-Id", "again");
    let seq = client.publish(&message, SOON).await.unwrap().seq;
    let at = client.get("FLEET_COMMANDS", seq).await.unwrap().map(|message| MsgRef {
        stream: StreamKind::Commands,
        seq,
        stored_at: message.stored_at,
    });
    let at = at.unwrap();
    let earlier = MsgRef { seq: StreamSeq(1), ..at };
    // More of that id than are read at once, all of other nodes.
    for other in 0..300 {
        tell(&client, RecordClass::Ack, &of(&format!("other{other}"), &again), at, State::Succeeded).await;
    }
    let (acked, told) = (RecordClass::Ack, RecordClass::Progress);
    tell(&client, acked, &of("m1", &again), at, State::Succeeded).await;
    // The id was used before on these three; one says so under a longer name, one as a copy, one not yet.
    for node in ["m2", "m3", "m4"] {
        tell(&client, acked, &of(node, &again), earlier, State::Succeeded).await;
    }
    tell(&client, acked, &of("m2", &again.reused(seq)), at, State::Failed).await;
    tell(&client, told, &of("m3", &again), at, State::Duplicate).await;
    tell(&client, told, &of("m4", &again), earlier, State::Duplicate).await;
    // It runs, which is no end.
    tell(&client, told, &of("m5", &again), at, State::Running).await;
    for _ in 0..7 {
        put(&client, "fleet.msg.@nobody.command.ops.shell", body.clone()).await;
    }
    let event = wait_until(SOON, "the error event", async || full_events(&client).await.pop()).await;
    assert!(event.contains(&format!("the oldest {seq} of m4, m5, m6;")), "{event}");
    assert!(client.get("FLEET_COMMANDS", seq).await.unwrap().is_some());

    tell(&client, told, &of("m4", &again), at, State::Duplicate).await;
    tell(&client, acked, &of("m5", &again), at, State::Succeeded).await;
    tell(&client, acked, &of("m6", &again), at, State::Succeeded).await;
    wait_until(SOON, "the purge", async || {
        let filler = Outgoing::new("fleet.msg.@nobody.command.ops.shell", body.clone());
        // It may be full until the hub has seen it.
        drop(client.publish(&filler, SOON).await);
        client.get("FLEET_COMMANDS", seq).await.unwrap().is_none()
    })
    .await;
}
