//! Changes of filters that arrive late, from a hub that has died or whose link was held up: what was stored while a group's
//! filter was gone, and passed over by the consumer, is read again.

use super::*;

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
    wait_until(SOON, "nothing more to be said", async || {
        let spec = spec(&fleet, "ship1").await;
        if spec.group_steps().is_empty() { Ok(()) } else { Err(format!("{spec:?}")) }
    })
    .await;
    second.stop().await;
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
