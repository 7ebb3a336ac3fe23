//! Changes of filters that arrive late, from a hub that has died or whose link was held up: what was stored while a group's
//! filter was gone, and passed over by the consumer, is read again.

use super::*;

/// Waits until a hub has stopped at the point for which it is armed.
#[cfg(feature = "kill-points")]
async fn stopped(hub: &Process) {
    let file = format!("/proc/{}/stat", hub.pid().as_raw_nonzero());
    wait_until(LONG, "the hub to stop", async || {
        let stat = std::fs::read_to_string(&file).unwrap();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    })
    .await;
}

/// A hub that stops once it has looked at consumers whose filters it is about to change.
#[cfg(feature = "kill-points")]
fn stops_before_its_change(hub: &mut Process) {
    use edgeward::killpoint::{Point, STOP_VARIABLE};
    hub.set_env(STOP_VARIABLE, &format!("{}:1", Point::Looked.as_str()));
    hub.restart();
}

/// Sets the node's filters as a hub would that knew nothing of its groups.
async fn stale_filters(fleet: &Fleet) {
    let info = api(fleet, "CONSUMER.INFO.FLEET_COMMANDS.ship1", "").await;
    let mut config = info["config"].clone();
    config["filter_subjects"] = serde_json::json!(["fleet.msg.ship1.>", "fleet.msg.@all.>"]);
    let body = serde_json::json!({ "stream_name": "FLEET_COMMANDS", "action": "update", "config": config });
    api(fleet, "CONSUMER.CREATE.FLEET_COMMANDS.ship1", &body.to_string()).await;
}

/// A message to the group that its member's consumer passes over.
async fn passed_over(fleet: &Fleet, line: &str) -> String {
    let sent = fleet.publish("fleet.msg.@web.command.ops.shell", &[], line).await;
    fleet.run("ship1", "ping", "").await;
    let id = format!("s{}", sent.seq);
    assert!(!is_told(fleet, "ship1", "shell", &id).await, "the filter was gone");
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_passed_over_while_a_filter_was_gone_is_run_once_it_is_back() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ran");
    let line = |n: usize| format!("echo {n} >> {}", file.display());
    want(&fleet, "ship1", &[web()]).await;
    settled(&fleet, "ship1", true).await;
    let sent = fleet.publish("fleet.msg.@web.command.ops.shell", &[], line(1)).await;
    fleet.record("ship1", "ops", "shell", &format!("s{}", sent.seq)).await;
    fleet.hub.kill();
    stale_filters(&fleet).await;
    let missed = passed_over(&fleet, &line(2)).await;
    // Two of them look at once, and only one finds it so.
    let mut second = Process::hub(&fleet.broker.url());
    second.start();
    fleet.hub.start();
    fleet.record("ship1", "ops", "shell", &missed).await;
    let sent = fleet.publish("fleet.msg.@web.command.ops.shell", &[], line(3)).await;
    fleet.record("ship1", "ops", "shell", &format!("s{}", sent.seq)).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1\n2\n3\n", "what it knew did not run again");
    nothing_more_to_be_said(&fleet).await;
    second.stop().await;
}

async fn nothing_more_to_be_said(fleet: &Fleet) {
    wait_until(SOON, "nothing more to be said", async || {
        let spec = spec(fleet, "ship1").await;
        if spec.group_steps().is_empty() { Ok(()) } else { Err(format!("{spec:?}")) }
    })
    .await;
}

/// The filter goes between the mark of a join and the moment at which `spec` says where that is.
#[cfg(feature = "kill-points")]
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_goes_behind_the_mark_of_its_join_costs_no_message() {
    use edgeward::killpoint::{Point, VARIABLE};
    let mut fleet = Fleet::start(&["ship1"]).await;
    fleet.hub.kill();
    want(&fleet, "ship1", &[web()]).await;
    fleet.hub.set_env(VARIABLE, &format!("{}:1", Point::Marked.as_str()));
    fleet.hub.start();
    fleet.hub.exited(LONG).await;
    fleet.hub.set_env(VARIABLE, "");
    stale_filters(&fleet).await;
    let missed = passed_over(&fleet, "true").await;
    let mut second = Process::hub(&fleet.broker.url());
    second.start();
    fleet.hub.start();
    settled(&fleet, "ship1", true).await;
    assert_eq!(fleet.record("ship1", "ops", "shell", &missed).await.state, State::Succeeded);
    second.stop().await;
}

/// A late change lands between a hub's look and its own change, which puts all filters right: no look finds it any more.
#[cfg(feature = "kill-points")]
#[tokio::test(flavor = "multi_thread")]
async fn a_late_change_that_another_overwrites_unseen_costs_no_message() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    want(&fleet, "ship1", &[web()]).await;
    settled(&fleet, "ship1", true).await;
    let sent = fleet.publish("fleet.msg.@web.command.ops.shell", &[], "true").await;
    fleet.record("ship1", "ops", "shell", &format!("s{}", sent.seq)).await;
    stops_before_its_change(&mut fleet.hub);
    want(&fleet, "ship1", &[web(), "db".parse().unwrap()]).await;
    stopped(&fleet.hub).await;
    stale_filters(&fleet).await;
    let missed = passed_over(&fleet, "true").await;
    fleet.hub.signal(rustix::process::Signal::CONT);
    assert_eq!(fleet.record("ship1", "ops", "shell", &missed).await.state, State::Succeeded);
    let filters = api(&fleet, "CONSUMER.INFO.FLEET_COMMANDS.ship1", "").await["config"].to_string();
    assert!(filters.contains("@web") && filters.contains("@db"), "{filters}");
    nothing_more_to_be_said(&fleet).await;
    assert!(!fleet.hub.stderr().contains("was without groups"), "no look found it");
}

/// A hub that was held up for long changes filters by what it knew then, while messages come.
#[cfg(feature = "kill-points")]
#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_goes_on_where_it_was_held_up_takes_no_message_from_groups_joined_since() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let (db, ops): (GroupName, GroupName) = ("db".parse().unwrap(), "ops".parse().unwrap());
    want(&fleet, "ship1", &[web()]).await;
    settled(&fleet, "ship1", true).await;
    stops_before_its_change(&mut fleet.hub);
    want(&fleet, "ship1", &[web(), db.clone()]).await;
    stopped(&fleet.hub).await;
    let mut second = Process::hub(&fleet.broker.url());
    second.start();
    want(&fleet, "ship1", &[web(), db, ops.clone()]).await;
    wait_until(LONG, "the second hub to have carried all out", async || {
        let spec = spec(&fleet, "ship1").await;
        let is_member = spec.belongs(&ops, StreamKind::Commands, StreamSeq(u64::MAX)) == Belongs::Member;
        if is_member && spec.group_steps().is_empty() { Ok(()) } else { Err(format!("{spec:?}")) }
    })
    .await;
    let mut sent = Vec::new();
    for turn in 0..300 {
        if turn == 50 {
            fleet.hub.signal(rustix::process::Signal::CONT);
        }
        for group in ["web", "ops"] {
            let stored = fleet.publish(&format!("fleet.msg.@{group}.command.ops.ping"), &[], "").await;
            sent.push(format!("ping.s{}", stored.seq));
        }
    }
    wait_until(LONG, "each to be told", async || {
        let told = tellers(&fleet).await;
        let open: Vec<_> = sent.iter().filter(|id| !told.contains_key(*id)).collect();
        if open.is_empty() { Ok(told) } else { Err(format!("{open:?}")) }
    })
    .await
    .iter()
    .for_each(|(id, by)| assert_eq!(by, &["ship1"], "{id}"));
    nothing_more_to_be_said(&fleet).await;
    second.stop().await;
}
