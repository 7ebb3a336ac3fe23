//! Messages that no client library writes, published byte by byte: the broker stores them, and nobody may fall over one.

use super::harness::{Cli, Fleet, Process, SOON, wait_until};
use edgeward::broker::From;
use edgeward::model::id::StreamSeq;
use edgeward::model::record::Record;
use serde_json::Value;
use std::collections::BTreeMap;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// The broker's protocol as it is on the wire, without a library's opinion on headers and subjects.
struct Wire(BufReader<TcpStream>);

impl Wire {
    async fn connect(url: &str) -> Wire {
        let mut stream = TcpStream::connect(url.trim_start_matches("nats://")).await.unwrap();
        stream.write_all(b"CONNECT {\"headers\":true,\"verbose\":false}\r\nSUB stored 1\r\n").await.unwrap();
        Wire(BufReader::new(stream))
    }

    /// Publishes a header block, which need not be one, and a body; the sequence under which they are stored.
    async fn publish(&mut self, subject: &[u8], block: &[u8], body: &str) -> StreamSeq {
        let sizes = format!(" stored {} {}\r\n", block.len(), block.len() + body.len());
        let message = [b"HPUB ", subject, sizes.as_bytes(), block, body.as_bytes(), b"\r\n"].concat();
        self.0.get_mut().write_all(&message).await.unwrap();
        let answer = timeout(SOON, self.answer()).await.expect("the broker's word");
        let seq = serde_json::from_slice::<Value>(&answer).ok().and_then(|answer| answer["seq"].as_u64());
        let told = || format!("{}: {}", subject.escape_ascii(), String::from_utf8_lossy(&answer));
        StreamSeq(seq.unwrap_or_else(|| panic!("{}", told())))
    }

    async fn answer(&mut self) -> Vec<u8> {
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).await.unwrap(), 0, "the broker hung up");
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["PING"] => self.0.get_mut().write_all(b"PONG\r\n").await.unwrap(),
                ["MSG", .., size] => {
                    let mut answer = vec![0; size.parse::<usize>().unwrap() + 2];
                    self.0.read_exact(&mut answer).await.unwrap();
                    return answer;
                }
                ["-ERR", ..] => panic!("{line}"),
                _ => {}
            }
        }
    }
}

/// Header blocks that are none, or hold what no header may.
const BLOCKS: &[&[u8]] = &[
    b"NATS/1.0\r\nX-Name: \xff\xfe\r\n\r\n",
    b"NATS/1.0\r\nX-\xff: a\r\n\r\n",
    b"NATS/1.0\r\nno colon here\r\n\r\n",
    b"NATS/1.0\r\nA Name: a\r\n\r\n",
    b"NATS/1.0\r\n: no name\r\n\r\n",
    b"NATS/1.0\r\nX-Name: a\rb\r\n\r\n",
    b"NATS/1.0\r\nX-Name: a\r\n b\rc\r\n\r\n",
    b"NATS/1.0\r\nX\0: a\r\n\r\n",
    b"HTTP/1.1\r\nX-Name: a\r\n\r\n",
    b"\r\n\r\n",
    b"xy",
    b"\xff\xff\xff\xff",
    // Without an end; the first ones say what only the broker says: a pull is over, the consumer is gone, nobody is there.
    b"NATS/1.0 404 No Messages",
    b"NATS/1.0 100 Idle Heartbeat",
    b"NATS/1.0 409 Consumer Deleted",
    b"NATS/1.0 503",
    b"NATS/1.0 what is this",
    b"NATS/1.0\r\nno colon",
];

/// A block that ends nats-server 2.15.1 where a consumer asks for headers alone, or its stream republishes.
const ONE_BYTE: &[u8] = b"x";

/// Subjects with the bytes of a lane or method that is none.
const SUBJECTS: &[&[u8]] = &[
    b"fleet.msg.ship1.command.ops.sh\xffell",
    b"fleet.msg.ship1.command.ops.shell.\xc3\x28",
    "fleet.msg.ship1.command.ops.shell.a\u{a0}b".as_bytes(),
    "fleet.msg.ship1.command.ops.shell.a\u{2003}b\u{85}".as_bytes(),
    b"fleet.msg.ship1.command.ops.shell.a\x0bb\x0cc",
];

/// A good block.
const PLAIN: &[u8] = b"NATS/1.0\r\nX-Name: a\r\n\r\n";

/// How many terminal records each message has, and the codes in them.
async fn codes(fleet: &Fleet) -> BTreeMap<StreamSeq, Vec<String>> {
    let acks = fleet.client.read_all("FLEET_ACKS", "fleet.ack.>", From::Seq(StreamSeq(1)), 10_000).await.unwrap();
    let mut codes: BTreeMap<StreamSeq, Vec<String>> = BTreeMap::new();
    for record in acks.iter().filter_map(|ack| serde_json::from_slice::<Record>(&ack.body).ok()) {
        let code = record.error.map_or_else(String::new, |error| error.code.to_string());
        codes.entry(record.seq).or_default().push(format!("{} {code}", record.state));
    }
    codes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_read_is_refused_and_ends_nobody() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let (hub, agent) = (fleet.hub.pid(), fleet.agent("ship1").pid());
    let mut wire = Wire::connect(&fleet.broker.url()).await;
    let mut expected: BTreeMap<StreamSeq, Vec<String>> = BTreeMap::new();
    for block in BLOCKS.iter().copied().chain([ONE_BYTE]) {
        // A lane token that reads as a pull's number.
        for subject in ["fleet.msg.ship1.command.ops.shell", "fleet.msg.ship1.command.ops.shell.1"] {
            let seq = wire.publish(subject.as_bytes(), block, "touch poisoned").await;
            expected.insert(seq, vec!["refused bad_header".to_owned()]);
        }
    }
    for subject in SUBJECTS {
        let seq = wire.publish(subject, PLAIN, "touch poisoned").await;
        expected.insert(seq, vec!["refused bad_subject".to_owned()]);
    }
    let record = fleet.run("ship1", "shell", "echo alive").await;
    assert_eq!(record.stdout.as_deref(), Some("alive\n"));
    expected.insert(record.seq, vec!["succeeded ".to_owned()]);

    wait_until(SOON, "one record each", async || {
        let found = codes(&fleet).await;
        if found == expected { Ok(()) } else { Err(format!("{found:#?}")) }
    })
    .await;
    assert!(fleet.hub.is_running() && fleet.agent("ship1").is_running());
    assert_eq!((fleet.hub.pid(), fleet.agent("ship1").pid()), (hub, agent));
    let log = format!("{}{}", fleet.hub.stderr(), fleet.agent("ship1").stderr());
    assert!(!log.contains("panicked") && !log.contains("the link was lost"), "{log}");

    operators_read(&fleet.cli(), &expected).await;
    // What was refused stays where it is: a session that begins at such a message goes on after it.
    wire.publish(b"fleet.msg.ship1.command.ops.shell", b"NATS/1.0 404 No Messages", "touch poisoned").await;
    fleet.agent("ship1").kill();
    fleet.start_agent("ship1").await;
    assert_eq!(fleet.run("ship1", "shell", "echo again").await.stdout.as_deref(), Some("again\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_finds_a_former_ones_consumer_of_headers_alone_changes_it_before_it_asks() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    fleet.run("ship1", "shell", "true").await;
    fleet.hub.kill();
    let client = async_nats::connect(fleet.broker.url()).await.unwrap();
    let config = serde_json::json!({
        "durable_name": "_hub", "name": "_hub", "ack_policy": "explicit", "ack_wait": 10_000_000_000_u64, "max_deliver": -1,
        "max_ack_pending": 20_000, "deliver_policy": "all", "headers_only": true, "num_replicas": 0,
    });
    let mut wire = Wire::connect(&fleet.broker.url()).await;
    let subjects = ["fleet.msg.ship1.command.ops.shell", "fleet.msg.ship1.event.ops.log"];
    for (stream, subject) in ["FLEET_COMMANDS", "FLEET_EVENTS"].into_iter().zip(subjects) {
        let body = serde_json::json!({ "stream_name": stream, "config": config }).to_string();
        let path = format!("$JS.API.CONSUMER.CREATE.{stream}._hub");
        let answer = client.request(path, body.into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!(answer["config"]["headers_only"], true, "{answer}");
        wire.publish(subject.as_bytes(), ONE_BYTE, "bc").await;
    }
    let broker = fleet.broker.server.pid();
    fleet.hub.start();
    // Enrolled by this hub: it reads what is stored.
    let url = fleet.broker.url();
    fleet.add("ship2", Process::agent("ship2", &url));
    fleet.run("ship2", "shell", "true").await;
    wait_until(SOON, "the message to be refused", async || {
        let found = codes(&fleet).await;
        let is_there = found.values().flatten().any(|told| told == "refused bad_header");
        if is_there { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    assert_eq!(fleet.broker.server.pid(), broker, "{}", fleet.broker.server.log_tail(20));
}

/// Each message by itself, and all of them together.
async fn operators_read(cli: &Cli, expected: &BTreeMap<StreamSeq, Vec<String>>) {
    for (seq, ended) in expected {
        let said = cli.run(&["status", &seq.to_string()]).await;
        let state = ended[0].split(' ').next().unwrap();
        assert!(said.stdout.contains(state), "{seq} {state}: {said:#?}");
    }
    let said = cli.run(&["history", "ship1", "-o", "json", "--limit", "1000"]).await.ok();
    assert_eq!(said.lines().count(), expected.len(), "{said}");
}

/// A broker that greets like one and then says what makes the client library panic.
async fn deadly_broker() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let info = br#"INFO {"server_id":"A","version":"2.15.1","proto":1,"headers":true,"max_payload":1048576}"#;
        while let Ok((mut stream, _)) = listener.accept().await {
            let deadly = [&info[..], b"\r\nPONG\r\n-ERR\r\n"].concat();
            stream.write_all(&deadly).await.unwrap();
            // Until the client hangs up.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_gone_for_good_ends_agent_and_hub_to_be_started_again() {
    let url = deadly_broker().await;
    for mut process in [Process::agent("ship1", &url), Process::hub(&url)] {
        process.start();
        assert_eq!(process.exited(SOON).await.code(), Some(1), "{}", process.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_and_node_state_that_cannot_be_read_end_nobody() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let (hub, agent) = (fleet.hub.pid(), fleet.agent("ship1").pid());
    let mut wire = Wire::connect(&fleet.broker.url()).await;
    for (n, block) in BLOCKS.iter().enumerate() {
        for subject in [
            format!("fleet.ack.ship1.ops.shell.x{n}"),
            format!("fleet.progress.ship1.ops.shell.x{n}"),
            format!("fleet.late.ship1.ops.shell.x{n}"),
            format!("fleet.output.ship1.ops.x{n}.1"),
            format!("fleet.error.ship1.warning.x{n}"),
            format!("$KV.FLEET_NODES.status.ghost{n}"),
            format!("$KV.FLEET_NODES.hello.ghost{n}"),
            format!("$KV.FLEET_NODES.spec.ghost{n}"),
            format!("fleet.msg.ship1.event.ops.log.x{n}"),
        ] {
            wire.publish(subject.as_bytes(), block, "{}").await;
        }
    }
    wire.publish(b"fleet.msg.ship1.event.ops.log.x", ONE_BYTE, "{}").await;
    for subject in [
        &b"fleet.ack.ship1.ops.shell.\xff"[..],
        b"fleet.error.ship1.warning.\xff",
        b"$KV.FLEET_NODES.status.\xff",
        b"$KV.FLEET_NODES.hello.\xff",
        b"$KV.FLEET_NODES.spec.\xff",
    ] {
        wire.publish(subject, PLAIN, "{}").await;
    }

    // The hub looks through all node state when it comes back.
    assert_eq!(fleet.run("ship1", "shell", "echo alive").await.stdout.as_deref(), Some("alive\n"));
    assert!(fleet.hub.is_running() && fleet.agent("ship1").is_running());
    assert_eq!((fleet.hub.pid(), fleet.agent("ship1").pid()), (hub, agent));
    fleet.hub.restart();
    let url = fleet.broker.url();
    fleet.add("ship2", Process::agent("ship2", &url));
    assert_eq!(fleet.run("ship2", "shell", "echo new").await.stdout.as_deref(), Some("new\n"));

    let cli = fleet.cli();
    assert!(cli.run(&["status", "last"]).await.ok().contains("succeeded"));
    for verb in [&["history"][..], &["nodes"], &["errors"]] {
        cli.run(verb).await.ok();
    }
    let log = format!("{}{}", fleet.hub.stderr(), fleet.agent("ship1").stderr());
    assert!(!log.contains("panicked") && !log.contains("the link was lost"), "{log}");
}
