//! The rights of each role, tried on a real nats-server under the sample configuration: what must work, what must be
//! refused, and that nobody can forge by having the broker answer to a subject of his choice.

mod world;

use async_nats::HeaderMap;
use edgeward::model::rights::conf::{is_sample_key, render_conf, sample_users};
use edgeward::model::subject::Names;
use futures::StreamExt;
use serde_json::json;
use std::collections::BTreeMap;
use std::process::Command;
use world::{Connected, PATIENCE, World, sample_key_file};

#[test]
fn rights_are_what_the_sample_configuration_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/nats-server.conf");
    let rendered = render_conf(&Names::default(), &sample_users().unwrap());
    if std::env::var_os("EDGEWARD_BLESS").is_some() {
        std::fs::write(path, &rendered).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == rendered,
        "nats-server.conf is not what src/model/rights.rs says; make it anew: EDGEWARD_BLESS=1 cargo test --test it rights"
    );
}

#[test]
fn the_sample_seeds_belong_to_the_sample_keys() {
    for user in sample_users().unwrap() {
        let seed = std::fs::read_to_string(sample_key_file(user.name.as_str())).unwrap();
        let public = nkeys::KeyPair::from_seed(seed.trim()).unwrap().public_key();
        assert_eq!(public, user.key, "{}", user.name);
        assert!(is_sample_key(&public));
    }
}

/// Takes and acks the two messages that wait for `ship1` on each stream.
async fn a_node_takes_its_messages(ship: &Connected, hub: &Connected, ack_prefix: &str) {
    for (stream, kind) in [("FLEET_COMMANDS", "command"), ("FLEET_EVENTS", "event")] {
        for _ in 0..2 {
            hub.ask(&format!("fleet.msg.ship1.{kind}.hub.log"), "body").await;
        }
        let consumer = format!("{stream}.ship1");
        // Its `num_pending` may leave out what was stored a moment ago, so it is not looked at.
        ship.ask(&format!("fleet.api.CONSUMER.RESET.{consumer}"), r#"{"seq":1}"#).await;
        ship.ask(&format!("fleet.api.CONSUMER.INFO.{consumer}"), "").await;
        let pull = json!({"batch": 2, "expires": PATIENCE.as_nanos()}).to_string();
        let messages = ship.answers(&format!("fleet.api.CONSUMER.MSG.NEXT.{consumer}"), pull, 2).await;
        assert_eq!(messages.len(), 2, "{stream}");
        let reply = messages[1].reply.clone().unwrap();
        assert!(reply.starts_with(ack_prefix) && reply.contains(&format!(".{consumer}.")), "{reply}");
        ship.ask(&reply, "+ACK").await;
        assert_eq!(hub.ack_floor(stream, "ship1").await, 2);
    }
}

#[tokio::test]
async fn a_node_takes_and_acks_its_messages() {
    let world = World::start("").await;
    let (ship, hub) = (world.user("ship1").await, world.user("hub").await);
    a_node_takes_its_messages(&ship, &hub, "$JS.ACK.FLEET_").await;
}

#[tokio::test]
async fn a_node_acks_in_the_longer_form_too() {
    let world = World::start("feature_flags { js_ack_fc_v2: true }").await;
    let (ship, hub) = (world.user("ship1").await, world.user("hub").await);
    a_node_takes_its_messages(&ship, &hub, "$JS.ACK._.").await;
}

#[tokio::test]
async fn a_node_writes_its_records_and_state_once() {
    let world = World::start("").await;
    let ship = world.user("ship1").await;
    for subject in [
        "fleet.ack.ship1.ops.shell.s1",
        "fleet.progress.ship1.ops.shell.s1",
        "fleet.late.ship1.ops.shell.s1",
        "fleet.output.ship1.ops.s1.1",
        "fleet.error.ship1.warning.failed",
        "$KV.FLEET_NODES.hello.ship1",
        "fleet.msg.ship2.event.ship1.log.audit",
        "fleet.msg.@all.event.ship1.log",
    ] {
        assert!(ship.ask(subject, "x").await["seq"].is_u64(), "{subject}");
    }
    let first = |expected: &str| HeaderMap::from_iter([expect(expected)]);
    for subject in ["fleet.ack.ship1.ops.shell.s9", "$KV.FLEET_NODES.status.ship1"] {
        assert_eq!(code(&ship.answer(subject, first("0"), "1").await.payload), 0, "{subject}");
        assert_eq!(code(&ship.answer(subject, first("0"), "2").await.payload), 10071, "{subject}");
    }
    for (request, body) in [
        ("KV_FLEET_NODES.$KV.FLEET_NODES.spec.ship1", r#"{"v":1}"#),
        ("KV_FLEET_NODES.$KV.FLEET_NODES.status.ship1", "1"),
        ("FLEET_ACKS.fleet.ack.ship1.ops.shell.s9", "1"),
    ] {
        let answer = ship.answer(&format!("fleet.api.DIRECT.GET.{request}"), HeaderMap::new(), "").await;
        assert_eq!(answer.payload, body, "{request}");
        // The same subject with another's in the body reads nothing else.
        let other = r#"{"last_by_subj":"$KV.FLEET_NODES.spec.ship2"}"#;
        let answer = ship.answer(&format!("fleet.api.DIRECT.GET.{request}"), HeaderMap::new(), other).await;
        assert!(answer.payload.is_empty(), "{request}: {:?}", answer.payload);
    }
}

fn expect(sequence: &str) -> (async_nats::HeaderName, async_nats::HeaderValue) {
    (async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, sequence.parse().unwrap())
}

fn code(payload: &[u8]) -> u64 {
    let answer: serde_json::Value = serde_json::from_slice(payload).unwrap();
    answer["error"]["err_code"].as_u64().unwrap_or(0)
}

#[tokio::test]
async fn a_node_is_refused_what_is_anothers() {
    let world = World::start("").await;
    let mut ship = world.user("ship1").await;
    for subject in [
        "fleet.api.CONSUMER.MSG.NEXT.FLEET_COMMANDS.ship2",
        "fleet.api.CONSUMER.RESET.FLEET_EVENTS.ship2",
        "fleet.api.CONSUMER.INFO.FLEET_COMMANDS.ship2",
        "fleet.api.CONSUMER.CREATE.FLEET_COMMANDS.ship1",
        "fleet.api.STREAM.INFO.FLEET_COMMANDS",
        "fleet.api.DIRECT.GET.FLEET_COMMANDS",
        "fleet.api.DIRECT.GET.FLEET_ACKS",
        "fleet.api.DIRECT.GET.FLEET_ACKS.fleet.ack.ship2.ops.shell.s1",
        "fleet.api.DIRECT.GET.KV_FLEET_NODES.$KV.FLEET_NODES.spec.ship2",
        "fleet.api.DIRECT.GET.KV_FLEET_NODES.$KV.FLEET_NODES.status.ship2",
        "$JS.API.INFO",
        "$JS.API.CONSUMER.MSG.NEXT.FLEET_COMMANDS.ship1",
        "$JS.ACK.FLEET_COMMANDS.ship2.1.1.1.1.0",
        "$JS.ACK._.x.FLEET_COMMANDS.ship2.1.1.1.1.0",
        "fleet.ack.ship2.ops.shell.s1",
        "fleet.progress.ship2.ops.shell.s1",
        "fleet.late.ship2.ops.shell.s1",
        "fleet.output.ship2.ops.s1.1",
        "fleet.error.ship2.warning.failed",
        "$KV.FLEET_NODES.status.ship2",
        "$KV.FLEET_NODES.hello.ship2",
        "$KV.FLEET_NODES.spec.ship1",
        "fleet.msg.ship2.event.ship2.log",
        "fleet.msg.ship2.command.ship1.shell",
        "fleet.msg.ship2.control.ship1.cancel",
        "fleet.msg.ship1.control.hub.member",
        "fleet.msg.ship1.event.hub.member",
        "fleet.stored.ack.ship1.ops.shell.s1",
        "_INBOX_ship2.x",
    ] {
        ship.refused(subject).await;
    }
    for subject in [">", "fleet.>", "fleet.msg.ship1.>", "fleet.stored.>", "_INBOX_ship2.>", "_INBOX.>"] {
        ship.refused_to_subscribe(subject).await;
    }
    let granted = world.user("van3").await;
    assert_eq!(granted.ask("fleet.msg.ship2.command.van3.shell", "true").await["stream"], "FLEET_COMMANDS");
}

#[tokio::test]
async fn an_operator_is_refused_what_is_not_his() {
    let world = World::start("").await;
    let (mut bob, mut eye, mut ops) = (world.user("bob").await, world.user("eye").await, world.user("ops").await);
    for subject in
        ["fleet.msg.ship1.event.bob.log", "fleet.msg.ship1.event.bob.log.a", "fleet.msg.x.control.bob.cancel"]
    {
        assert!(bob.ask(subject, "x").await["seq"].is_u64(), "{subject}");
    }
    for subject in ["fleet.msg.ship2.event.bob.log", "fleet.msg.ship1.event.bob.ping", "fleet.msg.ship1.event.ops.log"]
    {
        bob.refused(subject).await;
        eye.refused(subject).await;
    }
    for subject in [
        "fleet.msg.ship1.command.bob.shell",
        "fleet.msg.ship1.control.ops.stop",
        "fleet.msg.ship1.control.hub.result",
        "fleet.msg.ship1.control.hub.member",
        "fleet.msg.ship1.event.hub.member",
        "fleet.ack.ship1.ops.shell.s1",
        "$KV.FLEET_NODES.spec.ship1",
        "fleet.api.CONSUMER.CREATE.FLEET_COMMANDS.ship1",
        "fleet.api.CONSUMER.MSG.NEXT.FLEET_COMMANDS.ship1",
        "fleet.api.CONSUMER.DELETE.FLEET_COMMANDS.ship1",
        "fleet.api.STREAM.PURGE.FLEET_COMMANDS",
        "fleet.api.STREAM.MSG.DELETE.FLEET_COMMANDS",
        "$JS.API.STREAM.INFO.FLEET_COMMANDS",
        "_INBOX_eye.x",
    ] {
        ops.refused(subject).await;
    }
    for subject in ["fleet.msg.>", "fleet.ack.>", "_INBOX_eye.>"] {
        ops.refused_to_subscribe(subject).await;
    }
    assert_eq!(eye.ask("fleet.api.STREAM.INFO.FLEET_EVENTS", "").await["state"]["messages"], 2);
}

/// Requests of which the broker's answer would go to `reply`.
fn answered(names: &[&str]) -> Vec<(String, &'static str)> {
    let requests = |subject: &&str| {
        let body = match *subject {
            s if s.contains("MSG.NEXT") => r#"{"batch":5,"no_wait":true}"#,
            s if s.contains("RESET") || s.contains("STREAM.MSG.GET") || s.contains("DIRECT.GET.FLEET_EVENTS") => {
                r#"{"seq":1}"#
            }
            s if s.contains("DIRECT.GET.FLEET_COMMANDS") => r#"{"next_by_subj":"fleet.msg.>","seq":1,"batch":5}"#,
            _ => "",
        };
        ((*subject).to_owned(), body)
    };
    names.iter().map(requests).collect()
}

/// Where a forger would like the broker to write.
const FORGED: [&str; 5] = [
    "fleet.msg.ship2.command.forger.shell",
    "fleet.msg.ship2.event.forger.log",
    "fleet.ack.ship2.forger.shell.s1",
    "$KV.FLEET_NODES.spec.forger",
    "$KV.FLEET_NODES.status.forger",
];

async fn forge(user: &Connected, requests: &[(String, &str)]) {
    for (subject, body) in requests {
        for reply in FORGED {
            user.send(subject, reply, body).await;
        }
        // Answered after all of the above, so that their answers have gone wherever they go.
        let inbox = user.client.new_inbox();
        let mut replies = user.client.subscribe(inbox.clone()).await.unwrap();
        user.send(subject, &inbox, body).await;
        tokio::time::timeout(PATIENCE, replies.next()).await.unwrap_or_else(|_| panic!("{subject}: no answer"));
    }
}

fn forged(stored: &BTreeMap<String, u64>) -> Vec<&String> {
    stored.keys().filter(|subject| subject.contains("forger")).collect()
}

const NODE_ASKS: [&str; 11] = [
    "fleet.api.INFO",
    "fleet.api.CONSUMER.MSG.NEXT.FLEET_COMMANDS.ship1",
    "fleet.api.CONSUMER.RESET.FLEET_COMMANDS.ship1",
    "fleet.api.CONSUMER.INFO.FLEET_EVENTS.ship1",
    "fleet.api.DIRECT.GET.KV_FLEET_NODES.$KV.FLEET_NODES.spec.ship1",
    "fleet.api.DIRECT.GET.FLEET_ACKS.fleet.ack.ship1.ops.shell.s1",
    "fleet.ack.ship1.ops.shell.s1",
    "fleet.error.ship1.warning.failed",
    "fleet.output.ship1.ops.s1.1",
    "fleet.msg.ship2.event.ship1.log",
    "$KV.FLEET_NODES.status.ship1",
];

const OPERATOR_ASKS: [&str; 8] = [
    "fleet.api.DIRECT.GET.FLEET_COMMANDS",
    "fleet.api.DIRECT.GET.FLEET_EVENTS",
    "fleet.api.DIRECT.GET.FLEET_EVENTS.fleet.msg.ship1.event.hub.log",
    "fleet.api.STREAM.MSG.GET.FLEET_COMMANDS",
    "fleet.api.STREAM.INFO.FLEET_COMMANDS",
    "fleet.api.CONSUMER.INFO.FLEET_COMMANDS.ship1",
    "fleet.msg.ship1.command.ops.shell",
    "fleet.api.INFO",
];

#[tokio::test]
async fn nobody_forges_by_reply_subjects() {
    let world = World::start("").await;
    let (hub, ship, ops) = (world.user("hub").await, world.user("ship1").await, world.user("ops").await);
    for subject in ["fleet.msg.ship1.command.hub.shell", "fleet.msg.ship1.event.hub.log"] {
        hub.ask(subject, "true").await;
    }
    forge(&ship, &answered(&NODE_ASKS)).await;
    let commands = |stored: &BTreeMap<String, u64>| stored["fleet.msg.ship1.command.hub.shell"];
    assert_eq!(commands(&hub.stored().await), 1, "a pull with a forged reply stored its messages again");
    forge(&ops, &answered(&OPERATOR_ASKS)).await;
    let stored = hub.stored().await;
    assert!(forged(&stored).is_empty(), "{:?}", forged(&stored));
    assert_eq!(commands(&stored), 1);

    // In the streams' own account the very same requests do forge: what was tried above can succeed.
    let own: Vec<String> = OPERATOR_ASKS.iter().map(|ask| ask.replace("fleet.api", "$JS.API")).collect();
    forge(&hub, &answered(&own.iter().map(String::as_str).collect::<Vec<_>>())).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while forged(&hub.stored().await).len() < FORGED.len() {
        assert!(tokio::time::Instant::now() < deadline, "the attacks are blunt");
    }
}

#[tokio::test]
async fn a_node_cannot_wipe_the_bucket() {
    let world = World::start("").await;
    let (hub, ship) = (world.user("hub").await, world.user("ship1").await);
    for rollup in ["all", "sub"] {
        let headers = HeaderMap::from_iter([("Nats-Rollup".parse().unwrap(), rollup.parse().unwrap())]);
        let answer = ship.answer("$KV.FLEET_NODES.status.ship1", headers, "{}").await;
        assert_ne!(code(&answer.payload), 0, "a rollup was taken");
    }
    assert_eq!(hub.stored().await.len(), 3, "every spec is still there");
}

#[tokio::test]
async fn a_large_answer_reaches_an_operator_whole() {
    const MANY: usize = 10_000;
    let world = World::start("").await;
    let (hub, ops) = (world.user("hub").await, world.user("ops").await);
    let body = "x".repeat(500);
    for n in 1..MANY {
        hub.client.publish(format!("fleet.ack.n{n}.ops.shell.a"), body.clone().into()).await.unwrap();
    }
    assert_eq!(hub.ask(&format!("fleet.ack.n{MANY}.ops.shell.a"), &body).await["seq"], MANY);
    let request = json!({"next_by_subj": "fleet.ack.*.ops.shell.a", "seq": 1, "batch": MANY}).to_string();
    assert_eq!(ops.answers("fleet.api.DIRECT.GET.FLEET_ACKS", request, usize::MAX).await.len(), MANY);
}

#[tokio::test]
async fn an_operator_follows_what_is_stored() {
    let world = World::start("").await;
    let (ops, ship) = (world.user("ops").await, world.user("ship1").await);
    let mut records = ops.client.subscribe("fleet.stored.ack.*.ops.>").await.unwrap();
    let mut nodes = ops.client.subscribe("fleet.stored.nodes.status.>").await.unwrap();
    ops.ask("fleet.api.INFO", "").await;
    ship.ask("fleet.ack.ship1.ops.shell.s1", "done").await;
    ship.ask("$KV.FLEET_NODES.status.ship1", "well").await;
    for (follow, body) in [(&mut records, "done"), (&mut nodes, "well")] {
        let next = tokio::time::timeout(PATIENCE, follow.next()).await.unwrap().unwrap();
        assert_eq!(next.payload, body);
    }
}

#[tokio::test]
async fn the_plain_command_line_works_for_an_operator() {
    // Skipped loudly where there is none; required in CI.
    let Some(program) = crate::harness::nats_binary().await.map(|found| &found.path) else { return };
    let world = World::start("").await;
    let ship = world.user("ship1").await;
    let nats = |line: &str, body: Option<&str>| {
        let output = Command::new(program)
            .args(["--server", &world.url, "--inbox-prefix", "_INBOX_ops", "--js-api-prefix", "fleet.api", "--nkey"])
            .arg(sample_key_file("ops"))
            .args(line.split_whitespace().chain(body))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "nats {line}: {text}");
        text
    };
    nats("pub -J --no-templates fleet.msg.ship1.command.ops.shell", Some("uname -a"));
    nats(
        "pub -J --no-templates -H Fleet-Timeout:20s -H Nats-Msg-Id:restart-7 fleet.msg.@web.command.ops.shell",
        Some("id"),
    );
    ship.ask("fleet.ack.ship1.ops.shell.s1", r#"{"state":"succeeded"}"#).await;
    ship.ask("$KV.FLEET_NODES.status.ship1", r#"{"beat":7}"#).await;
    assert!(nats("stream get FLEET_ACKS --last-for fleet.ack.ship1.ops.shell.s1", None).contains("succeeded"));
    assert!(nats("stream get FLEET_COMMANDS 2", None).contains("Fleet-Timeout: 20s"));
    assert!(nats("consumer info FLEET_COMMANDS ship1", None).contains("fleet.msg.ship1.>"));
    assert!(nats("kv get FLEET_NODES status.ship1 --raw", None).contains(r#"{"beat":7}"#));

    let mut follower = tokio::process::Command::new(program)
        .args(["--server", &world.url, "--inbox-prefix", "_INBOX_ops", "--nkey"])
        .arg(sample_key_file("ops"))
        .args(["sub", "fleet.stored.ack.*.ops.>", "--count", "1", "--raw"])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // Each record is told to those who follow at that moment: write until one has come.
    let mut number = 2;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while follower.try_wait().unwrap().is_none() {
        assert!(tokio::time::Instant::now() < deadline, "`nats sub` saw no record");
        ship.ask(&format!("fleet.ack.ship1.ops.shell.s{number}"), "followed").await;
        number += 1;
    }
    let output = follower.wait_with_output().await.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("followed"));
}
