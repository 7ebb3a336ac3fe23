//! Randomness for waits: ten thousand agents must not come in one instant.
//!
//! Owns the growing, jittered wait between tries. Never sleeps itself.

use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// A random number from 0 up to, not including, 1. Good enough for jitter, for nothing else.
pub fn fraction() -> f64 {
    // Each RandomState is keyed anew from the system's randomness.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (random >> 11) as f64 / (1u64 << 53) as f64
}

/// Waits that grow from `first` to `most`, with full jitter; reset when things go well again.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    tries: u32,
}

impl Backoff {
    /// A fresh one.
    pub fn new(first: Duration, most: Duration) -> Backoff {
        Backoff { first, most, tries: 0 }
    }

    /// The next wait: between a tenth and all of a bound that doubles.
    pub fn next_wait(&mut self) -> Duration {
        let bound = self.first.saturating_mul(1 << self.tries.min(20)).min(self.most);
        self.tries = self.tries.saturating_add(1);
        bound.mul_f64(0.1 + 0.9 * fraction())
    }

    /// Things went well: the next wait is short again.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let waits: Vec<Duration> = (0..40).map(|_| backoff.next_wait()).collect();
        assert!(waits[0] <= Duration::from_millis(100));
        assert!(waits.iter().all(|w| *w <= Duration::from_secs(5) && *w >= Duration::from_millis(10)));
        assert!(waits[20..].iter().any(|w| *w > Duration::from_secs(1)));
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }

    #[test]
    fn fractions_differ_and_stay_below_one() {
        let some: Vec<f64> = (0..100).map(|_| fraction()).collect();
        assert!(some.iter().all(|f| (0.0..1.0).contains(f)));
        assert!(some.iter().any(|f| *f != some[0]));
    }
}
