//! Records that may have to be published again: where a stream was restored from an older backup.
//!
//! A command's terminal record is kept as it was published, its output left out where that made it large
//! ([`WHOLE`]); an event's is made from its row (state, try, times; no error text), since at 190 bytes a row there is
//! no room for more. A record that is still in the outbox needs no copy: it is put here by the commit that takes it out.
//!
//! Owns those copies and how far publishing them again has come.

use super::error::JournalError;
use super::meta::{self, Key};
use super::open::Journal;
use super::outbox::{self, Class, EntryId, Report};
use super::rows::{ref_at, seq_number, stream_number};
use crate::model::id::{MessageId, MsgRef, StreamSeq};
use crate::model::message::StreamKind;
use crate::model::record::Record;
use crate::model::state::State;
use crate::model::time::Timestamp;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};

/// A record up to this size is kept whole, output and all.
const WHOLE: i64 = 1024;

/// Rows looked at in one step.
const STEP: i64 = 256;

/// What is left of a finished message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Where it was stored.
    pub at: MsgRef,
    /// Its record, or what that is made from.
    pub record: Again,
}

/// What a record is published from once more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Again {
    /// The record.
    Kept {
        /// Its subject.
        subject: String,
        /// Its JSON.
        body: Bytes,
    },
    /// What the row tells.
    Row {
        /// The message's id.
        id: MessageId,
        /// Its sender's token.
        from: String,
        /// Its method, with the lane token behind a dot.
        name: String,
        /// What became of it.
        state: State,
        /// The try.
        attempt: u32,
        /// When it was taken, begun and over.
        times: (Timestamp, Option<Timestamp>, Option<Timestamp>),
    },
}

/// Keeps the records in the entries of a class up to this one, those that are to be kept.
pub(super) fn keep_up_to(connection: &Connection, class: Class, up_to: EntryId) -> Result<(), JournalError> {
    let entries: Vec<EntryId> = connection
        .prepare_cached(
            "SELECT id FROM outbox WHERE class = ?1 AND parked IS NULL AND id <= ?2 AND message IS NOT NULL",
        )?
        .query_map(params![class.number(), up_to.0], |row| Ok(EntryId(row.get(0)?)))?
        .collect::<Result<_, _>>()?;
    entries.into_iter().try_for_each(|entry| keep(connection, entry))
}

/// Keeps the record in this entry, where it is one to keep.
pub(super) fn keep(connection: &Connection, entry: EntryId) -> Result<(), JournalError> {
    let mut find = connection.prepare_cached(
        "SELECT message, CASE WHEN octet_length(body) > ?2 THEN body END FROM outbox WHERE id = ?1 AND message IS NOT NULL",
    )?;
    let found = find
        .query_row(params![entry.0, WHOLE], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<Vec<u8>>>(1)?)))
        .optional()?;
    let Some((message, large)) = found else { return Ok(()) };
    let small =
        large.and_then(|body| serde_json::from_slice::<Record>(&body).ok()).map(|r| r.without_output().encode());
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO records (id, subject, body)
             SELECT ?2, subject, coalesce(?3, body) FROM outbox WHERE id = ?1",
        )?
        .execute(params![entry.0, message, small])?;
    Ok(())
}

impl Journal {
    /// One step of publishing again the records that a changed stream may have lost ([`Journal::stream_changed`]):
    /// `report` makes what is published; it and how far it has come are one commit. `false` where nothing is left to do.
    pub async fn republish(
        &self,
        stream: StreamKind,
        report: impl Fn(Finished) -> Option<Report> + Send + 'static,
    ) -> Result<bool, JournalError> {
        let Some(from) = self.meta::<String>(key(stream)).await?.filter(|from| !from.is_empty()) else {
            return Ok(false);
        };
        self.writer
            .call(move |connection| {
                let found = finished_after(connection, stream, &from)?;
                let next = found.last().map(|f| format!("{}:{}", f.at.seq.0, f.at.stored_at.nanos()));
                let reports: Vec<Report> = found.into_iter().filter_map(report).collect();
                outbox::add(connection, &reports)?;
                meta::put(connection, key(stream), next.as_deref().unwrap_or_default())?;
                Ok(next.is_some())
            })
            .await
    }
}

/// Notes that the records above `seq` are to be published once more; where others still are, from the lower one on.
pub(super) fn mark(connection: &Connection, stream: StreamKind, seq: StreamSeq) -> Result<(), JournalError> {
    let under_way = meta::get(connection, key(stream))?.and_then(|from| from.split_once(':')?.0.parse().ok());
    if under_way.is_some_and(|come: u64| come <= seq.0) {
        return Ok(());
    }
    meta::put(connection, key(stream), &format!("{}:{}", seq.0, i64::MAX))
}

fn key(stream: StreamKind) -> Key {
    match stream {
        StreamKind::Commands => Key::RepublishCommands,
        StreamKind::Events => Key::RepublishEvents,
    }
}

fn finished_after(connection: &Connection, stream: StreamKind, from: &str) -> Result<Vec<Finished>, JournalError> {
    let (seq, stored_at) = from.split_once(':').unwrap_or((from, ""));
    let (seq, stored_at) = (StreamSeq(seq.parse().unwrap_or(0)), stored_at.parse().unwrap_or(i64::MAX));
    // A record that still is in the outbox leaves by itself.
    let mut statement = connection.prepare_cached(
        "SELECT m.stream, m.seq, m.stored_at, r.subject, r.body, m.msg_id, m.sender, m.name, m.state, m.attempt,
                m.received_at, m.started_at, m.finished_at
         FROM messages m LEFT JOIN records r ON r.id = m.id
         WHERE m.stream = ?1 AND (m.seq, m.stored_at) > (?2, ?3) AND m.phase = 3 AND m.original IS NULL
           AND (m.stream = 1 OR r.id IS NOT NULL)
         ORDER BY m.seq, m.stored_at LIMIT ?4",
    )?;
    let rows = statement.query_map(params![stream_number(stream), seq_number(seq), stored_at, STEP], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Finished> {
    let at = ref_at(row, 0)?;
    let time = |column| row.get::<_, Option<i64>>(column).map(|nanos| nanos.map(Timestamp::from_nanos));
    let record = match (row.get(3)?, row.get::<_, Option<Vec<u8>>>(4)?) {
        (Some(subject), Some(body)) => Again::Kept { subject, body: body.into() },
        _ => Again::Row {
            id: MessageId::try_from(row.get::<_, String>(5)?).unwrap_or_else(|_| MessageId::derived(at.stream, at.seq)),
            from: row.get(6)?,
            name: row.get::<_, Option<String>>(7)?.unwrap_or_else(|| "_".to_owned()),
            state: State::named(&row.get::<_, Option<String>>(8)?.unwrap_or_default()),
            attempt: row.get(9)?,
            times: (Timestamp::from_nanos(row.get(10)?), time(11)?, time(12)?),
        },
    };
    Ok(Finished { at, record })
}
