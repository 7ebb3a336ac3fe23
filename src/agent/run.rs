//! A run of events: those that wait in one lane are begun in one commit, tried one after the other, and ended in one.
//!
//! Events run again after a crash, unless their message says otherwise; so nothing is lost where many of them share a
//! commit, and a backlog is worked off at the speed of its handler instead of that of the disk. As a worker sees it:
//!
//! ```text
//! begun ─ try the first one that is left ─┬ succeeded, more are left ──→ through; try the next one
//!                                         ├ succeeded, none is left ───→ close: all through; over
//!                                         └ anything else, or slow ────→ close: those before it through, those behind it
//!                                                                        given back; it ends as a message alone does
//! ```
//!
//! A message that is given back was not tried: it is queued as before, or over where it was cancelled meanwhile. So a
//! failing event holds the ones behind it, none of which has run, and a slow one keeps nobody's record back.
//!
//! Owns when a run ends. What becomes of a single message is the worker's.

use super::attempt;
use super::node::Node;
use super::worker::{self, Begun, End, Stops};
use crate::journal::{Class, Ended, JournalError, Loaded, RunEnd, Words};
use crate::killpoint::{Point, here};
use crate::model::header::OnCrash;
use crate::model::lanes::RowId;
use crate::model::message::Kind;
use crate::model::state::State;
use crate::model::subject::LaneKey;
use crate::model::time::Timestamp;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Messages behind the head that may begin with it.
const BEHIND: usize = 127;

/// How long those that are through wait for the others of their run.
const SLOW: Duration = Duration::from_millis(50);

/// What a worker did in a lane.
pub(crate) struct Worked {
    /// So many messages are over before the one that it worked on last.
    pub(crate) passed: u64,
    /// That one.
    pub(crate) row: RowId,
    /// How it ended.
    pub(crate) end: End,
}

/// Works on the head of a lane, and on those behind it where they may share its commits.
pub(crate) async fn work(node: Arc<Node>, lane: &LaneKey, row: RowId, begun: Option<Begun>, stops: &Stops) -> Worked {
    let alone = |end| Worked { passed: 0, row, end };
    if begun.is_some() || lane.kind != Kind::Event {
        return alone(worker::work(node, lane, row, begun, stops).await);
    }
    match begin(&node, row).await {
        Ok(Ok((head, behind))) if behind.is_empty() => alone(worker::work(node, lane, row, Some(head), stops).await),
        Ok(Ok((head, mut run))) => {
            here(Point::Started);
            run.push_front((row, head));
            match go(&node, run, stops).await {
                Ok(worked) => worked,
                Err(error) => alone(worker::lost(lane, row, &error)),
            }
        }
        Ok(Err(end)) => alone(end),
        Err(error) => alone(worker::lost(lane, row, &error)),
    }
}

type Run = VecDeque<(RowId, Begun)>;

async fn begin(node: &Arc<Node>, row: RowId) -> Result<Result<(Begun, Run), End>, JournalError> {
    here(Point::Turn);
    let now = node.clock.now();
    let (judging, following) = (Arc::clone(node), Arc::clone(node));
    let judge = move |loaded: &Loaded| worker::judge(&judging, loaded, now);
    let follows = move |loaded: &Loaded| follows(&following, loaded, now);
    let started = node.journal.start_run(row, now, BEHIND, judge, follows).await?;
    Ok(worker::begun(node, row, started.head, now)?.map(|head| (head, started.behind.into())))
}

/// A message as it begins in a run; `None` where it is not to begin now, or a crash would not have it run again.
fn follows(node: &Node, loaded: &Loaded, now: Timestamp) -> Option<Begun> {
    let message = node.admit(&loaded.message).ok()?;
    let is_in_time = node.clock.is_past(message.settings.start_by) == Some(false);
    (is_in_time && message.settings.on_crash == OnCrash::Rerun).then(|| Begun {
        message,
        body: loaded.message.body.clone(),
        attempt: 1,
        received_at: loaded.received_at,
        started_at: now,
        adopted: false,
    })
}

async fn go(node: &Arc<Node>, mut run: Run, stops: &Stops) -> Result<Worked, JournalError> {
    let slow = Instant::now() + SLOW;
    let mut through: Vec<(RowId, Ended)> = Vec::new();
    while let Some((row, mut begun)) = run.pop_front() {
        begun.started_at = node.clock.now();
        let trying = attempt::try_once(node, row, &begun, &stops.stop);
        tokio::pin!(trying);
        let done = tokio::select! {
            biased;
            done = &mut trying => Some(done),
            () = tokio::time::sleep_until(slow) => None,
        };
        if let Some(outcome) = done.as_ref().map(|done| &done.outcome).filter(|o| o.state == State::Succeeded) {
            here(Point::Ended);
            let reports = node.terminal(&begun.message, begun.attempt, begun.times(Some(node.clock.now())), outcome);
            through.push((row, Ended { state: outcome.state, reports }));
            if !run.is_empty() {
                continue;
            }
            let end = close(node, through, run, &stops.ends.cut).await?;
            return Ok(Worked { passed: end.over - 1, row, end: End::Over { next: end.next } });
        }
        let passed = close(node, through, run, &stops.ends.cut).await?.over;
        let done = match done {
            Some(done) => done,
            None => trying.await,
        };
        here(Point::Ended);
        let end = worker::end_try(node, row, &begun, done, stops).await?;
        return Ok(Worked { passed, row, end });
    }
    // A run has a head.
    Err(JournalError::NoRow(0))
}

/// Keeps the end of those that are through, and gives back the rest; again and again where the journal cannot be written.
async fn close(
    node: &Arc<Node>,
    through: Vec<(RowId, Ended)>,
    rest: Run,
    cut: &CancellationToken,
) -> Result<RunEnd, JournalError> {
    let through: Arc<[(RowId, Ended)]> = through.into();
    let back: Arc<[RowId]> = rest.into_iter().map(|(row, _)| row).collect();
    let mut backoff = worker::journal_backoff();
    loop {
        let words: Arc<dyn Words> = Arc::clone(node) as _;
        match node.journal.end_run(Arc::clone(&through), Arc::clone(&back), node.clock.now(), words).await {
            Err(error) if error.may_heal() && !cut.is_cancelled() => worker::wait(&mut backoff, cut).await,
            Err(error) => return Err(error),
            Ok(end) => {
                here(Point::Finished);
                node.wakes.ring(Class::Ack);
                return Ok(end);
            }
        }
    }
}
