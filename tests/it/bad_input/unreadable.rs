//! Subjects and headers of another shape, what no client library can read, and records that are none.

use super::*;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// A client without manners: what it publishes is not looked at before it leaves.
struct Wire {
    stream: BufReader<TcpStream>,
}

impl Wire {
    async fn connect(fleet: &Fleet) -> Wire {
        let stream = TcpStream::connect(("127.0.0.1", fleet.broker.server.port())).await.unwrap();
        let mut wire = Wire { stream: BufReader::new(stream) };
        wire.send(b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\nSUB _INBOX.wire 1\r\n")
            .await;
        wire
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).await.unwrap();
    }

    /// Publishes; the broker's word where it stored the message. The headers are a block as it stands on the wire.
    async fn store(&mut self, subject: impl AsRef<[u8]>, headers: &[u8], body: &[u8]) -> Option<Stored> {
        let sizes = if headers.is_empty() {
            format!(" _INBOX.wire {}\r\n", body.len())
        } else {
            format!(" _INBOX.wire {} {}\r\n", headers.len(), headers.len() + body.len())
        };
        let verb: &[u8] = if headers.is_empty() { b"PUB " } else { b"HPUB " };
        self.send(&[verb, subject.as_ref(), sizes.as_bytes(), headers, body, b"\r\n"].concat()).await;
        loop {
            let line = tokio::time::timeout(SOON, self.line()).await.expect("an answer");
            if line.starts_with(b"{\"stream\"") {
                return serde_json::from_slice(&line).ok();
            }
            // Refused by the stream, stored by none, or no subject at all.
            if [&b"{\"error\""[..], b"NATS/1.0 503", b"-ERR"].iter().any(|no| line.starts_with(no)) {
                return None;
            }
        }
    }

    async fn line(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        assert!(self.stream.read_until(b'\n', &mut line).await.unwrap() > 0, "the broker hung up");
        line
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_another_shape_are_refused_at_the_sender_or_by_the_hub() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let pid = fleet.agent("ship1").pid();
    for subject in [
        "fleet.msg.ship1",
        "fleet.msg.ship1.shell",
        "fleet.msg.ship1.command",
        "fleet.msg.ship1.command.ops",
        "fleet.msg.ship.one.command.ops.shell",
        "fleet.msg.ship1.order.ops.shell",
        "fleet.msg.command.ops.shell",
    ] {
        let refused = fleet.client.publish(&Outgoing::new(subject, "true"), SOON).await.unwrap_err();
        assert!(matches!(refused, PublishError::NoStream), "{subject}: {refused:?}");
    }
    for to in ["sh$p", "-ship", "_ship", "@", "@a.b", &"x".repeat(64)] {
        let subject = format!("fleet.msg.{to}.command.ops.shell");
        match fleet.client.publish(&Outgoing::new(&subject, "true"), SOON).await {
            Ok(stored) => {
                let record = ack_of(&fleet, &stored.stream, stored.seq).await;
                assert_eq!((record.node.as_str(), record.by), ("_", By::Hub), "{to}: {record:?}");
                assert_eq!(acks_of(&fleet, &stored.stream, stored.seq).await.len(), 1, "{to}");
            }
            Err(refused) => assert!(matches!(refused, PublishError::NoStream), "{to}: {refused:?}"),
        }
    }
    // The client would not send these; a program of somebody's own may.
    let mut wire = Wire::connect(&fleet).await;
    for to in ["*", ">", "sh*p", "", "@all.x"] {
        let before = wire.store(&format!("fleet.msg.{to}.command.ops.shell"), b"", b"true").await;
        if let Some(stored) = before {
            let record = ack_of(&fleet, &stored.stream, stored.seq).await;
            assert_eq!((record.node.as_str(), record.by), ("_", By::Hub), "{to}: {record:?}");
        }
    }
    lives_on(&mut fleet, "ship1", pid).await;
}

/// Header blocks and subjects that the client library cannot read: it drops the connection over each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_client_can_read_holds_nobody_up() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let pid = fleet.agent("ship1").pid();
    let mut wire = Wire::connect(&fleet).await;
    let shell = "fleet.msg.ship1.command.ops.shell";
    let blocks: [&[u8]; 9] = [
        b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0\r\nA b: x\r\n\r\n",
        b"HTTP/1.1\r\nA: x\r\n\r\n",
        b"\r\n\r\n",
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 7\r\n\r\n",
        b"NATS/1.0 404 No Messages\r\n\r\n",
        b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
        b"NATS/1.0 what\r\n\r\n",
    ];
    let mut sent = Vec::new();
    for (at, block) in blocks.into_iter().enumerate() {
        sent.push((at, wire.store(shell, block, b"echo ran").await.expect("stored")));
    }
    sent.push((100, wire.store(b"fleet.msg.ship1.command.o\xffs.shell", b"", b"echo ran").await.expect("stored")));
    sent.push((102, wire.store("fleet.msg.ship1.command.o\u{a0}s.shell", b"", b"echo ran").await.expect("stored")));
    sent.push((101, wire.store(b"fleet.msg.sh\xffp.event.ops.log", b"", b"text").await.expect("stored")));
    for (at, stored) in &sent {
        let record = ack_of(&fleet, &stored.stream, stored.seq).await;
        assert!(record.state.is_terminal(), "{at}: {record:?}");
    }
    lives_on(&mut fleet, "ship1", pid).await;
    for (at, stored) in &sent {
        assert_eq!(acks_of(&fleet, &stored.stream, stored.seq).await.len(), 1, "{at}");
    }
    assert_eq!(fleet.cli().run(&["run", "ship1", "echo hi"]).await.ok(), "hi\n");
}

/// What anybody may write where hub and nodes read: records that are none, and node state that is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn junk_in_the_records_stops_neither_hub_nor_agent() {
    let mut fleet = Fleet::start(&["ship1", "ship2"]).await;
    let pid = fleet.agent("ship1").pid();
    let stream = ("Fleet-Stream", "FLEET_COMMANDS");
    let bodies: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"{".to_vec(),
        b"null".to_vec(),
        b"\xff\xfe\x00".to_vec(),
        "[".repeat(100_000).into_bytes(),
        vec![b'x'; MIB - 1024],
        json!({"v": 1, "id": "a.b", "seq": -1}).to_string().into_bytes(),
    ];
    for (at, body) in bodies.iter().enumerate() {
        for subject in ["fleet.ack.ship1.ship2.shell.", "fleet.progress.ship1.ops.shell.", "fleet.late._.ops._."] {
            fleet.publish(&format!("{subject}junk{at}"), &[stream], body).await;
        }
        fleet.publish(&format!("fleet.ack.junk{at}"), &[stream, ("Fleet-State", "\u{1}")], body).await;
        fleet.publish("fleet.error.ship1.warning.junk", &[], body).await;
        fleet.publish(&format!("$KV.FLEET_NODES.hello.ghost{at}"), &[], body).await;
        fleet.publish(&format!("$KV.FLEET_NODES.status.ghost{at}"), &[], body).await;
        fleet.publish("$KV.FLEET_NODES.status.ship1", &[], body).await;
        fleet.publish("$KV.FLEET_NODES.hello.ship1", &[], body).await;
        fleet.publish("$KV.FLEET_NODES.hello.a.b.c", &[], body).await;
        fleet.publish(&format!("$KV.FLEET_NODES.spec.odd{at}"), &[], body).await;
        fleet.publish(&format!("$KV.FLEET_NODES.what.{at}"), &[], body).await;
    }
    lives_on(&mut fleet, "ship1", pid).await;
    // The operator's side reads past it, and a hub that starts among it serves.
    fleet.hub.restart();
    let cli = fleet.cli();
    assert_eq!(cli.run(&["run", "ship1,ship2", "echo hi"]).await.ok().lines().count(), 2);
    let nodes = cli.run(&["nodes"]).await.ok();
    assert!(nodes.contains("ship1") && nodes.contains("ship2"), "{nodes}");
    cli.run(&["history"]).await.ok();
    cli.run(&["errors"]).await.ok();
    fleet.add("ship3", Process::agent("ship3", &fleet.broker.url()));
    assert_eq!(fleet.run("ship3", "shell", "echo new").await.stdout.as_deref(), Some("new\n"));
    lives_on(&mut fleet, "ship1", pid).await;
    status_is_back(&fleet).await;
}

/// The node's own status stands again over what somebody wrote in its place.
async fn status_is_back(fleet: &Fleet) {
    wait_until(SOON, "a status of ship1", async || {
        fleet.status("ship1").await.filter(|status| status.journal.is_some())
    })
    .await;
}

/// The same where hub and operators read records and node state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_no_client_can_read_hold_nobody_up() {
    let mut fleet = Fleet::start(&["ship1", "ship2"]).await;
    let pid = fleet.agent("ship1").pid();
    let mut wire = Wire::connect(&fleet).await;
    let block = b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n";
    for subject in [
        "fleet.ack.ship1.ops.shell.poison",
        "fleet.progress.ship1.ops.shell.poison",
        "fleet.error.ship1.warning.failed",
        "$KV.FLEET_NODES.hello.ghost",
        "$KV.FLEET_NODES.status.ghost",
        "$KV.FLEET_NODES.status.ship1",
        "$KV.FLEET_NODES.hello.ship1",
    ] {
        wire.store(subject, block, b"{}").await.unwrap_or_else(|| panic!("{subject}"));
    }
    lives_on(&mut fleet, "ship1", pid).await;
    fleet.hub.restart();
    fleet.add("ship3", Process::agent("ship3", &fleet.broker.url()));
    assert_eq!(fleet.run("ship3", "shell", "echo new").await.stdout.as_deref(), Some("new\n"));
    let cli = fleet.cli();
    assert_eq!(cli.run(&["run", "ship1,ship2", "echo hi"]).await.ok().lines().count(), 2);
    let nodes = cli.run(&["nodes"]).await.ok();
    assert!(nodes.contains("ship1") && nodes.contains("ship3"), "{nodes}");
    cli.run(&["history"]).await.ok();
    cli.run(&["errors"]).await.ok();
    lives_on(&mut fleet, "ship1", pid).await;
}
