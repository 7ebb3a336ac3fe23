//! Failures and processes: counted, kept with what they decide, and exact across a crash.

use super::*;
use crate::model::error_event::{Code, Directive, ErrorEvent, Severity};
use std::time::Duration;

fn event(at: i64, code: Code, directive: Option<Directive>) -> (ErrorEvent, Report) {
    let at = Timestamp::from_nanos(at);
    let event = ErrorEvent {
        process: Some("shell".to_owned()),
        directive,
        ..ErrorEvent::new("n1", Severity::Warning, code, "exit code 3", at)
    };
    let subject = format!("fleet.error.n1.warning.{code}");
    let body = event.encode().into();
    (event, Report { class: Class::Error, subject, headers: RawHeaders::default(), body })
}

async fn told(journal: &Journal) -> Vec<ErrorEvent> {
    let entries = journal.outbox(Class::Error, EntryId(0), 1000, usize::MAX).await.unwrap();
    entries.iter().map(|entry| serde_json::from_slice(&entry.report.body).unwrap()).collect()
}

fn order(seq: u64, what: What) -> Arrival {
    let door = Door::Order(Order { what, by: "chief".to_owned() });
    Arrival { kind: Some(Kind::Control), ..arrival(seq, &format!("o{seq}"), door) }
}

fn change(seq: u64, change: Change) -> Arrival {
    order(seq, What::Processes { names: vec!["shell".to_owned()], change })
}

async fn obeyed(journal: &Journal, order: Arrival) -> Obeyed {
    let mut taken = journal.take(vec![order], NOW, Arc::new(Said)).await.unwrap();
    match taken.remove(0) {
        Taken::Obeyed(obeyed) => obeyed,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_flood_of_failures_is_counted_and_none_is_lost_from_the_sum() {
    let bed = Bed::new();
    let journal = bed.open();
    for at in 0..100 {
        journal.report(vec![event(at, Code::Failed, None).1]).await.unwrap();
    }
    // Another kind has a count of its own.
    journal.report(vec![event(100, Code::TimedOut, None).1]).await.unwrap();
    assert_eq!(told(&journal).await.len(), 21);
    let now = Timestamp::from_nanos(50);
    assert!(!journal.tell_repeats(now).await.unwrap(), "the window is not over");
    drop(journal);

    let journal = bed.open();
    let later = Timestamp::from_nanos(200).plus(Duration::from_secs(60));
    assert!(journal.tell_repeats(later).await.unwrap());
    assert!(!journal.tell_repeats(later).await.unwrap(), "once");
    let told = told(&journal).await;
    let sum: u64 = told.iter().filter(|event| event.code == Code::Failed).map(|event| event.count.unwrap_or(1)).sum();
    assert_eq!((told.len(), sum), (22, 100));
    assert_eq!(told.last().unwrap().count, Some(80));
}

#[tokio::test]
async fn a_new_window_tells_what_the_old_one_counted() {
    let bed = Bed::new();
    let journal = bed.open();
    for at in 0..30 {
        journal.report(vec![event(at, Code::Failed, None).1]).await.unwrap();
    }
    let next = Duration::from_secs(90).as_nanos() as i64;
    journal.report(vec![event(next, Code::Failed, None).1]).await.unwrap();
    let counts: Vec<Option<u64>> = told(&journal).await.iter().map(|event| event.count).collect();
    assert_eq!((counts.len(), counts[20], counts[21]), (22, Some(10), None));
}

#[tokio::test]
async fn an_event_and_what_it_decides_are_one_commit() {
    let bed = Bed::new();
    let journal = bed.open();
    journal.report(vec![event(5, Code::Panicked, Some(Directive::Restart)).1]).await.unwrap();
    assert_eq!(journal.stopped().await.unwrap(), Vec::<String>::new());
    let (stop, report) = event(6, Code::Failed, Some(Directive::Stop));
    journal.report(vec![report]).await.unwrap();
    drop(journal);

    let journal = bed.open();
    assert_eq!(journal.stopped().await.unwrap(), ["shell"]);
    let [process] = &journal.processes(Timestamp::from_nanos(10)).await.unwrap()[..] else { panic!("one") };
    assert_eq!((process.restarts, process.failures), (1, 2));
    assert_eq!(process.stopped_by, Some(format!("the error {}", stop.id)));
    assert_eq!(process.last_error.as_ref().unwrap().0, "failed: exit code 3");
    let much_later = Timestamp::from_nanos(0).plus(Duration::from_secs(3600));
    assert_eq!(journal.processes(much_later).await.unwrap()[0].failures, 0);

    assert_eq!(journal.leaving().await.unwrap(), None);
    journal.report(vec![event(7, Code::Failed, Some(Directive::Shutdown)).1]).await.unwrap();
    assert_eq!(journal.leaving().await.unwrap(), Some(Leaving::Decided));
    journal.left_for_good().await.unwrap();
    assert_eq!(journal.leaving().await.unwrap(), Some(Leaving::Done));
    journal.stay().await.unwrap();
    assert_eq!(journal.leaving().await.unwrap(), None);
}

#[tokio::test]
async fn orders_are_kept_and_say_what_they_did() {
    let bed = Bed::new();
    let journal = bed.open();
    let stopped = |changed| Effect::Stopped { name: "shell".to_owned(), changed };
    assert_eq!(obeyed(&journal, change(1, Change::Stop)).await.effects, [stopped(true)]);
    assert_eq!(obeyed(&journal, change(2, Change::Stop)).await.effects, [stopped(false)]);
    drop(journal);
    let journal = bed.open();
    assert_eq!(journal.stopped().await.unwrap(), ["shell"]);
    assert_eq!(journal.processes(NOW).await.unwrap()[0].stopped_by.as_deref(), Some("chief"));
    // The same message once more changes nothing.
    let again = journal.take(vec![change(1, Change::Stop)], NOW, Arc::new(Said)).await.unwrap();
    assert_eq!(again, [Taken::Known]);

    journal.take(vec![arrival(3, "a", queue("x")), arrival(4, "b", queue("y"))], NOW, Arc::new(Said)).await.unwrap();
    let (_, head, _) = journal.open_lanes().await.unwrap().remove(0);
    journal.start(head, NOW, |_| Verdict::Start).await.unwrap();
    let restarted = obeyed(&journal, change(5, Change::Restart)).await;
    assert_eq!(restarted.effects, [Effect::Restarted { name: "shell".to_owned(), ended: 1 }]);
    assert_eq!(restarted.met, [Met::ToStop { row: head, lane: lane("x") }], "only what runs");
    assert_eq!(journal.stopped().await.unwrap(), Vec::<String>::new(), "a restart starts");
    drop(journal);
    let journal = bed.open();
    let to_end = async || journal.held_runs().await.unwrap().iter().map(|run| run.to_end).collect::<Vec<_>>();
    assert_eq!(to_end().await, [true], "also by who opens it next");
    let by_chief = Some(EndOrder { process: "shell".to_owned(), by: "chief".to_owned() });
    assert_eq!(journal.end_order(head).await.unwrap(), by_chief, "and who asked for that");
    journal.try_again(head, vec![], NOW).await.unwrap();
    journal.start(head, NOW, |_| Verdict::Start).await.unwrap();
    assert_eq!(to_end().await, [false], "that try, no later one");
    assert_eq!(journal.end_order(head).await.unwrap(), None);
}

#[tokio::test]
async fn a_directive_finds_the_message_of_its_error() {
    let bed = Bed::new();
    let journal = bed.open();
    let direct = |seq, error, directive| order(seq, What::Directive { error, directive });
    journal.take(vec![arrival(1, "a", queue("x"))], NOW, Arc::new(Said)).await.unwrap();
    let (_, row, _) = journal.open_lanes().await.unwrap().remove(0);
    journal.start(row, NOW, |_| Verdict::Start).await.unwrap();
    let (failed, report) = event(5, Code::Failed, Some(Directive::Continue));
    journal.try_again(row, vec![report], NOW).await.unwrap();
    assert_eq!(journal.granted(row).await.unwrap(), 0);
    assert_eq!(obeyed(&journal, direct(2, failed.id, Directive::Retry)).await.effects, [Effect::Granted]);
    assert_eq!(journal.granted(row).await.unwrap(), 1);
    assert_eq!(obeyed(&journal, direct(3, failed.id, Directive::Continue)).await.effects, [Effect::GoesOn]);
    let stopped = obeyed(&journal, direct(4, failed.id, Directive::Stop)).await;
    assert_eq!(stopped.effects, [Effect::Stopped { name: "shell".to_owned(), changed: true }]);

    journal.start(row, NOW, |_| Verdict::Start).await.unwrap();
    journal.finish(row, ended(State::Failed), NOW).await.unwrap();
    let late = obeyed(&journal, direct(5, failed.id, Directive::Retry)).await;
    assert!(matches!(&late.effects[..], [Effect::Impossible(why)] if why.contains("over: failed")), "{late:?}");
    assert_eq!(late.state(), State::Failed);
    let unknown = obeyed(&journal, direct(6, uuid::Uuid::now_v7(), Directive::Shutdown)).await;
    assert_eq!(unknown.state(), State::Failed);
    assert_eq!(journal.leaving().await.unwrap(), None, "not for an error that nobody knows");
    assert_eq!(obeyed(&journal, direct(7, failed.id, Directive::Shutdown)).await.effects, [Effect::Leaving]);
    assert_eq!(journal.leaving().await.unwrap(), Some(Leaving::Decided));
}
