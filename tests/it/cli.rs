//! The operator's verbs as people use them: the binary against a broker with a hub and agents, its output and exit codes.

use super::harness::{Cli, Fleet, Link, Process, Proxy, SOON, TestBroker, open_to, wait_until};
use edgeward::broker::{Broker, ConnectOptions};
use edgeward::model::error_event::{Code, ErrorEvent, Severity};
use edgeward::model::message::Kind;
use edgeward::model::node::Contact;
use edgeward::model::time::Timestamp;
use edgeward::operator::{self, SendError, SendOptions};
use rustix::process::Signal;
use serde_json::Value;
use std::time::Duration;

/// A verb that goes on by itself.
fn started(fleet: &Fleet, args: &[&str]) -> Process {
    let mut verb = Process::new("verb", args).env("EDGEWARD_SERVER", &fleet.broker.url()).env("EDGEWARD_FROM", "ops");
    verb.start();
    verb
}

/// Waits until a node's contact is this.
async fn contact(fleet: &Fleet, node: &str, wanted: Contact) {
    wait_until(SOON, format!("{node} to be {wanted:?}"), async || {
        let all = operator::nodes(&fleet.client).await.map_err(|e| e.to_string())?;
        let contact = all.get(node).ok_or("not there")?.contact(Timestamp::local_now());
        if contact == wanted { Ok(()) } else { Err(format!("{contact:?}")) }
    })
    .await;
}

/// Waits until the first message of a broker is in this state.
async fn first_message(fleet: &Fleet, state: &str) {
    wait_until(SOON, format!("message 1 to be {state}"), async || {
        let status = fleet.cli().run(&["status", "1"]).await.stdout;
        if status.contains(state) { Ok(()) } else { Err(status) }
    })
    .await;
}

/// The objects of `-o json`, one a line, each with its version.
#[track_caller]
fn objects(text: &str) -> Vec<Value> {
    let objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(objects.iter().all(|object| object["v"] == 1), "{text}");
    objects
}

#[tokio::test(flavor = "multi_thread")]
async fn run_shows_what_a_command_wrote_and_ends_as_it_did() {
    let fleet = Fleet::start(&["ship1", "ship2"]).await;
    let cli = fleet.cli();

    let said = cli.run(&["run", "ship1", "printf 'a b'; echo oops >&2"]).await.exits(0);
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("a b", "oops\n"));
    let said = cli.run(&["run", "ship1", "--", "printf", "%s-", "a b", "it's"]).await.exits(0);
    assert_eq!(said.stdout, "a b-it's-");
    let said = cli.run_with(&["run", "ship1", "-"], b"echo from stdin\n").await.exits(0);
    assert_eq!(said.stdout, "from stdin\n");

    let said = cli.run(&["run", "ship1", "exit 3"]).await.exits(1);
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("", "ship1: failed: exit code 3\n"));
    cli.run(&["run", "ship1", "exit 3", "--exit-status"]).await.exits(3);
    cli.run(&["run", "ship1", "true", "--exit-status"]).await.exits(0);
    cli.run(&["run", "ship1", "sleep 60", "--timeout", "200ms"]).await.exits(1);
    let said = cli.run(&["run", "ship1", "-m", "nonsense", "x"]).await.exits(7);
    assert!(said.stderr.contains("refused: unknown_method"), "{said:?}");

    let said = cli.run(&["run", "ship1,ship2,ship1", "echo one; echo two"]).await.exits(0);
    let mut lines: Vec<&str> = said.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["ship1: one", "ship1: two", "ship2: one", "ship2: two"]);
    let said = cli.run(&["run", "ship1,ship2", "-o", "json", "echo $EDGEWARD_NODE; test -n \"$0\""]).await.exits(0);
    let mut rows = objects(&said.stdout);
    rows.sort_by_key(|row| row["node"].to_string());
    assert_eq!(rows[1]["node"], "ship2");
    assert_eq!(rows[0]["state"], "succeeded");
    assert_eq!(rows[0]["id"], rows[1]["id"], "one call has one id");
    assert_eq!(rows[0]["record"]["exit_code"], 0);

    let said = cli.run(&["run", "ship1", "head -c 100000 /dev/zero | tr '\\0' x"]).await.exits(0);
    assert_eq!(
        (said.stdout, said.stderr.as_str()),
        ("x".repeat(100_000), ""),
        "all of it, though the ack holds a part"
    );

    let said = cli.run(&["run", "@web", "true"]).await.exits(2);
    assert!(said.stderr.contains("unknown group @web"), "{said:?}");
    let said = cli.run(&["run", "--new", "@web", "true"]).await.exits(4);
    assert!(said.stderr.contains("@web: undeliverable"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_found_again_by_every_name_it_has() {
    let fleet = Fleet::start(&["ship1", "ship2"]).await;
    let cli = fleet.cli();
    let sent = cli.run(&["send", "ship1,ship2", "echo $((6*7))"]).await.ok();
    let (id, seq) = {
        let mut words = sent.split_whitespace();
        (words.next().unwrap().to_owned(), words.next().unwrap().to_owned())
    };
    assert!(sent.lines().all(|line| line.starts_with(&id)), "{sent}");
    for name in [id.as_str(), "last"] {
        let said = cli.run(&["wait", name, "--for", "20s"]).await.exits(0);
        assert_eq!(said.stdout.lines().count(), 2, "{said:?}");
    }
    for name in [seq.clone(), format!("s{seq}")] {
        assert_eq!(cli.run(&["result", &name]).await.exits(0).stdout, "42\n");
    }
    assert_eq!(cli.run(&["result", &id, "ship2"]).await.exits(0).stdout, "42\n");
    let prefixed = cli.run(&["result", &id]).await.exits(0).stdout;
    assert!(prefixed.contains("ship1: 42\n") && prefixed.contains("ship2: 42\n"), "{prefixed}");
    assert!(cli.run(&["status"]).await.exits(0).stdout.contains("succeeded"));
    // Another operator finds it too, without knowing whose it is.
    let other = Cli::edgeward(&fleet.broker.url()).env("EDGEWARD_FROM", "olga");
    assert_eq!(objects(&other.run(&["status", &id, "-o", "json"]).await.exits(0).stdout).len(), 2);

    // A plain publish has no id but its sequence; an event is `e…`.
    let plain = fleet.publish("fleet.msg.ship1.command.ops.shell", &[], "echo plain").await.seq;
    assert_eq!(cli.run(&["wait", &plain.to_string(), "--for", "20s"]).await.exits(0).stdout, "ship1  succeeded\n");
    assert_eq!(cli.run(&["result", &format!("s{plain}")]).await.exits(0).stdout, "plain\n");
    let event = cli.run(&["send", "ship1", "-m", "log", "--lane", "audit", "hello"]).await.ok();
    let name = event.split_whitespace().nth(1).unwrap();
    assert!(name.starts_with('e'), "{event}");
    cli.run(&["wait", name, "--for", "20s"]).await.exits(0);

    cli.run(&["status", "99999"]).await.exits(2);
    let said = cli.run(&["status", "no-such-id"]).await.exits(2);
    assert!(said.stderr.contains("no message `no-such-id`") && said.stderr.contains("--since"), "{said:?}");
    other.run(&["status", "last"]).await.exits(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_names_one_message_and_no_other() {
    let fleet = Fleet::start(&["ship1"]).await;
    let cli = fleet.cli();
    let first = cli.run(&["send", "ship1", "echo one", "--id", "restart-7"]).await.ok();
    assert_eq!(cli.run(&["send", "ship1", "echo one", "--id", "restart-7"]).await.ok(), first, "the same message");
    for other in [&["echo two"][..], &["echo one", "--timeout", "5s"], &["echo one", "--retries", "1"]] {
        let said = cli.run(&[&["send", "ship1", "--id", "restart-7"], other].concat()).await.exits(2);
        assert!(said.stderr.contains("the id `restart-7` is already used"), "{said:?}");
    }
    // The broker's dedup window does not know it, the node does: a copy shows what became of the first.
    cli.run(&["wait", "restart-7", "--for", "20s"]).await.exits(0);
    let copy = fleet.publish("fleet.msg.ship1.command.ops.shell", &[("Fleet-Id", "restart-7")], "echo one").await;
    let said = cli.run(&["wait", &copy.seq.to_string(), "--for", "20s"]).await.exits(0);
    assert!(said.stdout.contains("succeeded  copy of"), "{said:?}");
    let two = cli.run(&["status", "restart-7", "-o", "json"]).await.exits(0).stdout;
    assert_eq!(objects(&two).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_when_it_should_and_says_why() {
    let mut fleet = Fleet::start(&["ship1", "ship2"]).await;
    let cli = fleet.cli();
    let said = cli.run(&["run", "ship1", "sleep 30", "--wait", "300ms"]).await.exits(3);
    assert!(said.stderr.contains("not finished: ship1") && said.stderr.contains("edgeward wait "), "{said:?}");
    // The same lane is taken; another is not.
    let said = cli.run(&["run", "ship1", "true", "--wait", "6s"]).await.exits(3);
    assert!(said.stderr.contains("ship1: behind ") && said.stderr.contains("; use --lane"), "{said:?}");
    cli.run(&["run", "ship1", "true", "--lane", "other", "--wait", "20s"]).await.exits(0);

    let silent = r#"{"v":1,"node":"ship9","interval_s":0.1}"#;
    fleet.publish("$KV.FLEET_NODES.status.ship9", &[], silent).await;
    contact(&fleet, "ship9", Contact::Silent).await;
    let said = cli.run(&["run", "ship9", "true", "-o", "json"]).await.exits(3);
    assert!(said.stderr.contains("ship9 silent for ") && said.stderr.contains("will run on return"), "{said:?}");
    assert_eq!(objects(&said.stdout)[0]["contact"], "silent");

    fleet.agent("ship2").stop().await;
    let said = cli.run(&["run", "ship2", "echo back"]).await.exits(3);
    assert!(
        said.stderr.contains("ship2 stopped ") && said.stderr.contains(", will run on return; edgeward wait "),
        "{said:?}"
    );
    fleet.start_agent("ship2").await;
    cli.run(&["wait", "last", "--for", "25s"]).await.exits(0);
    assert_eq!(cli.run(&["result", "last"]).await.exits(0).stdout, "back\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_nodes_are_refused_with_what_is_near() {
    let fleet = Fleet::start(&["ship1"]).await;
    let cli = fleet.cli();
    let said = cli.run(&["send", "shp1", "true"]).await.exits(2);
    assert!(said.stderr.contains("`shp1` was never seen") && said.stderr.contains("near `shp1`: ship1"), "{said:?}");
    let said = cli.run(&["send", "all", "true"]).await.exits(2);
    assert!(said.stderr.contains("hint: every node is `@all`\n"), "{said:?}");
    let said = cli.run(&["run", "ghost", "true", "--new"]).await.exits(3);
    assert!(said.stderr.contains("ghost never heard; stored as "), "{said:?}");
    let said = cli.run(&["run", "ship1", "uname", "-a"]).await.exits(2);
    assert!(said.stderr.contains("quote it: edgeward run ship1 'uname -a'"), "{said:?}");
    let file = "[{\"to\":\"ship1\",\"method\":\"shell\",\"body\":\"echo 1\"},{\"to\":[\"ship1\"],\"method\":\"log\",\"body\":\"x\"}]";
    assert_eq!(cli.run_with(&["send", "--file", "-"], file.as_bytes()).await.ok().lines().count(), 2);
    let said = cli.run_with(&["send", "--file", "-"], b"{\"to\":\"ship1\",\"metod\":\"x\"}").await.exits(2);
    assert!(said.stderr.contains("metod"), "{said:?}");
    let big = vec![b'x'; (1 << 20) - 4000];
    let said = cli.run_with(&["send", "ship1", "-"], &big).await.exits(2);
    assert!(said.stderr.contains("are kept for headers"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_show_nodes_messages_and_failures() {
    let fleet = Fleet::start(&["ship1"]).await;
    let cli = fleet.cli();
    cli.run(&["run", "ship1", "exit 3"]).await.exits(1);
    cli.run(&["run", "ship1", "-m", "ping"]).await.exits(0);
    let nodes = cli.run(&["nodes"]).await.ok();
    assert!(nodes.contains("ship1") && nodes.contains("in contact"), "{nodes}");
    assert_eq!(objects(&cli.run(&["nodes", "-o", "json"]).await.ok())[0]["contact"], "in_contact");

    let history = objects(&cli.run(&["history", "-o", "json"]).await.ok());
    let states: Vec<(&str, &str)> =
        history.iter().map(|row| (row["method"].as_str().unwrap(), row["state"].as_str().unwrap())).collect();
    assert_eq!(states, [("shell", "failed"), ("ping", "succeeded")]);
    assert_eq!(objects(&cli.run(&["history", "-m", "ping", "-o", "json"]).await.ok()).len(), 1);
    let said = cli.run(&["history", "--from", "nobody"]).await.exits(0);
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("", "no such message in the last 24 h\n"));
    let said = cli.run(&["errors", "--severity", "critical"]).await.exits(0);
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("", "no such failure in the last 24 h\n"));
    cli.run(&["history", "--limit", "0"]).await.exits(2);
    assert!(cli.run(&["history", "--limit", "1"]).await.exits(0).stderr.contains("--limit shows more"));

    let event =
        ErrorEvent::new("ship1", Severity::Critical, Code::Journal, "the disk\nis full", Timestamp::local_now());
    fleet.publish("fleet.error.ship1.critical.journal", &[], event.encode()).await;
    let errors = cli.run(&["errors", "--severity", "critical"]).await.ok();
    assert!(errors.lines().count() == 1 && errors.contains("journal  the disk\\nis full"), "{errors}");
    let failed = wait_until(SOON, "the failure of the command", async || {
        let errors = cli.run(&["errors", "ship1", "-o", "json"]).await.ok();
        objects(&errors).into_iter().find(|error| error["event"]["code"] == "failed").ok_or(errors)
    })
    .await;
    assert_eq!(failed["node"], "ship1");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_or_streams_nothing_is_stored_and_it_says_so() {
    let broker = TestBroker::start().await;
    let cli = Cli::edgeward(&broker.url());
    let said = cli.run(&["send", "ship1", "true", "--new"]).await.exits(8);
    assert!(said.stderr.contains("edgeward init"), "{said:?}");
    cli.run(&["nodes"]).await.exits(8);
    let said = cli.run(&["send", "ship1", "true"]).await.exits(8);
    assert!(said.stderr.contains("; nothing was sent") && !said.stderr.contains("--new"), "{said:?}");
    cli.run(&["send", "ship1", "true", "--server", "nats://127.0.0.1:1"]).await.exits(8);
    let said = cli.run(&["send", "ship1", "true", "--server", "nats://192.0.2.1:4222"]).await.exits(2);
    assert!(said.stderr.contains("no credentials"), "{said:?}");
    let said = Cli::edgeward(&broker.url()).env("EDGEWARD_FORM", "x").run(&["config", "check"]).await.exits(2);
    assert!(said.stderr.contains("form"), "{said:?}");
    for made in [6, 0] {
        let said = cli.run(&["init"]).await.exits(0);
        assert_eq!(said.stderr.lines().filter(|line| line.ends_with(": made")).count(), made, "{said:?}");
        assert_eq!(said.stdout.lines().filter(|line| line.ends_with(": as wanted")).count(), 6, "{said:?}");
    }
    assert!(cli.run(&["config", "show"]).await.ok().contains("from = \"ops\""));
    assert!(cli.run(&["completions", "bash"]).await.ok().contains("edgeward"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_of_a_dry_run_stores_the_same_message() {
    let fleet = Fleet::start(&["ship1"]).await;
    let Some(nats) = Cli::nats(&fleet.broker.url()).await else { return };
    let body = "echo \"{{Count}}\" $HOME; echo `x`";
    let args = ["ship1", body, "--timeout", "5s", "--id", "dry-1"];
    let dry = fleet.cli().run(&[&["send", "--dry-run"], &args[..]].concat()).await.ok();
    let line = dry.lines().find(|line| line.starts_with("nats pub ")).expect(&dry);
    nats.line(line.strip_prefix("nats ").unwrap()).await.ok();
    // The broker's own word that it is the very same: the id is taken, and not by another message.
    fleet.cli().run(&[&["send"], &args[..]].concat()).await.exits(0);
    let rows = objects(&fleet.cli().run(&["history", "-o", "json"]).await.ok());
    assert_eq!(rows.len(), 1, "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_detaches_and_says_how_to_come_back() {
    let fleet = Fleet::start(&["ship1"]).await;
    let mut run = started(&fleet, &["run", "ship1", "sleep 1.5; echo done"]);
    first_message(&fleet, "running").await;
    run.signal(Signal::INT);
    assert_eq!(run.exited(SOON).await.code(), Some(3));
    assert!(run.stderr().contains("detached; nothing is cancelled; edgeward wait 1"), "{}", run.stderr());
    fleet.cli().run(&["wait", "1", "--for", "20s"]).await.exits(0);
    assert_eq!(fleet.cli().run(&["result", "1"]).await.exits(0).stdout, "done\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_followed_each_once() {
    let fleet = Fleet::start(&["ship1"]).await;
    let publish = async |text: &str| {
        let event = ErrorEvent::new("ship1", Severity::Error, Code::Io, text, Timestamp::local_now());
        fleet.publish("fleet.error.ship1.error.io", &[], event.encode()).await;
    };
    publish("first").await;
    let mut follow = started(&fleet, &["errors", "--follow"]);
    for (count, next) in [(1, "second"), (2, "third"), (3, "")] {
        wait_until(SOON, format!("{count} errors"), async || follow.stdout().lines().count() >= count).await;
        if !next.is_empty() {
            publish(next).await;
        }
    }
    follow.signal(Signal::INT);
    assert_eq!(follow.exited(SOON).await.code(), Some(0));
    let told = follow.stdout();
    let told: Vec<&str> = told.lines().filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(told, ["first", "second", "third"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_outlives_the_broker() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let mut run = started(&fleet, &["run", "ship1", "sleep 2; echo done"]);
    first_message(&fleet, "running").await;
    fleet.broker.server.restart().await.expect("a restart");
    assert_eq!(run.exited(SOON).await.code(), Some(0));
    assert_eq!(run.stdout(), "done\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_right_is_told_at_once_and_by_name() {
    let key = nkeys::KeyPair::new_user();
    let users = format!(
        r#"no_auth_user: all
        authorization {{ users: [
            {{ user: all, password: x }}
            {{ nkey: {}, permissions: {{ publish: {{ deny: ["fleet.msg.ship2.>"] }} }} }}
        ] }}"#,
        key.public_key()
    );
    let fleet = Fleet::at(TestBroker::with(|options| options.extra_config = users).await, &["ship1", "ship2"]).await;
    let folder = tempfile::tempdir().unwrap();
    let seed = folder.path().join("ops.nk");
    std::fs::write(&seed, key.seed().unwrap()).unwrap();
    let cli = fleet.cli().env("NATS_NKEY", seed.to_str().unwrap()).within(Duration::from_secs(10));
    cli.run(&["run", "ship1", "true"]).await.exits(0);
    let said = cli.run(&["run", "ship2", "true"]).await.exits(7);
    assert!(said.stderr.contains("no right to publish to `fleet.msg.ship2.command.ops.shell`"), "{said:?}");
    // What could be stored is, and is waited for.
    let said = cli.run(&["run", "ship1,ship2", "echo hi"]).await.exits(7);
    assert_eq!(said.stdout, "ship1: hi\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_it_is_not_known_and_repeating_is_safe() {
    let fleet = Fleet::start(&["ship1"]).await;
    let proxy = Proxy::start(fleet.broker.server.port()).await;
    let options = ConnectOptions { keep_trying: false, ..open_to(vec![proxy.url()]) };
    let client = Broker::connect(&options).await.expect("a connection through the proxy");
    let (from, to) = ("ops".parse().unwrap(), vec!["ship1".parse().unwrap()]);
    let draft = operator::Draft::new(to, Kind::Command, "ping".parse().unwrap(), "");
    let send = async |deadline: Duration| {
        let deliveries = operator::send(&client, &from, &draft, &SendOptions { deadline }).await;
        deliveries.into_iter().next().unwrap().result
    };
    proxy.set(Link::Stalled);
    assert!(matches!(send(Duration::from_millis(100)).await, Err(SendError::Unknown)));
    proxy.set(Link::Open);
    // What was on its way arrives, and so do the repeats: it is one message.
    let sent = send(SOON).await.expect("an answer");
    assert_eq!(sent.id_ref().to_string(), "1");
    let call = operator::find(&fleet.client, &draft.id.as_str().parse().unwrap(), Some(&from), None).await.unwrap();
    assert_eq!(call.messages.len(), 1);
}
