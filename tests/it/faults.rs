//! The fault suite's checker, fed with histories in which something is wrong: it says so, and says nothing of a good one.

#[path = "../faults/check.rs"]
mod check;
#[path = "../faults/history.rs"]
#[allow(dead_code, reason = "the suite itself uses the rest")]
mod history;

mod cancels;
mod orders;

use check::check;
use history::{At, Class, Expect, History, LogLine, Mark, Record, Row, Sent, Stored, Stream, runner_name};

const PID: u32 = 77;
/// When each message was taken, in ns; it ended a second later.
const TAKEN: i64 = 1_000_000_000_000;

fn at(seq: u64) -> At {
    At::new(Stream::Commands, seq)
}

fn sent(id: &str, from: &str, seq: u64) -> Sent {
    Sent {
        id: id.to_owned(),
        from: from.to_owned(),
        to: "n1".to_owned(),
        expect: Expect::Success,
        retries: 0,
        rerun: false,
        cancels: None,
        extra_output: 0,
        copies: 1,
        confirmed: vec![at(seq)],
        taken_from_file: false,
    }
}

fn stored(id: &str, from: &str, seq: u64) -> Stored {
    let own = |text: &str| text.to_owned();
    Stored {
        at: at(seq),
        subject: format!("fleet.msg.n1.command.{from}.shell"),
        to: own("n1"),
        kind: own("command"),
        from: own(from),
        method: own("shell"),
        lane: String::new(),
        id: own(id),
        mark: None,
    }
}

fn record(id: &str, seq: u64, state: &str) -> Record {
    let stdout = format!("{id} 1 {PID}\n").into_bytes();
    Record {
        class: Class::Terminal,
        subject: format!("fleet.ack.n1.ops.shell.{id}"),
        about: at(seq),
        state: state.to_owned(),
        code: String::new(),
        exit_code: Some(0),
        attempt: 1,
        stdout_bytes: stdout.len() as u64,
        stdout,
        taken: Some(TAKEN),
        finished: Some(TAKEN + 1_000_000_000),
        duplicate_of: None,
    }
}

fn mark(id: &str, is_end: bool) -> Mark {
    Mark { is_end, id: id.to_owned(), attempt: 1, pid: PID }
}

/// Three commands of one lane, `a`, `b`, `c` at 1, 2, 3, and the node's command `d` at 4 in a lane of its own: all well.
fn good() -> History {
    let mut history = History { nodes: ["n1".to_owned()].into(), ..History::default() };
    for (id, from, seq) in [("a", "ops", 1), ("b", "ops", 2), ("c", "ops", 3), ("d", "n1", 4)] {
        history.sent.push(sent(id, from, seq));
        history.stored.push(stored(id, from, seq));
        history.records.push(record(id, seq, "succeeded"));
        history.marks.entry("n1".to_owned()).or_default().extend([mark(id, false), mark(id, true)]);
        let row = Row { at: at(seq), is_finished: true, state: "succeeded".to_owned() };
        history.journals.entry("n1".to_owned()).or_default().push(row);
    }
    history.results.insert("n1".to_owned(), vec![(at(4), "succeeded".to_owned())]);
    history
}

/// The rules that a change to the good history breaks, with the messages concerned.
fn broken(change: impl FnOnce(&mut History)) -> Vec<(&'static str, String)> {
    let mut history = good();
    change(&mut history);
    let mut found: Vec<_> = check(&history).into_iter().map(|one| (one.rule, one.id)).collect();
    found.dedup();
    found
}

fn one(rule: &'static str, id: &str) -> Vec<(&'static str, String)> {
    vec![(rule, id.to_owned())]
}

fn marks(history: &mut History) -> &mut Vec<Mark> {
    history.marks.get_mut("n1").unwrap()
}

#[test]
fn a_good_history_is_good() {
    assert_eq!(broken(|_| {}), []);
    assert_eq!(good().open(), Vec::<String>::new());
}

#[test]
fn a_lost_message_is_found() {
    let lose = |history: &mut History| {
        history.stored.retain(|one| one.id != "b");
        history.records.retain(|one| one.about != at(2));
        marks(history).retain(|one| one.id != "b");
    };
    assert_eq!(broken(lose), one("lost", "b"));
    // What a node took from a file has no place that somebody was told.
    let lose_file = |history: &mut History| {
        lose(history);
        let sent = &mut history.sent[1];
        (sent.confirmed, sent.taken_from_file) = (Vec::new(), true);
    };
    assert_eq!(broken(lose_file), one("lost", "b"));
}

#[test]
fn a_message_that_was_never_run_is_found() {
    let found = broken(|history| marks(history).retain(|one| one.id != "b"));
    assert_eq!(found, one("a wrong output", "b"));
}

#[test]
fn a_doubled_message_is_found() {
    let in_the_stream = broken(|history| {
        history.stored.push(stored("b", "ops", 9));
        let told = Record { class: Class::Progress, duplicate_of: Some(2), ..record("b", 9, "duplicate") };
        history.records.push(told);
    });
    assert_eq!(in_the_stream, one("stored twice", "b"));
    let on_the_node = broken(|history| marks(history).insert(3, mark("b", false)));
    assert_eq!(on_the_node, one("ran twice", "b"));
    let in_the_journal = broken(|history| {
        let rows = history.journals.get_mut("n1").unwrap();
        rows.push(rows[1].clone());
    });
    assert_eq!(in_the_journal, one("taken twice", ""));
    let another_try = broken(|history| {
        marks(history).insert(4, Mark { attempt: 2, ..mark("b", false) });
    });
    let found = ["ran twice", "ran although it was not to"].map(|rule| (rule, "b".to_owned()));
    assert_eq!(another_try, found, "more tries than it allows, and than its record tells of");
}

#[test]
fn the_kill_of_an_agent_excuses_no_second_run() {
    let mut history = good();
    history.sent[1].rerun = true;
    history.kills.insert("n1".to_owned(), vec![0]);
    let all = marks(&mut history);
    all.remove(3);
    all.insert(3, Mark { attempt: 2, ..mark("b", false) });
    all.insert(4, Mark { attempt: 2, ..mark("b", true) });
    let record = &mut history.records[1];
    (record.attempt, record.stdout) = (2, format!("b 2 {PID}\n").into_bytes());
    let rules: Vec<_> = check(&history).into_iter().map(|violation| violation.rule).collect();
    assert_eq!(rules, ["a wrong end", "ran twice"]);
}

#[test]
fn swapped_messages_are_found() {
    let found = broken(|history| marks(history)[..4].rotate_left(2));
    assert_eq!(found, one("out of order", "a"));
    let both_at_once = broken(|history| marks(history).swap(1, 2));
    assert_eq!(both_at_once, one("two at once in a lane", "b"));
    let of_two_lanes = broken(|history| marks(history).rotate_left(2));
    assert_eq!(of_two_lanes, one("out of order", "a"), "and `d`, which has a lane of its own, may stand anywhere");
    let far_apart = broken(|history| marks(history)[4..].rotate_left(2));
    assert_eq!(far_apart, []);
}

#[test]
fn a_missing_and_a_second_terminal_record_are_found() {
    assert_eq!(broken(|history| drop(history.records.remove(1))), one("no terminal record", "b"));
    let second = broken(|history| {
        let subject = "fleet.ack.n1.ops.shell.b-s2".to_owned();
        history.records.push(Record { subject, ..record("b", 2, "succeeded") });
    });
    assert_eq!(second, one("several terminal records", "b"));
    let under_one_subject = broken(|history| history.records.push(record("b", 2, "failed")));
    assert_eq!(
        under_one_subject,
        [("several terminal records", "b".to_owned()), ("several terminal records", String::new())]
    );
    let late = broken(|history| history.records.push(Record { class: Class::Late, ..record("b", 2, "failed") }));
    assert_eq!(late, one("a late record", ""));
    let of_nothing =
        broken(|history| history.records.push(Record { subject: "x".to_owned(), ..record("x", 99, "failed") }));
    assert_eq!(of_nothing, one("a record of nothing", ""));
}

#[test]
fn a_copy_is_told_and_has_no_record_of_its_own() {
    let copy = |history: &mut History| {
        history.sent[1].copies = 2;
        history.stored.push(stored("b", "ops", 9));
    };
    let told = Record { class: Class::Progress, duplicate_of: Some(2), ..record("b", 9, "duplicate") };
    assert_eq!(broken(copy), one("no word of a copy", "b"));
    let good = broken(|history| {
        copy(history);
        history.records.push(told.clone());
    });
    assert_eq!(good, []);
    let ended_twice = broken(|history| {
        copy(history);
        history.records.push(told);
        history.records.push(Record { subject: "y".to_owned(), ..record("b", 9, "succeeded") });
    });
    assert_eq!(ended_twice, one("a copy with a terminal record", "b"));
}

#[test]
fn of_copies_that_no_node_can_answer_one_is_answered_whichever_the_hub_took_first() {
    let to_nobody = |seq: u64| Stored { to: "@db".to_owned(), ..stored("e", "ops", seq) };
    let answer = |seq: u64| Record { subject: "n".to_owned(), ..record("e", seq, "undeliverable") };
    let told =
        |seq: u64, of: u64| Record { class: Class::Progress, duplicate_of: Some(of), ..record("e", seq, "duplicate") };
    let with = |records: &[Record]| {
        broken(|history| {
            let meant = sent("e", "ops", 11);
            history.sent.push(Sent { to: "@db".to_owned(), expect: Expect::NoNode, copies: 2, ..meant });
            history.stored.extend([to_nobody(11), to_nobody(12)]);
            history.records.extend_from_slice(records);
        })
    };
    assert_eq!(with(&[answer(11), told(12, 11)]), []);
    assert_eq!(with(&[answer(12), told(11, 12)]), []);
    assert_eq!(with(&[answer(12)]), one("no word of a copy", "e"));
    assert_eq!(with(&[told(11, 12), told(12, 11)])[0], one("no terminal record", "e")[0]);
    let both = Record { subject: "m".to_owned(), ..answer(12) };
    assert_eq!(with(&[answer(11), both, told(12, 11)]), one("a copy with a terminal record", "e"));
}

#[test]
fn a_wrong_output_is_found() {
    let other = |text: &str| {
        let stdout = text.as_bytes().to_vec();
        broken(move |history| {
            history.records[1].stdout_bytes = stdout.len() as u64;
            history.records[1].stdout = stdout;
        })
    };
    for text in ["", "b 1 78\n", "b 2 77\n", "c 1 77\n", "b 1 77\nmore"] {
        assert_eq!(other(text), one("a wrong output", "b"), "{text:?}");
    }
    assert_eq!(broken(|history| history.records[1].stdout_bytes += 1), one("a wrong output", "b"));
    let large = |size| {
        broken(move |history| {
            history.sent[1].extra_output = 50_000;
            history.records[1].stdout_bytes += size;
        })
    };
    assert_eq!(large(50_000), []);
    assert_eq!(large(49_999), one("a wrong output", "b"));
}

#[test]
fn an_end_that_was_not_meant_is_found() {
    let ended = |state: &str, code: &str| {
        let (state, code) = (state.to_owned(), code.to_owned());
        broken(move |history| {
            history.journals.get_mut("n1").unwrap()[1].state.clone_from(&state);
            (history.records[1].state, history.records[1].code) = (state, code);
        })
    };
    assert_eq!(ended("failed", "failed"), one("a wrong end", "b"));
    assert_eq!(
        ended("expired", "expired"),
        [("a wrong end", "b".to_owned()), ("ran although it was not to", "b".to_owned())]
    );
    assert_eq!(ended("interrupted", "interrupted"), one("interrupted without a kill", "b"));
    assert_eq!(ended("cancelled", ""), one("a wrong end", "b"), "nobody cancelled it");
    let killed = |who: &str, after: i64| {
        let who = who.to_owned();
        broken(move |history| {
            history.journals.get_mut("n1").unwrap()[1].state = "interrupted".to_owned();
            history.records[1].state = "interrupted".to_owned();
            history.kills.insert(who, vec![TAKEN + after]);
        })
    };
    assert_eq!(killed("n1", 5), one("interrupted without a kill", "b"), "a command outlives its agent");
    assert_eq!(killed(&runner_name("n1"), 5), [], "but not what runs it");
    assert_eq!(killed(&runner_name("n1"), 60_000_000_000), one("interrupted without a kill", "b"), "long after");
}

#[test]
fn what_is_left_behind_is_found() {
    let row = broken(|history| history.journals.get_mut("n1").unwrap()[1].is_finished = false);
    assert_eq!(row, one("left in a journal", ""));
    let state = broken(|history| history.journals.get_mut("n1").unwrap()[1].state = "failed".to_owned());
    assert_eq!(state, one("the journal differs", "b"));
    let entry = broken(|history| {
        history.outboxes.insert("n1".to_owned(), vec!["fleet.ack.n1.ops.shell.b".to_owned()]);
    });
    assert_eq!(entry, one("left in an outbox", ""));
    let fallen = broken(|history| history.fallen.push("n1: exit status: 1".to_owned()));
    assert_eq!(fallen, one("a process ended by itself", ""));
}

#[test]
fn a_result_comes_back_once() {
    assert_eq!(broken(|history| history.results.clear()), one("a wrong result", "d"));
    let twice = broken(|history| {
        let lines = history.results.get_mut("n1").unwrap();
        lines.push(lines[0].clone());
    });
    assert_eq!(twice, one("a wrong result", "d"));
    let other = broken(|history| history.results.get_mut("n1").unwrap()[0].1 = "failed".to_owned());
    assert_eq!(other, one("a wrong result", "d"));
    let mut history = good();
    history.results.clear();
    assert_eq!(history.open().len(), 1);
}

#[test]
fn logs_are_looked_at_like_runs() {
    let with_events = |ids: &[&str]| {
        let lines = ids.iter().map(|id| LogLine { from: "ops".into(), file: "default.log".into(), id: (*id).into() });
        let lines: Vec<LogLine> = lines.collect();
        broken(move |history| {
            for (id, seq) in [("e", 1), ("f", 2)] {
                let at = At::new(Stream::Events, seq);
                history.sent.push(Sent { confirmed: vec![at], rerun: true, ..sent(id, "ops", seq) });
                let (kind, method) = ("event".to_owned(), "log".to_owned());
                history.stored.push(Stored { at, kind, method, ..stored(id, "ops", seq) });
                history.records.push(Record { about: at, ..record(id, seq, "succeeded") });
                let row = Row { at, is_finished: true, state: "succeeded".to_owned() };
                history.journals.get_mut("n1").unwrap().push(row);
            }
            history.logs.insert("n1".to_owned(), lines);
        })
    };
    assert_eq!(with_events(&["e", "f"]), []);
    assert_eq!(with_events(&["e"]), one("a wrong output", "f"));
    assert_eq!(with_events(&["f", "e"]), one("out of order", "e"));
    assert_eq!(with_events(&["e", "f", "f"]), one("logged twice", "f"));
    assert_eq!(with_events(&["e", "f", "g"]), one("logged out of nowhere", "g"));
}
