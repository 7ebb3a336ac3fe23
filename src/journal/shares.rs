//! Shares: what may wait in the journal, so that no lane and no sender takes the space of the others.
//!
//! Owns the limits. What is held is counted by triggers (see `schema`), from the tables themselves at each start.

use super::error::JournalError;
use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension, params};
use std::fmt;

/// Whose share is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The lane's: a quarter.
    Lane {
        /// How many bytes that is.
        limit: u64,
    },
    /// The sender's: half.
    Sender {
        /// How many bytes that is.
        limit: u64,
    },
    /// The journal's.
    Journal {
        /// How many bytes that is.
        limit: u64,
    },
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Full::Lane { limit } => write!(f, "its lane's share of the node's journal ({limit} bytes) is full"),
            Full::Sender { limit } => write!(f, "its sender's share of the node's journal ({limit} bytes) is full"),
            Full::Journal { limit } => write!(f, "the node's journal ({limit} bytes) is full"),
        }
    }
}

/// The share that `size` more bytes would exceed, where there is one.
pub(super) fn refuses(
    connection: &Connection,
    space: u64,
    lane: i64,
    sender: &str,
    size: u64,
) -> Result<Option<Full>, JournalError> {
    let shares = [
        (held(connection, 2, &lane)?, Full::Lane { limit: space / 4 }),
        (held(connection, 1, &sender)?, Full::Sender { limit: space / 2 }),
        (held(connection, 0, &"")?, Full::Journal { limit: space }),
    ];
    Ok(shares.into_iter().find(|(held, full)| held.saturating_add(size) > full.limit()).map(|(_, full)| full))
}

impl Full {
    fn limit(self) -> u64 {
        match self {
            Full::Lane { limit } | Full::Sender { limit } | Full::Journal { limit } => limit,
        }
    }
}

fn held(connection: &Connection, what: i64, owner: &dyn ToSql) -> Result<u64, JournalError> {
    let mut statement = connection.prepare_cached("SELECT bytes FROM held WHERE what = ?1 AND owner = ?2")?;
    let bytes: Option<i64> = statement.query_row(params![what, owner], |row| row.get(0)).optional()?;
    Ok(bytes.map_or(0, |bytes| u64::try_from(bytes).unwrap_or(0)))
}
