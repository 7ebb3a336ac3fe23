//! One request's part in a transaction that several share.
//!
//! Owns that a part which fails takes nothing of the others with it, and what is known of a part once all is durable.
//! Never begins or ends the transaction; the writer does.

use super::error::JournalError;
use super::outbox::Entry;
use rusqlite::{Connection, Transaction};
use std::cell::RefCell;
use std::ops::Deref;

/// A transaction as one request sees it: the connection, and what follows from it once it is committed.
pub(super) struct Tx<'a> {
    connection: &'a Connection,
    follows: RefCell<Follows>,
}

/// What follows from a commit at once, before anybody is answered.
#[derive(Default)]
pub(super) struct Follows {
    /// What has come into the outbox.
    pub(super) added: Vec<Entry>,
}

impl Tx<'_> {
    /// This entry has been put into the outbox.
    pub(super) fn has_added(&self, entry: Entry) {
        self.follows.borrow_mut().added.push(entry);
    }
}

impl Deref for Tx<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}

/// Does one part, wholly or not at all. By statements that are kept, as all others are, and not read anew each time.
pub(super) fn in_part<T>(
    tx: &Transaction<'_>,
    work: impl FnOnce(&Tx<'_>) -> Result<T, JournalError>,
) -> Result<(T, Follows), JournalError> {
    let say = |words: &str| tx.prepare_cached(words)?.execute([]);
    say("SAVEPOINT part")?;
    let part = Tx { connection: tx, follows: RefCell::default() };
    match work(&part) {
        Ok(value) => {
            say("RELEASE part")?;
            Ok((value, part.follows.into_inner()))
        }
        Err(error) => {
            // Where the disk fails the whole transaction is gone already.
            if !tx.is_autocommit() {
                say("ROLLBACK TO part").and_then(|_| say("RELEASE part"))?;
            }
            Err(error)
        }
    }
}
