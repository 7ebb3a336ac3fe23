//! Thinning: finished rows go when the stream cannot give their message any more, so that the journal does not grow
//! for ever.
//!
//! Done in small steps: what is to go is found on a connection of its own that only reads, then the writer takes out
//! [`STEP`] rows at a time, between the commits of others. The row of each stream's last message taken stays: a session
//! begins there. Owns the limits of time and number; never touches what is not finished.

use super::anchors::note_thinned;
use super::damage::reader;
use super::error::JournalError;
use super::open::Journal;
use super::rows::stream_of;
use crate::model::lanes::RowId;
use crate::model::message::StreamKind;
use crate::model::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use std::path::Path;
use std::time::Duration;

/// Rows taken out in one transaction.
const STEP: usize = 256;

/// Lanes looked at in one transaction.
const LANES: i64 = 1024;

/// Pages given back in one transaction: 1 MiB.
const PAGES: i64 = 256;

/// Free pages that a journal keeps for what comes next: 4 MiB.
const FREE_PAGES: i64 = 1024;

/// Entries of the outbox that can never leave and are kept for whoever looks.
const PARKED: i64 = 100;

/// Between two steps, so that others come first.
const PAUSE: Duration = Duration::from_millis(5);

/// How long finished rows stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Those of commands and control messages: as long as the stream keeps messages.
    pub commands: Duration,
    /// Those of events.
    pub events: Duration,
    /// How many of events at most.
    pub max_events: u64,
}

impl Keep {
    /// What the protocol says, with the streams' retention.
    pub fn with_retention(retention: Duration) -> Keep {
        Keep { commands: retention, events: retention.min(Duration::from_secs(7 * 86_400)), max_events: 1_000_000 }
    }
}

/// What one pass took out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Thinned {
    /// Rows of messages.
    pub rows: u64,
    /// Empty lanes.
    pub lanes: u64,
    /// Pages given back to the file system.
    pub pages: u64,
}

/// What a pass goes by.
#[derive(Debug, Clone, Copy)]
struct Limits {
    commands_before: Timestamp,
    events_before: Timestamp,
    /// Finished events beyond the number that stays; the oldest of them go.
    too_many: u64,
}

impl Journal {
    /// Takes out what is older than `keep` says, `now` being the broker's time.
    pub async fn thin(&self, now: Timestamp, keep: Keep) -> Result<Thinned, JournalError> {
        let mut thinned = Thinned { rows: self.thin_rows(now, keep).await?, ..Thinned::default() };
        let mut after = 0;
        while let Some((last, gone)) = self.writer.call(move |connection| drop_lanes(connection, after)).await? {
            thinned.lanes += gone;
            after = last;
            tokio::time::sleep(PAUSE).await;
        }
        self.writer.call(|tx| drop_parked(tx)).await?;
        loop {
            let given_back = self.writer.call(|tx| give_back(tx)).await?;
            thinned.pages += given_back;
            if given_back == 0 {
                return Ok(thinned);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn thin_rows(&self, now: Timestamp, keep: Keep) -> Result<u64, JournalError> {
        let span = self.row_count().await?;
        let path = self.path();
        let too_many =
            if span > keep.max_events { off_thread(move || events_beyond(&path, keep.max_events)).await? } else { 0 };
        let mut limits =
            Limits { commands_before: now.minus(keep.commands), events_before: now.minus(keep.events), too_many };
        let (mut after, mut rows) = (RowId(0), 0);
        loop {
            let path = self.path();
            let found = off_thread(move || find(&path, after, limits)).await?;
            if found.rows.is_empty() {
                return Ok(rows);
            }
            (after, limits.too_many) = (found.last, found.too_many);
            rows += self.writer.call(move |connection| remove(connection, &found.rows)).await?;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

pub(super) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, JournalError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| JournalError::Closed)?
}

fn events_beyond(path: &Path, max: u64) -> Result<u64, JournalError> {
    let count: i64 = reader(path)?.query_row("SELECT count(*) FROM messages WHERE stream = 1", [], |row| row.get(0))?;
    Ok(count.unsigned_abs().saturating_sub(max))
}

/// Rows that may go.
struct Found {
    rows: Vec<RowId>,
    last: RowId,
    /// What is left of the number of events to go.
    too_many: u64,
}

fn find(path: &Path, after: RowId, limits: Limits) -> Result<Found, JournalError> {
    let connection = reader(path)?;
    let mut statement = connection
        .prepare("SELECT id, stream, received_at, finished_at, phase FROM messages WHERE id > ?1 ORDER BY id")?;
    let mut rows = statement.query([after.0])?;
    let mut found = Found { rows: Vec::new(), last: after, too_many: limits.too_many };
    let newest = limits.commands_before.max(limits.events_before);
    while found.rows.len() < STEP
        && let Some(row) = rows.next()?
    {
        let id = RowId(row.get(0)?);
        // Rows are in the order of taking: behind this one nothing is old enough.
        if found.too_many == 0 && Timestamp::from_nanos(row.get(2)?) > newest {
            break;
        }
        found.last = id;
        let Some(finished) = row.get::<_, Option<i64>>(3)?.map(Timestamp::from_nanos) else { continue };
        let goes = match stream_of(row.get(1)?) {
            StreamKind::Commands => finished < limits.commands_before,
            StreamKind::Events => finished < limits.events_before || found.too_many > 0,
        };
        if goes && row.get::<_, i64>(4)? == super::rows::FINISHED {
            if stream_of(row.get(1)?) == StreamKind::Events {
                found.too_many = found.too_many.saturating_sub(1);
            }
            found.rows.push(id);
        }
    }
    Ok(found)
}

/// Takes out rows, but for what is not finished after all, and for the last message taken of each stream.
fn remove(connection: &Connection, rows: &[RowId]) -> Result<u64, JournalError> {
    let mut message = connection.prepare_cached(
        "DELETE FROM messages WHERE id = ?1 AND phase = 3 AND NOT EXISTS (SELECT 1 FROM positions p
         WHERE p.stream = messages.stream AND p.seq = messages.seq AND p.stored_at = messages.stored_at) RETURNING stream",
    )?;
    let mut record = connection.prepare_cached("DELETE FROM records WHERE id = ?1")?;
    let mut gone = 0;
    for row in rows {
        let stream = message.query_row([row.0], |row| row.get(0)).optional()?.map(stream_of);
        if let Some(stream) = stream {
            record.execute([row.0])?;
            note_thinned(connection, stream, *row)?;
            gone += 1;
        }
    }
    Ok(gone)
}

/// Takes out the lanes behind `after` that have nothing in them: the last one looked at, and how many went. `None` at
/// the end.
fn drop_lanes(connection: &Connection, after: i64) -> Result<Option<(i64, u64)>, JournalError> {
    let last: Option<i64> = connection
        .prepare_cached("SELECT max(id) FROM (SELECT id FROM lanes WHERE id > ?1 ORDER BY id LIMIT ?2)")?
        .query_row([after, LANES], |row| row.get(0))?;
    let Some(last) = last else { return Ok(None) };
    let gone = connection
        .prepare_cached(
            "DELETE FROM lanes WHERE id > ?1 AND id <= ?2
             AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.lane = lanes.id AND m.phase < 3)",
        )?
        .execute([after, last])?;
    Ok(Some((last, gone as u64)))
}

fn drop_parked(connection: &Connection) -> Result<(), JournalError> {
    connection
        .prepare_cached(
            "DELETE FROM outbox WHERE parked IS NOT NULL AND id <= coalesce(
             (SELECT id FROM outbox WHERE parked IS NOT NULL ORDER BY id DESC LIMIT 1 OFFSET ?1), 0)",
        )?
        .execute(params![PARKED])?;
    Ok(())
}

/// Gives free pages back to the file system, where there are many: how many.
fn give_back(connection: &Connection) -> Result<u64, JournalError> {
    let free =
        |connection: &Connection| connection.pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0));
    let before = free(connection)?;
    let pages = PAGES.min(before - FREE_PAGES);
    if pages <= 0 {
        return Ok(0);
    }
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok((before - free(connection)?).unsigned_abs())
}
