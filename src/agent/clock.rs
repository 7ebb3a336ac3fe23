//! The broker's clock, as the node knows it: deadlines are judged by it, never by the node's own.
//!
//! Between two words of the broker it runs on the machine's monotonic clock, so that a step of the node's own clock
//! changes nothing. Before the first word after a start it goes on from the last one of this boot, by the time since the
//! boot. After a reboot it is a guess: the own clock plus the offset known from before, never below the last time that
//! was heard; then [`Clock::is_past`] may not know.

use crate::model::time::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The broker's clock.
#[derive(Debug)]
pub(crate) struct Clock {
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// The broker's time as well as it is known.
    best: Timestamp,
    /// It is at least this.
    floor: Timestamp,
    /// When both were so.
    at: Instant,
    /// It rests on the broker's own word, heard in this boot.
    is_known: bool,
}

/// What the journal kept of the broker's clock.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    /// The broker's time minus the own, in ns.
    pub(crate) offset: i64,
    /// The broker's time when it was last heard.
    pub(crate) heard: Option<Timestamp>,
    /// The same by the time since the boot, where that was this boot.
    pub(crate) boot: Option<BootClock>,
}

/// The broker's clock minus the time since a boot: constant as long as that boot lasts, whatever the own clock does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BootClock {
    pub(crate) boot: String,
    offset: i64,
}

impl BootClock {
    /// The broker's clock in this boot; `now` is its time.
    pub(crate) fn new(boot: &str, now: Timestamp) -> BootClock {
        BootClock { boot: boot.to_owned(), offset: now.nanos().saturating_sub(since_boot()) }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_nanos(since_boot().saturating_add(self.offset))
    }
}

impl std::fmt::Display for BootClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.boot, self.offset)
    }
}

impl FromStr for BootClock {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<BootClock, Self::Err> {
        let (boot, offset) = text.split_once(' ').unwrap_or(("", text));
        Ok(BootClock { boot: boot.to_owned(), offset: offset.parse()? })
    }
}

/// Time since the boot, suspended time included, in ns.
fn since_boot() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

impl Clock {
    /// A clock that begins with what the journal kept; `kept.boot` is of this boot.
    pub(crate) fn new(kept: &Kept) -> Clock {
        let floor = kept.heard.unwrap_or(Timestamp::from_nanos(0));
        let (best, floor) = match &kept.boot {
            Some(boot) => (boot.now().max(floor), boot.now().max(floor)),
            None => {
                let guess = Timestamp::from_nanos(Timestamp::local_now().nanos().saturating_add(kept.offset));
                (guess.max(floor), floor)
            }
        };
        Clock { state: Mutex::new(State { best, floor, at: Instant::now(), is_known: kept.boot.is_some() }) }
    }

    /// The broker said that it was `time`, at some moment of the last `took`: on a bad link its word may be old. What
    /// was known stays as far as it agrees.
    pub(crate) fn heard(&self, time: Timestamp, took: Duration) {
        let mut state = self.lock();
        let (now, latest) = (state.now(), time.plus(took));
        let (best, floor) = (now.best.clamp(time, latest), now.floor.clamp(time, latest));
        *state = State { best, floor, is_known: true, ..now };
    }

    /// True where the broker has said what time it is, in this boot; else it is a guess.
    pub(crate) fn is_known(&self) -> bool {
        self.lock().is_known
    }

    /// The broker's clock has passed `time`: it stored something then.
    pub(crate) fn at_least(&self, time: Timestamp) {
        let mut state = self.lock();
        let now = state.now();
        *state = State { best: now.best.max(time), floor: now.floor.max(time), ..now };
    }

    /// The broker's time, as well as it is known.
    pub(crate) fn now(&self) -> Timestamp {
        self.lock().now().best
    }

    /// The broker's time as far as it is certain; where the rest is a guess, [`Clock::now`] may be years ahead of it.
    pub(crate) fn at_last(&self) -> Timestamp {
        self.lock().now().floor
    }

    /// Whether the broker's clock has passed this time; `None` where only a guess says so.
    pub(crate) fn is_past(&self, time: Timestamp) -> Option<bool> {
        let now = self.lock().now();
        match (now.best > time, now.floor > time) {
            (_, true) => Some(true),
            (false, false) => Some(false),
            (true, false) => None,
        }
    }

    /// The broker's time minus the own, in ns.
    pub(crate) fn offset(&self) -> i64 {
        self.now().nanos().saturating_sub(Timestamp::local_now().nanos())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The same, moved on to this moment.
    fn now(self) -> State {
        let gone: Duration = self.at.elapsed();
        State { best: self.best.plus(gone), floor: self.floor.plus(gone), at: self.at + gone, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_clock_that_is_years_off_does_not_matter_once_the_broker_was_heard() {
        let clock = Clock::new(&Kept::default());
        let broker: Timestamp = "2031-01-01T00:00:00Z".parse().unwrap();
        assert!(!clock.is_known());
        clock.heard(broker, Duration::ZERO);
        assert!(clock.is_known());
        assert!(clock.now().since(broker) < Duration::from_secs(5));
        assert!(clock.offset() > 0);
    }

    #[test]
    fn what_is_stored_moves_it_on_and_never_back() {
        let clock = Clock::new(&Kept::default());
        let later = clock.now().plus(Duration::from_secs(60));
        clock.at_least(later);
        assert!(clock.now() >= later);
        clock.at_least(Timestamp::from_nanos(0));
        assert!(clock.now() >= later);
    }

    #[test]
    fn an_old_word_does_not_turn_it_back() {
        let clock = Clock::new(&Kept::default());
        let broker: Timestamp = "2031-01-01T00:00:00Z".parse().unwrap();
        clock.heard(broker, Duration::ZERO);
        // Ten seconds under way.
        clock.heard(broker.minus(Duration::from_secs(9)), Duration::from_secs(10));
        assert!(clock.now() >= broker);
        // One that was not means that the broker's own clock was set.
        clock.heard(broker.minus(Duration::from_secs(60)), Duration::ZERO);
        assert!(clock.now() < broker);
    }

    #[test]
    fn it_never_begins_below_what_was_heard_before() {
        let floor: Timestamp = "2040-01-01T00:00:00Z".parse().unwrap();
        let clock = Clock::new(&Kept { heard: Some(floor), ..Kept::default() });
        assert!(clock.now() >= floor);
        assert_eq!(clock.is_past(floor.minus(Duration::from_secs(1))), Some(true));
    }

    #[test]
    fn after_a_reboot_a_guess_does_not_decide() {
        let now = Timestamp::local_now();
        let year = Duration::from_secs(365 * 86_400);
        // The own clock is a year ahead of all that was heard: a step, or a year in a drawer.
        let clock = Clock::new(&Kept { heard: Some(now.minus(year)), ..Kept::default() });
        assert_eq!(clock.is_past(now.minus(Duration::from_secs(86_400))), None);
        assert_eq!(clock.is_past(now.plus(year)), Some(false));
        clock.heard(now, Duration::ZERO);
        assert_eq!(clock.is_past(now.minus(Duration::from_secs(86_400))), Some(true));
    }

    #[test]
    fn within_a_boot_the_own_clock_does_not_matter() {
        let broker: Timestamp = "2031-01-01T00:00:00Z".parse().unwrap();
        let boot: BootClock = BootClock::new("b1", broker).to_string().parse().unwrap();
        let clock = Clock::new(&Kept { offset: 77, heard: Some(broker), boot: Some(boot) });
        assert!(clock.now() >= broker && clock.now().since(broker) < Duration::from_secs(5));
        assert_eq!(clock.is_past(broker.plus(Duration::from_secs(3600))), Some(false));
    }
}
