//! Output of commands on its way to `FLEET_OUTPUT`: live where a try takes long, and all of it where an ack cannot hold it.
//!
//! ```text
//! begun (after a second, or at the end) → chunks are published as they come into the run's file, numbered, in order
//! ended (before the try is settled)     → their number is known: it and the hash go into the ack
//! settled, and all of them stored       → the run's file goes
//! ```
//!
//! A chunk is one record of the file, so its bytes are the same whoever publishes it and how often; the broker keeps each
//! number once. Owns what is published when. Acks never wait for it, and it takes no more of the link than configured.

use super::attempt::run_name;
use super::node::Node;
use super::worker::Begun;
use crate::broker::{Outgoing, PublishError};
use crate::exec::runner::{Chunk, Chunks, RunName};
use crate::journal::{JournalError, Output};
use crate::killpoint::{Point, here};
use crate::model::error_event::{Code, Severity};
use crate::model::header::{RawHeaders, names};
use crate::model::jitter::Backoff;
use crate::model::lanes::RowId;
use crate::model::output::WINDOW;
use crate::model::record::{Chunked, INLINE_OUTPUT, Outcome};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the file of a run that goes on is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// How long the broker may take to say that a chunk is stored.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

/// As many are stored as there ever will be: the rest is given up.
const GIVEN_UP: u64 = i64::MAX as u64;

/// Output of this try is published from now on.
pub(crate) async fn begin(node: &Node, row: RowId, begun: &Begun) -> Result<(), JournalError> {
    let run = run_name(node, row, begun.attempt).to_string();
    let message = &begun.message;
    let subject = node.names.output(node.name.as_str(), message.subject.from.as_str(), message.id.as_str());
    node.journal.output_begins(run, row, begun.attempt, subject).await?;
    node.wakes.output.notify_one();
    Ok(())
}

/// A try is over whose output is published: its outcome, with what is told of its chunks where it has any.
pub(crate) async fn end(node: &Node, row: RowId, begun: &Begun, outcome: Outcome) -> Result<Outcome, JournalError> {
    begin(node, row, begun).await?;
    let run = run_name(node, row, begun.attempt);
    let (count, sha256) = scan(node, &run).await;
    let all = node.journal.output_ends(run.to_string(), row, count).await?;
    Ok(Outcome { chunks: (all > 0).then_some(Chunked { count: all, sha256 }), ..outcome })
}

/// Whether the ack holds all that there is; a byte may take six there.
pub(crate) fn fits_inline(node: &Node, outcome: &Outcome) -> bool {
    let (stdout, stderr) = (outcome.stdout.total, outcome.stderr.total);
    let most = INLINE_OUTPUT as u64;
    let rest_of_record = 4096;
    stdout.max(stderr) <= most && (stdout + stderr) * 6 + rest_of_record <= node.record_limit() as u64
}

/// How many chunks a run has, and their hash; none where its file cannot be read.
async fn scan(node: &Node, run: &RunName) -> (u64, String) {
    let path = node.runner.place().run(run);
    let scanned = tokio::task::spawn_blocking(move || count_and_hash(&path)).await;
    match scanned.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(scanned) => scanned,
        // It could not even be started.
        Err(error) if error.kind() == io::ErrorKind::NotFound => (0, hex(&Sha256::digest([]))),
        Err(error) => {
            tracing::warn!(%run, %error, "the output of a run cannot be read");
            (0, hex(&Sha256::digest([])))
        }
    }
}

fn count_and_hash(path: &Path) -> io::Result<(u64, String)> {
    let (mut chunks, mut count, mut hash) = (Chunks::open(path)?, 0, Sha256::new());
    while let Some(chunk) = chunks.next_chunk()? {
        hash.update(&chunk.bytes);
        count += 1;
    }
    Ok((count, hex(&hash.finalize())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A try is settled: its files go, as soon as its output is stored where that is published.
pub(crate) async fn settled(node: &Node, run: &RunName, published: bool) {
    if published {
        release(node, run).await;
        node.wakes.output.notify_one();
    } else {
        // The ack leaves first.
        tokio::task::yield_now().await;
        node.runner.forget(run);
    }
}

/// Lets go of a try that is settled and whose output is stored.
async fn release(node: &Node, run: &RunName) {
    match node.journal.output_release(run.to_string()).await {
        Ok(true) => node.runner.forget(run),
        Ok(false) => {}
        Err(error) => tracing::debug!(%run, %error, "the files of a run stay until the next start"),
    }
}

/// Closes the output of tries that were broken off: what is in their files is all there will be. Gives the runs whose
/// files are still needed.
pub(crate) async fn pick_up(node: &Node, adopted: impl Fn(&RunName) -> bool) -> Result<Vec<RunName>, JournalError> {
    let mut kept = Vec::new();
    for output in node.journal.outputs().await? {
        let Ok(run) = RunName::try_from(output.run.clone()) else { continue };
        if output.total.is_none() && !adopted(&run) {
            let (count, _) = scan(node, &run).await;
            node.journal.output_ends(output.run, output.row, count.max(output.sent)).await?;
        }
        kept.push(run);
    }
    Ok(kept)
}

/// Publishes output until `stop`.
pub(crate) async fn run(node: Arc<Node>, stop: CancellationToken) {
    let mut publisher = Publisher { node, cursors: HashMap::new(), stored: HashMap::new() };
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let passed = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            passed = publisher.pass() => passed,
        };
        let wait = match passed {
            Ok(Passed::More) => {
                backoff.reset();
                continue;
            }
            Ok(Passed::Nothing) => Duration::MAX,
            Ok(Passed::Growing) => LOOK,
            Ok(Passed::Later) => backoff.next_wait(),
            Err(error) => {
                tracing::debug!(%error, "output");
                backoff.next_wait()
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = publisher.node.wakes.output.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// What came of one look at all outputs; the later ones win.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Passed {
    Nothing,
    /// A run goes on whose output is all published so far.
    Growing,
    More,
    /// The broker does not take it now.
    Later,
}

struct Publisher {
    node: Arc<Node>,
    /// Where the files of runs are read, and how many chunks have been.
    cursors: HashMap<String, (Chunks, u64)>,
    /// How many chunks of runs are stored: the journal is told lazily, and no window may leave twice until it knows.
    stored: HashMap<String, u64>,
}

impl Publisher {
    /// Publishes one window of each output.
    async fn pass(&mut self) -> Result<Passed, JournalError> {
        let outputs = self.node.journal.outputs().await?;
        self.cursors.retain(|run, _| outputs.iter().any(|output| output.run == *run));
        self.stored.retain(|run, _| outputs.iter().any(|output| output.run == *run));
        let mut passed = Passed::Nothing;
        for mut output in outputs {
            output.sent = output.sent.max(self.stored.get(&output.run).copied().unwrap_or(0));
            let one = self.window(&output).await?;
            if one == Passed::Later {
                return Ok(one);
            }
            passed = passed.max(one);
        }
        Ok(passed)
    }

    async fn window(&mut self, output: &Output) -> Result<Passed, JournalError> {
        if output.total.is_some_and(|total| output.sent >= total) {
            self.cursors.remove(&output.run);
            return Ok(self.over(output).await);
        }
        if output.sent >= GIVEN_UP {
            return Ok(Passed::Growing);
        }
        let chunks = match self.read(output) {
            Ok(chunks) => chunks,
            Err(error) => {
                tracing::warn!(run = output.run, %error, "the output of a run cannot be read; it is given up");
                return self.sent(output, GIVEN_UP).await.map(|()| Passed::More);
            }
        };
        if chunks.is_empty() {
            return match output.total {
                None => Ok(Passed::Growing),
                // Its file has lost some of them.
                Some(_) => self.sent(output, GIVEN_UP).await.map(|()| Passed::More),
            };
        }
        self.publish(output, chunks).await
    }

    /// All is stored. Where the try is not settled yet, whoever settles it lets go of it.
    async fn over(&self, output: &Output) -> Passed {
        if let Ok(run) = RunName::try_from(output.run.clone()) {
            release(&self.node, &run).await;
        }
        Passed::Nothing
    }

    /// The next chunks that are not stored yet.
    fn read(&mut self, output: &Output) -> io::Result<Vec<Chunk>> {
        let at_place = self.cursors.remove(&output.run).filter(|(_, read)| *read == output.sent);
        let (mut chunks, mut read) = match at_place {
            Some(cursor) => cursor,
            None => {
                let run = RunName::try_from(output.run.clone()).map_err(io::Error::other)?;
                (Chunks::open(&self.node.runner.place().run(&run))?, 0)
            }
        };
        let mut window = Vec::new();
        while (window.len() as u64) < WINDOW {
            let Some(chunk) = chunks.next_chunk()? else { break };
            read += 1;
            if read > output.sent {
                window.push(chunk);
            }
        }
        self.cursors.insert(output.run.clone(), (chunks, read));
        Ok(window)
    }

    async fn publish(&mut self, output: &Output, chunks: Vec<Chunk>) -> Result<Passed, JournalError> {
        if self.node.broker.wait_up().await.is_err() {
            return Ok(Passed::Later);
        }
        let bytes: usize = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        let first = output.base + output.sent + 1;
        let messages = (first..).zip(chunks).map(|(number, chunk)| message(output, number, chunk));
        let sends = messages.map(|message| {
            let node = Arc::clone(&self.node);
            async move { node.broker.publish(&message, PUBLISH_TIMEOUT).await }
        });
        let answers = futures::future::join_all(sends).await;
        here(Point::Chunked);
        let mut stored = 0;
        let mut refused = None;
        for answer in answers {
            match answer {
                // Stored before a crash or a lost answer.
                Ok(_) | Err(PublishError::WrongLast) => stored += 1,
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        self.sent(output, output.sent + stored).await?;
        match refused {
            None => {
                let rate = self.node.config.agent.output_rate as f64;
                tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate)).await;
                Ok(Passed::More)
            }
            Some(error) if error.is_final() => {
                let text = format!("the output under {} cannot be published: {error}", output.subject);
                tracing::error!("{text}");
                let event = self.node.event(Severity::Error, Code::OutboxParked, &text);
                self.node.report(vec![self.node.error_report(&event)]).await?;
                self.sent(output, GIVEN_UP).await?;
                Ok(Passed::More)
            }
            Some(error) => {
                tracing::debug!(subject = output.subject, %error, "not stored yet");
                Ok(Passed::Later)
            }
        }
    }

    async fn sent(&mut self, output: &Output, sent: u64) -> Result<(), JournalError> {
        self.stored.insert(output.run.clone(), sent);
        self.node.journal.output_sent(output.run.clone(), sent).await
    }
}

fn message(output: &Output, number: u64, chunk: Chunk) -> Outgoing {
    let headers = RawHeaders::default()
        .with(names::OUTPUT, chunk.kind.as_str())
        .with(names::OFFSET, chunk.offset.to_string())
        .with(names::ATTEMPT, output.attempt.to_string());
    let subject = format!("{}.{number}", output.subject);
    Outgoing { subject, headers, body: Bytes::from(chunk.bytes) }.expecting_last(0)
}
