//! One try: the handler's run, and what it is given.
//!
//! Owns the timeout and the `running` record of a try that takes long. A handler that panics or hangs ends its own try and
//! nothing else. Never decides what follows from the end; that is the worker's.

use super::node::Node;
use super::output;
use super::supervisor::panic_text;
use super::worker::Begun;
use crate::exec::runner::RunName;
use crate::killpoint::{Point, here};
use crate::methods::{Context, Handler, KILL_GRACE, NodeFacts, ProcessLog, Work};
use crate::model::config::LeftRunning;
use crate::model::error_event::Code;
use crate::model::lanes::RowId;
use crate::model::process::Started;
use crate::model::record::Outcome;
use crate::model::state::State;
use crate::model::time::format_duration;
use futures::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A run that takes longer is told of as it runs.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// What a process may take beyond its timeout: TERM, grace, KILL, and the last output.
const KILL_MARGIN: Duration = Duration::from_secs(10);

/// A try that is over.
#[derive(Clone)]
pub(super) struct Done {
    pub(super) outcome: Outcome,
    /// Its output is published: it took long, or an ack does not hold it.
    pub(super) published: bool,
}

pub(super) async fn try_once(node: &Arc<Node>, row: RowId, begun: &Begun, stop: &CancellationToken) -> Done {
    let mut published = begun.adopted;
    let Some(handler) = node.registry.get(begun.message.subject.method.as_str()).cloned() else {
        let outcome = Outcome::ended(State::Refused, Code::UnknownMethod, "the method is gone");
        return Done { outcome, published };
    };
    let work = Work { message: begun.message.clone(), body: begun.body.clone(), attempt: begun.attempt };
    let context = context(node, row, begun, stop);
    let run = AssertUnwindSafe(limited(handler.as_ref(), &work, &context)).catch_unwind();
    tokio::pin!(run);
    let ended = tokio::select! {
        biased;
        ended = &mut run => ended,
        () = tokio::time::sleep(TELL_AFTER) => {
            tell_running(node, begun).await;
            published |= handler.outlives_agent() && output::begin(node, row, begun).await.is_ok();
            run.await
        }
    };
    let outcome = ended.unwrap_or_else(|panic| {
        let text = panic_text(panic.as_ref());
        Outcome::ended(State::Failed, Code::Panicked, format!("the handler panicked: {text}"))
    });
    published |= handler.outlives_agent() && !output::fits_inline(node, &outcome);
    Done { outcome, published }
}

async fn limited(handler: &dyn Handler, work: &Work, context: &Context) -> Outcome {
    let timeout = work.message.settings.timeout;
    let limit = if handler.outlives_agent() { timeout.saturating_add(KILL_GRACE + KILL_MARGIN) } else { timeout };
    match tokio::time::timeout(limit, handler.run(work, context)).await {
        Ok(outcome) => outcome,
        Err(_) => {
            Outcome::ended(State::TimedOut, Code::TimedOut, format!("not done after {}", format_duration(timeout)))
        }
    }
}

async fn tell_running(node: &Node, begun: &Begun) {
    let outcome = Outcome { state: State::Running, ..Outcome::succeeded() };
    let report = node.progress(&begun.message, begun.attempt, begun.times(None), &outcome);
    if let Err(error) = node.report(vec![report]).await {
        tracing::debug!(%error, "a running record is missing");
    }
}

fn context(node: &Arc<Node>, row: RowId, begun: &Begun, stop: &CancellationToken) -> Context {
    let facts: Arc<dyn NodeFacts> = Arc::clone(node) as _;
    let notes = ProcessNotes { node: Arc::clone(node), row };
    Context {
        node: node.name.clone(),
        log_dir: node.log_dir.clone(),
        facts,
        stop: stop.clone(),
        processes: Arc::new(notes),
        runner: node.runner.clone(),
        run: run_name(node, row, begun.attempt),
        output_bytes: node.config.agent.output_bytes,
        kill_left: node.config.agent.left_running == LeftRunning::Kill,
    }
}

/// The name of a try with the runner, and the mark of its processes: unique for ever.
pub(crate) fn run_name(node: &Node, row: RowId, attempt: u32) -> RunName {
    RunName::numbered(&node.journal.id().to_string(), row.0, attempt)
}

struct ProcessNotes {
    node: Arc<Node>,
    row: RowId,
}

impl ProcessLog for ProcessNotes {
    fn started(&self, process: Started) {
        here(Point::Spawned);
        let (node, row) = (Arc::clone(&self.node), self.row);
        tokio::spawn(async move {
            if let Err(error) = node.journal.note_process(row, process).await {
                tracing::debug!(%error, "process note");
            }
        });
    }
}
