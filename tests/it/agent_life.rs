//! An agent's life: starts that cannot be, stops, kills, and work without a link.

use crate::harness::{Fleet, Process, SOON, lines, wait_until};
use edgeward::broker::From;
use edgeward::model::id::StreamSeq;
use edgeward::model::state::State;
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

async fn has_line(path: &Path, line: &str) {
    wait_until(SOON, format!("the line {line}"), async || {
        let lines = lines(path);
        if lines.iter().any(|have| have == line) { Ok(()) } else { Err(format!("{lines:?}")) }
    })
    .await;
}

/// Waits until the node says that it has taken the message with this id (`s<sequence>`).
async fn taken(fleet: &Fleet, node: &str, id: &str) {
    let seq = StreamSeq(id[1..].parse().unwrap());
    wait_until(SOON, format!("{id} to be on {node}"), async || {
        let position = fleet.status(node).await.and_then(|status| status.position.commands);
        if position >= Some(seq) { Ok(()) } else { Err(format!("{position:?}")) }
    })
    .await;
}

/// A process that must not start: exits 78 and says why.
async fn refused(process: &mut Process, parts: &[&str]) {
    process.start();
    let status = process.exited(SOON).await;
    let said = process.stderr();
    assert_eq!(status.code(), Some(78), "{said}");
    for part in parts {
        assert!(said.contains(part), "no `{part}` in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test]
async fn term_lets_events_finish_for_the_grace_and_nothing_starts_any_more() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    fleet.agent("ship1").kill();
    fleet.agent("ship1").set_env("EDGEWARD_AGENT__GRACE", "1s");
    fleet.start_agent("ship1").await;
    let folder = fleet.agent("ship1").state_dir();
    let file = folder.join("f");
    let path = file.display();
    let running = fleet
        .command(
            "ship1",
            "shell",
            format!("echo running >> {path}; until test -e {path}.go; do sleep 0.02; done; echo on >> {path}"),
        )
        .await;
    let queued = fleet.command("ship1", "shell", format!("echo queued >> {path}")).await;
    taken(&fleet, "ship1", &queued).await;
    has_line(&file, "running").await;
    // A log file that somebody else holds locked keeps an event running.
    let logs = folder.join("log/ops");
    fs::create_dir_all(&logs).unwrap();
    let held = fs::File::create(logs.join("default.log")).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let event = fleet.publish("fleet.msg.ship1.event.ops.log", &[("Fleet-Timeout", "1h")], "line").await;
    fleet.record_progress("ship1", "ops", "log", &format!("e{}", event.seq.0)).await;
    fleet.agent("ship1").signal(Signal::TERM);
    wait_until(SOON, "it to be told", async || fleet.agent("ship1").stderr().contains("grace is over")).await;
    let late = fleet
        .publish("fleet.msg.ship1.command.ops.shell.late", &[("Fleet-Id", "late")], format!("echo late >> {path}"))
        .await;
    let status = fleet.agent("ship1").exited(SOON).await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert_eq!(fleet.status("ship1").await.and_then(|status| status.stopped), Some(true));
    fs::write(folder.join("f.go"), "").unwrap();
    has_line(&file, "on").await;
    assert_eq!(lines(&file), ["running", "on"], "nothing starts after TERM");

    drop(held);
    fleet.start_agent("ship1").await;
    let on = fleet.record("ship1", "ops", "shell", &running).await;
    assert_eq!((on.state, on.attempt), (State::Succeeded, 1));
    assert_eq!(fleet.record("ship1", "ops", "shell", &queued).await.state, State::Succeeded);
    assert_eq!(fleet.record("ship1", "ops", "shell", "late").await.seq, late.seq);
    let event = fleet.record("ship1", "ops", "log", &format!("e{}", event.seq.0)).await;
    assert_eq!((event.state, event.attempt), (State::Succeeded, 2), "an event that was cut off runs again");
    let mut all = lines(&file);
    all.sort();
    assert_eq!(all, ["late", "on", "queued", "running"]);
}

#[tokio::test]
async fn term_without_a_link_does_not_wait_for_one() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    let id = fleet
        .command("ship1", "shell", format!("echo begun >> {0}; sleep 0.5; echo done >> {0}", file.display()))
        .await;
    has_line(&file, "begun").await;
    fleet.broker.server.kill().await.unwrap();
    has_line(&file, "done").await;
    fleet.agent("ship1").signal(Signal::TERM);
    let status = fleet.agent("ship1").exited(Duration::from_secs(4)).await;
    assert_eq!(status.code(), Some(0));
    let said = fleet.agent("ship1").stderr();
    assert!(said.contains("told to stop") && said.contains("SIGTERM"), "{said}");
    // What it could not say it says at the next start.
    fleet.broker.server.restart().await.unwrap();
    fleet.start_agent("ship1").await;
    assert_eq!(fleet.record("ship1", "ops", "shell", &id).await.state, State::Succeeded);
}

#[tokio::test]
async fn kill_9_neither_loses_doubles_nor_reorders_what_is_queued() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    let mut ids = Vec::new();
    for n in 0..15 {
        ids.push(fleet.command("ship1", "shell", format!("echo {n} >> {}; sleep 0.1", file.display())).await);
    }
    for kill_at in [2, 6, 9] {
        has_line(&file, &kill_at.to_string()).await;
        fleet.agent("ship1").restart();
    }
    for id in &ids {
        assert_eq!(fleet.record("ship1", "ops", "shell", id).await.state, State::Succeeded, "{id}");
    }
    assert_eq!(lines(&file), (0..15).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn messages_of_one_lane_that_come_as_others_end_all_run() {
    let fleet = Fleet::start(&["ship1"]).await;
    // In each lane one after the other, as fast as the broker stores them: many come just as the lane becomes empty.
    let send = async |lane: usize| {
        for n in 0..100 {
            let id = format!("l{lane}n{n}");
            let subject = format!("fleet.msg.ship1.command.ops.ping.l{lane}");
            fleet.publish(&subject, &[("Fleet-Id", id.as_str())], "").await;
        }
        fleet.record("ship1", "ops", "ping", &format!("l{lane}n99")).await.state
    };
    let states = futures::future::join_all((0..8).map(send)).await;
    assert!(states.iter().all(|state| *state == State::Succeeded), "{states:?}");
}

#[tokio::test]
async fn a_state_folder_serves_one_agent_of_one_node() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let (url, state) = (fleet.broker.url(), fleet.agent("ship1").state_dir());
    let state = state.to_str().unwrap();
    let pid = fleet.agent("ship1").pid().as_raw_nonzero().to_string();
    let mut second = Process::agent("ship1", &url).env("EDGEWARD_STATE_DIR", state);
    refused(&mut second, &["in use by another agent", &pid, state]).await;
    assert!(fleet.agent("ship1").stop().await.success());
    let mut other = Process::agent("ship2", &url).env("EDGEWARD_STATE_DIR", state);
    refused(&mut other, &["journal of node `ship1`", "not of `ship2`"]).await;
    fleet.start_agent("ship1").await;
}

#[tokio::test]
async fn a_journal_that_cannot_be_used_is_refused() {
    let start = |change: &dyn Fn(&Path)| {
        let process = Process::agent("ship1", "nats://127.0.0.1:1");
        fs::create_dir_all(process.state_dir()).unwrap();
        change(&process.state_dir().join("journal.db"));
        process
    };
    refused(
        &mut start(&|path| fs::write(path, "this is no database, ".repeat(200)).unwrap()),
        &["journal.db", "not a journal"],
    )
    .await;
    refused(&mut start(&|path| fs::create_dir(path).unwrap()), &["journal.db"]).await;
}

#[tokio::test]
async fn a_policy_or_config_that_cannot_be_read_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let agent = || Process::agent("ship1", "nats://127.0.0.1:1");
    let policy = write("bad-policy.toml", "[[allow]]\nsenders = [\"ops\"]\nkind = [\"command\"]\n");
    refused(&mut agent().env("EDGEWARD_AGENT__POLICY", &policy), &[&policy, "line 3, column 1", "kind"]).await;
    let absent = folder.path().join("absent.toml").display().to_string();
    refused(&mut agent().env("EDGEWARD_AGENT__POLICY", &absent), &[&absent]).await;

    let config = write("edgeward.toml", "prefix = \"fleet\"\n\n[agent]\nintervall = \"1s\"\n");
    let mut process = Process::new("agent", &["agent", "--node", "ship1", "--config", &config]);
    refused(&mut process, &[&config, "line 4, column 1", "intervall"]).await;
    refused(&mut agent().env("EDGEWARD_AGENT__GRACE", "soon"), &["grace"]).await;
}

#[tokio::test]
async fn an_agent_is_ready_without_a_broker_and_works_once_there_is_one() {
    let mut fleet = Fleet::start(&[]).await;
    fleet.broker.server.kill().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_nonblocking(true).unwrap();
    let heard = async |word: &str| {
        wait_until(SOON, format!("{word} to be told"), async || {
            let mut buffer = [0; 256];
            let count = systemd.recv(&mut buffer).map_err(|e| e.to_string())?;
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if text.lines().any(|line| line.contains(word)) { Ok(text) } else { Err(text) }
        })
        .await
    };
    let agent = Process::agent("ship1", &fleet.broker.url())
        .env("NOTIFY_SOCKET", socket.to_str().unwrap())
        .env("WATCHDOG_USEC", "500000");
    fleet.add("ship1", agent);
    heard("READY=1").await;
    // Without a link it is well, and says since when it has none.
    heard("STATUS=ship1: silent since 2").await;
    heard("WATCHDOG=1").await;
    assert!(fleet.agent("ship1").state_dir().join("journal.db").exists());
    fleet.broker.server.restart().await.unwrap();
    wait_until(SOON, "contact", async || fleet.status("ship1").await).await;
    assert_eq!(fleet.run("ship1", "shell", "echo here").await.stdout.as_deref(), Some("here\n"));
    heard("STATUS=ship1: in contact since 2").await;
    fleet.command("ship1", "shell", "sleep 1000").await;
    fleet.command("ship1", "shell", "true").await;
    heard("; 1 running, 1 queued").await;
    fleet.agent("ship1").signal(Signal::TERM);
    heard("STOPPING=1").await;
    assert!(fleet.agent("ship1").exited(SOON).await.success());
}

#[tokio::test]
async fn a_second_journal_for_a_node_waits_and_is_told() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let journal = fleet.status("ship1").await.unwrap().journal;
    let twin = Process::agent("ship1", &fleet.broker.url());
    fleet.add("twin", twin);
    wait_until(SOON, "the error event", async || {
        let filter = "fleet.error.ship1.error.second_journal";
        let told = fleet.client.read_all("FLEET_ERRORS", filter, From::Seq(StreamSeq(1)), 10).await;
        told.is_ok_and(|told| told.len() == 1)
    })
    .await;
    for _ in 0..3 {
        let record = fleet.run("ship1", "shell", "true").await;
        assert_eq!((record.state, record.journal), (State::Succeeded, journal));
    }
    assert!(fleet.agent("twin").is_running());
    assert!(fleet.agent("twin").stderr().contains("another journal is this node"));
    assert_eq!(fleet.status("ship1").await.unwrap().journal, journal, "the twin does not speak for the node");
}

#[tokio::test]
async fn what_is_on_the_node_runs_on_without_a_broker() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    let mut ids = vec![fleet.command("ship1", "shell", format!("echo 0 >> {}; sleep 1.5", file.display())).await];
    for n in 1..6 {
        ids.push(fleet.command("ship1", "shell", format!("echo {n} >> {}; sleep 0.1", file.display())).await);
    }
    taken(&fleet, "ship1", &ids[5]).await;
    fleet.broker.server.kill().await.unwrap();
    has_line(&file, "5").await;
    fleet.broker.server.restart().await.unwrap();
    for id in &ids {
        assert_eq!(fleet.record("ship1", "ops", "shell", id).await.state, State::Succeeded);
    }
    assert_eq!(lines(&file), ["0", "1", "2", "3", "4", "5"]);
}
