//! The groups that the node is a member of, as the journal keeps them.
//!
//! Owns one value that both streams change, each from a session of its own: what is new is merged into what is kept, in the
//! transaction that keeps it, so that no change undoes another in whatever order they come. Decides no membership; that is
//! `model::groups`.

use super::error::JournalError;
use super::meta::{self, Key};
use super::open::Journal;
use crate::model::groups::Intervals;
use crate::model::message::StreamKind;
use crate::model::node::{PerStream, Spec};
use rusqlite::Connection;

impl Journal {
    /// What is kept.
    pub async fn members(&self) -> Result<PerStream<Intervals>, JournalError> {
        self.writer.read(|connection| kept(connection)).await
    }

    /// Takes in what `spec` says; durable on return.
    pub async fn learn_members(&self, spec: Spec) -> Result<(), JournalError> {
        let learn = move |members: &mut PerStream<Intervals>| {
            StreamKind::ALL.into_iter().for_each(|stream| members.get_mut(stream).learn(&spec, stream));
        };
        self.writer.call(move |connection| change(connection, learn)).await
    }
}

/// Changes what is kept.
pub(super) fn change(
    connection: &Connection,
    change: impl FnOnce(&mut PerStream<Intervals>),
) -> Result<(), JournalError> {
    let mut members = kept(connection)?;
    change(&mut members);
    // These are names and numbers: they always have a text.
    meta::put(connection, Key::Members, &serde_json::to_string(&members).unwrap_or_default())
}

fn kept(connection: &Connection) -> Result<PerStream<Intervals>, JournalError> {
    let Some(text) = meta::get(connection, Key::Members)? else { return Ok(PerStream::default()) };
    Ok(serde_json::from_str(&text).unwrap_or_else(|error| {
        tracing::error!(%error, "the memberships kept cannot be read; the hub's word is taken");
        PerStream::default()
    }))
}
