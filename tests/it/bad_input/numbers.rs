//! What reads well and cannot be: a node writes its own status, records and output, and may write any number and any text
//! there.

use super::*;
use edgeward::model::error_event::ErrorEvent;
use edgeward::model::id::{JournalId, MessageId, MsgRef};
use edgeward::model::message::StreamKind;
use edgeward::model::node::Spec;
use edgeward::model::record::RecordError;
use edgeward::model::time::Timestamp;

/// Waits until the hub has made a node of this journal.
async fn taken_in(fleet: &Fleet, node: &str, journal: JournalId) {
    let key = format!("$KV.FLEET_NODES.spec.{node}");
    wait_until(SOON, format!("{node} to be {journal}"), async || {
        let spec = fleet.client.get_last("KV_FLEET_NODES", &key).await.ok().flatten().ok_or("no spec")?;
        let spec: Spec = serde_json::from_slice(&spec.body).map_err(|_| "no spec that can be read")?;
        if spec.journal == Some(journal) { Ok(()) } else { Err("another journal") }
    })
    .await;
}

async fn hello(fleet: &Fleet, node: &str, journal: JournalId) {
    let hello = json!({ "v": 1, "node": node, "journal": journal }).to_string();
    fleet.publish(&format!("$KV.FLEET_NODES.hello.{node}"), &[], hello).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_cannot_be_end_neither_the_hub_nor_whoever_reads() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let (pid, cli) = (fleet.agent("ship1").pid(), fleet.cli());
    let (journal, other) = (JournalId::fresh(), JournalId::fresh());
    hello(&fleet, "ghost", journal).await;
    taken_in(&fleet, "ghost", journal).await;

    let lane = |name: &str| json!({ "lane": format!("command.ops.shell.{name}"), "depth": u64::MAX });
    let process = json!({ "name": "shell", "state": "running", "running": u32::MAX });
    let status = json!({
        "v": 1, "node": "ghost", "journal": journal, "interval_s": 1e19, "clock_offset_ms": i64::MIN,
        "position": { "commands": u64::MAX }, "lanes": [lane("a"), lane("b")], "processes": [process],
    });
    fleet.publish("$KV.FLEET_NODES.status.ghost", &[], status.to_string()).await;
    // The hub looks how old that is, to tell whether another may take its place.
    hello(&fleet, "ghost", other).await;
    wait_until(SOON, "the hub's word about that", async || {
        fleet.client.get_last("FLEET_ERRORS", "fleet.error.ghost.error.second_journal").await.ok().flatten()
    })
    .await;
    assert!(cli.run(&["nodes"]).await.ok().contains("ghost"));
    cli.run(&["node", "ghost"]).await.ok();
    cli.run(&["ps", "ghost"]).await.ok();

    let stored = fleet.publish("fleet.msg.ghost.command.ops.shell", &[], "true").await;
    let bare = bare(&fleet, &stored, State::Interrupted).await;
    let (id, record) = (bare.id.clone(), Record { chunks: 1, stdout_bytes: u64::MAX, stderr_bytes: 1, ..bare });
    fleet.publish(&format!("fleet.ack.ghost.ops.shell.{id}"), &[], record.encode()).await;
    for (number, offset) in [(1, u64::MAX), (u64::MAX, 0)] {
        let headers = [("Fleet-Output", "stdout"), ("Fleet-Attempt", "1"), ("Fleet-Offset", &offset.to_string())];
        fleet.publish(&format!("fleet.output.ghost.ops.{id}.{number}"), &headers, "x").await;
    }
    // It comes to an end, and says that something is missing.
    let said = cli.run(&["result", &stored.seq.to_string()]).await;
    assert!(said.code.is_some_and(|code| code != 0) && said.stdout.is_empty(), "{said:#?}");
    lives_on(&mut fleet, "ship1", pid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_says_does_not_act_on_a_terminal() {
    const ACTS: &str = "\u{1b}]0;mine\u{7}\u{9b}2J";
    let (fleet, journal) = (Fleet::start(&["ship1"]).await, JournalId::fresh());
    hello(&fleet, "ghost", journal).await;
    taken_in(&fleet, "ghost", journal).await;
    let status = json!({
        "v": 1, "node": "ghost", "journal": journal, "version": ACTS, "labels": { ACTS: ACTS }, "journal_error": ACTS,
        "host": { "name": ACTS }, "lanes": [{ "lane": ACTS, "depth": 1 }],
        "processes": [{ "name": ACTS, "state": ACTS, "last_error": ACTS, "stopped_by": ACTS }],
    });
    fleet.publish("$KV.FLEET_NODES.status.ghost", &[], status.to_string()).await;
    let event = ErrorEvent::new("ghost", Severity::Error, Code::Failed, "", Timestamp::local_now());
    let event = ErrorEvent { message: ACTS.to_owned(), process: Some(ACTS.to_owned()), ..event };
    fleet.publish("fleet.error.ghost.error.failed", &[], event.encode()).await;
    let stored = fleet.publish("fleet.msg.ghost.command.ops.shell", &[], "true").await;
    let (seq, cli) = (stored.seq.to_string(), fleet.cli());
    let open = [cli.run(&["why", &seq]).await, cli.run(&["run", "ghost", "true", "--wait", "100ms"]).await];
    let bare = bare(&fleet, &stored, State::Failed).await;
    let error = RecordError { code: Code::Spawn, message: ACTS.to_owned() };
    let record = Record { error: Some(error), ..bare };
    fleet.publish(&format!("fleet.ack.ghost.ops.shell.{}", record.id), &[], record.encode()).await;
    for args in [&["nodes"][..], &["node", "ghost"], &["ps", "ghost"], &["errors"]] {
        let said = cli.run(args).await;
        assert!(said.stdout.contains("mine"), "{args:?}: {said:#?}");
        assert!(is_plain(&said), "{args:?}: {said:#?}");
    }
    for verb in ["why", "wait", "status", "result"] {
        let said = cli.run(&[verb, &seq]).await;
        assert!(said.stdout.contains("mine") || said.stderr.contains("mine"), "{verb}: {said:#?}");
        assert!(is_plain(&said), "{verb}: {said:#?}");
    }
    open.iter().for_each(|said| assert!(is_plain(said), "{said:#?}"));
}

fn is_plain(said: &Said) -> bool {
    [&said.stdout, &said.stderr].iter().all(|text| !text.contains(|c: char| c.is_control() && c != '\n'))
}

/// What `ghost` could tell of a command of `ops`.
async fn bare(fleet: &Fleet, stored: &Stored, state: State) -> Record {
    let message = fleet.client.get(&stored.stream, stored.seq).await.unwrap().unwrap();
    let at = MsgRef { stream: StreamKind::Commands, seq: stored.seq, stored_at: message.stored_at };
    let id = MessageId::derived(at.stream, at.seq);
    let record = Record::bare(id, at, stored.stream.clone(), "ghost", state, By::Node);
    Record { from: "ops".to_owned(), method: "shell".to_owned(), attempt: 1, ..record }
}
