//! What can go wrong with a journal.

use crate::model::state::IllegalStep;
use std::path::PathBuf;

/// The journal could not do what was asked; nothing of it was kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// The state folder or a file in it cannot be used.
    #[error("{path}: {reason}")]
    Folder {
        /// What.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Another agent has the state folder.
    #[error("{path} is in use by another agent{}", holder(*.pid))]
    InUse {
        /// The state folder.
        path: PathBuf,
        /// The other agent, where it wrote its number.
        pid: Option<u32>,
    },
    /// The file is no journal of edgeward's.
    #[error("{path} is not a journal of edgeward's: {reason}; move it away, or give another --state-dir")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// How that was seen.
        reason: String,
    },
    /// The journal is another node's.
    #[error("{path} is the journal of node `{theirs}`, not of `{ours}`: give `--node {theirs}` or another --state-dir")]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        theirs: String,
        /// Who we are.
        ours: String,
    },
    /// The disk does not take it: full, read-only, or failing. It may heal; nothing of the request was kept.
    #[error("the journal cannot be written: {0}")]
    Unwritable(String),
    /// What is in the file cannot be trusted.
    #[error("the journal is damaged: {0}")]
    Damaged(String),
    /// SQLite refused for another reason: a fault of this program.
    #[error("the journal cannot be used: {0}")]
    Sqlite(String),
    /// A step that the message's phase does not allow: a fault of this program.
    #[error(transparent)]
    Illegal(#[from] IllegalStep),
    /// There is no such row.
    #[error("the journal has no row {0}")]
    NoRow(i64),
    /// The writer has ended.
    #[error("the journal is closed")]
    Closed,
}

fn holder(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

impl JournalError {
    /// True where the same request may succeed later.
    pub fn may_heal(&self) -> bool {
        matches!(self, JournalError::Unwritable(_))
    }
}

impl From<rusqlite::Error> for JournalError {
    fn from(error: rusqlite::Error) -> JournalError {
        use rusqlite::ErrorCode::*;
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => JournalError::Damaged(text),
            Some(
                DiskFull | SystemIoFailure | ReadOnly | CannotOpen | PermissionDenied | OutOfMemory | DatabaseBusy
                | DatabaseLocked,
            ) => JournalError::Unwritable(text),
            _ => JournalError::Sqlite(text),
        }
    }
}
