//! What a message's headers and the configuration ask for happens: deadlines, tries, crashes, output, and what is told.

use crate::harness::{Fleet, Process, SOON, gone, pid, wait_until};
use crate::ledger::{error_of, records};
use edgeward::model::error_event::{Code, Severity};
use edgeward::model::record::Record;
use edgeward::model::state::State;
use edgeward::model::time::Timestamp;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, kill_process};
use serde_json::json;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

const SHELL: &str = "fleet.msg.ship1.command.ops.shell";

/// Stores a message and waits for its terminal record.
async fn run(fleet: &Fleet, subject: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Record {
    let stored = fleet.publish(subject, headers, body).await;
    crate::ledger::ack_of(fleet, &stored.stream, stored.seq).await
}

/// What a script wrote, once it has.
async fn written(path: &Path) -> String {
    wait_until(SOON, path.display(), async || fs::read_to_string(path).ok().filter(|text| text.ends_with('\n'))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_ends_the_whole_process_group() {
    let fleet = Fleet::start(&["ship1"]).await;
    let script = "sleep 1000 & echo $!; sleep 1000";
    let record = run(&fleet, SHELL, &[("Fleet-Timeout", "300ms")], script).await;
    assert_eq!((record.state, record.signal, record.exit_code), (State::TimedOut, Some(15), None));
    assert_eq!(record.error.as_ref().unwrap().code, Code::TimedOut);
    gone(pid(record.stdout.as_deref().unwrap())).await;
    error_of(&fleet, "ship1", Severity::Warning, Code::TimedOut, record.id.as_str()).await;
    // What does not end by TERM is killed.
    let deaf =
        run(&fleet, SHELL, &[("Fleet-Timeout", "300ms")], "trap '' TERM; echo $$; while :; do sleep 1; done").await;
    assert_eq!((deaf.state, deaf.signal), (State::TimedOut, Some(9)));
    gone(pid(deaf.stdout.as_deref().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeouts_come_from_the_header_then_the_config() {
    let mut fleet = Fleet::start(&["ship2"]).await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("edgeward.toml");
    fs::write(&config, "[agent.timeouts]\nshell = \"300ms\"\n").unwrap();
    let mut agent = Process::new("agent ship1", &["agent", "--node", "ship1", "--config", config.to_str().unwrap()]);
    agent.set_env("EDGEWARD_SERVER", &fleet.broker.url());
    agent.set_env("EDGEWARD_STATE_DIR", agent.state_dir().to_str().unwrap());
    fleet.add("ship1", agent);
    assert_eq!(run(&fleet, SHELL, &[], "sleep 1000").await.state, State::TimedOut);
    let given = run(&fleet, SHELL, &[("Fleet-Timeout", "30s")], "sleep 0.5").await;
    assert_eq!(given.state, State::Succeeded);
    let exec = json!({"argv": ["sleep", "0.5"]}).to_string();
    assert_eq!(run(&fleet, "fleet.msg.ship1.command.ops.exec", &[], exec).await.state, State::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_begin_any_more_expires() {
    let fleet = Fleet::start(&["ship1"]).await;
    for past in ["0s", "2020-01-01T00:00:00Z", "2020-01-01T02:00:00.5+02:00"] {
        let record = run(&fleet, SHELL, &[("Fleet-Start-By", past)], "echo late").await;
        assert_eq!((record.state, record.attempt, record.stdout_bytes), (State::Expired, 0, 0), "{past}");
        assert_eq!(record.error.as_ref().unwrap().code, Code::Expired);
        error_of(&fleet, "ship1", Severity::Warning, Code::Expired, record.id.as_str()).await;
    }
    let soon = Timestamp::local_now().plus(Duration::from_secs(60)).to_string();
    for future in ["1m", soon.as_str()] {
        let record = run(&fleet, SHELL, &[("Fleet-Start-By", future)], "echo in time").await;
        assert_eq!(record.state, State::Succeeded, "{future}");
    }
    // Behind one that takes its time; and the one after it goes on.
    fleet.command("ship1", "shell", "sleep 1.5").await;
    let waiting = fleet.publish(SHELL, &[("Fleet-Start-By", "500ms")], "echo late").await;
    let after = run(&fleet, SHELL, &[], "echo after").await;
    let waited = crate::ledger::ack_of(&fleet, &waiting.stream, waiting.seq).await;
    assert_eq!((waited.state, waited.attempt), (State::Expired, 0));
    assert_eq!(after.state, State::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_tries_are_counted_told_and_hold_their_own_lane_only() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let folder = fleet.agent("ship1").state_dir();
    let count = folder.join("count");
    let fails = format!("echo $EDGEWARD_MSG_ATTEMPT >> {}; exit 7", count.display());
    let tries = [("Fleet-Retries", "2"), ("Fleet-Retry-Wait", "200ms"), ("Fleet-Id", "thrice")];
    let record = run(&fleet, SHELL, &tries, fails).await;
    assert_eq!((record.state, record.attempt, record.exit_code), (State::Failed, 3, Some(7)));
    assert_eq!(fs::read_to_string(&count).unwrap(), "1\n2\n3\n");
    let told = records(&fleet, "fleet.progress.ship1.ops.shell.thrice").await;
    let told: Vec<_> = told.iter().map(|r| (r.state, r.attempt, r.exit_code)).collect();
    assert_eq!(told, [(State::Retrying, 1, Some(7)), (State::Retrying, 2, Some(7))]);
    error_of(&fleet, "ship1", Severity::Warning, Code::Failed, "thrice").await;

    // A lane waits for its head's next try; the others do not.
    let open = folder.join("open");
    let until_open = format!("test -e {} && echo through", open.display());
    let patient = [("Fleet-Retries", "unlimited"), ("Fleet-Retry-Wait", "50ms")];
    let head = fleet.publish(&format!("{SHELL}.slow"), &patient, until_open).await;
    let behind = fleet.publish(&format!("{SHELL}.slow"), &[], "echo behind").await;
    for _ in 0..3 {
        assert_eq!(run(&fleet, SHELL, &[], "echo other").await.state, State::Succeeded);
    }
    assert_eq!(crate::ledger::acks_of(&fleet, &behind.stream, behind.seq).await, Vec::new());
    fs::write(&open, "").unwrap();
    let head = crate::ledger::ack_of(&fleet, &head.stream, head.seq).await;
    let behind = crate::ledger::ack_of(&fleet, &behind.stream, behind.seq).await;
    assert!(head.state == State::Succeeded && head.attempt > 1, "{head:?}");
    assert!(behind.started_at >= head.finished_at, "{behind:?}");

    let timed_out = [("Fleet-Retries", "1"), ("Fleet-Retry-Wait", "1ms"), ("Fleet-Timeout", "200ms")];
    let record = run(&fleet, SHELL, &timed_out, "sleep 1000").await;
    assert_eq!((record.state, record.attempt), (State::TimedOut, 2), "a timed out try is tried again, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_broken_off_is_reported_or_repeated() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let folder = fleet.agent("ship1").state_dir();
    let path = |name: &str| folder.join(name);
    let hang = |name: &str| format!("sleep 1000 & echo $$ $! > {}; wait", path(name).display());
    let once = format!(
        "test -e {f} && {{ echo again; exit 0; }}; sleep 1000 & echo $$ $! > {f}; wait",
        f = path("rerun").display()
    );
    let report = fleet.publish(&format!("{SHELL}.a"), &[("Fleet-Retries", "5")], hang("report")).await;
    let rerun = fleet.publish(&format!("{SHELL}.b"), &[("Fleet-On-Crash", "rerun")], once).await;
    let behind = fleet.publish(&format!("{SHELL}.a"), &[], "echo behind").await;
    // A log file that somebody else holds locked keeps an event running.
    let logs = folder.join("log/ops");
    fs::create_dir_all(&logs).unwrap();
    let held = File::create(logs.join("default.log")).unwrap();
    let held_too = File::create(logs.join("strict.log")).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    flock(&held_too, FlockOperation::LockExclusive).unwrap();
    let event = fleet.publish("fleet.msg.ship1.event.ops.log", &[("Fleet-Timeout", "1h")], "line").await;
    let strict = [("Fleet-On-Crash", "report"), ("Fleet-Timeout", "1h")];
    let strict = fleet.publish("fleet.msg.ship1.event.ops.log.strict", &strict, "line").await;
    let (report_pids, rerun_pids) = (written(&path("report")).await, written(&path("rerun")).await);
    wait_until(SOON, "the events running", async || {
        let running = |r: &Record| r.state == State::Running;
        records(&fleet, "fleet.progress.ship1.ops.log.>").await.iter().filter(|r| running(r)).count() == 2
    })
    .await;
    // Commands outlive the agent; with the runner gone as well nobody knows how they would have ended.
    let runner = fleet.agent("ship1").runner().expect("a runner");
    fleet.agent("ship1").kill();
    kill_process(runner, Signal::KILL).unwrap();
    drop((held, held_too));
    fleet.start_agent("ship1").await;
    for pids in [report_pids, rerun_pids] {
        for one in pids.split_whitespace() {
            gone(pid(one)).await;
        }
    }
    let report = crate::ledger::ack_of(&fleet, &report.stream, report.seq).await;
    assert_eq!((report.state, report.attempt), (State::Interrupted, 1), "retries are for failed tries");
    assert!(report.started_at.is_some(), "when it began is known: {report:?}");
    error_of(&fleet, "ship1", Severity::Warning, Code::Interrupted, report.id.as_str()).await;
    let rerun = crate::ledger::ack_of(&fleet, &rerun.stream, rerun.seq).await;
    assert_eq!((rerun.state, rerun.attempt, rerun.stdout.as_deref()), (State::Succeeded, 2, Some("again\n")));
    let behind = crate::ledger::ack_of(&fleet, &behind.stream, behind.seq).await;
    assert_eq!(behind.state, State::Succeeded);
    let event = crate::ledger::ack_of(&fleet, &event.stream, event.seq).await;
    assert_eq!((event.state, event.attempt), (State::Succeeded, 2), "an event runs again by default");
    let strict = crate::ledger::ack_of(&fleet, &strict.stream, strict.seq).await;
    assert_eq!((strict.state, strict.attempt), (State::Interrupted, 1));
    assert_eq!(fs::read_to_string(logs.join("default.log")).unwrap().lines().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_kinds_and_defaults_are_as_they_are_given() {
    let fleet = Fleet::start(&["ship1"]).await;
    let record =
        run(&fleet, SHELL, &[("Fleet-Id", "mine"), ("Nats-Msg-Id", "other"), ("Fleet-Kind", "command")], "true").await;
    assert_eq!(record.id.as_str(), "mine");
    let record = run(&fleet, SHELL, &[("Nats-Msg-Id", "restart-8")], "true").await;
    assert_eq!(record.id.as_str(), "restart-8");
    let record = run(&fleet, SHELL, &[("fleet-id", "lower"), ("FLEET-TIMEOUT", "1h 30m")], "true").await;
    assert_eq!((record.id.as_str(), record.attempt, record.exit_code), ("lower", 1, Some(0)));
    assert!(record.stored_at <= record.received_at.unwrap() && record.started_at <= record.finished_at, "{record:?}");
    let failed = run(&fleet, SHELL, &[], "echo no >&2; exit 3").await;
    assert_eq!((failed.state, failed.attempt, failed.exit_code), (State::Failed, 1, Some(3)), "commands: no retries");
    assert_eq!(failed.stderr.as_deref(), Some("no\n"));
    let event = error_of(&fleet, "ship1", Severity::Warning, Code::Failed, failed.id.as_str()).await;
    assert_eq!((event.process.as_deref(), event.attempt, event.node.as_str()), (Some("shell"), Some(1), "ship1"));
    let missing = run(&fleet, "fleet.msg.ship1.command.ops.exec", &[], "{\"argv\":[\"/no/such/program\"]}").await;
    assert_eq!((missing.state, missing.error.unwrap().code), (State::Failed, Code::Spawn));
    error_of(&fleet, "ship1", Severity::Warning, Code::Failed, missing.id.as_str()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_travels_whole_while_small_and_tells_its_true_size() {
    let fleet = Fleet::start(&["ship1"]).await;
    let whole = fleet.run("ship1", "shell", "head -c 16384 /dev/zero | tr '\\0' a").await;
    assert_eq!((whole.truncated, whole.stdout_bytes, whole.stdout.unwrap()), (false, 16384, "a".repeat(16384)));
    let cut =
        fleet.run("ship1", "shell", "echo first; head -c 300000 /dev/zero | tr '\\0' b; echo last; echo err >&2").await;
    let text = cut.stdout.as_deref().unwrap();
    assert!(cut.truncated && cut.stdout_bytes == 300_011 && cut.chunks > 9, "{}", cut.stdout_bytes);
    assert!(text.starts_with("first\n") && text.ends_with("last\n") && text.len() < 17_000, "{}", text.len());
    assert_eq!(cut.stderr.as_deref(), Some("err\n"));
    let binary = fleet.run("ship1", "shell", "printf '\\377\\000\\001'").await;
    assert_eq!((binary.stdout, binary.stdout_base64.as_deref()), (None, Some("/wAB")));
    // A control character takes six bytes of JSON.
    for redirect in ["", " >&2", " | tee /dev/stderr"] {
        let script = format!("head -c 262144 /dev/zero | tr '\\0' '\\001'{redirect}");
        let id = fleet.command("ship1", "shell", script).await;
        let record = fleet.record("ship1", "ops", "shell", &id).await;
        assert_eq!((record.state, record.truncated), (State::Succeeded, true));
        assert_eq!(record.stdout_bytes.max(record.stderr_bytes), 262_144);
        let stored = crate::ledger::stored(
            &fleet,
            edgeward::model::subject::RecordStream::Acks,
            &format!("fleet.ack.*.*.*.{id}"),
        )
        .await;
        assert!(stored[0].body.len() <= (1 << 20) / 2, "{}", stored[0].body.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_stays_below_half_of_what_a_small_broker_takes() {
    let broker = crate::harness::TestBroker::with(|options| options.max_payload = Some(64 << 10)).await;
    let fleet = Fleet::at(broker, &["ship1"]).await;
    let id = fleet.command("ship1", "shell", "head -c 262144 /dev/zero | tr '\\0' '\\001' | tee /dev/stderr").await;
    let record = fleet.record("ship1", "ops", "shell", &id).await;
    assert_eq!((record.truncated, record.stdout_bytes, record.stderr_bytes), (true, 262_144, 262_144));
    let stored = crate::ledger::stored(&fleet, edgeward::model::subject::RecordStream::Acks, "fleet.ack.>").await;
    assert!(stored[0].body.len() <= 32 << 10, "{}", stored[0].body.len());
    assert!(record.stdout.is_some_and(|text| text.contains("left out")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_has_its_folder_environment_and_input() {
    let fleet = Fleet::start(&["ship1"]).await;
    let exec = async |call: serde_json::Value| fleet.run("ship1", "exec", call.to_string()).await;
    let script = "pwd; echo \"$COLOUR\"; cat; echo \"$1\"";
    let record = exec(json!({
        "argv": ["/bin/sh", "-c", script, "sh", "a b;$(c)"],
        "cwd": "/usr", "env": {"COLOUR": "deep red"}, "stdin": "in é\n",
    }))
    .await;
    assert_eq!(record.stdout.as_deref(), Some("/usr\ndeep red\nin é\na b;$(c)\n"), "{record:?}");
    assert_eq!(exec(json!({"argv": ["cat"]})).await.stdout.as_deref(), Some(""), "without input: /dev/null");
    let nowhere = exec(json!({"argv": ["true"], "cwd": "/no/such/folder"})).await;
    assert_eq!((nowhere.state, nowhere.error.unwrap().code), (State::Failed, Code::Spawn));
    let large = exec(json!({"argv": ["wc", "-c"], "stdin": "x".repeat(500_000)})).await;
    assert_eq!(large.stdout.as_deref().map(str::trim), Some("500000"));
    let unread = exec(json!({"argv": ["true"], "stdin": "x".repeat(500_000)})).await;
    assert_eq!(unread.state, State::Succeeded, "input that nobody reads harms nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_takes_long_is_told_of_while_it_runs() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let done = fleet.agent("ship1").state_dir().join("done");
    fleet.run("ship1", "shell", "true").await;
    let id = fleet.command("ship1", "shell", format!("until test -e {}; do sleep 0.05; done", done.display())).await;
    let filter = format!("fleet.progress.ship1.ops.shell.{id}");
    let running =
        wait_until(SOON, "a running record", async || records(&fleet, &filter).await.into_iter().next()).await;
    assert_eq!((running.state, running.attempt, running.finished_at), (State::Running, 1, None));
    assert!(running.started_at.is_some());
    fs::write(&done, "").unwrap();
    let ended = fleet.record("ship1", "ops", "shell", &id).await;
    assert_eq!((ended.state, ended.started_at), (State::Succeeded, running.started_at));
    let told = records(&fleet, "fleet.progress.>").await;
    assert_eq!(told.len(), 1, "a short run is not told of: {told:?}");
}
