//! The outbox: what the node has to say, kept until the broker has stored it.
//!
//! Owns the entries and their order. Never publishes; the agent's outbox does.

use super::error::JournalError;
use super::failures;
use super::fresh::Window;
use super::open::Journal;
use super::part::Tx;
use super::rows::{headers_from_json, headers_to_json};
use crate::model::header::{RawHeaders, names};
use crate::model::lanes::RowId;
use crate::model::message::StreamKind;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;

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

    pub(super) fn number(self) -> i64 {
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

pub(super) fn add(tx: &Tx<'_>, reports: &[Report]) -> Result<(), JournalError> {
    reports.iter().try_for_each(|report| insert(tx, report, None, None))
}

/// Adds what is said at the end of a message, or of one of its tries. The terminal record of a command is noted as such,
/// to be kept once it is published.
pub(super) fn add_about(tx: &Tx<'_>, row: RowId, stream: StreamKind, reports: &[Report]) -> Result<(), JournalError> {
    let is_kept = |report: &Report| stream == StreamKind::Commands && report.is_terminal_record();
    reports.iter().try_for_each(|report| insert(tx, report, is_kept(report).then_some(row), Some(row)))
}

/// Adds a report about the message of this row. Of an error event its directive is carried out, and where too many of
/// its kind come it is counted instead.
fn insert(tx: &Tx<'_>, report: &Report, kept: Option<RowId>, row: Option<RowId>) -> Result<(), JournalError> {
    if report.class == Class::Error && !failures::note(tx, report, row)? {
        return Ok(());
    }
    append(tx, report, kept)
}

/// Adds an entry as it is.
pub(super) fn append(tx: &Tx<'_>, report: &Report, about: Option<RowId>) -> Result<(), JournalError> {
    tx.prepare_cached("INSERT INTO outbox (class, subject, headers, body, message) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            report.class.number(),
            report.subject,
            headers_to_json(&report.headers),
            report.body.as_ref(),
            about.map(|row| row.0),
        ])?;
    tx.has_added(Entry { id: EntryId(tx.last_insert_rowid()), report: report.clone() });
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

    /// The oldest entries of a class after `after`, at most `limit` of them and about `bytes` in all (one at least): those
    /// that were kept a moment ago without asking the table.
    pub async fn outbox(
        &self,
        class: Class,
        after: EntryId,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<Entry>, JournalError> {
        let window = Window { entries: limit, bytes };
        let fresh = Arc::clone(self.writer.fresh());
        // What a commit adds that is under way leaves together with it.
        if !fresh.is_growing()
            && let Some(entries) = fresh.behind(class, after, window)
        {
            return Ok(entries);
        }
        self.writer
            .read(move |connection| match fresh.behind(class, after, window) {
                Some(entries) => Ok(entries),
                None => {
                    let (entries, is_all) = in_table(connection, class, after, window)?;
                    if is_all {
                        fresh.none_behind(class, entries.last().map_or(after, |entry| entry.id));
                    }
                    Ok(entries)
                }
            })
            .await
    }

    /// The entries of a class up to `up_to`, and these others, are stored at their destination or set aside. Lazy:
    /// publishing one again after a crash changes nothing; what a failing disk kept from being removed is with the next
    /// call.
    pub async fn published(&self, class: Class, up_to: EntryId, others: Vec<EntryId>) -> Result<(), JournalError> {
        self.writer.fresh().gone(class, up_to, &others);
        self.writer
            .lazily(move |connection| {
                super::records::keep_up_to(connection, class, up_to)?;
                connection
                    .prepare_cached("DELETE FROM outbox WHERE class = ?1 AND parked IS NULL AND id <= ?2")?
                    .execute(params![class.number(), up_to.0])?;
                let others: Vec<EntryId> = others.into_iter().filter(|entry| *entry > up_to).collect();
                others.iter().try_for_each(|entry| super::records::keep(connection, *entry))?;
                remove(connection, &others)
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
            .await?;
        self.writer.fresh().parked(entry);
        Ok(())
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

/// The oldest entries of a class after `after`, and whether that is all.
fn in_table(
    connection: &Connection,
    class: Class,
    after: EntryId,
    window: Window,
) -> Result<(Vec<Entry>, bool), JournalError> {
    let mut statement = connection.prepare_cached(
        "SELECT id, subject, headers, body FROM outbox WHERE class = ?1 AND parked IS NULL AND id > ?2 ORDER BY id",
    )?;
    let mut rows = statement.query(params![class.number(), after.0])?;
    let (mut entries, mut size) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let body: Vec<u8> = row.get(3)?;
        if !window.takes(entries.len(), size, body.len()) {
            return Ok((entries, false));
        }
        size += body.len();
        let headers = headers_from_json(&row.get::<_, String>(2)?);
        let report = Report { class, subject: row.get(1)?, headers, body: body.into() };
        entries.push(Entry { id: EntryId(row.get(0)?), report });
    }
    Ok((entries, true))
}

fn remove(connection: &Connection, entries: &[EntryId]) -> Result<(), JournalError> {
    let mut statement = connection.prepare_cached("DELETE FROM outbox WHERE id = ?1")?;
    entries.iter().try_for_each(|entry| statement.execute([entry.0]).map(drop))?;
    Ok(())
}
