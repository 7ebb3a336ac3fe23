//! Runs: several messages of a lane in one commit; and what is over as it is taken.

use super::*;

async fn queued(journal: &Journal, count: u64) {
    let arrivals = (1..=count).map(|seq| arrival(seq, &format!("m{seq}"), queue("x"))).collect();
    assert_eq!(take(journal, arrivals).await.len() as u64, count);
}

async fn begin(journal: &Journal, head: i64, most: usize) -> Vec<i64> {
    let follows = |loaded: &Loaded| (loaded.message.at.seq != StreamSeq(6)).then_some(loaded.message.at.seq);
    let started = journal.start_run(RowId(head), NOW, most, |_| Verdict::Start, follows).await.unwrap();
    let Decision::Started(loaded) = started.head else { panic!("{started:?}") };
    assert_eq!((loaded.message.at.seq, loaded.attempt), (StreamSeq(head as u64), 1));
    assert!(started.behind.iter().all(|(row, seq)| row.0 as u64 == seq.0));
    started.behind.into_iter().map(|(row, _)| row.0).collect()
}

async fn end(journal: &Journal, through: &[i64], back: &[i64]) -> RunEnd {
    let through = through.iter().map(|row| (RowId(*row), ended(State::Succeeded))).collect();
    let back = back.iter().map(|row| RowId(*row)).collect();
    journal.end_run(through, back, NOW, Arc::new(Said)).await.unwrap()
}

#[tokio::test]
async fn a_run_goes_as_far_as_it_may_and_ends_as_one() {
    let bed = Bed::new();
    let journal = bed.open();
    queued(&journal, 7).await;
    assert_eq!(begin(&journal, 1, 2).await, [2, 3], "no more than that");
    assert_eq!(end(&journal, &[1, 2, 3], &[]).await, RunEnd { over: 3, next: Some(RowId(4)) });
    assert_eq!(begin(&journal, 4, 9).await, [5], "the sixth does not follow, nor what is behind it");
    assert_eq!(end(&journal, &[4, 5], &[]).await, RunEnd { over: 2, next: Some(RowId(6)) });
    assert_eq!(begin(&journal, 6, 9).await, Vec::<i64>::new(), "nor does it lead");
    assert_eq!(told(&journal).await, ["succeeded"; 5]);
}

#[tokio::test]
async fn what_was_not_tried_is_as_before_and_what_was_cancelled_meanwhile_is_over() {
    let bed = Bed::new();
    let journal = bed.open();
    let events = (1..=4).map(|seq| Arrival { kind: Some(Kind::Event), ..arrival(seq, &format!("m{seq}"), queue("x")) });
    take(&journal, events.collect()).await;
    assert_eq!(begin(&journal, 1, 9).await, [2, 3, 4]);
    assert_eq!(take(&journal, vec![cancel(9, "m3")]).await, [Taken::CarriedOut(vec![Met::GoesOn])]);
    // The first one failed: nothing is through, the others are given back.
    assert_eq!(end(&journal, &[], &[2, 3, 4]).await, RunEnd { over: 1, next: None });
    assert!(journal.try_again(RowId(1), vec![], NOW).await.unwrap());
    let lanes = journal.open_lanes().await.unwrap();
    assert_eq!(lanes, [(lane("x"), RowId(1), 3)], "the head waits, two are queued behind it");
    assert!(told(&journal).await.contains(&"s3 cancelled by chief after try 0".to_owned()));
    let second = journal.load(RowId(2)).await.unwrap();
    assert_eq!((second.attempt, second.started_at), (0, None));
    assert!(journal.held_runs().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_crash_in_a_run_leaves_all_of_it_to_be_found() {
    let bed = Bed::new();
    let journal = bed.open();
    queued(&journal, 3).await;
    assert_eq!(begin(&journal, 1, 9).await, [2, 3]);
    drop(journal);
    let found: Vec<(i64, u32)> =
        bed.open().held_runs().await.unwrap().iter().map(|run| (run.row.0, run.attempt)).collect();
    assert_eq!(found, [(1, 1), (2, 1), (3, 1)]);
}

#[tokio::test]
async fn what_needs_no_running_is_over_as_it_is_taken() {
    let bed = Bed::new();
    let journal = bed.open();
    let at_once = || Door::AtOnce(ended(State::Succeeded));
    take(&journal, vec![cancel(9, "b")]).await;
    let taken = take(&journal, vec![arrival(10, "a", at_once()), arrival(11, "b", at_once())]).await;
    assert_eq!(taken, [Taken::New(RowId(2)), Taken::Cancelled(RowId(3))]);
    assert_eq!(take(&journal, vec![arrival(12, "a", at_once())]).await, [Taken::Copy(RowId(2))]);
    assert_eq!(told(&journal).await, ["s9 met 0", "succeeded", "s11 cancelled by chief after try 0", "copy of s10"]);
    assert!(journal.open_lanes().await.unwrap().is_empty() && journal.held_runs().await.unwrap().is_empty());
    let again = journal.start(RowId(2), NOW, |_| Verdict::Start).await.unwrap();
    assert_eq!(again, Decision::Gone);
}

#[tokio::test]
async fn an_order_that_ends_a_run_does_not_end_what_is_given_back_and_begins_later() {
    let bed = Bed::new();
    let journal = bed.open();
    queued(&journal, 2).await;
    assert_eq!(begin(&journal, 1, 9).await, [2]);
    let what = What::Processes { names: vec!["shell".to_owned()], change: Change::Restart };
    let restart = Door::Order(Order { what, by: "chief".to_owned() });
    take(&journal, vec![Arrival { kind: Some(Kind::Control), ..arrival(9, "r", restart) }]).await;
    let to_end = async || journal.held_runs().await.unwrap().iter().map(|run| run.to_end).collect::<Vec<_>>();
    assert_eq!(to_end().await, [true, true]);
    // The first one is through; the second, which was not tried, begins when its turn comes.
    assert_eq!(end(&journal, &[1], &[2]).await, RunEnd { over: 1, next: Some(RowId(2)) });
    journal.start(RowId(2), NOW, |_| Verdict::Start).await.unwrap();
    assert_eq!(to_end().await, [false]);
    assert_eq!(journal.end_order(RowId(2)).await.unwrap(), None);
}
