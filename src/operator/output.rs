//! The complete output of one call, from `FLEET_OUTPUT`: as it is stored, or what is there.
//!
//! ```text
//! open → what is stored from now on is followed; a node is known by its first chunk, or because it is expected
//!        a chunk out of order, a link that came back    → the node is read from where its output stopped
//!        a look every few seconds                       → so does a chunk that is there and was not followed
//! of   → nothing is followed; what is expected is read
//! ```
//!
//! Owns what is read when; `assembly` owns the order. What is followed waits in a bounded queue: of what has no room there,
//! the rest is read, so that a reader who is slow costs neither memory nor a chunk. Never makes a consumer.

use super::assembly::{Assembly, Piece, Told};
use super::error::OperatorError;
use crate::broker::{Broker, BrokerError, From as Begin, LAST_SUBJECTS, Link, Query, RawMessage};
use crate::model::id::{MessageId, StreamSeq};
use crate::model::output::Chunk;
use crate::model::subject::RecordStream;
use crate::model::time::Timestamp;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// Chunks that were followed and not shown yet: some MiB.
const FOLLOWED: usize = 256;

/// Chunks asked for at once; the broker ends a page of large ones sooner.
const PAGE: usize = 128;

/// How often it looks whether a chunk was missed.
const LOOK: Duration = Duration::from_secs(2);

/// After so long without a chunk of output whose end is known, the rest is not waited for.
const STALLED: Duration = Duration::from_secs(30);

/// Output is not older than its message, but for what the clocks of a cluster's servers differ.
const SKEW: Duration = Duration::from_secs(60);

/// The output of one call on its nodes.
#[derive(Debug)]
pub struct Outputs {
    broker: Broker,
    from: String,
    id: MessageId,
    nodes: BTreeMap<String, Node>,
    /// What is known and not given yet: less than a page, or one chunk that let others go.
    pieces: VecDeque<(String, Piece)>,
    feed: Option<Feed>,
}

#[derive(Debug)]
struct Node {
    assembly: Assembly,
    /// Its chunks are stored after this.
    since: Option<Timestamp>,
    /// Something is there that was not followed.
    due: bool,
    /// It is over once it is read.
    closing: bool,
    /// How far the reading has come that goes on.
    read_to: Option<StreamSeq>,
    heard_at: Instant,
}

/// What is stored from a moment on.
#[derive(Debug)]
struct Feed {
    chunks: mpsc::Receiver<RawMessage>,
    link: watch::Receiver<Link>,
    ticks: tokio::time::Interval,
    /// Ends with this.
    _pump: JoinSet<()>,
}

impl Outputs {
    /// Output that is there.
    pub fn of(broker: &Broker, from: &str, id: &MessageId) -> Outputs {
        Outputs {
            broker: broker.clone(),
            from: from.to_owned(),
            id: id.clone(),
            nodes: BTreeMap::new(),
            pieces: VecDeque::new(),
            feed: None,
        }
    }

    /// Output as it is stored from now on; of nodes that are expected also what is there.
    pub async fn open(broker: &Broker, from: &str, id: &MessageId) -> Result<Outputs, OperatorError> {
        let pattern = format!("{}.*", broker.names().output("*", from, id.as_str()));
        let mut follower = broker.follow(&pattern).await?;
        let (room, chunks) = mpsc::channel(FOLLOWED);
        let mut pump = JoinSet::new();
        pump.spawn(async move {
            while let Some(chunk) = follower.next().await {
                // Where there is no room, it is read later.
                if let Err(mpsc::error::TrySendError::Closed(_)) = room.try_send(chunk) {
                    return;
                }
            }
        });
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let mut link = broker.link();
        link.mark_unchanged();
        let feed = Feed { chunks, link, ticks, _pump: pump };
        Ok(Outputs { feed: Some(feed), ..Outputs::of(broker, from, id) })
    }

    /// This node has output, or may have, of a message stored then. `read`: also from before this began to follow.
    pub fn expect(&mut self, node: &str, stored_at: Timestamp, read: bool) {
        let since = stored_at.minus(SKEW);
        let known = self.nodes.entry(node.to_owned()).or_insert_with(|| Node::new(Some(since), read));
        known.since.get_or_insert(since);
    }

    /// An expected node's ack is there: the end is known. Told twice is told once.
    pub fn tell(&mut self, node: &str, told: Told) {
        let Some(known) = self.nodes.get_mut(node).filter(|known| !known.assembly.is_told()) else { return };
        known.heard_at = Instant::now();
        let mut out = Vec::new();
        known.assembly.tell(told, &mut out);
        self.pieces.extend(out.into_iter().map(|piece| (node.to_owned(), piece)));
    }

    /// Nothing more of this node will be stored, and how much is there is not told: what is there is read.
    pub fn close(&mut self, node: &str) {
        if let Some(known) = self.nodes.get_mut(node).filter(|known| !known.closing && !known.assembly.is_over()) {
            (known.closing, known.due) = (true, true);
        }
    }

    /// True where all that will be given of a node is given.
    pub fn is_over(&self, node: &str) -> bool {
        let given = || self.pieces.iter().all(|(of, _)| of != node);
        self.nodes.get(node).is_none_or(|known| known.assembly.is_over()) && given()
    }

    /// The next piece that is there; `None` when there is no more, and then everything expected is over.
    pub async fn next_stored(&mut self) -> Result<Option<(String, Piece)>, OperatorError> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Ok(Some(piece));
            }
            if let Some(node) = self.due() {
                self.read(&node).await?;
                continue;
            }
            if !self.give_up(|_| true) {
                return Ok(None);
            }
        }
    }

    /// Waits for the next piece of what is followed; `None` where a node turned out to have no more. Safe to drop and call
    /// again: nothing is lost by it. A broker that does not answer for now is waited for; the error is the end of the
    /// connection.
    pub async fn next(&mut self) -> Result<Option<(String, Piece)>, OperatorError> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Ok(Some(piece));
            }
            if let Some(node) = self.due() {
                match self.read(&node).await {
                    Ok(()) if self.pieces.is_empty() && self.is_over(&node) => return Ok(None),
                    Ok(()) => continue,
                    Err(BrokerError::Closed) => return Err(BrokerError::Closed.into()),
                    // The next look finds it again.
                    Err(error) => {
                        tracing::debug!(%node, ?error, "reading output again later");
                        self.nodes.values_mut().for_each(|known| known.due = false);
                    }
                }
            }
            let Some(feed) = &mut self.feed else { return std::future::pending().await };
            tokio::select! {
                chunk = feed.chunks.recv() => self.follow(chunk.as_ref().ok_or(BrokerError::Closed)?),
                _ = feed.ticks.tick() => self.look().await?,
                changed = feed.link.changed() => {
                    changed.map_err(|_| BrokerError::Closed)?;
                    if feed.link.borrow_and_update().up {
                        self.nodes.values_mut().for_each(|known| known.due = !known.assembly.is_over());
                    }
                }
            }
        }
    }

    fn due(&self) -> Option<String> {
        self.nodes.iter().find(|(_, known)| known.due).map(|(node, _)| node.clone())
    }

    fn follow(&mut self, raw: &RawMessage) {
        let Some((node, chunk)) = Chunk::read(&raw.subject, &raw.headers, &raw.body) else { return };
        let mut out = Vec::new();
        let known = self.nodes.entry(node.clone()).or_insert_with(|| Node::new(None, false));
        known.heard_at = Instant::now();
        known.assembly.offer(raw.seq, chunk, &mut out);
        known.due |= known.assembly.has_gap() && !known.assembly.is_over();
        self.pieces.extend(out.into_iter().map(|piece| (node.clone(), piece)));
    }

    /// Reads one page of a node's output.
    async fn read(&mut self, node: &str) -> Result<(), BrokerError> {
        let Some(known) = self.nodes.get_mut(node) else { return Ok(()) };
        let begin = match known.read_to.or_else(|| known.assembly.read_from()) {
            Some(seq) => Begin::Seq(seq),
            None => known.since.map_or(Begin::Seq(StreamSeq(1)), Begin::Time),
        };
        let names = self.broker.names();
        let filter = format!("{}.*", names.output(node, &self.from, self.id.as_str()));
        let query = Query { stream: names.record_stream(RecordStream::Output), filter, from: begin, batch: PAGE };
        let page = self.broker.read(&query).await?;
        let mut out = Vec::new();
        for raw in &page.messages {
            let Some((_, chunk)) = Chunk::read(&raw.subject, &raw.headers, &raw.body) else { continue };
            let before = known.assembly.next();
            known.assembly.scan(raw.seq, chunk, &mut out);
            if known.assembly.next() > before {
                known.heard_at = Instant::now();
            }
        }
        let last = page.messages.last().filter(|_| page.pending > 0);
        known.read_to = last.map(|last| StreamSeq(last.seq.0 + 1));
        known.due = known.read_to.is_some() && !known.assembly.is_over();
        if known.closing && !known.due {
            known.assembly.give_up(&mut out);
        }
        self.pieces.extend(out.into_iter().map(|piece| (node.to_owned(), piece)));
        Ok(())
    }

    /// Looks whether chunks were missed, and gives up what has stalled.
    async fn look(&mut self) -> Result<(), OperatorError> {
        self.give_up(|known| known.assembly.is_told() && known.heard_at.elapsed() > STALLED);
        self.nodes.values_mut().for_each(|known| known.due |= known.closing && !known.assembly.is_over());
        let names = self.broker.names();
        let quiet = self.nodes.iter().filter(|(_, known)| !known.assembly.is_over() && known.heard_at.elapsed() > LOOK);
        let subject = |(node, known): (&String, &Node)| {
            format!("{}.{}", names.output(node, &self.from, self.id.as_str()), known.assembly.next())
        };
        let subjects: Vec<String> = quiet.map(subject).collect();
        let stream = names.record_stream(RecordStream::Output);
        for some in subjects.chunks(LAST_SUBJECTS) {
            match self.broker.read_last(&stream, some).await {
                Ok(page) => page.messages.iter().for_each(|raw| {
                    let found = Chunk::read(&raw.subject, &raw.headers, &raw.body);
                    if let Some(known) = found.and_then(|(node, _)| self.nodes.get_mut(&node)) {
                        known.due = true;
                    }
                }),
                Err(BrokerError::Closed) => return Err(BrokerError::Closed.into()),
                Err(error) => {
                    tracing::debug!(?error, "looking for output again later");
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Waits no more for the rest of these. True where that gave something.
    fn give_up(&mut self, which: impl Fn(&Node) -> bool) -> bool {
        for (node, known) in self.nodes.iter_mut().filter(|(_, known)| which(known)) {
            let mut out = Vec::new();
            known.assembly.give_up(&mut out);
            known.due = false;
            self.pieces.extend(out.into_iter().map(|piece| (node.clone(), piece)));
        }
        !self.pieces.is_empty()
    }
}

impl Node {
    fn new(since: Option<Timestamp>, due: bool) -> Node {
        Node { assembly: Assembly::new(), since, due, closing: false, read_to: None, heard_at: Instant::now() }
    }
}
