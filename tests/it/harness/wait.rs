//! Waiting for a state with a deadline. The only place in the tests where time passes by itself.
//!
//! A wait is level-triggered: the state is looked at again and again until it holds, so nothing is lost when it came
//! true before anybody looked. When it does not hold in time, the test fails with what was seen last.

use std::fmt::Display;
use std::panic::Location;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

/// How long a state may take that a healthy machine reaches in well under a second; generous, since CI machines stall.
pub const SOON: Duration = Duration::from_secs(30);
/// How often a state is looked at.
const POLL: Duration = Duration::from_millis(20);

/// What a look at a state brings: the value that was waited for, or why it is not there yet.
pub trait Look {
    /// The value.
    type Value;
    /// The value, or what was seen instead.
    fn seen(self) -> Result<Self::Value, String>;
}

impl<T> Look for Option<T> {
    type Value = T;
    fn seen(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl<T, E: Display> Look for Result<T, E> {
    type Value = T;
    fn seen(self) -> Result<T, String> {
        self.map_err(|error| error.to_string())
    }
}

impl Look for bool {
    type Value = ();
    fn seen(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("it does not hold".to_owned()) }
    }
}

/// Looks until there is a value, at most for `within`; then the test fails, naming `what`, the caller's line and what
/// was seen last. A look that does not return is cut off at the deadline.
#[track_caller]
pub fn wait_until<O: Look>(
    within: Duration,
    what: impl Display,
    mut look: impl AsyncFnMut() -> O,
) -> impl Future<Output = O::Value> {
    let caller = Location::caller();
    async move {
        let end = Instant::now() + within;
        let mut last = "nothing: the first look did not return".to_owned();
        let mut ticks = interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let Ok(looked) = timeout_at(end, async {
            ticks.tick().await;
            look().await.seen()
        })
        .await
        {
            match looked {
                Ok(value) => return value,
                Err(seen) => last = seen,
            }
        }
        panic!("{caller}: waited {within:?} in vain for {what}; last seen: {last}");
    }
}
