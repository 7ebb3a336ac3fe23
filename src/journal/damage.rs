//! A damaged journal is moved aside, never repaired and never thrown away.
//!
//! Owns the examination at a start and the names of what is set aside. What is lost with a journal: which messages were
//! taken and what became of those whose records had not left yet. The new journal has another id; the hub closes what
//! the old one left open (`interrupted` where it may have run) and lets the new one begin at the stream's end, so that
//! nothing runs a second time unseen.

use super::error::JournalError;
use super::health::Condition;
use super::open::{FILE, Journal};
use crate::model::time::Timestamp;
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};

/// Files up to this size are read through at each start; larger ones by [`Journal::check`], while the agent works.
pub(super) const CHECKED_AT_START: u64 = 64 << 20;

/// How many damaged journals are kept for whoever wants to look at them; a failing disk makes one at each start.
const KEPT: usize = 3;

/// A running agent leaves here what it found, for the next start.
const NOTE: &str = "journal.damaged";

/// Reads a journal through: the reason where it is damaged.
pub(super) fn check(connection: &Connection) -> Result<(), JournalError> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" { Ok(()) } else { Err(JournalError::Damaged(verdict)) }
}

/// What a running agent found.
pub(super) fn note(folder: &Path) -> Option<String> {
    std::fs::read_to_string(folder.join(NOTE)).ok()
}

/// Moves the journal in `folder` aside and says so in a sentence.
pub(super) fn move_aside(folder: &Path, reason: &str) -> Result<String, JournalError> {
    let now = Timestamp::local_now().to_string();
    let stamp: String = now.chars().filter(char::is_ascii_alphanumeric).take(15).collect();
    let aside = folder.join(format!("journal.db.damaged-{stamp}"));
    let fail = |path: &Path, e: std::io::Error| JournalError::Folder {
        path: path.to_owned(),
        reason: format!("damaged ({reason}) and cannot be moved aside: {e}"),
    };
    let journal = folder.join(FILE);
    let is_empty = std::fs::metadata(&journal).map_or(true, |metadata| metadata.len() == 0);
    for suffix in ["-wal", "-shm", ""] {
        let (from, to) = (with(&journal, suffix), with(&aside, suffix));
        match std::fs::rename(&from, &to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fail(&from, e)),
            _ => {}
        }
    }
    match std::fs::remove_file(folder.join(NOTE)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fail(&folder.join(NOTE), e)),
        _ => {}
    }
    forget_old(folder);
    let what = if is_empty { "nothing of it is left".to_owned() } else { format!("it is now {}", aside.display()) };
    let text = format!("the journal was damaged ({reason}); {what}; begun anew");
    tracing::error!("{text}");
    Ok(text)
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn forget_old(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let named = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        (name.starts_with("journal.db.damaged-") && !name.ends_with("-wal") && !name.ends_with("-shm")).then_some(name)
    };
    let mut names: Vec<String> = entries.flatten().filter_map(named).collect();
    names.sort_unstable();
    for name in names.iter().rev().skip(KEPT) {
        for suffix in ["", "-wal", "-shm"] {
            // What is not there need not go.
            let _ = std::fs::remove_file(with(&folder.join(name), suffix));
        }
    }
}

impl Journal {
    /// Reads a journal through that was too large for that at its start; while others write. What is found is the
    /// journal's condition from then on.
    pub async fn check(&self) -> Result<(), JournalError> {
        let path = self.path();
        if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= CHECKED_AT_START) {
            return Ok(());
        }
        let checked = tokio::task::spawn_blocking(move || check(&reader(&path)?)).await;
        let checked = checked.map_err(|_| JournalError::Closed)?;
        if let Err(JournalError::Damaged(reason)) = &checked {
            self.writer.health().damaged(reason);
        }
        checked
    }

    /// Leaves word for the next start that this journal is not to be used.
    pub fn note_damage(&self, reason: &str) {
        let path = self.folder().join(NOTE);
        if let Err(error) = std::fs::write(&path, reason) {
            tracing::error!(path = %path.display(), %error, "the next start is not told of the damage");
        }
    }

    /// Waits until the journal is damaged, and says how.
    pub async fn damaged(&self) -> String {
        let mut watch = self.health();
        let found = watch.wait_for(|condition| matches!(condition, Condition::Damaged(_))).await;
        match found.map(|condition| condition.clone()) {
            Ok(Condition::Damaged(reason)) => reason,
            _ => std::future::pending().await,
        }
    }
}

/// A second connection that only reads, for what would keep the writer too long.
pub(super) fn reader(path: &Path) -> Result<Connection, JournalError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Ok(Connection::open_with_flags(path, flags)?)
}
