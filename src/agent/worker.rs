//! A worker: one try of one message, from its start in the journal to its end there.
//!
//! Owns the decision between finished and tried again; for a failed try the error kernel is asked first. Never publishes:
//! what is to be said goes into the journal with the step that it is about.

use super::attempt::{Done, run_name, try_once};
use super::control;
use super::dispatch::{Ends, Event};
use super::kernel;
use super::node::Node;
use super::output;
use super::reports::Times;
use crate::journal::{Decision, Ended, JournalError, Loaded, Verdict};
use crate::killpoint::{Point, here};
use crate::model::admit::Admitted;
use crate::model::directive::Ruling;
use crate::model::error_event::{Code, Directive};
use crate::model::header::OnCrash;
use crate::model::jitter::Backoff;
use crate::model::lanes::RowId;
use crate::model::record::{Outcome, RecordError};
use crate::model::state::State;
use crate::model::subject::LaneKey;
use crate::model::time::Timestamp;
use bytes::Bytes;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a message waits that may be late or not, as long as the broker's time is a guess.
const CLOCK_WAIT: Duration = Duration::from_secs(1);

/// How long a lane waits whose head's step could not be kept.
pub(crate) const JOURNAL_WAIT: Duration = Duration::from_secs(5);

/// A message whose try has begun; durable.
#[derive(Debug, Clone)]
pub(crate) struct Begun {
    pub(crate) message: Admitted,
    pub(crate) body: Bytes,
    pub(crate) attempt: u32,
    pub(crate) received_at: Timestamp,
    pub(crate) started_at: Timestamp,
    /// A former agent began it.
    pub(crate) adopted: bool,
}

/// How a worker ended.
pub(crate) enum End {
    /// The message is terminal.
    Over { next: Option<RowId> },
    /// Another try follows.
    TryAgain { wait: Duration },
    /// The message was over already when its turn came: cancelled.
    Gone,
    /// The agent goes; what was begun goes on without it.
    Left,
}

impl End {
    /// As the dispatcher is told.
    pub(crate) fn into_event(self, lane: LaneKey, row: RowId) -> Option<Event> {
        match self {
            End::Over { next } => Some(Event::Over { lane, row, next }),
            End::TryAgain { wait } => Some(Event::TryAgain { lane, row, wait }),
            End::Gone => Some(Event::Gone { lane, row }),
            End::Left => None,
        }
    }
}

/// What ends a worker early.
pub(crate) struct Stops {
    /// Ends the run: a cancel, or the agent leaving.
    pub(crate) stop: CancellationToken,
    /// The agent leaves.
    pub(crate) ends: Ends,
    /// Set where the end of the try changed a process.
    pub(crate) changed: AtomicBool,
}

/// What comes of a message that is over as it is taken, with its record: one that neither waits nor changes anything.
/// One that fails or panics over it runs, where that has its consequences.
pub(crate) fn at_once(node: &Node, message: &Admitted, now: Timestamp) -> Option<Ended> {
    let handler = node.registry.get(message.subject.method.as_str())?;
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| handler.at_once(message, &node.name, node))).ok()??;
    if outcome.state != State::Succeeded {
        return None;
    }
    let times = Times { received: now, started: Some(now), finished: Some(now) };
    Some(Ended { state: outcome.state, reports: node.terminal(message, 1, times, &outcome) })
}

/// Works on the head of a lane. `begun` where its try began when it was taken. `stop` ends the try early: a cancel, or
/// the agent stopping; the journal knows which.
pub(crate) async fn work(node: Arc<Node>, lane: &LaneKey, row: RowId, begun: Option<Begun>, stops: &Stops) -> End {
    let begun = match begun {
        Some(begun) => begun,
        None => match begin(&node, row).await {
            Ok(Ok(begun)) => begun,
            Ok(Err(end)) => return end,
            Err(error) => return lost(lane, row, &error),
        },
    };
    here(Point::Started);
    let outlives = outlives_agent(&node, &begun.message);
    let done = tokio::select! {
        biased;
        done = try_once(&node, row, &begun, &stops.stop) => done,
        () = stops.ends.left.cancelled(), if outlives => return End::Left,
    };
    here(Point::Ended);
    end_try(&node, row, &begun, done, stops).await.unwrap_or_else(|error| lost(lane, row, &error))
}

/// Keeps the end of a try, and follows what the error kernel says about it.
pub(super) async fn end_try(
    node: &Arc<Node>,
    row: RowId,
    begun: &Begun,
    done: Done,
    stops: &Stops,
) -> Result<End, JournalError> {
    let published = done.published;
    // Asked once, however often the journal has to be.
    let ruling = kernel::of_try(node, &begun.message, &done.outcome, &stops.ends.cut).await;
    let end = settle_at_last(node, row, begun, (done, ruling.as_ref()), &stops.ends.cut).await?;
    if outlives_agent(node, &begun.message) {
        output::settled(node, &run_name(node, row, begun.attempt), published).await;
    }
    if let Some(ruling) = ruling.filter(|ruling| ruling.directive >= Directive::Restart) {
        here(Point::Directed);
        stops.changed.store(true, Ordering::Relaxed);
        node.follow(&ruling);
    }
    Ok(end)
}

/// Settles, again and again where the journal cannot be written: what has run must not be forgotten, nor run twice.
async fn settle_at_last(
    node: &Node,
    row: RowId,
    begun: &Begun,
    ended: (Done, Option<&Ruling>),
    cut: &CancellationToken,
) -> Result<End, JournalError> {
    let (done, ruling) = ended;
    let mut backoff = journal_backoff();
    loop {
        match settle(node, row, begun, done.clone(), ruling).await {
            Err(error) if error.may_heal() && !cut.is_cancelled() => wait(&mut backoff, cut).await,
            settled => return settled,
        }
    }
}

/// How patiently the journal is asked again.
pub(super) fn journal_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
}

/// Waits before the journal is asked once more.
pub(super) async fn wait(backoff: &mut Backoff, cut: &CancellationToken) {
    tokio::select! {
        biased;
        () = cut.cancelled() => {}
        () = tokio::time::sleep(backoff.next_wait()) => {}
    }
}

/// The journal could not be written: the lane waits and its head is taken up again.
pub(super) fn lost(lane: &LaneKey, row: RowId, error: &JournalError) -> End {
    // What the disk does not take the journal tells itself.
    if error.may_heal() {
        tracing::debug!(%lane, row = row.0, %error, "not begun");
    } else {
        tracing::error!(%lane, row = row.0, %error, "the journal does not go on with a message; trying again");
    }
    End::TryAgain { wait: JOURNAL_WAIT }
}

/// Starts a try, or ends the message where its time has passed or it is not allowed any more.
async fn begin(node: &Arc<Node>, row: RowId) -> Result<Result<Begun, End>, JournalError> {
    here(Point::Turn);
    let now = node.clock.now();
    let judge_node = Arc::clone(node);
    let judge = move |loaded: &Loaded| judge(&judge_node, loaded, now);
    let decision = node.journal.start(row, now, judge).await?;
    begun(node, row, decision, now)
}

/// The try that has begun, or what there is instead.
pub(super) fn begun(
    node: &Node,
    row: RowId,
    decision: Decision,
    now: Timestamp,
) -> Result<Result<Begun, End>, JournalError> {
    match decision {
        Decision::Over { next } => {
            node.wakes.ring(crate::journal::Class::Ack);
            node.wakes.ring(crate::journal::Class::Error);
            Ok(Err(End::Over { next }))
        }
        Decision::Later => Ok(Err(End::TryAgain { wait: CLOCK_WAIT })),
        Decision::Gone => Ok(Err(End::Gone)),
        Decision::Started(loaded) => match node.admit(&loaded.message) {
            Ok(message) => Ok(Ok(Begun {
                message,
                body: loaded.message.body,
                attempt: loaded.attempt,
                received_at: loaded.received_at,
                started_at: now,
                adopted: false,
            })),
            // It was admitted a moment ago by the same rules.
            Err(_) => Err(JournalError::NoRow(row.0)),
        },
    }
}

pub(super) fn judge(node: &Node, loaded: &Loaded, now: Timestamp) -> Verdict {
    let times = Times { received: loaded.received_at, started: None, finished: Some(now) };
    match node.admit(&loaded.message) {
        Err(rejected) => Verdict::Over(Ended { state: State::Refused, reports: node.refusal(&rejected, now) }),
        // A message that has begun once is not late: its start-by was about the beginning.
        Ok(_) if loaded.attempt > 0 => Verdict::Start,
        Ok(admitted) => match node.clock.is_past(admitted.settings.start_by) {
            Some(false) => Verdict::Start,
            None => Verdict::Later,
            Some(true) => {
                let outcome = expired(&admitted, now);
                Verdict::Over(Ended { state: outcome.state, reports: node.terminal(&admitted, 0, times, &outcome) })
            }
        },
    }
}

/// The outcome of a message whose start-by has passed.
pub(crate) fn overdue(message: &Admitted, now: Timestamp) -> Option<Outcome> {
    (now > message.settings.start_by).then(|| expired(message, now))
}

fn expired(message: &Admitted, now: Timestamp) -> Outcome {
    let start_by = message.settings.start_by;
    Outcome::ended(State::Expired, Code::Expired, format!("it was to begin by {start_by}; it is {now}"))
}

/// True where what a message begins goes on without the agent.
pub(crate) fn outlives_agent(node: &Node, message: &Admitted) -> bool {
    node.registry.get(message.subject.method.as_str()).is_some_and(|handler| handler.outlives_agent())
}

/// Keeps the end of a try: terminal, or another one follows.
async fn settle(
    node: &Node,
    row: RowId,
    begun: &Begun,
    done: Done,
    ruling: Option<&Ruling>,
) -> Result<End, JournalError> {
    let Done { outcome, published } = done;
    let outcome = if published { output::end(node, row, begun, outcome).await? } else { outcome };
    // A try that ended by itself keeps its own truth, also where a cancel was on its way.
    let mut outcome = match outcome.state {
        State::Interrupted => control::if_asked_for(node, row, outcome).await?,
        _ => outcome,
    };
    let now = node.clock.now();
    let (message, attempt) = (&begun.message, begun.attempt);
    let settings = &message.settings;
    let failed = matches!(outcome.state, State::Failed | State::TimedOut);
    let cut_short = outcome.state == State::Interrupted && settings.on_crash == OnCrash::Rerun;
    if cut_short || (failed && may_try_again(node, row, begun, ruling).await?) {
        let retrying = Outcome { state: State::Retrying, ..outcome.clone() };
        let mut reports = vec![node.progress(message, attempt, begun.times(Some(now)), &retrying)];
        reports.extend(node.failure(message, attempt, &outcome, ruling));
        if node.journal.try_again(row, reports, node.clock.at_last()).await? {
            here(Point::TryAgain);
            node.wakes.ring(crate::journal::Class::Ack);
            node.wakes.ring(crate::journal::Class::Error);
            return Ok(End::TryAgain { wait: jittered(settings.wait_after(attempt)) });
        }
        outcome = control::last_try(node, row, outcome).await?;
    }
    let reports = node.terminal_with(message, attempt, begun.times(Some(now)), &outcome, ruling);
    let ended = Ended { state: outcome.state, reports };
    let next = node.journal.finish(row, ended, now).await?;
    here(Point::Finished);
    node.wakes.ring(crate::journal::Class::Ack);
    if outcome.error.is_some() {
        node.wakes.ring(crate::journal::Class::Error);
    }
    Ok(End::Over { next })
}

/// Whether a failed try has another one after it: by its message, or by directives, each of which adds one.
async fn may_try_again(node: &Node, row: RowId, begun: &Begun, ruling: Option<&Ruling>) -> Result<bool, JournalError> {
    let retries = begun.message.settings.retries;
    if retries.allow(begun.attempt) {
        return Ok(true);
    }
    let by_rule = u32::from(ruling.is_some_and(|ruling| ruling.directive == Directive::Retry));
    let added = node.journal.granted(row).await?.saturating_add(by_rule);
    Ok(added > 0 && retries.allow(begun.attempt.saturating_sub(added)))
}

/// Between half and all of `wait`.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + crate::model::jitter::fraction() / 2.0)
}

impl Begun {
    pub(super) fn times(&self, finished: Option<Timestamp>) -> Times {
        Times { received: self.received_at, started: Some(self.started_at), finished }
    }
}

/// The outcome of a run that the last agent left behind.
pub(crate) fn broken_off(why: &str) -> Outcome {
    let error = RecordError::new(Code::Interrupted, why);
    Outcome { state: State::Interrupted, error: Some(error), ..Outcome::succeeded() }
}
