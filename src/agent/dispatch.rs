//! The dispatcher: it owns the lanes, takes arrivals into the journal, and starts what may start.
//!
//! One task, one queue of events; what takes time runs elsewhere and comes back as an event:
//!
//! ```text
//! arrived (intake)   → judge → one commit: taken, and begun where the lane is free, and over where the method needs no
//!                      running → answer intake → workers
//! passed (worker)    → so many are over, and a message behind them is the head that runs
//! over (worker)      → the lane's next head may start
//! try again (worker) → the lane waits, then its head may start again
//! gone (worker)      → the head was cancelled meanwhile: the journal tells the lane's head
//! hold (intake)      → commands wait until the session has caught up
//! processes (worker) → the journal tells which are stopped: of those nothing starts
//! stop               → nothing starts any more; ends when all workers have
//! ```
//!
//! Never runs a handler and never publishes.

mod door;
mod steer;

use self::door::Judged;
use super::node::Node;
use super::recover::Adopted;
use super::run;
use super::worker::{Begun, JOURNAL_WAIT, Stops};
use crate::journal::{JournalError, Key, Taken, Words};
use crate::killpoint::{Point, here};
use crate::model::lanes::{Lanes, RowId};
use crate::model::message::StoredMessage;
use crate::model::node::{LaneFacts, ProcessFacts};
use crate::model::subject::LaneKey;
use crate::model::time::Timestamp;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Events that may wait; workers and intake wait when it is full.
const QUEUE: usize = 256;

/// Lanes that `status` tells at most.
const LANES_SHOWN: usize = 32;

/// What the dispatcher is told.
pub(crate) enum Event {
    /// Messages of one stream, in order. The answer comes when they are durable.
    Arrived { messages: Vec<StoredMessage>, answer: oneshot::Sender<Result<(), JournalError>> },
    /// So many messages of a lane are terminal, and `head` is the one that runs, or the last one that did.
    Passed { lane: LaneKey, count: u64, head: RowId },
    /// The head of a lane is terminal.
    Over { lane: LaneKey, row: RowId, next: Option<RowId> },
    /// The head of a lane is tried again after a while.
    TryAgain { lane: LaneKey, row: RowId, wait: Duration },
    /// The wait is over.
    WaitOver { lane: LaneKey, row: RowId },
    /// What was thought to be the head of a lane is over already.
    Gone { lane: LaneKey, row: RowId },
    /// Commands wait, or need not any more.
    Hold(bool),
    /// The journal has other processes stopped than before.
    Processes,
    /// What is there, for `status`.
    Facts(oneshot::Sender<Facts>),
}

/// What `status` tells of lanes and processes.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) lanes: Vec<(LaneFacts, RowId)>,
    pub(crate) processes: Vec<ProcessFacts>,
    /// Messages that run.
    pub(crate) running: u64,
    /// Messages that run or wait.
    pub(crate) depth: u64,
}

/// The way to the dispatcher.
#[derive(Clone)]
pub(crate) struct Handle {
    events: mpsc::Sender<Event>,
}

impl Handle {
    /// Tells the dispatcher; `false` when it has ended.
    pub(crate) async fn tell(&self, event: Event) -> bool {
        self.events.send(event).await.is_ok()
    }

    /// Hands over messages of one stream, in order; returns when they are durable.
    pub(crate) async fn arrived(&self, messages: Vec<StoredMessage>) -> Result<(), JournalError> {
        let (answer, answered) = oneshot::channel();
        if !self.tell(Event::Arrived { messages, answer }).await {
            return Err(JournalError::Closed);
        }
        answered.await.unwrap_or(Err(JournalError::Closed))
    }

    /// What is there.
    pub(crate) async fn facts(&self) -> Facts {
        let (answer, answered) = oneshot::channel();
        self.tell(Event::Facts(answer)).await;
        answered.await.unwrap_or_default()
    }
}

/// The dispatcher.
pub(crate) struct Dispatcher {
    node: Arc<Node>,
    lanes: Lanes,
    events: mpsc::Receiver<Event>,
    handle: Handle,
    workers: TaskTracker,
    /// What ends the work on the head of a lane.
    stops: HashMap<LaneKey, (RowId, CancellationToken)>,
    ends: Ends,
}

/// What ends work that nobody has cancelled.
#[derive(Clone)]
pub(crate) struct Ends {
    /// Ends running work.
    pub(crate) cut: CancellationToken,
    /// The agent goes, and leaves alone what goes on without it.
    pub(crate) left: CancellationToken,
}

impl Dispatcher {
    /// A dispatcher with the lanes that the journal holds, and with work that is taken up where the last agent left it.
    pub(crate) async fn load(
        node: Arc<Node>,
        ends: Ends,
        adopted: Vec<Adopted>,
    ) -> Result<(Dispatcher, Handle), JournalError> {
        let (sender, events) = mpsc::channel(QUEUE);
        let handle = Handle { events: sender };
        let mut lanes = Lanes::new(node.config.agent.max_running);
        // Until intake knows whether there is a link: a cancel may be on its way.
        lanes.hold(true);
        for (key, head, count) in node.journal.open_lanes().await? {
            lanes.push_many(&key, head, count);
        }
        for method in node.journal.stopped().await?.iter().filter_map(|name| name.parse().ok()) {
            lanes.set_stopped(&method, true);
        }
        let (handle_too, workers, stops) = (handle.clone(), TaskTracker::new(), HashMap::new());
        let mut dispatcher = Dispatcher { node, lanes, events, handle: handle_too, workers, stops, ends };
        for Adopted { lane, row, begun, to_end } in adopted {
            dispatcher.lanes.start(&lane);
            dispatcher.spawn(lane.clone(), row, Some(begun));
            if let Some((_, stop)) = dispatcher.stops.get(&lane).filter(|_| to_end) {
                stop.cancel();
            }
        }
        Ok((dispatcher, handle))
    }

    /// Runs until `stop`, then until all workers have ended.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut stopping = false;
        self.start_what_may();
        loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.workers.close();
                    continue;
                }
                // Whoever still works must be able to tell so: the queue is served until the last one has ended.
                () = self.workers.wait(), if stopping => return,
                event = self.events.recv() => event,
            };
            let Some(event) = event else { return };
            self.take(event, stopping).await;
            if !stopping {
                self.start_what_may();
            }
        }
    }

    async fn take(&mut self, event: Event, stopping: bool) {
        match event {
            Event::Arrived { messages, answer } => {
                let taken = if stopping { Err(JournalError::Closed) } else { self.arrived(messages).await };
                // Intake may have given up waiting; then it asks the broker again.
                drop(answer.send(taken));
            }
            Event::Passed { lane, count, head } => self.lanes.passed(&lane, count, head),
            Event::Over { lane, row, next } => {
                self.stops.remove(&lane);
                if !self.lanes.finished(&lane, next) {
                    self.look_again(lane, row).await;
                }
            }
            Event::TryAgain { lane, row, wait } => {
                self.stops.remove(&lane);
                self.lanes.waiting(&lane);
                self.wait_then_try(lane, row, wait);
            }
            Event::WaitOver { lane, row } => self.lanes.wait_over(&lane, row),
            Event::Gone { lane, row } => {
                self.stops.remove(&lane);
                self.look_again(lane, row).await;
            }
            Event::Hold(held) => {
                tracing::debug!(held, "commands");
                self.lanes.hold(held);
            }
            Event::Processes => self.look_at_processes().await,
            Event::Facts(answer) => drop(answer.send(self.facts())),
        }
    }

    /// Asks the journal what a lane has in it. Nothing of it runs, and nobody but this task adds to it.
    async fn look_again(&mut self, lane: LaneKey, row: RowId) {
        match self.node.journal.open_lane(lane.clone()).await {
            Ok(open) => self.lanes.found(&lane, open),
            Err(error) => {
                tracing::error!(%lane, %error, "the journal could not be read; trying again");
                self.lanes.waiting(&lane);
                self.wait_then_try(lane, row, JOURNAL_WAIT);
            }
        }
    }

    fn wait_then_try(&self, lane: LaneKey, row: RowId, wait: Duration) {
        let (handle, cut) = (self.handle.clone(), self.ends.cut.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                () = tokio::time::sleep(wait) => {
                    handle.tell(Event::WaitOver { lane, row }).await;
                }
            }
        });
    }

    /// Judges messages and takes them in one commit; those whose lane is free begin in it.
    async fn arrived(&mut self, messages: Vec<StoredMessage>) -> Result<(), JournalError> {
        messages.iter().for_each(|message| self.node.clock.at_least(message.at.stored_at));
        let now = self.node.clock.now();
        let mut judged: Vec<Judged> = Vec::with_capacity(messages.len());
        let mut lanes_here: HashSet<LaneKey> = HashSet::new();
        let mut starting = 0;
        let arrivals = messages
            .into_iter()
            .filter_map(|message| {
                // Judged one by one: a mark before it in the same batch decides whose it is.
                if self.node.is_for_others(&message) {
                    return None;
                }
                let (arrival, verdict) = self.judge(message, now, &mut lanes_here, &mut starting);
                judged.push(verdict);
                Some(arrival)
            })
            .collect();
        let words: Arc<dyn Words> = Arc::clone(&self.node) as _;
        let taken = self.node.journal.take(arrivals, now, words).await?;
        here(Point::Taken);
        for (verdict, taken) in judged.into_iter().zip(taken) {
            self.took(verdict, taken, now);
        }
        Ok(())
    }

    fn took(&mut self, verdict: Judged, taken: Taken, now: Timestamp) {
        match (verdict, taken) {
            (Judged::Queued { lane, begun }, Taken::New(row)) => {
                self.lanes.push(&lane, row);
                if let Some(begun) = begun {
                    self.lanes.start(&lane);
                    self.spawn(lane, row, Some(Begun { started_at: now, ..*begun }));
                }
            }
            (Judged::Control, taken) => {
                match taken {
                    Taken::CarriedOut(met) => met.into_iter().for_each(|met| self.met(met)),
                    Taken::Obeyed(obeyed) => self.obey(obeyed),
                    _ => {}
                }
                self.node.wakes.ring(crate::journal::Class::Ack);
                self.node.wakes.ring(crate::journal::Class::Error);
                self.node.wakes.ring(crate::journal::Class::Result);
                self.node.wakes.events.notify_one();
            }
            (Judged::Over, _)
            | (_, Taken::Copy(_) | Taken::Cancelled(_) | Taken::CarriedOut(_) | Taken::Obeyed(_) | Taken::Refused(_)) =>
            {
                self.node.wakes.ring(crate::journal::Class::Ack);
                self.node.wakes.ring(crate::journal::Class::Error);
            }
            (Judged::Queued { .. }, Taken::Known) => {}
        }
    }

    fn start_what_may(&mut self) {
        while let Some((lane, row)) = self.lanes.next_start() {
            self.spawn(lane, row, None);
        }
    }

    fn spawn(&mut self, lane: LaneKey, row: RowId, begun: Option<Begun>) {
        let (node, handle, stop) = (Arc::clone(&self.node), self.handle.clone(), self.ends.cut.child_token());
        self.stops.insert(lane.clone(), (row, stop.clone()));
        let stops = Stops { stop, ends: self.ends.clone(), changed: AtomicBool::new(false) };
        self.workers.spawn(async move {
            let run::Worked { passed, row, end } = run::work(node, &lane, row, begun, &stops).await;
            // First, so that nothing of a process starts that has just been stopped.
            if stops.changed.load(Ordering::Relaxed) {
                handle.tell(Event::Processes).await;
            }
            if passed > 0 {
                handle.tell(Event::Passed { lane: lane.clone(), count: passed, head: row }).await;
            }
            if let Some(event) = end.into_event(lane, row) {
                handle.tell(event).await;
            }
        });
    }

    fn facts(&self) -> Facts {
        let mut lanes: Vec<_> = self.lanes.iter().collect();
        lanes.sort_by_key(|(_, depth, head, _)| (std::cmp::Reverse(*depth), *head));
        let shown = lanes.iter().take(LANES_SHOWN).map(|(key, depth, head, running)| {
            let facts =
                LaneFacts { lane: key.to_string(), depth: *depth, head: None, head_stored_at: None, running: *running };
            (facts, *head)
        });
        let processes = self.node.registry.names().map(|name| {
            let is_stopped = name.parse().is_ok_and(|method| self.lanes.is_stopped(&method));
            let of_it = lanes.iter().filter(|(key, ..)| key.method.as_str() == name);
            let (running, depth) =
                of_it.fold((0, 0), |(heads, depth), (_, more, _, runs)| (heads + u32::from(*runs), depth + more));
            ProcessFacts::new(name, is_stopped, running, depth.saturating_sub(running.into()))
        });
        let depth = lanes.iter().map(|(_, depth, ..)| depth).sum();
        Facts { lanes: shown.collect(), processes: processes.collect(), running: self.lanes.running() as u64, depth }
    }
}

/// What the journal remembers of a control message that other parts follow.
pub(crate) async fn events_start(node: &Node) -> Result<Option<u64>, JournalError> {
    node.journal.meta(Key::EventsStart).await
}
