//! `status.<node>`: what the node says of itself, each beat, and the lease on its name.
//!
//! Owns the beat: within a second of first contact, then each interval with jitter, soon after a change that people wait to
//! see (a process stopped, a journal that cannot be written), and at a clean stop. Each is written only
//! over the one before; where another run of this journal has written, this one lets go, says so, and stands back until the
//! other is silent.

use super::dispatch::{Event, Facts, Handle};
use super::lease::{self, Claim, Kept};
use super::node::Node;
use crate::broker::{BrokerError, Outgoing, PublishError};
use crate::journal::{JournalError, Key};
use crate::killpoint::{Point, here};
use crate::model::error_event::{Code, Severity};
use crate::model::id::StreamSeq;
use crate::model::jitter::{self, Backoff};
use crate::model::message::StreamKind;
use crate::model::node::{HostFacts, LaneFacts, PerStream, ProcessFacts, Starts, Status};
use crate::model::subject::{NodeKey, RecordStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long the broker may take to store a status; after that the next beat tells more.
const WITHIN: Duration = Duration::from_secs(2);

/// How long a beat waits that a change asked for.
const AFTER_CHANGE: Duration = Duration::from_millis(200);

/// How often a status that another run wrote is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Writes status until `stop`.
pub(crate) async fn run(node: Arc<Node>, dispatcher: Handle, stop: CancellationToken) {
    // Started again while this run holds its name: it need not be given it anew.
    if node.lease.revision().is_some() {
        node.wakes.status.notify_one();
    }
    let writer = Writer { node };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = writer.serve(&dispatcher) => {}
    }
}

/// The last word of an agent that stops cleanly. One that does not hold the lease has none.
pub(crate) async fn stopped(node: Arc<Node>) {
    if !node.broker.link().borrow().up {
        return;
    }
    if let Some(revision) = node.lease.revision() {
        let run = node.run;
        let last = Last { revision, run: Some(run) };
        if let Err(error) = (Writer { node }).write(last, Facts::default(), true).await {
            tracing::debug!(%error, "the last status");
        }
    }
}

/// The status to be written over.
#[derive(Debug, Clone, Copy)]
struct Last {
    revision: u64,
    run: Option<Uuid>,
}

/// Why a status was not written.
#[derive(Debug, thiserror::Error)]
enum Unwritten {
    /// Another status is there than the one to be written over.
    #[error("another status is there")]
    Overtaken,
    #[error(transparent)]
    Publish(PublishError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("it cannot be encoded")]
    Encode(#[from] serde_json::Error),
}

struct Writer {
    node: Arc<Node>,
}

impl Writer {
    /// Takes the lease when this journal is the node, and keeps it as long as it can.
    async fn serve(&self, dispatcher: &Handle) {
        loop {
            // Not before first contact: a journal that is not the node's must not speak for it.
            self.node.wakes.status.notified().await;
            self.claim(dispatcher).await;
            tokio::select! {
                () = self.keep(dispatcher) => self.node.lease.let_go(),
                // Intake has seen that this journal is the node no more.
                () = self.node.lease.lost() => {}
            }
            tracing::warn!(node = %self.node.name, "the node's name is another's now; nothing is taken");
        }
    }

    /// Writes the first status, standing back while another run of this journal is at work.
    async fn claim(&self, dispatcher: &Handle) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            match self.try_claim(dispatcher).await {
                Ok(()) => return,
                Err(Unwritten::Overtaken) => {}
                Err(error) => {
                    tracing::debug!(%error, "no status yet");
                    // The broker is in trouble, not the name: the node goes on with what it has.
                    dispatcher.tell(Event::Hold(false)).await;
                }
            }
            tokio::time::sleep(self.node.broker.shortened(backoff.next_wait())).await;
        }
    }

    async fn try_claim(&self, dispatcher: &Handle) -> Result<(), Unwritten> {
        let mut found = self.read().await?;
        if self.judge(found.as_ref()).await? == Claim::Taken {
            self.tell_twin(found.as_ref()).await?;
            found = self.stand_back(found).await?;
        }
        let last = found.map_or(Last { revision: 0, run: None }, |(revision, status)| Last {
            revision,
            run: status.and_then(|status| status.run),
        });
        let revision = self.write(last, dispatcher.facts().await, false).await?;
        self.node.lease.hold(revision);
        Ok(())
    }

    /// Waits until the status stands unchanged for two beats, or is free to be written over.
    async fn stand_back(&self, found: Option<Found>) -> Result<Option<Found>, Unwritten> {
        let mut found = found;
        let mut since = Instant::now();
        loop {
            let stale =
                found.as_ref().and_then(|(_, status)| status.as_ref()).map_or(Duration::ZERO, Status::two_beats);
            if since.elapsed() >= stale {
                return Ok(found);
            }
            tokio::time::sleep(LOOK_AGAIN.min(stale)).await;
            let now = self.read().await?;
            if self.judge(now.as_ref()).await? == Claim::Free {
                return Ok(now);
            }
            if now.as_ref().map(|(revision, _)| *revision) != found.as_ref().map(|(revision, _)| *revision) {
                since = Instant::now();
            }
            found = now;
        }
    }

    async fn judge(&self, found: Option<&Found>) -> Result<Claim, JournalError> {
        let kept = self.kept().await?;
        Ok(lease::judge(found.and_then(|(_, status)| status.as_ref()), &kept, self.node.journal.id()))
    }

    async fn tell_twin(&self, found: Option<&Found>) -> Result<(), JournalError> {
        let run = found.and_then(|(_, status)| status.as_ref()?.run).map_or_else(String::new, |run| format!(" {run}"));
        let text = format!(
            "another run{run} of this journal, {}, is at work: its disk was copied; nothing is taken until that run is silent",
            self.node.journal.id()
        );
        tracing::error!(node = %self.node.name, "{text}");
        self.node.tell(self.node.event(Severity::Error, Code::Twin, &text)).await
    }

    /// Beat by beat, until somebody else has written.
    async fn keep(&self, dispatcher: &Handle) {
        let interval = self.node.config.agent.interval;
        loop {
            // Never later than the interval says.
            let wait = interval.mul_f64(0.8 + 0.2 * jitter::fraction());
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // Several changes at once are one beat.
                () = self.node.wakes.beat.notified() => tokio::time::sleep(AFTER_CHANGE.min(wait)).await,
            }
            match self.beat(dispatcher).await {
                Ok(()) => {}
                Err(Unwritten::Overtaken) => return,
                Err(error) => tracing::debug!(%error, "status"),
            }
        }
    }

    async fn beat(&self, dispatcher: &Handle) -> Result<(), Unwritten> {
        let Some(revision) = self.node.lease.revision() else { return Err(Unwritten::Overtaken) };
        let last = Last { revision, run: Some(self.node.run) };
        let written = match self.write(last, dispatcher.facts().await, false).await {
            // A beat without an answer may have been stored after all.
            Err(Unwritten::Overtaken) => match self.read().await? {
                Some((revision, Some(status))) if status.run == Some(self.node.run) => {
                    self.write(Last { revision, ..last }, dispatcher.facts().await, false).await?
                }
                _ => return Err(Unwritten::Overtaken),
            },
            written => written?,
        };
        self.node.lease.hold(written);
        Ok(())
    }

    /// Writes a status over this one; its beat and run are in the journal first.
    async fn write(&self, last: Last, facts: Facts, stopped: bool) -> Result<u64, Unwritten> {
        let kept = Kept { beat: self.kept().await?.beat + 1, run: Some(self.node.run), before: last.run };
        let (beat, trouble) = match self.node.journal.set_meta(Key::Beat, kept).await {
            Ok(()) => (kept.beat, None),
            // Said as long as it lasts; the number stays, since it must be kept before it is used.
            Err(error) if error.may_heal() && last.run == Some(self.node.run) => {
                (kept.beat - 1, Some(error.to_string()))
            }
            Err(error) => return Err(error.into()),
        };
        here(Point::Beat);
        let status = Status { journal_error: trouble, ..self.status(beat, facts, stopped).await? };
        let body = serde_json::to_vec(&status)?;
        let subject = self.node.names.node_key(NodeKey::Status, self.node.name.as_str());
        let message = Outgoing::new(subject, body).expecting_last(last.revision);
        match self.node.broker.publish(&message, WITHIN).await {
            Ok(stored) => Ok(stored.seq.0),
            Err(PublishError::WrongLast) => Err(Unwritten::Overtaken),
            Err(error) => Err(Unwritten::Publish(error)),
        }
    }

    async fn kept(&self) -> Result<Kept, JournalError> {
        Ok(self.node.journal.meta::<Kept>(Key::Beat).await?.unwrap_or_default())
    }

    async fn read(&self) -> Result<Option<Found>, BrokerError> {
        read(&self.node).await
    }

    async fn status(&self, beat: u64, facts: Facts, stopped: bool) -> Result<Status, JournalError> {
        let node = &self.node;
        let Facts { lanes, processes, depth, .. } = facts;
        let now = node.clock.now();
        let uptime = uptime();
        Ok(Status {
            v: 1,
            node: node.name.clone(),
            journal: Some(node.journal.id()),
            run: Some(node.run),
            beat: Some(beat),
            at: Some(now),
            interval_s: Some(node.config.agent.interval.as_secs_f64()),
            stopped: Some(stopped),
            boot_at: uptime.map(|uptime| now.minus(uptime)),
            started_at: Some(node.started_at),
            position: positions(node).await?,
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            host: Some(host(uptime)),
            labels: Some(node.config.agent.labels.clone()),
            processes: Some(with_history(node, processes).await?),
            lanes: Some(with_heads(node, lanes).await?),
            depth: Some(depth),
            journal_rows: Some(node.journal.row_count().await?),
            outbox: Some(node.journal.outbox_len().await?),
            journal_error: None,
            clock_offset_ms: Some(node.clock.offset() / 1_000_000),
            insecure: Some(node.config.insecure && !node.config.has_credentials()),
        })
    }
}

/// A status with its sequence; none in it where it cannot be read.
type Found = (u64, Option<Status>);

/// The status that is there.
async fn read(node: &Node) -> Result<Option<Found>, BrokerError> {
    let stream = node.names.record_stream(RecordStream::Nodes);
    let subject = node.names.node_key(NodeKey::Status, node.name.as_str());
    let found = node.broker.get_last(&stream, &subject).await?;
    Ok(found.map(|message| (message.seq.0, serde_json::from_slice(&message.body).ok())))
}

/// True where no other run has written a status since this one's last.
pub(crate) async fn is_ours(node: &Node) -> Result<bool, BrokerError> {
    let Some(held) = node.lease.revision() else { return Ok(false) };
    // An answer may be a moment old: what is below our own says nothing.
    let foreign =
        |(revision, status): &Found| *revision > held && status.as_ref().is_none_or(|s| s.run != Some(node.run));
    Ok(!read(node).await?.as_ref().is_some_and(foreign))
}

async fn positions(node: &Node) -> Result<Starts, JournalError> {
    let mut positions: Starts = PerStream::default();
    for stream in StreamKind::ALL {
        let seq: Option<StreamSeq> = node.journal.position(stream).await?.map(|position| position.last.seq);
        *positions.get_mut(stream) = seq;
    }
    Ok(positions)
}

/// Processes with what the journal knows of them.
async fn with_history(node: &Node, processes: Vec<ProcessFacts>) -> Result<Vec<ProcessFacts>, JournalError> {
    let kept = node.journal.processes(node.clock.now()).await?;
    let fill = |facts: ProcessFacts| match kept.iter().find(|process| process.name == facts.name) {
        None => facts,
        Some(process) => ProcessFacts {
            stopped_by: process.stopped_by.clone(),
            changed_at: process.changed_at,
            restarts: process.restarts,
            failures: process.failures,
            last_error: process.last_error.as_ref().map(|(text, _)| text.clone()),
            last_error_at: process.last_error.as_ref().map(|(_, at)| *at),
            ..facts
        },
    };
    Ok(processes.into_iter().map(fill).collect())
}

async fn with_heads(
    node: &Node,
    lanes: Vec<(LaneFacts, crate::model::lanes::RowId)>,
) -> Result<Vec<LaneFacts>, JournalError> {
    let rows = lanes.iter().map(|(_, row)| *row).collect();
    let heads = node.journal.stored_refs(rows).await?;
    let fill = |(mut facts, row): (LaneFacts, crate::model::lanes::RowId)| {
        if let Some((_, at)) = heads.iter().find(|(head, _)| *head == row) {
            facts.head = Some(at.seq);
            facts.head_stored_at = Some(at.stored_at);
        }
        facts
    };
    Ok(lanes.into_iter().map(fill).collect())
}

fn host(uptime: Option<Duration>) -> HostFacts {
    let uname = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    HostFacts {
        name: Some(text(uname.nodename())),
        os: Some(format!("{} {}", text(uname.sysname()), text(uname.release()))),
        arch: Some(text(uname.machine())),
        uptime_s: uptime.map(|uptime| uptime.as_secs()),
    }
}

/// How long the host has been up, suspended time included.
fn uptime() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}
