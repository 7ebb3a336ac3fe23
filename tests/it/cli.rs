//! The operator's verbs as people use them: the binary against a broker with a hub and agents, its output and exit codes.

use super::harness::{Cli, SOON, TestBroker, wait_until};
use edgeward::agent;
use edgeward::broker::{Access, Broker, ConnectOptions, Outgoing};
use edgeward::hub::{self, HubOptions};
use edgeward::model::config::{Config, HubConfig};
use edgeward::model::error_event::{Code, ErrorEvent, Severity};
use edgeward::model::node::Contact;
use edgeward::model::policy::Policy;
use edgeward::model::subject::Names;
use edgeward::model::time::Timestamp;
use edgeward::operator;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A broker with a hub and agents inside this process: what is tested here is the operator's side alone.
struct Lab {
    agents: BTreeMap<String, (CancellationToken, JoinHandle<()>)>,
    hub: JoinHandle<()>,
    client: Broker,
    broker: TestBroker,
    folder: TempDir,
}

impl Lab {
    async fn start(nodes: &[&str]) -> Lab {
        Lab::at(TestBroker::start().await, nodes).await
    }

    async fn at(broker: TestBroker, nodes: &[&str]) -> Lab {
        let client = broker.client().await;
        let connect = ConnectOptions {
            servers: vec![broker.url()],
            access: Access::Open,
            tls_ca: None,
            insecure: false,
            name: "hub".to_owned(),
            identity: None,
            names: Names::default(),
            api_prefix: None,
            keep_trying: false,
        };
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let config = HubConfig { store_bytes: 1 << 30, ..HubConfig::default() };
        let options = HubOptions { connect, config, ready: Some(ready) };
        let hub = tokio::spawn(async move { hub::run(options, CancellationToken::new()).await.expect("the hub") });
        is_ready.await.expect("the hub is ready");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut lab = Lab { agents: BTreeMap::new(), hub, client, broker, folder };
        for node in nodes {
            lab.start_agent(node);
        }
        for node in nodes {
            lab.contact(node, Contact::InContact).await;
        }
        lab
    }

    fn start_agent(&mut self, node: &str) {
        let mut config = Config { server: vec![self.broker.url()], ..Config::default() };
        config.agent.interval = Duration::from_secs(1);
        config.agent.grace = Duration::from_millis(100);
        let state_dir = self.folder.path().join(node);
        let options = agent::Options { config, node: node.parse().unwrap(), state_dir, policy: Policy::Open };
        let stop = CancellationToken::new();
        let token = stop.clone();
        let run = tokio::spawn(async move {
            agent::run(options, token, || {}).await.expect("the agent");
        });
        self.agents.insert(node.to_owned(), (stop, run));
    }

    async fn stop_agent(&mut self, node: &str) {
        let (stop, run) = self.agents.remove(node).expect("an agent of this name");
        stop.cancel();
        tokio::time::timeout(SOON, run).await.expect("the agent stops").expect("without a panic");
    }

    async fn contact(&self, node: &str, wanted: Contact) {
        wait_until(SOON, format!("{node} to be {wanted:?}"), async || {
            let all = operator::nodes(&self.client).await.map_err(|e| e.to_string())?;
            let contact = all.get(node).ok_or("not there")?.contact(Timestamp::local_now());
            if contact == wanted { Ok(()) } else { Err(format!("{contact:?}")) }
        })
        .await;
    }

    fn cli(&self) -> Cli {
        Cli::edgeward(&self.broker.url())
    }

    /// A plain publish, as the `nats` CLI does it; returns the sequence.
    async fn publish(&self, message: Outgoing) -> u64 {
        self.client.publish(&message, SOON).await.expect("stored").seq.0
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.agents.values().for_each(|(_, run)| run.abort());
        self.hub.abort();
    }
}

/// A verb that goes on by itself, with its output as it comes.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(lab: &Lab, args: &[&str]) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgeward"));
        command.args(args).env("NATS_URL", lab.broker.url()).env("EDGEWARD_FROM", "ops").env("HOME", lab.folder.path());
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("edgeward");
        let lines = BufReader::new(child.stdout.take().expect("its stdout")).lines();
        Running { child, lines }
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(SOON, self.lines.next_line()).await.expect("a line in time");
        line.expect("stdout").expect("one more line")
    }

    fn interrupt(&self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).expect("its pid");
        kill_process(pid, Signal::INT).expect("a process to interrupt");
    }

    async fn end(self) -> (Option<i32>, String) {
        let output = tokio::time::timeout(SOON, self.child.wait_with_output()).await.expect("it ends").expect("output");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
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
    let lab = Lab::start(&["ship1", "ship2"]).await;
    let cli = lab.cli();

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
    assert!(said.stderr.contains("the output is cut: head and tail of 100000 bytes on stdout"), "{}", said.stderr);

    let said = cli.run(&["run", "@web", "true"]).await.exits(4);
    assert!(said.stderr.contains("@web: undeliverable"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_found_again_by_every_name_it_has() {
    let lab = Lab::start(&["ship1", "ship2"]).await;
    let cli = lab.cli();
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
    let other = Cli::edgeward(&lab.broker.url()).env("EDGEWARD_FROM", "olga");
    assert_eq!(objects(&other.run(&["status", &id, "-o", "json"]).await.exits(0).stdout).len(), 2);

    // A plain publish has no id but its sequence; an event is `e…`.
    let plain = lab.publish(Outgoing::new("fleet.msg.ship1.command.ops.shell", "echo plain")).await;
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
    let lab = Lab::start(&["ship1"]).await;
    let cli = lab.cli();
    let first = cli.run(&["send", "ship1", "echo one", "--id", "restart-7"]).await.ok();
    assert_eq!(cli.run(&["send", "ship1", "echo one", "--id", "restart-7"]).await.ok(), first, "the same message");
    for other in [&["echo two"][..], &["echo one", "--timeout", "5s"], &["echo one", "--retries", "1"]] {
        let said = cli.run(&[&["send", "ship1", "--id", "restart-7"], other].concat()).await.exits(2);
        assert!(said.stderr.contains("the id `restart-7` is already used"), "{said:?}");
    }
    // The broker's dedup window does not know it, the node does: a copy shows what became of the first.
    cli.run(&["wait", "restart-7", "--for", "20s"]).await.exits(0);
    let copy = Outgoing::new("fleet.msg.ship1.command.ops.shell", "echo one").with("Fleet-Id", "restart-7");
    let seq = lab.publish(copy).await;
    let said = cli.run(&["wait", &seq.to_string(), "--for", "20s"]).await.exits(0);
    assert!(said.stdout.contains("succeeded  copy of"), "{said:?}");
    let two = cli.run(&["status", "restart-7", "-o", "json"]).await.exits(0).stdout;
    assert_eq!(objects(&two).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_when_it_should_and_says_why() {
    let mut lab = Lab::start(&["ship1", "ship2"]).await;
    let cli = lab.cli();
    let said = cli.run(&["run", "ship1", "sleep 30", "--wait", "300ms"]).await.exits(3);
    assert!(said.stderr.contains("not finished: ship1") && said.stderr.contains("edgeward wait "), "{said:?}");
    // The same lane is taken; another is not.
    let said = cli.run(&["run", "ship1", "true", "--wait", "6s"]).await.exits(3);
    assert!(said.stderr.contains("ship1: behind ") && said.stderr.contains("; use --lane"), "{said:?}");
    cli.run(&["run", "ship1", "true", "--lane", "other", "--wait", "20s"]).await.exits(0);

    let silent = r#"{"v":1,"node":"ship9","interval_s":0.1}"#;
    lab.publish(Outgoing::new("$KV.FLEET_NODES.status.ship9", silent)).await;
    lab.contact("ship9", Contact::Silent).await;
    let said = cli.run(&["run", "ship9", "true", "-o", "json"]).await.exits(3);
    assert!(said.stderr.contains("ship9 silent for ") && said.stderr.contains("will run on return"), "{said:?}");
    assert_eq!(objects(&said.stdout)[0]["contact"], "silent");

    lab.stop_agent("ship2").await;
    let said = cli.run(&["run", "ship2", "echo back"]).await.exits(3);
    assert!(
        said.stderr.contains("ship2 stopped ") && said.stderr.contains(", will run on return; edgeward wait "),
        "{said:?}"
    );
    lab.start_agent("ship2");
    cli.run(&["wait", "last", "--for", "25s"]).await.exits(0);
    assert_eq!(cli.run(&["result", "last"]).await.exits(0).stdout, "back\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_nodes_are_refused_with_what_is_near() {
    let lab = Lab::start(&["ship1"]).await;
    let cli = lab.cli();
    let said = cli.run(&["send", "shp1", "true"]).await.exits(2);
    assert!(said.stderr.contains("`shp1` was never seen") && said.stderr.contains("near `shp1`: ship1"), "{said:?}");
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
    let lab = Lab::start(&["ship1"]).await;
    let cli = lab.cli();
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
    assert!(cli.run(&["history", "--from", "nobody"]).await.ok().is_empty());
    assert!(cli.run(&["history", "--limit", "1"]).await.exits(0).stderr.contains("--limit shows more"));

    let event =
        ErrorEvent::new("ship1", Severity::Critical, Code::Journal, "the disk\nis full", Timestamp::local_now());
    lab.publish(Outgoing::new("fleet.error.ship1.critical.journal", event.encode())).await;
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
    cli.run(&["send", "ship1", "true", "--server", "nats://127.0.0.1:1"]).await.exits(8);
    let said = cli.run(&["send", "ship1", "true", "--server", "nats://192.0.2.1:4222"]).await.exits(2);
    assert!(said.stderr.contains("no credentials"), "{said:?}");
    let said = Cli::edgeward(&broker.url()).env("EDGEWARD_FORM", "x").run(&["config", "check"]).await.exits(2);
    assert!(said.stderr.contains("form"), "{said:?}");
    assert!(cli.run(&["config", "show"]).await.ok().contains("from = \"ops\""));
    assert!(cli.run(&["completions", "bash"]).await.ok().contains("edgeward"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_of_a_dry_run_stores_the_same_message() {
    let lab = Lab::start(&["ship1"]).await;
    let Some(nats) = Cli::nats(&lab.broker.url()).await else { return };
    let body = "echo \"{{Count}}\" $HOME; echo `x`";
    let args = ["ship1", body, "--timeout", "5s", "--id", "dry-1"];
    let dry = lab.cli().run(&[&["send", "--dry-run"], &args[..]].concat()).await.ok();
    let line = dry.lines().find(|line| line.starts_with("nats pub ")).expect(&dry);
    nats.line(line.strip_prefix("nats ").unwrap()).await.ok();
    // The broker's own word that it is the very same: the id is taken, and not by another message.
    lab.cli().run(&[&["send"], &args[..]].concat()).await.exits(0);
    let rows = objects(&lab.cli().run(&["history", "-o", "json"]).await.ok());
    assert_eq!(rows.len(), 1, "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_detaches_and_says_how_to_come_back() {
    let lab = Lab::start(&["ship1"]).await;
    let run = Running::start(&lab, &["run", "ship1", "sleep 1.5; echo done"]);
    wait_until(SOON, "the command to run", async || {
        let status = lab.cli().run(&["status", "1"]).await;
        if status.stdout.contains("running") || status.stdout.contains("delivered") {
            Ok(())
        } else {
            Err(status.stdout)
        }
    })
    .await;
    run.interrupt();
    let (code, stderr) = run.end().await;
    assert_eq!(code, Some(3));
    assert!(stderr.contains("detached; nothing is cancelled; edgeward wait 1"), "{stderr}");
    lab.cli().run(&["wait", "1", "--for", "20s"]).await.exits(0);
    assert_eq!(lab.cli().run(&["result", "1"]).await.exits(0).stdout, "done\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_followed_each_once() {
    let lab = Lab::start(&[]).await;
    let publish = async |text: &str| {
        let event = ErrorEvent::new("ship1", Severity::Error, Code::Io, text, Timestamp::local_now());
        lab.publish(Outgoing::new("fleet.error.ship1.error.io", event.encode())).await;
    };
    publish("first").await;
    let mut follow = Running::start(&lab, &["errors", "--follow"]);
    assert!(follow.line().await.ends_with("io  first"));
    publish("second").await;
    publish("third").await;
    assert!(follow.line().await.ends_with("io  second"));
    assert!(follow.line().await.ends_with("io  third"));
    follow.interrupt();
    assert_eq!(follow.end().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_outlives_the_broker() {
    let mut lab = Lab::start(&["ship1"]).await;
    let run = Running::start(&lab, &["run", "ship1", "sleep 2; echo done"]);
    wait_until(SOON, "the command to be on the node", async || {
        let status = lab.cli().run(&["status", "1"]).await;
        if status.stdout.contains("running") { Ok(()) } else { Err(status.stdout) }
    })
    .await;
    lab.broker.server.restart().await.expect("a restart");
    let mut run = run;
    assert_eq!(run.line().await, "done");
    assert_eq!(run.end().await, (Some(0), String::new()));
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
    let lab = Lab::at(TestBroker::with(|options| options.extra_config = users).await, &["ship1", "ship2"]).await;
    let seed = lab.folder.path().join("ops.nk");
    std::fs::write(&seed, key.seed().unwrap()).unwrap();
    let cli = lab.cli().env("NATS_NKEY", seed.to_str().unwrap()).within(Duration::from_secs(10));
    cli.run(&["run", "ship1", "true"]).await.exits(0);
    let said = cli.run(&["run", "ship2", "true"]).await.exits(7);
    assert!(said.stderr.contains("no right to publish to `fleet.msg.ship2.command.ops.shell`"), "{said:?}");
    // What could be stored is, and is waited for.
    let said = cli.run(&["run", "ship1,ship2", "echo hi"]).await.exits(7);
    assert_eq!(said.stdout, "ship1: hi\n");
}
