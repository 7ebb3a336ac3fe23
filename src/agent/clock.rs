//! The broker's clock, as the node knows it: deadlines are judged by it, never by the node's own (DESIGN §6).
//!
//! Between two words of the broker it runs on the machine's monotonic clock, so that a step of the node's own clock
//! changes nothing. Before the first word after a start it begins at the own clock plus the offset known from before,
//! and never below the last time the broker was heard.

use crate::model::time::Timestamp;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

/// The broker's clock.
#[derive(Debug)]
pub(crate) struct Clock {
    base: Mutex<(Timestamp, Instant)>,
    heard: AtomicBool,
}

impl Clock {
    /// A clock that begins with what the journal kept: the broker's time minus the own (ns), and a lower bound.
    pub(crate) fn new(offset: i64, floor: Option<Timestamp>) -> Clock {
        let guess = Timestamp::from_nanos(Timestamp::local_now().nanos().saturating_add(offset));
        let begin = floor.map_or(guess, |floor| guess.max(floor));
        Clock { base: Mutex::new((begin, Instant::now())), heard: AtomicBool::new(false) }
    }

    /// The broker said that it is `time` now.
    pub(crate) fn heard(&self, time: Timestamp) {
        *self.base.lock().unwrap_or_else(PoisonError::into_inner) = (time, Instant::now());
        self.heard.store(true, Ordering::Relaxed);
    }

    /// True once the broker has said what time it is; before that it is a guess.
    pub(crate) fn is_known(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// The broker's clock has passed `time`: it stored something then.
    pub(crate) fn at_least(&self, time: Timestamp) {
        let mut base = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        if base.0.plus(base.1.elapsed()) < time {
            *base = (time, Instant::now());
        }
    }

    /// The broker's time.
    pub(crate) fn now(&self) -> Timestamp {
        let (time, at) = *self.base.lock().unwrap_or_else(PoisonError::into_inner);
        time.plus(at.elapsed())
    }

    /// The broker's time minus the own, in ns.
    pub(crate) fn offset(&self) -> i64 {
        self.now().nanos().saturating_sub(Timestamp::local_now().nanos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_clock_that_is_years_off_does_not_matter_once_the_broker_was_heard() {
        let clock = Clock::new(0, None);
        let broker: Timestamp = "2031-01-01T00:00:00Z".parse().unwrap();
        assert!(!clock.is_known());
        clock.heard(broker);
        assert!(clock.is_known());
        assert!(clock.now().since(broker) < Duration::from_secs(5));
        assert!(clock.offset() > 0);
    }

    #[test]
    fn what_is_stored_moves_it_on_and_never_back() {
        let clock = Clock::new(0, None);
        let later = clock.now().plus(Duration::from_secs(60));
        clock.at_least(later);
        assert!(clock.now() >= later);
        clock.at_least(Timestamp::from_nanos(0));
        assert!(clock.now() >= later);
    }

    #[test]
    fn it_never_begins_below_what_was_heard_before() {
        let floor: Timestamp = "2040-01-01T00:00:00Z".parse().unwrap();
        assert!(Clock::new(0, Some(floor)).now() >= floor);
    }
}
