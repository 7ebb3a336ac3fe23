//! The node's journal: what it has taken, what became of it, and what still has to be told. It survives everything but
//! the disk.
//!
//! Owns the SQLite file, its lock and its one writer thread. A commit is durable (`synchronous=FULL`) before anybody
//! hears of it; what is asked for at the same time shares a commit. Never parses a message and never talks to a broker.
//!
//! A message's row goes `queued → running → finished` (see [`crate::model::state::Phase`]); the body goes when it is
//! finished, the row stays, because (from, id) must be known for as long as the stream may give the message again.

mod cancel;
mod error;
mod meta;
mod open;
mod outbox;
mod rows;
mod schema;
mod take;
#[cfg(test)]
mod tests;
mod work;
mod writer;

pub use cancel::{Cancel, Met, Words};
pub use error::JournalError;
pub use meta::Key;
pub use open::{Journal, Opened};
pub use outbox::{Class, Entry, EntryId, Report};
pub use rows::HeldRun;
pub use take::{Arrival, Door, Position, Taken, size_of};
pub use work::{Decision, Ended, Loaded, Verdict};
