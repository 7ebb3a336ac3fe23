//! A stream that is not as the node left it: put back, cut, emptied, made anew. In each case nothing runs twice, nothing
//! is left out, records are there again, and an error event tells what was found where there is something to tell.

use crate::harness::{Fleet, Link, Process, SOON, Ship, TestBroker, nats_server_binary, wait_until};
use edgeward::broker::{From, Outgoing};
use edgeward::journal::{Journal, Keep};
use edgeward::model::error_event::ErrorEvent;
use edgeward::model::id::StreamSeq;
use edgeward::model::state::State;
use edgeward::model::time::Timestamp;
use edgeward::server::{Options, Server};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

const CHANGED: &str = "stream_changed";

/// What the node, or the hub, has told of changed streams.
async fn told(ship: &Ship, by: &str) -> Vec<ErrorEvent> {
    let filter = format!("fleet.error.{by}.*.{CHANGED}");
    let all = ship.fleet.client.read_all("FLEET_ERRORS", &filter, From::Seq(StreamSeq(1)), 100).await.unwrap();
    all.iter().map(|message| serde_json::from_slice(&message.body).unwrap()).collect()
}

/// Waits for the first that the node tells, and looks that it tells one alone.
async fn told_once(ship: &Ship, words: &str) {
    wait_until(SOON, "the error event", async || !told(ship, "ship1").await.is_empty()).await;
    let events = told(ship, "ship1").await;
    assert!(events.len() == 1 && events[0].message.contains(words), "{words}: {events:?}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            drop(fs::copy(entry.path(), target))
        }
    }
}

/// The broker's store is put aside, four more messages run, and the store is put back: with it everything that the broker
/// knew of those four.
async fn put_back(ship: &mut Ship, agent_lives: bool) {
    let store = ship.fleet.broker.server.options().store_dir.join("jetstream");
    let backup = tempfile::tempdir().unwrap();
    ship.send(4).await;
    ship.all_ran().await;
    ship.fleet.broker.server.kill().await.unwrap();
    copy(&store, backup.path());
    ship.fleet.broker.server.restart().await.unwrap();
    ship.send(4).await;
    ship.all_ran().await;
    if !agent_lives {
        ship.fleet.agent("ship1").kill();
    }
    ship.fleet.broker.server.kill().await.unwrap();
    fs::remove_dir_all(&store).unwrap();
    copy(backup.path(), &store);
    ship.fleet.broker.server.restart().await.unwrap();
}

#[tokio::test]
async fn an_older_store_put_back_under_a_living_agent() {
    let mut ship = Ship::start().await;
    put_back(&mut ship, true).await;
    ship.send(3).await;
    // Also the records of what the store does not know any more.
    ship.all_ran().await;
    told_once(&ship, "published again").await;
    ship.fleet.agent("ship1").kill();
    ship.fleet.start_agent("ship1").await;
    ship.send(1).await;
    ship.all_ran().await;
    told_once(&ship, "published again").await;
}

/// The agent dies once what it found is kept: the next one follows from it all that follows.
#[cfg(feature = "kill-points")]
#[tokio::test]
async fn an_older_store_put_back_over_which_an_agent_dies() {
    use edgeward::killpoint::{Point, VARIABLE};
    use std::os::unix::process::ExitStatusExt;
    let mut ship = Ship::start().await;
    put_back(&mut ship, false).await;
    let agent = ship.fleet.agent("ship1");
    agent.set_env(VARIABLE, &format!("{}:1", Point::StreamChanged.as_str()));
    agent.start();
    assert_eq!(agent.exited(SOON).await.signal(), Some(6));
    agent.set_env(VARIABLE, "");
    ship.fleet.start_agent("ship1").await;
    ship.send(1).await;
    ship.all_ran().await;
    told_once(&ship, "published again").await;
}

#[tokio::test]
async fn an_older_store_that_has_grown_past_the_position_since() {
    let mut ship = Ship::start().await;
    put_back(&mut ship, false).await;
    // The next sequences are the node's, those at and behind its position are not, then one is.
    ship.send(2).await;
    for _ in 0..8 {
        ship.fleet.publish("fleet.msg.elsewhere.command.ops.ping", &[], "").await;
    }
    ship.send(1).await;
    ship.fleet.start_agent("ship1").await;
    ship.all_ran().await;
    told_once(&ship, "is: what follows").await;
}

#[tokio::test]
async fn what_was_found_is_told_once_and_not_at_each_start() {
    let mut ship = Ship::start().await;
    put_back(&mut ship, false).await;
    for _ in 0..3 {
        ship.fleet.start_agent("ship1").await;
        assert_eq!(ship.fleet.run("ship1", "ping", "").await.state, State::Succeeded);
        ship.fleet.agent("ship1").kill();
    }
    ship.fleet.start_agent("ship1").await;
    ship.send(2).await;
    ship.all_ran().await;
    told_once(&ship, "4 before it, s4 is").await;
}

/// Deletes the stream of commands and makes it again as it was, from sequence 1 on.
async fn made_anew(ship: &mut Ship) {
    let config = ship.api("STREAM.INFO.FLEET_COMMANDS", json!({})).await["config"].clone();
    ship.api("STREAM.DELETE.FLEET_COMMANDS", json!({})).await;
    ship.api("STREAM.CREATE.FLEET_COMMANDS", config).await;
    ship.fleet.hub.restart();
}

#[tokio::test]
async fn a_reset_past_the_end_skips_nothing_that_is_stored_next() {
    let mut ship = Ship::start().await;
    ship.send(6).await;
    ship.all_ran().await;
    made_anew(&mut ship).await;
    // It is read from somewhere before the first message is in it: what is stored now has a sequence below the position.
    let consumer = async || ship.api("CONSUMER.INFO.FLEET_COMMANDS.ship1", json!({})).await;
    wait_until(SOON, "a session on the empty stream", async || {
        let answer = ship.raw().await.request("$JS.API.CONSUMER.INFO.FLEET_COMMANDS.ship1", "".into()).await;
        let info: Value = serde_json::from_slice(&answer.map_err(|e| e.to_string())?.payload).unwrap();
        if info["num_waiting"].as_u64() > Some(0) { Ok(()) } else { Err(info.to_string()) }
    })
    .await;
    assert_eq!(consumer().await["delivered"]["stream_seq"], 0);
    assert_eq!(told(&ship, "ship1").await, vec![], "an empty stream tells nothing");
    ship.send(2).await;
    ship.all_ran().await;
    told_once(&ship, "nor is any message before it").await;
}

#[tokio::test]
async fn a_stream_made_anew_by_the_hub_is_told_by_the_hub() {
    let mut ship = Ship::start().await;
    ship.send(4).await;
    ship.all_ran().await;
    ship.api("STREAM.DELETE.FLEET_COMMANDS", json!({})).await;
    ship.fleet.hub.restart();
    ship.send(2).await;
    ship.all_ran().await;
    wait_until(SOON, "the hub's error event", async || !told(&ship, "hub").await.is_empty()).await;
    ship.fleet.hub.restart();
    ship.send(1).await;
    ship.all_ran().await;
    let events = told(&ship, "hub").await;
    assert!(events.len() == 1 && events[0].message.contains("from sequence 5 on"), "{events:?}");
    assert_eq!(told(&ship, "ship1").await, vec![], "to the node it looks like a purge");
}

#[tokio::test]
async fn a_stream_made_anew_behind_a_leaf_node() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let centre = TestBroker::with(|options| {
        options.extra_config = format!(
            "server_name: centre\njetstream {{ domain: centre, store_dir: \"{}\" }}\nleafnodes {{ listen: \"127.0.0.1:{port}\" }}",
            options.store_dir.join("jetstream").display()
        );
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options::new(nats_server_binary(), folder.path().join("leaf"));
    options.ready_within = SOON;
    options.extra_config = format!(
        "server_name: site\njetstream {{ domain: site, store_dir: \"{}\" }}\nleafnodes {{ remotes: [ {{ urls: [\"nats-leaf://127.0.0.1:{port}\"] }} ] }}",
        options.store_dir.join("jetstream").display()
    );
    let leaf = Server::start(options).await.unwrap();
    let in_domain = |agent: Process| agent.env("EDGEWARD_API_PREFIX", "$JS.centre.API");
    let mut ship = Ship::behind(centre, leaf.port(), in_domain).await;
    ship.send(5).await;
    ship.all_ran().await;
    // The leaf's own server, id and connection stay as they are.
    made_anew(&mut ship).await;
    ship.send(3).await;
    ship.all_ran().await;
    told_once(&ship, "nor is any message before it").await;
    // And seen only afterwards.
    ship.fleet.agent("ship1").kill();
    ship.send(2).await;
    ship.fleet.start_agent("ship1").await;
    ship.all_ran().await;
    drop(ship);
    leaf.stop().await.unwrap();
}

#[tokio::test]
async fn the_last_message_taken_is_deleted() {
    let mut ship = Ship::start().await;
    ship.send(4).await;
    ship.all_ran().await;
    ship.fleet.agent("ship1").kill();
    let last = ship.record(3).await;
    ship.api("STREAM.MSG.DELETE.FLEET_COMMANDS", json!({ "seq": last.seq })).await;
    // As an older copy of the store would have it.
    ship.api("STREAM.PURGE.FLEET_ACKS", json!({ "filter": format!("fleet.ack.ship1.ops.shell.{}", last.id) })).await;
    ship.fleet.start_agent("ship1").await;
    assert_eq!(ship.record(3).await, last, "it is published again");
    told_once(&ship, "1 before it, s3 is").await;
    ship.send(2).await;
    ship.all_ran().await;

    // With newer ones behind it there is nothing to tell.
    ship.fleet.agent("ship1").kill();
    ship.api("STREAM.MSG.DELETE.FLEET_COMMANDS", json!({ "seq": ship.record(5).await.seq })).await;
    ship.send(2).await;
    ship.fleet.start_agent("ship1").await;
    ship.all_ran().await;
    told_once(&ship, "1 before it, s3 is").await;
}

#[tokio::test]
async fn an_operator_purges() {
    let mut ship = Ship::start().await;
    for left in [None, Some(1)] {
        ship.send(4).await;
        ship.all_ran().await;
        ship.fleet.agent("ship1").kill();
        let purge = left.map_or_else(|| json!({}), |keep| json!({ "keep": keep }));
        // Once with nothing behind, once with something, once while the agent is there.
        ship.api("STREAM.PURGE.FLEET_COMMANDS", purge.clone()).await;
        ship.fleet.start_agent("ship1").await;
        ship.send(2).await;
        ship.all_ran().await;
        ship.fleet.agent("ship1").kill();
        ship.api("STREAM.PURGE.FLEET_COMMANDS", purge.clone()).await;
        ship.send(2).await;
        ship.fleet.start_agent("ship1").await;
        ship.all_ran().await;
        ship.api("STREAM.PURGE.FLEET_COMMANDS", purge).await;
        ship.send(2).await;
        ship.all_ran().await;
    }
    assert_eq!(told(&ship, "ship1").await, vec![]);
}

/// A month passes for a journal whose agent is away.
async fn month_passes(ship: &mut Ship) {
    let state = ship.fleet.agent("ship1").state_dir();
    let opened = tokio::task::spawn_blocking(move || Journal::open(&state, &"ship1".parse().unwrap(), None)).await;
    let journal = opened.unwrap().unwrap().journal;
    let month = Duration::from_secs(31 * 86_400);
    let keep = Keep::with_retention(Duration::from_secs(30 * 86_400));
    let thinned = journal.thin(Timestamp::local_now().plus(month), keep).await.unwrap();
    assert!(thinned.rows > 0, "{thinned:?}");
    let lock = journal.folder().join("agent.lock");
    drop(journal);
    wait_until(SOON, "the journal to be closed", async || {
        let file = fs::File::open(&lock).map_err(|e| e.to_string())?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|e| e.to_string())
    })
    .await;
}

#[tokio::test]
async fn after_a_month_all_has_aged_out() {
    let mut ship = Ship::start().await;
    ship.send(5).await;
    ship.all_ran().await;
    ship.fleet.agent("ship1").kill();
    month_passes(&mut ship).await;
    ship.send(1).await;
    let last = ship.record(4).await.seq;
    ship.api("STREAM.PURGE.FLEET_COMMANDS", json!({ "seq": last.0 + 1 })).await;
    ship.send(1).await;
    ship.fleet.start_agent("ship1").await;
    ship.send(1).await;
    ship.all_ran().await;
    assert_eq!(told(&ship, "ship1").await, vec![]);
}

#[tokio::test]
async fn after_a_month_what_the_journal_does_not_know_any_more_counts_as_taken() {
    let mut ship = Ship::start().await;
    ship.send(5).await;
    ship.all_ran().await;
    ship.fleet.agent("ship1").kill();
    month_passes(&mut ship).await;
    // The last is gone; of those before it nothing is in the journal.
    ship.api("STREAM.MSG.DELETE.FLEET_COMMANDS", json!({ "seq": ship.record(4).await.seq })).await;
    ship.fleet.start_agent("ship1").await;
    told_once(&ship, "counts as taken").await;
    // Also when the session is cut off while it passes over them.
    ship.fleet.agent("ship1").kill();
    ship.fleet.start_agent("ship1").await;
    ship.send(2).await;
    ship.all_ran().await;
    told_once(&ship, "counts as taken").await;
}

#[tokio::test]
async fn a_body_crosses_the_link_once_whatever_the_link_does() {
    const MESSAGES: usize = 1000;
    const CUTS: u64 = 50;
    let body = format!("true #{}", "x".repeat(8000));
    let mut ship = Ship::start().await;
    ship.fleet.publish("fleet.msg.ship1.command.ops.shell", &[], "sleep 600").await;
    let before = ship.proxy.down();
    let message = Outgoing::new("fleet.msg.ship1.command.ops.shell", body.clone());
    for _ in 0..MESSAGES / 50 {
        let sent = (0..50).map(|_| ship.fleet.client.publish(&message, SOON));
        futures::future::try_join_all(sent).await.unwrap();
    }
    wait_until(SOON, "all of them on the node", async || {
        let status = ship.fleet.status("ship1").await.ok_or("no status")?;
        let depth = status.lanes.unwrap_or_default().first().map_or(0, |lane| lane.depth);
        if depth > MESSAGES as u64 { Ok(()) } else { Err(format!("{depth} in the lane")) }
    })
    .await;
    // Subject, reply and headers come with each.
    let once = (MESSAGES * (body.len() + 300)) as u64;
    let taken = ship.proxy.down() - before;
    assert!(taken > (MESSAGES * body.len()) as u64 && taken < once + 100_000, "{taken} bytes for {once}");

    let before = ship.proxy.down();
    for cut in 1..=usize::try_from(CUTS).unwrap() {
        ship.proxy.set(Link::Cut);
        ship.says("the link was lost", cut).await;
        ship.proxy.set(Link::Open);
        // The session that comes takes this one. The anchor is a long one each time.
        let stored = ship.fleet.publish("fleet.msg.ship1.command.ops.shell.quick", &[], &body).await;
        let record = ship.fleet.record("ship1", "ops", "shell", &format!("s{}", stored.seq)).await;
        assert_eq!(record.state, State::Succeeded, "cut {cut}");
    }
    // A session costs its anchor, which is a body of this size, then the new message, and some answers of the API.
    let more = ship.proxy.down() - before;
    let bound = CUTS * (2 * body.len() as u64 + 16 * 1024);
    eprintln!(
        "{MESSAGES} bodies of {} bytes: {taken} bytes; {CUTS} cuts: {more} bytes more (bound {bound})",
        body.len()
    );
    assert!(more < bound, "{more} bytes for {CUTS} sessions, {bound} allowed");
}

/// Cuts while the bodies still flow: what was under way is lost with the link, never what was taken.
#[tokio::test]
async fn cuts_in_the_middle_of_a_backlog_cost_what_was_under_way() {
    const MESSAGES: usize = 300;
    let body = format!("true #{}", "x".repeat(20_000));
    let mut ship = Ship::start().await;
    ship.fleet.agent("ship1").kill();
    ship.fleet.publish("fleet.msg.ship1.command.ops.shell", &[], "sleep 600").await;
    let message = Outgoing::new("fleet.msg.ship1.command.ops.shell", body.clone());
    for _ in 0..MESSAGES / 50 {
        let sent = (0..50).map(|_| ship.fleet.client.publish(&message, SOON));
        futures::future::try_join_all(sent).await.unwrap();
    }
    ship.proxy.set(Link::Slow(2_000_000));
    ship.fleet.agent("ship1").start();
    let all = (MESSAGES * body.len()) as u64;
    let (start, mut cuts) = (ship.proxy.down(), 0u64);
    for part in 1..6 {
        wait_until(SOON, format!("part {part}"), async || ship.proxy.down() - start > part * all / 6).await;
        ship.proxy.set(Link::Cut);
        cuts += 1;
        ship.says("the link was lost", usize::try_from(cuts).unwrap()).await;
        ship.proxy.set(Link::Slow(2_000_000));
    }
    wait_until(2 * SOON, "all of them on the node", async || {
        let status = ship.fleet.status("ship1").await.ok_or("no status")?;
        let depth = status.lanes.unwrap_or_default().first().map_or(0, |lane| lane.depth);
        if depth > MESSAGES as u64 { Ok(()) } else { Err(format!("{depth} in the lane")) }
    })
    .await;
    let crossed = ship.proxy.down() - start;
    // What lies between the broker and the journal at a cut: the sockets' buffers and a batch that is being kept.
    let bound = all + all / 20 + cuts * 1_500_000;
    eprintln!("{all} bytes of bodies, {cuts} cuts: {crossed} bytes (bound {bound})");
    assert!(crossed < bound, "{crossed} bytes, {bound} allowed");
}

#[tokio::test]
async fn a_fleet_without_any_change_tells_nothing() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    fleet.run("ship1", "ping", "").await;
    for _ in 0..3 {
        fleet.agent("ship1").kill();
        fleet.start_agent("ship1").await;
        fleet.run("ship1", "ping", "").await;
    }
    let events = fleet.client.read_all("FLEET_ERRORS", ">", From::Seq(StreamSeq(1)), 100).await.unwrap();
    assert!(events.is_empty(), "{events:?}");
}
