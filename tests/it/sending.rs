//! Sending and cancelling as the operator's library does it: what is said of a message is true, and asking costs what it has
//! to.

use crate::harness::{SOON, TestBroker};
use edgeward::broker::{Broker, Outgoing, topology};
use edgeward::model::config::HubConfig;
use edgeward::model::id::{IdRef, StreamSeq};
use edgeward::model::message::{Kind, StreamKind};
use edgeward::model::name::{Sender, Target};
use edgeward::operator::{Draft, SendError, SendOptions, Which, cancel, plan_cancel, send};
use futures::StreamExt;
use serde_json::json;

fn ops() -> Sender {
    "ops".parse().unwrap()
}

fn draft(to: &str) -> Draft {
    let to: Target = to.parse().unwrap();
    Draft::new(vec![to], Kind::Command, "shell".parse().unwrap(), "true")
}

#[tokio::test]
async fn a_message_whose_first_try_had_no_answer_is_never_said_not_to_be_stored() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    // Somebody takes the message and does not say what he did with it; the next time nobody is there.
    let silent = async_nats::connect(broker.url()).await.unwrap();
    let mut messages = silent.subscribe("fleet.msg.>").await.unwrap();
    silent.publish("fleet.msg.he.is.here", "".into()).await.unwrap();
    messages.next().await.unwrap();
    let taken = async {
        messages.next().await.unwrap();
        messages.unsubscribe().await.unwrap();
        silent.flush().await.unwrap();
    };
    let (draft, from, options) = (draft("ship1"), ops(), SendOptions { deadline: SOON });
    let (sent, ()) = tokio::join!(send(&client, &from, &draft, &options), taken);
    assert!(matches!(sent[0].result, Err(SendError::Unknown)), "{sent:?}");
    // Of a first try the same word is a plain one.
    let sent = send(&client, &from, &draft, &options).await;
    assert!(matches!(sent[0].result, Err(SendError::Refused(_))), "{sent:?}");
}

/// Nodes that are members of `@web` from the first message on.
async fn members(client: &Broker, count: usize) {
    for n in 0..count {
        let start = json!({ "commands": 1, "events": 1 });
        let member = json!({ "name": "web", "join": start });
        let spec = json!({ "v": 1, "node": format!("n{n}"), "start": start, "groups": [member] });
        let key = format!("$KV.FLEET_NODES.spec.n{n}");
        client.publish(&Outgoing::new(key, spec.to_string()), SOON).await.unwrap();
    }
}

#[tokio::test]
async fn cancelling_a_groups_message_costs_the_same_however_many_it_was_for() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    topology::ensure(&client, &HubConfig { store_bytes: 1 << 30, ..HubConfig::default() }).await.unwrap();
    members(&client, 30).await;
    client.publish(&Outgoing::new("fleet.msg.n0.command.ops.shell", "true"), SOON).await.unwrap();
    let sent = send(&client, &ops(), &draft("@web"), &SendOptions::default()).await;
    let seq = sent[0].result.as_ref().unwrap().seq;
    let which = Which::One { id: IdRef::Stored(StreamKind::Commands, seq), since: None };
    let plan = plan_cancel(&client, &which, Some(&ops())).await.unwrap();
    assert_eq!(plan.open.len(), 30);
    let before = client.requests();
    let told = cancel(&client, &ops(), &plan.open, &SendOptions::default()).await.unwrap();
    let asked = client.requests() - before;
    assert!(told.iter().all(|one| one.result.as_ref().is_ok_and(|sent| sent.seq == StreamSeq(seq.0 + 1))), "{told:?}");
    assert!(told.len() == 30 && asked < 5, "{} told, {asked} requests", told.len());
}
