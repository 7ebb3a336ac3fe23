//! The error kernel: each directive, by a rule and by an admin, also across a crash.

use crate::harness::{Fleet, Marks, Process, SOON, gone, lines, wait_until};
use crate::ledger::{error_of, stored};
use edgeward::model::error_event::{Code, Directive, ErrorEvent, Severity};
use edgeward::model::node::ProcessFacts;
use edgeward::model::record::Record;
use edgeward::model::state::State;
use edgeward::model::subject::RecordStream;
use serde_json::json;
use std::path::Path;

/// A fleet with one node, `ship1`, whose agent has these lines in its configuration.
async fn fleet(config: &str) -> Fleet {
    let mut fleet = Fleet::start(&[]).await;
    let agent = Process::agent("ship1", &fleet.broker.url());
    let file = agent.state_dir().parent().unwrap().join("edgeward.toml");
    std::fs::write(&file, config).unwrap();
    fleet.add("ship1", agent.env("EDGEWARD_CONFIG", file.to_str().unwrap()));
    process(&fleet, "shell", |_| true).await;
    fleet
}

/// Waits until the node tells this of a process.
pub async fn process(fleet: &Fleet, name: &str, is: impl Fn(&ProcessFacts) -> bool) -> ProcessFacts {
    wait_until(SOON, format!("the process {name} to be as expected"), async || {
        let status = fleet.status("ship1").await.ok_or("no status")?;
        let all = status.processes.unwrap_or_default();
        let found = all.into_iter().find(|process| process.name == name).ok_or("no such process")?;
        if is(&found) { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await
}

fn rule(directive: &str, count: u32) -> String {
    format!(
        "[[agent.errors]]\ncode = \"failed\"\nprocess = \"shell\"\ncount = {count}\nwindow = \"5m\"\ndirective = \"{directive}\"\n"
    )
}

async fn events(fleet: &Fleet, code: Code) -> Vec<ErrorEvent> {
    let all = stored(fleet, RecordStream::Errors, &format!("fleet.error.ship1.*.{code}")).await;
    all.iter().map(|message| serde_json::from_slice(&message.body).unwrap()).collect()
}

/// Sends a control message as an admin would, and waits for its record.
pub async fn order(fleet: &Fleet, verb: &str, body: &str) -> Record {
    let stored = fleet.publish(&format!("fleet.msg.ship1.control.chief.{verb}"), &[], body).await;
    fleet.record("ship1", "chief", verb, &format!("s{}", stored.seq)).await
}

async fn direct(fleet: &Fleet, event: &ErrorEvent, directive: &str) -> Record {
    order(fleet, "directive", &format!("{{\"error\":\"{}\",\"directive\":\"{directive}\"}}", event.id)).await
}

async fn failed(fleet: &Fleet, id: &str) -> ErrorEvent {
    error_of(fleet, "ship1", Severity::Warning, Code::Failed, id).await
}

fn attempts(path: &Path) -> usize {
    lines(path).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_goes_on_by_default_and_says_so() {
    let fleet = fleet("").await;
    let id = fleet.command("ship1", "shell", "exit 3").await;
    let event = failed(&fleet, &id).await;
    assert_eq!((event.directive, event.process.as_deref()), (Some(Directive::Continue), Some("shell")));
    let shell = process(&fleet, "shell", |shell| shell.failures == 1).await;
    assert_eq!((shell.state.as_str(), shell.restarts), ("running", 0));
    assert!(shell.last_error.unwrap().starts_with("failed: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_adds_one_try_by_a_rule_and_one_by_an_admin() {
    let fleet = fleet(&rule("retry", 1)).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tries");
    let script = format!("echo try >> {}; exit 3", file.display());
    let headers = [("Fleet-Id", "once-more"), ("Fleet-Retry-Wait", "10ms")];
    fleet.publish("fleet.msg.ship1.command.ops.shell", &headers, &script).await;
    let record = fleet.record("ship1", "ops", "shell", "once-more").await;
    assert_eq!((record.state, record.attempt, attempts(&file)), (State::Failed, 2, 2));
    let event = failed(&fleet, "once-more").await;
    assert_eq!(event.directive, Some(Directive::Retry));
    // It is over; nothing can be added any more.
    let late = direct(&fleet, &event, "retry").await;
    assert_eq!(late.state, State::Failed);
    assert!(late.error.unwrap().message.contains("over: failed"));

    // While it waits for its second try a third is added: one by its message, one by the rule, one by the admin.
    let more = folder.path().join("more");
    let script = format!("echo try >> {}; exit 3", more.display());
    let headers = [("Fleet-Id", "twice-more"), ("Fleet-Retries", "1"), ("Fleet-Retry-Wait", "3s")];
    fleet.publish("fleet.msg.ship1.command.ops.shell.more", &headers, &script).await;
    let event = failed(&fleet, "twice-more").await;
    assert_eq!(direct(&fleet, &event, "retry").await.stdout.as_deref(), Some("one more try\n"));
    let record = fleet.record("ship1", "ops", "shell", "twice-more").await;
    assert_eq!((record.attempt, attempts(&more)), (4, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_fails_too_often_is_restarted_then_stopped_and_stays_so() {
    let config = format!("{}[agent.escalation]\nrestarts = 1\n", rule("restart", 2));
    let mut fleet = fleet(&config).await;
    // Beside it something runs that it must not harm.
    let long = fleet.publish("fleet.msg.ship1.command.ops.shell.long", &[("Fleet-Id", "long")], "sleep 1000").await;
    fleet.record_progress("ship1", "ops", "shell", "long").await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(fleet.command("ship1", "shell", "exit 3").await);
    }
    let expected = [Directive::Continue, Directive::Restart, Directive::Continue, Directive::Stop];
    for (id, directive) in ids.iter().zip(expected) {
        assert_eq!(failed(&fleet, id).await.directive, Some(directive), "{id}");
    }
    let shell = process(&fleet, "shell", |shell| shell.state == "stopped").await;
    assert_eq!((shell.restarts, shell.running), (1, 1), "{shell:?}");
    let [told] = &events(&fleet, Code::ProcessStopped).await[..] else { panic!("told once") };
    assert!(told.severity == Severity::Critical && told.message.contains("restarted 1 times"), "{told:?}");
    assert!(told.message.contains("edgeward ps start ship1 shell"), "{told:?}");
    // Others go on; its own messages stay queued.
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);

    fleet.agent("ship1").kill_with_commands();
    fleet.start_agent("ship1").await;
    assert_eq!(fleet.record("ship1", "ops", "shell", "long").await.seq, long.seq);
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    let shell = process(&fleet, "shell", |shell| shell.state == "stopped").await;
    assert!(shell.stopped_by.unwrap().starts_with("the error "));
    let acks = stored(&fleet, RecordStream::Acks, &format!("fleet.ack.ship1.ops.shell.{}", ids[4])).await;
    assert!(acks.is_empty(), "it must not have run");
    assert_eq!(order(&fleet, "start", r#"{"process":"shell"}"#).await.stdout.as_deref(), Some("shell: started\n"));
    assert_eq!(fleet.record("ship1", "ops", "shell", &ids[4]).await.state, State::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_the_agent_with_100_and_a_new_start_goes_on() {
    let mut fleet = fleet(&rule("shutdown", 2)).await;
    let first = fleet.command("ship1", "shell", "exit 3").await;
    let second = fleet.command("ship1", "shell", "exit 3").await;
    let third = fleet.command("ship1", "shell", "true").await;
    assert_eq!(fleet.agent("ship1").exited(SOON).await.code(), Some(100));
    assert_eq!(failed(&fleet, &first).await.directive, Some(Directive::Continue));
    assert_eq!(failed(&fleet, &second).await.directive, Some(Directive::Shutdown));
    let [told] = &events(&fleet, Code::Shutdown).await[..] else { panic!("told once") };
    assert_eq!(told.severity, Severity::Critical);
    assert_eq!(fleet.status("ship1").await.unwrap().stopped, Some(true));
    assert!(fleet.agent("ship1").stderr().contains("seriously wrong"));

    fleet.start_agent("ship1").await;
    assert_eq!(fleet.record("ship1", "ops", "shell", &third).await.state, State::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_overrules_by_the_id_of_an_error() {
    let mut fleet = fleet("").await;
    let id = fleet.command("ship1", "shell", "exit 3").await;
    let event = failed(&fleet, &id).await;
    assert_eq!(direct(&fleet, &event, "continue").await.stdout.as_deref(), Some("goes on\n"));
    assert_eq!(direct(&fleet, &event, "stop").await.stdout.as_deref(), Some("shell: stopped\n"));
    let queued = fleet.command("ship1", "shell", "true").await;
    process(&fleet, "shell", |shell| shell.stopped_by.as_deref() == Some("chief")).await;
    fleet.agent("ship1").restart();
    assert_eq!(direct(&fleet, &event, "restart").await.stdout.as_deref(), Some("shell: restarted\n"));
    assert_eq!(fleet.record("ship1", "ops", "shell", &queued).await.state, State::Succeeded);
    let marks = Marks::new();
    let running = fleet.command("ship1", "shell", marks.long("a")).await;
    marks.pid("a").await;
    direct(&fleet, &event, "restart").await;
    is_ended(&fleet, &running, "chief").await;

    let unknown =
        order(&fleet, "directive", r#"{"error":"01912d68-783e-7a03-8467-5661c1243ad4","directive":"shutdown"}"#).await;
    assert_eq!(unknown.state, State::Failed);
    let nonsense =
        order(&fleet, "directive", &format!("{{\"error\":\"{}\",\"directive\":\"explode\"}}", event.id)).await;
    assert_eq!((nonsense.state, nonsense.error.unwrap().code), (State::Refused, Code::BadBody));

    let stored = fleet
        .publish(
            "fleet.msg.ship1.control.chief.directive",
            &[],
            format!("{{\"error\":\"{}\",\"directive\":\"shutdown\"}}", event.id),
        )
        .await;
    assert_eq!(fleet.agent("ship1").exited(SOON).await.code(), Some(100));
    let record = fleet.record("ship1", "chief", "directive", &format!("s{}", stored.seq)).await;
    assert_eq!(record.stdout.as_deref(), Some("the agent ends\n"), "told before it left");
    let [told] = &events(&fleet, Code::Shutdown).await[..] else { panic!("told once") };
    assert!(told.message.contains("asked for by chief"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directive_is_for_five_minutes() {
    let fleet = fleet("").await;
    let id = fleet.command("ship1", "shell", "exit 3").await;
    let event = failed(&fleet, &id).await;
    let body = format!("{{\"error\":\"{}\",\"directive\":\"stop\"}}", event.id);
    let past = [("Fleet-Start-By", "2020-01-01T00:00:00Z"), ("Fleet-Id", "late")];
    fleet.publish("fleet.msg.ship1.control.chief.directive", &past, &body).await;
    assert_eq!(fleet.record("ship1", "chief", "directive", "late").await.state, State::Expired);
    assert_eq!(fleet.run("ship1", "shell", "true").await.state, State::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_that_repeat_are_counted_and_none_is_lost_from_the_sum() {
    let mut fleet = fleet("").await;
    for n in 0..60 {
        let lane = format!("fleet.msg.ship1.command.ops.exec.l{}", n % 6);
        fleet.publish(&lane, &[("Fleet-Id", &format!("f-{n}"))], r#"{"argv":["false"]}"#).await;
    }
    for n in 0..60 {
        fleet.record("ship1", "ops", "exec", &format!("f-{n}")).await;
    }
    // The first of the minute one by one, the others when it is over or the agent leaves.
    assert_eq!(fleet.agent("ship1").stop().await.code(), Some(0));
    let told = events(&fleet, Code::Failed).await;
    let sum: u64 = told.iter().map(|event| event.count.unwrap_or(1)).sum();
    assert_eq!(sum, 60);
    // On a machine that is busy they may take more than a minute.
    let from_first_to_last = told.iter().map(|event| event.at).max().unwrap().since(told[0].at);
    let minutes = from_first_to_last.as_secs() / 60 + 1;
    assert!(told.len() as u64 <= 21 * minutes && told.len() < 60, "{} in {minutes} minutes", told.len());
}

/// Starts the node's agent so that it dies right after this step, does `then`, and waits for that.
#[cfg(feature = "kill-points")]
pub async fn dies_at(fleet: &mut Fleet, point: edgeward::killpoint::Point, then: impl AsyncFnOnce(&Fleet)) {
    use std::os::unix::process::ExitStatusExt;
    fleet.agent("ship1").kill();
    fleet.agent("ship1").set_env(edgeward::killpoint::VARIABLE, &format!("{}:1", point.as_str()));
    fleet.agent("ship1").start();
    then(fleet).await;
    let ended = fleet.agent("ship1").exited(SOON).await;
    assert_eq!(ended.signal(), Some(6), "{point:?}: {ended}");
    fleet.agent("ship1").set_env(edgeward::killpoint::VARIABLE, "");
}

#[cfg(feature = "kill-points")]
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_neither_loses_nor_repeats_an_order() {
    use edgeward::killpoint::Point;
    let mut fleet = fleet("").await;
    let id = fleet.command("ship1", "shell", "exit 3").await;
    let event = failed(&fleet, &id).await;
    dies_at(&mut fleet, Point::Obeyed, async |fleet| {
        let order = [("Fleet-Id", "stop-1")];
        fleet.publish("fleet.msg.ship1.control.chief.stop", &order, r#"{"process":"shell"}"#).await;
    })
    .await;
    let queued = fleet.command("ship1", "shell", "true").await;
    fleet.start_agent("ship1").await;
    let record = fleet.record("ship1", "chief", "stop", "stop-1").await;
    assert_eq!(record.stdout.as_deref(), Some("shell: stopped\n"), "carried out once");
    process(&fleet, "shell", |shell| shell.state == "stopped").await;
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    let acks = stored(&fleet, RecordStream::Acks, &format!("fleet.ack.ship1.ops.shell.{queued}")).await;
    assert!(acks.is_empty(), "stopped");

    dies_at(&mut fleet, Point::Obeyed, async |fleet| {
        let order = [("Fleet-Id", "leave-1")];
        let body = format!("{{\"error\":\"{}\",\"directive\":\"shutdown\"}}", event.id);
        fleet.publish("fleet.msg.ship1.control.chief.directive", &order, body).await;
    })
    .await;
    // Decided, and not done: the next one leaves, but for the first step of the way.
    dies_at(&mut fleet, Point::Left, async |_| {}).await;
    assert_eq!(fleet.record("ship1", "chief", "directive", "leave-1").await.state, State::Succeeded);
    // Done: who starts it again means it.
    fleet.start_agent("ship1").await;
    order(&fleet, "start", r#"{"process":"shell"}"#).await;
    assert_eq!(fleet.record("ship1", "ops", "shell", &queued).await.state, State::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_ends_what_runs_of_its_process_alone() {
    let (fleet, marks) = (fleet("").await, Marks::new());
    let running = fleet.command("ship1", "shell", marks.long("a")).await;
    let behind = fleet.command("ship1", "shell", "echo behind").await;
    let script = json!({"argv": ["sh", "-c", marks.waits_for_go()]});
    let other = fleet.command("ship1", "exec", script.to_string()).await;
    let (pid, _) = (marks.pid("a").await, marks.has_begun().await);
    let did = order(&fleet, "restart", r#"{"process":"shell"}"#).await;
    assert_eq!(did.stdout.as_deref(), Some("shell: restarted; running and being ended: 1\n"));
    gone(pid).await;
    is_ended(&fleet, &running, "chief").await;
    assert_eq!(fleet.record("ship1", "ops", "shell", &behind).await.stdout.as_deref(), Some("behind\n"));
    marks.go();
    assert_eq!(fleet.record("ship1", "ops", "exec", &other).await.exit_code, Some(7));
}

/// The command ended as a restart ends one; the record and the error event say who asked for that.
async fn is_ended(fleet: &Fleet, id: &str, by: &str) {
    let record = fleet.record("ship1", "ops", "shell", id).await;
    let message = record.error.as_ref().map(|error| error.message.as_str());
    let expected = format!("ended by `restart` of process shell, asked by {by}; ended by signal 15");
    assert_eq!((record.state, record.attempt, message), (State::Interrupted, 1, Some(&*expected)), "{record:?}");
    let event = error_of(fleet, "ship1", Severity::Warning, Code::Interrupted, id).await;
    assert_eq!(event.message, expected);
}

#[cfg(feature = "kill-points")]
#[tokio::test(flavor = "multi_thread")]
async fn what_a_restart_is_to_end_ends_though_the_agent_died_before_it_did_so() {
    use edgeward::killpoint::Point;
    use rustix::process::test_kill_process;
    let (mut fleet, marks) = (fleet("").await, Marks::new());
    let running = fleet.command("ship1", "shell", marks.long("a")).await;
    let pid = marks.pid("a").await;
    dies_at(&mut fleet, Point::Obeyed, async |fleet| {
        fleet.publish("fleet.msg.ship1.control.chief.restart", &[("Fleet-Id", "anew")], r#"{"process":"shell"}"#).await;
    })
    .await;
    test_kill_process(pid).expect("nobody has ended it yet");
    // Once more, on the way: the order is not forgotten by who begins to follow it.
    dies_at(&mut fleet, Point::Recovered, async |_| {}).await;
    fleet.start_agent("ship1").await;
    gone(pid).await;
    is_ended(&fleet, &running, "chief").await;
    let did = fleet.record("ship1", "chief", "restart", "anew").await;
    assert_eq!(did.stdout.as_deref(), Some("shell: restarted; running and being ended: 1\n"));
    // It was about what ran then.
    let after = fleet.command("ship1", "shell", marks.waits_for_go()).await;
    let pid = marks.has_begun().await;
    fleet.agent("ship1").kill();
    fleet.start_agent("ship1").await;
    test_kill_process(pid).expect("it goes on");
    marks.go();
    assert_eq!(fleet.record("ship1", "ops", "shell", &after).await.exit_code, Some(7));
}

#[cfg(feature = "kill-points")]
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_is_told_of_and_restarted_and_nothing_else_is_harmed() {
    use rustix::process::test_kill_process;
    let (fleet, marks) = (fleet("").await, Marks::new());
    let beside = fleet.command("ship1", "shell", marks.waits_for_go()).await;
    let pid = marks.has_begun().await;
    let twice = [("Fleet-Id", "sinks"), ("Fleet-Retries", "1"), ("Fleet-Retry-Wait", "10ms")];
    fleet.publish("fleet.msg.ship1.command.ops.panic", &twice, "the ship sinks").await;
    let record = fleet.record("ship1", "ops", "panic", "sinks").await;
    let error = record.error.as_ref().unwrap();
    assert_eq!((record.state, error.code, record.attempt), (State::Failed, Code::Panicked, 2), "{record:?}");
    assert_eq!(error.message, "the handler panicked: the ship sinks");
    process(&fleet, "panic", |panic| panic.restarts == 2 && panic.state == "running").await;
    error_of(&fleet, "ship1", Severity::Error, Code::Panicked, "sinks").await;
    let told = events(&fleet, Code::Panicked).await;
    assert_eq!(told.iter().map(|event| event.attempt).collect::<Vec<_>>(), [Some(1), Some(2)]);
    for event in &told {
        assert_eq!((event.process.as_deref(), event.directive), (Some("panic"), Some(Directive::Restart)));
        assert!(event.message.contains("the ship sinks"), "{event:?}");
    }
    // Also where it panics before anything runs.
    let refused = fleet.run("ship1", "panic", "check").await;
    assert_eq!((refused.state, refused.error.unwrap().code), (State::Refused, Code::BadBody));

    // What panics again and again is stopped, with what waits for it.
    for n in 3..=6 {
        fleet.publish("fleet.msg.ship1.command.ops.panic", &[("Fleet-Id", &format!("p-{n}"))], "again").await;
    }
    fleet.record("ship1", "ops", "panic", "p-6").await;
    let stopped = process(&fleet, "panic", |panic| panic.state == "stopped").await;
    assert_eq!(stopped.restarts, 5);
    let waits = fleet.command("ship1", "panic", "at last").await;
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    assert!(stored(&fleet, RecordStream::Acks, &format!("fleet.ack.ship1.ops.panic.{waits}")).await.is_empty());
    order(&fleet, "start", r#"{"process":"panic"}"#).await;
    assert_eq!(fleet.record("ship1", "ops", "panic", &waits).await.state, State::Failed);

    test_kill_process(pid).expect("it goes on");
    marks.go();
    assert_eq!(fleet.record("ship1", "ops", "shell", &beside).await.exit_code, Some(7));
    assert_eq!(marks.times_begun(), 1);
}

#[cfg(feature = "kill-points")]
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_neither_loses_nor_repeats_what_a_rule_decided() {
    use edgeward::killpoint::Point;
    let mut fleet = fleet(&rule("shutdown", 1)).await;
    dies_at(&mut fleet, Point::Directed, async |fleet| {
        fleet.publish("fleet.msg.ship1.command.ops.shell", &[("Fleet-Id", "f-1")], "exit 3").await;
    })
    .await;
    fleet.agent("ship1").start();
    assert_eq!(fleet.agent("ship1").exited(SOON).await.code(), Some(100));
    assert_eq!(fleet.record("ship1", "ops", "shell", "f-1").await.attempt, 1);
    assert_eq!(failed(&fleet, "f-1").await.directive, Some(Directive::Shutdown));
    assert_eq!(events(&fleet, Code::Shutdown).await.len(), 1);
    fleet.start_agent("ship1").await;
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
}
