//! Waiting between tries.
//!
//! Owns the doubling and the jitter. Never decides whether to try again.

use super::connect::jitter;
use std::time::Duration;

/// Waits with full jitter under a bound that doubles with each try.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    tries: u32,
}

impl Backoff {
    /// The bound of the first wait, and of all of them.
    pub fn new(first: Duration, most: Duration) -> Backoff {
        Backoff { first, most, tries: 0 }
    }

    /// How long to wait before the next try.
    pub fn wait(&mut self) -> Duration {
        let bound = self.first.saturating_mul(1 << self.tries.min(16)).min(self.most);
        self.tries = self.tries.saturating_add(1);
        // Never nothing: a cause that fails at once would make a busy loop.
        let floor = bound / 10;
        let spread = u64::try_from((bound - floor).as_millis()).unwrap_or(u64::MAX);
        floor + Duration::from_millis(jitter(spread))
    }

    /// It worked: the next wait is a first one.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_differ() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        assert!(backoff.wait() <= Duration::from_millis(100));
        let later: Vec<Duration> = (0..100).map(|_| backoff.wait()).collect();
        assert!(later.iter().all(|wait| *wait <= Duration::from_secs(5) && *wait > Duration::from_millis(10)));
        assert!(later[50..].iter().any(|wait| *wait != later[50]));
        backoff.reset();
        assert!(backoff.wait() <= Duration::from_millis(100));
    }
}
