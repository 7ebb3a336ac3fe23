//! Small values that the journal keeps: who it is, and what the node must remember between runs.

use super::error::JournalError;
use super::open::Journal;
use rusqlite::{Connection, OptionalExtension, params};

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// The journal's id.
    Journal,
    /// The node's name.
    Node,
    /// The number of the last status written (the beat).
    Beat,
    /// The broker's time as it was last known, in ns; a lower bound after a reboot.
    BrokerTime,
    /// The broker's clock minus this machine's, in ns.
    ClockOffset,
    /// The boot in which the broker was last heard, and its clock minus the time since that boot, in ns.
    BootClock,
    /// Where this node's events begin, once the hub has said so.
    EventsStart,
    /// The length of `acks.jsonl` up to which it is known to be whole.
    AcksLength,
    /// Which `inmsg.txt` was taken last.
    Inmsg,
    /// Which `inmsg.txt` was found bad last.
    BadInmsg,
    /// How many commits the journal has seen; the mark beside it must never be ahead.
    Commits,
    /// Why this journal was made in place of another; told once.
    Replaced,
    /// The last `replaced` that was told.
    ReplacedTold,
    /// Up to where records of commands are being published again.
    RepublishCommands,
    /// The same of events.
    RepublishEvents,
    /// When the consumer of commands was made, as it was when the position was kept.
    CommandsConsumer,
    /// The same of events.
    EventsConsumer,
    /// Commands stored no later than this (ns) count as taken.
    KnownCommands,
    /// The same of events.
    KnownEvents,
    /// Rows of commands up to this one are not all there any more.
    ThinnedCommands,
    /// The same of events.
    ThinnedEvents,
    /// That the agent is to leave for good, and whether it has.
    Leaving,
    /// How the link was when that last changed.
    Link,
    /// What groups the node was a member of, and where in the streams: JSON.
    Members,
}

impl Key {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Key::Journal => "journal",
            Key::Node => "node",
            Key::Beat => "beat",
            Key::BrokerTime => "broker_time",
            Key::ClockOffset => "clock_offset",
            Key::BootClock => "boot_clock",
            Key::EventsStart => "events_start",
            Key::AcksLength => "acks_length",
            Key::Inmsg => "inmsg",
            Key::BadInmsg => "bad_inmsg",
            Key::Commits => "commits",
            Key::Replaced => "replaced",
            Key::ReplacedTold => "replaced_told",
            Key::RepublishCommands => "republish_commands",
            Key::RepublishEvents => "republish_events",
            Key::CommandsConsumer => "commands_consumer",
            Key::EventsConsumer => "events_consumer",
            Key::KnownCommands => "known_commands",
            Key::KnownEvents => "known_events",
            Key::ThinnedCommands => "thinned_commands",
            Key::ThinnedEvents => "thinned_events",
            Key::Leaving => "leaving",
            Key::Link => "link",
            Key::Members => "members",
        }
    }
}

pub(super) fn put(connection: &Connection, key: Key, value: &str) -> Result<(), JournalError> {
    connection
        .prepare_cached("INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2")?
        .execute(params![key.as_str(), value])?;
    Ok(())
}

pub(super) fn get(connection: &Connection, key: Key) -> Result<Option<String>, JournalError> {
    let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    Ok(statement.query_row([key.as_str()], |row| row.get(0)).optional()?)
}

impl Journal {
    /// A kept value, parsed; `None` where it is absent or does not parse.
    pub async fn meta<T: std::str::FromStr + Send + 'static>(&self, key: Key) -> Result<Option<T>, JournalError> {
        let text = self.writer.read(move |connection| get(connection, key)).await?;
        Ok(text.and_then(|text| text.parse().ok()))
    }

    /// Keeps a value; durable on return.
    pub async fn set_meta(&self, key: Key, value: impl ToString) -> Result<(), JournalError> {
        let value = value.to_string();
        self.writer.call(move |connection| put(connection, key, &value)).await
    }

    /// Keeps a value with the next commit.
    pub async fn set_meta_lazily(&self, key: Key, value: impl ToString) -> Result<(), JournalError> {
        let value = value.to_string();
        self.writer.lazily(move |connection| put(connection, key, &value)).await
    }
}
