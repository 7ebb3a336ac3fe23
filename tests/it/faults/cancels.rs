//! Cancels in a history.

use super::orders::grouped;
use super::*;

const AHEAD: &str = "not known here; cancelled when it comes\n";
const BEGUN: &str = "an event that has begun; not tried again\n";

/// `b` cancelled by a message stored at `seq` that met `told`, and ended in `state` at `attempt`; its marks may go.
fn cancelled(seq: u64, told: &str, state: &str, attempt: u32, ran: bool) -> Vec<(&'static str, String)> {
    let (told, state) = (told.to_owned(), state.to_owned());
    broken(move |history| {
        if seq < 2 {
            // Room before all others.
            history.stored.iter_mut().for_each(|one| one.at.seq += 1);
            history.records.iter_mut().for_each(|one| one.about.seq += 1);
            history.sent.iter_mut().flat_map(|one| &mut one.confirmed).for_each(|at| at.seq += 1);
            history.journals.get_mut("n1").unwrap().iter_mut().for_each(|row| row.at.seq += 1);
            history.results.get_mut("n1").unwrap()[0].0.seq += 1;
        }
        let cancels = Some(("ops".to_owned(), "b".to_owned()));
        history.sent.push(Sent { cancels, ..sent("x", "ops", seq) });
        history.stored.push(Stored { kind: "control".to_owned(), ..stored("x", "ops", seq) });
        let stdout = told.into_bytes();
        history.records.push(Record { stdout_bytes: stdout.len() as u64, stdout, ..record("x", seq, "succeeded") });
        let rows = history.journals.get_mut("n1").unwrap();
        rows.push(Row { at: at(seq), is_finished: true, state: "succeeded".to_owned() });
        rows[1].state.clone_from(&state);
        (history.records[1].state, history.records[1].attempt) = (state, attempt);
        if !ran {
            marks(history).retain(|mark| mark.id != "b");
        }
    })
}

#[test]
fn what_a_cancel_met_is_what_became_of_the_message() {
    let wrong = one("a cancel's wrong answer", "b");
    for (seq, told, state, attempt, ran) in [
        (9, "cancelled\n", "cancelled", 0, false),
        (9, "cancelled\n", "cancelled", 1, true),
        (1, AHEAD, "cancelled", 0, false),
        (9, "runs; being stopped\n", "cancelled", 1, true),
        (9, "runs; being stopped\n", "succeeded", 1, true),
        (9, BEGUN, "cancelled", 0, false),
        (9, BEGUN, "succeeded", 1, true),
        (9, "no effect: succeeded before\n", "succeeded", 1, true),
    ] {
        assert_eq!(cancelled(seq, told, state, attempt, ran), [], "{told} {state} {attempt}");
    }
    for (seq, told, state) in [
        (9, "cancelled\n", "succeeded"),
        (1, AHEAD, "succeeded"),
        (1, AHEAD, "cancelled"),
        (9, AHEAD, "cancelled"),
        (1, "cancelled\n", "cancelled"),
        (9, "no effect: failed before\n", "succeeded"),
        (9, "no effect: succeeded before\n", "cancelled"),
        (9, "", "succeeded"),
    ] {
        assert_eq!(cancelled(seq, told, state, 1, true), wrong, "{seq} {told} {state}");
    }
    assert_eq!(cancelled(9, "runs; being stopped\n", "cancelled", 0, false), wrong, "a command that runs has begun");
}

#[test]
fn what_was_cancelled_before_it_began_has_not_run() {
    assert_eq!(cancelled(9, "cancelled\n", "cancelled", 0, true), one("ran although it was not to", "b"));
    let later = broken(|history| {
        history.sent[1].retries = 2;
        marks(history).insert(4, Mark { attempt: 2, ..mark("b", false) });
    });
    assert_eq!(later, one("ran although it was not to", "b"), "after the try that its record tells of");
}

#[test]
fn only_a_cancel_that_met_it_running_makes_a_try_the_last() {
    let failed = |told: &str, attempt: u32, code: i64| {
        let stdout = told.as_bytes().to_vec();
        broken(move |history| {
            let cancels = Some(("ops".to_owned(), "b".to_owned()));
            history.sent.push(Sent { cancels, ..sent("x", "ops", 9) });
            history.stored.push(Stored { kind: "control".to_owned(), ..stored("x", "ops", 9) });
            history.records.push(Record { stdout, ..record("x", 9, "succeeded") });
            let rows = history.journals.get_mut("n1").unwrap();
            rows.push(Row { at: at(9), is_finished: true, state: "succeeded".to_owned() });
            rows[1].state = "failed".to_owned();
            (history.sent[1].expect, history.sent[1].retries) = (Expect::SuccessAt(2), 2);
            let record = &mut history.records[1];
            (record.state, record.attempt, record.exit_code) = ("failed".to_owned(), attempt, Some(code));
        })
    };
    assert_eq!(failed("runs; being stopped\n", 1, 4), []);
    assert_eq!(failed("no effect: failed before\n", 1, 4), one("a wrong end", "b"), "it had ended before");
    let wrong_code = failed("runs; being stopped\n", 1, 1);
    assert_eq!(wrong_code, [("a wrong end", "b".to_owned()), ("a cancel's wrong answer", "b".to_owned())]);
}

#[test]
fn what_was_stopped_is_gone_before_its_lane_goes_on() {
    let still = broken(|history| {
        let marks = marks(history);
        let end = marks.remove(3);
        marks.insert(4, end);
        history.records[1].state = "timed_out".to_owned();
        history.sent[1].expect = Expect::Timeout;
        history.journals.get_mut("n1").unwrap()[1].state = "timed_out".to_owned();
    });
    assert_eq!(still, one("two at once in a lane", "c"));
}

/// `g`, which is for `n1` alone, cancelled by a message to its group at 22, where `n1` and `n3` are in it and `n2` was: these
/// have told what it met.
fn group_cancelled(to: &'static str, told: &[(&str, &str)]) -> Vec<(&'static str, String)> {
    grouped(|history| {
        history.nodes.insert("n4".to_owned());
        history.sent.push(Sent { cancels: Some(("ops".to_owned(), "g".to_owned())), ..sent("x", "ops", 22) });
        history.stored.push(Stored { to: to.to_owned(), kind: "control".to_owned(), ..stored("x", "ops", 22) });
        for (node, met) in told {
            let state = if *node == "_" { "undeliverable" } else { "succeeded" };
            let (subject, stdout) = (format!("fleet.ack.{node}.ops.cancel.x"), met.as_bytes().to_vec());
            history.records.push(Record { subject, stdout, ..record("x", 22, state) });
            if *node != "_" {
                let row = Row { at: at(22), is_finished: true, state: state.to_owned() };
                history.journals.entry((*node).to_owned()).or_default().push(row);
            }
        }
    })
}

#[test]
fn a_groups_cancel_is_answered_by_its_members_and_perhaps_by_those_that_left() {
    const OVER: &str = "no effect: succeeded before\n";
    let to_web = |told: &[(&str, &str)]| group_cancelled("@web", told);
    assert_eq!(to_web(&[("n1", OVER), ("n3", AHEAD)]), []);
    assert_eq!(to_web(&[("n1", OVER), ("n2", AHEAD), ("n3", AHEAD)]), [], "it still reached the one that left");
    assert_eq!(to_web(&[("n1", OVER)]), one("no terminal record", "x"));
    assert_eq!(to_web(&[("n1", "cancelled\n"), ("n3", AHEAD)]), one("a cancel's wrong answer", "g"));
    assert_eq!(to_web(&[("n1", AHEAD), ("n3", AHEAD)]), one("a cancel's wrong answer", "g"), "it was there before");
    for other in ["n4", "_"] {
        let found = to_web(&[("n1", OVER), ("n3", AHEAD), (other, AHEAD)]);
        assert!(found.contains(&("a record of nothing", String::new())), "{other}: {found:?}");
    }
    assert_eq!(group_cancelled("@db", &[("_", "")]), [], "nobody is in that one");
}
