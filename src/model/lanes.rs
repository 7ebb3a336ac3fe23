//! Which message starts next: lanes in order inside, concurrent across, fair between senders (DESIGN §6).
//!
//! A value without clock or I/O. It knows of each lane that has something in it only the head and the depth; the
//! queue itself is in the journal. It never loses a lane: what cannot start now is asked for again.
//!
//! A lane is *ready* when it has a head, nothing of it runs, and it is neither waiting for a retry nor stopped nor held.
//! Among ready lanes the sender with the fewest runs goes first, and of its lanes the one with the oldest head.

use super::id::StreamSeq;
use super::message::{Kind, StreamKind};
use super::name::{MethodName, Sender};
use super::subject::LaneKey;
use std::collections::{BTreeSet, HashMap, HashSet};

/// The journal's key of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub i64);

/// The journal's key of a message: rows are numbered in the order in which they were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(pub i64);

/// What the scheduler knows of one lane.
#[derive(Debug, Clone)]
struct Lane {
    key: LaneKey,
    depth: u64,
    head: RowId,
    activity: Activity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    Idle,
    Running,
    /// Its head waits for its next try.
    Waiting,
}

/// All lanes of a node that have something in them.
#[derive(Debug, Clone)]
pub struct Lanes {
    lanes: HashMap<LaneId, Lane>,
    ready: HashMap<Sender, BTreeSet<(RowId, LaneId)>>,
    running: HashMap<Sender, usize>,
    total_running: usize,
    limit: usize,
    /// While held, no command starts: the session is still catching up.
    held: bool,
    stopped: HashSet<MethodName>,
}

impl Lanes {
    /// No lanes; at most `limit` messages run at once.
    pub fn new(limit: usize) -> Lanes {
        Lanes {
            lanes: HashMap::new(),
            ready: HashMap::new(),
            running: HashMap::new(),
            total_running: 0,
            limit: limit.max(1),
            held: false,
            stopped: HashSet::new(),
        }
    }

    /// One more message stands at the end of a lane (or is its head, where the lane was empty).
    pub fn push(&mut self, id: LaneId, key: &LaneKey, row: RowId) {
        self.push_many(id, key, row, 1);
    }

    /// `count` more messages stand at the end of a lane, `first` the first of them.
    pub fn push_many(&mut self, id: LaneId, key: &LaneKey, first: RowId, count: u64) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.depth += count;
            return;
        }
        self.lanes.insert(id, Lane { key: key.clone(), depth: count, head: first, activity: Activity::Idle });
        self.refresh(id);
    }

    /// True where this lane has nothing in it, so that a new message of it could start at once.
    pub fn is_empty_lane(&self, id: LaneId) -> bool {
        !self.lanes.contains_key(&id)
    }

    /// Takes the lane whose head starts next; its head counts as running from here. `None` where none may start.
    pub fn next_start(&mut self) -> Option<(LaneId, RowId)> {
        if self.total_running >= self.limit {
            return None;
        }
        let sender = self
            .ready
            .iter()
            .filter_map(|(sender, lanes)| {
                lanes.first().map(|first| (self.running.get(sender).copied().unwrap_or(0), first, sender))
            })
            .min()?
            .2
            .clone();
        let (row, id) = self.ready.get(&sender)?.first().copied()?;
        self.set_activity(id, Activity::Running);
        Some((id, row))
    }

    /// The head of a lane is terminal. `next` is the new head, as the journal tells; `None` empties the lane.
    pub fn finished(&mut self, id: LaneId, next: Option<RowId>) {
        self.set_activity(id, Activity::Idle);
        self.drop_ready(id);
        match (self.lanes.get_mut(&id), next) {
            (Some(lane), Some(row)) => {
                lane.depth = lane.depth.saturating_sub(1).max(1);
                lane.head = row;
                self.refresh(id);
            }
            _ => {
                self.lanes.remove(&id);
            }
        }
    }

    /// The head of a lane goes back to wait for its next try; it keeps its place.
    pub fn waiting(&mut self, id: LaneId) {
        self.set_activity(id, Activity::Waiting);
    }

    /// The wait of a lane's head is over.
    pub fn wait_over(&mut self, id: LaneId) {
        if self.lanes.get(&id).is_some_and(|lane| lane.activity == Activity::Waiting) {
            self.set_activity(id, Activity::Idle);
        }
    }

    /// Holds commands back, or lets them go.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
        self.refresh_all();
    }

    /// Stops a process: its messages stay queued. Or starts it again.
    pub fn set_stopped(&mut self, method: &MethodName, stopped: bool) {
        if stopped {
            self.stopped.insert(method.clone());
        } else {
            self.stopped.remove(method);
        }
        self.refresh_all();
    }

    /// How many messages run.
    pub fn running(&self) -> usize {
        self.total_running
    }

    /// How many lanes have something in them.
    pub fn len(&self) -> usize {
        self.lanes.len()
    }

    /// True where no lane has anything in it.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Every lane: its key, depth, head, and whether the head runs.
    pub fn iter(&self) -> impl Iterator<Item = (&LaneKey, u64, RowId, bool)> {
        self.lanes.values().map(|lane| (&lane.key, lane.depth, lane.head, lane.activity == Activity::Running))
    }

    fn set_activity(&mut self, id: LaneId, activity: Activity) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let was = std::mem::replace(&mut lane.activity, activity);
        let from = lane.key.from.clone();
        match (was == Activity::Running, activity == Activity::Running) {
            (false, true) => {
                *self.running.entry(from).or_default() += 1;
                self.total_running += 1;
            }
            (true, false) => {
                self.total_running = self.total_running.saturating_sub(1);
                if let Some(count) = self.running.get_mut(&from) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        self.running.remove(&from);
                    }
                }
            }
            _ => {}
        }
        self.refresh(id);
    }

    fn refresh_all(&mut self) {
        let ids: Vec<LaneId> = self.lanes.keys().copied().collect();
        ids.into_iter().for_each(|id| self.refresh(id));
    }

    /// Puts a lane among the ready ones, or takes it out, as its state says.
    fn refresh(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get(&id) else { return };
        let held = self.held && lane.key.kind == Kind::Command;
        let ready = lane.activity == Activity::Idle && !held && !self.stopped.contains(&lane.key.method);
        if ready {
            self.ready.entry(lane.key.from.clone()).or_default().insert((lane.head, id));
        } else {
            self.drop_ready(id);
        }
    }

    fn drop_ready(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get(&id) else { return };
        if let Some(lanes) = self.ready.get_mut(&lane.key.from) {
            lanes.remove(&(lane.head, id));
            if lanes.is_empty() {
                self.ready.remove(&lane.key.from);
            }
        }
    }
}

/// The newest stored sequence of each stream that was taken; what `status` tells.
pub type Positions = super::node::PerStream<Option<StreamSeq>>;

impl Positions {
    /// With a stream's position put in.
    #[must_use]
    pub fn at(mut self, stream: StreamKind, seq: StreamSeq) -> Positions {
        *self.get_mut(stream) = Some(seq);
        self
    }
}

#[cfg(test)]
mod tests {
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
            lanes.push(LaneId(i64::from(lane)), &key(1, lane), RowId(i64::from(lane)));
        }
        lanes.push(LaneId(99), &key(2, 0), RowId(1000));
        assert_eq!(lanes.next_start(), Some((LaneId(0), RowId(0))));
        assert_eq!(lanes.next_start(), Some((LaneId(99), RowId(1000))), "the other sender is not behind ten lanes");
        assert_eq!(lanes.next_start(), None);
    }

    #[test]
    fn held_commands_and_stopped_processes_wait() {
        let mut lanes = Lanes::new(8);
        lanes.hold(true);
        lanes.push(LaneId(1), &key(1, 1), RowId(1));
        assert_eq!(lanes.next_start(), None);
        lanes.hold(false);
        lanes.set_stopped(&"shell".parse().unwrap(), true);
        assert_eq!(lanes.next_start(), None);
        lanes.set_stopped(&"shell".parse().unwrap(), false);
        assert_eq!(lanes.next_start(), Some((LaneId(1), RowId(1))));
    }

    #[derive(Debug, Clone)]
    enum Act {
        Push(u8, u8),
        Start,
        Finish(usize),
        Retry(usize),
        WaitOver(u8, u8),
        Hold(bool),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            (0u8..3, 0u8..3).prop_map(|(s, l)| Act::Push(s, l)),
            Just(Act::Start),
            any::<usize>().prop_map(Act::Finish),
            any::<usize>().prop_map(Act::Retry),
            (0u8..3, 0u8..3).prop_map(|(s, l)| Act::WaitOver(s, l)),
            any::<bool>().prop_map(Act::Hold),
        ];
        proptest::collection::vec(act, 0..200)
    }

    proptest! {
        /// Against a model with a queue per lane: heads start in order, one at a time per lane, never over the limit,
        /// and nothing is left over once everything is let go.
        #[test]
        fn lanes_start_in_order_and_none_is_lost(acts in acts()) {
            let mut lanes = Lanes::new(3);
            let mut queues: BTreeMap<i64, VecDeque<i64>> = BTreeMap::new();
            let mut running: Vec<(LaneId, RowId)> = Vec::new();
            let (mut row, mut pushed, mut done) = (0, 0, 0);
            let finish = |lanes: &mut Lanes, queues: &mut BTreeMap<i64, VecDeque<i64>>, (id, row): (LaneId, RowId)| {
                let queue = queues.get_mut(&id.0).unwrap();
                assert_eq!(queue.pop_front(), Some(row.0));
                lanes.finished(id, queue.front().map(|r| RowId(*r)));
            };
            for act in acts {
                match act {
                    Act::Push(s, l) => {
                        row += 1;
                        pushed += 1;
                        let id = i64::from(s) * 10 + i64::from(l);
                        lanes.push(LaneId(id), &key(s, l), RowId(row));
                        queues.entry(id).or_default().push_back(row);
                    }
                    Act::Start => {
                        if let Some((id, row)) = lanes.next_start() {
                            prop_assert_eq!(queues[&id.0].front(), Some(&row.0));
                            prop_assert!(running.iter().all(|(other, _)| *other != id));
                            running.push((id, row));
                            prop_assert!(running.len() <= 3);
                        }
                    }
                    Act::Finish(at) if !running.is_empty() => {
                        let one = running.remove(at % running.len());
                        finish(&mut lanes, &mut queues, one);
                        done += 1;
                    }
                    Act::Retry(at) if !running.is_empty() => {
                        let (id, _) = running.remove(at % running.len());
                        lanes.waiting(id);
                    }
                    Act::WaitOver(s, l) => lanes.wait_over(LaneId(i64::from(s) * 10 + i64::from(l))),
                    Act::Hold(held) => lanes.hold(held),
                    Act::Finish(_) | Act::Retry(_) => {}
                }
                prop_assert_eq!(lanes.running(), running.len());
            }
            lanes.hold(false);
            queues.keys().for_each(|id| lanes.wait_over(LaneId(*id)));
            loop {
                while let Some(one) = lanes.next_start() {
                    running.push(one);
                }
                let Some(one) = running.pop() else { break };
                finish(&mut lanes, &mut queues, one);
                done += 1;
            }
            prop_assert_eq!(done, pushed);
            prop_assert!(lanes.is_empty());
        }
    }
}
