//! Chance from a seed (SplitMix64): the same seed, the same choices.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Dice for one purpose: what one part rolls does not change another's.
    pub fn new(seed: u64, purpose: &str) -> Dice {
        let mixed =
            purpose.bytes().fold(seed ^ 0x6564_6777, |all, byte| all.wrapping_mul(1_099_511_628_211) ^ u64::from(byte));
        Dice(mixed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or(0)
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// Between the two, in milliseconds.
    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.next() % (to - from).max(1))
    }

    /// `count` moments within `span`, its first and last twentieth left out, in order.
    pub fn moments(&mut self, count: usize, span: Duration) -> Vec<Duration> {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let mut moments: Vec<Duration> = (0..count).map(|_| self.millis(span / 20, span * 19 / 20)).collect();
        moments.sort();
        moments
    }
}
