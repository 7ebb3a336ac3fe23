//! Cancels: kept until the retention ends, and carried out against what is here.
//!
//! A cancel names (sender, id). What is here and does not run ends in the transaction that takes the cancel; what runs is
//! handed back to be stopped; what comes later ends as it is taken, and a try that was under way is its last. Owns the
//! table of cancels. Never says a word of its own: what is told about each message comes from [`Words`].

use super::error::JournalError;
use super::open::Journal;
use super::outbox::{self, Report};
use super::part::Tx;
use super::processes::Obeyed;
use super::rows::{kind_number, kind_of, lane_at, phase};
use super::work::{self, Ended, Loaded};
use crate::model::id::MessageId;
use crate::model::lanes::RowId;
use crate::model::message::{Kind, StoredMessage};
use crate::model::state::{OnCancel, State};
use crate::model::subject::LaneKey;
use crate::model::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

/// A cancel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancel {
    /// Whose message.
    pub from: String,
    /// Its id.
    pub id: MessageId,
    /// Who asks.
    pub by: String,
    /// Until when it is kept, for what may still come.
    pub until: Timestamp,
}

/// What a cancel met of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Met {
    /// It did not run: it is over.
    Ended {
        /// Its row.
        row: RowId,
        /// Its lane.
        lane: LaneKey,
        /// The lane's new head.
        next: Option<RowId>,
    },
    /// It runs and is to be stopped.
    ToStop {
        /// Its row.
        row: RowId,
        /// Its lane.
        lane: LaneKey,
    },
    /// It runs, may end as it will, and is not tried again.
    GoesOn,
    /// It was over before.
    WasOver(State),
}

/// What is to be told about cancels and orders. Asked inside the transaction that keeps the answer.
pub trait Words: Send + Sync {
    /// A message that did not run is over; `by` asked for it.
    fn cancelled(&self, message: &Loaded, by: &str, now: Timestamp) -> Vec<Report>;
    /// A message that runs is to be stopped.
    fn cancel_requested(&self, message: &Loaded, by: &str) -> Vec<Report>;
    /// A cancel was carried out, with this effect.
    fn carried_out(&self, cancel: &StoredMessage, met: &[Met], now: Timestamp) -> Vec<Report>;
    /// An order about processes was carried out, with this effect.
    fn obeyed(&self, order: &StoredMessage, obeyed: &Obeyed, now: Timestamp) -> Vec<Report>;
}

impl Journal {
    /// Who cancelled the message of this row, where somebody did.
    pub async fn cancelled_by(&self, row: RowId, now: Timestamp) -> Result<Option<String>, JournalError> {
        self.writer.read(move |connection| of_row(connection, row, now)).await
    }
}

/// Keeps a cancel and carries it out.
pub(super) fn carry_out(
    connection: &Tx<'_>,
    cancel: &Cancel,
    words: &dyn Words,
    now: Timestamp,
) -> Result<Vec<Met>, JournalError> {
    connection.prepare_cached("DELETE FROM cancels WHERE until <= ?1")?.execute([now.nanos()])?;
    connection
        .prepare_cached(
            "INSERT INTO cancels (sender, msg_id, asked_by, until) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (sender, msg_id) DO UPDATE SET until = max(until, ?4)",
        )?
        .execute(params![cancel.from, cancel.id.as_str(), cancel.by, cancel.until.nanos()])?;
    let mut find = connection.prepare_cached(
        "SELECT m.id, m.kind, l.kind, l.sender, l.method, l.lane FROM messages m LEFT JOIN lanes l ON l.id = m.lane
         WHERE m.sender = ?1 AND m.msg_id = ?2 AND m.kind IN (?3, ?4) AND m.original IS NULL ORDER BY m.id",
    )?;
    let kinds = (kind_number(Some(Kind::Command)), kind_number(Some(Kind::Event)));
    let read = |row: &rusqlite::Row<'_>| {
        let lane = if row.get::<_, Option<i64>>(2)?.is_some() { lane_at(row, 2)? } else { None };
        Ok((RowId(row.get(0)?), kind_of(row.get(1)?), lane))
    };
    let named = params![cancel.from, cancel.id.as_str(), kinds.0, kinds.1];
    let found: Vec<(RowId, Kind, Option<LaneKey>)> = find.query_map(named, read)?.collect::<Result<_, _>>()?;
    found.into_iter().map(|(row, kind, lane)| meet(connection, row, kind, lane, &cancel.by, words, now)).collect()
}

fn meet(
    connection: &Tx<'_>,
    row: RowId,
    kind: Kind,
    lane: Option<LaneKey>,
    by: &str,
    words: &dyn Words,
    now: Timestamp,
) -> Result<Met, JournalError> {
    let effect = phase(connection, row)?.on_cancel(kind);
    let lane = match (effect, lane) {
        (OnCancel::TooLate(state), _) => return Ok(Met::WasOver(state)),
        (_, Some(lane)) => lane,
        // Without a lane that can be read it never starts.
        (_, None) => return Ok(Met::WasOver(State::Unknown)),
    };
    let message = work::load(connection, row)?;
    if effect == OnCancel::End {
        let reports = words.cancelled(&message, by, now);
        let next = work::end(connection, row, Ended { state: State::Cancelled, reports }, now)?;
        return Ok(Met::Ended { row, lane, next });
    }
    outbox::add(connection, &words.cancel_requested(&message, by))?;
    Ok(if effect == OnCancel::Stop { Met::ToStop { row, lane } } else { Met::GoesOn })
}

/// Who cancelled this (sender, id), where somebody did.
pub(super) fn standing(
    connection: &Connection,
    from: &str,
    id: &MessageId,
    now: Timestamp,
) -> Result<Option<String>, JournalError> {
    let mut find =
        connection.prepare_cached("SELECT asked_by FROM cancels WHERE sender = ?1 AND msg_id = ?2 AND until > ?3")?;
    Ok(find.query_row(params![from, id.as_str(), now.nanos()], |row| row.get(0)).optional()?)
}

/// Who cancelled the message of this row, where somebody did.
pub(super) fn of_row(connection: &Connection, row: RowId, now: Timestamp) -> Result<Option<String>, JournalError> {
    let mut find = connection.prepare_cached(
        "SELECT c.asked_by FROM messages m JOIN cancels c ON c.sender = m.sender AND c.msg_id = m.msg_id
         WHERE m.id = ?1 AND c.until > ?2",
    )?;
    Ok(find.query_row(params![row.0, now.nanos()], |row| row.get(0)).optional()?)
}
