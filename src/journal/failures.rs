//! Failures: each error event passes here on its way into the outbox, whoever tells it.
//!
//! In the transaction that keeps the event, it is noted for directives that may name it later, what it decided is carried
//! out on its process, and where events of its kind come too fast it is counted instead of told: of one code, severity and
//! process the first [`TOLD`] of a [`WINDOW`] leave one by one, the others as one event with their number, once the window
//! is over. Nothing is lost from the sum by a crash, and a burst costs the link little.
//!
//! Owns the tables of failures and repeats. Never decides a directive; that is in the event already.

use super::error::JournalError;
use super::open::Journal;
use super::outbox::{self, Class, Report};
use super::part::Tx;
use super::processes;
use crate::model::error_event::{Directive, ErrorEvent};
use crate::model::header::{RawHeaders, names};
use crate::model::lanes::RowId;
use crate::model::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use std::time::Duration;
use uuid::Uuid;

/// How many events of one kind are told one by one within a window.
const TOLD: i64 = 20;

/// The window.
pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// How many failures are remembered.
const REMEMBERED: i64 = 10_000;

/// A failure that a directive names.
pub(super) struct Failed {
    pub(super) process: Option<String>,
    pub(super) message: Option<RowId>,
}

impl Journal {
    /// Tells what was counted in windows that are over at `now`; true where anything was.
    pub async fn tell_repeats(&self, now: Timestamp) -> Result<bool, JournalError> {
        let due = now.minus(WINDOW).nanos();
        // Most of the time there is nothing, and no commit is worth that.
        let any = self
            .writer
            .read(move |connection| {
                let mut find = connection.prepare_cached("SELECT 1 FROM repeats WHERE since <= ?1 OR since > ?2")?;
                Ok(find.exists([due, now.nanos()])?)
            })
            .await?;
        if !any {
            return Ok(false);
        }
        self.writer
            .call(move |connection| {
                // A window that begins in the future was begun by a clock that has been put right since.
                let mut find = connection.prepare_cached("SELECT kind FROM repeats WHERE since <= ?1 OR since > ?2")?;
                let over: Vec<String> =
                    find.query_map([due, now.nanos()], |row| row.get(0))?.collect::<Result<_, _>>()?;
                let mut told = false;
                for kind in over {
                    told |= end_window(connection, &kind)?;
                }
                Ok(told)
            })
            .await
    }
}

/// Notes an error event and carries out what it decided; true where it is to be told now.
pub(super) fn note(connection: &Tx<'_>, report: &Report, row: Option<RowId>) -> Result<bool, JournalError> {
    // What is no event of ours leaves as it is.
    let Ok(event) = serde_json::from_slice::<ErrorEvent>(&report.body) else { return Ok(true) };
    remember(connection, &event, row)?;
    if let Some(process) = &event.process {
        if event.code.is_of_a_try() {
            processes::note_error(connection, process, &event)?;
        }
        let why = || format!("the error {}", event.id);
        match event.directive {
            Some(Directive::Restart) => processes::note_restart(connection, process, event.at)?,
            Some(Directive::Stop) => processes::stop(connection, process, &why(), event.at).map(drop)?,
            _ => {}
        }
    }
    if event.directive == Some(Directive::Shutdown) {
        processes::decide_to_leave(connection)?;
    }
    is_told(connection, &event, report)
}

/// The failure of this id, where it is remembered.
pub(super) fn named(connection: &Connection, error: Uuid) -> Result<Option<Failed>, JournalError> {
    let mut find = connection.prepare_cached("SELECT process, message FROM failures WHERE error = ?1")?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(Failed { process: row.get(0)?, message: row.get::<_, Option<i64>>(1)?.map(RowId) })
    };
    Ok(find.query_row([error.to_string()], read).optional()?)
}

fn remember(connection: &Connection, event: &ErrorEvent, row: Option<RowId>) -> Result<(), JournalError> {
    connection
        .prepare_cached("INSERT INTO failures (error, code, process, message, at) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            event.id.to_string(),
            event.code.as_str(),
            event.process,
            row.map(|row| row.0),
            event.at.nanos(),
        ])?;
    let last = connection.last_insert_rowid();
    connection.prepare_cached("DELETE FROM failures WHERE id <= ?1")?.execute([last - REMEMBERED])?;
    Ok(())
}

/// Whether this one is told, or counted.
fn is_told(connection: &Tx<'_>, event: &ErrorEvent, report: &Report) -> Result<bool, JournalError> {
    let process = event.process.as_deref().unwrap_or_default();
    let kind = format!("{}.{}.{process}", event.code, event.severity.as_str());
    let window: Option<(i64, i64)> = connection
        .prepare_cached("SELECT since, told FROM repeats WHERE kind = ?1")?
        .query_row([&kind], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (at, window_ns) = (event.at.nanos(), i64::try_from(WINDOW.as_nanos()).unwrap_or(i64::MAX));
    match window.filter(|(since, _)| (0..window_ns).contains(&at.saturating_sub(*since))) {
        None => {
            end_window(connection, &kind)?;
            connection
                .prepare_cached("INSERT INTO repeats (kind, since, told) VALUES (?1, ?2, 1)")?
                .execute(params![kind, at])?;
            Ok(true)
        }
        Some((_, told)) if told < TOLD => {
            connection.prepare_cached("UPDATE repeats SET told = told + 1 WHERE kind = ?1")?.execute([&kind])?;
            Ok(true)
        }
        Some(_) => {
            connection
                .prepare_cached("UPDATE repeats SET held = held + 1, subject = ?2, body = ?3 WHERE kind = ?1")?
                .execute(params![kind, report.subject, report.body.as_ref()])?;
            Ok(false)
        }
    }
}

/// Ends the window of a kind, where there is one; true where something counted is told by that.
fn end_window(connection: &Tx<'_>, kind: &str) -> Result<bool, JournalError> {
    let window: Option<(i64, Option<String>, Option<Vec<u8>>)> = connection
        .prepare_cached("DELETE FROM repeats WHERE kind = ?1 RETURNING held, subject, body")?
        .query_row([kind], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((held, Some(subject), Some(body))) = window else { return Ok(false) };
    let Ok(event) = serde_json::from_slice::<ErrorEvent>(&body) else { return Ok(false) };
    let headers = RawHeaders::default().with(names::MSG_ID, event.id.to_string());
    let event = ErrorEvent { count: Some(held.unsigned_abs()), ..event };
    outbox::append(connection, &Report { class: Class::Error, subject, headers, body: event.encode().into() }, None)?;
    Ok(true)
}
