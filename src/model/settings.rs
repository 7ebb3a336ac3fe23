//! What a message's headers and the defaults come to.
//!
//! Owns the defaults of timeouts, retries and deadlines. Never judges whether a deadline has passed.

use super::header::{MsgHeaders, OnCrash, Retries};
use super::message::Kind;
use super::name::MethodName;
use super::time::{StartBy, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// Where a message says nothing, this holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Timeouts by method, from the config.
    pub timeouts: BTreeMap<String, Duration>,
    /// How long the streams keep messages, as `spec` tells.
    pub retention: Duration,
}

impl Default for Defaults {
    fn default() -> Defaults {
        Defaults { timeouts: BTreeMap::new(), retention: Duration::from_secs(30 * DAY_S) }
    }
}

const DAY_S: u64 = 86_400;

/// How one message is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long one run may take.
    pub timeout: Duration,
    /// Do not begin later, by the broker's clock.
    pub start_by: Timestamp,
    /// Further tries.
    pub retries: Retries,
    /// The first wait between tries; doubles.
    pub retry_wait: Duration,
    /// After a host crash.
    pub on_crash: OnCrash,
}

impl Settings {
    /// The settings of a message with these headers, stored at `stored_at`.
    pub fn resolve(
        headers: &MsgHeaders,
        kind: Kind,
        method: &MethodName,
        stored_at: Timestamp,
        defaults: &Defaults,
    ) -> Settings {
        let timeout = headers.timeout.or_else(|| defaults.timeouts.get(method.as_str()).copied());
        let start_by =
            headers.start_by.unwrap_or_else(|| StartBy::After(default_start_by(kind, method, defaults.retention)));
        let event = kind == Kind::Event;
        Settings {
            timeout: timeout.unwrap_or_else(|| default_timeout(method)),
            start_by: start_by.deadline(stored_at),
            retries: headers.retries.unwrap_or(if event { Retries::Unlimited } else { Retries::Times(0) }),
            retry_wait: headers.retry_wait.unwrap_or(Duration::from_secs(1)),
            on_crash: headers.on_crash.unwrap_or(if event { OnCrash::Rerun } else { OnCrash::Report }),
        }
    }

    /// The wait after try `attempt` (from 1): doubling, capped at 5 minutes or the first wait where that is longer. Full
    /// jitter is applied by whoever waits.
    pub fn wait_after(&self, attempt: u32) -> Duration {
        const CAP: Duration = Duration::from_secs(300);
        let doubled = self.retry_wait.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        doubled.min(CAP.max(self.retry_wait))
    }
}

fn default_timeout(method: &MethodName) -> Duration {
    match method.as_str() {
        "shell" | "exec" => Duration::from_secs(3600),
        _ => Duration::from_secs(10),
    }
}

fn default_start_by(kind: Kind, method: &MethodName, retention: Duration) -> Duration {
    match (kind, method.as_str()) {
        (Kind::Control, "restart" | "directive") => Duration::from_secs(300),
        _ => last_start(retention),
    }
}

/// How long after it was stored a message may begin at the latest: what the streams keep less a day, which is the hub's time
/// to give a fate to what no node took.
pub fn last_start(retention: Duration) -> Duration {
    retention.saturating_sub(Duration::from_secs(DAY_S)).max(retention / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(headers: &MsgHeaders, kind: Kind, method: &str, defaults: &Defaults) -> Settings {
        Settings::resolve(headers, kind, &method.parse().unwrap(), Timestamp::from_nanos(0), defaults)
    }

    #[test]
    fn headers_win_over_config_and_config_over_built_in() {
        let mut defaults = Defaults::default();
        let none = MsgHeaders::default();
        assert_eq!(resolve(&none, Kind::Command, "shell", &defaults).timeout, Duration::from_secs(3600));
        assert_eq!(resolve(&none, Kind::Command, "ping", &defaults).timeout, Duration::from_secs(10));
        defaults.timeouts.insert("shell".into(), Duration::from_secs(5));
        assert_eq!(resolve(&none, Kind::Command, "shell", &defaults).timeout, Duration::from_secs(5));
        let given = MsgHeaders { timeout: Some(Duration::from_secs(1)), ..none };
        assert_eq!(resolve(&given, Kind::Command, "shell", &defaults).timeout, Duration::from_secs(1));
    }

    #[test]
    fn commands_are_careful_and_events_insist() {
        let (none, defaults) = (MsgHeaders::default(), Defaults::default());
        let command = resolve(&none, Kind::Command, "shell", &defaults);
        assert_eq!((command.retries, command.on_crash), (Retries::Times(0), OnCrash::Report));
        let event = resolve(&none, Kind::Event, "log", &defaults);
        assert_eq!((event.retries, event.on_crash), (Retries::Unlimited, OnCrash::Rerun));
        assert_eq!(event.start_by, Timestamp::from_nanos(0).plus(Duration::from_secs(29 * DAY_S)));
        let restart = resolve(&none, Kind::Control, "restart", &defaults);
        assert_eq!(restart.start_by, Timestamp::from_nanos(0).plus(Duration::from_secs(300)));
    }

    #[test]
    fn waits_double_up_to_a_cap() {
        let settings = resolve(&MsgHeaders::default(), Kind::Event, "log", &Defaults::default());
        assert_eq!(settings.wait_after(1), Duration::from_secs(1));
        assert_eq!(settings.wait_after(3), Duration::from_secs(4));
        assert_eq!(settings.wait_after(1000), Duration::from_secs(300));
    }
}
