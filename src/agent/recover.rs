//! What the last agent left behind: runs that were going on when it ended.
//!
//! A command has gone on without an agent: its try is taken up as it stands, running, over, or not begun yet, which its
//! runner knows ([`crate::exec::runner`]). After another boot that holds only where its end is in its file. All else was
//! broken off: what is left of it is ended; a command ends `interrupted`, an event runs again, unless its
//! `Fleet-On-Crash` says otherwise; what was to be stopped for a cancel ends `cancelled`. Runs that the journal does not
//! know are ended, and their files go.

use super::attempt::run_name;
use super::control;
use super::node::Node;
use super::output;
use super::reports::Times;
use super::worker::{Begun, broken_off, outlives_agent};
use crate::exec::runner::{RUN_VARIABLE, RunName};
use crate::exec::{Marker, boot_id, kill_leftover};
use crate::journal::{Ended, HeldRun, JournalError, Loaded};
use crate::methods::KILL_GRACE;
use crate::model::admit::Admitted;
use crate::model::header::OnCrash;
use crate::model::lanes::RowId;
use crate::model::state::State;
use crate::model::subject::LaneKey;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A try that is taken up where the last agent left it.
pub(crate) struct Adopted {
    pub(crate) lane: LaneKey,
    pub(crate) row: RowId,
    pub(crate) begun: Begun,
    /// Somebody has asked that it ends: by a cancel, or by a restart of its process.
    pub(crate) to_end: bool,
}

/// Takes up, ends or requeues every run that was going on. Call it before anything starts.
pub(crate) async fn run(node: &Arc<Node>) -> Result<Vec<Adopted>, JournalError> {
    let (mut adopted, mut kept) = (Vec::new(), BTreeSet::new());
    for held in node.journal.held_runs().await? {
        let loaded = node.journal.load(held.row).await?;
        node.clock.at_least(loaded.received_at);
        let name = run_name(node, held.row, held.attempt);
        match node.admit(&loaded.message) {
            Ok(message) if goes_on(node, &message, &held, &name) => {
                adopted.push(adopt(node, &held, message, loaded).await?);
                kept.insert(name);
            }
            _ => {
                end_processes(&held, &name).await;
                settle(node, &held, loaded).await?;
            }
        }
    }
    kept.extend(output::pick_up(node, |run| kept.contains(run)).await?);
    clear(node, &kept).await;
    Ok(adopted)
}

fn goes_on(node: &Node, message: &Admitted, held: &HeldRun, name: &RunName) -> bool {
    let same_boot = held.boot.is_some() && held.boot.as_deref() == boot_id();
    outlives_agent(node, message) && (same_boot || node.runner.has_ended(name))
}

async fn adopt(node: &Node, held: &HeldRun, message: Admitted, loaded: Loaded) -> Result<Adopted, JournalError> {
    let to_end = held.to_end || node.journal.cancelled_by(held.row, node.clock.at_last()).await?.is_some();
    tracing::info!(id = %message.id, attempt = held.attempt, "a command of a former agent is taken up");
    let begun = Begun {
        body: loaded.message.body,
        attempt: held.attempt,
        received_at: loaded.received_at,
        started_at: held.started_at.unwrap_or(loaded.received_at),
        adopted: true,
        message,
    };
    Ok(Adopted { lane: begun.message.subject.lane_key(), row: held.row, begun, to_end })
}

async fn end_processes(held: &HeldRun, name: &RunName) {
    let same_boot = held.boot.as_deref() == boot_id();
    let process = held.process.filter(|_| same_boot);
    let mark = Marker { key: RUN_VARIABLE, value: name.to_string() };
    let leftover = kill_leftover(process, &mark, KILL_GRACE).await;
    if !leftover.found.is_empty() {
        tracing::info!(row = held.row.0, processes = leftover.found.len(), "ended what a former agent had started");
    }
}

async fn settle(node: &Node, held: &HeldRun, loaded: Loaded) -> Result<(), JournalError> {
    let now = node.clock.now();
    let outcome = broken_off("the agent ended while it ran; it may have done part of its work");
    let outcome = control::if_asked_for(node, held.row, outcome).await?;
    match node.admit(&loaded.message) {
        Ok(message) if message.settings.on_crash == OnCrash::Rerun && outcome.state == State::Interrupted => {
            node.journal.try_again(held.row, Vec::new(), node.clock.at_last()).await.map(drop)
        }
        Ok(message) => {
            let times = Times { received: loaded.received_at, started: held.started_at, finished: Some(now) };
            let reports = node.terminal(&message, held.attempt, times, &outcome);
            node.journal.finish(held.row, Ended { state: outcome.state, reports }, now).await.map(drop)
        }
        // The rules have changed since it began; what it did is not known all the same.
        Err(rejected) => {
            let reports = node.refusal(&rejected, now);
            node.journal.finish(held.row, Ended { state: State::Refused, reports }, now).await.map(drop)
        }
    }
}

/// Ends what the journal does not know, and takes files away that nobody needs.
async fn clear(node: &Node, kept: &BTreeSet<RunName>) {
    let known = match node.runner.known().await {
        Ok(known) => known,
        Err(error) => return tracing::warn!(%error, "files of runs cannot be looked at"),
    };
    for name in known.difference(kept) {
        if let Err(error) = node.runner.discard(name).await {
            tracing::warn!(%name, %error, "a run that nobody knows could not be ended");
        }
    }
}
