//! Cancel: what is queued never starts, what runs is stopped, what comes later does not begin, and every cancel says what
//! it did.

use super::harness::{Cli, Fleet, Marks, SOON, gone, wait_until};
use edgeward::model::record::Record;
use edgeward::model::state::State;
use edgeward::model::time::Timestamp;
use rustix::process::{Signal, kill_process, test_kill_process};
use std::fs;
use std::time::Duration;

/// Cancels as the plain `nats` CLI would, and waits for what the node says it did.
async fn cancel(fleet: &Fleet, node: &str, from: &str, body: &str) -> Record {
    let stored = fleet.publish(&format!("fleet.msg.{node}.control.{from}.cancel"), &[], body).await;
    fleet.record(node, from, "cancel", &format!("s{}", stored.seq)).await
}

fn body(id: &str) -> String {
    format!("{{\"id\":\"{id}\"}}")
}

#[track_caller]
fn cancelled(record: &Record, words: &str) {
    assert_eq!(record.state, State::Cancelled, "{record:?}");
    let error = record.error.as_ref().expect("why");
    assert!(error.message.contains(words), "{record:?}");
}

/// Waits until a node has taken all that is stored for it.
async fn taken(fleet: &Fleet, node: &str, id: &str) {
    let seq: u64 = id.trim_start_matches('s').parse().unwrap();
    wait_until(SOON, format!("{node} to have taken {id}"), async || {
        let status = fleet.status(node).await.ok_or("no status")?;
        let position = status.position.commands;
        if position.is_some_and(|position| position.0 >= seq) { Ok(()) } else { Err(format!("{position:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_never_starts_and_what_runs_is_stopped() {
    let (fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    let running = fleet.command("ship1", "shell", marks.long("running")).await;
    let queued = fleet.command("ship1", "shell", marks.touch("queued")).await;
    let last = fleet.command("ship1", "shell", marks.touch("last")).await;
    let pid = marks.pid("running").await;

    // At once, not only when its turn comes.
    let told = cancel(&fleet, "ship1", "ops", &body(&queued)).await;
    assert_eq!((told.state, told.stdout.as_deref()), (State::Succeeded, Some("cancelled\n")));
    cancelled(&fleet.record("ship1", "ops", "shell", &queued).await, "asked for by ops; it had not begun");
    assert!(test_kill_process(pid).is_ok(), "the one before still runs");

    let told = cancel(&fleet, "ship1", "ops", &body(&running)).await;
    assert_eq!(told.stdout.as_deref(), Some("runs; being stopped\n"));
    let record = fleet.record("ship1", "ops", "shell", &running).await;
    cancelled(&record, "asked for by ops; ended by signal 15");
    assert_eq!((record.stdout.as_deref(), record.signal, record.attempt), (Some("said\n"), Some(15), 1));
    gone(pid).await;

    // The lane goes on, past the one that was cancelled in it.
    assert_eq!(fleet.record("ship1", "ops", "shell", &last).await.state, State::Succeeded);
    assert!(!marks.ran("queued") && marks.ran("last"));

    // Twice, and after the end: no effect, and it says so.
    for (id, state) in [(&running, "cancelled"), (&queued, "cancelled"), (&last, "succeeded")] {
        let told = cancel(&fleet, "ship1", "ops", &body(id)).await;
        assert_eq!(told.stdout, Some(format!("no effect: {state} before\n")));
    }
    assert_eq!(fleet.record("ship1", "ops", "shell", &last).await.state, State::Succeeded);
    // A cancel is no failure.
    assert!(fleet.cli().run(&["errors"]).await.ok().is_empty());
}

/// A cancel is kept until the broker's clock has passed its time; a node that was started anew without a link does not know
/// that clock, and its own may be wrong by years.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_holds_whatever_the_nodes_own_clock_says() {
    const YEARS: i64 = 20 * 366 * 86_400 * 1_000_000_000;
    let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    let id = fleet.command("ship1", "shell", marks.long("running")).await;
    let pid = marks.pid("running").await;
    fleet.agent("ship1").kill();
    fleet.broker.server.kill().await.unwrap();
    // As if the agent had died between keeping the cancel and stopping what it met, and the host's clock were put forward.
    let journal = rusqlite::Connection::open(fleet.agent("ship1").state_dir().join("journal.db")).unwrap();
    let until = Timestamp::local_now().plus(Duration::from_secs(86_400)).nanos();
    let kept =
        journal.execute("INSERT INTO cancels VALUES ('ops', ?1, 'ops', ?2)", rusqlite::params![id, until]).unwrap();
    journal.execute("INSERT OR REPLACE INTO meta VALUES ('clock_offset', ?1)", [YEARS.to_string()]).unwrap();
    journal.execute("DELETE FROM meta WHERE key = 'boot_clock'", []).unwrap();
    drop(journal);
    assert_eq!(kept, 1);
    fleet.agent("ship1").start();
    gone(pid).await;
    fleet.broker.server.restart().await.unwrap();
    cancelled(&fleet.record("ship1", "ops", "shell", &id).await, "asked for by ops; ended by signal 15");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_may_come_before_its_message_and_ends_a_wait_between_tries() {
    let (fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    let told = cancel(&fleet, "ship1", "ops", &body("later-1")).await;
    assert_eq!(told.stdout.as_deref(), Some("not known here; cancelled when it comes\n"));
    fleet.publish("fleet.msg.ship1.command.ops.shell", &[("Fleet-Id", "later-1")], marks.touch("later")).await;
    cancelled(&fleet.record("ship1", "ops", "shell", "later-1").await, "asked for by ops; it had not begun");
    // Another sender's message of that id is another message.
    fleet.publish("fleet.msg.ship1.command.bob.shell", &[("Fleet-Id", "later-1")], "true").await;
    assert_eq!(fleet.record("ship1", "bob", "shell", "later-1").await.state, State::Succeeded);
    assert!(!marks.ran("later"));

    let headers = [("Fleet-Id", "again-1"), ("Fleet-Retries", "unlimited"), ("Fleet-Retry-Wait", "1h")];
    fleet.publish("fleet.msg.ship1.command.ops.shell", &headers, "exit 3").await;
    wait_until(SOON, "the first try to be over", async || {
        let status = fleet.cli().run(&["status", "again-1"]).await.stdout;
        if status.contains("retrying") { Ok(()) } else { Err(status) }
    })
    .await;
    cancel(&fleet, "ship1", "ops", &body("again-1")).await;
    let record = fleet.record("ship1", "ops", "shell", "again-1").await;
    cancelled(&record, "it waited for its next try");
    assert_eq!(record.attempt, 1);
    // Its lane is free.
    assert_eq!(fleet.run("ship1", "shell", "true").await.state, State::Succeeded);

    let told = cancel(&fleet, "ship1", "ops", "{\"id\":7}").await;
    assert_eq!(told.state, State::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_was_sent_while_the_node_was_away_overtakes_the_queue() {
    let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    // On the node, behind a long one; and at the broker.
    let running = fleet.command("ship1", "shell", marks.long("running")).await;
    let on_node = fleet.command("ship1", "shell", marks.touch("on_node")).await;
    let pid = marks.pid("running").await;
    taken(&fleet, "ship1", &on_node).await;
    fleet.agent("ship1").kill();
    let at_broker = fleet.command("ship1", "shell", marks.touch("at_broker")).await;
    let free = fleet.command("ship1", "shell.free", marks.touch("free")).await;
    let kept = fleet.command("ship1", "shell", marks.touch("kept")).await;

    let cli = fleet.cli();
    for id in [&on_node, &at_broker, &free] {
        let said = cli.run(&["cancel", id]).await.exits(0);
        assert!(said.stdout.contains("cancel asked, stored as "), "{said:?}");
        let status = cli.run(&["status", id]).await.exits(3);
        assert!(status.stdout.contains("cancel requested"), "not answered yet: {status:?}");
    }
    assert!(!cli.run(&["status", &kept]).await.exits(3).stdout.contains("cancel requested"));

    fleet.start_agent("ship1").await;
    for (id, method) in [(&on_node, "shell"), (&at_broker, "shell"), (&free, "shell")] {
        cancelled(&fleet.record("ship1", "ops", method, id).await, "it had not begun");
        cli.run(&["wait", id, "--for", "20s"]).await.exits(5);
    }
    // The long one has gone on all the time.
    kill_process(pid, Signal::KILL).unwrap();
    let running = fleet.record("ship1", "ops", "shell", &running).await;
    assert_eq!((running.state, running.signal), (State::Failed, Some(9)));
    assert_eq!(fleet.record("ship1", "ops", "shell", &kept).await.state, State::Succeeded);
    assert!(!marks.ran("on_node") && !marks.ran("at_broker") && !marks.ran("free") && marks.ran("kept"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_link_no_cancel_is_waited_for() {
    let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    fleet.command("ship1", "shell", marks.long("running")).await;
    let next = fleet.command("ship1", "shell", marks.touch("next")).await;
    let pid = marks.pid("running").await;
    taken(&fleet, "ship1", &next).await;
    fleet.agent("ship1").kill();
    fleet.broker.server.kill().await.expect("the broker's end");
    kill_process(pid, Signal::KILL).unwrap();
    fleet.agent("ship1").start();
    wait_until(SOON, "the next to run", async || marks.ran("next")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_outlives_the_agent_that_took_it() {
    let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    // It does not heed TERM: the agent is killed between asking and the end.
    let script = format!("trap '' TERM; {}", marks.long("deaf"));
    let deaf = fleet.command("ship1", "shell", script).await;
    let pid = marks.pid("deaf").await;
    let told = cancel(&fleet, "ship1", "ops", &body(&deaf)).await;
    assert_eq!(told.stdout.as_deref(), Some("runs; being stopped\n"));
    let status = fleet.cli().run(&["status", &deaf]).await.exits(3);
    assert!(status.stdout.contains("cancel requested"), "{status:?}");
    fleet.agent("ship1").kill();
    fleet.start_agent("ship1").await;
    cancelled(&fleet.record("ship1", "ops", "shell", &deaf).await, "asked for by ops; ended by signal 9");
    gone(pid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_can_be_cancelled_while_it_has_not_begun() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let publish = async |id: &str| {
        fleet.publish("fleet.msg.ship1.event.ops.log", &[("Fleet-Id", id)], id).await;
    };
    publish("first").await;
    assert_eq!(fleet.record("ship1", "ops", "log", "first").await.state, State::Succeeded);
    cancel(&fleet, "ship1", "ops", &body("unwanted")).await;
    publish("unwanted").await;
    publish("wanted").await;
    assert_eq!(fleet.record("ship1", "ops", "log", "wanted").await.state, State::Succeeded);
    cancelled(&fleet.record("ship1", "ops", "log", "unwanted").await, "it had not begun");
    let log = fs::read_to_string(fleet.agent("ship1").state_dir().join("log/ops/default.log")).unwrap();
    assert_eq!(log.lines().filter_map(|line| line.split_whitespace().last()).collect::<Vec<_>>(), ["first", "wanted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_messages_of_others_are_for_admins() {
    let (mut fleet, marks) = (Fleet::start(&["ship1"]).await, Marks::new());
    let policy = marks.path("policy.toml");
    let rules = r#"
        [[allow]]
        senders = ["*"]
        kinds = ["command", "control"]
        methods = ["shell", "cancel"]
        [[allow]]
        senders = ["chief"]
        kinds = ["control"]
        methods = ["*"]
    "#;
    fs::write(&policy, rules).unwrap();
    fleet.agent("ship1").kill();
    fleet.agent("ship1").set_env("EDGEWARD_AGENT__POLICY", policy.to_str().unwrap());
    fleet.start_agent("ship1").await;
    let running = fleet.command("ship1", "shell", marks.long("running")).await;
    let pid = marks.pid("running").await;

    // Without `from` it is about a message of his own, which there is not.
    let told = cancel(&fleet, "ship1", "bob", &body(&running)).await;
    assert_eq!(told.stdout.as_deref(), Some("not known here; cancelled when it comes\n"));
    let bob = Cli::edgeward(&fleet.broker.url()).env("EDGEWARD_FROM", "bob");
    let said = bob.run(&["cancel", &running]).await.exits(0);
    let seq = said.stdout.split("stored as ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
    let wait = bob.run(&["wait", seq, "--for", "20s"]).await.exits(7);
    assert!(wait.stdout.contains("policy: this node's policy does not allow `bob` to steer the messages of `ops`"));
    assert!(test_kill_process(pid).is_ok());
    let status = bob.run(&["status", &running]).await.exits(3);
    assert!(!status.stdout.contains("cancel requested"), "the node has said no: {status:?}");

    let chief = Cli::edgeward(&fleet.broker.url()).env("EDGEWARD_FROM", "chief");
    chief.run(&["cancel", &running]).await.exits(0);
    cancelled(&fleet.record("ship1", "ops", "shell", &running).await, "asked for by chief");
    gone(pid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verb_finds_what_is_meant() {
    let (mut fleet, marks) = (Fleet::start(&["ship1", "ship2"]).await, Marks::new());
    fleet.agent("ship2").signal(Signal::STOP);
    let cli = fleet.cli();
    cli.run(&["run", "ship1", "true"]).await.exits(0);
    cli.run(&["send", "ship1", &marks.long("running"), "--id", "first"]).await.exits(0);
    cli.run(&["send", "ship1,ship2", "true", "--id", "second"]).await.exits(0);
    cli.run(&["send", "ship1", "true", "--id", "third"]).await.exits(0);
    let bob = Cli::edgeward(&fleet.broker.url()).env("EDGEWARD_FROM", "bob");
    bob.run(&["send", "ship2", "true", "--id", "bobs"]).await.exits(0);
    marks.pid("running").await;
    wait_until(SOON, "the first to be told as running", async || {
        let status = cli.run(&["status", "first"]).await.stdout;
        if status.contains("running") { Ok(()) } else { Err(status) }
    })
    .await;

    // What has not begun on one node, first dry.
    let queued = ["cancel", "--node", "ship1", "--queued"];
    let dry = cli.run(&[&queued[..], &["--dry-run"]].concat()).await.ok();
    assert_eq!(dry.matches("would be cancelled").count(), 2, "{dry}");
    assert!(dry.contains(r#"-- fleet.msg.ship1.control.ops.cancel '{"id":"second"}'"#), "{dry}");
    assert!(cli.run(&["history", "--kind", "control", "--from", "ops"]).await.ok().is_empty(), "nothing was sent");
    assert_eq!(cli.run(&queued).await.ok().matches("cancel asked").count(), 2);
    cli.run(&["wait", "third", "--for", "20s"]).await.exits(5);
    assert_eq!(fleet.record("ship1", "ops", "shell", "second").await.state, State::Cancelled);

    // The last one, which is over by now; all that is mine; by id, of several nodes.
    let said = cli.run(&["cancel", "--last"]).await.exits(0);
    assert!(said.stdout.is_empty() && said.stderr.contains("is cancelled already; nothing to cancel"), "{said:?}");
    let mine = cli.run(&["cancel", "--mine", "--since", "10m", "-o", "json"]).await.ok();
    let mut nodes: Vec<(String, String)> = mine
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|row| (row["node"].as_str().unwrap().to_owned(), row["id"].as_str().unwrap().to_owned()))
        .collect();
    nodes.sort();
    let expected = [("ship1", "first"), ("ship2", "second")];
    assert_eq!(nodes, expected.map(|(node, id)| (node.to_owned(), id.to_owned())));
    cli.run(&["wait", "first", "--for", "20s"]).await.exits(5);

    fleet.agent("ship2").signal(Signal::CONT);
    cli.run(&["wait", "second", "--for", "20s"]).await.exits(5);
    bob.run(&["wait", "bobs", "--for", "20s"]).await.exits(0);
    let said = cli.run(&["cancel", "--mine", "--since", "10m"]).await.exits(0);
    assert!(said.stderr.contains("nothing to cancel"), "{said:?}");
    cli.run(&["cancel", "never-sent"]).await.exits(2);
    let said = cli.run(&["cancel", "second"]).await.exits(0);
    assert_eq!(said.stderr.matches("nothing to cancel").count(), 2, "{said:?}");
}
