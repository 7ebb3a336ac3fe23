//! Groups: who joins and leaves is decided in the stream, exact to the sequence, whatever is killed meanwhile.

use crate::harness::{Fleet, Process, SOON, wait_until};
use edgeward::model::groups::Belongs;
use edgeward::model::id::StreamSeq;
use edgeward::model::message::StreamKind;
use edgeward::model::name::GroupName;
use edgeward::model::node::Spec;
use edgeward::model::subject::{NodeKey, RecordStream};
use edgeward::operator::want_groups;
use serde_json::Value;
use std::time::Duration;

/// Many messages, and hubs that die: more than one step's time.
const LONG: Duration = Duration::from_secs(120);

fn web() -> GroupName {
    "web".parse().unwrap()
}

async fn spec(fleet: &Fleet, node: &str) -> Spec {
    let names = fleet.client.names();
    let (bucket, key) = (names.record_stream(RecordStream::Nodes), names.node_key(NodeKey::Spec, node));
    serde_json::from_slice(&fleet.client.get_last(&bucket, &key).await.unwrap().unwrap().body).unwrap()
}

async fn want(fleet: &Fleet, node: &str, groups: &[GroupName]) {
    want_groups(&fleet.client, &node.parse().unwrap(), groups).await.unwrap().unwrap();
}

/// Waits until the node is in the group, or out of it, as far as the hub is concerned.
async fn settled(fleet: &Fleet, node: &str, is_member: bool) -> Spec {
    wait_until(LONG, format!("{node} is in the group: {is_member}"), async || {
        let spec = spec(fleet, node).await;
        match spec.belongs(&web(), StreamKind::Commands, StreamSeq(u64::MAX)) {
            Belongs::Member if is_member => Ok(spec),
            Belongs::No if !is_member => Ok(spec),
            _ => Err(format!("{spec:?}")),
        }
    })
    .await
}

/// True where a record of the message is there, by this node or by nobody (`_`).
async fn is_told(fleet: &Fleet, node: &str, method: &str, id: &str) -> bool {
    let subject = format!("fleet.ack.{node}.ops.{method}.{id}");
    fleet.client.get_last(&fleet.client.names().record_stream(RecordStream::Acks), &subject).await.unwrap().is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_and_leaves_are_exact_under_load_with_hubs_that_die() {
    const TURNS: usize = 12;
    let mut fleet = Fleet::start(&["ship1"]).await;
    let mut second = Process::hub(&fleet.broker.url());
    second.start();
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let client = fleet.broker.client().await;
    let load = tokio::spawn(async move {
        let mut stored = Vec::new();
        while !*stopped.borrow_and_update() {
            for (subject, stream, body) in [
                ("fleet.msg.@web.command.ops.ping", StreamKind::Commands, ""),
                ("fleet.msg.@web.event.ops.log", StreamKind::Events, "line"),
            ] {
                let message = edgeward::broker::Outgoing::new(subject, body);
                stored.push((stream, client.publish(&message, Duration::from_secs(10)).await.unwrap().seq));
            }
        }
        stored
    });
    for turn in 0..TURNS {
        let is_member = turn % 2 == 0;
        let groups = if is_member { vec![web()] } else { Vec::new() };
        want(&fleet, "ship1", &groups).await;
        // One of the two dies somewhere on the way, and comes back.
        let hub = if turn % 3 == 0 { &mut fleet.hub } else { &mut second };
        hub.restart();
        settled(&fleet, "ship1", is_member).await;
        if turn == TURNS / 2 {
            fleet.agent("ship1").kill();
            fleet.agent("ship1").start();
        }
    }
    stop.send(true).unwrap();
    let stored = load.await.unwrap();
    let spec = settled(&fleet, "ship1", false).await;
    assert_eq!(spec.groups.len(), TURNS / 2, "{spec:?}");
    let mut members = 0;
    for (stream, seq) in stored {
        let (method, id) = match stream {
            StreamKind::Commands => ("ping", format!("s{seq}")),
            StreamKind::Events => ("log", format!("e{seq}")),
        };
        let is_member = spec.belongs(&web(), stream, seq) == Belongs::Member;
        let (by, other) = if is_member { ("ship1", "_") } else { ("_", "ship1") };
        wait_until(LONG, format!("{id} is told by {by}: {spec:?}"), async || {
            if is_told(&fleet, by, method, &id).await { Ok(()) } else { Err("no record") }
        })
        .await;
        assert!(!is_told(&fleet, other, method, &id).await, "{id} is told by {other}, too: {spec:?}");
        members += usize::from(is_member);
    }
    assert!(members > 0, "nothing was sent while it was a member");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_reaches_every_member_and_nobody_else() {
    let mut fleet = Fleet::start(&["ship1", "ship2", "ship3"]).await;
    let cli = fleet.cli();
    let early = fleet.publish("fleet.msg.@web.command.ops.shell", &[], "echo early").await;
    fleet.agent("ship2").kill();
    for node in ["ship1", "ship2"] {
        cli.run(&["node", node, "--groups", "web"]).await.ok();
        settled(&fleet, node, true).await;
    }
    let table = cli.run(&["node", "ship1"]).await.ok();
    assert!(table.contains("@web") && table.contains("member"), "{table}");

    // The one that is away takes it when it comes back.
    let sent = fleet.publish("fleet.msg.@web.command.ops.shell", &[], "echo $((6*7))").await;
    let id = format!("s{}", sent.seq);
    assert_eq!(fleet.record("ship1", "ops", "shell", &id).await.stdout.as_deref(), Some("42\n"));
    let rows = cli.run(&["status", &id, "-o", "json"]).await.stdout;
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = rows.iter().map(|row| (row["node"].as_str().unwrap(), row["state"].as_str().unwrap())).collect();
    assert_eq!(told, [("ship1", "succeeded"), ("ship2", "queued")], "a row for each member");
    fleet.start_agent("ship2").await;
    fleet.record("ship2", "ops", "shell", &id).await;
    cli.run(&["run", "@web", "true"]).await.exits(0);

    fleet.record("_", "ops", "shell", &format!("s{}", early.seq)).await;
    for node in ["ship1", "ship2", "ship3"] {
        assert!(!is_told(&fleet, node, "shell", &format!("s{}", early.seq)).await, "{node} was no member then");
    }
    assert!(!is_told(&fleet, "ship3", "shell", &id).await, "ship3 is no member");
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_is_who_was_there_when_it_was_stored() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let first = fleet.publish("fleet.msg.@all.command.ops.ping", &[], "").await;
    let event = fleet.publish("fleet.msg.@all.event.ops.log", &[], "line").await;
    fleet.record("ship1", "ops", "ping", &format!("s{}", first.seq)).await;
    fleet.record("ship1", "ops", "log", &format!("e{}", event.seq)).await;
    let late = Process::agent("ship2", &fleet.broker.url());
    fleet.add("ship2", late);
    wait_until(SOON, "ship2 is in contact", async || fleet.status("ship2").await.ok_or("no status")).await;
    let second = fleet.publish("fleet.msg.@all.command.ops.ping", &[], "").await;
    for node in ["ship1", "ship2"] {
        fleet.record(node, "ops", "ping", &format!("s{}", second.seq)).await;
    }
    assert!(!is_told(&fleet, "ship2", "ping", &format!("s{}", first.seq)).await, "it came later");
}
