//! Runs of events: many that wait in one lane share commits, and each is what it would have been alone.

use crate::harness::{Fleet, SOON, wait_until};
use crate::ledger::records;
use edgeward::broker::Outgoing;
use edgeward::model::state::State;
use futures::future::join_all;
use std::fs;

const LOG: &str = "fleet.msg.ship1.event.ops.log";

async fn store(fleet: &Fleet, subject: &str, count: usize) {
    let all: Vec<Outgoing> = (0..count).map(|n| Outgoing::new(subject, format!("line {n}"))).collect();
    for stored in join_all(all.iter().map(|one| fleet.client.publish(one, SOON))).await {
        stored.unwrap();
    }
}

async fn terminal(fleet: &Fleet, method: &str, count: usize) -> Vec<edgeward::model::record::Record> {
    wait_until(SOON * 2, format!("{count} records of {method}"), async || {
        let found = records(fleet, &format!("fleet.ack.ship1.ops.{method}.*")).await;
        if found.len() == count { Ok(found) } else { Err(format!("{} of {count}", found.len())) }
    })
    .await
}

/// The ids in a log file: `e` and the sequence.
fn ids(log: &str) -> Vec<String> {
    log.lines().filter_map(|line| line.split(' ').nth(2).map(str::to_owned)).collect()
}

/// Taken while the lane's head cannot be done, then worked off; the node dies in the middle of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_event_holds_the_ones_behind_it_and_a_kill_loses_and_doubles_nothing() {
    const COUNT: usize = 400;
    let mut fleet = Fleet::start(&["ship1"]).await;
    let log = fleet.agent("ship1").state_dir().join("log");
    // A file where the folder has to be: no line can be written.
    fs::write(&log, "in the way").unwrap();
    store(&fleet, LOG, COUNT).await;
    wait_until(SOON, "the lane on the node, its head retrying", async || {
        let tried = records(&fleet, "fleet.progress.ship1.ops.log.*").await;
        let lanes = fleet.status("ship1").await?.lanes?;
        (!tried.is_empty() && lanes.iter().any(|lane| lane.depth == COUNT as u64)).then_some(())
    })
    .await;
    let tried = records(&fleet, "fleet.progress.ship1.ops.log.*").await;
    assert!(tried.iter().all(|record| record.seq == tried[0].seq), "the head alone was tried: {tried:?}");
    fs::remove_file(&log).unwrap();
    let file = log.join("ops/default.log");
    wait_until(SOON * 2, "some of them", async || ids(&fs::read_to_string(&file).unwrap_or_default()).len() > 20).await;
    fleet.agent("ship1").kill();
    fleet.start_agent("ship1").await;
    let records = terminal(&fleet, "log", COUNT).await;
    assert!(records.iter().all(|record| record.state == State::Succeeded), "{records:?}");
    let wanted: Vec<String> = (1..=COUNT).map(|seq| format!("e{seq}")).collect();
    assert_eq!(ids(&fs::read_to_string(&file).unwrap()), wanted);
}

/// What needs no running is over as it is taken, in whatever company it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_notes_has_one_record_each() {
    const COUNT: usize = 2000;
    let mut fleet = Fleet::start(&["ship1"]).await;
    store(&fleet, "fleet.msg.ship1.event.ops.note", COUNT / 2).await;
    fleet.agent("ship1").kill();
    store(&fleet, "fleet.msg.ship1.event.ops.note.other", COUNT / 2).await;
    fleet.start_agent("ship1").await;
    let records = terminal(&fleet, "note", COUNT).await;
    for record in &records {
        assert_eq!((record.state, record.attempt), (State::Succeeded, 1), "{record:?}");
        assert!(record.started_at.is_some() && record.started_at <= record.finished_at, "{record:?}");
    }
}
