//! Three nats-servers with three copies of each stream: any one of them may be killed and come back, with its disk or without.
//!
//! What is stored while a stream has no leader waits for one: nats-server elects one 4 to 9 s after the last word of the
//! old one, and nothing that asks from outside makes that sooner. From then on nodes have to go on within 5 s.

use crate::harness::{Cluster, ELECTION, Process, SOON, open_to, wait_until};
use edgeward::broker::{Broker, From, Outgoing};
use edgeward::model::id::{MessageId, StreamSeq};
use edgeward::model::message::Kind;
use edgeward::model::record::Record;
use edgeward::model::state::State;
use edgeward::model::subject::RecordStream;
use edgeward::operator::{Draft, SendOptions};
use std::fs;
use std::time::{Duration, Instant};

/// From the last new leader to the last result: 5 s, and what a machine with other work to do adds.
const GOES_ON: Duration = Duration::from_secs(5 + 2);

async fn client(cluster: &Cluster) -> Broker {
    let options = open_to(cluster.urls());
    let broker = Broker::connect(&options).await.unwrap();
    broker.wait_up().await.unwrap();
    broker
}

/// Sends as operators do: an election is a pause to them, and no failure.
async fn send(client: &Broker, node: &str, id: &str, body: &str) -> StreamSeq {
    let to = vec![node.parse().unwrap()];
    let mut draft = Draft::new(to, Kind::Command, "shell".parse().unwrap(), body.to_owned());
    draft.id = MessageId::given(id).unwrap();
    draft.id_given = true;
    let options = SendOptions { deadline: ELECTION + SOON };
    let deliveries = edgeward::operator::send(client, &"ops".parse().unwrap(), &draft, &options).await;
    deliveries[0].result.as_ref().unwrap_or_else(|error| panic!("{id}: {error}")).seq
}

async fn result(client: &Broker, node: &str, id: &str) -> Record {
    let acks = client.names().record_stream(RecordStream::Acks);
    let subject = format!("fleet.ack.{node}.ops.shell.{id}");
    wait_until(ELECTION + SOON, &subject, async || {
        let message = client.get_last(&acks, &subject).await.map_err(|e| e.to_string())?.ok_or("none")?;
        serde_json::from_slice(&message.body).map_err(|e| e.to_string())
    })
    .await
}

/// Which server is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    Nobody,
    /// The one with a node's consumer.
    Holder,
    /// The one that leads a stream.
    Leader(&'static str),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_loses_nothing_with_its_disk_or_without() {
    let mut cluster = Cluster::start().await;
    let urls = cluster.urls().join(",");
    let mut hub = Process::hub(&urls).env("EDGEWARD_HUB__REPLICAS", "3");
    hub.start();
    let nodes = ["ship", "van", "bike"];
    let mut agents: Vec<Process> = nodes.iter().map(|node| Process::agent(node, &urls)).collect();
    agents.iter_mut().for_each(Process::start);
    let client = client(&cluster).await;
    let out = tempfile::tempdir().unwrap();
    let mut sent = Vec::new();
    let rounds = [
        (Kill::Nobody, true),
        (Kill::Holder, true),
        (Kill::Holder, false),
        (Kill::Leader("FLEET_COMMANDS"), true),
        (Kill::Leader("FLEET_ACKS"), true),
        (Kill::Leader("KV_FLEET_NODES"), true),
    ];
    for (round, (kill, keeps_disk)) in rounds.into_iter().enumerate() {
        let killed = match kill {
            Kill::Nobody => None,
            Kill::Holder => Some(cluster.holder("ship").await),
            Kill::Leader(stream) => Some(cluster.leader(stream).await),
        };
        if let Some(n) = killed {
            cluster.servers[n].kill().await.unwrap();
        }
        let began = Instant::now();
        let worked = async {
            for number in 0..4 {
                for node in nodes {
                    let id = format!("{round}-{node}-{number}");
                    // The last one is too large to be sent once more for a session's beginning.
                    let size = if number == 3 { 20_000 } else { 0 };
                    let line = format!("echo {id} >> {}/{node} #{}", out.path().display(), "x".repeat(size));
                    let seq = send(&client, node, &id, &line).await;
                    sent.push((node, seq, id));
                }
            }
            let stored = began.elapsed();
            for (node, seq, id) in sent.iter().filter(|(_, _, id)| id.starts_with(&format!("{round}-"))) {
                let record = result(&client, node, id).await;
                assert_eq!((record.state, record.seq), (State::Succeeded, *seq), "{id}");
            }
            (stored, began.elapsed())
        };
        let ((stored, done), led) = tokio::join!(worked, cluster.led(began));
        let last = led.iter().map(|(_, after)| *after).max().unwrap();
        let told = format!("{kill:?}, with its disk {keeps_disk}: stored {stored:?}, done {done:?}, leaders {led:?}");
        eprintln!("{told}");
        assert!(done < last + GOES_ON, "{told}");
        if let Some(n) = killed {
            if !keeps_disk {
                cluster.lose_disk(n);
            }
            cluster.servers[n].restart().await.unwrap();
        }
        cluster.whole().await;
    }
    for node in nodes {
        let lines = fs::read_to_string(out.path().join(node)).unwrap();
        let expected: Vec<&str> = sent.iter().filter(|(to, ..)| *to == node).map(|(.., id)| id.as_str()).collect();
        assert_eq!(lines.lines().collect::<Vec<_>>(), expected, "each once, in order");
    }
}

/// While a record is on its way to the other servers, the broker refuses another one of its subject and has neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_what_no_node_can_answer_is_told_though_the_first_is_not_stored_yet() {
    const PAIRS: usize = 200;
    let cluster = Cluster::start().await;
    let mut hub = Process::hub(&cluster.urls().join(",")).env("EDGEWARD_HUB__REPLICAS", "3");
    hub.start();
    let client = client(&cluster).await;
    cluster.whole().await;
    hub.kill();
    for number in 0..PAIRS {
        let message =
            Outgoing::new("fleet.msg.@nobody.command.ops.shell", "true").with("Fleet-Id", format!("m{number}"));
        for copy in ["one", "other"] {
            let message = message.clone().with("Nats-Msg-Id", format!("{number}-{copy}"));
            wait_until(SOON, "it is stored", async || client.publish(&message, SOON).await).await;
        }
    }
    // Both of a pair come to it at once.
    hub.start();
    let acks = client.names().record_stream(RecordStream::Acks);
    for (class, state) in [("ack", State::Undeliverable), ("progress", State::Duplicate)] {
        wait_until(ELECTION + SOON, format!("each {class}"), async || {
            let from = From::Seq(StreamSeq(1));
            let told = client.read_all(&acks, &format!("fleet.{class}._.ops.shell.*"), from, 2 * PAIRS).await;
            let told = told.map_err(|error| error.to_string())?;
            let all: Vec<Record> = told.iter().filter_map(|m| serde_json::from_slice(&m.body).ok()).collect();
            assert!(all.iter().all(|record| record.state == state), "{all:?}");
            if all.len() == PAIRS { Ok(()) } else { Err(format!("{} of {PAIRS}", all.len())) }
        })
        .await;
    }
}
