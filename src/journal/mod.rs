//! The node's journal: what it has taken, what became of it, and what still has to be told. It survives everything but
//! the disk.
//!
//! Owns the SQLite file, its lock and its one writer thread. A commit is durable (`synchronous=FULL`) before anybody
//! hears of it; what is asked for at the same time shares a commit. Never parses a message and never talks to a broker.
//!
//! A disk that does not take a write fails the request and nothing else ([`Condition`]); whoever asked tries again. A
//! journal that cannot be trusted is moved aside at the next start. What is finished is thinned ([`Keep`]).
//!
//! A message's row goes `queued → running → finished` (see [`crate::model::state::Phase`]); the body goes when it is
//! finished, the row stays, because (from, id) must be known for as long as the stream may give the message again.

mod anchors;
mod cancel;
mod damage;
mod error;
mod failures;
mod fresh;
mod health;
mod look;
mod mark;
mod members;
mod meta;
mod open;
mod outbox;
mod output;
mod part;
mod processes;
mod records;
mod rows;
mod run;
mod schema;
mod shares;
mod take;
#[cfg(test)]
mod tests;
mod thin;
mod work;
mod writer;

pub use anchors::{Changed, Earlier, Reach};
pub use cancel::{Cancel, Met, Words};
pub use error::JournalError;
pub use health::Condition;
pub use look::{LookError, OutboxDepth, Picture, RunningTry, look};
pub use meta::Key;
pub use open::{Journal, Opened, SPACE};
pub use outbox::{Class, Entry, EntryId, Report};
pub use output::Output;
pub use processes::{Change, Effect, EndOrder, Leaving, Obeyed, Order, Process, What};
pub use records::{Again, Finished};
pub use rows::HeldRun;
pub use run::{RunEnd, Started};
pub use shares::Full;
pub use take::{Arrival, Door, Position, Remember, Taken, size_of};
pub use thin::{Keep, Thinned};
pub use work::{Decision, Ended, Loaded, Verdict};
