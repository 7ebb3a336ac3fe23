//! Processes: which of them are stopped, and what orders do to them.
//!
//! ```text
//! running --stop, or an error's directive--> stopped --start, restart--> running
//! running --restart--> running; the tries that run are to be ended
//! ```
//!
//! An order is carried out in the transaction that takes its message; its effect on what runs follows from what is kept
//! here. That a process is stopped outlives the agent, as do the decision to leave and which tries a restart ends. Owns the
//! table of processes. Never says a word of its own: [`Words`](super::Words) do.

use super::cancel::Met;
use super::error::JournalError;
use super::failures;
use super::meta::{self, Key};
use super::open::Journal;
use super::rows::{lane_at, phase};
use crate::model::error_event::{Directive, ErrorEvent};
use crate::model::lanes::RowId;
use crate::model::node::FAILURE_WINDOW;
use crate::model::state::{Phase, State};
use crate::model::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

/// What is kept of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The method.
    pub name: String,
    /// Who or what stopped it; `None` where it is not stopped.
    pub stopped_by: Option<String>,
    /// When it was last stopped, started or restarted.
    pub changed_at: Option<Timestamp>,
    /// How often it was restarted.
    pub restarts: u64,
    /// How many tries have failed within [`FAILURE_WINDOW`].
    pub failures: u64,
    /// Its last failure, and when.
    pub last_error: Option<(String, Timestamp)>,
}

/// What to do with a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing of it starts any more; what runs goes on.
    Stop,
    /// Its messages start again.
    Start,
    /// What runs is ended, and it goes on anew.
    Restart,
}

/// An order to the node about its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What.
    pub what: What,
    /// Who gives it.
    pub by: String,
}

/// What is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A change of these processes.
    Processes {
        /// Their names.
        names: Vec<String>,
        /// What to do with them.
        change: Change,
    },
    /// A directive about a failure.
    Directive {
        /// The id of its error event.
        error: Uuid,
        /// The directive.
        directive: Directive,
    },
}

/// What an order did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// A process is stopped.
    Stopped {
        /// Which.
        name: String,
        /// False where it was before.
        changed: bool,
    },
    /// A process is not stopped.
    Started {
        /// Which.
        name: String,
        /// False where it was not before.
        changed: bool,
    },
    /// A process begins anew.
    Restarted {
        /// Which.
        name: String,
        /// How many running tries are to be ended for that.
        ended: usize,
    },
    /// A message has one more try.
    Granted,
    /// Nothing was to be done.
    GoesOn,
    /// The agent is to leave.
    Leaving,
    /// That cannot be done: why.
    Impossible(String),
}

/// An order that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obeyed {
    /// What it did.
    pub effects: Vec<Effect>,
    /// The tries that are to be ended.
    pub met: Vec<Met>,
}

impl Obeyed {
    /// How the order ended.
    pub fn state(&self) -> State {
        let failed = self.effects.iter().any(|effect| matches!(effect, Effect::Impossible(_)));
        if failed { State::Failed } else { State::Succeeded }
    }
}

/// The order that ends a try: a restart of its process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndOrder {
    /// The process.
    pub process: String,
    /// Who gave it.
    pub by: String,
}

/// Whether the agent is to leave for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// It was decided and has not been done.
    Decided,
    /// It has left; whoever starts it again means it.
    Done,
}

const DECIDED: &str = "decided";
const DONE: &str = "done";

impl Journal {
    /// All processes that were ever stopped, restarted or failed; failures are counted back from `now`.
    pub async fn processes(&self, now: Timestamp) -> Result<Vec<Process>, JournalError> {
        self.writer.read(move |connection| all(connection, now)).await
    }

    /// The names of those that are stopped.
    pub async fn stopped(&self) -> Result<Vec<String>, JournalError> {
        self.writer
            .read(|connection| {
                let mut find = connection.prepare_cached("SELECT name FROM processes WHERE stopped_by IS NOT NULL")?;
                Ok(find.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
            })
            .await
    }

    /// How many tries directives have added to a message.
    pub async fn granted(&self, row: RowId) -> Result<u32, JournalError> {
        self.writer
            .read(move |connection| {
                let mut find = connection.prepare_cached("SELECT coalesce(granted, 0) FROM messages WHERE id = ?1")?;
                Ok(find.query_row([row.0], |row| row.get(0))?)
            })
            .await
    }

    /// The order that ends the try of this row, where one does.
    pub async fn end_order(&self, row: RowId) -> Result<Option<EndOrder>, JournalError> {
        self.writer
            .read(move |connection| {
                let mut find = connection.prepare_cached(
                    "SELECT l.method, m.end_by FROM messages m JOIN lanes l ON l.id = m.lane
                     WHERE m.id = ?1 AND m.to_end = m.attempt AND m.end_by IS NOT NULL",
                )?;
                let read = |row: &rusqlite::Row<'_>| Ok(EndOrder { process: row.get(0)?, by: row.get(1)? });
                Ok(find.query_row([row.0], read).optional()?)
            })
            .await
    }

    /// Whether it was decided that the agent leaves.
    pub async fn leaving(&self) -> Result<Option<Leaving>, JournalError> {
        let kept = self.meta::<String>(Key::Leaving).await?;
        Ok(match kept.as_deref() {
            Some(DECIDED) => Some(Leaving::Decided),
            Some(_) => Some(Leaving::Done),
            None => None,
        })
    }

    /// The agent is started again after it had left.
    pub async fn stay(&self) -> Result<(), JournalError> {
        self.writer
            .call(|connection| {
                connection.execute("DELETE FROM meta WHERE key = ?1", [Key::Leaving.as_str()])?;
                Ok(())
            })
            .await
    }

    /// The agent has left as was decided: the last thing that it keeps.
    pub async fn left_for_good(&self) -> Result<(), JournalError> {
        self.set_meta(Key::Leaving, DONE).await
    }
}

/// The agent is to leave.
pub(super) fn decide_to_leave(connection: &Connection) -> Result<(), JournalError> {
    meta::put(connection, Key::Leaving, DECIDED)
}

pub(super) fn all(connection: &Connection, now: Timestamp) -> Result<Vec<Process>, JournalError> {
    let mut find = connection.prepare_cached(
        "SELECT name, stopped_by, changed_at, restarts, last_error, last_error_at,
                (SELECT count(*) FROM failures f
                 WHERE f.process = p.name AND f.at > ?1 AND f.code IN ('failed', 'timed_out', 'panicked'))
         FROM processes p ORDER BY name",
    )?;
    let read = |row: &rusqlite::Row<'_>| {
        let (error, at): (Option<String>, Option<i64>) = (row.get(4)?, row.get(5)?);
        Ok(Process {
            name: row.get(0)?,
            stopped_by: row.get(1)?,
            changed_at: row.get::<_, Option<i64>>(2)?.map(Timestamp::from_nanos),
            restarts: row.get::<_, i64>(3)?.unsigned_abs(),
            failures: row.get::<_, i64>(6)?.unsigned_abs(),
            last_error: error.zip(at.map(Timestamp::from_nanos)),
        })
    };
    Ok(find.query_map([now.minus(FAILURE_WINDOW).nanos()], read)?.collect::<Result<_, _>>()?)
}

/// Carries an order out.
pub(super) fn obey(connection: &Connection, order: &Order, now: Timestamp) -> Result<Obeyed, JournalError> {
    let mut obeyed = Obeyed { effects: Vec::new(), met: Vec::new() };
    match &order.what {
        What::Processes { names, change } => {
            for name in names {
                let effect = apply(connection, name, *change, &order.by, now, &mut obeyed.met)?;
                obeyed.effects.push(effect);
            }
        }
        What::Directive { error, directive } => {
            let effect = direct(connection, *error, *directive, &order.by, now, &mut obeyed.met)?;
            obeyed.effects.push(effect);
        }
    }
    Ok(obeyed)
}

fn apply(
    connection: &Connection,
    name: &str,
    change: Change,
    by: &str,
    now: Timestamp,
    met: &mut Vec<Met>,
) -> Result<Effect, JournalError> {
    let name = name.to_owned();
    Ok(match change {
        Change::Stop => Effect::Stopped { changed: stop(connection, &name, by, now)?, name },
        Change::Start => Effect::Started { changed: start(connection, &name, now)?, name },
        Change::Restart => {
            start(connection, &name, now)?;
            note_restart(connection, &name, now)?;
            let running = end_running(connection, &name, by)?;
            let ended = running.len();
            met.extend(running);
            Effect::Restarted { name, ended }
        }
    })
}

fn direct(
    connection: &Connection,
    error: Uuid,
    directive: Directive,
    by: &str,
    now: Timestamp,
    met: &mut Vec<Met>,
) -> Result<Effect, JournalError> {
    let Some(failed) = failures::named(connection, error)? else {
        return Ok(Effect::Impossible(format!("this node knows no error {error}")));
    };
    let change = match directive {
        Directive::Continue => return Ok(Effect::GoesOn),
        Directive::Retry => return grant(connection, failed.message),
        Directive::Shutdown => {
            decide_to_leave(connection)?;
            return Ok(Effect::Leaving);
        }
        Directive::Restart => Change::Restart,
        Directive::Stop => Change::Stop,
    };
    match failed.process {
        Some(process) => apply(connection, &process, change, by, now, met),
        None => Ok(Effect::Impossible("that error was of no process".to_owned())),
    }
}

/// One more try for a message that is not over.
fn grant(connection: &Connection, message: Option<RowId>) -> Result<Effect, JournalError> {
    let Some(row) = message else { return Ok(Effect::Impossible("that error was of no message".to_owned())) };
    match phase(connection, row) {
        Ok(Phase::Finished(state)) => Ok(Effect::Impossible(format!("its message is over: {state}"))),
        Err(JournalError::NoRow(_)) => Ok(Effect::Impossible("its message is over long since".to_owned())),
        Err(error) => Err(error),
        Ok(_) => {
            connection
                .prepare_cached("UPDATE messages SET granted = coalesce(granted, 0) + 1 WHERE id = ?1")?
                .execute([row.0])?;
            Ok(Effect::Granted)
        }
    }
}

/// Stops a process; false where it was stopped.
pub(super) fn stop(connection: &Connection, name: &str, by: &str, now: Timestamp) -> Result<bool, JournalError> {
    let changed = connection
        .prepare_cached(
            "INSERT INTO processes (name, stopped_by, changed_at) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET stopped_by = ?2, changed_at = ?3 WHERE stopped_by IS NULL",
        )?
        .execute(params![name, by, now.nanos()])?;
    Ok(changed > 0)
}

fn start(connection: &Connection, name: &str, now: Timestamp) -> Result<bool, JournalError> {
    let changed = connection
        .prepare_cached(
            "UPDATE processes SET stopped_by = NULL, changed_at = ?2 WHERE name = ?1 AND stopped_by IS NOT NULL",
        )?
        .execute(params![name, now.nanos()])?;
    Ok(changed > 0)
}

/// A process was restarted.
pub(super) fn note_restart(connection: &Connection, name: &str, now: Timestamp) -> Result<(), JournalError> {
    connection
        .prepare_cached(
            "INSERT INTO processes (name, changed_at, restarts) VALUES (?1, ?2, 1)
             ON CONFLICT (name) DO UPDATE SET changed_at = ?2, restarts = restarts + 1",
        )?
        .execute(params![name, now.nanos()])?;
    Ok(())
}

/// A try of a process has failed.
pub(super) fn note_error(connection: &Connection, name: &str, event: &ErrorEvent) -> Result<(), JournalError> {
    connection
        .prepare_cached(
            "INSERT INTO processes (name, last_error, last_error_at) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET last_error = ?2, last_error_at = ?3",
        )?
        .execute(params![name, format!("{}: {}", event.code, event.message), event.at.nanos()])?;
    Ok(())
}

/// The tries of a process that run; kept as those that are to end, so that a later agent ends what it takes up of them.
fn end_running(connection: &Connection, name: &str, by: &str) -> Result<Vec<Met>, JournalError> {
    let mut find = connection.prepare_cached(
        "SELECT m.id, l.kind, l.sender, l.method, l.lane FROM messages m JOIN lanes l ON l.id = m.lane
         WHERE m.phase = 1 AND l.method = ?1 ORDER BY m.id",
    )?;
    let mut mark = connection.prepare_cached("UPDATE messages SET to_end = attempt, end_by = ?2 WHERE id = ?1")?;
    let mut rows = find.query([name])?;
    let mut running = Vec::new();
    while let Some(row) = rows.next()? {
        if let Some(lane) = lane_at(row, 1)? {
            running.push(Met::ToStop { row: RowId(row.get(0)?), lane });
        }
    }
    for met in &running {
        if let Met::ToStop { row, .. } = met {
            mark.execute(params![row.0, by])?;
        }
    }
    Ok(running)
}
