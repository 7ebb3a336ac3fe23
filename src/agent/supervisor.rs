//! Supervision of the agent's parts: what ends by itself is started again, what ends too often ends its supervisor.
//!
//! ```text
//! running --ended or panicked--> waiting (backoff) --> running
//!         --more often than its policy allows, or never to be started again--> the supervisor fails, its parts are stopped
//!         --stop--> ending, each in its own order, for DRAIN at most --> ended
//! ```
//!
//! A supervisor may be a part of another, so that a group is started anew as a whole before the agent ends. Owns when a
//! part is started again, and the ticks by which it is seen that parts get on. Knows nothing of what they do.

use crate::model::jitter::Backoff;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long parts may take to end when they are told to.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// How often a part shows that it gets on. It waits as it likes meanwhile, for the broker for days; it must not block.
const TICK: Duration = Duration::from_secs(2);

/// A part that has not ticked for so long is stuck.
const STUCK: Duration = Duration::from_secs(10);

/// What becomes of a part that ends although nobody told it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// It is started again, so many times within the window.
    Restart { times: usize, within: Duration },
    /// Nothing can go on without it as it was.
    Never,
}

impl Policy {
    /// For what keeps nothing in memory that matters.
    pub(crate) const USUAL: Policy = Policy::Restart { times: 5, within: Duration::from_secs(60) };
}

/// The part that could not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exceeded(pub(crate) &'static str);

/// Hears of each part that ends, and why.
pub(crate) type Told = Arc<dyn Fn(&'static str, &str) + Send + Sync>;

type Make = Box<dyn Fn(CancellationToken) -> BoxFuture<'static, ()> + Send + Sync>;

struct Part {
    name: &'static str,
    policy: Policy,
    make: Make,
    /// When it ended lately.
    ends: VecDeque<Instant>,
    backoff: Backoff,
}

/// Parts that are looked after together.
pub(crate) struct Supervisor {
    parts: Vec<Part>,
    told: Told,
    pulses: Pulses,
}

impl Supervisor {
    /// One without parts.
    pub(crate) fn new(told: Told, pulses: Pulses) -> Supervisor {
        Supervisor { parts: Vec::new(), told, pulses }
    }

    /// With one more part: `make` starts it, and it ends soon after its token.
    #[must_use]
    pub(crate) fn with<F>(
        mut self,
        name: &'static str,
        policy: Policy,
        make: impl Fn(CancellationToken) -> F + Send + Sync + 'static,
    ) -> Supervisor
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let make: Make = Box::new(move |stop| make(stop).boxed());
        self.parts.push(Part { name, policy, make, ends: VecDeque::new(), backoff });
        self
    }

    /// Runs all parts until `stop`, and ends with the last of them; an error where one cannot go on.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), Exceeded> {
        // A supervisor that fails takes its parts with it, and nothing else.
        let stop = stop.child_token();
        let mut running = JoinSet::new();
        for (number, part) in self.parts.iter().enumerate() {
            running.spawn(run_part(number, part, Duration::ZERO, &stop, &self.pulses));
        }
        let outcome = loop {
            let (number, why) = tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                Some(ended) = running.join_next() => match ended {
                    Ok(ended) => ended,
                    // Only an abort ends the wrapper otherwise, and that is ours.
                    Err(_) => continue,
                },
                else => break Ok(()),
            };
            if stop.is_cancelled() {
                break Ok(());
            }
            let part = &mut self.parts[number];
            tracing::error!(part = part.name, why, "a part of the agent has ended");
            (self.told)(part.name, &why);
            match part.next_start(Instant::now()) {
                Some(wait) => drop(running.spawn(run_part(number, part, wait, &stop, &self.pulses))),
                None => break Err(Exceeded(part.name)),
            }
        };
        stop.cancel();
        let all = async { while running.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, all).await.is_err() {
            running.shutdown().await;
        }
        outcome
    }
}

impl Part {
    /// How long to wait before it is started again; `None` where it is not.
    fn next_start(&mut self, now: Instant) -> Option<Duration> {
        let Policy::Restart { times, within } = self.policy else { return None };
        if self.ends.back().is_none_or(|last| now - *last > within) {
            self.backoff.reset();
        }
        self.ends.push_back(now);
        while self.ends.front().is_some_and(|first| now - *first > within) {
            self.ends.pop_front();
        }
        (self.ends.len() <= times).then(|| self.backoff.next_wait())
    }
}

/// One life of a part, after a wait: its number, and how it ended.
fn run_part(
    number: usize,
    part: &Part,
    wait: Duration,
    stop: &CancellationToken,
    pulses: &Pulses,
) -> impl Future<Output = (usize, String)> + Send + 'static {
    let life = (part.make)(stop.clone());
    let (stop, pulse) = (stop.clone(), pulses.add(part.name));
    async move {
        let whole = async {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            life.await;
        };
        let ended = AssertUnwindSafe(pulse.with(whole)).catch_unwind().await;
        (
            number,
            ended.map_or_else(|panic| format!("panicked: {}", panic_text(panic.as_ref())), |()| "ended".to_owned()),
        )
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// When each part last got on.
#[derive(Clone, Default)]
pub(crate) struct Pulses(Arc<Mutex<Vec<Ticked>>>);

/// One part: its number, its name, and when it last ticked.
type Ticked = (u64, &'static str, Instant);

struct Pulse {
    id: u64,
    pulses: Pulses,
}

impl Pulses {
    /// A part that is stuck, where one is.
    pub(crate) fn stuck(&self) -> Option<&'static str> {
        let now = Instant::now();
        self.lock().iter().find(|(_, _, ticked)| now - *ticked > STUCK).map(|(_, name, _)| *name)
    }

    fn add(&self, name: &'static str) -> Pulse {
        let mut all = self.lock();
        let id = all.last().map_or(0, |(last, ..)| last + 1);
        all.push((id, name, Instant::now()));
        Pulse { id, pulses: self.clone() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Ticked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulse {
    /// Does `work`, ticking in its task.
    async fn with(self, work: impl Future<Output = ()>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                () = &mut work => return,
                _ = ticks.tick() => {
                    let mut all = self.pulses.lock();
                    all.iter_mut().filter(|(id, ..)| *id == self.id).for_each(|pulse| pulse.2 = Instant::now());
                }
            }
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.pulses.lock().retain(|(id, ..)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts what it is told.
    fn ear() -> (Told, Arc<Mutex<Vec<String>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = Arc::clone(&heard);
        (Arc::new(move |name, why| ears.lock().unwrap().push(format!("{name}: {why}"))), heard)
    }

    fn restart(times: usize) -> Policy {
        Policy::Restart { times, within: Duration::from_secs(60) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_is_started_again_and_what_panics_harms_nobody() {
        let (told, heard) = ear();
        let (lives, others) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counted, other) = (Arc::clone(&lives), Arc::clone(&others));
        let stop = CancellationToken::new();
        let supervisor = Supervisor::new(told, Pulses::default())
            .with("shaky", restart(5), move |stop| {
                let life = counted.fetch_add(1, Ordering::SeqCst);
                async move {
                    match life {
                        0 => panic!("at once"),
                        1 => {}
                        _ => stop.cancelled().await,
                    }
                }
            })
            .with("steady", Policy::Never, move |stop| {
                other.fetch_add(1, Ordering::SeqCst);
                async move { stop.cancelled().await }
            });
        let running = tokio::spawn(supervisor.run(stop.clone()));
        tokio::time::sleep(Duration::from_secs(30)).await;
        stop.cancel();
        assert_eq!(running.await.unwrap(), Ok(()));
        assert_eq!((lives.load(Ordering::SeqCst), others.load(Ordering::SeqCst)), (3, 1));
        assert_eq!(*heard.lock().unwrap(), ["shaky: panicked: at once", "shaky: ended"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_too_often_ends_its_supervisor_and_seldom_is_not_too_often() {
        let (told, heard) = ear();
        let supervisor = Supervisor::new(told, Pulses::default()).with("broken", restart(3), |_| async {});
        assert_eq!(supervisor.run(CancellationToken::new()).await, Err(Exceeded("broken")));
        assert_eq!(heard.lock().unwrap().len(), 4, "once and three times more");

        let (told, heard) = ear();
        let stop = CancellationToken::new();
        let seldom = |_| async { tokio::time::sleep(Duration::from_secs(40)).await };
        let supervisor = Supervisor::new(told, Pulses::default()).with("seldom", restart(3), seldom);
        let running = tokio::spawn(supervisor.run(stop.clone()));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(!running.is_finished() && heard.lock().unwrap().len() > 50);
        stop.cancel();
        assert_eq!(running.await.unwrap(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_is_started_anew_as_a_whole_before_all_ends() {
        let (told, heard) = ear();
        let neighbours = Arc::new(AtomicUsize::new(0));
        let (ears, beside) = (Arc::clone(&told), Arc::clone(&neighbours));
        let tree = Supervisor::new(told, Pulses::default()).with("group", restart(1), move |stop| {
            let (ears, beside) = (Arc::clone(&ears), Arc::clone(&beside));
            async move {
                let group = Supervisor::new(ears, Pulses::default())
                    .with("broken", Policy::Never, |_| async { tokio::time::sleep(Duration::from_secs(1)).await })
                    .with("neighbour", restart(1), move |stop| {
                        beside.fetch_add(1, Ordering::SeqCst);
                        async move { stop.cancelled().await }
                    });
                assert_eq!(group.run(stop).await, Err(Exceeded("broken")));
            }
        });
        assert_eq!(tree.run(CancellationToken::new()).await, Err(Exceeded("group")));
        assert_eq!(neighbours.load(Ordering::SeqCst), 2);
        assert_eq!(*heard.lock().unwrap(), ["broken: ended", "group: ended", "broken: ended", "group: ended"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_ticks_and_what_blocks_is_stuck() {
        let pulses = Pulses::default();
        let waits = pulses.add("waits");
        let waiting = tokio::spawn(waits.with(std::future::pending()));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(pulses.stuck(), None);
        // One that is never polled again.
        let blocked = pulses.add("blocked");
        tokio::time::sleep(STUCK + TICK).await;
        assert_eq!(pulses.stuck(), Some("blocked"));
        drop(blocked);
        assert_eq!(pulses.stuck(), None);
        waiting.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_does_not_end_is_cut_off() {
        let (told, _) = ear();
        let stop = CancellationToken::new();
        let deaf = |_| std::future::pending();
        let supervisor = Supervisor::new(told, Pulses::default()).with("deaf", Policy::Never, deaf);
        let running = tokio::spawn(supervisor.run(stop.clone()));
        tokio::task::yield_now().await;
        stop.cancel();
        let began = Instant::now();
        assert_eq!(running.await.unwrap(), Ok(()));
        assert_eq!(began.elapsed(), DRAIN);
    }
}
