//! The journal as a whole: real files, opened again as after a crash.

mod anchors;
mod damage;
mod failures;
mod members;
mod records;
mod run;
mod shares;
mod thin;
mod trouble;

use super::*;
use crate::model::header::RawHeaders;
use crate::model::id::{MessageId, MsgRef, StreamSeq};
use crate::model::lanes::RowId;
use crate::model::message::{Kind, StoredMessage, StreamKind};
use crate::model::process::Started;
use crate::model::state::State;
use crate::model::subject::LaneKey;
use crate::model::time::Timestamp;
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const NOW: Timestamp = Timestamp::from_nanos(1_000);

struct Bed {
    dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Bed {
        Bed { dir: tempfile::tempdir().unwrap() }
    }

    fn open(&self) -> Journal {
        when_free(self.dir.path(), "n1", Some("boot-1")).unwrap().journal
    }
}

/// Opens a journal; the writer of the one before may still be closing it.
pub(super) fn when_free(folder: &Path, node: &str, boot: Option<&str>) -> Result<Opened, JournalError> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match Journal::open(folder, &node.parse().unwrap(), boot) {
            Err(JournalError::InUse { .. }) if Instant::now() < deadline => std::thread::yield_now(),
            opened => return opened,
        }
    }
}

fn lane(name: &str) -> LaneKey {
    LaneKey {
        kind: Kind::Command,
        from: "ops".parse().unwrap(),
        method: "shell".parse().unwrap(),
        lane: Some(name.parse().unwrap()),
    }
}

fn arrival(seq: u64, id: &str, door: Door) -> Arrival {
    let at = MsgRef { stream: StreamKind::Commands, seq: StreamSeq(seq), stored_at: Timestamp::from_nanos(seq as i64) };
    Arrival {
        message: StoredMessage {
            at,
            subject: "fleet.msg.n1.command.ops.shell".into(),
            headers: RawHeaders::default().with("Fleet-Id", id),
            body: Bytes::from(format!("body of {seq}")),
        },
        id: MessageId::try_from(id.to_owned()).unwrap(),
        from: "ops".into(),
        to: Some("n1".parse().unwrap()),
        kind: Some(Kind::Command),
        door,
        name: "shell".into(),
        if_copy: Box::new(|first| vec![report(&format!("copy of {first}"))]),
        if_full: Box::new(|full| vec![report(&format!("full: {full}"))]),
    }
}

fn queue(name: &str) -> Door {
    Door::Queue { lane: lane(name), start: false }
}

fn report(text: &str) -> Report {
    Report { class: Class::Ack, subject: text.into(), headers: RawHeaders::default(), body: Bytes::new() }
}

fn ended(state: State) -> Ended {
    Ended { state, reports: vec![report(state.as_str())] }
}

/// What is told about cancels, in short.
struct Said;

impl Words for Said {
    fn cancelled(&self, message: &Loaded, by: &str, _: Timestamp) -> Vec<Report> {
        vec![report(&format!("{} cancelled by {by} after try {}", message.message.at, message.attempt))]
    }
    fn cancel_requested(&self, message: &Loaded, by: &str) -> Vec<Report> {
        vec![report(&format!("{} cancel requested by {by} in try {}", message.message.at, message.attempt))]
    }
    fn carried_out(&self, cancel: &StoredMessage, met: &[Met], _: Timestamp) -> Vec<Report> {
        vec![report(&format!("{} met {}", cancel.at, met.len()))]
    }
    fn obeyed(&self, order: &StoredMessage, obeyed: &Obeyed, _: Timestamp) -> Vec<Report> {
        vec![report(&format!("{} did {:?}", order.at, obeyed.effects))]
    }
}

/// A cancel of `ops`'s message of this id, kept until 10,000 ns.
fn cancel(seq: u64, id: &str) -> Arrival {
    let of = Cancel {
        from: "ops".to_owned(),
        id: MessageId::try_from(id.to_owned()).unwrap(),
        by: "chief".to_owned(),
        until: Timestamp::from_nanos(10_000),
    };
    Arrival { kind: Some(Kind::Control), ..arrival(seq, &format!("c{seq}"), Door::Cancel(of)) }
}

async fn told(journal: &Journal) -> Vec<String> {
    let entries = journal.outbox(Class::Ack, EntryId(0), 100, usize::MAX).await.unwrap();
    entries.into_iter().map(|entry| entry.report.subject).collect()
}

async fn take(journal: &Journal, arrivals: Vec<Arrival>) -> Vec<Taken> {
    journal.take(arrivals, NOW, Arc::new(Said)).await.unwrap()
}

#[tokio::test]
async fn a_message_is_taken_once_and_a_copy_is_linked() {
    let bed = Bed::new();
    let journal = bed.open();
    let first = take(&journal, vec![arrival(1, "a", queue("x")), arrival(2, "b", queue("x"))]).await;
    assert_eq!(first, vec![Taken::New(RowId(1)), Taken::New(RowId(2))]);
    let again = take(&journal, vec![arrival(1, "a", queue("x")), arrival(3, "a", queue("y"))]).await;
    assert_eq!(again, vec![Taken::Known, Taken::Copy(RowId(1))]);
    assert_eq!(told(&journal).await, vec!["copy of s1"]);
    let position = journal.position(StreamKind::Commands).await.unwrap().unwrap();
    assert_eq!(position.last.seq, StreamSeq(3));
    assert_eq!(journal.open_lanes().await.unwrap(), vec![(lane("x"), RowId(1), 2)]);
}

#[tokio::test]
async fn a_lane_is_worked_off_in_order_and_everything_survives_a_restart() {
    let bed = Bed::new();
    let journal = bed.open();
    let begun = Door::Queue { lane: lane("x"), start: true };
    take(&journal, vec![arrival(1, "a", begun), arrival(2, "b", queue("x")), arrival(3, "c", queue("y"))]).await;
    journal.note_process(RowId(1), Started { pid: 7, start_time: 9 }).await.unwrap();
    journal.set_meta(Key::Beat, 4).await.unwrap();
    drop(journal);

    let journal = bed.open();
    let held = journal.held_runs().await.unwrap();
    assert_eq!(held.len(), 1);
    assert_eq!((held[0].row, held[0].attempt), (RowId(1), 1));
    assert_eq!(held[0].process, Some(Started { pid: 7, start_time: 9 }));
    assert_eq!(held[0].boot.as_deref(), Some("boot-1"));
    assert_eq!(journal.meta::<u64>(Key::Beat).await.unwrap(), Some(4));
    let next = journal.finish(RowId(1), ended(State::Interrupted), NOW).await.unwrap();
    assert_eq!(next, Some(RowId(2)), "the lane's next head");
    let Decision::Started(loaded) = journal.start(RowId(2), NOW, |_| Verdict::Start).await.unwrap() else {
        panic!("not started")
    };
    assert_eq!((loaded.attempt, loaded.message.body.as_ref()), (1, &b"body of 2"[..]));
    assert!(journal.try_again(RowId(2), vec![], NOW).await.unwrap());
    let Decision::Started(loaded) = journal.start(RowId(2), NOW, |_| Verdict::Start).await.unwrap() else {
        panic!("not started again")
    };
    assert_eq!(loaded.attempt, 2);
    assert_eq!(journal.finish(RowId(2), ended(State::Succeeded), NOW).await.unwrap(), None);
    assert_eq!(told(&journal).await, vec!["interrupted", "succeeded"]);
}

#[tokio::test]
async fn what_the_phase_forbids_is_refused_and_changes_nothing() {
    let bed = Bed::new();
    let journal = bed.open();
    take(&journal, vec![arrival(1, "a", queue("x"))]).await;
    assert!(matches!(journal.finish(RowId(1), ended(State::Succeeded), NOW).await, Err(JournalError::Illegal(_))));
    assert_eq!(journal.start(RowId(1), NOW, |_| Verdict::Later).await.unwrap(), Decision::Later, "it stays queued");
    let over = journal.start(RowId(1), NOW, |_| Verdict::Over(ended(State::Expired))).await.unwrap();
    assert_eq!(over, Decision::Over { next: None });
    assert!(journal.finish(RowId(1), ended(State::Failed), NOW).await.is_err(), "never a second end");
    assert_eq!(told(&journal).await, vec!["expired"]);
    assert!(matches!(journal.start(RowId(9), NOW, |_| Verdict::Start).await, Err(JournalError::NoRow(9))));
}

#[tokio::test]
async fn one_request_that_fails_takes_no_other_with_it() {
    let bed = Bed::new();
    let journal = bed.open();
    take(&journal, vec![arrival(1, "a", queue("x")), arrival(2, "b", queue("y"))]).await;
    let (bad, good) = tokio::join!(
        journal.finish(RowId(1), ended(State::Succeeded), NOW),
        journal.start(RowId(2), NOW, |_| Verdict::Start)
    );
    assert!(bad.is_err());
    assert!(matches!(good, Ok(Decision::Started(_))));
}

#[tokio::test]
async fn what_is_refused_at_the_door_is_over_and_remembered() {
    let bed = Bed::new();
    let journal = bed.open();
    let door = Door::Over {
        state: State::Refused,
        reports: vec![report("no")],
        remember: vec![Remember::Value(Key::EventsStart, "7".to_owned())],
    };
    take(&journal, vec![arrival(1, "a", door)]).await;
    assert!(journal.open_lanes().await.unwrap().is_empty());
    assert_eq!(told(&journal).await, vec!["no"]);
    assert_eq!(journal.meta::<u64>(Key::EventsStart).await.unwrap(), Some(7));
}

#[tokio::test]
async fn the_outbox_keeps_order_and_sets_aside_what_cannot_leave() {
    let bed = Bed::new();
    let journal = bed.open();
    journal.report(["a", "b", "c"].map(report).to_vec()).await.unwrap();
    let entries = journal.outbox(Class::Ack, EntryId(0), 2, usize::MAX).await.unwrap();
    assert_eq!(entries.len(), 2);
    let later = journal.outbox(Class::Ack, entries[1].id, 2, usize::MAX).await.unwrap();
    assert_eq!(later[0].report.subject, "c");
    journal.published(Class::Ack, entries[0].id, vec![]).await.unwrap();
    journal.park(entries[1].id, "too large".into(), vec![report("small b")]).await.unwrap();
    assert_eq!(told(&journal).await, vec!["c", "small b"]);
    assert_eq!(journal.outbox_len().await.unwrap(), 2);
    assert!(journal.report_once(Key::Inmsg, "mark".into(), vec![report("d")]).await.unwrap());
    assert!(!journal.report_once(Key::Inmsg, "mark".into(), vec![report("d")]).await.unwrap());
    assert_eq!(journal.outbox_len().await.unwrap(), 3);
}

#[tokio::test]
async fn what_was_just_kept_is_given_as_the_table_has_it() {
    let bed = Bed::new();
    let journal = bed.open();
    let behind = async |after: EntryId| journal.outbox(Class::Ack, after, 9, usize::MAX).await.unwrap();
    let subjects = |entries: &[Entry]| entries.iter().map(|entry| entry.report.subject.clone()).collect::<Vec<_>>();
    journal.report(["a", "b"].map(report).to_vec()).await.unwrap();
    let read = behind(EntryId(0)).await;
    journal.report(["c", "d", "e"].map(report).to_vec()).await.unwrap();
    let kept = behind(read[1].id).await;
    assert_eq!(subjects(&kept), ["c", "d", "e"]);
    journal.report(vec![report("f")]).await.unwrap();
    journal.park(kept[1].id, "too large".into(), vec![report("small d")]).await.unwrap();
    journal.published(Class::Ack, kept[0].id, vec![kept[2].id]).await.unwrap();
    assert_eq!(subjects(&behind(kept[0].id).await), ["f", "small d"]);
    drop(journal);
    assert_eq!(told(&bed.open()).await, ["f", "small d"]);
}

#[tokio::test]
async fn a_cancel_ends_what_waits_and_stops_what_runs() {
    let bed = Bed::new();
    let journal = bed.open();
    let begun = Door::Queue { lane: lane("x"), start: true };
    take(&journal, vec![arrival(1, "a", begun), arrival(2, "b", queue("x")), arrival(3, "c", queue("x"))]).await;
    let met = take(&journal, vec![cancel(4, "b"), cancel(5, "a")]).await;
    let over = Met::Ended { row: RowId(2), lane: lane("x"), next: Some(RowId(1)) };
    let to_stop = Met::ToStop { row: RowId(1), lane: lane("x") };
    assert_eq!(met, vec![Taken::CarriedOut(vec![over]), Taken::CarriedOut(vec![to_stop])]);
    assert_eq!(
        told(&journal).await,
        ["s2 cancelled by chief after try 0", "s4 met 1", "s1 cancel requested by chief in try 1", "s5 met 1"]
    );
    assert_eq!(journal.start(RowId(2), NOW, |_| Verdict::Start).await.unwrap(), Decision::Gone);
    assert_eq!(journal.open_lane(lane("x")).await.unwrap(), Some((RowId(1), 2)));

    drop(journal);
    let journal = bed.open();
    assert_eq!(journal.cancelled_by(RowId(1), NOW).await.unwrap().as_deref(), Some("chief"), "a restart keeps it");
    assert_eq!(journal.cancelled_by(RowId(3), NOW).await.unwrap(), None);
    assert!(!journal.try_again(RowId(1), vec![report("retrying")], NOW).await.unwrap(), "no further try");
    let next = journal.finish(RowId(1), ended(State::Cancelled), NOW).await.unwrap();
    assert_eq!(next, Some(RowId(3)));
    let again = take(&journal, vec![cancel(6, "a"), cancel(4, "b")]).await;
    assert_eq!(again, vec![Taken::CarriedOut(vec![Met::WasOver(State::Cancelled)]), Taken::Known]);
}

#[tokio::test]
async fn a_cancel_is_kept_for_what_comes_later() {
    let bed = Bed::new();
    let journal = bed.open();
    let begun = Door::Queue { lane: lane("x"), start: true };
    let taken = take(&journal, vec![cancel(1, "a"), arrival(2, "a", begun.clone()), arrival(3, "b", begun)]).await;
    assert_eq!(taken, vec![Taken::CarriedOut(vec![]), Taken::Cancelled(RowId(2)), Taken::New(RowId(3))]);
    assert_eq!(told(&journal).await, ["s1 met 0", "s2 cancelled by chief after try 0"]);
    assert_eq!(take(&journal, vec![arrival(4, "a", queue("x"))]).await, vec![Taken::Copy(RowId(2))]);

    take(&journal, vec![cancel(5, "late")]).await;
    let after = Timestamp::from_nanos(10_001);
    let taken = journal.take(vec![arrival(6, "late", queue("x"))], after, Arc::new(Said)).await.unwrap();
    assert_eq!(taken, vec![Taken::New(RowId(6))], "its time was over");
}

#[tokio::test]
async fn a_message_that_waits_for_its_next_try_is_cancelled_too() {
    let bed = Bed::new();
    let journal = bed.open();
    take(&journal, vec![arrival(1, "a", Door::Queue { lane: lane("x"), start: true })]).await;
    assert!(journal.try_again(RowId(1), vec![], NOW).await.unwrap());
    let met = take(&journal, vec![cancel(2, "a")]).await;
    assert_eq!(met, vec![Taken::CarriedOut(vec![Met::Ended { row: RowId(1), lane: lane("x"), next: None }])]);
    assert_eq!(told(&journal).await, ["s1 cancelled by chief after try 1", "s2 met 1"]);
    assert_eq!(journal.open_lane(lane("x")).await.unwrap(), None);
}
