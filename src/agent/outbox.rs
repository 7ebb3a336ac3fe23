//! The outbox at work: what the journal holds for the broker is published, in order per class, until it is stored.
//!
//! One task per class, so that a flood of error events does not hold up an ack. A window of entries is sent in order, many
//! of them under way at once; what was not stored is sent again before the next window, so the order holds.
//!
//! Owns what to do when the broker already has a terminal record. Never makes up what is to be said,
//! except in place of an entry that can never be published.

use super::node::Node;
use super::reports::subject_of;
use crate::broker::{BrokerError, Outgoing, Parcel, PublishError, Publisher};
use crate::journal::{Class, Entry, EntryId, JournalError, Report};
use crate::killpoint::{Point, here};
use crate::model::error_event::{Code, Severity};
use crate::model::header::names;
use crate::model::id::MessageId;
use crate::model::jitter::Backoff;
use crate::model::record::{By, Record, RecordError};
use crate::model::subject::{RecordClass, RecordStream};
use bytes::Bytes;
use futures::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Entries that are read and sent together.
const WINDOW: usize = 512;

/// Entries of a window that are under way at once: as many as keep a broker busy.
const UNDER_WAY: usize = 128;

/// Bytes in a window, about; one entry at least.
const WINDOW_BYTES: usize = 4 << 20;

/// How long the broker may take to say that an entry is stored.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is said that records are refused.
const COMPLAIN_EVERY: Duration = Duration::from_secs(3600);

/// What became of one entry.
enum Fate {
    /// It is stored, or need not be.
    Done,
    /// It can never be stored as it is.
    Park { reason: String, instead: Vec<Report> },
    /// The broker has said that this node may not publish there.
    Denied,
    /// Try again later.
    Later,
}

/// Publishes one class until `stop`.
pub(crate) async fn run(node: Arc<Node>, class: Class, stop: CancellationToken) {
    let mut outbox = Outbox::new(node, class);
    loop {
        let passed = tokio::select! {
            biased;
            // Also while the link is down. What is cut off under way is sent again, which the broker sees through.
            () = stop.cancelled() => return,
            passed = outbox.pass() => passed,
        };
        let wait = match passed {
            Ok(Passed::Empty) => None,
            Ok(Passed::Some) => continue,
            Ok(Passed::Later) => Some(outbox.node.broker.shortened(outbox.backoff.next_wait())),
            Err(error) => {
                tracing::error!(?class, %error, "outbox");
                Some(outbox.backoff.next_wait())
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = outbox.node.wakes.rung(class), if wait.is_none() => {}
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {}
        }
    }
}

/// Publishes what is left of every class, as far as the broker takes it within a while: a node that leaves says what it
/// can.
pub(crate) async fn drain(node: &Arc<Node>, within: Duration) {
    if !node.broker.link().borrow().up {
        tracing::info!("no link; what is still to be said leaves at the next start");
        return;
    }
    // Messages of its own only while the name is this node's.
    let may_send = |class: &Class| *class != Class::Message || node.lease.revision().is_some();
    let drained = Class::PUBLISHED.into_iter().filter(may_send).map(|class| {
        let node = Arc::clone(node);
        async move {
            let mut outbox = Outbox::new(node, class);
            while let Ok(Passed::Some) = outbox.pass().await {}
        }
    });
    if tokio::time::timeout(within, join_all(drained)).await.is_err() {
        tracing::info!("some records stay in the journal; they leave at the next start");
    }
}

struct Outbox {
    node: Arc<Node>,
    class: Class,
    /// Entries up to this one are done; their rows go with some later commit.
    done_up_to: EntryId,
    /// Entries read already that come next.
    ahead: Vec<Entry>,
    /// Made for the first entry.
    publisher: Option<Publisher>,
    backoff: Backoff,
    /// When it was last said that records are refused.
    complained: Option<Instant>,
    /// The journal's failures as they were when it was last seen empty.
    failures: u64,
}

impl Outbox {
    fn new(node: Arc<Node>, class: Class) -> Outbox {
        Outbox {
            node,
            class,
            done_up_to: EntryId(0),
            ahead: Vec::new(),
            publisher: None,
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
            complained: None,
            failures: 0,
        }
    }

    /// This node has no right to publish a record of its own: it waits until somebody mends that, which is said.
    async fn denied(&mut self, subject: &str) -> Result<(), JournalError> {
        if self.complained.is_some_and(|at| at.elapsed() < COMPLAIN_EVERY) {
            return Ok(());
        }
        self.complained = Some(Instant::now());
        tracing::error!(subject, "no right to publish; trying again until there is");
        let text = format!("the broker does not let this node publish to {subject}; records wait in its journal");
        self.node.tell(self.node.event(Severity::Error, Code::Permission, &text)).await
    }
}

enum Passed {
    /// There was nothing.
    Empty,
    /// There may be more.
    Some,
    /// Something has to wait.
    Later,
}

impl Outbox {
    async fn window(&self, after: EntryId) -> Result<Vec<Entry>, JournalError> {
        self.node.journal.outbox(self.class, after, WINDOW, WINDOW_BYTES).await
    }

    /// What comes after a full window, read while that is under way: nothing waits for the journal where much is to leave.
    async fn window_behind(&self, entries: &[Entry]) -> Result<Vec<Entry>, JournalError> {
        match entries.last() {
            Some(last) if entries.len() == WINDOW => self.window(last.id).await,
            _ => Ok(Vec::new()),
        }
    }

    async fn publisher(&mut self) -> Result<Publisher, BrokerError> {
        match self.publisher.take() {
            Some(publisher) => Ok(publisher),
            None => Publisher::new(&self.node.broker).await,
        }
    }

    /// Sends one window of entries.
    async fn pass(&mut self) -> Result<Passed, JournalError> {
        let entries = match std::mem::take(&mut self.ahead) {
            ahead if ahead.is_empty() => self.window(self.done_up_to).await?,
            ahead => ahead,
        };
        if entries.is_empty() {
            // What a failing disk kept from being removed goes now.
            let failures = self.node.journal.failures();
            if std::mem::replace(&mut self.failures, failures) != failures {
                self.node.journal.published(self.class, self.done_up_to, Vec::new()).await?;
            }
            return Ok(Passed::Empty);
        }
        if self.node.broker.wait_up().await.is_err() {
            return Ok(Passed::Later);
        }
        if self.class == Class::Message {
            // Before first contact nobody knows who this node is; another may have its name, and send under it.
            self.node.lease.held().await;
        }
        let Ok(mut publisher) = self.publisher().await else { return Ok(Passed::Later) };
        let (fates, ahead) = tokio::join!(send_all(&self.node, &mut publisher, &entries), self.window_behind(&entries));
        self.publisher = Some(publisher);
        here(Point::Published);
        let mut done = Vec::new();
        let mut in_order = true;
        for (entry, fate) in entries.iter().zip(fates) {
            match fate {
                Fate::Done => done.push(entry.id),
                Fate::Park { reason, instead } => {
                    tracing::error!(subject = entry.report.subject, reason, "an entry of the outbox is set aside");
                    self.node.journal.park(entry.id, reason, instead).await?;
                    self.node.wakes.ring(Class::Ack);
                    self.node.wakes.ring(Class::Error);
                }
                Fate::Denied => {
                    in_order = false;
                    self.denied(&entry.report.subject).await?;
                }
                Fate::Later => in_order = false,
            }
            if in_order {
                self.done_up_to = entry.id;
            }
        }
        self.node.journal.published(self.class, self.done_up_to, done).await?;
        here(Point::Removed);
        if in_order {
            self.backoff.reset();
            self.ahead = ahead?;
            return Ok(Passed::Some);
        }
        Ok(Passed::Later)
    }
}

/// Sends entries in order, so many at once; tells what became of each.
async fn send_all(node: &Node, publisher: &mut Publisher, entries: &[Entry]) -> Vec<Fate> {
    let parcels: Vec<Parcel<'_>> = entries.iter().map(|entry| parcel(&entry.report)).collect();
    let words = publisher.publish_all(&parcels, UNDER_WAY, PUBLISH_TIMEOUT).await;
    let known = entries.iter().zip(words).map(|(entry, word)| match word {
        Ok(_) => Some(Fate::Done),
        Err(PublishError::WrongLast) => None,
        Err(error) => Some(not_stored(node, &entry.report, error)),
    });
    let known: Vec<Option<Fate>> = known.collect();
    // Seldom any, but after a crash a whole window.
    let there: Vec<&Entry> = entries.iter().zip(&known).filter(|(_, fate)| fate.is_none()).map(|(e, _)| e).collect();
    let mut found = Vec::with_capacity(there.len());
    for some in there.chunks(UNDER_WAY) {
        found.extend(join_all(some.iter().map(|entry| already_there(node, &entry.report))).await);
    }
    let mut found = found.into_iter();
    known.into_iter().map(|fate| fate.or_else(|| found.next()).unwrap_or(Fate::Later)).collect()
}

fn parcel(report: &Report) -> Parcel<'_> {
    Parcel { subject: &report.subject, headers: &report.headers, body: &report.body }
}

fn not_stored(node: &Node, report: &Report, error: PublishError) -> Fate {
    match error {
        error if error.is_final() => park(node, report.class, report, &error),
        // Nobody has granted this node to send there. Records are the node's own right: those wait until it is put right.
        error @ PublishError::Denied { .. } if report.class == Class::Message => {
            park(node, report.class, report, &error)
        }
        PublishError::Denied { .. } => Fate::Denied,
        error => {
            tracing::debug!(subject = report.subject, %error, "not stored yet");
            Fate::Later
        }
    }
}

/// A terminal record stands under this subject already: whose?
async fn already_there(node: &Node, report: &Report) -> Fate {
    let Ok(ours) = serde_json::from_slice::<Record>(&report.body) else {
        return Fate::Park { reason: "the record cannot be read".to_owned(), instead: Vec::new() };
    };
    let stream = node.names.record_stream(RecordStream::Acks);
    let found = match node.broker.get_last(&stream, &report.subject).await {
        Ok(Some(found)) => found,
        // On a cluster a replica may not have it yet.
        Ok(None) => return Fate::Later,
        Err(error) => {
            tracing::debug!(%error, "reading the record that is there");
            return Fate::Later;
        }
    };
    let theirs = serde_json::from_slice::<Record>(&found.body).ok();
    let same =
        theirs.as_ref().is_some_and(|t| t.stream == ours.stream && t.seq == ours.seq && t.stored_at == ours.stored_at);
    match theirs.map(|t| t.by) {
        Some(By::Node) if same => Fate::Done,
        Some(By::Hub) if same => publish_as(node, RecordClass::Late, &ours, &report.body).await,
        _ if ours.id_reused => Fate::Done,
        _ => {
            let renamed = Record { id: ours.id.reused(ours.seq), id_reused: true, ..ours };
            publish_as(node, RecordClass::Ack, &renamed, &renamed.encode()).await
        }
    }
}

/// Publishes a record under another class or id; the broker keeps it single there, too.
async fn publish_as(node: &Node, class: RecordClass, record: &Record, body: &[u8]) -> Fate {
    let subject = node.names.record(class, &subject_of(record));
    let message = Outgoing { subject, headers: record.headers(), body: Bytes::copy_from_slice(body) }.expecting_last(0);
    match node.broker.publish(&message, PUBLISH_TIMEOUT).await {
        Ok(_) | Err(PublishError::WrongLast) => Fate::Done,
        Err(error) if error.is_final() => {
            let Outgoing { subject, headers, body } = message;
            park(node, Class::Ack, &Report { class: Class::Ack, subject, headers, body }, &error)
        }
        Err(PublishError::Denied { .. }) => Fate::Denied,
        Err(error) => {
            tracing::debug!(subject = message.subject, %error, "not stored yet");
            Fate::Later
        }
    }
}

/// What is said in place of an entry that can never be published: an error event, and for a terminal record its
/// smallest form.
fn park(node: &Node, class: Class, report: &Report, error: &PublishError) -> Fate {
    let reason = error.to_string();
    let text = format!("{} ({} bytes) cannot be published: {reason}", report.subject, report.body.len());
    let mut instead = Vec::new();
    if class != Class::Error {
        let mut event = node.event(Severity::Error, Code::OutboxParked, &text);
        event.msg_id = report.headers.get(names::ID).and_then(|id| MessageId::given(id).ok());
        instead.push(node.error_report(&event));
    }
    if class == Class::Ack
        && let Ok(record) = serde_json::from_slice::<Record>(&report.body)
        && let small = smallest(record).encode()
        && small.len() < report.body.len()
    {
        instead.push(Report { body: Bytes::from(small), ..report.clone() });
    }
    Fate::Park { reason, instead }
}

/// A record without its output, and with the beginning of its error text alone.
fn smallest(record: Record) -> Record {
    let cut = |error: RecordError| RecordError { message: error.message.chars().take(100).collect(), ..error };
    let small = record.without_output();
    Record { error: small.error.clone().map(cut), ..small }
}
