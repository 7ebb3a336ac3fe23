//! Rows that can stand for a place in a stream.

use super::*;
use std::time::Duration;

fn reach(start: u64, targets: &[&str]) -> Reach {
    let targets = targets.iter().map(|target| target.parse().unwrap()).collect();
    Reach { stream: StreamKind::Commands, start: StreamSeq(start), targets }
}

fn to(seq: u64, target: &str) -> Arrival {
    let over = Door::Over { state: State::Refused, reports: vec![], remember: vec![] };
    Arrival { to: Some(target.parse().unwrap()), ..arrival(seq, &format!("m-{seq}"), over) }
}

/// Which message, and how many steps back it is.
async fn earlier(journal: &Journal, reach: &Reach, steps: u64) -> Option<(u64, u64)> {
    let found = journal.earlier(reach.clone(), steps).await.unwrap();
    found.map(|earlier| (earlier.at.seq.0, earlier.steps))
}

#[tokio::test]
async fn the_last_ones_come_first_and_the_oldest_stands_for_all_further_back() {
    let bed = Bed::new();
    let journal = bed.open();
    let all = reach(1, &["n1"]);
    assert_eq!(earlier(&journal, &all, 0).await, None);
    assert_eq!(earlier(&journal, &all, 4).await, None);
    take(&journal, (1..=9).map(|seq| to(seq, "n1")).collect()).await;
    let mut found = Vec::new();
    for steps in [0, 1, 2, 4, 8, 16] {
        found.push(earlier(&journal, &all, steps).await.unwrap());
    }
    assert_eq!(found, [(9, 0), (8, 1), (7, 2), (5, 4), (1, 8), (1, 8)]);
    assert!(journal.earlier(all.clone(), 0).await.unwrap().unwrap().size > 0, "what the last one cost is known");
    assert_eq!(earlier(&journal, &reach(6, &["n1"]), 8).await, Some((6, 3)), "below the start nothing can be read");
}

#[tokio::test]
async fn a_group_that_was_left_is_passed_over() {
    let bed = Bed::new();
    let journal = bed.open();
    let messages = [(1, "n1"), (2, "@web"), (3, "@all"), (4, "@web"), (5, "@web")];
    take(&journal, messages.map(|(seq, target)| to(seq, target)).into()).await;
    let (member, left) = (reach(1, &["n1", "@all", "@web"]), reach(1, &["n1", "@all"]));
    assert_eq!(earlier(&journal, &member, 0).await, Some((5, 0)));
    assert_eq!(earlier(&journal, &left, 0).await, Some((3, 0)), "the anchor is what the filters still reach");
    assert_eq!(earlier(&journal, &left, 1).await, Some((1, 1)));
    assert_eq!(earlier(&journal, &reach(1, &["@none"]), 1).await, None);
    assert_eq!(journal.position(StreamKind::Commands).await.unwrap().unwrap().last.seq, StreamSeq(5));
}

#[tokio::test]
async fn a_row_behind_which_others_are_missing_stands_for_nothing() {
    let bed = Bed::new();
    let journal = bed.open();
    // 2 waits, for ever; 1, 3 and 4 are thinned; 5 is the last one taken.
    take(&journal, vec![to(1, "n1"), arrival(2, "m-2", queue("x")), to(3, "n1"), to(4, "n1"), to(5, "n1")]).await;
    let day = Duration::from_secs(86_400);
    assert_eq!(journal.thin(NOW.plus(day * 40), Keep::with_retention(day * 30)).await.unwrap().rows, 3);
    let all = reach(1, &["n1"]);
    assert_eq!(earlier(&journal, &all, 0).await, Some((5, 0)), "the last one always does");
    assert_eq!(earlier(&journal, &all, 1).await, Some((5, 0)), "3 and 4 could come again and look new");
    take(&journal, vec![to(6, "n1"), to(7, "n1")]).await;
    assert_eq!(earlier(&journal, &all, 9).await, Some((5, 2)));
}

#[tokio::test]
async fn rows_of_an_earlier_release_are_the_nodes_own() {
    let bed = Bed::new();
    let journal = bed.open();
    take(&journal, vec![Arrival { to: None, ..to(1, "n1") }, Arrival { to: None, ..to(2, "n1") }]).await;
    assert_eq!(earlier(&journal, &reach(1, &["n1"]), 1).await, Some((1, 1)));
}

#[tokio::test]
async fn what_was_found_is_kept_in_one_commit() {
    let bed = Bed::new();
    let journal = bed.open();
    take(&journal, (1..=6).map(|seq| to(seq, "n1")).collect()).await;
    let agreed = journal.earlier(reach(1, &["n1"]), 2).await.unwrap().unwrap().at;
    let until = Timestamp::from_nanos(6);
    let changed = Changed {
        stream: StreamKind::Commands,
        agreed: Some(agreed),
        known_until: Some(until),
        reports: vec![report("it has changed")],
    };
    journal.stream_changed(changed).await.unwrap();
    drop(journal);
    let journal = bed.open();
    assert_eq!(journal.position(StreamKind::Commands).await.unwrap().unwrap().last, agreed);
    assert_eq!(journal.known_until(StreamKind::Commands).await.unwrap(), until);
    assert_eq!(journal.known_until(StreamKind::Events).await.unwrap(), Timestamp::from_nanos(0));
    let told = journal.outbox(Class::Ack, EntryId(0), 10, usize::MAX).await.unwrap();
    assert_eq!(told.last().unwrap().report.subject, "it has changed");
    assert!(journal.meta::<String>(Key::RepublishCommands).await.unwrap().unwrap().starts_with("4:"));
    // From the agreed one on the rows above it are not the way back, but the first to be looked at.
    assert_eq!(earlier(&journal, &reach(1, &["n1"]), 1).await, Some((6, 1)));
    assert_eq!(take(&journal, vec![to(5, "n1")]).await, [Taken::Known], "and are known");
    let earlier_time = Changed {
        stream: StreamKind::Commands,
        agreed: None,
        known_until: Some(Timestamp::from_nanos(4)),
        reports: vec![],
    };
    journal.stream_changed(earlier_time).await.unwrap();
    assert_eq!(journal.known_until(StreamKind::Commands).await.unwrap(), until, "what counts as taken stays so");
}

#[tokio::test]
async fn reading_again_begins_at_the_place_before_where_there_is_one() {
    let bed = Bed::new();
    let journal = bed.open();
    let targets: Arc<[_]> = ["n1", "@web"].map(|target| target.parse().unwrap()).into();
    let place = async |seq: u64| {
        journal.go_back(StreamKind::Commands, StreamSeq(seq), Arc::clone(&targets)).await.unwrap();
        journal.position(StreamKind::Commands).await.unwrap().unwrap().last.seq.0
    };
    let all = [(3, "@web"), (5, "n1"), (6, "@db"), (9, "n1"), (12, "n1")];
    take(&journal, all.map(|(seq, target)| to(seq, target)).into()).await;
    assert_eq!(place(9).await, 9);
    assert_eq!(place(8).await, 5, "what lies between may be what was passed over; 6 reaches the node no more");
    assert_eq!(place(2).await, 3, "there is none before");
}

#[tokio::test]
async fn publishing_again_begins_at_the_lowest_place_asked_for() {
    let bed = Bed::new();
    let journal = bed.open();
    let changed = |agreed: Option<u64>| Changed {
        stream: StreamKind::Commands,
        agreed: agreed.map(|seq| to(seq, "n1").message.at),
        known_until: None,
        reports: vec![],
    };
    for (agreed, from) in [(Some(7), "7:"), (Some(9), "7:"), (Some(3), "3:"), (None, "0:")] {
        journal.stream_changed(changed(agreed)).await.unwrap();
        let mark: String = journal.meta(Key::RepublishCommands).await.unwrap().unwrap();
        assert!(mark.starts_with(from), "{mark} for {agreed:?}");
    }
}
