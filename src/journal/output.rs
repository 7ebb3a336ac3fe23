//! Which tries have output to be published, and how far that has come.
//!
//! Owns the numbers of chunks; the chunks themselves are in the files of runs, which the journal never reads. A try is
//! let go only when all of its output is stored and it is settled, whichever comes last: until then its file is needed.

use super::error::JournalError;
use super::open::Journal;
use super::rows::RUNNING;
use crate::model::lanes::RowId;
use rusqlite::{Connection, OptionalExtension, params};

/// A try whose output is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its name with the runner.
    pub run: String,
    /// The message.
    pub row: RowId,
    /// Which try of it.
    pub attempt: u32,
    /// The subject of its chunks, but for their numbers.
    pub subject: String,
    /// How many chunks earlier tries had: its first has the next number.
    pub base: u64,
    /// How many of its own are stored.
    pub sent: u64,
    /// How many there are; none while it runs.
    pub total: Option<u64>,
}

impl Journal {
    /// The output of a try is published from now on. It may be known already.
    pub async fn output_begins(
        &self,
        run: String,
        row: RowId,
        attempt: u32,
        subject: String,
    ) -> Result<(), JournalError> {
        self.writer.call(move |connection| begin(connection, &run, row, attempt, &subject)).await
    }

    /// A try is over, and so many chunks are its output. Gives the number of its last chunk: how many all tries had.
    pub async fn output_ends(&self, run: String, row: RowId, total: u64) -> Result<u64, JournalError> {
        self.writer
            .call(move |connection| {
                let base: i64 = connection
                    .prepare_cached("UPDATE outputs SET total = ?2 WHERE run = ?1 RETURNING base")?
                    .query_row(params![run, number(total)], |r| r.get(0))?;
                let all = base.unsigned_abs() + total;
                connection
                    .prepare_cached("UPDATE messages SET chunks = ?2 WHERE id = ?1")?
                    .execute(params![row.0, number(all)])?;
                Ok(all)
            })
            .await
    }

    /// This many chunks of a try are stored. Lazy: publishing one again changes nothing.
    pub async fn output_sent(&self, run: String, sent: u64) -> Result<(), JournalError> {
        self.writer
            .lazily(move |connection| {
                connection
                    .prepare_cached("UPDATE outputs SET sent = max(sent, ?2) WHERE run = ?1")?
                    .execute(params![run, number(sent)])?;
                Ok(())
            })
            .await
    }

    /// Lets go of a try that is settled and whose output is stored; true where nobody needs its file any more.
    pub async fn output_release(&self, run: String) -> Result<bool, JournalError> {
        self.writer
            .call(move |connection| {
                connection
                    .prepare_cached(
                        "DELETE FROM outputs WHERE run = ?1 AND sent >= total AND NOT EXISTS (
                         SELECT 1 FROM messages m WHERE m.id = outputs.message AND m.phase = ?2 AND m.attempt = outputs.attempt)",
                    )?
                    .execute(params![run, RUNNING])?;
                let held = connection
                    .prepare_cached("SELECT 1 FROM outputs WHERE run = ?1")?
                    .query_row([&run], |_| Ok(()))
                    .optional()?;
                Ok(held.is_none())
            })
            .await
    }

    /// All tries whose output is published, in the order of their messages.
    pub async fn outputs(&self) -> Result<Vec<Output>, JournalError> {
        self.writer
            .read(|connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT run, message, attempt, subject, base, sent, total FROM outputs ORDER BY message, attempt",
                )?;
                let read = |row: &rusqlite::Row<'_>| {
                    Ok(Output {
                        run: row.get(0)?,
                        row: RowId(row.get(1)?),
                        attempt: row.get(2)?,
                        subject: row.get(3)?,
                        base: row.get::<_, i64>(4)?.unsigned_abs(),
                        sent: row.get::<_, i64>(5)?.unsigned_abs(),
                        total: row.get::<_, Option<i64>>(6)?.map(i64::unsigned_abs),
                    })
                };
                let outputs = statement.query_map([], read)?.collect::<Result<_, _>>()?;
                Ok(outputs)
            })
            .await
    }
}

fn begin(connection: &Connection, run: &str, row: RowId, attempt: u32, subject: &str) -> Result<(), JournalError> {
    connection
        .prepare_cached(
            "INSERT INTO outputs (run, message, attempt, subject, base)
             SELECT ?1, id, ?3, ?4, coalesce(chunks, 0) FROM messages WHERE id = ?2 ON CONFLICT (run) DO NOTHING",
        )?
        .execute(params![run, row.0, attempt, subject])?;
    Ok(())
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
