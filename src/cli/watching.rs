//! Waiting for the messages of a call, and saying what happens to them meanwhile.
//!
//! Owns when a wait is over; where output is shown, not before all of it is. Ctrl-C detaches, and so,
//! quietly, does a reader of stdout that goes; nothing here ever cancels a message.

use super::error::CliError;
use super::exit::ExitCode;
use super::live::Live;
use super::onlooker::Onlooker;
use super::output::{age, contact_text, id_ref};
use super::progress::Counters;
use super::say;
use crate::model::id::MsgRef;
use crate::model::state::State;
use crate::operator::{Behind, Row, Totals, Watch};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// How long all that is open must be out of contact before it counts: an agent that was just restarted is back by then.
const REALLY_SILENT: Duration = Duration::from_millis(1500);

/// With more rows than this, steps on the way are not told one by one.
const TOLD_SINGLY: usize = 8;

/// After this a message that has not begun, for no reason that is seen from here, gets a word.
const NOT_BEGUN: Duration = Duration::from_secs(5);

/// How long the answers of many targets are collected before they are looked at.
const PACE: Duration = Duration::from_millis(50);

/// Why a wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Everything is terminal, or cannot be known any more.
    Settled,
    /// The time given is over.
    WaitOver,
    /// Only nodes out of contact are left.
    OnlySilent,
    /// The person has better things to do.
    Detached,
}

/// How long to wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Until when, at most.
    pub(super) wait: Option<Duration>,
    /// End also when only nodes out of contact are left.
    pub(super) leave_silent: bool,
}

/// Waits, and shows output meanwhile. Every row is handed to `settled` once, when it is done; with `live` the rows that it
/// wants, when all their output is shown.
pub(super) async fn wait_for(
    watch: &mut Watch,
    patience: Patience,
    mut live: Option<&mut Live>,
    mut settled: impl FnMut(&Row<'_>, &Watch) -> Result<(), CliError>,
) -> Result<End, CliError> {
    let began = Instant::now();
    let until = patience.wait.map(|wait| began + wait);
    let mut told = Told::default();
    let mut counters = Counters::new();
    let mut onlooker = Onlooker::new()?;
    let mut silent_since: Option<Instant> = None;
    loop {
        let (mut open, mut silent) = (0usize, true);
        for row in watch.view().rows() {
            let shown = match &mut live {
                Some(live) if !live.wants(&row) => continue,
                Some(live) => live.has_shown(&row, &mut counters)?,
                None => true,
            };
            if !row.is_settled() {
                open += 1;
                silent &= row.is_out_of_contact();
            } else if !shown {
                open += 1;
                silent = false;
            } else if told.done.insert((row.message.at, row.node.clone())) {
                counters.clear();
                settled(&row, watch)?;
            }
        }
        if open == 0 {
            return Ok(End::Settled);
        }
        told.tell_steps(watch, &mut counters).await;
        if began.elapsed() >= NOT_BEGUN {
            told.tell_not_begun(watch, &mut counters);
        }
        // Before the first reading nothing is known of the nodes, and nothing is said of them.
        if watch.read_at().is_some() {
            counters.draw(&Totals::of(watch.view().rows()));
        }
        silent_since = watch.read_at().filter(|_| silent).map(|read_at| silent_since.unwrap_or(read_at));
        let long_silent = silent_since.zip(watch.read_at()).is_some_and(|(since, read)| read - since >= REALLY_SILENT);
        if patience.leave_silent && long_silent {
            return Ok(End::OnlySilent);
        }
        tokio::select! {
            changed = watch.changed() => {
                changed?;
                // Each look goes over all rows: of many, the answers of a moment are looked at together.
                if told.done.len() + open > TOLD_SINGLY {
                    tokio::time::sleep(PACE).await;
                }
            }
            shown = show(live.as_deref_mut(), &mut counters) => shown?,
            () = at(until) => return Ok(End::WaitOver),
            enough = onlooker.has_seen_enough() => return enough.map(|()| End::Detached),
        }
    }
}

/// Shows output, until that of a node is all shown.
async fn show(live: Option<&mut Live>, counters: &mut Counters) -> Result<(), CliError> {
    match live {
        Some(live) => live.show(counters).await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What has been said already.
#[derive(Default)]
struct Told {
    done: HashSet<(MsgRef, String)>,
    behind: HashSet<(MsgRef, String, MsgRef)>,
    states: HashMap<(MsgRef, String), State>,
    not_begun: bool,
}

impl Told {
    async fn tell_steps(&mut self, watch: &Watch, counters: &mut Counters) {
        let mut waiting: Vec<(String, Behind)> = Vec::new();
        for (at, row) in watch.view().rows().enumerate().filter(|(_, row)| !row.is_settled()) {
            if at < TOLD_SINGLY && counters.are_shown() {
                let key = (row.message.at, row.node.clone());
                let new = self.states.insert(key, row.state) != Some(row.state);
                if new && row.state != State::Queued {
                    counters.clear();
                    say(&format!("{}: {}", row.node, row.state));
                }
            }
            if let Some(behind) = row.behind
                && self.behind.insert((row.message.at, row.node.clone(), behind.head))
            {
                waiting.push((row.node, behind));
            }
        }
        if !waiting.is_empty() {
            counters.clear();
        }
        for (node, behind) in waiting.iter().take(TOLD_SINGLY) {
            let since = watch.running_since(node, *behind).await.filter(|_| behind.running);
            let running = since.map(|at| format!(", running {}", age(at, watch.view().now()))).unwrap_or_default();
            say(&format!("{node}: behind {}{running}; use --lane", id_ref(behind.head)));
        }
        if waiting.len() > TOLD_SINGLY {
            say(&format!("and {} more wait behind others in their lanes; use --lane", waiting.len() - TOLD_SINGLY));
        }
    }

    /// Says once what tells why a message does not begin, where nothing else has been said of it: a hub that is away, a process
    /// that is stopped.
    fn tell_not_begun(&mut self, watch: &Watch, counters: &mut Counters) {
        let waits = |row: &Row<'_>| {
            let has_begun = row.is_settled() || !matches!(row.state, State::Queued | State::Delivered);
            !has_begun && row.behind.is_none() && !row.is_out_of_contact()
        };
        let waiting = watch.view().rows().find(waits).filter(|_| !self.not_begun);
        if let Some(row) = waiting {
            self.not_begun = true;
            counters.clear();
            say(&format!("{}: still {}; edgeward why {}", row.node, row.state, id_ref(row.message.at)));
        }
    }
}

/// How to come back to what is being watched.
pub(super) fn come_back(watch: &Watch) -> String {
    match watch.view().messages() {
        [one] => format!("edgeward wait {}", id_ref(one.at)),
        [one, ..] => format!("edgeward wait {}", one.id),
        [] => "edgeward status last".to_owned(),
    }
}

/// Says why the wait ended before everything was done.
pub(super) fn tell_end(end: End, watch: &Watch) {
    let back = come_back(watch);
    let open: Vec<Row<'_>> = watch.view().rows().filter(|row| !row.is_settled()).collect();
    tell_totals(watch);
    match end {
        End::Settled => {}
        End::Detached => say(&format!("detached; nothing is cancelled; {back}")),
        End::WaitOver => {
            let nodes = open.iter().take(TOLD_SINGLY).map(|row| format!("{} {}", row.node, row.state));
            let more = if open.len() > TOLD_SINGLY {
                format!(" and {} more", open.len() - TOLD_SINGLY)
            } else {
                String::new()
            };
            say(&format!("not finished: {}{more}; {back}", nodes.collect::<Vec<_>>().join(", ")));
        }
        End::OnlySilent => {
            for row in open.iter().take(TOLD_SINGLY) {
                say(&silent_text(row, watch, &back));
            }
            if open.len() > TOLD_SINGLY {
                say(&format!("and {} more nodes out of contact; {back}", open.len() - TOLD_SINGLY));
            }
        }
    }
}

/// Of several targets: how they add up, and, where some did not succeed, what shows which.
fn tell_totals(watch: &Watch) {
    let totals = Totals::of(watch.view().rows());
    let more = match watch.view().messages() {
        _ if totals.rows() < 2 => return,
        [one, ..] if totals.not_succeeded() > 0 => format!("; edgeward status {}", one.id),
        _ => String::new(),
    };
    say(&format!("{totals}{more}"));
}

/// `ship2 silent for 3 h; stored as 42, will run on return; edgeward wait 42`
fn silent_text(row: &Row<'_>, watch: &Watch, back: &str) -> String {
    let what = match row.state {
        State::Queued => format!("stored as {}, will run on return", id_ref(row.message.at)),
        State::Delivered => format!("{} is on the node and will run there", id_ref(row.message.at)),
        _ => format!("{} was {} when it was last heard", id_ref(row.message.at), row.state),
    };
    format!("{} {}; {what}; {back}", row.node, contact_text(row, watch.view().now()))
}

/// The exit code of what is known now.
pub(super) fn exit_code(watch: &Watch) -> ExitCode {
    ExitCode::of_several(watch.view().rows().map(|row| row.state))
}
