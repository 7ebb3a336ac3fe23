//! Records that are published again.

use super::*;
use crate::model::header::names;
use crate::model::record::{By, Outcome, Output, Record};
use std::sync::{Arc, Mutex};

fn record(seq: u64, stdout: &str) -> Report {
    let at = MsgRef { stream: StreamKind::Commands, seq: StreamSeq(seq), stored_at: Timestamp::from_nanos(seq as i64) };
    let id = MessageId::derived(at.stream, at.seq);
    let record = Record::bare(id, at, "FLEET_COMMANDS".into(), "n1", State::Succeeded, By::Node);
    let outcome = Outcome { stdout: Output::whole(stdout), ..Outcome::succeeded() };
    Report {
        class: Class::Ack,
        subject: format!("fleet.ack.n1.ops.shell.s{seq}"),
        headers: RawHeaders::default().with(names::EXPECTED_LAST_SUBJECT_SEQ, "0"),
        body: record.encode_with(&outcome, 1 << 20).into(),
    }
}

/// The broker may have lost all records above this sequence.
async fn lost_after(journal: &Journal, stream: StreamKind, seq: u64) {
    let at = MsgRef { stream, seq: StreamSeq(seq), stored_at: Timestamp::from_nanos(seq as i64) };
    let agreed = (seq > 0).then_some(at);
    journal.stream_changed(Changed { stream, agreed, known_until: None, reports: vec![] }).await.unwrap();
}

async fn again(journal: &Journal, stream: StreamKind) -> Vec<Finished> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    loop {
        let into = Arc::clone(&seen);
        let note = move |finished: Finished| {
            into.lock().unwrap().push(finished);
            None
        };
        if !journal.republish(stream, note).await.unwrap() {
            return std::mem::take(&mut seen.lock().unwrap());
        }
    }
}

#[tokio::test]
async fn a_commands_record_is_kept_small_and_given_again() {
    let bed = Bed::new();
    let journal = bed.open();
    for (seq, stdout) in [(1, "one\n"), (2, "two\n"), (3, "three\n".repeat(900).as_str())] {
        let begun = Door::Queue { lane: lane(&format!("l{seq}")), start: true };
        take(&journal, vec![arrival(seq, &format!("m-{seq}"), begun)]).await;
        let ended = Ended { state: State::Succeeded, reports: vec![report("progress"), record(seq, stdout)] };
        journal.finish(RowId(seq as i64), ended, NOW).await.unwrap();
    }
    lost_after(&journal, StreamKind::Commands, 0).await;
    assert_eq!(again(&journal, StreamKind::Commands).await, vec![], "they have not left yet");
    let entries = journal.outbox(Class::Ack, EntryId(0), 100, usize::MAX).await.unwrap();
    journal.published(Class::Ack, entries.last().unwrap().id, vec![]).await.unwrap();

    lost_after(&journal, StreamKind::Commands, 1).await;
    drop(journal);
    let journal = bed.open();
    let found = again(&journal, StreamKind::Commands).await;
    let records: Vec<Record> = found
        .iter()
        .map(|finished| match &finished.record {
            Again::Kept { body, .. } => serde_json::from_slice(body).unwrap(),
            Again::Row { .. } => panic!("{finished:?}"),
        })
        .collect();
    assert_eq!(records.iter().map(|r| r.seq.0).collect::<Vec<_>>(), vec![2, 3]);
    assert_eq!(records[0].stdout.as_deref(), Some("two\n"));
    assert_eq!((records[1].stdout.as_deref(), records[1].stdout_bytes, records[1].truncated), (Some(""), 5400, true));
    assert_eq!(again(&journal, StreamKind::Commands).await, vec![], "once");
}

#[tokio::test]
async fn an_events_record_is_made_from_its_row() {
    let bed = Bed::new();
    let journal = bed.open();
    for seq in 1..=600 {
        let mut event =
            arrival(seq, &format!("ev-{seq}"), Door::Over { state: State::Expired, reports: vec![], remember: vec![] });
        event.message.at.stream = StreamKind::Events;
        event.name = "log.audit".into();
        take(&journal, vec![event]).await;
    }
    lost_after(&journal, StreamKind::Events, 10).await;
    let found = again(&journal, StreamKind::Events).await;
    assert_eq!(found.iter().map(|f| f.at.seq.0).collect::<Vec<_>>(), (11..=600).collect::<Vec<_>>());
    let Again::Row { id, name, state, from, .. } = &found[0].record else { panic!("{:?}", found[0]) };
    assert_eq!((id.as_str(), name.as_str(), *state, from.as_str()), ("ev-11", "log.audit", State::Expired, "ops"));
}
