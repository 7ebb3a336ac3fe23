//! What the last agent left behind: runs that were going on when it ended (DESIGN §5).
//!
//! Until commands run outside the agent, such a run is ended here: its processes are killed, known by what the journal
//! noted and by the marker in their environment. A command ends `interrupted`, an event runs again, unless its
//! `Fleet-On-Crash` says otherwise; what was to be stopped for a cancel ends `cancelled`.

use super::control;
use super::node::Node;
use super::reports::Times;
use super::worker::{broken_off, run_marker};
use crate::exec::{Marker, boot_id, kill_leftover};
use crate::journal::{Ended, HeldRun, JournalError};
use crate::methods::{KILL_GRACE, RUN_VARIABLE};
use crate::model::header::OnCrash;
use crate::model::state::State;

/// Ends or requeues every run that was going on. Call it before anything starts.
pub(crate) async fn run(node: &Node) -> Result<(), JournalError> {
    for held in node.journal.held_runs().await? {
        end_processes(node, &held).await;
        settle(node, &held).await?;
    }
    Ok(())
}

async fn end_processes(node: &Node, held: &HeldRun) {
    let marker = run_marker(node, held.row, held.attempt);
    let same_boot = held.boot.as_deref() == boot_id();
    let process = held.process.filter(|_| same_boot);
    let leftover = kill_leftover(process, Marker { key: RUN_VARIABLE, value: &marker }, KILL_GRACE).await;
    if !leftover.found.is_empty() {
        tracing::info!(row = held.row.0, processes = leftover.found.len(), "ended what a former agent had started");
    }
}

async fn settle(node: &Node, held: &HeldRun) -> Result<(), JournalError> {
    let loaded = node.journal.load(held.row).await?;
    node.clock.at_least(loaded.received_at);
    let now = node.clock.now();
    let outcome = broken_off("the agent ended while it ran; it may have done part of its work");
    let outcome = control::if_cancelled(node, held.row, outcome).await?;
    match node.admit(&loaded.message) {
        Ok(message) if message.settings.on_crash == OnCrash::Rerun && outcome.state == State::Interrupted => {
            node.journal.try_again(held.row, Vec::new(), now).await.map(drop)
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
