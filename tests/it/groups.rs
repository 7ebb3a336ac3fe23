//! Groups: who joins and leaves is decided in the stream, exact to the sequence, whatever is killed meanwhile.

mod exact;
mod stale;

use crate::harness::{Cli, Fleet, Process, SOON, wait_until};
use edgeward::model::groups::Belongs;
use edgeward::model::id::StreamSeq;
use edgeward::model::message::StreamKind;
use edgeward::model::name::GroupName;
use edgeward::model::node::Spec;
use edgeward::model::state::State;
use edgeward::model::subject::{NodeKey, RecordStream};
use edgeward::operator::want_groups;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Many messages, and hubs that die: more than one step's time.
const LONG: Duration = Duration::from_secs(120);

/// Well below the half minute after which the hub looks at everything again.
const PROMPT: Duration = Duration::from_secs(10);

fn web() -> GroupName {
    "web".parse().unwrap()
}

async fn spec(fleet: &Fleet, node: &str) -> Spec {
    let names = fleet.client.names();
    let (bucket, key) = (names.record_stream(RecordStream::Nodes), names.node_key(NodeKey::Spec, node));
    serde_json::from_slice(&fleet.client.get_last(&bucket, &key).await.unwrap().unwrap().body).unwrap()
}

async fn want(fleet: &Fleet, node: &str, groups: &[GroupName]) {
    want_groups(&fleet.client, &node.parse().unwrap(), groups).await.unwrap().unwrap();
}

/// Waits until the node is in the group, or out of it, as far as the hub is concerned.
pub async fn settled(fleet: &Fleet, node: &str, is_member: bool) -> Spec {
    wait_until(LONG, format!("{node} is in the group: {is_member}"), async || {
        let spec = spec(fleet, node).await;
        match spec.belongs(&web(), StreamKind::Commands, StreamSeq(u64::MAX)) {
            Belongs::Member if is_member => Ok(spec),
            Belongs::No if !is_member => Ok(spec),
            _ => Err(format!("{spec:?}")),
        }
    })
    .await
}

/// True where a record of the message is there, by this node or by nobody (`_`).
async fn is_told(fleet: &Fleet, node: &str, method: &str, id: &str) -> bool {
    let subject = format!("fleet.ack.{node}.ops.{method}.{id}");
    fleet.client.get_last(&fleet.client.names().record_stream(RecordStream::Acks), &subject).await.unwrap().is_some()
}

/// Who has told of each message of `ops`, by `<method>.<id>`.
async fn tellers(fleet: &Fleet) -> BTreeMap<String, Vec<String>> {
    let acks = fleet.client.names().record_stream(RecordStream::Acks);
    let begin = edgeward::broker::From::Seq(StreamSeq(1));
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for message in fleet.client.read_all(&acks, "fleet.ack.*.ops.>", begin, usize::MAX).await.unwrap() {
        let tokens: Vec<&str> = message.subject.splitn(5, '.').collect();
        let id = tokens[4].to_owned();
        told.entry(id).or_default().push(tokens[2].to_owned());
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_reaches_every_member_and_nobody_else() {
    let mut fleet = Fleet::start(&["ship1", "ship2", "ship3"]).await;
    let cli = fleet.cli();
    let early = fleet.publish("fleet.msg.@web.command.ops.shell", &[], "echo early").await;
    fleet.agent("ship2").kill();
    for node in ["ship1", "ship2"] {
        cli.run(&["node", node, "--groups", "web"]).await.ok();
        settled(&fleet, node, true).await;
    }
    let table = cli.run(&["node", "ship1"]).await.ok();
    assert!(table.contains("@web") && table.contains("member"), "{table}");

    // The one that is away takes it when it comes back.
    let sent = fleet.publish("fleet.msg.@web.command.ops.shell", &[], "echo $((6*7))").await;
    let id = format!("s{}", sent.seq);
    assert_eq!(fleet.record("ship1", "ops", "shell", &id).await.stdout.as_deref(), Some("42\n"));
    let rows = cli.run(&["status", &id, "-o", "json"]).await.stdout;
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = rows.iter().map(|row| (row["node"].as_str().unwrap(), row["state"].as_str().unwrap())).collect();
    assert_eq!(told, [("ship1", "succeeded"), ("ship2", "queued")], "a row for each member");
    fleet.start_agent("ship2").await;
    fleet.record("ship2", "ops", "shell", &id).await;
    cli.run(&["run", "@web", "true"]).await.exits(0);
    let said = cli.run(&["send", "@wep", "true"]).await.exits(2);
    assert!(said.stderr.contains("unknown group @wep") && said.stderr.contains("near @wep: @web"), "{said:?}");
    if let Some(nats) = Cli::nats(&fleet.broker.url()).await {
        let to_all = ["pub", "-J", "--no-templates", "-H", "Nats-Msg-Id:plain-1"];
        nats.run(&[&to_all[..], &["fleet.msg.@web.command.ops.shell", "echo $((7*6))"]].concat()).await.ok();
        for node in ["ship1", "ship2"] {
            assert_eq!(fleet.record(node, "ops", "shell", "plain-1").await.stdout.as_deref(), Some("42\n"));
        }
    }

    fleet.record("_", "ops", "shell", &format!("s{}", early.seq)).await;
    for node in ["ship1", "ship2", "ship3"] {
        assert!(!is_told(&fleet, node, "shell", &format!("s{}", early.seq)).await, "{node} was no member then");
    }
    assert!(!is_told(&fleet, "ship3", "shell", &id).await, "ship3 is no member");
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_is_who_was_there_when_it_was_stored() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let first = fleet.publish("fleet.msg.@all.command.ops.ping", &[], "").await;
    let event = fleet.publish("fleet.msg.@all.event.ops.log", &[], "line").await;
    fleet.record("ship1", "ops", "ping", &format!("s{}", first.seq)).await;
    fleet.record("ship1", "ops", "log", &format!("e{}", event.seq)).await;
    let late = Process::agent("ship2", &fleet.broker.url());
    fleet.add("ship2", late);
    wait_until(SOON, "ship2 is in contact", async || fleet.status("ship2").await.ok_or("no status")).await;
    let second = fleet.publish("fleet.msg.@all.command.ops.ping", &[], "").await;
    for node in ["ship1", "ship2"] {
        fleet.record(node, "ops", "ping", &format!("s{}", second.seq)).await;
    }
    assert!(!is_told(&fleet, "ship2", "ping", &format!("s{}", first.seq)).await, "it came later");
}

/// The first node of a fleet is made by a message just before or just after one to everybody, with two hubs that deal with
/// both at once.
#[tokio::test(flavor = "multi_thread")]
async fn everybody_is_nobody_before_the_first_node_is_made() {
    let mut fleet = Fleet::start(&[]).await;
    let mut second = Process::hub(&fleet.broker.url());
    wait_until(SOON, "the streams", async || fleet.client.last_seq(StreamKind::Commands).await).await;
    let nobody = fleet.publish("fleet.msg.@all.command.ops.ping", &[], "").await;
    fleet.record("_", "ops", "ping", &format!("s{}", nobody.seq)).await;
    // All of these are there when the hubs come.
    fleet.hub.kill();
    let early = fleet.publish("fleet.msg.@all.command.ops.ping", &[], "").await;
    fleet.publish("fleet.msg.ship1.command.ops.note", &[], "").await;
    let late = fleet.publish("fleet.msg.@all.command.ops.ping", &[], "").await;
    fleet.hub.start();
    second.start();
    let agent = Process::agent("ship1", &fleet.broker.url());
    fleet.add("ship1", agent);
    fleet.record("ship1", "ops", "ping", &format!("s{}", late.seq)).await;
    fleet.record("_", "ops", "ping", &format!("s{}", early.seq)).await;
    let told = tellers(&fleet).await;
    for (seq, by) in [(nobody.seq, "_"), (early.seq, "_"), (late.seq, "ship1")] {
        assert_eq!(told[&format!("ping.s{seq}")], [by], "{told:?}");
    }
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_not_over_when_the_quick_ones_have_answered() {
    let mut fleet = Fleet::start(&["ship1", "ship2"]).await;
    fleet.agent("ship2").kill();
    let said = fleet.cli().run(&["run", "@all", "-m", "ping", "--id", "both"]).await.exits(3);
    assert!(said.stderr.contains("ship2"), "{said:?}");
    fleet.start_agent("ship2").await;
    let told = fleet.cli().run(&["wait", "both"]).await.ok();
    for node in ["ship1", "ship2"] {
        assert!(told.contains(&format!("{node}  succeeded")), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_far_behind_and_one_set_up_anew_run_what_is_theirs() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    fleet.agent("ship1").kill();
    let ping = "fleet.msg.@web.command.ops.ping";
    let mut theirs = Vec::new();
    for is_member in [false, true, false, true] {
        want(&fleet, "ship1", &if is_member { vec![web()] } else { Vec::new() }).await;
        settled(&fleet, "ship1", is_member).await;
        for _ in 0..50 {
            let stored = fleet.publish(ping, &[], "").await;
            theirs.extend(is_member.then(|| format!("s{}", stored.seq)));
        }
    }
    fleet.start_agent("ship1").await;
    told_exactly(&fleet, &theirs).await;

    // Its journal is lost; the new one knows from the hub that it is a member still.
    wait_until(LONG, "all is acked", async || {
        let progress = fleet.client.consumer_progress(StreamKind::Commands, &"ship1".parse().unwrap()).await.unwrap();
        let last = fleet.client.last_seq(StreamKind::Commands).await.unwrap();
        progress.filter(|progress| progress.ack_floor >= last).ok_or(last)
    })
    .await;
    fleet.agent("ship1").kill();
    let anew = Process::agent("ship1", &fleet.broker.url());
    let old = fleet.status("ship1").await.unwrap().journal;
    fleet.add("ship1", anew);
    wait_until(LONG, "the new journal", async || match fleet.status("ship1").await {
        Some(status) if status.journal != old => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    theirs.push(format!("s{}", fleet.publish(ping, &[], "").await.seq));
    told_exactly(&fleet, &theirs).await;
}

/// Waits until the node has told of the last of these pings and of one after it, and finds no others told of.
async fn told_exactly(fleet: &Fleet, theirs: &[String]) {
    fleet.record_within(LONG, "ship1", "ops", "ping", theirs.last().unwrap()).await;
    // The same lane: it comes after all that the node has of the group.
    let after = fleet.publish("fleet.msg.ship1.command.fence.ping", &[], "").await;
    fleet.record_within(LONG, "ship1", "fence", "ping", &format!("s{}", after.seq)).await;
    let acks = fleet.client.names().record_stream(RecordStream::Acks);
    let begin = edgeward::broker::From::Seq(StreamSeq(1));
    let told = fleet.client.read_all(&acks, "fleet.ack.ship1.ops.ping.>", begin, 1000).await.unwrap();
    let told: Vec<_> = told.iter().map(|message| message.subject.rsplit('.').next().unwrap()).collect();
    assert_eq!(told, theirs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_groups_cancel_reaches_those_that_left_and_does_nothing_to_newcomers() {
    let fleet = Fleet::start(&["ship1", "ship2", "ship3"]).await;
    for node in ["ship1", "ship2"] {
        want(&fleet, node, &[web()]).await;
        settled(&fleet, node, true).await;
    }
    let sent = fleet.publish("fleet.msg.@web.command.ops.shell", &[], "sleep 600").await;
    let id = format!("s{}", sent.seq);
    for node in ["ship1", "ship2"] {
        fleet.record_progress(node, "ops", "shell", &id).await;
    }
    want(&fleet, "ship2", &[]).await;
    settled(&fleet, "ship2", false).await;
    want(&fleet, "ship3", &[web()]).await;
    settled(&fleet, "ship3", true).await;
    fleet.cli().run(&["cancel", &id]).await.ok();
    for node in ["ship1", "ship2"] {
        assert_eq!(fleet.record(node, "ops", "shell", &id).await.state, State::Cancelled, "{node}");
    }
    let acks = fleet.client.names().record_stream(RecordStream::Acks);
    let told = wait_until(SOON, "the word of the one that came later", async || {
        let filter = "fleet.ack.ship3.ops.cancel.>";
        let found = fleet.client.read_all(&acks, filter, edgeward::broker::From::Seq(StreamSeq(1)), 9).await.unwrap();
        found.first().map(|message| String::from_utf8_lossy(&message.body).into_owned())
    });
    assert!(told.await.contains("not known here"), "it had no part in it");
    assert!(!is_told(&fleet, "ship3", "shell", &id).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_cancel_to_the_group_counts_where_its_message_did() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    fleet.agent("ship1").kill();
    want(&fleet, "ship1", &[web()]).await;
    settled(&fleet, "ship1", true).await;
    let shell = "fleet.msg.@web.command.ops.shell";
    let by_place = format!("s{}", fleet.publish(shell, &[], "sleep 600").await.seq);
    fleet.publish(shell, &[("Fleet-Id", "by-name")], "sleep 600").await;
    want(&fleet, "ship1", &[]).await;
    settled(&fleet, "ship1", false).await;
    for id in [&by_place[..], "by-name"] {
        let body = serde_json::json!({ "id": id }).to_string();
        fleet.publish("fleet.msg.@web.control.ops.cancel", &[], body).await;
    }
    fleet.start_agent("ship1").await;
    for id in [&by_place[..], "by-name"] {
        assert_eq!(fleet.record("ship1", "ops", "shell", id).await.state, State::Cancelled, "{id}");
    }
}

/// What is purged before a member has taken it is gone for that one: it goes on with what comes after.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_purged_is_found_no_more_and_runs_nowhere_else() {
    let mut fleet = Fleet::start(&["ship1", "ship2"]).await;
    for node in ["ship1", "ship2"] {
        want(&fleet, node, &[web()]).await;
        settled(&fleet, node, true).await;
    }
    fleet.agent("ship2").kill();
    let shell = "fleet.msg.@web.command.ops.shell";
    let sent = fleet.publish(shell, &[("Fleet-Id", "gone")], "true").await;
    fleet.record("ship1", "ops", "shell", "gone").await;
    api(&fleet, "STREAM.PURGE.FLEET_COMMANDS", &format!("{{\"seq\":{}}}", sent.seq.0 + 1)).await;
    let said = fleet.cli().run(&["status", "gone"]).await.exits(2);
    assert!(said.stderr.contains("gone"), "{said:?}");
    fleet.start_agent("ship2").await;
    let next = format!("s{}", fleet.publish(shell, &[], "true").await.seq);
    for node in ["ship1", "ship2"] {
        fleet.record(node, "ops", "shell", &next).await;
    }
    assert!(!is_told(&fleet, "ship2", "shell", "gone").await);
}

#[cfg(feature = "kill-points")]
#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_dies_behind_any_step_leaves_the_rest_to_the_next() {
    use edgeward::killpoint::{Point, VARIABLE};
    use std::os::unix::process::ExitStatusExt;
    let mut fleet = Fleet::start(&["ship1"]).await;
    let joins = [Point::Planned, Point::Filtered, Point::Marked, Point::MarksKnown];
    let leaves = [Point::Planned, Point::Marked, Point::MarksKnown, Point::Drained];
    for (turn, (join, leave)) in joins.into_iter().zip(leaves).enumerate() {
        for (point, is_member) in [(join, true), (leave, false)] {
            fleet.hub.kill();
            want(&fleet, "ship1", &if is_member { vec![web()] } else { Vec::new() }).await;
            fleet.hub.set_env(VARIABLE, &format!("{}:1", point.as_str()));
            fleet.hub.start();
            let ended = fleet.hub.exited(LONG).await;
            assert_eq!(ended.signal(), Some(6), "{point:?}: {ended}");
            fleet.hub.set_env(VARIABLE, "");
            fleet.hub.start();
            let spec = settled(&fleet, "ship1", is_member).await;
            assert_eq!(spec.groups.len(), turn + 1, "{point:?}: marked once: {spec:?}");
            let sent = fleet.publish("fleet.msg.@web.command.ops.ping", &[], "").await;
            let (by, other, id) = match is_member {
                true => ("ship1", "_", format!("s{}", sent.seq)),
                false => ("_", "ship1", format!("s{}", sent.seq)),
            };
            fleet.record_within(LONG, by, "ops", "ping", &id).await;
            assert!(!is_told(&fleet, other, "ping", &id).await, "{point:?}: {id} is told by {other}, too");
        }
    }
}

/// An answer of the JetStream API; an error fails the test.
async fn api(fleet: &Fleet, path: &str, body: &str) -> Value {
    let client = async_nats::connect(fleet.broker.url()).await.unwrap();
    let answer = client.request(format!("$JS.API.{path}"), body.to_owned().into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer.get("error").is_none(), "{path}: {answer}");
    answer
}

/// The message taken last is deleted, and those before it came by a group: the node's filters reach them no more, so they
/// can stand for no place.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_left_a_group_finds_its_place_among_what_still_reaches_it() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ran");
    let line = |n: usize| format!("echo {n} >> {}", file.display());
    let first = fleet.command("ship1", "shell", line(0)).await;
    fleet.record("ship1", "ops", "shell", &first).await;
    want(&fleet, "ship1", &[web()]).await;
    settled(&fleet, "ship1", true).await;
    for n in 1..4 {
        let sent = fleet.publish("fleet.msg.@web.command.ops.shell", &[], line(n)).await;
        fleet.record("ship1", "ops", "shell", &format!("s{}", sent.seq)).await;
    }
    want(&fleet, "ship1", &[]).await;
    settled(&fleet, "ship1", false).await;
    wait_until(PROMPT, "the group's filter to go", async || {
        let filters = api(&fleet, "CONSUMER.INFO.FLEET_COMMANDS.ship1", "").await["config"].to_string();
        if filters.contains("@web") { Err(filters) } else { Ok(()) }
    })
    .await;

    fleet.agent("ship1").kill();
    let mark = fleet.client.get_last("FLEET_COMMANDS", "fleet.msg.ship1.control.hub.member").await.unwrap().unwrap();
    api(&fleet, "STREAM.MSG.DELETE.FLEET_COMMANDS", &format!("{{\"seq\":{}}}", mark.seq)).await;
    let last = fleet.command("ship1", "shell", line(4)).await;
    fleet.start_agent("ship1").await;
    fleet.record("ship1", "ops", "shell", &last).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "0\n1\n2\n3\n4\n");
}
