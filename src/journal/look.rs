//! A look at a node's journal from outside: read-only, beside an agent that runs or not (`edgeward local`).
//!
//! One transaction, so that all of it is of one moment. Takes no lock of the agent's: whether one runs is seen in the
//! system's list of locks. Owns what is told; changes nothing, and moves nothing aside.

use super::damage::{self, CHECKED_AT_START, reader};
use super::error::JournalError;
use super::mark::Mark;
use super::meta::{self, Key};
use super::open::{FILE, FileKind, foreign, has_our_id, identity, kind};
use super::processes::{self, Process};
use super::rows::{kind_number, lane_at, ref_at};
use crate::model::id::{JournalId, MsgRef};
use crate::model::message::Kind;
use crate::model::node::{LaneFacts, LinkNote};
use crate::model::time::Timestamp;
use rusqlite::Connection;
use serde::Serialize;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// How long another's checkpoint is waited for.
const BUSY: Duration = Duration::from_secs(2);

/// A try that runs, or ran when the agent ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunningTry {
    /// The message's id.
    pub id: String,
    /// Its sender.
    pub from: String,
    /// Its method, with the lane token behind a dot.
    pub method: String,
    /// Where it is stored.
    pub at: MsgRef,
    /// Which try.
    pub attempt: u32,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// The process, where one was written down.
    pub pid: Option<u32>,
}

/// How much waits to leave the node, by class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OutboxDepth {
    /// Records.
    pub acks: u64,
    /// Error events.
    pub errors: u64,
    /// Messages that this node sends.
    pub messages: u64,
    /// Lines for `acks.jsonl`.
    pub results: u64,
    /// What cannot be published as it is.
    pub parked: u64,
    /// Failures that are counted and not told yet.
    pub counted: u64,
}

/// What a journal holds at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Whose it is.
    pub node: String,
    /// Its id.
    pub journal: JournalId,
    /// The agent that has it open.
    pub agent: Option<u32>,
    /// The size of its files, in bytes.
    pub bytes: u64,
    /// How many messages it has rows of.
    pub rows: u64,
    /// The last message taken from each stream.
    pub positions: Vec<MsgRef>,
    /// The lanes that have something in them, the oldest head first, at most as many as were asked for.
    pub lanes: Vec<LaneFacts>,
    /// How many those are in all.
    pub lane_count: u64,
    /// What runs.
    pub running: Vec<RunningTry>,
    /// What waits to leave.
    pub outbox: OutboxDepth,
    /// Processes that were ever stopped, restarted or failed.
    pub processes: Vec<Process>,
    /// How the link was when that last changed.
    pub link: Option<LinkNote>,
    /// The broker's clock minus this machine's, in ns, as it was last known.
    pub clock_offset: i64,
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// There is no journal.
    #[error("there is no journal in {0}")]
    Missing(String),
    /// There is one that cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Looks at the journal in `folder`, with at most `lanes` lanes of it. Blocks.
pub fn look(folder: &Path, lanes: usize) -> Result<Picture, LookError> {
    let path = folder.join(FILE);
    // Before the journal: the agent writes it after.
    let mark = Mark::read(folder);
    let is_there = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > 0);
    if !is_there {
        return match mark {
            Some(mark) => Err(JournalError::Damaged(format!("it is missing or empty; it was {}", mark.id)).into()),
            None => Err(LookError::Missing(folder.display().to_string())),
        };
    }
    if let Some(reason) = damage::note(folder) {
        return Err(JournalError::Damaged(reason).into());
    }
    let seen = see(folder, &path, mark.as_ref(), lanes);
    match seen {
        Err(JournalError::Damaged(reason)) if mark.is_none() && !has_our_id(&path) => {
            Err(JournalError::Foreign { path, reason }.into())
        }
        seen => Ok(seen?),
    }
}

fn see(folder: &Path, path: &Path, mark: Option<&Mark>, lanes: usize) -> Result<Picture, JournalError> {
    let connection = reader(path)?;
    connection.busy_timeout(BUSY)?;
    let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let tx = connection.unchecked_transaction()?;
    let identity = match kind(&tx)? {
        FileKind::Foreign => return Err(foreign(path)),
        FileKind::New => None,
        FileKind::Ours => identity(&tx)?,
    };
    let Some((journal, node)) = identity else {
        return Err(JournalError::Damaged("it does not say whose it is".to_owned()));
    };
    if size <= CHECKED_AT_START {
        damage::check(&tx)?;
    }
    let commits: u64 = meta::get(&tx, Key::Commits)?.and_then(|text| text.parse().ok()).unwrap_or(0);
    if let Some(mark) = mark.filter(|mark| mark.id == journal && mark.commits > commits) {
        return Err(JournalError::Damaged(format!("its last {} commits are gone", mark.commits - commits)));
    }
    let clock_offset = meta::get(&tx, Key::ClockOffset)?.and_then(|text| text.parse().ok()).unwrap_or(0);
    let now = Timestamp::from_nanos(Timestamp::local_now().nanos().saturating_add(clock_offset));
    let wal = std::fs::metadata(folder.join("journal.db-wal")).map_or(0, |metadata| metadata.len());
    let (shown, lane_count) = open_lanes(&tx, lanes)?;
    Ok(Picture {
        node,
        journal,
        agent: holder(&folder.join("agent.lock")),
        bytes: size + wal,
        rows: count(&tx, "SELECT count(*) FROM messages")?,
        positions: positions(&tx)?,
        lanes: shown,
        lane_count,
        running: running(&tx)?,
        outbox: outbox(&tx)?,
        // A journal of an older release does not have these yet.
        processes: processes::all(&tx, now).unwrap_or_default(),
        link: meta::get(&tx, Key::Link)?.and_then(|text| serde_json::from_str(&text).ok()),
        clock_offset,
    })
}

fn count(connection: &Connection, query: &str) -> Result<u64, JournalError> {
    Ok(connection.query_row(query, [], |row| row.get::<_, Option<i64>>(0))?.unwrap_or(0).unsigned_abs())
}

fn positions(connection: &Connection) -> Result<Vec<MsgRef>, JournalError> {
    let mut find = connection.prepare("SELECT stream, seq, stored_at FROM positions ORDER BY stream")?;
    Ok(find.query_map([], |row| ref_at(row, 0))?.collect::<Result<_, _>>()?)
}

fn open_lanes(connection: &Connection, most: usize) -> Result<(Vec<LaneFacts>, u64), JournalError> {
    let mut find = connection.prepare(
        "SELECT l.kind, l.sender, l.method, l.lane, o.count, m.stream, m.seq, m.stored_at, m.phase FROM
         (SELECT lane, min(id) AS head, count(*) AS count FROM messages WHERE phase < 3 AND lane IS NOT NULL GROUP BY lane) o
         JOIN lanes l ON l.id = o.lane JOIN messages m ON m.id = o.head ORDER BY o.head",
    )?;
    let mut rows = find.query([])?;
    let (mut shown, mut all) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        all += 1;
        if let Some(key) = lane_at(row, 0)?
            && shown.len() < most
        {
            let head = ref_at(row, 5)?;
            shown.push(LaneFacts {
                lane: key.to_string(),
                depth: row.get::<_, i64>(4)?.unsigned_abs(),
                head: Some(head.seq),
                head_stored_at: Some(head.stored_at),
                running: row.get::<_, i64>(8)? == 1,
            });
        }
    }
    Ok((shown, all))
}

fn running(connection: &Connection) -> Result<Vec<RunningTry>, JournalError> {
    let mut find = connection.prepare(
        "SELECT stream, seq, stored_at, msg_id, sender, coalesce(name, ''), attempt, started_at, pid FROM messages
         WHERE phase = 1 AND kind != ?1 ORDER BY id",
    )?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(RunningTry {
            at: ref_at(row, 0)?,
            id: row.get(3)?,
            from: row.get(4)?,
            method: row.get(5)?,
            attempt: row.get(6)?,
            started_at: row.get::<_, Option<i64>>(7)?.map(Timestamp::from_nanos),
            pid: row.get(8)?,
        })
    };
    Ok(find.query_map([kind_number(Some(Kind::Control))], read)?.collect::<Result<_, _>>()?)
}

fn outbox(connection: &Connection) -> Result<OutboxDepth, JournalError> {
    let class = |class: i64| {
        count(connection, &format!("SELECT count(*) FROM outbox WHERE parked IS NULL AND class = {class}"))
    };
    Ok(OutboxDepth {
        acks: class(0)?,
        errors: class(1)?,
        messages: class(2)?,
        results: class(3)?,
        parked: count(connection, "SELECT count(*) FROM outbox WHERE parked IS NOT NULL")?,
        counted: count(connection, "SELECT sum(held) FROM repeats").unwrap_or(0),
    })
}

/// The process that holds this lock (`/proc/locks`); asking for the lock would take it from an agent that starts.
fn holder(lock: &Path) -> Option<u32> {
    let inode = std::fs::metadata(lock).ok()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "FLOCK")?;
        let (pid, file) = (words.get(at + 3)?, words.get(at + 4)?);
        (file.rsplit(':').next() == Some(&inode)).then(|| pid.parse().ok())?
    })
}
