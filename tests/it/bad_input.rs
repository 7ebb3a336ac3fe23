//! Whatever is stored, each message has its one terminal record, or its sender a clear error, and agent and hub live on.

mod numbers;
mod unreadable;

use crate::harness::{Cli, Fleet, Process, SOON, Said, wait_until};
use crate::ledger::{ack_of, acks_of, error_of, records};
use edgeward::broker::{Outgoing, PublishError, Stored};
use edgeward::model::error_event::{Code, Severity};
use edgeward::model::record::{By, Record};
use edgeward::model::state::State;
use serde_json::json;

const MIB: usize = 1 << 20;

/// The node answers, and its process is still the one that it was.
async fn lives_on(fleet: &mut Fleet, node: &str, pid: rustix::process::Pid) {
    let pong = fleet.run(node, "ping", "").await;
    assert_eq!(pong.state, State::Succeeded, "{pong:?}");
    let agent = fleet.agent(node);
    assert!(agent.is_running() && agent.pid() == pid, "{}", agent.stderr());
    assert!(fleet.hub.is_running(), "{}", fleet.hub.stderr());
}

/// One bad message: where to, with what, and the code of its refusal.
struct Bad {
    subject: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    code: Code,
}

fn bad(rest: &str, headers: &[(&'static str, &str)], body: impl AsRef<[u8]>, code: Code) -> Bad {
    Bad {
        subject: format!("fleet.msg.ship1.{rest}"),
        headers: headers.iter().map(|(n, v)| (*n, (*v).to_owned())).collect(),
        body: body.as_ref().to_vec(),
        code,
    }
}

fn bad_headers() -> Vec<Bad> {
    let long = "x".repeat(65);
    let huge = "9".repeat(400);
    let pairs = [
        ("Fleet-Colour", "red"),
        ("Fleet-", "x"),
        ("fLEET-cOLOUR", "red"),
        ("Fleet-State", "succeeded"),
        ("Fleet-Timeout", "soon"),
        ("Fleet-Timeout", "0s"),
        ("Fleet-Timeout", "-5s"),
        ("Fleet-Timeout", ""),
        ("Fleet-Timeout", "584942417355y"),
        ("Fleet-Timeout", huge.as_str()),
        ("Fleet-Start-By", "tomorrow"),
        ("Fleet-Start-By", "2026-13-45T99:00:00Z"),
        ("Fleet-Start-By", "tomorrow"),
        ("Fleet-Retries", "-1"),
        ("Fleet-Retries", "many"),
        ("Fleet-Retries", "4294967296"),
        ("Fleet-Retry-Wait", "a while"),
        ("Fleet-Retry-Wait", huge.as_str()),
        ("Fleet-On-Crash", "maybe"),
        ("Fleet-Kind", "event"),
        ("Fleet-Kind", "COMMAND"),
        ("Fleet-Replay-Of", "x"),
        ("Fleet-Replay-Of", huge.as_str()),
        ("Fleet-Id", "s42"),
        ("Fleet-Id", "e42"),
        ("Fleet-Id", "42"),
        ("Fleet-Id", "last"),
        ("Fleet-Id", "-x"),
        ("Fleet-Id", "a.b"),
        ("Fleet-Id", "*"),
        ("Fleet-Id", ">"),
        ("Fleet-Id", "é"),
        ("Fleet-Id", ""),
        ("Fleet-Id", long.as_str()),
    ];
    pairs.into_iter().map(|pair| bad("command.ops.shell", &[pair], "true", Code::BadHeader)).collect()
}

fn bad_bodies() -> Vec<Bad> {
    let deep = "[".repeat(100_000);
    let deep_field = format!("{{\"argv\":[\"true\"],\"env\":{}{}}}", "{\"a\":".repeat(50_000), "}".repeat(50_000));
    let exec = |body: &[u8]| bad("command.ops.exec", &[], body, Code::BadBody);
    vec![
        exec(b""),
        exec(b"{\"argv\":["),
        exec(b"[]"),
        exec(b"null"),
        exec(b"[[\"true\"]]"),
        exec(b"{}"),
        exec(b"{\"argv\":[]}"),
        exec(b"{\"argv\":[\"\"]}"),
        exec(b"{\"argv\":\"true\"}"),
        exec(b"{\"argv\":[1]}"),
        exec(b"{\"argv\":[\"true\"],\"colour\":1}"),
        exec(b"{\"argv\":[\"true\"],\"argv\":[\"false\"]}"),
        exec(b"{\"argv\":[\"true\"],\"cwd\":\"here\"}"),
        exec(b"{\"argv\":[\"a\\u0000b\"]}"),
        exec(b"{\"argv\":[\"true\"]} {\"argv\":[\"true\"]}"),
        exec(b"{\"argv\":[\"\xff\"]}"),
        exec(deep.as_bytes()),
        exec(deep_field.as_bytes()),
        exec(&vec![b'x'; MIB - 1024]),
        bad("command.ops.shell", &[], "", Code::BadBody),
        bad("command.ops.shell", &[], "echo a\0b", Code::BadBody),
        bad("command.ops.ping", &[], "hello", Code::BadBody),
        bad("event.ops.log", &[], "", Code::BadBody),
        bad("event.ops.log", &[], "\n", Code::BadBody),
    ]
}

fn bad_shapes() -> Vec<Bad> {
    vec![
        bad("command.ops.dance", &[], "x", Code::UnknownMethod),
        bad("event.ops.dance", &[], "x", Code::UnknownMethod),
        bad("command.ops.dance", &[], vec![0xff; MIB], Code::UnknownMethod),
        bad("event.ops.shell", &[], "true", Code::WrongKind),
        bad("command.ops.log", &[], "text", Code::WrongKind),
        bad("command.ops.shell.one.two", &[], "true", Code::BadSubject),
        bad("event.ops.log.one.two.three", &[], "text", Code::BadSubject),
        bad("command.o$s.shell", &[], "true", Code::BadSubject),
        bad("command._ops.shell", &[], "true", Code::BadSubject),
        bad("command.ops.sh$ll", &[], "true", Code::BadSubject),
        bad("command.ops.shell.l@ne", &[], "true", Code::BadSubject),
        bad(&format!("command.{}.shell", "x".repeat(300)), &[], "true", Code::BadSubject),
        bad(
            "command.ops.shell",
            &[("Nats-Stream", "FLEET_COMMANDS"), ("Nats-Sequence", "1")],
            "x",
            Code::BrokerHeaders,
        ),
    ]
}

fn bad_control() -> Vec<Bad> {
    vec![
        bad("control.ops.explode", &[], "{}", Code::UnknownMethod),
        bad("control.hub.explode", &[], "{}", Code::UnknownMethod),
        bad("control.ops.cancel.x", &[], "{}", Code::BadSubject),
        bad("control.ops.events", &[], "{\"start\":1}", Code::Policy),
        bad("control.ops.result", &[], "{}", Code::Policy),
        bad("control.hub.events", &[], "", Code::BadBody),
        bad("control.hub.events", &[], "{\"start\":-1}", Code::BadBody),
        bad("control.hub.events", &[], "{\"start\":1e300}", Code::BadBody),
        bad("control.hub.events", &[], "[".repeat(100_000), Code::BadBody),
        bad("control.hub.result", &[], b"\xff\xfe", Code::BadBody),
        bad("control.hub.result", &[], "{\"v\":1}", Code::BadBody),
        bad("control.hub.result", &[], vec![b'{'; MIB - 1024], Code::BadBody),
        bad("control.hub.result", &[("Fleet-Timeout", "soon")], "{}", Code::BadHeader),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_message_has_one_refusal_and_harms_nobody() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let pid = fleet.agent("ship1").pid();
    let all = [bad_headers(), bad_bodies(), bad_shapes(), bad_control()].concat_all();
    let mut sent = Vec::new();
    for one in &all {
        let headers: Vec<(&str, &str)> = one.headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        sent.push(fleet.publish(&one.subject, &headers, &one.body).await);
    }
    lives_on(&mut fleet, "ship1", pid).await;
    for (one, stored) in all.iter().zip(&sent) {
        let what = format!("{} {:?} {:.60}", one.subject, one.headers, String::from_utf8_lossy(&one.body));
        let record = ack_of(&fleet, &stored.stream, stored.seq).await;
        let error = record.error.clone().unwrap_or_else(|| panic!("{what}: {record:?}"));
        assert_eq!((record.state, error.code, record.attempt), (State::Refused, one.code, 0), "{what}: {error:?}");
        assert_eq!((record.node.as_str(), record.by), ("ship1", By::Node), "{what}");
        assert_eq!(record.id.as_str(), derived(stored), "{what}");
    }
    // All of them at once, and the ping behind them: the count is final.
    let acks = records(&fleet, "fleet.ack.ship1.>").await;
    for stored in &sent {
        let of_it = acks.iter().filter(|r| (&r.stream, r.seq) == (&stored.stream, stored.seq)).count();
        assert_eq!(of_it, 1, "{stored:?}");
    }
    error_of(&fleet, "ship1", Severity::Warning, Code::Refused, &derived(&sent[0])).await;
}

/// The id of a message that has none of its own.
fn derived(stored: &Stored) -> String {
    let letter = if stored.stream.ends_with("EVENTS") { 'e' } else { 's' };
    format!("{letter}{}", stored.seq)
}

trait ConcatAll {
    fn concat_all(self) -> Vec<Bad>;
}

impl<const N: usize> ConcatAll for [Vec<Bad>; N] {
    fn concat_all(self) -> Vec<Bad> {
        self.into_iter().flatten().collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_but_good_messages_run() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let pid = fleet.agent("ship1").pid();
    let shell = "fleet.msg.ship1.command.ops.shell";
    let large = [&b"echo large\n#"[..], &vec![b'x'; MIB - 12]].concat();
    assert_eq!(large.len(), MIB);
    let signature = [("Fleet-Signature", "x"), ("Fleet-Signer", "eyJ"), ("Fleet-Signed-At", "never")];
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [u8], &'a [u8]);
    let cases: [Case<'_>; 6] = [
        (shell, &[], &large, b"large\n"),
        (shell, &[], b"printf '\xff\xfe'", b"\xff\xfe"),
        (shell, &signature, b"echo signed", b"signed\n"),
        (shell, &[("X-Trace", "1"), ("nats-msg-id", "a.b.c")], b"echo foreign", b"foreign\n"),
        (shell, &[("Fleet-Timeout", "100y"), ("Fleet-Retry-Wait", "100y")], b"echo patient", b"patient\n"),
        (shell, &[], b"-n; echo dash", b"dash\n"),
    ];
    for (subject, headers, body, stdout) in cases {
        let stored = fleet.publish(subject, headers, body).await;
        let record = ack_of(&fleet, &stored.stream, stored.seq).await;
        assert_eq!(record.stdout_bytes_inline(), stdout.to_vec(), "{headers:?} {record:?}");
        assert_eq!(record.id.as_str(), derived(&stored), "without an id of its own it has that of its place");
    }
    let line = fleet.publish("fleet.msg.ship1.event.ops.log", &[], b"caf\xe9\n\x1b[31m").await;
    assert_eq!(ack_of(&fleet, &line.stream, line.seq).await.state, State::Succeeded);
    lives_on(&mut fleet, "ship1", pid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_message_with_an_id_is_run_only_where_it_is_another_one() {
    let mut fleet = Fleet::start(&["ship1", "ship2"]).await;
    let pid = fleet.agent("ship1").pid();
    let count = fleet.agent("ship1").state_dir().join("count");
    let script = format!("echo x >> {}", count.display());
    let id = [("Fleet-Id", "restart-7")];
    let first = fleet.publish("fleet.msg.ship1.command.ops.shell", &id, &script).await;
    let again = fleet.publish("fleet.msg.ship1.command.ops.shell", &id, &script).await;
    let other_lane = fleet.publish("fleet.msg.ship1.command.ops.shell.b", &id, &script).await;
    let other_method = fleet.publish("fleet.msg.ship1.command.ops.exec", &id, "{\"argv\":[\"true\"]}").await;
    let refused_copy = fleet.publish("fleet.msg.ship1.command.ops.shell", &id, "").await;
    let other_sender = fleet.publish("fleet.msg.ship1.command.bob.shell", &id, &script).await;
    let other_kind = fleet.publish("fleet.msg.ship1.event.ops.log", &id, "line").await;
    let other_target = fleet.publish("fleet.msg.ship2.command.ops.shell", &id, "echo there").await;
    for stored in [&first, &other_sender, &other_kind, &other_target] {
        let record = ack_of(&fleet, &stored.stream, stored.seq).await;
        assert_eq!((record.state, record.id.as_str()), (State::Succeeded, "restart-7"), "{record:?}");
    }
    let copies = [&again, &other_lane, &other_method, &refused_copy];
    let told = wait_until(SOON, "what is said of the copies", async || {
        let told: Vec<Record> = records(&fleet, "fleet.progress.ship1.ops.*.restart-7").await;
        if told.len() == copies.len() { Ok(told) } else { Err(format!("{told:?}")) }
    })
    .await;
    for (copy, record) in copies.into_iter().zip(told) {
        assert_eq!((record.state, record.seq), (State::Duplicate, copy.seq), "{record:?}");
        let original = record.duplicate_of.expect("whose copy it is");
        assert_eq!(original.seq, first.seq);
    }
    lives_on(&mut fleet, "ship1", pid).await;
    for copy in copies {
        assert_eq!(acks_of(&fleet, &copy.stream, copy.seq).await, Vec::new(), "a copy has no terminal record");
    }
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\nx\n", "once for ops, once for bob");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_the_policy_does_not_name_is_refused() {
    let mut fleet = Fleet::start(&["ship2"]).await;
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    let rules = "[[allow]]\nsenders = [\"ops\"]\nkinds = [\"command\"]\nmethods = [\"shell\", \"ping\", \"exec\"]\n";
    std::fs::write(&policy, rules).unwrap();
    let agent = Process::agent("ship1", &fleet.broker.url()).env("EDGEWARD_AGENT__POLICY", policy.to_str().unwrap());
    fleet.add("ship1", agent);
    assert_eq!(fleet.run("ship1", "shell", "echo hi").await.stdout.as_deref(), Some("hi\n"));
    let pid = fleet.agent("ship1").pid();
    let as_user = json!({"argv": ["id"], "user": "daemon"}).to_string();
    for (rest, body) in [
        ("command.bob.shell", "true"),
        ("command.ops.dance", "true"),
        ("event.ops.log", "line"),
        ("control.ops.cancel", "{\"id\":\"x\"}"),
        ("command.hub.shell", "true"),
        ("command.ops.exec", as_user.as_str()),
    ] {
        let stored = fleet.publish(&format!("fleet.msg.ship1.{rest}"), &[], body).await;
        let record = ack_of(&fleet, &stored.stream, stored.seq).await;
        assert_eq!((record.state, record.error.unwrap().code), (State::Refused, Code::Policy), "{rest}");
        assert_eq!(acks_of(&fleet, &stored.stream, stored.seq).await.len(), 1, "{rest}");
    }
    let said = fleet.cli().env("EDGEWARD_FROM", "bob").run(&["run", "ship1", "true"]).await.exits(7);
    assert!(said.stderr.contains("policy"), "{said:?}");
    lives_on(&mut fleet, "ship1", pid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_senders_mistakes_are_told_before_anything_is_stored() {
    let fleet = Fleet::start(&["ship1"]).await;
    let cli = fleet.cli();
    let large = "x".repeat(MIB);
    let cases: [(&[&str], &str, &str); 14] = [
        (&["run", "ship.1", "true"], "", "ship.1"),
        (&["run", "*", "true"], "", "*"),
        (&["run", "sh>p", "true"], "", "sh>p"),
        (&["run", "ship9", "true"], "", "ship9"),
        (&["run", "", "true"], "", "target"),
        (&["run", "ship1", "true", "--id", "s42"], "", "s42"),
        (&["run", "ship1", "true", "--id", "e42"], "", "e42"),
        (&["run", "ship1", "true", "--id", "a.b"], "", "a.b"),
        (&["run", "ship1", "true", "--timeout", "soon"], "", "soon"),
        (&["send", "ship1", "-m", "no.dots", "x"], "", "no.dots"),
        (&["send", "ship1", "--lane", "a.b", "true"], "", "a.b"),
        (&["send", "ship1", "-"], &large, "1048576"),
        (&["send", "--file", "-"], "{\"to\":\"ship1\",", "line 1"),
        (
            &["send", "--file", "-"],
            "{\"to\":\"ship1\",\"method\":\"shell\",\"colour\":\"red\",\"body\":\"true\"}",
            "colour",
        ),
    ];
    for (args, stdin, word) in cases {
        let said: Said = cli.run_with(args, stdin.as_bytes()).await;
        let shown = format!("{args:?}: {:?} {:.400}", said.code, said.stderr);
        assert_eq!(said.code, Some(2), "{shown}");
        assert!(said.stderr.contains(word) && said.stdout.is_empty(), "{shown}");
    }
    let stored = fleet.command("ship1", "ping", "").await;
    assert_eq!(stored, "s1", "nothing was stored before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_given_again_is_the_same_message_or_a_mistake() {
    let fleet = Fleet::start(&["ship1"]).await;
    let cli: Cli = fleet.cli();
    assert_eq!(cli.run(&["run", "ship1", "echo one", "--id", "job-1"]).await.ok(), "one\n");
    assert_eq!(cli.run(&["run", "ship1", "echo one", "--id", "job-1"]).await.ok(), "one\n", "the same: its result");
    let said = cli.run(&["run", "ship1", "echo two", "--id", "job-1"]).await.exits(2);
    assert!(said.stderr.contains("job-1") && said.stderr.contains("used"), "{said:?}");
    assert_eq!(records(&fleet, "fleet.ack.>").await.len(), 1);
}
