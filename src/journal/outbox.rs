//! The outbox: what the node has to say, kept until the broker has stored it.
//!
//! Owns the entries and their order. Never publishes; the agent's outbox does.

use super::error::JournalError;
use super::open::Journal;
use super::rows::{headers_from_json, headers_to_json};
use crate::model::header::RawHeaders;
use bytes::Bytes;
use rusqlite::{Connection, params};

/// Entries of one class keep their order; classes never wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Terminal, progress and late records.
    Ack,
    /// Error events.
    Error,
    /// Messages that this node sends.
    Message,
    /// Lines of `acks.jsonl`: results of what this node sent. They leave to a file, not to the broker.
    Result,
}

impl Class {
    /// The classes that leave to the broker.
    pub const PUBLISHED: [Class; 3] = [Class::Ack, Class::Error, Class::Message];

    fn number(self) -> i64 {
        match self {
            Class::Ack => 0,
            Class::Error => 1,
            Class::Message => 2,
            Class::Result => 3,
        }
    }
}

/// Something to be told, not yet in the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its class.
    pub class: Class,
    /// Where to.
    pub subject: String,
    /// With which headers.
    pub headers: RawHeaders,
    /// What.
    pub body: Bytes,
}

/// An entry's number; later entries have higher ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub i64);

/// An entry of the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub id: EntryId,
    /// What it says.
    pub report: Report,
}

pub(super) fn add(connection: &Connection, reports: &[Report]) -> Result<(), JournalError> {
    let mut statement =
        connection.prepare_cached("INSERT INTO outbox (class, subject, headers, body) VALUES (?1, ?2, ?3, ?4)")?;
    for report in reports {
        statement.execute(params![
            report.class.number(),
            report.subject,
            headers_to_json(&report.headers),
            report.body.as_ref()
        ])?;
    }
    Ok(())
}

impl Journal {
    /// Adds reports; durable on return.
    pub async fn report(&self, reports: Vec<Report>) -> Result<(), JournalError> {
        self.writer.call(move |connection| add(connection, &reports)).await
    }

    /// Adds reports with a mark, in one commit, unless that mark is kept already; tells whether it did.
    pub async fn report_once(&self, key: super::Key, mark: String, reports: Vec<Report>) -> Result<bool, JournalError> {
        self.writer
            .call(move |connection| {
                if super::meta::get(connection, key)?.as_deref() == Some(&mark) {
                    return Ok(false);
                }
                super::meta::put(connection, key, &mark)?;
                add(connection, &reports)?;
                Ok(true)
            })
            .await
    }

    /// The oldest entries of a class after `after`, at most `limit` of them and about `bytes` in all (one at least).
    pub async fn outbox(
        &self,
        class: Class,
        after: EntryId,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<Entry>, JournalError> {
        self.writer
            .read(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT id, subject, headers, body FROM outbox WHERE class = ?1 AND parked IS NULL AND id > ?3 ORDER BY id LIMIT ?2",
                )?;
                let mut rows = statement.query(params![class.number(), i64::try_from(limit).unwrap_or(i64::MAX), after.0])?;
                let (mut entries, mut size) = (Vec::new(), 0);
                while let Some(row) = rows.next()? {
                    let body: Vec<u8> = row.get(3)?;
                    size += body.len();
                    if !entries.is_empty() && size > bytes {
                        break;
                    }
                    let headers = headers_from_json(&row.get::<_, String>(2)?);
                    let report = Report { class, subject: row.get(1)?, headers, body: body.into() };
                    entries.push(Entry { id: EntryId(row.get(0)?), report });
                }
                Ok(entries)
            })
            .await
    }

    /// These entries are stored at their destination. Lazy: publishing one again after a crash changes nothing.
    pub async fn published(&self, entries: Vec<EntryId>) -> Result<(), JournalError> {
        self.writer.lazily(move |connection| remove(connection, &entries)).await
    }

    /// These entries have left, and a meta value tells so; durable on return.
    pub async fn left(&self, entries: Vec<EntryId>, key: super::Key, value: String) -> Result<(), JournalError> {
        self.writer
            .call(move |connection| {
                remove(connection, &entries)?;
                super::meta::put(connection, key, &value)
            })
            .await
    }

    /// Sets an entry aside that cannot be published, telling why, and adds what is to be said instead.
    pub async fn park(&self, entry: EntryId, reason: String, instead: Vec<Report>) -> Result<(), JournalError> {
        self.writer
            .call(move |connection| {
                connection.execute("UPDATE outbox SET parked = ?2 WHERE id = ?1", params![entry.0, reason])?;
                add(connection, &instead)
            })
            .await
    }

    /// How many entries wait to be published.
    pub async fn outbox_len(&self) -> Result<u64, JournalError> {
        self.writer
            .read(|connection| {
                let count: i64 = connection
                    .prepare_cached("SELECT count(*) FROM outbox WHERE parked IS NULL AND class < 3")?
                    .query_row([], |row| row.get(0))?;
                Ok(u64::try_from(count).unwrap_or(0))
            })
            .await
    }
}

fn remove(connection: &Connection, entries: &[EntryId]) -> Result<(), JournalError> {
    let mut statement = connection.prepare_cached("DELETE FROM outbox WHERE id = ?1")?;
    entries.iter().try_for_each(|entry| statement.execute([entry.0]).map(drop))?;
    Ok(())
}
