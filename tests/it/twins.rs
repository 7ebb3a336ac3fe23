//! Two journals or two runs under one node's name: who is the node, and what becomes of the messages of the one that is not
//! any more.

use crate::harness::{Fleet, Process, SOON, wait_until};
use edgeward::broker::From;
use edgeward::model::id::{JournalId, StreamSeq};
use edgeward::model::node::Spec;
use edgeward::model::state::State;
use edgeward::model::subject::{NodeKey, RecordStream};
use std::fs;
use std::path::Path;

async fn spec(fleet: &Fleet, node: &str) -> Spec {
    let names = fleet.client.names();
    let key = names.node_key(NodeKey::Spec, node);
    let found = fleet.client.get_last(&names.record_stream(RecordStream::Nodes), &key).await.unwrap().unwrap();
    serde_json::from_slice(&found.body).unwrap()
}

async fn errors(fleet: &Fleet, node: &str, code: &str) -> Vec<String> {
    let filter = format!("fleet.error.{node}.*.{code}");
    let stream = fleet.client.names().record_stream(RecordStream::Errors);
    let all = fleet.client.read_all(&stream, &filter, From::Seq(StreamSeq(1)), 100).await.unwrap();
    all.iter().map(|message| String::from_utf8_lossy(&message.body).into_owned()).collect()
}

async fn replaced(fleet: &Fleet, node: &str, old: JournalId) -> Spec {
    wait_until(SOON, "the new journal, and the old one closed", async || {
        let spec = spec(fleet, node).await;
        let done = spec.journal.is_some_and(|journal| journal != old) && spec.closing.is_none();
        if done { Ok(spec) } else { Err(format!("{spec:?}")) }
    })
    .await
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_lost_journal_is_replaced_and_what_it_left_is_closed() {
    let mut fleet = Fleet::start(&["ship"]).await;
    let mut second_hub = Process::hub(&fleet.broker.url());
    second_hub.start();
    let old = spec(&fleet, "ship").await.journal.unwrap();
    let done = fleet.run("ship", "ping", "").await;
    let running = fleet.command("ship", "shell", "sleep 60").await;
    wait_until(SOON, "it runs", async || {
        let subject = format!("fleet.progress.ship.ops.shell.{running}");
        let acks = fleet.client.names().record_stream(RecordStream::Acks);
        fleet.client.get_last(&acks, &subject).await.ok().flatten()
    })
    .await;
    fleet.agent("ship").kill();
    let waiting = fleet.command("ship", "ping", "").await;
    let event = fleet.publish("fleet.msg.ship.event.ops.log", &[], "a line").await;

    // The disk is gone with all that was on it.
    let url = fleet.broker.url();
    fleet.add("ship", Process::agent("ship", &url));
    let new = replaced(&fleet, "ship", old).await;
    assert!(new.start.commands > Some(StreamSeq(running[1..].parse().unwrap())), "{new:?}");
    assert_eq!(fleet.record("ship", "ops", "ping", done.id.as_str()).await, done, "what was told stays");
    let interrupted = fleet.record("ship", "ops", "shell", &running).await;
    assert_eq!(interrupted.state, State::Interrupted, "{interrupted:?}");
    let undeliverable = fleet.record("ship", "ops", "ping", &waiting).await;
    assert_eq!(undeliverable.state, State::Undeliverable, "{undeliverable:?}");
    // An event that came before the node had any is the new journal's or closed: never lost.
    fleet.record("ship", "ops", "log", &format!("e{}", event.seq)).await;
    assert_eq!(errors(&fleet, "ship", "journal_replaced").await.len(), 1, "two hubs tell it once");
    assert_eq!(fleet.run("ship", "shell", "echo hi").await.state, State::Succeeded);
}

#[tokio::test]
async fn a_hub_that_is_killed_while_it_replaces_leaves_nothing_open() {
    let mut fleet = Fleet::start(&["ship"]).await;
    let old = spec(&fleet, "ship").await.journal.unwrap();
    fleet.agent("ship").kill();
    let mut ids = Vec::new();
    for _ in 0..200 {
        ids.push(fleet.command("ship", "ping", "").await);
    }
    let url = fleet.broker.url();
    fleet.add("ship", Process::agent("ship", &url));
    // Killed as soon as any of it shows, and twice on the way.
    for _ in 0..3 {
        wait_until(SOON, "the closing", async || {
            let spec = spec(&fleet, "ship").await;
            spec.closing.is_some() || spec.journal != Some(old)
        })
        .await;
        fleet.hub.restart();
    }
    replaced(&fleet, "ship", old).await;
    for id in &ids {
        let record = fleet.record("ship", "ops", "ping", id).await;
        assert_eq!(record.state, State::Undeliverable, "{record:?}");
    }
    assert_eq!(fleet.run("ship", "ping", "").await.state, State::Succeeded);
}

#[tokio::test]
async fn a_second_agent_of_a_name_is_refused_while_the_first_lives() {
    let mut fleet = Fleet::start(&["ship"]).await;
    let first = spec(&fleet, "ship").await.journal.unwrap();
    let mut twin = Process::agent("ship", &fleet.broker.url());
    twin.start();
    wait_until(SOON, "the refusal", async || !errors(&fleet, "ship", "second_journal").await.is_empty()).await;
    let state = twin.state_dir().display().to_string();
    let cli = fleet.cli();
    wait_until(SOON, "its own word for it", async || {
        let said = cli.run(&["local", "--state-dir", &state]).await.ok();
        if said.contains("this is not the node yet") { Ok(()) } else { Err(said) }
    })
    .await;
    assert_eq!(fleet.run("ship", "ping", "").await.state, State::Succeeded);
    assert_eq!(spec(&fleet, "ship").await.journal, Some(first));
    // It asks on: when the first stops, it is the node.
    fleet.agent("ship").stop().await;
    let now = replaced(&fleet, "ship", first).await;
    assert_eq!(fleet.run("ship", "ping", "").await.state, State::Succeeded);
    // And the first one, back again, is the one to wait.
    fleet.agent("ship").start();
    wait_until(SOON, "its refusal", async || errors(&fleet, "ship", "second_journal").await.len() == 2).await;
    assert_eq!(spec(&fleet, "ship").await.journal, now.journal);
    twin.kill();
}

#[tokio::test]
async fn a_copied_disk_stands_back_until_the_other_is_silent() {
    let mut fleet = Fleet::start(&["ship"]).await;
    fleet.agent("ship").kill();
    let mut copied = Process::agent("ship", &fleet.broker.url());
    copy(&fleet.agent("ship").state_dir(), &copied.state_dir());
    fleet.start_agent("ship").await;
    let status = fleet.status("ship").await.unwrap();
    copied.start();
    wait_until(SOON, "the error event", async || !errors(&fleet, "ship", "twin").await.is_empty()).await;
    for _ in 0..20 {
        assert_eq!(fleet.run("ship", "shell", "echo x").await.state, State::Succeeded);
    }
    assert_eq!(fleet.status("ship").await.unwrap().run, status.run, "the first one holds the name");
    fleet.agent("ship").kill();
    let taken = fleet.run("ship", "ping", "").await;
    assert_eq!(taken.state, State::Succeeded);
    assert_ne!(fleet.status("ship").await.unwrap().run, status.run);
}

#[tokio::test]
async fn an_agent_that_is_killed_goes_on_at_once() {
    let mut fleet = Fleet::start(&["ship"]).await;
    for _ in 0..5 {
        fleet.agent("ship").restart();
        assert_eq!(fleet.run("ship", "ping", "").await.state, State::Succeeded);
    }
    assert!(errors(&fleet, "ship", "twin").await.is_empty());
}

#[tokio::test]
async fn a_second_journal_that_waits_sends_nothing() {
    let mut fleet = Fleet::start(&["ship"]).await;
    let mut second = Process::agent("ship", &fleet.broker.url());
    let file = second.state_dir().join("inmsg.txt");
    fs::create_dir_all(second.state_dir()).unwrap();
    fs::write(&file, r#"{"to": "ship", "method": "note", "body": "from the second", "id": "mine"}"#).unwrap();
    second.start();
    wait_until(SOON, "it waits, with its message in the outbox", async || {
        second.stderr().contains("another journal is this node; waiting") && !file.exists()
    })
    .await;
    // The first goes on for two beats.
    let beat = fleet.status("ship").await.unwrap().beat;
    wait_until(SOON, "two beats", async || fleet.status("ship").await.is_some_and(|s| s.beat >= beat.map(|b| b + 2)))
        .await;
    let marker = fleet.publish("fleet.msg.ship.event.ops.note", &[], "before").await;
    fleet.agent("ship").stop().await;
    // It is the node now: what it has to send leaves, and comes to itself.
    let record = fleet.record("ship", "ship", "note", "mine").await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert!(record.seq > marker.seq, "{} was sent before {}", record.seq, marker.seq);
}
