//! The agent's unit as it is shipped, under a real systemd: what runs goes on over a restart, a kill, a hang and a stop, an
//! agent that was told to end for good is not started again, and the hardened one confines what it runs.

use crate::harness::{Fleet, Marks, SOON, Systemd, wait_until};
use crate::ledger::error_of;
use edgeward::model::error_event::{Code, Severity};
use edgeward::model::state::State;
use serde_json::json;
use std::fs;
use std::path::Path;

const UNIT: &str = "edgeward-agent.service";

/// Installs the agent's unit for `ship1`, with one of its two drop-ins, and starts it.
async fn installed(systemd: &Systemd, fleet: &Fleet, variant: &str) {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let unit = fs::read_to_string(deploy.join(UNIT)).unwrap();
    let unit = unit.replace("/usr/bin/edgeward", env!("CARGO_BIN_EXE_edgeward"));
    fs::write(systemd.units().join(UNIT), unit).unwrap();
    let dropins = systemd.units().join(format!("{UNIT}.d"));
    fs::create_dir(&dropins).unwrap();
    fs::copy(deploy.join(format!("{UNIT}.d/{variant}")), dropins.join(variant)).unwrap();
    let here = format!(
        "[Service]\nEnvironment=EDGEWARD_NODE=ship1 EDGEWARD_SERVER={} EDGEWARD_AGENT__INTERVAL=1s\n\
         RestartSec=100ms\nWatchdogSec=4\nTimeoutAbortSec=1\nStandardError=inherit\n",
        fleet.broker.url()
    );
    fs::write(dropins.join("zz-here.conf"), here).unwrap();
    systemd.done(&["daemon-reload"]);
    // Ready with or without a link.
    systemd.done(&["start", UNIT]);
    is_told(systemd, "in contact").await;
}

/// Waits for words in the unit's status line.
async fn is_told(systemd: &Systemd, words: &str) {
    wait_until(SOON, format!("the status to say `{words}`"), async || {
        let status = systemd.property(UNIT, "StatusText");
        if status.contains(words) { Ok(()) } else { Err(status) }
    })
    .await;
}

/// Waits until it was started again by itself so often.
async fn started_again(systemd: &Systemd, times: &str) {
    wait_until(SOON, format!("start number {times}"), async || {
        let seen = (systemd.property(UNIT, "NRestarts"), systemd.property(UNIT, "ActiveState"));
        if seen == (times.to_owned(), "active".to_owned()) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_unit_keeps_its_promises() {
    let Some(systemd) = Systemd::start("unit-open").await else { return };
    let (fleet, marks) = (Fleet::start(&[]).await, Marks::new());
    installed(&systemd, &fleet, "open.conf").await;
    let id = fleet.command("ship1", "shell", marks.waits_for_go()).await;
    wait_until(SOON, "it to begin", async || marks.times_begun() == 1).await;
    is_told(&systemd, "1 running").await;

    // An upgrade, a crash, and an agent that hangs: the command goes on.
    systemd.done(&["restart", UNIT]);
    is_told(&systemd, "1 running").await;
    systemd.done(&["kill", "--kill-who=main", "--signal=KILL", UNIT]);
    started_again(&systemd, "1").await;
    systemd.done(&["kill", "--kill-who=main", "--signal=STOP", UNIT]);
    started_again(&systemd, "2").await;
    is_told(&systemd, "1 running").await;
    // It ends while nobody is there.
    systemd.done(&["stop", UNIT]);
    assert_eq!(systemd.property(UNIT, "ActiveState"), "inactive");
    marks.go();
    systemd.done(&["start", UNIT]);
    let record = fleet.record("ship1", "ops", "shell", &id).await;
    assert_eq!((record.state, record.exit_code, record.attempt), (State::Failed, Some(7), 1), "{record:?}");
    assert_eq!((record.stdout.as_deref(), marks.times_begun()), (Some("begun\ndone\n"), 1));

    let event = error_of(&fleet, "ship1", Severity::Warning, Code::Failed, &id).await;
    let body = json!({"error": event.id, "directive": "shutdown"}).to_string();
    fleet.publish("fleet.msg.ship1.control.chief.directive", &[], body).await;
    wait_until(SOON, "it to be left as it is", async || systemd.property(UNIT, "ActiveState") == "failed").await;
    assert_eq!(systemd.property(UNIT, "ExecMainStatus"), "100");
    assert_eq!(systemd.property(UNIT, "NRestarts"), "0", "since somebody started it");
    systemd.done(&["start", UNIT]);
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hardened_unit_runs_commands_that_change_nothing_of_the_machine() {
    let Some(systemd) = Systemd::start("unit-hardened").await else { return };
    let fleet = Fleet::start(&[]).await;
    installed(&systemd, &fleet, "hardened.conf").await;
    let state = fleet.run("ship1", "shell", "echo kept > /var/lib/edgeward/mine; cat /var/lib/edgeward/mine").await;
    assert_eq!((state.state, state.stdout.as_deref()), (State::Succeeded, Some("kept\n")), "{state:?}");
    let machine = fleet.run("ship1", "shell", "touch /usr/bin/theirs").await;
    assert_eq!(machine.state, State::Failed, "{machine:?}");
    assert!(machine.stderr.unwrap().contains("Read-only file system"));
}
