//! In order inside a lane, concurrent across lanes, fair between senders; and taking is not doing.

use crate::harness::{Fleet, Process, SOON, lines, wait_until};
use crate::ledger::records;
use edgeward::broker::Outgoing;
use edgeward::model::record::Record;
use edgeward::model::state::State;
use futures::future::join_all;
use std::fs;
use std::path::{Path, PathBuf};

/// A script that waits until the test lets it go; one that is left alone ends after a minute.
fn until(path: &Path) -> String {
    format!("for _ in $(seq 1200); do test -e {} && exit 0; sleep 0.05; done; exit 1", path.display())
}

/// Waits until there are `count` terminal records that match; gives them in the order in which they were stored.
async fn ended(fleet: &Fleet, filter: &str, count: usize) -> Vec<Record> {
    wait_until(SOON * 2, format!("{count} records {filter}"), async || {
        let found = records(fleet, filter).await;
        if found.len() >= count { Ok(found) } else { Err(format!("{} of {count}", found.len())) }
    })
    .await
}

/// Stores many messages without waiting for each in turn: in order on the one connection.
async fn store_all(fleet: &Fleet, messages: impl IntoIterator<Item = (String, String)>) {
    let outgoing: Vec<Outgoing> = messages.into_iter().map(|(subject, body)| Outgoing::new(subject, body)).collect();
    for stored in join_all(outgoing.iter().map(|one| fleet.client.publish(one, SOON))).await {
        stored.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_starts_in_stream_order_also_over_restarts() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let journal = fleet.agent("ship1").state_dir().join("order");
    let body = format!("echo $EDGEWARD_MSG_SEQ >> {}", journal.display());
    let message = || ("fleet.msg.ship1.command.ops.shell".to_owned(), body.clone());
    store_all(&fleet, (0..80).map(|_| message())).await;
    wait_until(SOON, "some of them", async || lines(&journal).len() > 20).await;
    // In order, with work under way; then more while the node is away, then a start, and more beside it.
    assert!(fleet.agent("ship1").stop().await.success());
    store_all(&fleet, (0..80).map(|_| message())).await;
    fleet.start_agent("ship1").await;
    store_all(&fleet, (0..40).map(|_| message())).await;
    let done = ended(&fleet, "fleet.ack.ship1.ops.shell.*", 200).await;
    assert!(done.iter().all(|r| r.state == State::Succeeded && r.attempt == 1), "{done:?}");
    let order: Vec<u64> = lines(&journal).iter().map(|line| line.parse().unwrap()).collect();
    assert_eq!(order, (1..=200).collect::<Vec<u64>>());
    let mut by_seq = done;
    by_seq.sort_by_key(|record| record.seq);
    for pair in by_seq.windows(2) {
        assert!(pair[1].started_at >= pair[0].finished_at, "{pair:?}");
    }
}

/// A message that is taken in the moment in which the one before it ends is the lane's next head.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_comes_as_the_one_before_it_ends_is_not_forgotten() {
    let fleet = Fleet::start(&["ship1"]).await;
    const LANES: usize = 4;
    const EACH: usize = 150;
    // One behind the other without a pause, in a few lanes: taking and ending meet again and again.
    for _ in 0..EACH {
        let round = (0..LANES).map(|lane| (format!("fleet.msg.ship1.command.ops.ping.l{lane}"), String::new()));
        store_all(&fleet, round).await;
    }
    let done = ended(&fleet, "fleet.ack.ship1.ops.ping.*", LANES * EACH).await;
    assert!(done.iter().all(|record| record.state == State::Succeeded));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_lane_delays_nobody_and_its_queue_is_on_the_node() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let open = fleet.agent("ship1").state_dir().join("open");
    let stuck = fleet.command("ship1", "shell", until(&open)).await;
    store_all(&fleet, (0..300).map(|n| ("fleet.msg.ship1.command.ops.shell".to_owned(), format!("echo {n}")))).await;
    for subject in [
        "fleet.msg.ship1.command.ops.shell.other",
        "fleet.msg.ship1.command.bob.shell",
        "fleet.msg.ship1.command.ops.ping",
        "fleet.msg.ship1.event.ops.log",
    ] {
        let body = if subject.ends_with("ping") { "" } else { "true" };
        let stored = fleet.publish(subject, &[], body).await;
        let record = crate::ledger::ack_of(&fleet, &stored.stream, stored.seq).await;
        assert_eq!(record.state, State::Succeeded, "{subject}");
    }
    // Taken and acked: nothing waits at the broker, though nothing of the lane has been done.
    let info = wait_until(SOON, "an idle consumer", async || {
        let info = consumer_info(&fleet, "ship1").await;
        let at = |path: &str| info.pointer(path).and_then(serde_json::Value::as_u64);
        let idle = at("/num_pending") == Some(0) && at("/num_ack_pending") == Some(0);
        if idle && at("/ack_floor/stream_seq") >= Some(301) { Ok(info) } else { Err(info.to_string()) }
    })
    .await;
    assert_eq!(info["num_redelivered"], 0, "{info}");
    assert_eq!(records(&fleet, "fleet.ack.ship1.ops.shell.*").await.len(), 1, "the one in its own lane");
    let lane = wait_until(SOON, "the lane in status", async || {
        let status = fleet.status("ship1").await?;
        status.lanes?.into_iter().find(|lane| lane.lane == "command.ops.shell" && lane.depth == 301)
    })
    .await;
    assert!(lane.running && lane.head.map(|seq| format!("s{seq}")) == Some(stuck), "{lane:?}");
    fs::write(&open, "").unwrap();
    ended(&fleet, "fleet.ack.ship1.ops.shell.*", 302).await;
}

async fn consumer_info(fleet: &Fleet, node: &str) -> serde_json::Value {
    let client = async_nats::connect(fleet.broker.url()).await.unwrap();
    let subject = format!("$JS.API.CONSUMER.INFO.FLEET_COMMANDS.{node}");
    serde_json::from_slice(&client.request(subject, "".into()).await.unwrap().payload).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_run_at_once_up_to_the_limit_and_senders_share_it() {
    let mut fleet = Fleet::start(&["ship2"]).await;
    let mut agent = Process::agent("ship1", &fleet.broker.url());
    agent.set_env("EDGEWARD_AGENT__MAX_RUNNING", "2");
    let folder: PathBuf = agent.state_dir();
    fleet.add("ship1", agent);
    fleet.run("ship1", "ping", "").await;
    let gate = |name: &str| folder.join(name);
    // Two that wait for each other: each goes on only when the other has begun.
    let meet = |mine: &str, other: &str| format!("touch {}; {}", gate(mine).display(), until(&gate(other)));
    store_all(
        &fleet,
        [("a", meet("a", "b")), ("b", meet("b", "a"))]
            .map(|(l, body)| (format!("fleet.msg.ship1.command.ops.shell.{l}"), body)),
    )
    .await;
    let met = ended(&fleet, "fleet.ack.ship1.ops.shell.*", 2).await;
    assert!(met.iter().all(|r| r.state == State::Succeeded), "{met:?}");
    // One sender with thirty lanes holds both places; one message of another is not behind the thirty.
    let begun = gate("begun");
    let body = format!("echo $EDGEWARD_MSG_FROM >> {}; {}", begun.display(), until(&gate("go")));
    let crowd = (0..30).map(|n| (format!("fleet.msg.ship1.command.crowd.shell.l{n}"), body.clone()));
    store_all(&fleet, crowd).await;
    wait_until(SOON, "two of the crowd", async || lines(&begun).len() == 2).await;
    let alone = fleet.publish("fleet.msg.ship1.command.alone.shell", &[], &body).await;
    wait_until(SOON, "the queue on the node", async || {
        let status = fleet.status("ship1").await.filter(|s| s.position.commands == Some(alone.seq))?;
        let lanes = status.lanes?;
        assert_eq!(lanes.iter().filter(|lane| lane.running).count(), 2, "no more than two at once: {lanes:?}");
        Some(())
    })
    .await;
    assert_eq!(lines(&begun), ["crowd", "crowd"]);
    fs::write(gate("go"), "").unwrap();
    ended(&fleet, "fleet.ack.ship1.*.shell.*", 33).await;
    let order = lines(&begun);
    let place = order.iter().position(|from| from == "alone").unwrap();
    assert!(place <= 3, "the other sender was {place} in line: {order:?}");
}
