//! The journal under real conditions: a long queue, a full disk, a read-only folder, damage, and an outbox that outlives
//! kills and refusals.

use crate::harness::{Fleet, Process, SOON, TestBroker, wait_until};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use edgeward::broker::{Broker, Outgoing};
use edgeward::model::error_event::{Code, ErrorEvent};
use edgeward::model::record::Record;
use edgeward::model::state::State;
use edgeward::model::subject::RecordStream;
use futures::stream::{self, StreamExt};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The last error event of this code that a node has told.
async fn told(client: &Broker, node: &str, severity: &str, code: Code) -> ErrorEvent {
    let subject = format!("fleet.error.{node}.{severity}.{code}");
    let stream = client.names().record_stream(RecordStream::Errors);
    wait_until(SOON, format!("the error event {subject}"), async || {
        let message = client.get_last(&stream, &subject).await.map_err(|e| e.to_string())?.ok_or("none")?;
        serde_json::from_slice(&message.body).map_err(|e| e.to_string())
    })
    .await
}

/// What a process has in memory of its own, in KiB: without the pages of its binary, which in a test's build are several
/// times those of a release.
fn own_kib(pid: impl std::fmt::Display) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Publishes `count` pings behind a command that does not end, many at once.
async fn queue_behind(fleet: &Fleet, count: usize) {
    fleet.publish("fleet.msg.ship1.command.ops.shell.stuck", &[], "sleep 600").await;
    let publishes = stream::iter(0..count).map(|_| async {
        let message = Outgoing::new("fleet.msg.ship1.command.ops.shell.stuck", "true");
        fleet.client.publish(&message, Duration::from_secs(60)).await.unwrap();
    });
    publishes.buffer_unordered(512).collect::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_queue_behind_a_stuck_message_costs_no_memory_and_delays_nobody() {
    const QUEUED: usize = 100_000;
    // With the binary, at most 10 MiB in a release, well below the 30 MB that an agent may have.
    const LIMIT_KIB: u64 = 16 * 1024;
    let broker = TestBroker::with(|options| options.sync_always = false).await;
    let mut fleet = Fleet::at(broker, &["ship1"]).await;
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    queue_behind(&fleet, QUEUED).await;
    wait_until(Duration::from_secs(120), "all of them on the node", async || {
        let status = fleet.status("ship1").await.ok_or("no status")?;
        let depth = status.lanes.unwrap_or_default().first().map_or(0, |lane| lane.depth);
        if depth > QUEUED as u64 { Ok(()) } else { Err(format!("{depth} in the lane")) }
    })
    .await;
    let pid = |fleet: &mut Fleet| fleet.agent("ship1").pid().as_raw_nonzero();
    let rss = own_kib(pid(&mut fleet));
    assert!(rss < LIMIT_KIB, "{rss} KiB");

    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let record = fleet.run("ship1", "ping", "").await;
        slowest = slowest.max(record.finished_at.unwrap().since(record.stored_at));
    }
    assert!(slowest < Duration::from_millis(100), "{slowest:?}");

    // The same for an agent that finds the queue in its journal.
    let before = Instant::now();
    fleet.agent("ship1").kill();
    fleet.start_agent("ship1").await;
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    let rss = own_kib(pid(&mut fleet));
    assert!(rss < LIMIT_KIB, "{rss} KiB after a restart");
}

/// A small file system of its own; `None` where this user may not mount.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(size: &str) -> Option<Mount> {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={size},mode=0700");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).status();
        if done.is_ok_and(|status| status.success()) {
            return Some(Mount(folder));
        }
        eprintln!("SKIPPED: mounting is not permitted here, so a full disk cannot be tried");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, options: &str) {
        let option = format!("remount,{options}");
        assert!(Command::new("mount").args(["-o", &option]).arg(self.path()).status().unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn agent_in(state: &Path, server: &str) -> Process {
    Process::agent("ship1", server).env("EDGEWARD_STATE_DIR", state.to_str().unwrap())
}

/// Fills a disk to the last byte.
fn fill(folder: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(folder.join("ballast")).unwrap();
    for size in [64 << 10, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_doubles_nothing() {
    let Some(disk) = Mount::new("8m") else { return };
    // Another node, so that the streams are there.
    let mut fleet = Fleet::start(&["ship2"]).await;
    let url = fleet.broker.url();
    fleet.add("ship1", agent_in(&disk.path().join("state"), &url));
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    let notes = tempfile::tempdir().unwrap();
    let (runs, go) = (notes.path().join("runs"), notes.path().join("go"));
    let script =
        format!("echo run >> {}; while [ ! -e {} ]; do sleep 0.05; done; echo done", runs.display(), go.display());
    let running = fleet.command("ship1", "shell", script).await;
    wait_until(SOON, "the command to run", async || runs.exists()).await;

    fill(disk.path());
    // A body that no page which is left would hold.
    let body = format!("echo waited > /dev/null # {}", "x".repeat(200_000));
    let waiting = fleet.publish("fleet.msg.ship1.command.ops.shell.other", &[], body).await;
    wait_until(SOON, "a status that says so", async || {
        let status = fleet.status("ship1").await.ok_or("no status")?;
        status.journal_error.ok_or("nothing said")
    })
    .await;
    fs::write(&go, "").unwrap();
    let before = fleet.agent("ship1").stderr().matches("cannot be written").count();
    assert!((1..10).contains(&before), "the log says so, but not again and again: {before}");

    fs::remove_file(disk.path().join("ballast")).unwrap();
    let record = fleet.record("ship1", "ops", "shell", &running).await;
    assert_eq!((record.state, record.stdout.as_deref(), record.attempt), (State::Succeeded, Some("done\n"), 1));
    assert_eq!(fs::read_to_string(&runs).unwrap(), "run\n", "run once");
    let record = fleet.record("ship1", "ops", "shell", &format!("s{}", waiting.seq.0)).await;
    assert_eq!(record.state, State::Succeeded);
    let event = told(&fleet.client, "ship1", "error", Code::Journal).await;
    assert!(event.message.contains("could not be written"), "{}", event.message);
    fleet.agent("ship1").kill();
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_refused_at_the_start() {
    let Some(disk) = Mount::new("4m") else { return };
    let broker = TestBroker::start().await;
    let state = disk.path().join("state");
    disk.remount("ro");
    let mut agent = agent_in(&state, &broker.url());
    agent.start();
    assert_eq!(agent.exited(SOON).await.code(), Some(78));
    let said = agent.stderr();
    assert!(said.contains(state.to_str().unwrap()) && said.contains("Read-only file system"), "{said}");

    disk.remount("rw");
    agent.start();
    wait_until(SOON, "a journal", async || state.join("journal.db").exists()).await;
    agent.stop().await;
    disk.remount("ro");
    agent.start();
    assert_eq!(agent.exited(SOON).await.code(), Some(78), "also where there is one");
}

#[tokio::test]
async fn a_damaged_journal_is_moved_aside_and_that_is_told() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    let old = fleet.status("ship1").await.unwrap().journal;
    fleet.agent("ship1").stop().await;
    let state = fleet.agent("ship1").state_dir();
    let path = state.join("journal.db");
    // All of it into the one file: the log would put right what is wrong there.
    rusqlite::Connection::open(&path).unwrap().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[4096..].fill(0xa5);
    fs::write(&path, bytes).unwrap();
    fleet.agent("ship1").start();
    let event = told(&fleet.client, "ship1", "critical", Code::Journal).await;
    assert!(event.message.contains("damaged") && event.message.contains("journal.db.damaged-"), "{}", event.message);
    assert!(fleet.agent("ship1").is_running());
    let aside = fs::read_dir(&state).unwrap().flatten();
    assert!(aside.map(|e| e.file_name()).any(|name| name.to_string_lossy().starts_with("journal.db.damaged-")));
    let mark = fs::read_to_string(state.join("journal.mark")).unwrap();
    assert!(!mark.starts_with(&old.unwrap().to_string()), "another journal: {mark}");
}

#[tokio::test]
async fn a_journal_that_is_removed_under_the_agent_serves_on_and_that_is_told() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    let path = fleet.agent("ship1").state_dir().join("journal.db");
    fs::remove_file(&path).unwrap();
    let event = told(&fleet.client, "ship1", "critical", Code::Journal).await;
    assert!(event.message.contains("removed or replaced"), "{}", event.message);
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    assert!(!path.exists() && fleet.agent("ship1").is_running());
}

#[tokio::test]
async fn all_that_a_node_has_to_say_outlives_kills_without_a_broker() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    let notes = tempfile::tempdir().unwrap();
    let go = notes.path().join("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.05; done; echo late; exit 3", go.display());
    let id = fleet.command("ship1", "shell", script).await;
    fleet.record_progress("ship1", "ops", "shell", &id).await;
    fleet.broker.server.kill().await.unwrap();
    let state = fleet.agent("ship1").state_dir();
    fs::write(state.join("inmsg.txt"), r#"{"to":"ship1","kind":"event","method":"log","body":"from afar"}"#).unwrap();
    wait_until(SOON, "inmsg.txt to be taken", async || !state.join("inmsg.txt").exists()).await;
    fs::write(&go, "").unwrap();
    // Finished, with nobody to tell; then killed, twice.
    wait_until(SOON, "the command to be over", async || outbox_len(&state) >= 3).await;
    for _ in 0..2 {
        fleet.agent("ship1").restart();
        let begun = Instant::now();
        wait_until(SOON, "the agent to have its journal", async || {
            let mark =
                fs::metadata(state.join("journal.mark")).and_then(|m| m.modified()).map_err(|e| e.to_string())?;
            if mark.elapsed().is_ok_and(|age| age < begun.elapsed()) { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    }
    fleet.broker.server.restart().await.unwrap();
    let record = fleet.record("ship1", "ops", "shell", &id).await;
    assert_eq!((record.state, record.exit_code, record.stdout.as_deref()), (State::Failed, Some(3), Some("late\n")));
    told(&fleet.client, "ship1", "warning", Code::Failed).await;
    wait_until(SOON, "the line in the log", async || {
        let files = fs::read_dir(state.join("log/ship1")).map_err(|e| e.to_string())?.flatten();
        let found = files.map(|e| fs::read_to_string(e.path()).unwrap_or_default()).any(|t| t.contains("from afar"));
        if found { Ok(()) } else { Err("not there".to_owned()) }
    })
    .await;
}

/// How many entries wait in a journal, read beside its agent.
fn outbox_len(state: &Path) -> i64 {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let open = rusqlite::Connection::open_with_flags(state.join("journal.db"), flags);
    open.and_then(|c| c.query_row("SELECT count(*) FROM outbox WHERE parked IS NULL", [], |row| row.get(0)))
        .unwrap_or(0)
}

#[tokio::test]
async fn a_record_that_is_too_large_leaves_in_its_smallest_form() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let notes = tempfile::tempdir().unwrap();
    let go = notes.path().join("go");
    let script =
        format!("while [ ! -e {} ]; do sleep 0.05; done; head -c 12000 /dev/zero | tr '\\0' x; exit 4", go.display());
    let id = fleet.command("ship1", "shell", script).await;
    fleet.record_progress("ship1", "ops", "shell", &id).await;
    fleet.broker.server.kill().await.unwrap();
    fs::write(&go, "").unwrap();
    let state = fleet.agent("ship1").state_dir();
    wait_until(SOON, "the command to be over", async || outbox_len(&state) >= 2).await;
    // The same broker, but it takes less than it did when the record was made.
    let mut options = fleet.broker.server.options().clone();
    options.port = edgeward::server::Port::Exact(fleet.broker.server.port());
    options.max_payload = Some(4096);
    fleet.broker.server = edgeward::server::Server::start(options).await.unwrap();
    let record: Record = fleet.record("ship1", "ops", "shell", &id).await;
    assert_eq!((record.state, record.exit_code, record.stdout_bytes), (State::Failed, Some(4), 12_000));
    assert!(record.truncated && record.stdout.as_deref() == Some(""), "{record:?}");
    let event = told(&fleet.client, "ship1", "error", Code::OutboxParked).await;
    assert!(event.message.contains(&id), "{}", event.message);
}

/// The JetStream API's answer.
async fn ask(broker: &TestBroker, path: &str, body: Value) -> Value {
    let client = async_nats::connect(broker.url()).await.unwrap();
    let answer = client.request(format!("$JS.API.{path}"), body.to_string().into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer.get("error").is_none(), "{answer}");
    answer
}

/// What a record measures as it is sent, headers and all.
async fn sent_size(broker: &TestBroker, subject: &str) -> usize {
    let message = &ask(broker, "STREAM.MSG.GET.FLEET_ACKS", json!({ "last_by_subj": subject })).await["message"];
    let bytes = |key: &str| BASE64.decode(message[key].as_str().unwrap()).unwrap();
    let expected = "Nats-Expected-Last-Subject-Sequence";
    let stripped = !String::from_utf8(bytes("hdrs")).unwrap().contains(expected);
    bytes("hdrs").len() + bytes("data").len() + if stripped { expected.len() + ": 0\r\n".len() } else { 0 }
}

#[tokio::test]
async fn a_record_that_is_too_large_under_its_other_id_holds_up_no_other() {
    let fleet = Fleet::start(&["ship1"]).await;
    let script = "head -c 12000 /dev/zero | tr '\\0' x; exit 4";
    let send = async |id| fleet.publish("fleet.msg.ship1.command.ops.shell", &[("Fleet-Id", id)], script).await;
    // Another message's record stands under the id `again`.
    send("first").await;
    let mut other = serde_json::to_value(fleet.record("ship1", "ops", "shell", "first").await).unwrap();
    other["id"] = "again".into();
    fleet.publish("fleet.ack.ship1.ops.shell.again", &[], other.to_string()).await;
    // A record of this size is taken, one with a longer id is not.
    let size = sent_size(&fleet.broker, "fleet.ack.ship1.ops.shell.first").await;
    let mut config = ask(&fleet.broker, "STREAM.INFO.FLEET_ACKS", json!({})).await["config"].clone();
    config["max_msg_size"] = size.into();
    ask(&fleet.broker, "STREAM.UPDATE.FLEET_ACKS", config).await;
    let stored = send("again").await;
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    let record = fleet.record("ship1", "ops", "shell", &format!("again-s{}", stored.seq)).await;
    assert_eq!((record.state, record.exit_code, record.stdout_bytes), (State::Failed, Some(4), 12_000));
    assert!(record.truncated && record.id_reused, "{record:?}");
    let event = told(&fleet.client, "ship1", "error", Code::OutboxParked).await;
    assert!(event.message.contains("again-s"), "{}", event.message);
}

#[tokio::test]
async fn a_lane_that_is_full_refuses_and_others_go_on() {
    let mut fleet = Fleet::start(&["ship2"]).await;
    let url = fleet.broker.url();
    fleet.add("ship1", Process::agent("ship1", &url).env("EDGEWARD_AGENT__JOURNAL_BYTES", "400000"));
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    fleet.publish("fleet.msg.ship1.command.ops.shell.stuck", &[], "sleep 600").await;
    let body = format!("true # {}", "x".repeat(30_000));
    let mut ids = Vec::new();
    for _ in 0..4 {
        let stored = fleet.publish("fleet.msg.ship1.command.ops.shell.stuck", &[], &body).await;
        ids.push(format!("s{}", stored.seq.0));
    }
    // A hundred thousand bytes are a quarter: three wait, the fourth does not fit.
    let record = fleet.record("ship1", "ops", "shell", &ids[3]).await;
    let error = record.error.unwrap();
    assert_eq!((record.state, error.code), (State::Refused, Code::LaneFull), "{}", error.message);
    told(&fleet.client, "ship1", "warning", Code::LaneFull).await;
    assert_eq!(fleet.run("ship1", "shell", "true").await.state, State::Succeeded, "another lane");
    // The stuck one ends with what runs it, and what waited behind it leaves room.
    fleet.agent("ship1").kill_with_commands();
    fleet.start_agent("ship1").await;
    assert_eq!(fleet.record("ship1", "ops", "shell", &ids[2]).await.state, State::Succeeded);
    let stored = fleet.publish("fleet.msg.ship1.command.ops.shell.stuck", &[], &body).await;
    let record = fleet.record("ship1", "ops", "shell", &format!("s{}", stored.seq.0)).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
}
