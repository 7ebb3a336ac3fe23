//! Output in `FLEET_OUTPUT`: complete, in order, numbered, once; live while a command runs, and bounded.

use crate::harness::{Fleet, SOON, Ship, wait_until};
use crate::ledger;
use edgeward::broker::RawMessage;
use edgeward::model::header::names;
use edgeward::model::record::Record;
use edgeward::model::state::State;
use edgeward::model::subject::RecordStream;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use std::fs;

const SHELL: &str = "fleet.msg.ship1.command.ops.shell";

/// The chunks that are stored of a message, by their numbers.
async fn chunks(fleet: &Fleet, id: &str) -> Vec<RawMessage> {
    let mut stored = ledger::stored(fleet, RecordStream::Output, &format!("fleet.output.ship1.ops.{id}.*")).await;
    stored.sort_by_key(number);
    stored
}

fn number(chunk: &RawMessage) -> u64 {
    chunk.subject.rsplit('.').next().unwrap().parse().unwrap()
}

fn header<'a>(chunk: &'a RawMessage, name: &str) -> &'a str {
    chunk.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", chunk.headers))
}

/// Waits until all chunks are stored that the record tells of, checks that they are what it says, and gives them.
async fn complete(fleet: &Fleet, record: &Record) -> Vec<RawMessage> {
    let stored = wait_until(SOON, format!("{} chunks", record.chunks), async || {
        let stored = chunks(fleet, record.id.as_str()).await;
        if stored.len() as u64 == record.chunks { Ok(stored) } else { Err(stored.len()) }
    })
    .await;
    let numbers: Vec<u64> = stored.iter().map(number).collect();
    assert_eq!(numbers, (1..=record.chunks).collect::<Vec<_>>());
    let attempt = record.attempt.to_string();
    let last = stored.iter().filter(|chunk| header(chunk, names::ATTEMPT) == attempt);
    let hash = last.fold(Sha256::new(), |hash, chunk| hash.chain_update(&chunk.body)).finalize();
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(record.output_sha256.as_deref(), Some(hash.as_str()));
    stored
}

/// One stream of one try, put together by the offsets.
fn put_together(chunks: &[RawMessage], stream: &str, attempt: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in chunks {
        if header(chunk, names::OUTPUT) == stream && header(chunk, names::ATTEMPT) == attempt {
            assert_eq!(header(chunk, names::OFFSET), bytes.len().to_string(), "{}", chunk.subject);
            bytes.extend_from_slice(&chunk.body);
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_ack_cannot_hold_is_stored_whole() {
    let fleet = Fleet::start(&["ship1"]).await;
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; head -c 40000 /dev/zero >&2";
    let record = fleet.run("ship1", "shell", script).await;
    assert_eq!((record.state, record.truncated), (State::Succeeded, true));
    let stored = complete(&fleet, &record).await;
    let wanted: String = (0..20000).map(|n| format!("line {n}\n")).collect();
    assert!(put_together(&stored, "stdout", "1") == wanted.as_bytes());
    assert_eq!(put_together(&stored, "stderr", "1"), vec![0; 40000]);
    let small = fleet.run("ship1", "shell", "echo small").await;
    assert_eq!((small.chunks, small.output_sha256), (0, None), "an ack holds it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_leaves_once() {
    let ship = Ship::start().await;
    let client = ship.raw().await;
    let mut published = client.subscribe("fleet.output.>").await.unwrap();
    client.flush().await.unwrap();
    let record = ship.fleet.run("ship1", "shell", "head -c 1000000 /dev/zero; printf end >&2").await;
    complete(&ship.fleet, &record).await;
    // What it sends last ends the count: everything sent before is there by then.
    client.publish("fleet.output.end", "".into()).await.unwrap();
    let mut left = Vec::new();
    loop {
        let message = tokio::time::timeout(SOON, published.next()).await.unwrap().unwrap();
        if message.subject.as_str() == "fleet.output.end" {
            break;
        }
        left.push(message.subject.to_string());
    }
    assert_eq!(left.len() as u64, record.chunks, "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_there_while_a_command_runs_and_comes_through_kills() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let state = fleet.agent("ship1").state_dir();
    let (go, on) = (state.join("go"), state.join("on"));
    let wait = |file: &std::path::Path| format!("until test -e {}; do sleep 0.05; done", file.display());
    let script =
        format!("echo first; {}; head -c 200000 /dev/zero | tr '\\0' x; {}; echo last; exit 3", wait(&go), wait(&on));
    let id = fleet.command("ship1", "shell", script).await;
    let live = wait_until(SOON, "the first chunk", async || chunks(&fleet, &id).await.into_iter().next()).await;
    assert_eq!((&live.body[..], header(&live, names::OUTPUT)), (&b"first\n"[..], "stdout"));
    fleet.agent("ship1").kill();
    fs::write(&go, "").unwrap();
    fleet.start_agent("ship1").await;
    wait_until(SOON, "what came meanwhile", async || chunks(&fleet, &id).await.len() > 5).await;
    fleet.agent("ship1").kill();
    fs::write(&on, "").unwrap();
    fleet.start_agent("ship1").await;
    let record = fleet.record("ship1", "ops", "shell", &id).await;
    assert_eq!((record.exit_code, record.attempt), (Some(3), 1));
    let stored = complete(&fleet, &record).await;
    let wanted = format!("first\n{}last\n", "x".repeat(200_000));
    assert!(put_together(&stored, "stdout", "1") == wanted.as_bytes());
    wait_until(SOON, "the run's file to go", async || {
        let names = fs::read_dir(state.join("run")).unwrap().flatten();
        names.filter(|entry| entry.path().extension().is_some_and(|e| e == "run")).count() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_run_on_from_try_to_try() {
    let fleet = Fleet::start(&["ship1"]).await;
    let script = "head -c 50000 /dev/zero | tr '\\0' $EDGEWARD_MSG_ATTEMPT; exit 1";
    let tries = [("Fleet-Retries", "2"), ("Fleet-Retry-Wait", "10ms"), ("Fleet-Id", "thrice")];
    fleet.publish(SHELL, &tries, script).await;
    let record = fleet.record("ship1", "ops", "shell", "thrice").await;
    assert_eq!((record.state, record.attempt), (State::Failed, 3));
    let stored = complete(&fleet, &record).await;
    for attempt in ["1", "2", "3"] {
        let wanted = attempt.repeat(50_000);
        assert!(put_together(&stored, "stdout", attempt) == wanted.as_bytes(), "try {attempt}");
    }
}

fn resident_mib(pid: impl std::fmt::Display) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_is_bounded_everywhere() {
    const SIZE: u64 = 100 << 20;
    let mut fleet = Fleet::start(&["ship1"]).await;
    fleet.agent("ship1").kill();
    fleet.agent("ship1").set_env("EDGEWARD_AGENT__OUTPUT_BYTES", "1000000");
    fleet.start_agent("ship1").await;
    let agent = fleet.agent("ship1").pid().as_raw_nonzero();
    let before = resident_mib(agent);
    let record = fleet.run("ship1", "shell", format!("echo first; head -c {SIZE} /dev/zero; printf last")).await;
    assert_eq!(
        (record.state, record.truncated, record.stdout_bytes),
        (State::Succeeded, true, SIZE + 10),
        "{record:?}"
    );
    let stored = complete(&fleet, &record).await;
    let total: usize = stored.iter().map(|chunk| chunk.body.len()).sum();
    assert!((1_000_000..1_100_000).contains(&total), "{total}");
    let tail = stored.last().unwrap();
    assert!(tail.body.ends_with(b"\0last"));
    let end = header(tail, names::OFFSET).parse::<u64>().unwrap() + tail.body.len() as u64;
    assert_eq!(end, record.stdout_bytes, "the tail stands at its true place");
    let runner = fleet.agent("ship1").runner().expect("a runner").as_raw_nonzero();
    assert!(resident_mib(agent) < before + 20, "from {before} to {}", resident_mib(agent));
    assert!(resident_mib(runner) < 60, "{}", resident_mib(runner));
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_cannot_leave_holds_back_no_ack() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    fleet.agent("ship1").kill();
    // One chunk in half a minute.
    fleet.agent("ship1").set_env("EDGEWARD_AGENT__OUTPUT_RATE", "1024");
    fleet.start_agent("ship1").await;
    let large = fleet.run("ship1", "shell", "head -c 1000000 /dev/zero").await;
    assert_eq!(large.state, State::Succeeded);
    assert_eq!(fleet.run("ship1", "shell", "echo on").await.stdout.as_deref(), Some("on\n"));
    assert!((chunks(&fleet, large.id.as_str()).await.len() as u64) < large.chunks, "it goes on slowly");
}
