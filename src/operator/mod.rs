//! The operator's side as a library: sending, finding, watching and listing, without a word printed.
//!
//! One call begins with a [`Draft`], is stored by [`send()`], found again by [`find()`] and watched by [`Watch`] until every
//! row of its [`View`] is terminal. Reads by direct gets and follows what the broker republishes; it never makes
//! a consumer, and never decides what a message does on a node.

mod assembly;
mod cancel;
mod error;
mod errors;
mod export;
mod find;
mod history;
mod lane;
mod message;
mod nodelist;
mod nodes;
mod output;
mod pages;
mod records;
mod replay;
mod row;
#[cfg(test)]
mod samples;
mod send;
mod targets;
mod totals;
mod view;
mod watch;
mod why;

pub use assembly::{Piece, Told};
pub use cancel::{Meant, Plan, Which, cancel, drafts as cancels, plan as plan_cancel};
pub use error::OperatorError;
pub use errors::{ErrorFilter, ErrorLog, StoredError, last_errors};
pub use export::{BadExport, Exported, Unsendable, read as read_export, write as write_export};
pub use find::{Call, find};
pub use history::{HistoryFilter, history};
pub use message::Message;
pub use nodelist::{NodeFilter, NodeList};
pub use nodes::{NodeFacts, StreamFacts, UnknownNode, node, nodes, stream_facts, unknown_nodes, waiting_for};
pub use output::Outputs;
pub use replay::{Again, MOST as MOST_REPLAYED, Repeat, Repeats, export, plan as plan_replay};
pub use row::{Behind, Row};
pub use send::{Delivery, Draft, SendError, SendOptions, Sent, outgoing, send, usual_kind};
pub use targets::{Reached, UnknownGroup, reach, select, unknown_groups, want_groups};
pub use totals::Totals;
pub use view::View;
pub use watch::Watch;
pub use why::{Step, StepKind, Wait, Why, why};
