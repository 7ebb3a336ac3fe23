//! Streams, nodes, fates and results, on a nats-server of each test's own.

mod bed;

use bed::*;
use edgeward::broker::Outgoing;
use edgeward::broker::topology::{self, Standing};
use edgeward::model::config::HubConfig;
use edgeward::model::id::StreamSeq;
use edgeward::model::message::StreamKind;
use edgeward::model::node::Spec;
use edgeward::model::record::{By, Record};
use edgeward::model::state::State;
use edgeward::model::subject::{NodeKey, RecordStream};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

#[tokio::test]
async fn streams_are_made_once_and_changed_where_nothing_is_lost() {
    let server = Server::start(&["-js"]);
    let broker = server.broker().await;
    let before = topology::plan(&broker, &config(true)).await.unwrap();
    assert!(before.streams.iter().all(|s| matches!(s.standing, Standing::Missing { .. })), "{before}");
    let wanted = config(true);
    let (one, two) = tokio::join!(topology::ensure(&broker, &wanted), topology::ensure(&broker, &wanted));
    assert_eq!(one.unwrap(), two.unwrap());
    let after = topology::plan(&broker, &config(true)).await.unwrap();
    assert!(after.streams.iter().all(|s| s.standing == Standing::Same), "{after}");

    let shorter = HubConfig { retention: Duration::from_secs(3600), ..config(true) };
    let plan = topology::plan(&broker, &shorter).await.unwrap();
    assert!(plan.to_string().contains("max_age") && plan.to_string().contains("left:"), "{plan}");
    topology::ensure(&broker, &shorter).await.unwrap();
    assert_eq!(broker.retention().await.unwrap(), Some(config(true).retention), "nothing was dropped");
    let longer = HubConfig { retention: Duration::from_secs(60 * 86_400), ..config(true) };
    topology::ensure(&broker, &longer).await.unwrap();
    assert_eq!(broker.retention().await.unwrap(), Some(longer.retention));
}

#[tokio::test]
async fn the_broker_refuses_other_shapes_and_rollups() {
    let server = Server::start(&["-js"]);
    let broker = server.broker().await;
    topology::ensure(&broker, &config(true)).await.unwrap();
    for subject in ["fleet.msg.n1", "fleet.msg.n1.shell", "fleet.msg.n1.order.ops.shell"] {
        assert!(broker.publish(&Outgoing::new(subject, "x"), DEADLINE).await.is_err(), "{subject}");
    }
    hello(&broker, "n1").await;
    let key = broker.names().node_key(NodeKey::Status, "n1");
    let wipe = Outgoing::new(key, "{}").with("Nats-Rollup", "all");
    assert!(broker.publish(&wipe, DEADLINE).await.is_err());
    let key = broker.names().node_key(NodeKey::Hello, "n1");
    assert!(broker.get_last("KV_FLEET_NODES", &key).await.unwrap().is_some());
}

#[tokio::test]
async fn what_is_missing_is_refused_in_one_line() {
    let off = Server::start(&[]);
    let error = topology::plan(&off.broker().await, &config(true)).await.unwrap_err().to_string();
    assert!(error.contains("JetStream is off") && error.contains("-js"), "{error}");

    let server = Server::start(&["-js"]);
    let broker = server.broker().await;
    let small = HubConfig { store_bytes: 100 << 20, ..config(true) };
    let error = topology::ensure(&broker, &small).await.unwrap_err().to_string();
    assert!(error.contains("hub.store_bytes") && error.contains("384 MiB"), "{error}");
    let large = HubConfig { store_bytes: 1 << 60, ..config(true) };
    let error = topology::ensure(&broker, &large).await.unwrap_err().to_string();
    assert!(error.contains("max_file_store") && error.contains("hub.store_bytes"), "{error}");

    let other = broker.with_api("fleet.api");
    let error = topology::plan(&other, &config(true)).await.unwrap_err().to_string();
    assert!(error.contains("api_prefix"), "{error}");
}

#[tokio::test]
async fn a_user_without_the_hubs_rights_is_told_so() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let rights =
        r#"authorization { users: [ { user: u, password: p, permissions: { publish: ["x"] } } ] }, no_auth_user: u"#;
    std::fs::write(file.path(), rights).unwrap();
    let server = Server::start(&["-js", "-c", file.path().to_str().unwrap()]);
    let error = topology::plan(&server.broker().await, &config(true)).await.unwrap_err().to_string();
    assert_eq!(error, "no right to publish to `$JS.API.INFO`");
}

#[tokio::test]
async fn a_stream_made_anew_begins_above_old_records() {
    let server = Server::start(&["-js"]);
    let broker = server.broker().await;
    topology::ensure(&broker, &config(true)).await.unwrap();
    for seq in ["41", "7"] {
        let ack = Outgoing::new(format!("fleet.ack.n1.ops.shell.s{seq}"), "{}");
        let ack = ack.with("Fleet-Stream", "FLEET_COMMANDS").with("Fleet-Seq", seq);
        broker.publish(&ack, DEADLINE).await.unwrap();
    }
    server.raw().await.ask("STREAM.DELETE.FLEET_COMMANDS").await;
    topology::ensure(&broker, &config(true)).await.unwrap();
    assert_eq!(publish(&broker, "fleet.msg.n1.command.ops.shell", None).await, StreamSeq(42));
    let again = topology::plan(&broker, &config(true)).await.unwrap();
    assert!(!again.needs_work(), "{again}");
}

#[tokio::test]
async fn a_first_message_makes_a_node_and_two_hubs_agree() {
    let server = Server::start(&["-js"]);
    let broker = server.broker().await;
    let (one, two) = tokio::join!(server.hub(config(true)), server.hub(config(true)));
    let mut first = Vec::new();
    for n in 0..20 {
        first.push(publish(&broker, &format!("fleet.msg.n{n}.command.ops.shell"), None).await);
        publish(&broker, &format!("fleet.msg.n{n}.command.ops.shell"), None).await;
    }
    let raw = server.raw().await;
    for (n, seq) in first.iter().enumerate() {
        let node = format!("n{n}");
        assert_eq!(with_start(&broker, &node).await.start.commands, Some(*seq));
        let info = consumer(&raw, "FLEET_COMMANDS", &node).await;
        assert_eq!(info["config"]["filter_subjects"], json!([format!("fleet.msg.{node}.>"), "fleet.msg.@all.>"]));
        assert_eq!((&info["config"]["ack_policy"], &info["config"]["opt_start_seq"]), (&json!("all"), &json!(seq)));
        assert_eq!(info["num_pending"], 2);
    }
    assert_eq!(with_start(&broker, "n1").await.retention_s, Some(30 * 86_400));
    drained(&raw, "FLEET_COMMANDS").await;
    assert!(all(&broker, "FLEET_ACKS", ">").await.is_empty(), "nothing was undeliverable");
    one.stop().await;
    two.stop().await;
}

/// Waits until the hubs have dealt with all that is stored.
async fn drained(raw: &Raw, stream: &str) {
    eventually("all dealt with", || async {
        let info = raw.ask(&format!("CONSUMER.INFO.{stream}._hub")).await;
        (info["num_pending"] == 0 && info["num_ack_pending"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_killed_hub_began_the_next_one_ends() {
    let server = Server::start(&["-js"]);
    let broker = server.broker().await;
    server.hub(config(true)).await.stop().await;
    // Killed after the key was made, and after the start was written.
    let names = broker.names();
    let seq = publish(&broker, "fleet.msg.half.command.ops.shell", None).await;
    for (node, start) in [("half", json!(null)), ("most", json!(1))] {
        let body = json!({ "v": 1, "node": node, "start": { "commands": start, "events": null } }).to_string();
        let key = names.node_key(NodeKey::Spec, node);
        broker.publish(&Outgoing::new(key, body), DEADLINE).await.unwrap();
    }
    // Killed wherever it may be.
    for delay in [5, 15, 25, 40, 60] {
        let hub = server.hub_unready(config(true), None);
        publish(&broker, &format!("fleet.msg.k{delay}.command.ops.shell"), None).await;
        publish(&broker, &format!("fleet.msg.k{delay}.event.ops.log"), None).await;
        tokio::time::sleep(Duration::from_millis(delay)).await;
        hub.kill();
    }
    let hub = server.hub(config(true)).await;
    let raw = server.raw().await;
    assert_eq!(with_start(&broker, "half").await.start.commands, Some(seq));
    consumer(&raw, "FLEET_COMMANDS", "half").await;
    assert_eq!(consumer(&raw, "FLEET_COMMANDS", "most").await["config"]["opt_start_seq"], 1);
    for delay in [5, 15, 25, 40, 60] {
        let node = format!("k{delay}");
        assert_ne!(consumer(&raw, "FLEET_COMMANDS", &node).await["num_pending"], 0);
        assert_eq!(consumer(&raw, "FLEET_EVENTS", &node).await["num_pending"], 1);
        eventually("the announcement", || async {
            let told = all(&broker, "FLEET_COMMANDS", &format!("fleet.msg.{node}.control.hub.events")).await;
            told.first().map(|_| ())
        })
        .await;
    }
    hub.stop().await;
}

#[tokio::test]
async fn what_no_node_can_answer_the_hub_answers_once() {
    let server = Server::start(&["-js"]);
    let broker = server.broker().await;
    let (one, two) = tokio::join!(server.hub(config(false)), server.hub(config(false)));
    let raw = server.raw().await;
    publish(&broker, "fleet.msg.ship9.command.ops.shell", Some("a")).await;
    publish(&broker, "fleet.msg.@db.command.ops.shell", Some("b")).await;
    publish(&broker, "fleet.msg.@web.event.ops.log", None).await;
    publish(&broker, "fleet.msg.sh$p.command.ops.shell.x.y", Some("c")).await;
    publish(&broker, "fleet.msg.hub.command.o$s.shell", Some("d")).await;
    let copy = publish(&broker, "fleet.msg.@web.command.ops.shell", Some("b")).await;
    publish(&broker, "fleet.msg.@all.command.ops.shell", Some("e")).await;
    drained(&raw, "FLEET_COMMANDS").await;
    drained(&raw, "FLEET_EVENTS").await;
    for (subject, state, code) in [
        ("fleet.ack.ship9.ops.shell.a", State::Undeliverable, "unknown_node"),
        ("fleet.ack._.ops.shell.b", State::Undeliverable, "unknown_group"),
        ("fleet.ack._.ops.log.e1", State::Undeliverable, "unknown_group"),
        ("fleet.ack._.ops.shell.c", State::Refused, "bad_subject"),
        ("fleet.ack._._.shell.d", State::Refused, "bad_subject"),
        ("fleet.ack._.ops.shell.e", State::Undeliverable, "unknown_group"),
    ] {
        let record = record(&broker, subject).await.unwrap_or_else(|| panic!("{subject}"));
        assert_eq!((record.state, record.error.unwrap().code.as_str()), (state, code), "{subject}");
        assert_eq!(record.by, By::Hub);
    }
    assert_eq!(all(&broker, "FLEET_ACKS", "fleet.ack.>").await.len(), 6);
    // Either of the two may be answered first, by either hub.
    let answered = record(&broker, "fleet.ack._.ops.shell.b").await.unwrap().seq;
    let duplicate = record(&broker, "fleet.progress._.ops.shell.b").await.unwrap();
    assert_eq!(duplicate.duplicate_of.unwrap().seq, answered);
    assert_eq!(BTreeSet::from([answered, duplicate.seq]), BTreeSet::from([StreamSeq(2), copy]));
    assert!(spec(&broker, "ship9").await.is_none());
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn nodes_make_no_nodes_and_control_messages_neither() {
    let server = Server::start(&["-js"]);
    let broker = server.broker().await;
    let hub = server.hub(config(true)).await;
    hello(&broker, "van").await;
    with_start(&broker, "van").await;
    let by_node = publish(&broker, "fleet.msg.ship.command.van.shell", Some("a")).await;
    publish(&broker, "fleet.msg.ship.control.ops.cancel", Some("b")).await;
    for subject in ["fleet.ack.ship.van.shell.a", "fleet.ack.ship.ops.cancel.b"] {
        let found = eventually(subject, || record(&broker, subject)).await;
        assert_eq!(found.error.unwrap().code.as_str(), "unknown_node", "{subject}");
    }
    // What was answered is not delivered after all.
    let seq = publish(&broker, "fleet.msg.ship.command.ops.shell", None).await;
    assert!(seq > by_node);
    assert_eq!(with_start(&broker, "ship").await.start.commands, Some(seq));
    hub.stop().await;
}

#[tokio::test]
async fn a_hello_makes_a_node_and_a_second_journal_waits() {
    let server = Server::start(&["-js"]);
    let broker = server.broker().await;
    let hub = server.hub(config(false)).await;
    publish(&broker, "fleet.msg.ship.command.ops.shell", Some("early")).await;
    let journal = hello(&broker, "ship").await;
    let taken = || async { spec(&broker, "ship").await.and_then(|s| s.journal) };
    assert_eq!(eventually("a journal", taken).await, journal);
    assert_eq!(with_start(&broker, "ship").await.start.commands, Some(StreamSeq(2)));
    let early = eventually("its record", || record(&broker, "fleet.ack.ship.ops.shell.early")).await;
    assert_eq!(early.state, State::Undeliverable);
    let twin = hello(&broker, "ship").await;
    let errors = || async { all(&broker, "FLEET_ERRORS", "fleet.error.ship.error.second_journal").await };
    let told = eventually("an error event", || async { errors().await.pop() }).await;
    assert!(String::from_utf8_lossy(&told.body).contains(&twin.to_string()));
    hub.stop().await;
    // Another hub sees the same hello again and tells nothing new; and then a third journal, which it tells.
    let hub = server.hub(config(false)).await;
    hello(&broker, "ship").await;
    eventually("the third journal", || async { (errors().await.len() == 2).then_some(()) }).await;
    assert_eq!(eventually("a journal", taken).await, journal);
    hub.stop().await;
}

#[tokio::test]
async fn a_removed_node_begins_behind_its_removal() {
    let server = Server::start(&["-js"]);
    let broker = server.broker().await;
    let hub = server.hub(config(true)).await;
    publish(&broker, "fleet.msg.ship.command.ops.shell", None).await;
    with_start(&broker, "ship").await;
    // As `nats kv del` writes it.
    let removal = Outgoing::new(broker.names().node_key(NodeKey::Spec, "ship"), "").with("KV-Operation", "DEL");
    broker.publish(&removal, DEADLINE).await.unwrap();
    let seq = publish(&broker, "fleet.msg.ship.command.ops.shell", None).await;
    let journal = hello(&broker, "ship").await;
    let made = eventually("the node again", || async {
        let names = broker.names();
        let key = names.node_key(NodeKey::Spec, "ship");
        let entry = broker.get_last(&names.record_stream(RecordStream::Nodes), &key).await.unwrap()?;
        serde_json::from_slice::<Spec>(&entry.body).ok().filter(|spec| spec.journal.is_some())
    })
    .await;
    assert_eq!((made.start.commands, made.journal), (Some(seq), Some(journal)));
    hub.stop().await;
}

#[tokio::test]
async fn the_first_event_gives_a_consumer_and_is_announced() {
    let server = Server::start(&["-js"]);
    let broker = server.broker().await;
    let hub = server.hub(config(true)).await;
    hello(&broker, "ship").await;
    with_start(&broker, "ship").await;
    assert_eq!(spec(&broker, "ship").await.unwrap().start.events, None);
    let seq = publish(&broker, "fleet.msg.ship.event.van.log", None).await;
    let announced = eventually("the announcement", || async {
        all(&broker, "FLEET_COMMANDS", "fleet.msg.ship.control.hub.events").await.pop()
    })
    .await;
    assert_eq!(serde_json::from_slice::<Value>(&announced.body).unwrap(), json!({ "start": seq }));
    assert_eq!(announced.headers.get("Nats-Msg-Id"), None);
    assert!(announced.headers.get("Fleet-Id").is_some());
    assert_eq!(spec(&broker, "ship").await.unwrap().start.events, Some(seq));
    assert_eq!(consumer(&server.raw().await, "FLEET_EVENTS", "ship").await["num_pending"], 1);
    hub.stop().await;
}

#[tokio::test]
async fn results_go_back_to_nodes_alone() {
    let server = Server::start(&["-js"]);
    let broker = server.broker().await;
    let hub = server.hub(config(true)).await;
    for node in ["van", "ship"] {
        hello(&broker, node).await;
        with_start(&broker, node).await;
    }
    let mut sent = Vec::new();
    for from in ["ops", "van"] {
        publish(&broker, &format!("fleet.msg.ship.command.{from}.shell"), Some("x")).await;
        publish(&broker, &format!("fleet.msg.ship.event.{from}.log"), Some("y")).await;
        for (stream, method, id) in [(StreamKind::Commands, "shell", "x"), (StreamKind::Events, "log", "y")] {
            let name = broker.names().stream(stream);
            let filter = format!("fleet.msg.ship.*.{from}.{method}");
            let message = all(&broker, &name, &filter).await.pop().unwrap();
            let at = edgeward::model::id::MsgRef { stream, seq: message.seq, stored_at: message.stored_at };
            let id = edgeward::model::id::MessageId::given(id).unwrap();
            let kind = if method == "shell" { "command" } else { "event" };
            let record = Record {
                from: from.to_owned(),
                method: method.to_owned(),
                kind: kind.parse().ok(),
                ..Record::bare(id, at, name, "ship", State::Succeeded, By::Node)
            };
            let subject = format!("fleet.ack.ship.{from}.{method}.{}", record.id);
            let ack = Outgoing { subject, headers: record.headers(), body: record.encode().into() };
            sent.push(ack.body.clone());
            broker.publish(&ack, DEADLINE).await.unwrap();
        }
    }
    drained(&server.raw().await, "FLEET_ACKS").await;
    let results = all(&broker, "FLEET_COMMANDS", "fleet.msg.*.control.hub.result").await;
    assert_eq!(results.len(), 1);
    assert_eq!((results[0].subject.as_str(), &results[0].body), ("fleet.msg.van.control.hub.result", &sent[2]));
    assert_eq!(results[0].headers.get("Fleet-Kind"), Some("control"));
    hub.stop().await;
}

#[tokio::test]
async fn a_hub_outlives_its_consumer_and_its_broker() {
    let mut server = Server::start(&["-js"]);
    let broker = server.broker().await;
    let hub = server.hub(config(true)).await;
    publish(&broker, "fleet.msg.n1.command.ops.shell", None).await;
    with_start(&broker, "n1").await;
    let raw = server.raw().await;
    for stream in ["FLEET_COMMANDS", "FLEET_ACKS"] {
        raw.ask(&format!("CONSUMER.DELETE.{stream}._hub")).await;
    }
    publish(&broker, "fleet.msg.n2.command.ops.shell", None).await;
    with_start(&broker, "n2").await;

    server.restart();
    let subject = "fleet.msg.n3.command.ops.shell";
    eventually("the broker is back", || async {
        broker.publish(&Outgoing::new(subject, "true"), Duration::from_secs(1)).await.ok()
    })
    .await;
    with_start(&broker, "n3").await;
    hub.stop().await;
}
