//! The share of lanes and senders, with small limits.

use super::*;

/// A message whose size counts as `SIZE`, nearly.
fn large(seq: u64, sender: &str, name: &str) -> Arrival {
    let door = Door::Queue { lane: LaneKey { from: sender.parse().unwrap(), ..lane(name) }, start: false };
    let mut arrival = arrival(seq, &format!("m{seq}-{name}"), door);
    arrival.from = sender.to_owned();
    arrival.message.body = Bytes::from(vec![b'x'; SIZE]);
    arrival
}

const SIZE: usize = 10_000;

/// Room for eight messages in all: two a lane, four a sender.
const SPACE: u64 = 8 * SIZE as u64 + 4000;

async fn takes(journal: &Journal, arrival: Arrival) -> bool {
    match &take(journal, vec![arrival]).await[0] {
        Taken::New(_) => true,
        Taken::Refused(_) => false,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_full_lane_a_full_sender_and_a_full_journal_refuse() {
    let bed = Bed::new();
    let journal = bed.open().with_space(SPACE);
    assert!(takes(&journal, large(1, "ops", "x")).await);
    assert!(takes(&journal, large(2, "ops", "x")).await);
    assert!(!takes(&journal, large(3, "ops", "x")).await, "the lane's quarter");
    assert!(takes(&journal, large(4, "ops", "y")).await);
    assert!(takes(&journal, large(5, "ops", "y")).await);
    assert!(!takes(&journal, large(6, "ops", "z")).await, "the sender's half");
    for (seq, lane) in [(7, "x"), (8, "x"), (9, "y"), (10, "y")] {
        assert!(takes(&journal, large(seq, "bob", lane)).await);
    }
    assert!(!takes(&journal, large(11, "carol", "x")).await, "the whole journal");
    let told = told(&journal).await;
    assert_eq!(told.len(), 3);
    for (text, whose) in told.iter().zip(["lane's share", "sender's share", "the node's journal"]) {
        assert!(text.contains(whose), "{text}");
    }
    let lanes = journal.open_lanes().await.unwrap();
    assert_eq!(lanes.iter().map(|(_, _, count)| count).sum::<u64>(), 8);

    let mut at_once = large(12, "carol", "now");
    at_once.door = Door::Queue { lane: LaneKey { from: "carol".parse().unwrap(), ..lane("now") }, start: true };
    assert!(takes(&journal, at_once).await, "what begins at once does not wait");
}

#[tokio::test]
async fn what_is_held_is_counted_exactly_over_restarts() {
    let bed = Bed::new();
    let journal = bed.open().with_space(SPACE);
    assert!(takes(&journal, large(1, "ops", "x")).await);
    assert!(takes(&journal, large(2, "ops", "x")).await);
    assert!(!takes(&journal, large(3, "ops", "x")).await);
    drop(journal);
    let journal = bed.open().with_space(SPACE);
    assert!(!takes(&journal, large(4, "ops", "x")).await, "as before");
    journal.start(RowId(1), NOW, |_| Verdict::Start).await.unwrap();
    journal.finish(RowId(1), ended(State::Succeeded), NOW).await.unwrap();
    assert!(takes(&journal, large(5, "ops", "x")).await, "one has left");
    assert!(!takes(&journal, large(6, "ops", "x")).await);
    drop(journal);
    let journal = bed.open();
    let held: Vec<(i64, i64)> = journal
        .writer
        .read(|connection| {
            let counted = "SELECT what, sum(bytes) FROM held GROUP BY what ORDER BY what";
            let mut statement = connection.prepare(counted)?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
        .unwrap();
    let all: i64 = journal
        .writer
        .read(|connection| {
            let sum = "SELECT sum(octet_length(subject) + octet_length(headers) + octet_length(body)) FROM bodies";
            Ok(connection.query_row(sum, [], |row| row.get(0))?)
        })
        .await
        .unwrap();
    assert_eq!(held, vec![(0, all), (1, all), (2, all)]);
}
