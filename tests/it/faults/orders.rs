//! Orders and groups in a history.

use super::*;

/// Adds an order of the chief's, stored at `seq`, that was carried out so long after [`TAKEN`].
fn order(history: &mut History, verb: &str, seq: u64, after: i64, told: &str) {
    let kind = "control".to_owned();
    history.sent.push(sent("o", "chief", seq));
    history.stored.push(Stored { kind, method: verb.to_owned(), ..stored("o", "chief", seq) });
    let subject = format!("fleet.ack.n1.chief.{verb}.o");
    let stdout = told.as_bytes().to_vec();
    history.records.push(Record { subject, stdout, finished: Some(TAKEN + after), ..record("o", seq, "succeeded") });
    let row = Row { at: at(seq), is_finished: true, state: "succeeded".to_owned() };
    history.journals.get_mut("n1").unwrap().push(row);
}

#[test]
fn a_restart_excuses_what_it_ended_and_nothing_else() {
    let restarted = |verb: &'static str, after: i64| {
        broken(move |history| {
            history.journals.get_mut("n1").unwrap()[1].state = "interrupted".to_owned();
            history.records[1].state = "interrupted".to_owned();
            order(history, verb, 9, after, "");
        })
    };
    assert_eq!(restarted("restart", 5), []);
    assert_eq!(restarted("restart", 60_000_000_000), one("interrupted without a kill", "b"), "long after");
    assert_eq!(restarted("start", 5), one("interrupted without a kill", "b"));
}

#[test]
fn an_agent_that_left_was_told_to() {
    let left = |told: &'static str| {
        broken(move |history| {
            history.left = 1;
            order(history, "directive", 9, 5, told);
        })
    };
    assert_eq!(left("the agent ends\n"), []);
    assert_eq!(left("goes on\n"), one("an agent left unasked", ""));
}

/// `g` at 20, to a group in which `n1` is since 10 and `n2` from 11 to 19, and which `n3` joins at 21.
pub fn grouped(change: impl FnOnce(&mut History)) -> Vec<(&'static str, String)> {
    broken(|history| {
        history.nodes.extend(["n2".to_owned(), "n3".to_owned()]);
        for (seq, node, joins) in [(10, "n1", true), (11, "n2", true), (19, "n2", false), (21, "n3", true)] {
            let (id, kind) = (format!("m{seq}"), "control".to_owned());
            let mark = Some((joins, "web".to_owned()));
            history.stored.push(Stored { to: node.to_owned(), kind, mark, ..stored(&id, "hub", seq) });
            history.records.push(Record { subject: id.clone(), ..record(&id, seq, "succeeded") });
            let row = Row { at: at(seq), is_finished: true, state: "succeeded".to_owned() };
            history.journals.entry(node.to_owned()).or_default().push(row);
        }
        history.sent.push(sent("g", "ops", 20));
        history.stored.push(Stored { to: "@web".to_owned(), ..stored("g", "ops", 20) });
        history.records.push(record("g", 20, "succeeded"));
        marks(history).extend([mark("g", false), mark("g", true)]);
        let row = Row { at: at(20), is_finished: true, state: "succeeded".to_owned() };
        history.journals.get_mut("n1").unwrap().push(row);
        change(history);
    })
}

#[test]
fn each_member_has_one_fate_of_a_groups_message_and_nobody_else_has_any() {
    assert_eq!(grouped(|_| {}), []);
    let lost = grouped(|history| drop(history.records.pop()));
    assert_eq!(lost, one("no terminal record", "g"));
    for other in ["n2", "n3", "_"] {
        let too_many = grouped(|history| {
            let subject = format!("fleet.ack.{other}.ops.shell.g");
            history.records.push(Record { subject, ..record("g", 20, "succeeded") });
        });
        assert_eq!(too_many, one("a record of nothing", ""), "{other}");
    }
    let ran_elsewhere = grouped(|history| {
        history.marks.entry("n2".to_owned()).or_default().push(mark("g", false));
    });
    assert_eq!(ran_elsewhere, one("ran out of nowhere", "g"));
    // Without the marks nobody was in it.
    let told = grouped(|history| history.stored.retain(|stored| stored.mark.is_none()));
    assert!(told.contains(&("ran out of nowhere", "g".to_owned())), "{told:?}");
}
