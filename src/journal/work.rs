//! Working off: a message starts, is tried again, and finishes; each step durable before anybody acts on it.
//!
//! Owns the walk through [`Phase`] in the database, and what a new agent finds of the last one's work.

use super::cancel;
use super::error::JournalError;
use super::open::Journal;
use super::outbox::{self, Report};
use super::part::Tx;
use super::rows::{
    FINISHED, HeldRun, RUNNING, WAITING, headers_from_json, lane_at, lane_number, phase, ref_at, stream_of,
};
use crate::model::lanes::RowId;
use crate::model::message::StoredMessage;
use crate::model::process::Started;
use crate::model::state::{Phase, State, Step};
use crate::model::subject::LaneKey;
use crate::model::time::Timestamp;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};

/// A message taken out of the journal to be worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The message as it was stored.
    pub message: StoredMessage,
    /// When it was taken.
    pub received_at: Timestamp,
    /// When its last try began.
    pub started_at: Option<Timestamp>,
    /// The tries begun so far.
    pub attempt: u32,
}

/// What is decided about a message whose turn has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It begins.
    Start,
    /// It is over without having begun: expired, cancelled, refused.
    Over(Ended),
    /// That cannot be told yet; it stays where it is.
    Later,
}

/// A message's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its terminal state.
    pub state: State,
    /// What is to be told.
    pub reports: Vec<Report>,
}

/// What came of asking to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The try that `attempt` counts has begun; durable.
    Started(Loaded),
    /// It is over; `next` is the lane's new head.
    Over {
        /// The lane's new head.
        next: Option<RowId>,
    },
    /// Nothing has changed; ask again.
    Later,
    /// It was over already: cancelled while it was thought to be its lane's head.
    Gone,
}

impl Journal {
    /// The turn of a message has come: `judge` looks at it and decides, in the transaction that keeps the decision.
    pub async fn start(
        &self,
        row: RowId,
        now: Timestamp,
        judge: impl FnOnce(&Loaded) -> Verdict + Send + 'static,
    ) -> Result<Decision, JournalError> {
        let boot = self.boot.clone();
        self.writer.call(move |connection| start(connection, row, now, boot.as_deref(), judge)).await
    }

    /// A message has its terminal state; it and what is to be told are one commit. Gives the lane's new head.
    pub async fn finish(&self, row: RowId, ended: Ended, now: Timestamp) -> Result<Option<RowId>, JournalError> {
        self.writer.call(move |connection| end(connection, row, ended, now)).await
    }

    /// A try is over, or was broken off, and another follows. False, and nothing is changed, where the message has been
    /// cancelled: that try was its last.
    pub async fn try_again(&self, row: RowId, reports: Vec<Report>, now: Timestamp) -> Result<bool, JournalError> {
        self.writer
            .call(move |connection| {
                if cancel::of_row(connection, row, now)?.is_some() {
                    return Ok(false);
                }
                phase(connection, row)?.next(Step::TryAgain)?;
                let stream: i64 = connection
                    .prepare_cached(
                        "UPDATE messages SET phase = ?2, pid = NULL, pid_start = NULL WHERE id = ?1 RETURNING stream",
                    )?
                    .query_row(params![row.0, WAITING], |r| r.get(0))?;
                outbox::add_about(connection, row, stream_of(stream), &reports)?;
                Ok(true)
            })
            .await
    }

    /// Notes the process that a try has started, with the next commit; a marker in its environment finds it until then.
    pub async fn note_process(&self, row: RowId, process: Started) -> Result<(), JournalError> {
        self.writer
            .lazily(move |connection| {
                let start = i64::try_from(process.start_time).unwrap_or(i64::MAX);
                connection
                    .prepare_cached("UPDATE messages SET pid = ?2, pid_start = ?3 WHERE id = ?1 AND phase = 1")?
                    .execute(params![row.0, process.pid, start])?;
                Ok(())
            })
            .await
    }

    /// The message of a row that is not finished.
    pub async fn load(&self, row: RowId) -> Result<Loaded, JournalError> {
        self.writer.read(move |connection| load(connection, row)).await
    }

    /// The runs that were going on when the last agent ended.
    pub async fn held_runs(&self) -> Result<Vec<HeldRun>, JournalError> {
        self.writer
            .read(|connection| {
                let mut statement = connection.prepare(
                    "SELECT id, attempt, pid, pid_start, boot, started_at, coalesce(to_end = attempt, 0)
                     FROM messages WHERE phase = 1 ORDER BY id",
                )?;
                let read = |row: &rusqlite::Row<'_>| {
                    let (pid, start): (Option<u32>, Option<i64>) = (row.get(2)?, row.get(3)?);
                    let process = pid.zip(start).map(|(pid, start)| Started { pid, start_time: start.unsigned_abs() });
                    let started_at = row.get::<_, Option<i64>>(5)?.map(Timestamp::from_nanos);
                    Ok(HeldRun {
                        row: RowId(row.get(0)?),
                        attempt: row.get(1)?,
                        process,
                        boot: row.get(4)?,
                        started_at,
                        to_end: row.get(6)?,
                    })
                };
                let runs = statement.query_map([], read)?.collect::<Result<_, _>>()?;
                Ok(runs)
            })
            .await
    }

    /// Every lane that has something in it: its key, its head, how many.
    pub async fn open_lanes(&self) -> Result<Vec<(LaneKey, RowId, u64)>, JournalError> {
        self.writer
            .read(|connection| {
                let mut statement = connection.prepare(
                    "SELECT l.kind, l.sender, l.method, l.lane, m.head, m.count FROM lanes l JOIN
                     (SELECT lane, min(id) AS head, count(*) AS count FROM messages WHERE phase < 3 AND lane IS NOT NULL GROUP BY lane) m
                     ON m.lane = l.id ORDER BY m.head",
                )?;
                let mut rows = statement.query([])?;
                let mut lanes = Vec::new();
                while let Some(row) = rows.next()? {
                    if let Some(key) = lane_at(row, 0)? {
                        lanes.push((key, RowId(row.get(4)?), row.get::<_, i64>(5)?.unsigned_abs()));
                    }
                }
                Ok(lanes)
            })
            .await
    }

    /// What a lane has in it: its head and how many; `None` where it is empty.
    pub async fn open_lane(&self, key: LaneKey) -> Result<Option<(RowId, u64)>, JournalError> {
        self.writer
            .call(move |connection| {
                let lane = lane_number(connection, &key)?;
                let mut statement = connection
                    .prepare_cached("SELECT min(id), count(*) FROM messages WHERE lane = ?1 AND phase < 3")?;
                let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, i64>(1)?));
                let (head, count) = statement.query_row([lane], read)?;
                Ok(head.map(|head| (RowId(head), count.unsigned_abs())))
            })
            .await
    }

    /// Where these heads were stored: `(row, sequence, time)`, for `status`.
    pub async fn stored_refs(&self, rows: Vec<RowId>) -> Result<Vec<(RowId, crate::model::id::MsgRef)>, JournalError> {
        self.writer
            .read(move |connection| {
                let mut statement =
                    connection.prepare_cached("SELECT stream, seq, stored_at FROM messages WHERE id = ?1")?;
                let mut found = Vec::new();
                for row in rows {
                    if let Some(at) = statement.query_row([row.0], |r| ref_at(r, 0)).optional()? {
                        found.push((row, at));
                    }
                }
                Ok(found)
            })
            .await
    }

    /// How many rows the journal has, nearly: rows are numbered and few are ever taken out from between.
    pub async fn row_count(&self) -> Result<u64, JournalError> {
        self.writer
            .read(|connection| {
                let bounds = connection
                    .prepare_cached("SELECT coalesce(max(id) - min(id) + 1, 0) FROM messages")?
                    .query_row([], |row| row.get::<_, i64>(0))?;
                Ok(bounds.unsigned_abs())
            })
            .await
    }
}

pub(super) fn start(
    connection: &Tx<'_>,
    row: RowId,
    now: Timestamp,
    boot: Option<&str>,
    judge: impl FnOnce(&Loaded) -> Verdict,
) -> Result<Decision, JournalError> {
    let before = phase(connection, row)?;
    if let Phase::Finished(_) = before {
        return Ok(Decision::Gone);
    }
    let mut loaded = load(connection, row)?;
    match judge(&loaded) {
        Verdict::Start => {
            let running = before.next(Step::Start)?;
            begin(connection, row, running, now, boot)?;
            loaded.attempt = running.attempt();
            Ok(Decision::Started(loaded))
        }
        Verdict::Later => Ok(Decision::Later),
        Verdict::Over(ended) => Ok(Decision::Over { next: end(connection, row, ended, now)? }),
    }
}

/// Keeps that a try has begun.
pub(super) fn begin(
    connection: &Connection,
    row: RowId,
    running: Phase,
    now: Timestamp,
    boot: Option<&str>,
) -> Result<(), JournalError> {
    connection
        .prepare_cached(
            "UPDATE messages SET phase = ?2, attempt = ?3, started_at = ?4, boot = ?5, pid = NULL, pid_start = NULL
             WHERE id = ?1",
        )?
        .execute(params![row.0, RUNNING, running.attempt(), now.nanos(), boot])?;
    Ok(())
}

pub(super) fn load(connection: &Connection, row: RowId) -> Result<Loaded, JournalError> {
    let mut statement = connection.prepare_cached(
        "SELECT m.stream, m.seq, m.stored_at, m.received_at, m.attempt, b.subject, b.headers, b.body, m.started_at
         FROM messages m JOIN bodies b ON b.id = m.id WHERE m.id = ?1",
    )?;
    let read = |r: &rusqlite::Row<'_>| {
        let message = StoredMessage {
            at: ref_at(r, 0)?,
            subject: r.get(5)?,
            headers: headers_from_json(&r.get::<_, String>(6)?),
            body: Bytes::from(r.get::<_, Vec<u8>>(7)?),
        };
        let started_at = r.get::<_, Option<i64>>(8)?.map(Timestamp::from_nanos);
        Ok(Loaded { message, received_at: Timestamp::from_nanos(r.get(3)?), started_at, attempt: r.get(4)? })
    };
    statement.query_row([row.0], read).optional()?.ok_or(JournalError::NoRow(row.0))
}

pub(super) fn end(
    connection: &Tx<'_>,
    row: RowId,
    ended: Ended,
    now: Timestamp,
) -> Result<Option<RowId>, JournalError> {
    let lane = finish(connection, row, &ended, now)?;
    head_of(connection, lane)
}

/// Keeps a message's end; gives the number of its lane.
pub(super) fn finish(
    connection: &Tx<'_>,
    row: RowId,
    ended: &Ended,
    now: Timestamp,
) -> Result<Option<i64>, JournalError> {
    let Phase::Finished(state) = phase(connection, row)?.next(Step::Finish(ended.state))? else {
        return Err(JournalError::NoRow(row.0));
    };
    let (lane, stream): (Option<i64>, i64) = connection
        .prepare_cached(
            "UPDATE messages SET phase = ?2, state = ?3, finished_at = ?4 WHERE id = ?1 RETURNING lane, stream",
        )?
        .query_row(params![row.0, FINISHED, state.as_str(), now.nanos()], |r| Ok((r.get(0)?, r.get(1)?)))?;
    connection.prepare_cached("DELETE FROM bodies WHERE id = ?1")?.execute([row.0])?;
    outbox::add_about(connection, row, stream_of(stream), &ended.reports)?;
    Ok(lane)
}

/// The head of a lane; `None` where it is empty.
pub(super) fn head_of(connection: &Connection, lane: Option<i64>) -> Result<Option<RowId>, JournalError> {
    let head = connection
        .prepare_cached("SELECT min(id) FROM messages WHERE lane = ?1 AND phase < 3")?
        .query_row([lane], |r| r.get::<_, Option<i64>>(0))?;
    Ok(head.map(RowId))
}
