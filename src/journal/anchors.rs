//! Messages taken, from the last one back: by them a node finds its place again in a stream that is not as it was.
//!
//! Owns which rows can stand for a place, and the commit that moves the position back. A row can where every message
//! taken after it is still a row: what comes after the place and is no row is then new. Never asks a broker, and never
//! decides which row matches.

use super::damage::reader;
use super::error::JournalError;
use super::members;
use super::meta::{self, Key};
use super::open::Journal;
use super::outbox::{self, Report};
use super::records;
use super::rows::{ref_at, seq_number, stream_number};
use super::take::set_position;
use super::thin::off_thread;
use crate::model::id::{MsgRef, StreamSeq};
use crate::model::lanes::RowId;
use crate::model::message::StreamKind;
use crate::model::name::Target;
use crate::model::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use std::path::Path;
use std::sync::Arc;

/// Which rows are asked for.
#[derive(Debug, Clone)]
pub struct Reach {
    /// The stream.
    pub stream: StreamKind,
    /// Where the node's messages begin; what is before that cannot be read again.
    pub start: StreamSeq,
    /// To whom the messages are that still reach the node.
    pub targets: Arc<[Target]>,
}

/// A message that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Earlier {
    /// The message.
    pub at: MsgRef,
    /// How many before the last one; 0: itself.
    pub steps: u64,
    /// What it cost on the link, in bytes, where that is known.
    pub size: u64,
}

/// What a changed stream does to the journal.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The stream.
    pub stream: StreamKind,
    /// The message up to which stream and journal agree; the position goes back to it.
    pub agreed: Option<MsgRef>,
    /// Messages stored no later than this count as taken, whether they are rows or not.
    pub known_until: Option<Timestamp>,
    /// What is to be told.
    pub reports: Vec<Report>,
}

impl Journal {
    /// The message taken `steps` before the last one, of those within reach; the oldest that can stand for a place where
    /// there are fewer. `None` where there is none.
    pub async fn earlier(&self, reach: Reach, steps: u64) -> Result<Option<Earlier>, JournalError> {
        if steps == 0 {
            let (stream, targets) = (reach.stream, Arc::clone(&reach.targets));
            let last = self.writer.read(move |connection| last_taken(connection, stream, &targets)).await?;
            match last {
                Last::Reached(earlier) => return Ok(Some(earlier)),
                Last::None => return Ok(None),
                Last::OutOfReach => {}
            }
        }
        let path = self.path();
        off_thread(move || find(&path, &reach, steps)).await
    }

    /// Keeps what was found about a changed stream, in one commit: the position, what counts as taken, that the records
    /// of all messages after the agreed one are to be published again, and what is told. Durable on return.
    pub async fn stream_changed(&self, changed: Changed) -> Result<(), JournalError> {
        self.writer
            .call(move |connection| {
                let Changed { stream, agreed, known_until, reports } = changed;
                if let Some(at) = agreed {
                    // What it cost is not kept with its row: as a small one it is fetched again, once.
                    set_position(connection, at, 0)?;
                }
                if let Some(until) = known_until {
                    // What counts as taken once does so for good.
                    let before = meta::get(connection, known_key(stream))?.and_then(|text| text.parse().ok());
                    let until = before.map_or(until.nanos(), |before: i64| before.max(until.nanos()));
                    meta::put(connection, known_key(stream), &until.to_string())?;
                }
                records::mark(connection, stream, agreed.map_or(StreamSeq(0), |at| at.seq))?;
                outbox::add(connection, &reports)
            })
            .await
    }

    /// Moves the position back to the message taken last up to this sequence, or else the first one after it, of those that
    /// can stand for a place, and keeps that the stream is being read again, in one commit. Where there is none the position
    /// stays.
    pub async fn go_back(&self, stream: StreamKind, to: StreamSeq, targets: Arc<[Target]>) -> Result<(), JournalError> {
        self.writer
            .call(move |connection| {
                if let Some(at) = place_near(connection, stream, to, &targets)? {
                    set_position(connection, at, 0)?;
                }
                members::change(connection, |known| known.get_mut(stream).begun_again())
            })
            .await
    }

    /// Messages of this stream that were stored no later count as taken.
    pub async fn known_until(&self, stream: StreamKind) -> Result<Timestamp, JournalError> {
        Ok(Timestamp::from_nanos(self.meta(known_key(stream)).await?.unwrap_or(0)))
    }
}

fn known_key(stream: StreamKind) -> Key {
    match stream {
        StreamKind::Commands => Key::KnownCommands,
        StreamKind::Events => Key::KnownEvents,
    }
}

fn thinned_key(stream: StreamKind) -> Key {
    match stream {
        StreamKind::Commands => Key::ThinnedCommands,
        StreamKind::Events => Key::ThinnedEvents,
    }
}

/// Rows of a stream up to this one are no longer all there.
pub(super) fn note_thinned(connection: &Connection, stream: StreamKind, row: RowId) -> Result<(), JournalError> {
    if thinned(connection, stream)? < row.0 {
        meta::put(connection, thinned_key(stream), &row.0.to_string())?;
    }
    Ok(())
}

fn thinned(connection: &Connection, stream: StreamKind) -> Result<i64, JournalError> {
    Ok(meta::get(connection, thinned_key(stream))?.and_then(|text| text.parse().ok()).unwrap_or(0))
}

enum Last {
    None,
    OutOfReach,
    Reached(Earlier),
}

fn last_taken(connection: &Connection, stream: StreamKind, targets: &[Target]) -> Result<Last, JournalError> {
    let mut statement = connection.prepare_cached(
        "SELECT p.stream, p.seq, p.stored_at, p.size, m.target FROM positions p LEFT JOIN messages m
         ON m.stream = p.stream AND m.seq = p.seq AND m.stored_at = p.stored_at WHERE p.stream = ?1",
    )?;
    let found = statement
        .query_row([stream_number(stream)], |row| {
            let earlier = Earlier { at: ref_at(row, 0)?, steps: 0, size: row.get::<_, i64>(3)?.unsigned_abs() };
            Ok((earlier, row.get::<_, Option<String>>(4)?))
        })
        .optional()?;
    Ok(match found {
        None => Last::None,
        Some((earlier, target)) if is_reached(target.as_deref(), targets) => Last::Reached(earlier),
        Some(_) => Last::OutOfReach,
    })
}

/// The last place up to a sequence, or else the first one after it.
fn place_near(
    connection: &Connection,
    stream: StreamKind,
    seq: StreamSeq,
    targets: &[Target],
) -> Result<Option<MsgRef>, JournalError> {
    const UP_TO: &str = "SELECT stream, seq, stored_at, target FROM messages
        WHERE stream = ?1 AND seq <= ?2 AND id > ?3 ORDER BY seq DESC";
    const AFTER: &str = "SELECT stream, seq, stored_at, target FROM messages
        WHERE stream = ?1 AND seq > ?2 AND id > ?3 ORDER BY seq";
    let after = thinned(connection, stream)?;
    for query in [UP_TO, AFTER] {
        let mut statement = connection.prepare_cached(query)?;
        let mut rows = statement.query(params![stream_number(stream), seq_number(seq), after])?;
        while let Some(row) = rows.next()? {
            if is_reached(row.get::<_, Option<String>>(3)?.as_deref(), targets) {
                return Ok(Some(ref_at(row, 0)?));
            }
        }
    }
    Ok(None)
}

/// Rows of earlier releases do not tell; then it was the node itself, which is always reached.
fn is_reached(target: Option<&str>, targets: &[Target]) -> bool {
    target.is_none_or(|target| targets.iter().any(|reached| reached.to_string() == target))
}

fn find(path: &Path, reach: &Reach, steps: u64) -> Result<Option<Earlier>, JournalError> {
    let connection = reader(path)?;
    let last = last_taken(&connection, reach.stream, &reach.targets)?;
    let mut found = match last {
        Last::Reached(earlier) => Some(earlier),
        _ => None,
    };
    let mut statement = connection.prepare(
        // By id alone: another index would have all rows of the stream sorted first.
        "SELECT stream, seq, stored_at, target FROM messages m WHERE +stream = ?1 AND +seq >= ?2 AND id > ?3
         AND NOT EXISTS (SELECT 1 FROM positions p
             WHERE p.stream = m.stream AND p.seq = m.seq AND p.stored_at = m.stored_at)
         ORDER BY id DESC",
    )?;
    let after = thinned(&connection, reach.stream)?;
    let mut rows = statement.query(params![stream_number(reach.stream), seq_number(reach.start), after])?;
    while found.is_none_or(|earlier| earlier.steps < steps)
        && let Some(row) = rows.next()?
    {
        if is_reached(row.get::<_, Option<String>>(3)?.as_deref(), &reach.targets) {
            let steps = found.map_or(0, |earlier| earlier.steps + 1);
            found = Some(Earlier { at: ref_at(row, 0)?, steps, size: 0 });
        }
    }
    Ok(found)
}
