//! Thinning, on real files, with the clock handed in.

use super::*;
use crate::model::id::StreamSeq;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

fn day(days: u32) -> Timestamp {
    Timestamp::from_nanos(0).plus(DAY * days)
}

fn keep(max_events: u64) -> Keep {
    Keep { max_events, ..Keep::with_retention(DAY * 30) }
}

fn event(seq: u64, door: Door) -> Arrival {
    let mut event = arrival(seq, &format!("ev-{seq}"), door);
    event.message.at.stream = StreamKind::Events;
    event.kind = Some(Kind::Event);
    event
}

fn over() -> Door {
    Door::Over { state: State::Refused, reports: vec![], remember: vec![] }
}

async fn sequences(journal: &Journal, stream: i64) -> Vec<i64> {
    journal
        .writer
        .read(move |connection| {
            let mut statement = connection.prepare("SELECT seq FROM messages WHERE stream = ?1 ORDER BY seq")?;
            let rows = statement.query_map([stream], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn finished_rows_go_when_their_time_has_come_and_others_stay() {
    let bed = Bed::new();
    let journal = bed.open();
    // Taken on day 1: two commands that are over, one that waits; three events. On day 20: one of each.
    let early = vec![arrival(1, "a", over()), arrival(2, "b", over()), arrival(3, "c", queue("x"))];
    journal.take(early, day(1), std::sync::Arc::new(Said)).await.unwrap();
    journal.take((1..=3).map(|seq| event(seq, over())).collect(), day(1), std::sync::Arc::new(Said)).await.unwrap();
    journal.take(vec![arrival(4, "d", over())], day(20), std::sync::Arc::new(Said)).await.unwrap();
    journal.take(vec![event(4, over())], day(20), std::sync::Arc::new(Said)).await.unwrap();

    assert_eq!(journal.thin(day(7), keep(1000)).await.unwrap().rows, 0, "nothing is old enough");
    assert_eq!(journal.thin(day(9), keep(1000)).await.unwrap().rows, 3, "events after seven days");
    assert_eq!(sequences(&journal, 1).await, vec![4]);
    assert_eq!(sequences(&journal, 0).await, vec![1, 2, 3, 4]);
    assert_eq!(journal.thin(day(32), keep(1000)).await.unwrap().rows, 2, "commands with the stream's retention");
    assert_eq!(sequences(&journal, 0).await, vec![3, 4], "what waits stays");
    journal.thin(day(400), keep(1000)).await.unwrap();
    assert_eq!(sequences(&journal, 0).await, vec![3, 4], "so does the last one taken");
    assert_eq!(sequences(&journal, 1).await, vec![4]);
    assert_eq!(journal.position(StreamKind::Events).await.unwrap().unwrap().last.seq, StreamSeq(4));
    assert_eq!(take(&journal, vec![event(4, over())]).await, vec![Taken::Known]);
}

#[tokio::test]
async fn too_many_events_go_oldest_first_in_small_steps() {
    let bed = Bed::new();
    let journal = bed.open();
    for first in (0..1000).step_by(250) {
        journal
            .take((first..first + 250).map(|seq| event(seq + 1, over())).collect(), day(1), std::sync::Arc::new(Said))
            .await
            .unwrap();
    }
    assert_eq!(journal.thin(day(1), keep(100)).await.unwrap().rows, 900);
    assert_eq!(sequences(&journal, 1).await, (901..=1000).collect::<Vec<i64>>());
}

#[tokio::test]
async fn empty_lanes_go_and_space_is_given_back() {
    let bed = Bed::new();
    let journal = bed.open();
    let mut rows = Vec::new();
    for seq in 1..=40 {
        let mut large = arrival(seq, &format!("m-{seq}"), queue(&format!("l{seq}")));
        large.message.body = Bytes::from(vec![7; 512 * 1024]);
        let Taken::New(row) = take(&journal, vec![large]).await[0] else { panic!("not taken") };
        rows.push(row);
    }
    let path = bed.dir.path().join("journal.db");
    let size = || std::fs::metadata(&path).unwrap().len();
    let full = size();
    for row in &rows[1..] {
        journal.start(*row, NOW, |_| Verdict::Start).await.unwrap();
        journal.finish(*row, ended(State::Succeeded), NOW).await.unwrap();
    }
    let thinned = journal.thin(day(1), keep(1000)).await.unwrap();
    assert_eq!((thinned.rows, thinned.lanes), (0, 39));
    assert!(thinned.pages > 0, "{thinned:?}");
    drop(journal);
    drop(bed.open());
    // The file is cut as its last writer closes it, in a thread of its own.
    let cut = async {
        while size() >= full / 2 {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(30), cut).await.is_ok(), "{} of {full}", size());
    assert!(std::fs::metadata(bed.dir.path().join("journal.db-wal")).map_or(0, |m| m.len()) <= 16 << 20);
}

#[tokio::test]
async fn the_next_of_a_lane_is_found_without_a_scan() {
    let bed = Bed::new();
    let journal = bed.open();
    let plan: Vec<String> = journal
        .writer
        .read(|connection| {
            let text = "EXPLAIN QUERY PLAN SELECT min(id) FROM messages WHERE lane = 1 AND phase < 3";
            let mut statement = connection.prepare(text)?;
            let rows = statement.query_map([], |row| row.get(3))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
        .unwrap();
    assert!(plan.iter().all(|step| step.contains("messages_open")), "{plan:?}");
}
