//! Intake: from the link's coming up to messages in the journal.
//!
//! One task for the link (version, first contact) and one session at a time per stream. A session's batch goes to the
//! dispatcher, which makes it durable; only then the broker hears of it.
//!
//! ```text
//! link up → version → spec names us → sessions: open → [batch → durable → ack]* → broken → backoff → open …
//! ```
//!
//! Owns catch-up: no command stored before a session starts to run until the session has reached its end.
//! It holds from before the session is asked for, and at the agent's start until it is clear that there is no link.

use super::clock::BootClock;
use super::contact;
use super::dispatch::{self, Event, Handle};
use super::node::Node;
use super::places::Places;
use crate::broker::{Batch, BrokerError, Session, SessionError, Start};
use crate::exec::boot_id;
use crate::journal::{JournalError, Key};
use crate::killpoint::{Point, here};
use crate::model::id::StreamSeq;
use crate::model::jitter::Backoff;
use crate::model::message::{StoredMessage, StreamKind};
use crate::model::node::Spec;
use crate::model::time::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long commands may be held back for a session to catch up: a cancel overtakes the queue, unless the backlog takes
/// longer than this to cross the link.
const CATCH_UP: Duration = Duration::from_secs(10);

/// How long commands wait at the agent's start for the link: a cancel that was sent while the agent was away finds those
/// queued on the node, too. Without a link by then the node goes on with what it has.
const LINK_WAIT: Duration = Duration::from_secs(1);

/// How long a session's consumer may take to answer at first: one whose server is gone never does, and the hub makes
/// another one when asked.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same on a slow link: what was too short grows up to this.
const MOST_PATIENCE: Duration = Duration::from_secs(8);

/// How long the hub is waited for until the log says so.
const HUB_WAIT: Duration = Duration::from_secs(5);

/// Takes messages until `stop`.
pub(crate) async fn run(node: Arc<Node>, dispatcher: Handle, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = take_both(&node, &dispatcher) => {}
    }
}

/// Takes while this journal is the node and this run holds its name; where it is another's, asks in again.
async fn take_both(node: &Arc<Node>, dispatcher: &Handle) {
    loop {
        let spec = first_spec(node, dispatcher).await;
        if let Some(seconds) = spec.retention_s {
            node.set_retention(Duration::from_secs(seconds));
        }
        node.wakes.status.notify_one();
        node.lease.held().await;
        tracing::info!(node = %node.name, "in contact with the hub");
        let commands = take(node, dispatcher, StreamKind::Commands, spec.start.commands);
        let events = async {
            let start = events_start(node, spec.start.events).await;
            take(node, dispatcher, StreamKind::Events, Some(start)).await;
        };
        tokio::select! {
            ((), ()) = async { tokio::join!(commands, events) } => {}
            () = node.lease.lost() => {}
        }
    }
}

/// First contact; commands, which the dispatcher holds from its start, are let go where that takes long.
async fn first_spec(node: &Node, dispatcher: &Handle) -> Spec {
    let contact = first_contact(node);
    tokio::pin!(contact);
    if let Ok(spec) = tokio::time::timeout(LINK_WAIT, &mut contact).await {
        return spec;
    }
    dispatcher.tell(Event::Hold(false)).await;
    let mut is_told = false;
    loop {
        if let Ok(spec) = tokio::time::timeout(HUB_WAIT, &mut contact).await {
            return spec;
        }
        // A link that is down is told of where it is kept.
        if !is_told && node.broker.link().borrow().up {
            tracing::warn!(node = %node.name, "still waiting for the hub to take this node in; is one running?");
            is_told = true;
        }
    }
}

async fn first_contact(node: &Node) -> Spec {
    let mut backoff = session_backoff();
    let mut told = Told::default();
    loop {
        let contact = async {
            node.broker.wait_up().await?;
            node.broker.check_version()?;
            contact::admitted(node).await
        };
        match contact.await {
            Ok(spec) => return spec,
            Err(error) => {
                if error.is_final() && told.is_new(&error) {
                    tracing::error!(%error, "no contact");
                } else {
                    tracing::debug!(%error, "no contact yet");
                }
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }
}

/// Waits until the hub has said where this node's events begin: in `spec`, or by its control message.
async fn events_start(node: &Node, in_spec: Option<StreamSeq>) -> StreamSeq {
    if let Some(start) = in_spec {
        return start;
    }
    loop {
        match dispatch::events_start(node).await {
            Ok(Some(start)) => return StreamSeq(start),
            Ok(None) => node.wakes.events.notified().await,
            Err(error) => {
                tracing::error!(%error, "journal");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Sessions on one stream, for ever.
async fn take(node: &Arc<Node>, dispatcher: &Handle, stream: StreamKind, start: Option<StreamSeq>) {
    let Some(start) = start else { return };
    let mut pace = Pace { backoff: session_backoff(), patience: PATIENCE, way: Duration::ZERO, told: Told::default() };
    loop {
        let error = match one_session(node, dispatcher, stream, start, &mut pace).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        if stream == StreamKind::Commands {
            dispatcher.tell(Event::Hold(false)).await;
        }
        match &error {
            Ended::Session(SessionError::LinkLost) => {
                tracing::info!(?stream, "the link was lost");
                if node.broker.wait_up().await.is_ok() {
                    continue;
                }
            }
            Ended::Session(SessionError::Silent) => {
                tracing::warn!(?stream, "the broker is silent; connecting anew");
                node.broker.reconnect().await;
                // Or the server that had the consumer is gone.
                ask_hub(node);
            }
            Ended::Session(SessionError::ConsumerMissing | SessionError::Broker(BrokerError::Timeout { .. })) => {
                if pace.told.is_new(&error) {
                    tracing::warn!(?stream, %error, "the consumer is missing or lost; asking the hub");
                }
                pace.was_in_vain(node.broker.is_clustered());
                ask_hub(node);
            }
            // The journal has said so itself.
            Ended::Journal(error) if error.may_heal() => tracing::debug!(?stream, %error, "session"),
            Ended::ReadAgain => continue,
            // This ends all sessions of this run.
            Ended::NotOurs => node.lease.let_go(),
            error if pace.told.is_new(error) => tracing::warn!(?stream, %error, "session"),
            error => tracing::debug!(?stream, %error, "session"),
        }
        let wait = pace.backoff.next_wait();
        let wait = match &error {
            // A server with leaf nodes serves the pulls of a session that is over for two seconds more, as if somebody heard:
            // sessions that follow each other sooner would lose their messages to one another for ever.
            Ended::Session(SessionError::Broken(_)) => wait,
            _ => node.broker.shortened(wait),
        };
        tokio::time::sleep(wait).await;
    }
}

/// Asks for the consumers that should be there, without waiting: a session may begin before the broker has stored that.
fn ask_hub(node: &Arc<Node>) {
    let node = Arc::clone(node);
    tokio::spawn(async move { contact::hello(&node).await });
}

/// How soon and how patiently sessions are begun.
struct Pace {
    backoff: Backoff,
    /// How long the broker may take to set the consumer.
    patience: Duration,
    /// What the questions just before took.
    way: Duration,
    told: Told,
}

/// The last failure that was logged: one that comes again and again, as behind a leaf node that is cut off for days, is said
/// once.
#[derive(Default)]
struct Told(Option<String>);

impl Told {
    fn is_new(&mut self, error: &dyn std::fmt::Display) -> bool {
        let error = Some(error.to_string());
        std::mem::replace(&mut self.0, error.clone()) != error
    }
}

impl Pace {
    /// A session could be begun, in this time: the next one may take several times as long.
    fn begun(&mut self, took: Duration) {
        self.patience = (took * 4).clamp(PATIENCE, MOST_PATIENCE);
        self.told = Told::default();
    }

    /// No answer came: more time for a slow link. Where the broker is a cluster and the way to it short, the consumer is
    /// lost, and the sooner it is asked for again the better.
    fn was_in_vain(&mut self, is_clustered: bool) {
        let most = if is_clustered { (self.way * 8).clamp(PATIENCE, MOST_PATIENCE) } else { MOST_PATIENCE };
        self.patience = self.patience.mul_f64(1.5).min(most);
    }
}

fn session_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
}

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the node's name is another's")]
    NotOurs,
    #[error("it is to be read again")]
    ReadAgain,
}

/// Nothing: a session only ends with an error.
enum Never {}

async fn one_session(
    node: &Arc<Node>,
    dispatcher: &Handle,
    stream: StreamKind,
    start: StreamSeq,
    pace: &mut Pace,
) -> Result<Never, Ended> {
    let mut catch_up = CatchUp::begin(dispatcher, stream).await;
    // While the link was down, the hub may have given the name to another journal, or a copy of this one taken it.
    let asked = Instant::now();
    let Some(spec) = contact::ours(node).await.map_err(SessionError::from)? else { return Err(Ended::NotOurs) };
    pace.way = asked.elapsed();
    node.learn_groups(&spec).await?;
    node.read_again(stream).await?;
    let places = Places::of(node, stream, start);
    let resume = places.resume(pace.patience).await?;
    let asked = Instant::now();
    let opening = Session::open(&node.broker, &node.name, stream, &resume, &places);
    tokio::pin!(opening);
    let opened = tokio::select! {
        opened = &mut opening => opened,
        () = catch_up.over() => {
            catch_up.end(dispatcher).await;
            opening.await
        }
    };
    let (mut session, begun) = opened?;
    pace.begun(asked.elapsed());
    tracing::debug!(?stream, found = ?begun.found, caught_up = begun.is_caught_up, "session");
    keep_time(node, begun.broker_time, asked.elapsed()).await?;
    places.found(&begun).await?;
    let known_until = node.journal.known_until(stream).await?;
    catch_up.opened(dispatcher, &begun).await;
    loop {
        let batch = tokio::select! {
            batch = session.next() => batch?,
            () = catch_up.over() => {
                catch_up.end(dispatcher).await;
                continue;
            }
        };
        if let Some(found) = batch.found {
            places.changed(found, None).await?;
        }
        keep(node, dispatcher, &batch, known_until).await?;
        pace.backoff.reset();
        // Not acked: by its ack floor the hub knows when a node that leaves has read all of it again.
        if node.groups.due(stream).is_some() {
            return Err(Ended::ReadAgain);
        }
        session.ack(&batch).await;
        here(Point::Acked);
        catch_up.saw(dispatcher, &batch).await;
    }
}

async fn keep_time(node: &Node, broker_time: Timestamp, took: Duration) -> Result<(), JournalError> {
    node.clock.heard(broker_time, took);
    node.journal.set_meta_lazily(Key::BrokerTime, broker_time.nanos()).await?;
    if let Some(boot) = boot_id() {
        node.journal.set_meta_lazily(Key::BootClock, BootClock::new(boot, node.clock.now())).await?;
    }
    node.journal.set_meta_lazily(Key::ClockOffset, node.clock.offset()).await
}

/// Makes a batch durable. What was stored before `known_until` counts as taken.
async fn keep(node: &Node, dispatcher: &Handle, batch: &Batch, known_until: Timestamp) -> Result<(), JournalError> {
    let (old, new): (Vec<StoredMessage>, Vec<StoredMessage>) =
        batch.messages.iter().cloned().partition(|message| message.at.stored_at <= known_until);
    if let (Some(last), true) = (old.last(), new.is_empty()) {
        node.journal.pass_over(last.at, crate::journal::size_of(last)).await?;
    }
    if new.is_empty() { Ok(()) } else { dispatcher.arrived(new).await }
}

/// Commands are held back until the session has seen its end, or for [`CATCH_UP`] at most.
struct CatchUp {
    until: Option<Instant>,
    /// The broker's time when the session began: what was stored later is no backlog.
    began: Option<Timestamp>,
}

impl CatchUp {
    /// Holds commands, before the session is asked for.
    async fn begin(dispatcher: &Handle, stream: StreamKind) -> CatchUp {
        let holds = stream == StreamKind::Commands;
        if holds {
            dispatcher.tell(Event::Hold(true)).await;
        }
        CatchUp { until: holds.then(|| Instant::now() + CATCH_UP), began: None }
    }

    async fn opened(&mut self, dispatcher: &Handle, start: &Start) {
        self.began = Some(start.broker_time);
        if start.is_caught_up && self.until.is_some() {
            self.end(dispatcher).await;
        }
    }

    /// Waits until the hold has lasted long enough.
    async fn over(&self) {
        match self.until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    async fn saw(&mut self, dispatcher: &Handle, batch: &Batch) {
        let newest = batch.messages.last().map(|message| message.at.stored_at);
        if self.until.is_some()
            && (batch.pending == 0 || newest.is_some_and(|at| self.began.is_some_and(|began| at > began)))
        {
            self.end(dispatcher).await;
        }
    }

    async fn end(&mut self, dispatcher: &Handle) {
        self.until = None;
        dispatcher.tell(Event::Hold(false)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_in_the_same_way_is_told_once() {
        let mut told = Told::default();
        let news = ["nobody answers", "nobody answers", "no answer", "nobody answers"].map(|error| told.is_new(&error));
        assert_eq!(news, [true, false, true, true]);
    }
}
