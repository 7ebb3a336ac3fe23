//! The error kernel at work: it answers what is to be done about a failure, and tells what was counted.
//!
//! ```text
//! worker: a try failed → decide → (a second at most; nobody answers: continue) → the event with its directive, the end of
//!         the try and what the directive changes are one commit → the dispatcher looks at the processes
//! part:   something of the agent's own failed → the same, without a process
//! ```
//!
//! The rules and the counting are `model::directive`; what a directive changes is kept by the journal with the event.
//! Owns the waiting. Never stops anything itself.

use super::node::Node;
use crate::journal::{Class, JournalError, Report};
use crate::model::admit::Admitted;
use crate::model::directive::{Failure, Kernel, Ruling};
use crate::model::error_event::{Code, Directive, ErrorEvent, Severity};
use crate::model::record::Outcome;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Failures that may wait for their directive; who has another waits.
const QUEUE: usize = 64;

/// How long a directive is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often it is looked for failures that were counted and are to be told.
const LOOK: Duration = Duration::from_secs(5);

struct Ask {
    failure: Failure,
    answer: oneshot::Sender<Ruling>,
}

/// The way to the kernel.
pub(crate) struct ErrorKernel {
    asks: mpsc::Sender<Ask>,
    /// What it is asked: here, so that a kernel that is started again goes on with it.
    inbox: Mutex<mpsc::Receiver<Ask>>,
}

impl Default for ErrorKernel {
    fn default() -> ErrorKernel {
        let (asks, inbox) = mpsc::channel(QUEUE);
        ErrorKernel { asks, inbox: Mutex::new(inbox) }
    }
}

impl ErrorKernel {
    /// What is to be done; `continue` where the kernel does not say in time.
    async fn decide(&self, failure: Failure) -> Ruling {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.asks.send(Ask { failure, answer }).await.ok()?;
            answered.await.ok()
        };
        timeout(PATIENCE, asked).await.ok().flatten().unwrap_or_else(Ruling::go_on)
    }
}

/// Answers until `stop`.
pub(crate) async fn run(node: Arc<Node>, stop: CancellationToken) {
    let mut inbox = node.kernel.inbox.lock().await;
    let agent = &node.config.agent;
    let (mut kernel, since) = (Kernel::new(&agent.errors, agent.escalation.clone()), Instant::now());
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(ask) = inbox.recv() => {
                let ruling = kernel.next(&ask.failure, since.elapsed());
                // Who asked may have stopped waiting.
                drop(ask.answer.send(ruling));
            }
            _ = looks.tick() => match node.journal.tell_repeats(node.clock.now()).await {
                Ok(true) => node.wakes.ring(Class::Error),
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "what was counted is told later"),
            },
        }
    }
}

/// Tells what is counted until now, its window being over or not: the agent leaves.
pub(crate) async fn tell_counted(node: &Node) {
    if let Err(error) = node.journal.tell_repeats(node.clock.now().plus(Duration::from_secs(3600))).await {
        tracing::debug!(%error, "what was counted is told at the next start");
    }
}

/// What is to be done about a try: nothing where it did not fail, or where the agent leaves.
pub(crate) async fn of_try(
    node: &Node,
    message: &Admitted,
    outcome: &Outcome,
    cut: &CancellationToken,
) -> Option<Ruling> {
    let (code, severity) = super::reports::failure_kind(outcome).filter(|(code, _)| code.is_of_a_try())?;
    let failure = Failure { code, severity, process: Some(message.subject.method.to_string()) };
    tokio::select! {
        biased;
        () = cut.cancelled() => None,
        ruling = node.kernel.decide(failure) => Some(ruling),
    }
}

impl Node {
    /// Tells a failure of the agent's own; durable on return.
    pub(crate) async fn tell(&self, event: ErrorEvent) -> Result<(), JournalError> {
        let failure = Failure { code: event.code, severity: event.severity, process: None };
        let ruling = self.kernel.decide(failure).await;
        self.report(self.decided(event, &ruling)).await?;
        self.follow(&ruling);
        Ok(())
    }

    /// A failure with its directive, and what is to be said about a directive that takes something away.
    pub(crate) fn decided(&self, event: ErrorEvent, ruling: &Ruling) -> Vec<Report> {
        let why = ruling.why.as_deref();
        let consequence = self.consequence(&event, ruling.directive, why.unwrap_or(&event.message));
        let message = match why {
            Some(why) => format!("{} ({why}: {})", event.message, ruling.directive.as_str()),
            None => event.message.clone(),
        };
        let event = ErrorEvent { message, directive: Some(ruling.directive), ..event };
        [self.error_report(&event)].into_iter().chain(consequence).collect()
    }

    fn consequence(&self, event: &ErrorEvent, directive: Directive, why: &str) -> Option<Report> {
        let process = event.process.as_deref().unwrap_or_default();
        match directive {
            Directive::Stop => {
                let text = format!(
                    "`{process}` is stopped ({why}); its messages stay queued; `edgeward ps start {} {process}` starts it",
                    self.name
                );
                let stopped = self.event(Severity::Critical, Code::ProcessStopped, &text);
                Some(self.error_report(&ErrorEvent { process: event.process.clone(), ..stopped }))
            }
            Directive::Shutdown => Some(self.farewell(why)),
            _ => None,
        }
    }

    /// What is said when the agent is to leave for good.
    pub(crate) fn farewell(&self, why: &str) -> Report {
        let text = format!("the agent ends and is not started again until somebody does ({why})");
        self.error_report(&self.event(Severity::Critical, Code::Shutdown, &text))
    }

    /// Does what is to be done at once, after the ruling is kept.
    pub(crate) fn follow(&self, ruling: &Ruling) {
        if ruling.directive == Directive::Shutdown {
            self.shutdown.cancel();
        }
    }
}
