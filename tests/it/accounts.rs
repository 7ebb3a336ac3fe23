//! Hub, agents and operator under the shipped `nats-server.conf`, with nothing but the rights that it gives.

use crate::harness::{Cli, Process, SOON, Said, TestBroker, wait_until};
use edgeward::model::rights::Role;
use edgeward::model::rights::conf::{render_conf, sample_users};
use edgeward::model::subject::Names;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// Another host, which is nobody's: an attempt to connect to it would last until the time is over.
const FAR: &str = "nats://192.0.2.1:4222";
/// How long a refusal may take: less than a request without an answer.
const AT_ONCE: Duration = Duration::from_secs(4);

const POLICY: &str = r#"
[[allow]]
senders = ["ops", "ship1"]
kinds = ["command"]
methods = ["shell", "exec", "ping"]

[[allow]]
senders = ["*"]
kinds = ["control"]
methods = ["cancel"]

[[allow]]
senders = ["*"]
kinds = ["event"]
methods = ["log"]
"#;

fn in_package(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

pub(crate) fn key(name: &str) -> String {
    in_package("deploy/sample-keys").join(format!("{name}.nk")).display().to_string()
}

/// The shipped broker with a hub, agents and an operator, each with a key and nothing else.
pub(crate) struct Fleet {
    agents: Vec<(String, Process)>,
    hub: Process,
    pub(crate) broker: TestBroker,
    folder: TempDir,
}

impl Fleet {
    /// The shipped rights.
    pub(crate) async fn start(nodes: &[&str]) -> Fleet {
        Fleet::with_config(&in_package("nats-server.conf"), nodes).await
    }

    async fn with_config(config: &Path, nodes: &[&str]) -> Fleet {
        let broker = TestBroker::with(|options| options.config = Some(config.to_owned())).await;
        let folder = tempfile::tempdir().unwrap();
        let mut hub = Process::hub(&broker.url()).args(&["--nkey", &key("hub")]);
        hub.start();
        let mut fleet = Fleet { agents: Vec::new(), hub, broker, folder };
        let policy = fleet.file("policy.toml", POLICY);
        for node in nodes {
            fleet.agent(node, &["--policy", &policy]);
        }
        for node in nodes {
            fleet.contact(node).await;
        }
        fleet
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn agent(&mut self, node: &str, args: &[&str]) {
        let mut agent = Process::agent(node, &self.broker.url()).args(&["--nkey", &key(node)]).args(args);
        agent.start();
        self.agents.push((node.to_owned(), agent));
    }

    fn state(&self, node: &str) -> PathBuf {
        self.agents.iter().find(|(name, _)| name == node).unwrap().1.state_dir()
    }

    async fn contact(&self, node: &str) {
        wait_until(SOON, format!("{node} in contact"), async || {
            let said = self.ops(&["nodes", "--from", "ops", "-o", "json"]).await;
            let row = rows(&said.stdout).into_iter().find(|row| row["node"] == node);
            row.filter(|row| row["contact"] == "in_contact").ok_or(said.stdout + &said.stderr)
        })
        .await;
    }

    /// `edgeward` with a key and no name but the one among the arguments.
    async fn with_key(&self, name: &str, args: &[&str]) -> Said {
        let cli = Cli::edgeward(&self.broker.url()).env("EDGEWARD_FROM", "");
        cli.run(&[args, &["--nkey", &key(name)]].concat()).await
    }

    async fn ops(&self, args: &[&str]) -> Said {
        self.with_key("ops", args).await
    }

    /// The same, and it is over before a request without an answer would be.
    async fn at_once(&self, name: &str, args: &[&str]) -> Said {
        tokio::time::timeout(AT_ONCE, self.with_key(name, args)).await.unwrap_or_else(|_| panic!("{args:?} takes long"))
    }
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test]
async fn every_verb_works_with_the_shipped_rights() {
    let fleet = Fleet::start(&["ship1", "ship2"]).await;

    assert_eq!(fleet.ops(&["run", "ship1", "echo $((6*7))", "--from", "ops"]).await.ok(), "42\n");
    let sent = fleet.ops(&["send", "ship1,ship2", "echo hi", "--from", "ops"]).await.ok();
    let id = sent.split_whitespace().next().unwrap();
    for verb in [&["wait", id, "--for", "20s"][..], &["wait", "last", "--for", "20s"], &["status", id], &["status"]] {
        let said = fleet.ops(&[verb, &["--from", "ops"]].concat()).await.ok();
        assert!(said.matches("succeeded").count() == 2, "{verb:?}: {said}");
    }
    assert_eq!(fleet.ops(&["result", id, "ship2", "--from", "ops"]).await.ok(), "hi\n");
    let history = rows(&fleet.ops(&["history", "--from", "ops", "-o", "json"]).await.ok());
    assert_eq!(history.len(), 3, "{history:?}");

    // Whose message it is says who asks, where nothing else does.
    fleet.ops(&["send", "ship1", "sleep 60", "--id", "long", "--from", "ops"]).await.ok();
    assert!(fleet.ops(&["cancel", "long", "--from", "ops"]).await.ok().contains("cancel asked"));
    fleet.ops(&["wait", "long", "--for", "20s", "--from", "ops"]).await.exits(5);

    // The first event makes the node's consumer for events.
    let sent = fleet.ops(&["send", "ship2", "-m", "log", "--lane", "audit", "hello", "--from", "ops"]).await.ok();
    assert!(sent.contains("  e1  "), "{sent}");
    fleet.ops(&["wait", "e1", "--for", "20s", "--from", "ops"]).await.ok();
    assert!(read(&fleet.state("ship2").join("log/ops/audit.log")).ends_with(" hello\n"));

    // The node's own policy stands beside the broker's rights.
    let said = fleet.ops(&["run", "ship1", "-m", "log", "--kind", "command", "x", "--from", "ops"]).await.exits(7);
    assert!(said.stderr.contains("policy"), "{said:?}");
    let refused = wait_until(SOON, "the error event", async || {
        let said = fleet.ops(&["errors", "ship1", "--from", "ops"]).await.ok();
        if said.contains("refused") { Ok(said) } else { Err(said) }
    })
    .await;
    assert!(refused.contains("does not allow `ops` the command `log`"), "{refused}");

    // With credentials a message makes no node.
    let said = fleet.ops(&["run", "ghost", "true", "--new", "--from", "ops"]).await.exits(4);
    assert!(said.stderr.contains("undeliverable: unknown_node"), "{said:?}");
    assert!(!fleet.ops(&["nodes", "--from", "ops"]).await.ok().contains("ghost"));
}

#[tokio::test]
async fn the_past_is_explained_and_sent_again_with_the_shipped_rights() {
    let fleet = Fleet::start(&["ship1", "ship2"]).await;
    let ops = async |args: &[&str]| fleet.ops(&[args, &["--from", "ops"]].concat()).await.ok();
    ops(&["run", "ship1,ship2", "echo hi", "--id", "hi"]).await;
    let why = ops(&["why", "hi", "ship2"]).await;
    assert!(why.contains("ack stored") && why.contains("consumer    acked up to 2"), "{why}");
    assert!(ops(&["status", "hi"]).await.starts_with("2 targets: 2 ok\n"));
    assert!(ops(&["nodes", "ship*", "--sort", "heard"]).await.contains("ship2"));
    let export = ops(&["history", "--state", "succeeded", "--export", "-"]).await;
    assert_eq!(export.lines().count(), 3, "{export}");
    assert_eq!(ops(&["replay", "1..2", "--dry-run"]).await.matches("nats pub").count(), 2);
    let sent = ops(&["replay", "hi"]).await;
    let id = sent.split_whitespace().next().unwrap();
    ops(&["wait", id, "--for", "20s"]).await;
    assert_eq!(ops(&["result", id, "ship1"]).await, "hi\n");
}

#[tokio::test]
async fn groups_are_an_admins_to_set_and_an_operators_to_use() {
    let fleet = Fleet::start(&["ship1"]).await;
    let said = fleet.ops(&["node", "ship1", "--groups", "web", "--from", "ops"]).await.exits(7);
    assert!(said.stderr.contains("no right to publish to `$KV.FLEET_NODES.spec.ship1`"), "{said:?}");
    assert!(said.stderr.contains("for the hub and admins"), "{said:?}");
    let said = fleet.ops(&["ps", "stop", "ship1", "shell", "--from", "ops"]).await.exits(7);
    assert!(said.stderr.contains("all others are for admins"), "{said:?}");
    let said = fleet.ops(&["init", "--diff"]).await.exits(7);
    assert!(said.stderr.contains("`edgeward init` need") && !said.stderr.contains("--from"), "{said:?}");
    fleet.with_key("admin", &["node", "ship1", "--groups", "web", "--from", "admin"]).await.exits(0);
    wait_until(SOON, "ship1 to be a member", async || {
        let said = fleet.ops(&["node", "ship1", "--from", "ops"]).await.exits(0).stdout;
        if said.contains("@web   member") { Ok(()) } else { Err(said) }
    })
    .await;
    fleet.ops(&["run", "@web", "-m", "log", "to all of them", "--from", "ops"]).await.exits(0);
}

#[tokio::test]
async fn another_operators_message_is_read_with_ones_own_rights() {
    let fleet = Fleet::start(&["ship1"]).await;
    let admin = |args: &'static [&str]| fleet.with_key("admin", args);
    // The admin may use any name, also as a sender.
    admin(&["run", "ship1", "-m", "log", "x", "--from", "bob"]).await.exits(0);
    let cli = Cli::edgeward(&fleet.broker.url()).env("NATS_NKEY", &key("ops"));
    for verb in [&["status", "last"][..], &["wait", "last"], &["result", "last"], &["history"]] {
        let said = cli.run(&[verb, &["--from", "bob", "-o", "json"]].concat()).await.ok();
        assert_eq!(rows(&said)[0]["from"], "bob", "{verb:?}");
    }
}

#[tokio::test]
async fn a_node_sends_events_and_says_what_it_may_not_send() {
    let fleet = Fleet::start(&["ship1", "ship2"]).await;
    let state = fleet.state("ship1");
    let inmsg = |text: &str| {
        fs::write(state.join("new"), text).unwrap();
        fs::rename(state.join("new"), state.join("inmsg.txt")).unwrap();
    };
    inmsg(
        r#"[{"to":"ship2","method":"shell","body":"id","id":"not-mine"},{"to":"ship2","method":"log","body":"an event"}]"#,
    );
    // What it may not send holds up nothing.
    wait_until(SOON, "the event", async || {
        read(&fleet.state("ship2").join("log/ship1/default.log")).ends_with(" an event\n")
    })
    .await;
    let told = wait_until(SOON, "the error event", async || {
        let said = fleet.ops(&["errors", "ship1", "--from", "ops"]).await.ok();
        if said.contains("outbox_parked") { Ok(said) } else { Err(said) }
    })
    .await;
    assert!(told.contains("no right to publish to `fleet.msg.ship2.command.ship1.shell` (message not-mine)"), "{told}");
}

#[tokio::test]
async fn with_a_grant_a_node_commands_another_and_hears_what_became_of_it() {
    let mut users = sample_users().unwrap();
    users
        .iter_mut()
        .filter(|user| user.name.as_str() == "ship1")
        .for_each(|u| u.role = Role::Node { may_command: true });
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("nats-server.conf");
    fs::write(&config, render_conf(&Names::default(), &users)).unwrap();
    let fleet = Fleet::with_config(&config, &["ship1", "ship2"]).await;
    let state = fleet.state("ship1");
    fs::write(state.join("inmsg.txt"), r#"{"to":"ship2","method":"shell","body":"echo hi"}"#).unwrap();
    let acks = wait_until(SOON, "the result", async || {
        Some(read(&state.join("acks.jsonl"))).filter(|text| text.ends_with('\n'))
    })
    .await;
    let record = &rows(&acks)[0];
    assert_eq!((record["node"].as_str(), record["state"].as_str()), (Some("ship2"), Some("succeeded")));
    assert_eq!(record["from"], "ship1");
}

#[tokio::test]
async fn without_a_policy_a_node_with_credentials_takes_nothing_but_the_hubs_own() {
    let mut fleet = Fleet::start(&[]).await;
    fleet.agent("ship1", &[]);
    fleet.contact("ship1").await;
    let said = fleet.agents[0].1.stderr();
    assert!(said.contains("no policy file: nothing but the hub's own verbs is accepted"), "{said}");
    assert!(!said.contains('\u{1b}'), "colour off a terminal: {said}");
    for message in [&["-m", "ping"][..], &["true"], &["-m", "log", "x"]] {
        let said = fleet.ops(&[&["run", "ship1", "--from", "ops"], message].concat()).await.exits(7);
        assert!(said.stderr.contains("refused: policy"), "{said:?}");
    }
    assert!(!fleet.state("ship1").join("log").exists());
}

#[tokio::test]
async fn what_one_may_not_is_said_at_once_and_by_name() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    // Another's name: neither his inbox nor his messages.
    for verb in [&["run", "ship1", "true"][..], &["send", "ship1", "true"], &["nodes"], &["errors"], &["history"]] {
        let said = fleet.at_once("ops", &[verb, &["--from", "bob"]].concat()).await.exits(7);
        assert!(said.stderr.contains("no right to the inbox `_INBOX_bob`"), "{said:?}");
        assert!(said.stderr.contains("--from"), "{said:?}");
    }
    let said = fleet.at_once("ops", &["send", "ship1", "true", "--new", "--from", "bob"]).await.exits(7);
    assert!(said.stderr.contains("no right to"), "{said:?}");
    // No name at all: an nkey tells none.
    let said = fleet.at_once("ops", &["nodes"]).await.exits(7);
    assert!(
        said.stderr.contains("no right to the inbox `_INBOX`") && said.stderr.contains("EDGEWARD_FROM"),
        "{said:?}"
    );
    fleet.at_once("ops", &["run", "ship1", "true"]).await.exits(2);
    // A node is no operator, an operator no hub.
    let said = fleet.at_once("ship1", &["send", "ship1", "true", "--new", "--from", "ship1"]).await.exits(7);
    assert!(said.stderr.contains("no right to publish to `fleet.msg.ship1.command.ship1.shell`"), "{said:?}");
    let said = fleet.at_once("ship1", &["nodes", "--from", "ship1"]).await.exits(7);
    assert!(said.stderr.contains("no right to publish to `fleet.api."), "{said:?}");
    fleet.at_once("ops", &["init"]).await.exits(7);
    assert!(fleet.ops(&["history", "--from", "ops"]).await.ok().is_empty(), "nothing was stored");

    // A key that the broker does not know.
    let stranger = fleet.file("stranger.nk", &nkeys::KeyPair::new_user().seed().unwrap());
    let cli = Cli::edgeward(&fleet.broker.url()).within(AT_ONCE);
    let said = cli.run(&["nodes", "--nkey", &stranger]).await.exits(7);
    assert!(said.stderr.contains("does not accept these credentials\nhint: give others with --creds"), "{said:?}");
    let said = cli.run(&["nodes"]).await.exits(7);
    assert!(said.stderr.contains("wants credentials, and there are none\nhint: give them with --creds"), "{said:?}");
    // What cannot be read was never shown to the broker.
    cli.run(&["nodes", "--nkey", "/nothing/here.nk"]).await.exits(2);

    // Services go on trying, since rights can be put right, and say what is wrong.
    let url = fleet.broker.url();
    let wrong = |name: &str, nkey: &str| Process::agent(name, &url).args(&["--nkey", nkey]);
    for (mut agent, complaint) in [
        (wrong("ship2", &key("ship1")), "no right to the inbox `_INBOX_ship2`"),
        (wrong("ship2", &stranger), "authorization violation"),
    ] {
        agent.start();
        wait_until(SOON, complaint, async || {
            let said = agent.stderr();
            if said.contains(complaint) { Ok(()) } else { Err(said) }
        })
        .await;
        assert!(agent.is_running());
    }
    let mut hub = Process::hub(&url).args(&["--nkey", &key("ops")]);
    hub.start();
    assert_eq!(hub.exited(SOON).await.code(), Some(78));
    assert!(hub.stderr().contains("no right to") && hub.stderr().contains("hint: "), "{}", hub.stderr());
    assert!(fleet.hub.is_running());
}

#[tokio::test]
async fn other_hosts_are_not_spoken_to_without_credentials_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().display().to_string();
    let cli = Cli::edgeward(FAR).within(AT_ONCE);
    let agent = ["agent", "--node", "ship1", "--state-dir", &state];
    for (verb, user, code) in [
        (&agent[..], "ship1", 78),
        (&["hub"], "hub", 78),
        (&["init"], "hub", 2),
        (&["nodes"], "ops", 2),
        (&["run", "ship1", "true"], "ops", 2),
    ] {
        let said = cli.run(&[verb, &["--nkey", &key(user)]].concat()).await.exits(code);
        assert!(said.stderr.contains("is a sample key that everybody knows") && said.stderr.contains(FAR), "{said:?}");
        let said = cli.run(verb).await.exits(code);
        assert!(said.stderr.contains("there are no credentials") && said.stderr.contains("--insecure"), "{said:?}");
    }
    // Nor does --insecure make a key that everybody knows one's own.
    cli.run(&["nodes", "--insecure", "--nkey", &key("ops")]).await.exits(2);
    // One far address among near ones is enough.
    let both = format!("nats://127.0.0.1:4222,{FAR}");
    cli.run(&["nodes", "--server", &both]).await.exits(2);

    // With --insecure it starts, says so, and waits for the broker.
    let mut agent = Process::agent("ship1", FAR).args(&["--insecure"]);
    agent.start();
    wait_until(SOON, "the warning", async || {
        let said = agent.stderr();
        if said.contains("--insecure: whoever reaches the broker commands this node") { Ok(()) } else { Err(said) }
    })
    .await;
    assert!(agent.is_running());
}
