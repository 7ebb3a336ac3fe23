//! Rows, by what the records say and what the nodes do.

use super::super::samples::{at, message};
use super::*;
use crate::model::id::MessageId;
use crate::model::message::StreamKind;
use crate::model::record::{By, DuplicateOf};
use proptest::prelude::*;

fn record(seq: u64, state: State) -> Record {
    let id = MessageId::given("a").unwrap();
    Record::bare(id, at(seq), "FLEET_COMMANDS".to_owned(), "n1", state, By::Node)
}

fn status(json: &str) -> NodeFacts {
    let stored = Timestamp::from_nanos(0);
    NodeFacts { status: Some((serde_json::from_str(json).unwrap(), stored)), ..NodeFacts::default() }
}

fn states(view: &View) -> Vec<(String, State)> {
    view.rows().map(|row| (row.node.clone(), row.state)).collect()
}

#[test]
fn positions_tell_queued_from_delivered() {
    let mut view = View::new(vec![message("n1", 4), message("n1", 5)]);
    assert!(view.rows().all(|row| row.state == State::Queued && row.contact == Some(Contact::Never)));
    view.set_node("n1".into(), status(r#"{"v":1,"node":"n1","position":{"commands":4}}"#));
    assert_eq!(states(&view), [("n1".to_owned(), State::Delivered), ("n1".to_owned(), State::Queued)]);
}

#[test]
fn a_late_record_is_shown_with_the_first_beside_it() {
    let mut view = View::new(vec![message("n1", 4)]);
    view.add(RecordClass::Ack, "n1", StreamSeq(1), at(4), record(4, State::Interrupted));
    view.add(RecordClass::Late, "n1", StreamSeq(2), at(4), record(4, State::Succeeded));
    let row = view.rows().next().unwrap();
    assert_eq!((row.state, row.first.map(|r| r.state)), (State::Succeeded, Some(State::Interrupted)));
    assert_eq!(row.contact, None, "nobody asked");
}

#[test]
fn a_copy_shows_what_became_of_the_first() {
    let mut view = View::new(vec![message("n1", 9)]);
    let first = DuplicateOf { stream: StreamKind::Commands, seq: StreamSeq(4), stored_at: at(4).stored_at };
    let copy = Record { duplicate_of: Some(first), ..record(9, State::Duplicate) };
    view.add(RecordClass::Progress, "n1", StreamSeq(2), at(9), copy);
    assert_eq!(view.rows().next().unwrap().state, State::Delivered);
    view.add(RecordClass::Ack, "n1", StreamSeq(1), at(4), record(4, State::Failed));
    let row = view.rows().next().unwrap();
    assert_eq!((row.state, row.copy_of), (State::Failed, Some(at(4))));
}

#[test]
fn another_message_or_another_node_proves_nothing() {
    let mut view = View::new(vec![message("n1", 4)]);
    view.add(RecordClass::Ack, "n2", StreamSeq(1), at(4), record(4, State::Succeeded));
    view.add(
        RecordClass::Ack,
        "n1",
        StreamSeq(2),
        MsgRef { stored_at: at(5).stored_at, ..at(4) },
        record(4, State::Failed),
    );
    assert_eq!(states(&view), [("n1".to_owned(), State::Queued)]);
}

#[test]
fn a_group_is_closed_by_nobody_or_by_its_members() {
    let mut view = View::new(vec![message("@web", 4)]);
    assert_eq!(states(&view), [("@web".to_owned(), State::Queued)]);
    assert_eq!(view.rows().next().unwrap().contact, None);
    view.add(RecordClass::Ack, "_", StreamSeq(1), at(4), record(4, State::Undeliverable));
    assert_eq!(states(&view), [("@web".to_owned(), State::Undeliverable)]);
    view.set_members(at(4), vec!["n2".parse().unwrap()], true);
    view.add(RecordClass::Ack, "n2", StreamSeq(2), at(4), record(4, State::Succeeded));
    assert_eq!(states(&view), [("n2".to_owned(), State::Succeeded)]);
}

#[test]
fn a_group_is_open_until_all_its_members_are_known() {
    let mut view = View::new(vec![message("@web", 4)]);
    view.add(RecordClass::Ack, "n2", StreamSeq(2), at(4), record(4, State::Succeeded));
    let open = [("@web".to_owned(), State::Queued), ("n2".to_owned(), State::Succeeded)];
    assert_eq!(states(&view), open, "nobody was asked who is in it");
    view.set_members(at(4), vec!["n2".parse().unwrap()], false);
    assert_eq!(states(&view), open, "a join is under way");
    view.set_members(at(4), vec!["n1".parse().unwrap(), "n2".parse().unwrap()], true);
    assert_eq!(states(&view), [("n1".to_owned(), State::Queued), ("n2".to_owned(), State::Succeeded)]);
}

#[test]
fn what_records_no_longer_reach_is_unknown_unless_it_still_waits() {
    let facts = |first| StreamFacts {
        now: Timestamp::from_nanos(500),
        first_seq: StreamSeq(first),
        first_at: Some(Timestamp::from_nanos(200)),
        last_seq: StreamSeq(900),
    };
    let mut view = View::new(vec![message("n1", 4)]);
    view.set_records_stream(&facts(1));
    assert_eq!(states(&view)[0].1, State::Queued);
    view.set_records_stream(&facts(7));
    assert_eq!(states(&view)[0].1, State::Unknown);
    view.set_node("n1".into(), status(r#"{"v":1,"node":"n1","position":{"commands":3}}"#));
    assert_eq!(states(&view)[0].1, State::Queued);
}

#[test]
fn it_says_behind_which_message_another_waits_and_that_it_will_expire() {
    let late = Message { start_by: Some(Timestamp::from_nanos(1)), ..message("n1", 9) };
    let mut view = View::new(vec![late]);
    view.now = Timestamp::from_nanos(2);
    let lanes = r#"[{"lane":"command.ops.shell","depth":2,"head":4,"running":true}]"#;
    view.set_node(
        "n1".into(),
        status(&format!(r#"{{"v":1,"node":"n1","position":{{"commands":9}},"lanes":{lanes}}}"#)),
    );
    let row = view.rows().next().unwrap();
    assert_eq!(row.behind.map(|b| (b.head.seq, b.running)), Some((StreamSeq(4), true)));
    assert!(row.will_expire);
}

proptest! {
    /// In whatever order and however often records come, the row is the same.
    #[test]
    fn order_does_not_matter(order in Just((0..5usize).collect::<Vec<_>>()).prop_shuffle(), again in 0..5usize) {
        let all = [
            (RecordClass::Progress, 1, State::Running),
            (RecordClass::Progress, 2, State::Retrying),
            (RecordClass::Progress, 3, State::CancelRequested),
            (RecordClass::Ack, 4, State::Failed),
            (RecordClass::Late, 5, State::Succeeded),
        ];
        let mut view = View::new(vec![message("n1", 4)]);
        for index in order.into_iter().chain([again]) {
            let (class, seq, state) = all[index];
            view.add(class, "n1", StreamSeq(seq), at(4), record(4, state));
        }
        let row = view.rows().next().unwrap();
        prop_assert_eq!((row.state, row.first.map(|r| r.state)), (State::Succeeded, Some(State::Failed)));
        prop_assert!(!row.cancel_requested);
    }
}
