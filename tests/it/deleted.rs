//! A stream that somebody deletes under a running hub and agent: made again, told of, and what comes later has its record.

use crate::harness::{SOON, Ship, wait_until};
use crate::ledger::{acks_of, records};
use edgeward::broker::From;
use edgeward::model::id::StreamSeq;
use edgeward::model::state::State;
use serde_json::json;

/// A ship whose hub looks after the streams every three seconds.
async fn ship() -> Ship {
    let mut ship = Ship::start().await;
    ship.fleet.hub.set_env("EDGEWARD_HUB__RETENTION", "5m");
    ship.fleet.hub.restart();
    let ready = "edgeward::cli::hub: hub";
    wait_until(SOON, "the new hub", async || ship.fleet.hub.stderr().matches(ready).count() == 2).await;
    ship.send(3).await;
    ship.all_ran().await;
    ship
}

async fn delete(ship: &Ship, stream: &str) {
    ship.api(&format!("STREAM.DELETE.{stream}"), json!({})).await;
}

/// Waits for the hub's word on each of these streams, and looks that there is one alone.
async fn told(ship: &Ship, streams: &[&str]) {
    let filter = "fleet.error.hub.critical.stream_changed";
    // It may be the stream of errors itself that is missing.
    let told = wait_until(SOON, "the error events", async || {
        let told = ship.fleet.client.read_all("FLEET_ERRORS", filter, From::Seq(StreamSeq(1)), 100).await;
        let told = told.map_err(|error| error.to_string())?;
        if told.len() >= streams.len() { Ok(told) } else { Err(format!("{} told", told.len())) }
    })
    .await;
    let told: Vec<String> = told.iter().map(|message| String::from_utf8_lossy(&message.body).into()).collect();
    assert_eq!(told.len(), streams.len(), "{told:?}");
    for stream in streams {
        let words = format!("{stream} was missing and was made anew at ");
        assert_eq!(told.iter().filter(|event| event.contains(&words)).count(), 1, "{told:?}");
    }
}

/// The numbers from this one on have one record each, and all ran once, in order.
async fn ran_since(ship: &Ship, first: usize) {
    for n in first..ship.count {
        assert_eq!(ship.record(n).await.state, State::Succeeded, "{n}");
    }
    let expected: Vec<String> = (0..ship.count).map(|n| n.to_string()).collect();
    assert_eq!(ship.lines(), expected);
}

#[tokio::test]
async fn the_stream_of_records() {
    let mut ship = ship().await;
    delete(&ship, "FLEET_ACKS").await;
    // What ends while it is missing is told when it is there.
    ship.send(1).await;
    told(&ship, &["FLEET_ACKS"]).await;
    ship.send(2).await;
    ran_since(&ship, 3).await;
    assert_eq!(records(&ship.fleet, "fleet.ack.>").await.len(), 3, "one each");
}

#[tokio::test]
async fn the_stream_of_commands() {
    let mut ship = ship().await;
    delete(&ship, "FLEET_COMMANDS").await;
    told(&ship, &["FLEET_COMMANDS"]).await;
    ship.send(3).await;
    ran_since(&ship, 0).await;
    for seq in 1..=6 {
        assert_eq!(acks_of(&ship.fleet, "FLEET_COMMANDS", StreamSeq(seq)).await.len(), 1, "{seq}");
    }
    assert_eq!(ship.errors("stream_changed").await, 0, "to the node it looks like a purge");
}

#[tokio::test]
async fn the_stream_of_errors_and_the_bucket() {
    let mut ship = ship().await;
    for stream in ["FLEET_ERRORS", "KV_FLEET_NODES"] {
        delete(&ship, stream).await;
    }
    told(&ship, &["FLEET_ERRORS", "KV_FLEET_NODES"]).await;
    wait_until(SOON, "the node to say how it is", async || ship.fleet.status("ship1").await).await;
    ship.send(3).await;
    ran_since(&ship, 0).await;
    assert_eq!(records(&ship.fleet, "fleet.ack.>").await.len(), 6, "one each");

    // A node that is away is not remembered where the bucket does not hold it: its next message makes it anew.
    ship.fleet.agent("ship1").kill();
    delete(&ship, "KV_FLEET_NODES").await;
    let client = &ship.fleet.client;
    wait_until(SOON, "the bucket", async || client.stream_state("KV_FLEET_NODES").await).await;
    ship.send(1).await;
    let spec = "$KV.FLEET_NODES.spec.ship1";
    let client = &ship.fleet.client;
    wait_until(SOON, "its spec", async || client.get_last("KV_FLEET_NODES", spec).await.ok().flatten()).await;
    ship.fleet.start_agent("ship1").await;
    ran_since(&ship, 0).await;
}
