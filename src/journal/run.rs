//! Runs: several messages of one lane, begun in one commit and ended in one.
//!
//! For messages that run again after a crash anyhow, so that nothing is lost where many starts, or many ends, are kept
//! together. They are tried one after the other, in order; the journal knows all of them as running meanwhile.
//!
//! ```text
//! start_run  head, and those behind it that may follow: queued → running
//! end_run    those that are through: running → finished
//!            those that were not tried: running → queued, as if they had not begun; cancelled where that was asked for
//! crash      each waits for another try, in order
//! ```
//!
//! Owns those two steps. Which messages may follow, and which one ends a run, the agent decides.

use super::cancel::{self, Words};
use super::error::JournalError;
use super::open::Journal;
use super::part::Tx;
use super::rows::{QUEUED, phase};
use super::work::{self, Decision, Ended, Loaded, Verdict};
use crate::model::lanes::RowId;
use crate::model::state::{Phase, State, Step};
use crate::model::time::Timestamp;
use rusqlite::{Connection, params};
use std::sync::Arc;

/// Bytes of bodies in one run: well below what a handler looks back for when it is tried again, and small beside what an
/// agent may hold in memory with runs in many lanes. A larger message runs alone.
const RUN_BYTES: usize = 128 * 1024;

/// What was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started<T> {
    /// What became of the head.
    pub head: Decision,
    /// Those behind it that have begun, too, in order, each with what `follows` made of it.
    pub behind: Vec<(RowId, T)>,
}

/// What a run left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunEnd {
    /// How many are over now: those that are through, and those behind that were cancelled.
    pub over: u64,
    /// The lane's head after that.
    pub next: Option<RowId>,
}

impl Journal {
    /// The turn of a message has come, as in [`Journal::start`]. Where it begins, for the first time, and may share a
    /// commit (`follows` makes something of it), those behind it begin, too, as long as they follow: `most` of them.
    pub async fn start_run<T: Send + 'static>(
        &self,
        head: RowId,
        now: Timestamp,
        most: usize,
        judge: impl FnOnce(&Loaded) -> Verdict + Send + 'static,
        mut follows: impl FnMut(&Loaded) -> Option<T> + Send + 'static,
    ) -> Result<Started<T>, JournalError> {
        let boot = self.boot.clone();
        self.writer
            .call(move |connection| {
                let decision = work::start(connection, head, now, boot.as_deref(), judge)?;
                let mut behind = Vec::new();
                if let Decision::Started(loaded) = &decision
                    && loaded.attempt == 1
                    && follows(loaded).is_some()
                {
                    let mut bytes = loaded.message.body.len();
                    for row in queued_behind(connection, head, most)? {
                        let loaded = work::load(connection, row)?;
                        bytes += loaded.message.body.len();
                        let Some(follower) = follows(&loaded).filter(|_| bytes <= RUN_BYTES) else { break };
                        work::begin(connection, row, Phase::Queued.next(Step::Start)?, now, boot.as_deref())?;
                        behind.push((row, follower));
                    }
                }
                Ok(Started { head: decision, behind })
            })
            .await
    }

    /// The messages `ended` are through; those in `back` were not tried after all.
    pub async fn end_run(
        &self,
        ended: Arc<[(RowId, Ended)]>,
        back: Arc<[RowId]>,
        now: Timestamp,
        words: Arc<dyn Words>,
    ) -> Result<RunEnd, JournalError> {
        self.writer
            .call(move |connection| {
                let mut over = 0;
                let mut lane = None;
                for (row, ended) in ended.iter() {
                    lane = work::finish(connection, *row, ended, now)?;
                    over += 1;
                }
                for row in back.iter() {
                    over += u64::from(give_back(connection, *row, now, words.as_ref())?);
                }
                Ok(RunEnd { over, next: work::head_of(connection, lane)? })
            })
            .await
    }
}

/// True where it is over: a cancel came while it counted as running.
fn give_back(connection: &Tx<'_>, row: RowId, now: Timestamp, words: &dyn Words) -> Result<bool, JournalError> {
    let queued = phase(connection, row)?.next(Step::GiveBack)?;
    connection
        .prepare_cached(
            "UPDATE messages SET phase = ?2, attempt = ?3, started_at = NULL, boot = NULL, to_end = NULL, end_by = NULL
             WHERE id = ?1",
        )?
        .execute(params![row.0, QUEUED, queued.attempt()])?;
    let Some(by) = cancel::of_row(connection, row, now)? else { return Ok(false) };
    let loaded = work::load(connection, row)?;
    let reports = words.cancelled(&loaded, &by, now);
    work::finish(connection, row, &Ended { state: State::Cancelled, reports }, now)?;
    Ok(true)
}

/// The messages behind `head` in its lane that have not begun, up to the first one that has.
fn queued_behind(connection: &Connection, head: RowId, most: usize) -> Result<Vec<RowId>, JournalError> {
    let mut statement = connection.prepare_cached(
        "SELECT id, phase FROM messages
         WHERE lane = (SELECT lane FROM messages WHERE id = ?1) AND phase < 3 AND id > ?1 ORDER BY id LIMIT ?2",
    )?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![head.0, most])?;
    let mut behind = Vec::new();
    while let Some(row) = rows.next()?
        && row.get::<_, i64>(1)? == QUEUED
    {
        behind.push(RowId(row.get(0)?));
    }
    Ok(behind)
}
