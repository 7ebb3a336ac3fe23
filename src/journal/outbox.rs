//! The outbox: what the node has to say, kept until the broker has stored it.
//!
//! Owns the entries and their order. Never publishes; the agent's outbox does.

use super::error::JournalError;
use super::failures;
use super::open::Journal;
use super::rows::{headers_from_json, headers_to_json};
use crate::model::header::{RawHeaders, names};
use crate::model::lanes::RowId;
use crate::model::message::StreamKind;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};

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
    reports.iter().try_for_each(|report| insert(connection, report, None, None))
}

/// Adds what is said at the end of a message, or of one of its tries. The terminal record of a command is noted as such,
/// to be kept once it is published.
pub(super) fn add_about(
    connection: &Connection,
    row: RowId,
    stream: StreamKind,
    reports: &[Report],
) -> Result<(), JournalError> {
    let is_kept = |report: &Report| stream == StreamKind::Commands && report.is_terminal_record();
    reports.iter().try_for_each(|report| insert(connection, report, is_kept(report).then_some(row), Some(row)))
}

/// Adds a report about the message of this row. Of an error event its directive is carried out, and where too many of
/// its kind come it is counted instead.
fn insert(
    connection: &Connection,
    report: &Report,
    kept: Option<RowId>,
    row: Option<RowId>,
) -> Result<(), JournalError> {
    if report.class == Class::Error && !failures::note(connection, report, row)? {
        return Ok(());
    }
    append(connection, report, kept)
}

/// Adds an entry as it is.
pub(super) fn append(connection: &Connection, report: &Report, about: Option<RowId>) -> Result<(), JournalError> {
    connection
        .prepare_cached("INSERT INTO outbox (class, subject, headers, body, message) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            report.class.number(),
            report.subject,
            headers_to_json(&report.headers),
            report.body.as_ref(),
            about.map(|row| row.0),
        ])?;
    Ok(())
}

impl Report {
    /// True for the record of which the broker keeps one alone.
    fn is_terminal_record(&self) -> bool {
        self.class == Class::Ack && self.headers.get(names::EXPECTED_LAST_SUBJECT_SEQ).is_some()
    }
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

    /// The entries of a class up to `up_to`, and these others, are stored at their destination or set aside. Lazy:
    /// publishing one again after a crash changes nothing; what a failing disk kept from being removed is with the next
    /// call.
    pub async fn published(&self, class: Class, up_to: EntryId, others: Vec<EntryId>) -> Result<(), JournalError> {
        self.writer
            .lazily(move |connection| {
                let mut gone: Vec<EntryId> = connection
                    .prepare_cached("SELECT id FROM outbox WHERE class = ?1 AND parked IS NULL AND id <= ?2")?
                    .query_map(params![class.number(), up_to.0], |row| Ok(EntryId(row.get(0)?)))?
                    .collect::<Result<_, _>>()?;
                gone.extend(others);
                gone.iter().try_for_each(|entry| super::records::keep(connection, *entry))?;
                remove(connection, &gone)
            })
            .await
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
                let about: Option<i64> = connection
                    .prepare_cached("UPDATE outbox SET parked = ?2 WHERE id = ?1 RETURNING message")?
                    .query_row(params![entry.0, reason], |row| row.get(0))
                    .optional()?
                    .flatten();
                instead.iter().try_for_each(|report| {
                    insert(connection, report, about.map(RowId).filter(|_| report.is_terminal_record()), None)
                })
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
