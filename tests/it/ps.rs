//! Processes: stopped, started, restarted, by the command line and by plain messages, also across a kill.

use crate::harness::{Fleet, SOON, wait_until};
use crate::kernel::{order, process};
use edgeward::model::error_event::Code;
use edgeward::model::state::State;
use serde_json::Value;
use std::fs;

#[tokio::test(flavor = "multi_thread")]
async fn stopped_processes_keep_their_messages_across_a_kill() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let cli = fleet.cli();
    assert_eq!(cli.run(&["ps", "stop", "ship1", "shell"]).await.ok(), "shell: stopped\n");
    let queued = fleet.command("ship1", "shell", "echo ran").await;
    // A record would be there by the time that another process has answered.
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    let shown = wait_until(SOON, "the queue to be shown", async || {
        let shown = cli.run(&["ps", "ship1"]).await.ok();
        let line = shown.lines().find(|line| line.starts_with("shell")).unwrap_or_default().to_owned();
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.get(..6) == Some(&["shell", "stopped", "by", "ops", "0", "1"]) {
            Ok(shown.clone())
        } else {
            Err(shown.clone())
        }
    })
    .await;
    assert!(shown.lines().any(|line| line.starts_with("ping") && line.contains("running")), "{shown}");
    let said = cli.run(&["ps", "ship1"]).await;
    assert!(said.stderr.starts_with("what ship1 said of itself is ") && said.stderr.ends_with(" old\n"), "{said:?}");

    fleet.agent("ship1").kill();
    fleet.start_agent("ship1").await;
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    assert_eq!(process(&fleet, "shell", |shell| shell.state == "stopped").await.stopped_by.as_deref(), Some("ops"));
    let status = cli.run(&["status", &queued]).await.exits(3).stdout;
    assert!(status.contains("delivered"), "{status}");
    assert_eq!(cli.run(&["ps", "stop", "ship1", "shell"]).await.ok(), "shell: was stopped before\n");
    assert_eq!(cli.run(&["ps", "start", "ship1", "shell"]).await.ok(), "shell: started\n");
    let record = fleet.record("ship1", "ops", "shell", &queued).await;
    assert_eq!((record.state, record.stdout.as_deref()), (State::Succeeded, Some("ran\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_lets_what_runs_end_and_restart_ends_it() {
    let fleet = Fleet::start(&["ship1"]).await;
    let folder = tempfile::tempdir().unwrap();
    let gate = folder.path().join("gate");
    let waits = format!("while [ ! -e {} ]; do sleep 0.05; done; echo through", gate.display());
    let running = fleet.command("ship1", "shell", waits).await;
    process(&fleet, "shell", |shell| shell.running == 1).await;
    assert_eq!(order(&fleet, "stop", r#"{"process":"shell"}"#).await.stdout.as_deref(), Some("shell: stopped\n"));
    fs::write(&gate, "").unwrap();
    let record = fleet.record("ship1", "ops", "shell", &running).await;
    assert_eq!((record.state, record.stdout.as_deref()), (State::Succeeded, Some("through\n")));
    order(&fleet, "start", r#"{"process":"shell"}"#).await;

    // What is ended by a restart may run again only where its message says so.
    let once = fleet
        .publish("fleet.msg.ship1.command.ops.shell.a", &[("Fleet-Id", "once"), ("Fleet-Retries", "3")], "sleep 1000")
        .await;
    let again =
        format!("echo begun >> {0}; [ $(wc -l < {0}) -gt 1 ] || sleep 1000", folder.path().join("again").display());
    let headers = [("Fleet-Id", "again"), ("Fleet-On-Crash", "rerun"), ("Fleet-Retry-Wait", "10ms")];
    fleet.publish("fleet.msg.ship1.command.ops.shell.b", &headers, again).await;
    process(&fleet, "shell", |shell| shell.running == 2).await;
    wait_until(SOON, "the second to have begun", async || folder.path().join("again").exists()).await;
    fleet.record_progress("ship1", "ops", "shell", "once").await;
    let restarted = order(&fleet, "restart", r#"{"process":"shell"}"#).await;
    assert_eq!(restarted.stdout.as_deref(), Some("shell: restarted; running and being ended: 2\n"));
    let ended = fleet.record("ship1", "ops", "shell", "once").await;
    assert_eq!((ended.state, ended.seq, ended.attempt), (State::Interrupted, once.seq, 1));
    let rerun = fleet.record("ship1", "ops", "shell", "again").await;
    assert_eq!((rerun.state, rerun.attempt), (State::Succeeded, 2));
    assert_eq!(process(&fleet, "shell", |shell| shell.restarts == 1).await.state, "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_at_once_and_what_is_refused() {
    let fleet = Fleet::start(&["ship1"]).await;
    let cli = fleet.cli();
    let stopped = cli.run(&["ps", "stop", "ship1", "*"]).await.ok();
    assert!(stopped.lines().count() >= 5 && stopped.lines().all(|line| line.ends_with(": stopped")), "{stopped}");
    let json = cli.run(&["ps", "ship1", "-o", "json"]).await.ok();
    let shown: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((shown["v"].as_u64(), shown["contact"].as_str()), (Some(1), Some("in_contact")), "{json}");
    process(&fleet, "log", |log| log.state == "stopped").await;
    let ping = fleet.command("ship1", "ping", "").await;
    let started = cli.run(&["ps", "start", "ship1", "*"]).await.ok();
    assert!(started.lines().all(|line| line.ends_with(": started")), "{started}");
    assert_eq!(fleet.record("ship1", "ops", "ping", &ping).await.state, State::Succeeded);

    let unknown = cli.run(&["ps", "restart", "ship1", "nosuch"]).await.exits(7);
    assert!(unknown.stderr.contains("it has shell"), "{unknown:?}");
    let nobody = cli.run(&["ps", "ship2"]).await.exits(2);
    assert!(nobody.stderr.contains("ship1"), "{nobody:?}");
    for body in ["{}", r#"{"process":7}"#, r#"{"process":"shell","more":1}"#, "shell"] {
        let record = order(&fleet, "stop", body).await;
        assert_eq!((record.state, record.error.unwrap().code), (State::Refused, Code::BadBody), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_counted_over_more_lanes_than_are_told() {
    const LANES: usize = 40;
    let fleet = Fleet::start(&["ship1"]).await;
    order(&fleet, "stop", r#"{"process":"shell"}"#).await;
    for n in 0..LANES {
        fleet.publish(&format!("fleet.msg.ship1.command.ops.shell.l{n}"), &[], "true").await;
    }
    process(&fleet, "shell", |shell| shell.waiting == Some(LANES as u64)).await;
    let shown = fleet.cli().run(&["ps", "ship1"]).await.ok();
    let line = shown.lines().find(|line| line.starts_with("shell")).unwrap_or_default();
    assert!(line.contains(&format!("  {LANES}  ")) && !shown.contains("or more"), "{shown}");
}
