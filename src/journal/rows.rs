//! Between rows and the model: numbers for enums, headers as JSON, the phase of a message.

use super::error::JournalError;
use crate::model::header::RawHeaders;
use crate::model::id::{MsgRef, StreamSeq};
use crate::model::lanes::RowId;
use crate::model::message::{Kind, StreamKind};
use crate::model::process::Started;
use crate::model::state::{Phase, State};
use crate::model::subject::LaneKey;
use crate::model::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

/// A run that was going on when the last agent ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldRun {
    /// The message.
    pub row: RowId,
    /// Which try.
    pub attempt: u32,
    /// Its process, where one was written down.
    pub process: Option<Started>,
    /// The boot in which it began.
    pub boot: Option<String>,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// An order ends it: a restart of its process.
    pub to_end: bool,
}

pub(super) fn stream_number(stream: StreamKind) -> i64 {
    match stream {
        StreamKind::Commands => 0,
        StreamKind::Events => 1,
    }
}

pub(super) fn stream_of(number: i64) -> StreamKind {
    if number == 0 { StreamKind::Commands } else { StreamKind::Events }
}

pub(super) fn kind_number(kind: Option<Kind>) -> i64 {
    match kind {
        None => -1,
        Some(Kind::Command) => 0,
        Some(Kind::Event) => 1,
        Some(Kind::Control) => 2,
    }
}

pub(super) fn kind_of(number: i64) -> Kind {
    match number {
        0 => Kind::Command,
        1 => Kind::Event,
        _ => Kind::Control,
    }
}

/// A stored sequence as SQLite keeps it; sequences of a real stream are far below the limit.
pub(super) fn seq_number(seq: StreamSeq) -> i64 {
    i64::try_from(seq.0).unwrap_or(i64::MAX)
}

pub(super) fn seq_of(number: i64) -> StreamSeq {
    StreamSeq(u64::try_from(number).unwrap_or(0))
}

/// Reads `stream, seq, stored_at` from columns `at`, `at + 1`, `at + 2`.
pub(super) fn ref_at(row: &Row<'_>, at: usize) -> rusqlite::Result<MsgRef> {
    Ok(MsgRef {
        stream: stream_of(row.get(at)?),
        seq: seq_of(row.get(at + 1)?),
        stored_at: Timestamp::from_nanos(row.get(at + 2)?),
    })
}

pub(super) fn headers_to_json(headers: &RawHeaders) -> String {
    serde_json::to_string(&headers.0).unwrap_or_else(|_| "[]".to_owned())
}

pub(super) fn headers_from_json(text: &str) -> RawHeaders {
    RawHeaders(serde_json::from_str(text).unwrap_or_default())
}

pub(super) const QUEUED: i64 = 0;
pub(super) const RUNNING: i64 = 1;
pub(super) const WAITING: i64 = 2;
pub(super) const FINISHED: i64 = 3;

/// Where a message stands.
pub(super) fn phase(connection: &Connection, row: RowId) -> Result<Phase, JournalError> {
    let mut statement = connection.prepare_cached("SELECT phase, attempt, state FROM messages WHERE id = ?1")?;
    let found = statement
        .query_row([row.0], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, u32>(1)?, r.get::<_, Option<String>>(2)?)))
        .optional()?;
    let (number, attempt, state) = found.ok_or(JournalError::NoRow(row.0))?;
    Ok(match number {
        QUEUED => Phase::Queued,
        RUNNING => Phase::Running { attempt },
        WAITING => Phase::Waiting { attempt },
        _ => Phase::Finished(State::named(state.as_deref().unwrap_or(""))),
    })
}

/// The journal's number of a lane, made where there is none.
pub(super) fn lane_number(connection: &Connection, key: &LaneKey) -> Result<i64, JournalError> {
    let lane = key.lane.as_ref().map_or("", |lane| lane.as_str());
    let columns = params![kind_number(Some(key.kind)), key.from.as_str(), key.method.as_str(), lane];
    let mut find = connection
        .prepare_cached("SELECT id FROM lanes WHERE kind = ?1 AND sender = ?2 AND method = ?3 AND lane = ?4")?;
    if let Some(id) = find.query_row(columns, |row| row.get(0)).optional()? {
        return Ok(id);
    }
    connection
        .prepare_cached("INSERT INTO lanes (kind, sender, method, lane) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![kind_number(Some(key.kind)), key.from.as_str(), key.method.as_str(), lane])?;
    Ok(connection.last_insert_rowid())
}

/// Reads a lane's key from columns `at` to `at + 3`; `None` where a name in it is none (a damaged row).
pub(super) fn lane_at(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<LaneKey>> {
    let (from, method, lane): (String, String, String) = (row.get(at + 1)?, row.get(at + 2)?, row.get(at + 3)?);
    let kind = kind_of(row.get(at)?);
    let lane = if lane.is_empty() { Ok(None) } else { lane.parse().map(Some) };
    Ok(match (from.parse(), method.parse(), lane) {
        (Ok(from), Ok(method), Ok(lane)) => Some(LaneKey { kind, from, method, lane }),
        _ => None,
    })
}
