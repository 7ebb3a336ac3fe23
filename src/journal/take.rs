//! Taking: messages become the node's. Only then is the broker's consumer acked.
//!
//! Owns the rule that (from, id) is run once, the share of lanes and senders, and the position in each stream.

use super::cancel::{self, Cancel, Met, Words};
use super::error::JournalError;
use super::members;
use super::meta::{self, Key};
use super::open::Journal;
use super::outbox::{self, Report};
use super::part::Tx;
use super::processes::{self, Obeyed, Order};
use super::rows::{
    FINISHED, QUEUED, RUNNING, headers_to_json, kind_number, lane_number, ref_at, seq_number, stream_number,
};
use super::shares::{self, Full};
use super::work::{Ended, Loaded};
use crate::model::groups::Mark;
use crate::model::id::{MessageId, MsgRef};
use crate::model::lanes::RowId;
use crate::model::message::{Kind, StoredMessage, StreamKind};
use crate::model::name::Target;
use crate::model::state::{Phase, State, Step};
use crate::model::subject::LaneKey;
use crate::model::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;

/// What is to become of a message at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// It stands in its lane. With `start`, its first try begins in the same commit.
    Queue {
        /// The lane.
        lane: LaneKey,
        /// The lane is free and so is a place to run.
        start: bool,
    },
    /// Its lane is free and its method needs no running: taken and finished are one.
    AtOnce(Ended),
    /// It is over: refused, or a control message that was acted on.
    Over {
        /// Its terminal state.
        state: State,
        /// What is to be told.
        reports: Vec<Report>,
        /// What the node remembers from it.
        remember: Vec<Remember>,
    },
    /// It is a cancel: kept, carried out and answered in the same commit.
    Cancel(Cancel),
    /// It is an order about processes: carried out and answered in the same commit.
    Order(Order),
}

/// What the node remembers from a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remember {
    /// A value.
    Value(Key, String),
    /// A mark of a group, which lies where the message does.
    Mark(Mark),
}

/// A message that has arrived.
pub struct Arrival {
    /// The message.
    pub message: StoredMessage,
    /// Its id.
    pub id: MessageId,
    /// Its sender's token, or `_`.
    pub from: String,
    /// To whom it is, where that could be read: a node or `@group`.
    pub to: Option<Target>,
    /// Its kind, where that could be read.
    pub kind: Option<Kind>,
    /// What is to become of it.
    pub door: Door,
    /// Its method, with the lane token behind a dot; what its record is named by.
    pub name: String,
    /// What is to be told where it turns out to be a copy of that message.
    pub if_copy: Box<dyn FnOnce(MsgRef) -> Vec<Report> + Send>,
    /// What is to be told where there is no space for it to wait.
    pub if_full: Box<dyn FnOnce(Full) -> Vec<Report> + Send>,
}

/// What became of an arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// It is the journal's from now on.
    New(RowId),
    /// The journal had this very message.
    Known,
    /// It is a copy of an earlier message, linked to it and not run.
    Copy(RowId),
    /// A cancel came before it: it is over.
    Cancelled(RowId),
    /// It is a cancel that met these.
    CarriedOut(Vec<Met>),
    /// It is an order that did this.
    Obeyed(Obeyed),
    /// There was no space for it to wait; it is over, `refused`.
    Refused(RowId),
}

/// The last message taken from a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The message.
    pub last: MsgRef,
    /// What it cost on the link, in bytes.
    pub size: u64,
}

impl Journal {
    /// Takes messages of one stream, in order, and moves its position to the last; durable on return. `now` is the
    /// broker's time as the node knows it, `words` what is told about cancels.
    pub async fn take(
        &self,
        arrivals: Vec<Arrival>,
        now: Timestamp,
        words: Arc<dyn Words>,
    ) -> Result<Vec<Taken>, JournalError> {
        let (boot, space) = (self.boot.clone(), self.space);
        self.writer
            .call(move |connection| {
                let last = arrivals.last().map(|a| (a.message.at, size_of(&a.message)));
                let taken = arrivals
                    .into_iter()
                    .map(|a| {
                        take_one(connection, a, &Here { now, boot: boot.as_deref(), space, words: words.as_ref() })
                    })
                    .collect::<Result<_, _>>()?;
                if let Some((at, size)) = last {
                    set_position(connection, at, size)?;
                }
                Ok(taken)
            })
            .await
    }

    /// Messages up to this one count as taken.
    pub async fn pass_over(&self, at: MsgRef, size: u64) -> Result<(), JournalError> {
        self.writer.call(move |connection| set_position(connection, at, size)).await
    }

    /// The position in a stream; `None` where nothing was taken from it.
    pub async fn position(&self, stream: StreamKind) -> Result<Option<Position>, JournalError> {
        self.writer
            .read(move |connection| {
                let mut statement = connection
                    .prepare_cached("SELECT stream, seq, stored_at, size FROM positions WHERE stream = ?1")?;
                let read = |row: &rusqlite::Row<'_>| {
                    Ok(Position { last: ref_at(row, 0)?, size: row.get::<_, i64>(3)?.unsigned_abs() })
                };
                Ok(statement.query_row([stream_number(stream)], read).optional()?)
            })
            .await
    }
}

/// What a message cost on the link, in bytes.
pub fn size_of(message: &StoredMessage) -> u64 {
    let headers: usize = message.headers.0.iter().map(|(n, v)| n.len() + v.len() + 4).sum();
    (message.subject.len() + headers + message.body.len()) as u64
}

pub(super) fn set_position(connection: &Connection, at: MsgRef, size: u64) -> Result<(), JournalError> {
    connection
        .prepare_cached(
            "INSERT INTO positions (stream, seq, stored_at, size) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (stream) DO UPDATE SET seq = ?2, stored_at = ?3, size = ?4",
        )?
        .execute(params![
            stream_number(at.stream),
            seq_number(at.seq),
            at.stored_at.nanos(),
            i64::try_from(size).unwrap_or(i64::MAX)
        ])?;
    Ok(())
}

/// What one transaction goes by.
struct Here<'a> {
    now: Timestamp,
    boot: Option<&'a str>,
    space: u64,
    words: &'a dyn Words,
}

fn take_one(connection: &Tx<'_>, arrival: Arrival, here: &Here<'_>) -> Result<Taken, JournalError> {
    let Arrival { message, id, from, to, kind, name, door, if_copy, if_full } = arrival;
    let at = message.at;
    if is_known(connection, at)? {
        return Ok(Taken::Known);
    }
    let common = Common {
        at,
        id: &id,
        from: &from,
        to: to.as_ref(),
        kind,
        name: &name,
        now: here.now,
        begun: false,
        boot: here.boot,
    };
    if let Some((row, first)) = original(connection, &common)? {
        insert(connection, &common, None, Phase::Finished(State::Duplicate), Some(row))?;
        outbox::add(connection, &if_copy(first))?;
        return Ok(Taken::Copy(row));
    }
    if matches!(door, Door::Queue { .. } | Door::AtOnce(_))
        && let Some(by) = cancel::standing(connection, &from, &id, here.now)?
    {
        let row = insert(connection, &common, None, Phase::Queued.next(Step::Finish(State::Cancelled))?, None)?;
        let loaded = Loaded { message, received_at: here.now, started_at: None, attempt: 0 };
        outbox::add_about(connection, row, at.stream, &here.words.cancelled(&loaded, &by, here.now))?;
        return Ok(Taken::Cancelled(row));
    }
    match door {
        Door::Queue { lane, start } => {
            let lane = lane_number(connection, &lane)?;
            // What begins at once does not wait: a full journal stops nobody whose lane is free.
            let waiting = if start { None } else { Some(size_of(&message)) };
            if let Some(size) = waiting
                && let Some(full) = shares::refuses(connection, here.space, lane, &from, size)?
            {
                let row = insert(connection, &common, None, Phase::Finished(State::Refused), None)?;
                outbox::add_about(connection, row, at.stream, &if_full(full))?;
                return Ok(Taken::Refused(row));
            }
            let phase = if start { Phase::Queued.next(Step::Start)? } else { Phase::Queued };
            let row = insert(connection, &Common { begun: start, ..common }, Some(lane), phase, None)?;
            keep_body(connection, row, &message)?;
            Ok(Taken::New(row))
        }
        Door::AtOnce(Ended { state, reports }) => {
            let finished = Phase::Queued.next(Step::Start)?.next(Step::Finish(state))?;
            let row = insert(connection, &Common { begun: true, ..common }, None, finished, None)?;
            outbox::add_about(connection, row, at.stream, &reports)?;
            Ok(Taken::New(row))
        }
        Door::Over { state, reports, remember } => {
            let row = insert(connection, &common, None, Phase::Finished(state), None)?;
            outbox::add_about(connection, row, at.stream, &reports)?;
            for one in &remember {
                match one {
                    Remember::Value(key, value) => meta::put(connection, *key, value)?,
                    Remember::Mark(mark) => {
                        members::change(connection, |known| known.get_mut(at.stream).mark(mark, at.seq))?;
                    }
                }
            }
            Ok(Taken::New(row))
        }
        Door::Cancel(cancel) => {
            let met = cancel::carry_out(connection, &cancel, here.words, here.now)?;
            let row = insert(connection, &common, None, Phase::Finished(State::Succeeded), None)?;
            outbox::add_about(connection, row, at.stream, &here.words.carried_out(&message, &met, here.now))?;
            Ok(Taken::CarriedOut(met))
        }
        Door::Order(order) => {
            let obeyed = processes::obey(connection, &order, here.now)?;
            let row = insert(connection, &common, None, Phase::Finished(obeyed.state()), None)?;
            outbox::add_about(connection, row, at.stream, &here.words.obeyed(&message, &obeyed, here.now))?;
            Ok(Taken::Obeyed(obeyed))
        }
    }
}

fn is_known(connection: &Connection, at: MsgRef) -> Result<bool, JournalError> {
    let mut statement =
        connection.prepare_cached("SELECT 1 FROM messages WHERE stream = ?1 AND seq = ?2 AND stored_at = ?3")?;
    Ok(statement.exists(params![stream_number(at.stream), seq_number(at.seq), at.stored_at.nanos()])?)
}

/// The message with the same (from, id), where there is one.
fn original(connection: &Connection, common: &Common<'_>) -> Result<Option<(RowId, MsgRef)>, JournalError> {
    let mut statement = connection.prepare_cached(
        "SELECT id, stream, seq, stored_at FROM messages
         WHERE sender = ?1 AND msg_id = ?2 AND kind = ?3 AND original IS NULL",
    )?;
    let columns = params![common.from, common.id.as_str(), kind_number(common.kind)];
    Ok(statement.query_row(columns, |row| Ok((RowId(row.get(0)?), ref_at(row, 1)?))).optional()?)
}

struct Common<'a> {
    at: MsgRef,
    id: &'a MessageId,
    from: &'a str,
    to: Option<&'a Target>,
    kind: Option<Kind>,
    name: &'a str,
    now: Timestamp,
    /// Its first try begins with its being taken.
    begun: bool,
    boot: Option<&'a str>,
}

fn insert(
    connection: &Connection,
    common: &Common<'_>,
    lane: Option<i64>,
    phase: Phase,
    original: Option<RowId>,
) -> Result<RowId, JournalError> {
    let (number, state) = match phase {
        Phase::Finished(state) => (FINISHED, Some(state.as_str())),
        Phase::Running { .. } => (RUNNING, None),
        Phase::Queued | Phase::Waiting { .. } => (QUEUED, None),
    };
    let finished_at = state.map(|_| common.now.nanos());
    connection
        .prepare_cached(
            "INSERT INTO messages (stream, seq, stored_at, msg_id, sender, kind, lane, phase, attempt, state, received_at, finished_at, original, name, target, started_at, boot)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
        )?
        .execute(params![
            stream_number(common.at.stream),
            seq_number(common.at.seq),
            common.at.stored_at.nanos(),
            common.id.as_str(),
            common.from,
            kind_number(common.kind),
            lane,
            number,
            u32::from(common.begun),
            state,
            common.now.nanos(),
            finished_at,
            original.map(|row| row.0),
            common.name,
            common.to.map(ToString::to_string),
            common.begun.then(|| common.now.nanos()),
            common.boot.filter(|_| common.begun),
        ])?;
    Ok(RowId(connection.last_insert_rowid()))
}

fn keep_body(connection: &Connection, row: RowId, message: &StoredMessage) -> Result<(), JournalError> {
    connection
        .prepare_cached("INSERT INTO bodies (id, subject, headers, body) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![row.0, message.subject, headers_to_json(&message.headers), message.body.as_ref()])?;
    Ok(())
}
