//! `status.<node>`: what the node says of itself, each beat (DESIGN §8).
//!
//! Owns the beat: within a second of first contact, then each interval with jitter, and at a clean stop. The journal
//! keeps the beat's number before it is written.

use super::dispatch::Handle;
use super::node::Node;
use crate::broker::{Outgoing, PublishError};
use crate::journal::Key;
use crate::killpoint::{Point, here};
use crate::model::id::StreamSeq;
use crate::model::jitter;
use crate::model::message::StreamKind;
use crate::model::node::{HostFacts, LaneFacts, PerStream, Starts, Status};
use crate::model::subject::{NodeKey, RecordStream};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long the broker may take to store a status; after that the next beat tells more.
const WITHIN: Duration = Duration::from_secs(2);

/// Writes status until `stop`.
pub(crate) async fn run(node: Arc<Node>, dispatcher: Handle, stop: CancellationToken) {
    // Not before first contact: a journal that is not the node's must not speak for it.
    tokio::select! {
        biased;
        () = stop.cancelled() => return,
        () = node.wakes.status.notified() => {}
    }
    let mut writer = Writer { node, expected: None };
    loop {
        let facts = dispatcher.facts().await;
        writer.write(facts.lanes, facts.processes, false).await;
        let interval = writer.node.config.agent.interval;
        // Never later than the interval says.
        let wait = interval.mul_f64(0.8 + 0.2 * jitter::fraction());
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = writer.node.wakes.status.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// The last word of an agent that stops cleanly.
pub(crate) async fn stopped(node: Arc<Node>) {
    if node.broker.link().borrow().up {
        Writer { node, expected: None }.write(Vec::new(), Vec::new(), true).await;
    }
}

struct Writer {
    node: Arc<Node>,
    /// The sequence of the status that is there.
    expected: Option<u64>,
}

impl Writer {
    async fn write(
        &mut self,
        lanes: Vec<(LaneFacts, crate::model::lanes::RowId)>,
        processes: Vec<crate::model::node::ProcessFacts>,
        stopped: bool,
    ) {
        let status = match self.status(lanes, processes, stopped).await {
            Ok(status) => status,
            Err(error) => {
                tracing::warn!(%error, "no status");
                return;
            }
        };
        let Ok(body) = serde_json::to_vec(&status) else { return };
        // Once more where somebody else's status was there.
        for _ in 0..2 {
            let expected = match self.expected {
                Some(expected) => expected,
                None => self.last().await,
            };
            let subject = self.node.names.node_key(NodeKey::Status, self.node.name.as_str());
            let message = Outgoing::new(subject, body.clone()).expecting_last(expected);
            match self.node.broker.publish(&message, WITHIN).await {
                Ok(stored) => {
                    self.expected = Some(stored.seq.0);
                    return;
                }
                Err(PublishError::WrongLast) => self.expected = None,
                Err(error) => {
                    // It may have been stored: look again next time.
                    self.expected = None;
                    tracing::debug!(%error, "status");
                    return;
                }
            }
        }
    }

    async fn last(&self) -> u64 {
        let stream = self.node.names.record_stream(RecordStream::Nodes);
        let subject = self.node.names.node_key(NodeKey::Status, self.node.name.as_str());
        match self.node.broker.get_last(&stream, &subject).await {
            Ok(Some(found)) => found.seq.0,
            _ => 0,
        }
    }

    async fn status(
        &self,
        lanes: Vec<(LaneFacts, crate::model::lanes::RowId)>,
        processes: Vec<crate::model::node::ProcessFacts>,
        stopped: bool,
    ) -> Result<Status, crate::journal::JournalError> {
        let node = &self.node;
        let beat = node.journal.meta::<u64>(Key::Beat).await?.unwrap_or(0) + 1;
        let (beat, journal_error) = match node.journal.set_meta(Key::Beat, beat).await {
            Ok(()) => (beat, None),
            // Said as long as it lasts; the number stays, since it must be kept before it is used.
            Err(error) if error.may_heal() => (beat - 1, Some(error.to_string())),
            Err(error) => return Err(error),
        };
        here(Point::Beat);
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
            processes: Some(processes),
            lanes: Some(with_heads(node, lanes).await?),
            journal_rows: Some(node.journal.row_count().await?),
            outbox: Some(node.journal.outbox_len().await?),
            journal_error,
            clock_offset_ms: Some(node.clock.offset() / 1_000_000),
            insecure: Some(node.config.insecure && !node.config.has_credentials()),
        })
    }
}

async fn positions(node: &Node) -> Result<Starts, crate::journal::JournalError> {
    let mut positions: Starts = PerStream::default();
    for stream in StreamKind::ALL {
        let seq: Option<StreamSeq> = node.journal.position(stream).await?.map(|position| position.last.seq);
        *positions.get_mut(stream) = seq;
    }
    Ok(positions)
}

async fn with_heads(
    node: &Node,
    lanes: Vec<(LaneFacts, crate::model::lanes::RowId)>,
) -> Result<Vec<LaneFacts>, crate::journal::JournalError> {
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
