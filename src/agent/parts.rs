//! The agent's parts, and what becomes of each that fails.
//!
//! ```text
//! agent ── dispatcher (never: the lanes are in its memory)
//!       ├─ taking ── intake
//!       └─ serving ── outboxes ── acks, error events, messages, output, results
//!                  ├─ status, upkeep, inmsg.txt, error kernel, vitals
//!                  └─ connection (never: only a new start helps)
//! ```
//!
//! Owns that table. `taking` ends first when the agent leaves, `serving` last.

use super::dispatch::Handle;
use super::node::Node;
use super::supervisor::{Policy, Supervisor, Told};
use super::vitals::Host;
use super::{inmsg, intake, kernel, outbox, output, results, status, upkeep, vitals};
use crate::journal::Class;
use crate::model::error_event::{Code, Severity};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A group that fails as a whole is started anew, seldom.
const GROUP: Policy = Policy::Restart { times: 2, within: Duration::from_secs(600) };

/// What takes messages in.
pub(super) fn taking(node: &Arc<Node>, dispatcher: &Handle) -> Supervisor {
    let (taker, dispatcher) = (Arc::clone(node), dispatcher.clone());
    Supervisor::new(told(node), node.pulses.clone())
        .with("intake", Policy::USUAL, move |stop| intake::run(Arc::clone(&taker), dispatcher.clone(), stop))
}

/// All else but the dispatcher.
pub(super) fn serving(node: &Arc<Node>, dispatcher: &Handle, host: &Arc<dyn Host>) -> Supervisor {
    let part = || Arc::clone(node);
    let (all, beats, keeps, reads, decides, links) = (part(), part(), part(), part(), part(), part());
    let (teller, looker, asked, host) = (dispatcher.clone(), part(), dispatcher.clone(), Arc::clone(host));
    Supervisor::new(told(node), node.pulses.clone())
        .with("outboxes", GROUP, move |stop| group(outboxes(&all), stop))
        .with("error kernel", Policy::USUAL, move |stop| kernel::run(Arc::clone(&decides), stop))
        .with("status", Policy::USUAL, move |stop| status::run(Arc::clone(&beats), teller.clone(), stop))
        .with("upkeep", Policy::USUAL, move |stop| upkeep::run(Arc::clone(&keeps), stop))
        .with("inmsg.txt", Policy::USUAL, move |stop| inmsg::run(Arc::clone(&reads), stop))
        .with("connection to the broker", Policy::Never, move |stop| connection(Arc::clone(&links), stop))
        .with("vitals", Policy::USUAL, move |stop| {
            vitals::run(Arc::clone(&looker), asked.clone(), Arc::clone(&host), looker.pulses.clone(), stop)
        })
}

fn outboxes(node: &Arc<Node>) -> Supervisor {
    let outbox = |class: Class| {
        let node = Arc::clone(node);
        move |stop| outbox::run(Arc::clone(&node), class, stop)
    };
    let (results, commands) = (Arc::clone(node), Arc::clone(node));
    Supervisor::new(told(node), node.pulses.clone())
        .with("outbox of acks", Policy::USUAL, outbox(Class::Ack))
        .with("outbox of error events", Policy::USUAL, outbox(Class::Error))
        .with("outbox of messages", Policy::USUAL, outbox(Class::Message))
        .with("output of commands", Policy::USUAL, move |stop| output::run(Arc::clone(&commands), stop))
        .with("results", Policy::USUAL, move |stop| results::run(Arc::clone(&results), stop))
}

/// A supervisor as a part of another: it ends where one of its own cannot go on.
async fn group(supervisor: Supervisor, stop: CancellationToken) {
    if let Err(exceeded) = supervisor.run(stop).await {
        tracing::error!(part = exceeded.0, "it fails too often");
    }
}

/// Ends when the client has ended for good: nothing would come or go any more, only a new start helps.
async fn connection(node: Arc<Node>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = node.broker.closed() => tracing::error!("the connection to the broker has ended for good"),
    }
}

/// Each end of a part is an error event.
fn told(node: &Arc<Node>) -> Told {
    let node = Arc::clone(node);
    Arc::new(move |part, why| {
        let event = node.event(Severity::Error, Code::PartFailed, &format!("the agent's {part} {why}"));
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            if let Err(error) = node.tell(event).await {
                tracing::debug!(%error, "a part's failure is not told");
            }
        });
    })
}
