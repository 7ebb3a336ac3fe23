//! Commands outlive the agent: it is killed, stopped, its runner is killed, and each command runs once and is told truly.

use crate::harness::{Fleet, Marks, Process, SOON, gone, pid, wait_until};
use edgeward::exec::{Marker, find_marked};
use edgeward::model::error_event::Code;
use edgeward::model::record::Record;
use edgeward::model::state::State;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, kill_process, test_kill_process};
use serde_json::json;
use std::fs;
use std::time::Duration;

const SHELL: &str = "fleet.msg.ship1.command.ops.shell";

/// Nothing of a run is left in the node's folder.
async fn cleared(fleet: &mut Fleet) {
    let folder = fleet.agent("ship1").state_dir().join("run");
    let is_run = |name: &String| !name.starts_with("runner.") && !name.ends_with(".spare");
    wait_until(SOON, "the files of runs to go", async || {
        let names = fs::read_dir(&folder).into_iter().flatten().flatten();
        let left: Vec<_> = names.map(|e| e.file_name().to_string_lossy().into_owned()).filter(is_run).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

/// What [`Marks::waits_for_go`] ends with, told in full.
fn is_true(record: &Record) {
    assert_eq!((record.state, record.exit_code, record.attempt), (State::Failed, Some(7), 1), "{record:?}");
    assert_eq!((record.stdout.as_deref(), record.stderr.as_deref()), (Some("begun\ndone\n"), Some("err\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_goes_on_while_its_agent_is_killed_and_started_again() {
    let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    let id = fleet.command("ship1", "shell", marks.waits_for_go()).await;
    let process = marks.has_begun().await;
    for _ in 0..2 {
        fleet.agent("ship1").kill();
        fleet.start_agent("ship1").await;
        test_kill_process(process).expect("it goes on");
    }
    marks.go();
    is_true(&fleet.record("ship1", "ops", "shell", &id).await);
    assert_eq!(marks.times_begun(), 1);
    cleared(&mut fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_without_an_agent_is_told_by_the_next() {
    let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    let id = fleet.command("ship1", "shell", marks.waits_for_go()).await;
    let behind = fleet.command("ship1", "shell", "echo behind").await;
    let process = marks.has_begun().await;
    fleet.agent("ship1").kill();
    marks.go();
    gone(process).await;
    // With nothing to run and nobody to serve, the runner has gone, too.
    wait_until(SOON, "the runner's end", async || fleet.agent("ship1").runner().is_none()).await;
    fleet.start_agent("ship1").await;
    is_true(&fleet.record("ship1", "ops", "shell", &id).await);
    assert_eq!(fleet.record("ship1", "ops", "shell", &behind).await.state, State::Succeeded);
    assert_eq!(marks.times_begun(), 1);
    cleared(&mut fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_the_agent_was_started_with_is_not_given_to_commands() {
    let given = tempfile::NamedTempFile::new().expect("a file");
    fcntl_setfd(&given, FdFlags::empty()).expect("to be inherited");
    let mut fleet = Fleet::start(&["ship1"]).await;
    let files = format!("/proc/{}/fd", fleet.agent("ship1").pid());
    let open = fs::read_dir(files).expect("its files").flatten().filter_map(|file| fs::read_link(file.path()).ok());
    assert!(open.into_iter().any(|file| file == given.path()), "the agent was given it");
    let id = fleet.command("ship1", "shell", "ls -l /proc/self/fd").await;
    let open = fleet.record("ship1", "ops", "shell", &id).await.stdout.expect("files");
    let name = given.path().to_str().expect("a name");
    assert!(open.contains("/dev/null") && !open.contains(name), "{open}");
}

#[tokio::test(flavor = "multi_thread")]
async fn term_leaves_at_once_and_commands_go_on() {
    let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    let id = fleet.command("ship1", "shell", marks.waits_for_go()).await;
    let process = marks.has_begun().await;
    fleet.agent("ship1").signal(Signal::TERM);
    assert!(fleet.agent("ship1").exited(Duration::from_secs(4)).await.success());
    test_kill_process(process).expect("it goes on");
    fleet.start_agent("ship1").await;
    marks.go();
    is_true(&fleet.record("ship1", "ops", "shell", &id).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_timeout_holds_while_no_agent_is_there() {
    let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    let timeout = [("Fleet-Timeout", "2s"), ("Fleet-Id", "slow")];
    fleet.publish(SHELL, &timeout, format!("setsid sleep 1000 & {}", marks.waits_for_go())).await;
    let process = marks.has_begun().await;
    fleet.agent("ship1").kill();
    gone(process).await;
    fleet.start_agent("ship1").await;
    let record = fleet.record("ship1", "ops", "shell", "slow").await;
    assert_eq!((record.state, record.signal), (State::TimedOut, Some(15)), "{record:?}");
    assert_eq!(record.stdout.as_deref(), Some("begun\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_a_command_of_a_former_agent() {
    let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    let id = fleet.command("ship1", "shell", marks.waits_for_go()).await;
    let process = marks.has_begun().await;
    fleet.agent("ship1").kill();
    fleet.start_agent("ship1").await;
    fleet.publish("fleet.msg.ship1.control.ops.cancel", &[], json!({"id": id}).to_string()).await;
    let record = fleet.record("ship1", "ops", "shell", &id).await;
    assert_eq!((record.state, record.signal), (State::Cancelled, Some(15)), "{record:?}");
    gone(process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_runners_commands_are_ended_and_told_interrupted() {
    let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    let script = format!("setsid sleep 1000 & echo $! > {}; {}", marks.path("away").display(), marks.waits_for_go());
    let id = fleet.command("ship1", "shell", script).await;
    let process = marks.has_begun().await;
    let away = pid(&fs::read_to_string(marks.path("away")).unwrap());
    let runner = fleet.agent("ship1").runner().expect("a runner");
    kill_process(runner, Signal::KILL).unwrap();
    let record = fleet.record("ship1", "ops", "shell", &id).await;
    assert_eq!((record.state, record.attempt), (State::Interrupted, 1), "{record:?}");
    gone(process).await;
    gone(away).await;
    assert_eq!(marks.times_begun(), 1);
    // The next one has a runner again; and both at once may be killed.
    assert_eq!(fleet.run("ship1", "shell", "echo on").await.stdout.as_deref(), Some("on\n"));
    let id = fleet.command("ship1", "shell.both", marks.waits_for_go()).await;
    wait_until(SOON, "it to begin", async || marks.times_begun() == 2).await;
    let runner = fleet.agent("ship1").runner().expect("a runner");
    fleet.agent("ship1").kill();
    kill_process(runner, Signal::KILL).unwrap();
    fleet.start_agent("ship1").await;
    assert_eq!(fleet.record("ship1", "ops", "shell", &id).await.state, State::Interrupted);
    assert_eq!(marks.times_begun(), 2);
    cleared(&mut fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_the_journal_does_not_know_is_ended() {
    let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    fleet.command("ship1", "shell", marks.waits_for_go()).await;
    let process = marks.has_begun().await;
    fleet.agent("ship1").kill();
    let state = fleet.agent("ship1").state_dir();
    for name in ["journal.db", "journal.db-wal", "journal.db-shm", "journal.mark"] {
        let _ = fs::remove_file(state.join(name));
    }
    fs::write(state.join("run/script-of-an-older-release.sh"), "").unwrap();
    fleet.agent("ship1").start();
    gone(process).await;
    cleared(&mut fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_script_is_read_on_without_its_agent() {
    let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    // The shell reads a file as it goes: what stands behind 200 KiB is read after the wait.
    let waits = marks.waits_for_go().replace("; exit 7", "");
    let id = fleet.command("ship1", "shell", format!("{waits}\n: {}\nexit 7\n", "x".repeat(200 << 10))).await;
    marks.has_begun().await;
    fleet.agent("ship1").kill();
    fleet.start_agent("ship1").await;
    marks.go();
    is_true(&fleet.record("ship1", "ops", "shell", &id).await);
    cleared(&mut fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_command_that_is_ended() {
    let fleet = Fleet::start(&["ship1"]).await;
    let timeout = async |id: &str, script: &str| {
        fleet.publish(&format!("{SHELL}.{id}"), &[("Fleet-Timeout", "1s"), ("Fleet-Id", id)], script).await;
        let record = fleet.record("ship1", "ops", "shell", id).await;
        assert_eq!(record.state, State::TimedOut, "{record:?}");
        for one in record.stdout.as_deref().unwrap_or_default().split_whitespace() {
            gone(pid(one)).await;
        }
    };
    timeout("setsid", "setsid sh -c 'echo $$; exec sleep 1000' & wait").await;
    // Its parent is gone long before the end: it has become the runner's.
    timeout("daemon", "(setsid sh -c 'echo $$; exec sleep 1000' >&3 3>&- &) 3>&1; sleep 1000").await;
    timeout("deaf", "trap '' TERM; echo $$; while :; do sleep 1; done").await;
    timeout("closed", "exec <&-; echo $$; exec 1>&- 2>&-; sleep 1000").await;
    // A bomb of some hundred: they double until nothing more may be had, or they are ended.
    let bomb = "f() { test $1 -gt 7 || { f $(($1 + 1)) & f $(($1 + 1)) & }; sleep 1000; }; f 0";
    timeout("bomb", bomb).await;
    for id in ["setsid", "daemon", "deaf", "closed", "bomb"] {
        let mark = Marker { key: "EDGEWARD_MSG_ID", value: id.to_owned() };
        assert_eq!(find_marked(&mark), [], "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_leaves_running_is_told_or_ended_as_configured() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let leaves = "setsid sleep 1000 > /dev/null 2>&1 & echo $!; exit 1";
    let told = fleet.run("ship1", "shell", leaves).await;
    assert_eq!(told.error.unwrap().message, "exit code 1; something that it started lives on");
    let left = pid(told.stdout.as_deref().unwrap());
    test_kill_process(left).expect("it lives on");
    kill_process(left, Signal::KILL).unwrap();
    gone(left).await;

    fleet.agent("ship1").kill();
    fleet.agent("ship1").set_env("EDGEWARD_AGENT__LEFT_RUNNING", "kill");
    fleet.start_agent("ship1").await;
    let ended = fleet.run("ship1", "shell", leaves).await;
    assert_eq!(ended.error.unwrap().message, "exit code 1");
    gone(pid(ended.stdout.as_deref().unwrap())).await;
    // The pipe is held by what was left: the result does not wait for it.
    let held = fleet.run("ship1", "shell", "sleep 1000 & echo up").await;
    assert_eq!((held.state, held.stdout.as_deref()), (State::Succeeded, Some("up\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn output_and_refusals_of_all_kinds_come_through() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let binary = fleet.run("ship1", "shell", r"printf '\000\377\n\200'").await;
    assert_eq!(binary.stdout_bytes_inline(), b"\0\xff\n\x80");
    let none = fleet.run("ship1", "shell", "true").await;
    assert_eq!((none.state, none.stdout_bytes, none.stderr_bytes), (State::Succeeded, 0, 0));
    let exec = async |body: serde_json::Value| fleet.run("ship1", "exec", body.to_string()).await;
    let missing = exec(json!({"argv": ["/no/such/program"]})).await;
    assert_eq!((missing.state, missing.error.unwrap().code), (State::Failed, Code::Spawn));
    let forbidden = exec(json!({"argv": ["/etc/passwd"]})).await;
    assert!(forbidden.error.unwrap().message.contains("no permission"));
    let deleted = exec(json!({"argv": ["true"], "cwd": "/no/such/folder"})).await;
    assert!(deleted.error.unwrap().message.contains("/no/such/folder"));
    cleared(&mut fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_their_runner_see_nothing_of_the_agents_secrets() {
    let mut fleet = Fleet::start(&[]).await;
    let url = fleet.broker.url();
    let secret = "EDGEWARD_AGENT__LABELS__SECRET";
    let agent = Process::agent("ship1", &url)
        .env("CREDENTIALS_DIRECTORY", "/secret")
        .env("LISTEN_FDS", "0")
        .env("KEPT", "yes")
        .env(secret, "secret");
    fleet.add("ship1", agent);
    wait_until(SOON, "contact", async || fleet.status("ship1").await).await;
    let seen = fleet.run("ship1", "shell", "env").await.stdout.unwrap();
    assert!(seen.lines().any(|line| line == "KEPT=yes"), "{seen}");
    let runner = fleet.agent("ship1").runner().expect("a runner").as_raw_nonzero();
    let environ = fs::read_to_string(format!("/proc/{runner}/environ")).unwrap();
    for name in ["CREDENTIALS_DIRECTORY", "LISTEN_FDS", secret, "NATS_", "EDGEWARD_SERVER"] {
        assert!(!seen.contains(name), "{name} in {seen}");
        assert!(!environ.contains(name), "{name} in {environ}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_is_told_to_end_ends_its_commands() {
    let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    let id = fleet.command("ship1", "shell", marks.waits_for_go()).await;
    let process = marks.has_begun().await;
    let runner = fleet.agent("ship1").runner().expect("a runner");
    kill_process(runner, Signal::TERM).unwrap();
    gone(process).await;
    let record = fleet.record("ship1", "ops", "shell", &id).await;
    assert_eq!((record.state, record.signal), (State::Interrupted, Some(15)), "{record:?}");
    assert_eq!(fleet.run("ship1", "shell", "echo on").await.stdout.as_deref(), Some("on\n"));
}

/// At each step of a run, as the agent and as the runner go through it.
#[cfg(feature = "kill-points")]
mod steps {
    use super::*;
    use edgeward::killpoint::{Point, VARIABLE};

    async fn killed_at(point: Point) -> (Fleet, Marks, Record) {
        let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
        fleet.agent("ship1").kill();
        fleet.agent("ship1").set_env(VARIABLE, &format!("{}:1", point.as_str()));
        fleet.start_agent("ship1").await;
        let id = fleet.command("ship1", "shell", marks.waits_for_go()).await;
        // What is over at once is not told as spawned.
        if point != Point::Spawned {
            marks.go();
        }
        if !Point::RUNNER.contains(&point) {
            fleet.agent("ship1").exited(SOON).await;
            fleet.agent("ship1").set_env(VARIABLE, "");
            fleet.start_agent("ship1").await;
        }
        marks.go();
        let record = fleet.record("ship1", "ops", "shell", &id).await;
        cleared(&mut fleet).await;
        (fleet, marks, record)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_agent_killed_at_any_step_tells_the_truth_of_one_run() {
        for point in [Point::Taken, Point::Started, Point::Spawned, Point::Ended, Point::Finished, Point::Published] {
            let (_fleet, marks, record) = killed_at(point).await;
            is_true(&record);
            assert_eq!(marks.times_begun(), 1, "{point:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_runner_killed_at_any_step_never_runs_it_twice() {
        for point in Point::RUNNER {
            let (_fleet, marks, record) = killed_at(point).await;
            match point {
                Point::RunEnded => is_true(&record),
                _ => assert_eq!((record.state, record.attempt), (State::Interrupted, 1), "{point:?}"),
            }
            assert!(marks.times_begun() <= 1, "{point:?}");
        }
    }
}
