//! A hub that was away: what needs none goes on, and what had to wait for one is dealt with when it is back.

use crate::groups::settled;
use crate::harness::{Fleet, Process, SOON, wait_until};
use edgeward::model::state::State;

const WEB: &str = "fleet.msg.@web.command.ops.ping";

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_for_a_hub_is_dealt_with_when_it_is_back() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    fleet.hub.kill();

    // A node that is known needs none.
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);

    // A node by its first message and one by its hello, a group without members, and a wish for one.
    let unseen = fleet.publish("fleet.msg.ship2.command.ops.ping", &[], "").await;
    let nobody = fleet.publish(WEB, &[], "").await;
    fleet.cli().run(&["node", "ship1", "--groups", "web"]).await.ok();
    let too_early = fleet.publish(WEB, &[], "").await;
    // Whoever waits for one of them is told where to look.
    let seq = too_early.seq.to_string();
    let said = fleet.cli().run(&["wait", &seq, "--from", "ops", "--for", "8s"]).await.exits(3);
    assert!(said.stderr.contains(&format!("@web: still queued; edgeward why {seq}")), "{said:#?}");
    assert!(fleet.cli().run(&["why", &seq]).await.ok().contains("the hub"), "why tells of it");
    let late = Process::agent("ship3", &fleet.broker.url());
    fleet.add("ship3", late);
    wait_until(SOON, "the agent to say that it waits", async || {
        let said = fleet.agent("ship3").stderr();
        if said.contains("still waiting for the hub") { Ok(()) } else { Err(said) }
    })
    .await;

    fleet.hub.start();
    wait_until(SOON, "ship3 to be in contact", async || fleet.status("ship3").await.ok_or("no status")).await;
    for early in [nobody, too_early] {
        let record = fleet.record("_", "ops", "ping", &format!("s{}", early.seq)).await;
        assert_eq!(record.state, State::Undeliverable, "nobody had joined");
    }
    let second = Process::agent("ship2", &fleet.broker.url());
    fleet.add("ship2", second);
    let record = fleet.record("ship2", "ops", "ping", &format!("s{}", unseen.seq)).await;
    assert_eq!(record.state, State::Succeeded, "its messages begin with its first");
    settled(&fleet, "ship1", true).await;
    let joined = fleet.publish(WEB, &[], "").await;
    let record = fleet.record("ship1", "ops", "ping", &format!("s{}", joined.seq)).await;
    assert_eq!(record.state, State::Succeeded);
}
