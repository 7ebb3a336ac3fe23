//! Many publishes at once: each has its own word from the broker, whatever becomes of the others and of the link.

use crate::harness::{Fleet, Link, Proxy, SOON, TestBroker, open_to, wait_until};
use edgeward::broker::{Broker, Outgoing, Parcel, PublishError, Publisher, Word};
use std::time::{Duration, Instant};

/// Longer than any of these tests waits for an answer that cannot come.
const SILENCE: Duration = Duration::from_secs(60);

/// Under way at once.
const AT_ONCE: usize = 7;

/// The first records of so many messages to this node.
fn records(node: &str, count: usize) -> Vec<Outgoing> {
    let record = |n| Outgoing::new(format!("fleet.ack.{node}.ops.shell.a{n}"), format!("{n}")).expecting_last(0);
    (0..count).map(record).collect()
}

async fn publish(publisher: &mut Publisher, messages: &[Outgoing]) -> Vec<Word> {
    let parcels: Vec<Parcel<'_>> = messages.iter().map(Outgoing::parcel).collect();
    publisher.publish_all(&parcels, AT_ONCE, SILENCE).await
}

/// A broker with the hub's streams, at which nobody may publish the records of `n9`.
async fn fleet() -> Fleet {
    let users = r#"
        authorization { users: [{ user: all, password: all, permissions: { publish: { deny: ["fleet.ack.n9.>"] } } }] }
        no_auth_user: all
    "#;
    let fleet = Fleet::at(TestBroker::with(|options| options.extra_config = users.to_owned()).await, &[]).await;
    wait_until(SOON, "the streams", async || {
        let probe = Outgoing::new("fleet.ack.n1.ops.shell.probe", "");
        fleet.client.publish(&probe, Duration::from_secs(1)).await.map_err(|error| error.to_string())
    })
    .await;
    fleet
}

#[tokio::test]
async fn each_message_has_its_own_word() {
    let fleet = fleet().await;
    let mut messages = records("n1", 60);
    fleet.client.publish(&messages[3], SOON).await.unwrap();
    messages[10] = Outgoing::new("nowhere.at.all", "");
    messages[11] = Outgoing::new("fleet.ack.n1.ops.shell.bad", "").with("A", "a\r\nb");
    messages[12] = Outgoing::new("fleet.ack.n1.ops.shell.big", vec![b'x'; 2 << 20]);
    messages[13] = records("n9", 1).remove(0);
    let mut publisher = Publisher::new(&fleet.client).await.unwrap();
    let mut last = 0;
    for (n, word) in publish(&mut publisher, &messages).await.into_iter().enumerate() {
        match (n, word) {
            (3, word) => assert!(matches!(word, Err(PublishError::WrongLast)), "{word:?}"),
            (10, word) => assert!(matches!(word, Err(PublishError::NoStream)), "{word:?}"),
            (11, word) => assert!(matches!(word, Err(PublishError::Unsendable(_))), "{word:?}"),
            (12, word) => assert!(matches!(word, Err(PublishError::TooLarge { .. })), "{word:?}"),
            (13, word) => assert!(matches!(word, Err(PublishError::Denied { .. })), "{word:?}"),
            (_, Ok(stored)) => {
                assert!(stored.seq.0 > last, "they are stored in order");
                last = stored.seq.0;
            }
            (n, word) => panic!("{n}: {word:?}"),
        }
    }
    // The same publisher again: what was stored stands there.
    let again = publish(&mut publisher, &messages[20..]).await;
    assert!(again.iter().all(|word| matches!(word, Err(PublishError::WrongLast))), "{again:?}");
    assert!(publish(&mut publisher, &[]).await.is_empty());
}

#[tokio::test]
async fn what_a_lost_link_took_with_it_is_not_known_at_once() {
    let fleet = fleet().await;
    let proxy = Proxy::start(fleet.broker.server.port()).await;
    let client = Broker::connect(&open_to(vec![proxy.url()])).await.unwrap();
    client.wait_up().await.unwrap();
    let mut publisher = Publisher::new(&client).await.unwrap();
    assert!(publish(&mut publisher, &records("n1", 1)).await[0].is_ok());
    // The broker stores the first ones and nobody hears of it.
    proxy.set(Link::Deaf);
    let (messages, begun) = (records("n2", 3 * AT_ONCE), Instant::now());
    let stored = async {
        wait_until(SOON, "the first ones to be stored", async || {
            let last = format!("fleet.ack.n2.ops.shell.a{}", AT_ONCE - 1);
            fleet.client.get_last("FLEET_ACKS", &last).await.ok().flatten().ok_or("not stored")
        })
        .await;
        proxy.set(Link::Cut);
    };
    let (words, ()) = tokio::join!(publish(&mut publisher, &messages), stored);
    let (first, others) = words.split_at(AT_ONCE);
    // Answers that were on their way still may come.
    assert!(first.iter().all(|word| matches!(word, Ok(_) | Err(PublishError::Unknown))), "{first:?}");
    assert!(others.iter().all(|word| matches!(word, Err(PublishError::Unknown))), "{others:?}");
    assert!(begun.elapsed() < SILENCE / 2, "{:?}", begun.elapsed());
    proxy.set(Link::Open);
    wait_until(SOON, "the link", async || client.link().borrow().up).await;
    let words = publish(&mut publisher, &messages).await;
    let (first, others) = words.split_at(AT_ONCE);
    assert!(first.iter().all(|word| matches!(word, Err(PublishError::WrongLast))), "{first:?}");
    // What the client still had leaves with the new link.
    assert!(others.iter().all(|word| matches!(word, Ok(_) | Err(PublishError::WrongLast))), "{others:?}");
}
