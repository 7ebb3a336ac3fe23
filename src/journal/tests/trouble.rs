//! A disk that does not take it, here a file that may not grow: nothing half done, and all of it told.

use super::*;

async fn pages(journal: &Journal, limit: i64) {
    let set = move |connection: &super::super::part::Tx<'_>| {
        connection.pragma_update_and_check(None, "max_page_count", limit, |_| Ok(()))?;
        Ok(())
    };
    journal.writer.read(set).await.unwrap();
}

fn large(seq: u64) -> Arrival {
    let mut large = arrival(seq, &format!("m-{seq}"), queue("x"));
    large.message.body = Bytes::from(vec![1; 300_000]);
    large
}

#[tokio::test]
async fn nothing_is_taken_while_the_disk_is_full_and_it_goes_on_after() {
    let bed = Bed::new();
    let journal = bed.open();
    take(&journal, vec![arrival(1, "a", queue("x"))]).await;
    pages(&journal, 1).await;
    let full = journal.take(vec![large(2)], NOW, std::sync::Arc::new(Said)).await.unwrap_err();
    assert!(full.may_heal(), "{full}");
    assert!(matches!(*journal.health().borrow(), Condition::Failing { .. }));
    assert_eq!(journal.position(StreamKind::Commands).await.unwrap().unwrap().last.seq, StreamSeq(1));
    assert_eq!(journal.load(RowId(1)).await.unwrap().message.at.seq, StreamSeq(1), "reading goes on");
    let (again, other) = tokio::join!(
        journal.take(vec![large(2)], NOW, std::sync::Arc::new(Said)),
        journal.take(vec![large(3)], NOW, std::sync::Arc::new(Said))
    );
    assert!(again.is_err() && other.is_err(), "whoever shares the transaction hears of it");
    assert!(journal.failures() >= 2);

    pages(&journal, 100_000).await;
    assert_eq!(take(&journal, vec![large(2)]).await, vec![Taken::New(RowId(2))]);
    assert_eq!(*journal.health().borrow(), Condition::Good);
    drop(journal);
    let journal = bed.open();
    assert_eq!(journal.open_lanes().await.unwrap(), vec![(lane("x"), RowId(1), 2)]);
}

#[tokio::test]
async fn what_could_not_be_removed_goes_with_the_next_call() {
    let bed = Bed::new();
    let journal = bed.open();
    journal.report(["a", "b", "c"].map(report).to_vec()).await.unwrap();
    let entries = journal.outbox(Class::Ack, EntryId(0), 9, usize::MAX).await.unwrap();
    // As if the removal of the first two had failed.
    journal.published(Class::Ack, entries[1].id, vec![]).await.unwrap();
    assert_eq!(told(&journal).await, vec!["a", "b", "c"], "lazy");
    journal.report(vec![]).await.unwrap();
    assert_eq!(told(&journal).await, vec!["c"]);
}
