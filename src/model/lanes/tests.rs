//! The scheduler against a model with one plain queue per lane.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

fn key(sender: u8, lane: u8) -> LaneKey {
    LaneKey {
        kind: Kind::Command,
        from: format!("s{sender}").parse().unwrap(),
        method: "shell".parse().unwrap(),
        lane: Some(format!("l{lane}").parse().unwrap()),
    }
}

#[test]
fn senders_share_what_may_run() {
    let mut lanes = Lanes::new(2);
    for lane in 0..10 {
        lanes.push(&key(1, lane), RowId(i64::from(lane)));
    }
    lanes.push(&key(2, 0), RowId(1000));
    assert_eq!(lanes.next_start(), Some((key(1, 0), RowId(0))));
    assert_eq!(lanes.next_start(), Some((key(2, 0), RowId(1000))), "the other sender is not behind ten lanes");
    assert_eq!(lanes.next_start(), None);
}

#[test]
fn held_commands_and_stopped_processes_wait() {
    let mut lanes = Lanes::new(8);
    lanes.hold(true);
    lanes.push(&key(1, 1), RowId(1));
    assert_eq!(lanes.next_start(), None);
    lanes.hold(false);
    lanes.set_stopped(&"shell".parse().unwrap(), true);
    assert_eq!(lanes.next_start(), None);
    lanes.set_stopped(&"shell".parse().unwrap(), false);
    assert_eq!(lanes.next_start(), Some((key(1, 1), RowId(1))));
}

#[derive(Debug, Clone)]
enum Act {
    Push(u8, u8),
    Start,
    /// The journal ends a head, and tells what it knew then some time later.
    /// With it those that have run behind it in the same lane, so many.
    Commit(usize, usize),
    Tell(usize),
    Retry(usize),
    WaitOver(u8, u8),
    /// A message that does not run is cancelled: the lane, and which one of it.
    Cancel(u8, u8, usize),
    Hold(bool),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        (0u8..3, 0u8..3).prop_map(|(s, l)| Act::Push(s, l)),
        Just(Act::Start),
        (any::<usize>(), 0usize..4).prop_map(|(at, behind)| Act::Commit(at, behind)),
        any::<usize>().prop_map(Act::Tell),
        any::<usize>().prop_map(Act::Retry),
        (0u8..3, 0u8..3).prop_map(|(s, l)| Act::WaitOver(s, l)),
        (0u8..3, 0u8..3, any::<usize>()).prop_map(|(s, l, at)| Act::Cancel(s, l, at)),
        any::<bool>().prop_map(Act::Hold),
    ];
    proptest::collection::vec(act, 0..200)
}

/// What the journal has ended: so many messages, then `last`.
struct End {
    lane: LaneKey,
    passed: u64,
    last: RowId,
    next: Option<RowId>,
}

fn in_journal(queues: &BTreeMap<LaneKey, VecDeque<i64>>, key: &LaneKey) -> Option<(RowId, u64)> {
    let queue = queues.get(key)?;
    queue.front().map(|head| (RowId(*head), queue.len() as u64))
}

#[test]
fn a_wait_that_was_of_a_cancelled_message_hurries_no_other() {
    let mut lanes = Lanes::new(8);
    lanes.push_many(&key(1, 1), RowId(1), 2);
    lanes.next_start();
    lanes.waiting(&key(1, 1));
    lanes.withdrawn(&key(1, 1), RowId(1), Some(RowId(2)));
    assert_eq!(lanes.next_start(), Some((key(1, 1), RowId(2))));
    lanes.waiting(&key(1, 1));
    lanes.wait_over(&key(1, 1), RowId(1));
    assert_eq!(lanes.next_start(), None);
    lanes.withdrawn(&key(1, 1), RowId(2), None);
    assert!(lanes.is_empty());
}

proptest! {
    /// Against a model with a queue per lane: heads start in order, one at a time per lane, never over the limit,
    /// and nothing is left over once everything is let go.
    #[test]
    fn lanes_start_in_order_and_none_is_lost(acts in acts()) {
        let mut lanes = Lanes::new(3);
        let mut queues: BTreeMap<LaneKey, VecDeque<i64>> = BTreeMap::new();
        let mut running: Vec<(LaneKey, RowId)> = Vec::new();
        let mut ended: Vec<End> = Vec::new();
        let (mut row, mut pushed, mut done) = (0, 0, 0);
        let commit = |queues: &mut BTreeMap<LaneKey, VecDeque<i64>>, one: (LaneKey, RowId), behind: usize| {
            let queue = queues.get_mut(&one.0).unwrap();
            assert_eq!(queue.pop_front(), Some(one.1.0));
            let run: Vec<i64> = queue.drain(..behind.min(queue.len())).collect();
            let last = run.last().map_or(one.1, |row| RowId(*row));
            End { lane: one.0, passed: run.len() as u64, last, next: queue.front().map(|r| RowId(*r)) }
        };
        let tell = |lanes: &mut Lanes, queues: &BTreeMap<LaneKey, VecDeque<i64>>, end: End| {
            if end.passed > 0 {
                lanes.passed(&end.lane, end.passed, end.last);
            }
            if !lanes.finished(&end.lane, end.next) {
                lanes.found(&end.lane, in_journal(queues, &end.lane));
            }
        };
        for act in acts {
            match act {
                Act::Push(s, l) => {
                    row += 1;
                    pushed += 1;
                    lanes.push(&key(s, l), RowId(row));
                    queues.entry(key(s, l)).or_default().push_back(row);
                }
                Act::Start => {
                    if let Some((id, row)) = lanes.next_start() {
                        if !queues[&id].contains(&row.0) {
                            lanes.found(&id, in_journal(&queues, &id));
                            continue;
                        }
                        prop_assert_eq!(queues[&id].front(), Some(&row.0));
                        prop_assert!(running.iter().all(|(other, _)| *other != id));
                        running.push((id, row));
                        prop_assert!(running.len() + ended.len() <= 3);
                    }
                }
                Act::Commit(at, behind) if !running.is_empty() => {
                    let one = running.remove(at % running.len());
                    let end = commit(&mut queues, one, behind);
                    done += 1 + end.passed;
                    ended.push(end);
                }
                Act::Tell(at) if !ended.is_empty() => {
                    let end = ended.remove(at % ended.len());
                    tell(&mut lanes, &queues, end);
                }
                Act::Retry(at) if !running.is_empty() => {
                    let (id, _) = running.remove(at % running.len());
                    lanes.waiting(&id);
                }
                Act::WaitOver(s, l) => {
                    if let Some((head, _)) = in_journal(&queues, &key(s, l)) {
                        lanes.wait_over(&key(s, l), head);
                    }
                }
                Act::Cancel(s, l, at) => {
                    let id = key(s, l);
                    let runs = |row: &i64| running.iter().any(|one| *one == (id.clone(), RowId(*row)));
                    let Some(queue) = queues.get_mut(&id) else { continue };
                    let idle: Vec<i64> = queue.iter().copied().filter(|row| !runs(row)).collect();
                    if idle.is_empty() {
                        continue;
                    }
                    let row = idle[at % idle.len()];
                    queue.retain(|other| *other != row);
                    lanes.withdrawn(&id, RowId(row), queue.front().map(|row| RowId(*row)));
                    done += 1;
                }
                Act::Hold(held) => lanes.hold(held),
                Act::Commit(..) | Act::Tell(_) | Act::Retry(_) => {}
            }
            prop_assert_eq!(lanes.running(), running.len() + ended.len());
        }
        lanes.hold(false);
        for id in queues.keys() {
            if let Some((head, _)) = in_journal(&queues, id) {
                lanes.wait_over(id, head);
            }
        }
        ended.drain(..).for_each(|end| tell(&mut lanes, &queues, end));
        loop {
            while let Some((id, row)) = lanes.next_start() {
                if queues[&id].contains(&row.0) {
                    running.push((id, row));
                } else {
                    lanes.found(&id, in_journal(&queues, &id));
                }
            }
            let Some(one) = running.pop() else { break };
            let end = commit(&mut queues, one, 0);
            tell(&mut lanes, &queues, end);
            done += 1;
        }
        prop_assert_eq!(done, pushed);
        prop_assert!(lanes.is_empty());
    }
}
