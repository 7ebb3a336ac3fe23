//! Times and durations as users write and read them.
//!
//! Owns the broker's timestamps (nanoseconds, RFC 3339 with nine decimals) and the durations of headers, options and
//! config (`30s`, `5m`, `2h`). Never reads a clock, except for [`Timestamp::local_now`], which says so.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// A point in time in nanoseconds since 1970 UTC. Written as RFC 3339 UTC with nine decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(i64);

/// Why a text is not a time or a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {wanted}")]
pub struct BadTime {
    text: String,
    wanted: &'static str,
}

impl BadTime {
    fn new(text: &str, wanted: &'static str) -> Self {
        BadTime { text: text.chars().take(80).collect::<String>().escape_debug().to_string(), wanted }
    }
}

impl Timestamp {
    /// From nanoseconds since 1970 UTC.
    pub const fn from_nanos(nanos: i64) -> Timestamp {
        Timestamp(nanos)
    }

    /// Nanoseconds since 1970 UTC.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// This machine's own clock, which may be wrong by years; deadlines use the broker's (see the agent's clock).
    pub fn local_now() -> Timestamp {
        let now = Utc::now();
        Timestamp(now.timestamp_nanos_opt().unwrap_or(i64::MAX))
    }

    /// The time `duration` later; saturates.
    pub fn plus(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// The time `duration` earlier; saturates.
    pub fn minus(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero where it is not later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// As chrono's type, for display in local formats.
    pub fn to_datetime(self) -> DateTime<Utc> {
        DateTime::from_timestamp_nanos(self.0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.to_datetime().to_rfc3339_opts(SecondsFormat::Nanos, true))
    }
}

impl std::str::FromStr for Timestamp {
    type Err = BadTime;
    fn from_str(text: &str) -> Result<Timestamp, BadTime> {
        let bad = || BadTime::new(text, "a time such as 2026-11-23T21:00:00Z");
        let time = DateTime::parse_from_rfc3339(text.trim()).map_err(|_| bad())?;
        // Nanoseconds reach from 1677 to 2262; the broker writes the year 1 for "never".
        let saturated = if time.timestamp() < 0 { i64::MIN } else { i64::MAX };
        Ok(Timestamp(time.timestamp_nanos_opt().unwrap_or(saturated)))
    }
}

impl TryFrom<String> for Timestamp {
    type Error = BadTime;
    fn try_from(text: String) -> Result<Timestamp, BadTime> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> String {
        time.to_string()
    }
}

/// Parses `30s`, `5m`, `1h 30m`, `250ms`; at most 100 years, so that sums with a time cannot overflow.
pub fn parse_duration(text: &str) -> Result<Duration, BadTime> {
    const LIMIT: Duration = Duration::from_secs(100 * 366 * 86_400);
    let bad = || BadTime::new(text, "a duration such as 30s, 5m or 2h");
    let duration = humantime::parse_duration(text.trim()).map_err(|_| bad())?;
    if duration > LIMIT { Err(bad()) } else { Ok(duration) }
}

/// Writes a duration so that [`parse_duration`] reads it back: `1h 30m`.
pub fn format_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// A duration as people read it: its largest unit only (`3 h`, `4 min`, `12 s`), for ages in tables and messages.
pub fn rough(duration: Duration) -> String {
    match duration.as_secs() {
        s if s >= 2 * 86_400 => format!("{} d", s / 86_400),
        s if s >= 2 * 3_600 => format!("{} h", s / 3_600),
        s if s >= 120 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

/// Serde for durations written as text in config files.
pub mod duration_text {
    use super::{Duration, format_duration, parse_duration};
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes `1h 30m`.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(*duration))
    }

    /// Reads `1h 30m`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).map_err(serde::de::Error::custom)
    }
}

/// When a message may no longer begin: `Fleet-Start-By`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartBy {
    /// So long after it was stored.
    After(Duration),
    /// At this time, by the broker's clock.
    At(Timestamp),
}

impl StartBy {
    /// The deadline of a message stored at `stored_at`.
    pub fn deadline(self, stored_at: Timestamp) -> Timestamp {
        match self {
            StartBy::After(duration) => stored_at.plus(duration),
            StartBy::At(time) => time,
        }
    }
}

impl std::str::FromStr for StartBy {
    type Err = BadTime;
    fn from_str(text: &str) -> Result<StartBy, BadTime> {
        if let Ok(duration) = parse_duration(text) {
            return Ok(StartBy::After(duration));
        }
        text.parse().map(StartBy::At).map_err(|_| BadTime::new(text, "a duration (30s, 5m, 2h) or an RFC 3339 time"))
    }
}

impl fmt::Display for StartBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartBy::After(duration) => f.write_str(&format_duration(*duration)),
            StartBy::At(time) => write!(f, "{time}"),
        }
    }
}

/// Where a look back into the past begins: `24h` (ago), or a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(Duration),
    /// At this time.
    At(Timestamp),
}

impl Since {
    /// The moment, as seen from `now`.
    pub fn begin(self, now: Timestamp) -> Timestamp {
        match self {
            Since::Ago(duration) => now.minus(duration),
            Since::At(time) => time,
        }
    }

    /// How long before `now` that is; zero where it is not past.
    pub fn back(self, now: Timestamp) -> Duration {
        now.since(self.begin(now))
    }
}

impl std::str::FromStr for Since {
    type Err = BadTime;
    fn from_str(text: &str) -> Result<Since, BadTime> {
        if let Ok(duration) = parse_duration(text) {
            return Ok(Since::Ago(duration));
        }
        // A day begins with its first second, UTC.
        let day = text.trim().len() == 10;
        let time = if day { format!("{}T00:00:00Z", text.trim()) } else { text.to_owned() };
        let wanted = "a duration (30s, 5m, 2h), a day (2026-11-23) or a time (2026-11-23T21:00:00Z)";
        time.parse().map(Since::At).map_err(|_| BadTime::new(text, wanted))
    }
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Since::Ago(duration) => write!(f, "the last {}", rough(*duration)),
            Since::At(time) => {
                write!(f, "the time since {}", time.to_datetime().to_rfc3339_opts(SecondsFormat::Secs, true))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_keep_nine_decimals() {
        let time: Timestamp = "2026-11-23T21:00:00.000000001Z".parse().unwrap();
        assert_eq!(time.to_string(), "2026-11-23T21:00:00.000000001Z");
        let zoned: Timestamp = "2026-11-23T23:00:00+02:00".parse().unwrap();
        assert_eq!(zoned.to_string(), "2026-11-23T21:00:00.000000000Z");
        assert!("yesterday".parse::<Timestamp>().is_err());
        assert_eq!("0001-01-01T00:00:00Z".parse(), Ok(Timestamp::from_nanos(i64::MIN)));
        assert_eq!("9999-01-01T00:00:00Z".parse(), Ok(Timestamp::from_nanos(i64::MAX)));
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("90s").unwrap(), Duration::from_secs(90));
        for bad in ["", "5", "-5s", "1000000000y", "five"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn start_by_takes_both_forms() {
        let stored = Timestamp::from_nanos(1_000_000_000);
        assert_eq!("1s".parse::<StartBy>().unwrap().deadline(stored), Timestamp::from_nanos(2_000_000_000));
        let at: StartBy = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(at.deadline(stored), "2026-01-01T00:00:00Z".parse().unwrap());
        assert!("soon".parse::<StartBy>().is_err());
    }

    #[test]
    fn a_look_back_begins_at_an_age_a_day_or_a_time() {
        let now: Timestamp = "2026-11-23T21:00:00Z".parse().unwrap();
        for (text, begin) in [
            ("1h", "2026-11-23T20:00:00Z"),
            ("2026-11-22", "2026-11-22T00:00:00Z"),
            ("2026-11-23T20:30:00+01:00", "2026-11-23T19:30:00Z"),
        ] {
            assert_eq!(text.parse::<Since>().unwrap().begin(now), begin.parse().unwrap(), "{text}");
        }
        assert_eq!("2027-01-01".parse::<Since>().unwrap().back(now), Duration::ZERO);
        for bad in ["yesterday", "5", "2026-13-01", "2026-11-2x", ""] {
            assert!(bad.parse::<Since>().unwrap_err().to_string().contains("a duration (30s"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_time_reads_back(nanos in any::<i64>()) {
            let time = Timestamp::from_nanos(nanos);
            prop_assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
        }

        #[test]
        fn a_duration_reads_back(ms in 0u64..10_000_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(duration)).unwrap(), duration);
        }
    }
}
