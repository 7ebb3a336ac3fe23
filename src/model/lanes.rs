//! Which message starts next: lanes in order inside, concurrent across, fair between senders.
//!
//! A value without clock or I/O. It knows of each lane that has something in it only the head and the depth; the
//! queue itself is in the journal. It never loses a lane: what cannot start now is asked for again. What it takes for a
//! lane's head may have been cancelled since; the journal says so at the start, and the lane is [found](Lanes::found) anew.
//!
//! A lane is *ready* when it has a head, nothing of it runs, and it is neither waiting for a retry nor stopped nor held.
//! Among ready lanes the sender with the fewest runs goes first, and of its lanes the one with the oldest head.

use super::message::Kind;
use super::name::{MethodName, Sender};
use super::subject::LaneKey;
use std::collections::{BTreeSet, HashMap, HashSet};

/// The journal's key of a message: rows are numbered in the order in which they were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(pub i64);

/// What the scheduler knows of one lane.
#[derive(Debug, Clone)]
struct Lane {
    depth: u64,
    head: RowId,
    /// The message that came while the head stood alone: the next head, where the journal ended the head before it took
    /// that one.
    behind: Option<RowId>,
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
    lanes: HashMap<LaneKey, Lane>,
    ready: HashMap<Sender, BTreeSet<(RowId, LaneKey)>>,
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
    pub fn push(&mut self, key: &LaneKey, row: RowId) {
        self.push_many(key, row, 1);
    }

    /// `count` more messages stand at the end of a lane, `first` the first of them.
    pub fn push_many(&mut self, key: &LaneKey, first: RowId, count: u64) {
        if let Some(lane) = self.lanes.get_mut(key) {
            if lane.depth == 1 {
                lane.behind = Some(first);
            }
            lane.depth += count;
            return;
        }
        self.lanes.insert(key.clone(), Lane { depth: count, head: first, behind: None, activity: Activity::Idle });
        self.refresh(key);
    }

    /// True where this lane has nothing in it, so that a new message of it could start at once.
    pub fn is_empty_lane(&self, key: &LaneKey) -> bool {
        !self.lanes.contains_key(key)
    }

    /// Takes the lane whose head starts next; its head counts as running from here. `None` where none may start.
    pub fn next_start(&mut self) -> Option<(LaneKey, RowId)> {
        if self.total_running >= self.limit {
            return None;
        }
        let runs = |sender: &Sender| self.running.get(sender).copied().unwrap_or(0);
        let first = |(sender, lanes): (&Sender, &BTreeSet<(RowId, LaneKey)>)| {
            lanes.first().map(|(row, key)| (runs(sender), *row, key.clone()))
        };
        let (_, row, key) = self.ready.iter().filter_map(first).min()?;
        self.set_activity(&key, Activity::Running);
        Some((key, row))
    }

    /// True where `more` messages may start beside those that run.
    pub fn has_room_for(&self, more: usize) -> bool {
        self.total_running + more <= self.limit
    }

    /// The head of this lane has begun: it was alone in its lane and started as it was taken.
    pub fn start(&mut self, key: &LaneKey) {
        self.set_activity(key, Activity::Running);
    }

    /// The head of a lane is terminal. `next` is the new head as the journal knew it in that commit; `None` empties the
    /// lane, unless a message was taken between that commit and this call. False, and the lane waits to be
    /// [found](Lanes::found), where messages stand in it and none is known to be its head.
    #[must_use]
    pub fn finished(&mut self, key: &LaneKey, next: Option<RowId>) -> bool {
        self.set_activity(key, Activity::Idle);
        self.drop_ready(key);
        let Some(lane) = self.lanes.get_mut(key) else { return true };
        lane.depth = lane.depth.saturating_sub(1);
        match next.or(lane.behind) {
            _ if lane.depth == 0 => {
                self.lanes.remove(key);
            }
            Some(head) => {
                (lane.head, lane.behind) = (head, None);
                self.refresh(key);
            }
            None => {
                self.set_activity(key, Activity::Waiting);
                return false;
            }
        }
        true
    }

    /// What runs in a lane is `count` messages further: those are terminal, and `head` runs, or is the last one that did.
    pub fn passed(&mut self, key: &LaneKey, count: u64, head: RowId) {
        if let Some(lane) = self.lanes.get_mut(key) {
            (lane.head, lane.behind) = (head, None);
            lane.depth = lane.depth.saturating_sub(count).max(1);
        }
    }

    /// A message that did not run is over, cancelled. `next` is the lane's head after it, as the journal tells.
    pub fn withdrawn(&mut self, key: &LaneKey, row: RowId, next: Option<RowId>) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let depth = lane.depth.saturating_sub(1);
        match (lane.activity, next) {
            // Whoever works on the head tells when he is through, or that it is gone.
            (Activity::Running, _) => lane.depth = depth,
            _ if lane.head != row => lane.depth = depth,
            (_, next) => self.found(key, next.map(|head| (head, depth))),
        }
    }

    /// What the journal holds of a lane in which nothing runs: its head and its depth, or nothing.
    pub fn found(&mut self, key: &LaneKey, open: Option<(RowId, u64)>) {
        self.set_activity(key, Activity::Idle);
        self.drop_ready(key);
        match (self.lanes.get_mut(key), open) {
            (Some(lane), Some((head, depth))) => {
                (lane.head, lane.depth, lane.behind) = (head, depth.max(1), None);
                self.refresh(key);
            }
            _ => {
                self.lanes.remove(key);
            }
        }
    }

    /// The head of a lane goes back to wait for its next try; it keeps its place.
    pub fn waiting(&mut self, key: &LaneKey) {
        self.set_activity(key, Activity::Waiting);
    }

    /// The wait of this message is over, where it still is its lane's head.
    pub fn wait_over(&mut self, key: &LaneKey, row: RowId) {
        if self.lanes.get(key).is_some_and(|lane| lane.activity == Activity::Waiting && lane.head == row) {
            self.set_activity(key, Activity::Idle);
        }
    }

    /// Holds commands back, or lets them go.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
        self.refresh_all();
    }

    /// True while commands are held back.
    pub fn is_held(&self) -> bool {
        self.held
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

    /// True where this process is stopped.
    pub fn is_stopped(&self, method: &MethodName) -> bool {
        self.stopped.contains(method)
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
        self.lanes.iter().map(|(key, lane)| (key, lane.depth, lane.head, lane.activity == Activity::Running))
    }

    fn set_activity(&mut self, key: &LaneKey, activity: Activity) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let was = std::mem::replace(&mut lane.activity, activity);
        match (was == Activity::Running, activity == Activity::Running) {
            (false, true) => {
                *self.running.entry(key.from.clone()).or_default() += 1;
                self.total_running += 1;
            }
            (true, false) => {
                self.total_running = self.total_running.saturating_sub(1);
                if let Some(count) = self.running.get_mut(&key.from) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        self.running.remove(&key.from);
                    }
                }
            }
            _ => {}
        }
        self.refresh(key);
    }

    fn refresh_all(&mut self) {
        let keys: Vec<LaneKey> = self.lanes.keys().cloned().collect();
        keys.iter().for_each(|key| self.refresh(key));
    }

    /// Puts a lane among the ready ones, or takes it out, as its state says.
    fn refresh(&mut self, key: &LaneKey) {
        let Some(lane) = self.lanes.get(key) else { return };
        let held = self.held && key.kind == Kind::Command;
        let ready = lane.activity == Activity::Idle && !held && !self.stopped.contains(&key.method);
        if ready {
            self.ready.entry(key.from.clone()).or_default().insert((lane.head, key.clone()));
        } else {
            self.drop_ready(key);
        }
    }

    fn drop_ready(&mut self, key: &LaneKey) {
        let Some(lane) = self.lanes.get(key) else { return };
        if let Some(lanes) = self.ready.get_mut(&key.from) {
            lanes.remove(&(lane.head, key.clone()));
            if lanes.is_empty() {
                self.ready.remove(&key.from);
            }
        }
    }
}

#[cfg(test)]
mod tests;
