//! A session: a node's messages from one stream, in order, from where the node's journal stands (PROTOCOL §2).
//!
//! A durable consumer alone gives new messages before unacked ones after a crash, and its acks are not durable over a
//! broker crash. So each session sets the consumer where the journal stands and proves that nothing is left out:
//!
//! ```text
//! RESET to the anchor → fresh inbox → raw pulls with idle heartbeats
//!   first message = anchor (same sequence and time)   → go on after it
//!   first message newer in sequence and time          → the anchor was purged or aged out; go on with it
//!   anything else                                     → begin at the node's start: nothing there, or only what is
//!                                                       newer → purged, too; else the stream is not the one the
//!                                                       journal knows, and what it knows is passed over
//! ```
//!
//! Owns anchors, resets, pulls and consumer sequences; outside nobody knows about them. Never acks what it was not told
//! to, and never decides what becomes of a message.

mod place;
mod pulls;
mod reply;

use super::connect::{Broker, Link};
use super::convert::from_wire;
use super::error::BrokerError;
use crate::model::id::{MsgRef, StreamSeq};
use crate::model::message::{StoredMessage, StreamKind};
use crate::model::name::NodeName;
use crate::model::time::Timestamp;
use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use place::{ConsumerInfo, missing_or, place};
use pulls::{BATCH, Broken, Frame, Pulls};
use reply::Delivery;
use serde_json::json;
use std::time::Duration;
use tokio::sync::watch;

/// How long one pull stands; well below the two minutes after which imports across accounts forget a reply.
const PULL_EXPIRES: Duration = Duration::from_secs(30);

/// A heartbeat may be late by this much before it counts as missed.
const HEARTBEAT_LATE: Duration = Duration::from_millis(250);

/// Messages handed over at once, so that one journal transaction stays short.
const HANDED_OVER: usize = 512;

/// Bytes handed over at once.
const HANDED_OVER_BYTES: usize = 8 << 20;

/// Where the node stands in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// Where its messages begin.
    pub start: StreamSeq,
    /// The last message taken, and its size.
    pub last: Option<(MsgRef, u64)>,
    /// The consumer's creation time as it was known when `last` was taken.
    pub created: Option<String>,
    /// How long the broker may take to set the consumer; what lives answers in the time of the way there and back.
    pub patience: Duration,
}

/// How a session found its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Where the journal stands, or at the node's start where nothing was taken yet.
    InPlace,
    /// The last message taken is gone, all that comes is newer: purged or aged out.
    Purged,
    /// The stream is not the one that the journal knows. It is read again from the node's start: a message that the
    /// journal does not know and that was stored no later than this counts as taken.
    Changed {
        /// When the last message taken was stored.
        known_until: Timestamp,
    },
}

/// What was found at the start of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// How the place was found.
    pub found: Found,
    /// The broker's time at the start.
    pub broker_time: Timestamp,
    /// When the consumer was made; to be kept with the position.
    pub created: String,
    /// True where nothing waited when it began.
    pub is_caught_up: bool,
}

/// Messages in stream order.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The messages.
    pub messages: Vec<StoredMessage>,
    /// How many more wait at the broker behind the last one.
    pub pending: u64,
    ack: Option<async_nats::Subject>,
}

/// Why a session ended, or did not begin. Begin another one, after a while.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SessionError {
    /// The consumer is not there; the hub makes it.
    #[error("the consumer is missing on the broker")]
    ConsumerMissing,
    /// Messages went elsewhere, or a pull ended strangely.
    #[error(transparent)]
    Broken(#[from] BrokenSession),
    /// Nothing was heard for two heartbeats.
    #[error("the broker is silent")]
    Silent,
    /// The link came up anew; what was asked for on the old one is void.
    #[error("the link was lost")]
    LinkLost,
    /// The broker did not do what it was asked for.
    #[error(transparent)]
    Broker(BrokerError),
}

impl From<BrokerError> for SessionError {
    fn from(error: BrokerError) -> SessionError {
        match error {
            BrokerError::LinkLost { .. } => SessionError::LinkLost,
            error => SessionError::Broker(error),
        }
    }
}

/// Opaque: see its text.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error(transparent)]
pub struct BrokenSession(Broken);

/// One session.
pub struct Session {
    broker: Broker,
    stream: StreamKind,
    pull_subject: String,
    inbox: String,
    frames: Subscriber,
    pulls: Pulls,
    /// How often the broker says that it is there while it has nothing to deliver.
    heartbeat: Duration,
    /// How often the link had come up when the session began.
    link_times: u64,
    link: watch::Receiver<Link>,
    /// Received, not yet handed over.
    held: Option<Received>,
    /// What ends the session at the next call.
    broken: Option<SessionError>,
}

/// A message, where to ack it, and how many wait behind it.
type Received = (StoredMessage, async_nats::Subject, u64);

impl Session {
    /// Begins a session of `node` on a stream.
    pub async fn open(
        broker: &Broker,
        node: &NodeName,
        stream: StreamKind,
        resume: &Resume,
    ) -> Result<(Session, Start), SessionError> {
        let mut link = broker.link();
        let times = link.borrow().times;
        tokio::select! {
            biased;
            // An answer that the old link took with it never comes: begin again on the new one, not after a timeout.
            _ = link.wait_for(|link| !link.up || link.times != times) => Err(SessionError::LinkLost),
            begun = Session::begin(broker, node, stream, resume) => begun,
        }
    }

    async fn begin(
        broker: &Broker,
        node: &NodeName,
        stream: StreamKind,
        resume: &Resume,
    ) -> Result<(Session, Start), SessionError> {
        let name = broker.names.stream(stream);
        let from = place(broker, &name, node, resume).await?;
        let (mut session, info) = Session::reset(broker, node, stream, from, resume.patience).await?;
        // The count in the RESET's answer can be too low on a consumer that was just made: ask for what is there.
        let first = session.first().await?;
        let anchor = resume.last.map(|(last, _)| last).filter(|last| last.seq == from);
        let is_newer =
            |first: &Received, last: MsgRef| first.0.at.seq > last.seq && first.0.at.stored_at > last.stored_at;
        match (anchor, first) {
            (None, first) => Ok(session.starting_with(first, &info, Found::InPlace)),
            (Some(last), Some((message, _, pending))) if message.at == last => {
                Ok((session, info.start(Found::InPlace, pending == 0)))
            }
            (Some(last), Some(first)) if is_newer(&first, last) => {
                Ok(session.starting_with(Some(first), &info, Found::Purged))
            }
            // Also where nothing comes: the anchor may have been purged with nothing behind it, or the stream may end
            // below it, and then the broker would skip what is stored next.
            (Some(last), _) => {
                drop(session);
                let (mut session, info) = Session::reset(broker, node, stream, resume.start, resume.patience).await?;
                let first = session.first().await?;
                let found = match &first {
                    Some(first) if !is_newer(first, last) => Found::Changed { known_until: last.stored_at },
                    _ => Found::Purged,
                };
                Ok(session.starting_with(first, &info, found))
            }
        }
    }

    fn starting_with(mut self, first: Option<Received>, info: &ConsumerInfo, found: Found) -> (Session, Start) {
        let is_caught_up = first.is_none();
        self.held = first;
        (self, info.start(found, is_caught_up))
    }

    async fn reset(
        broker: &Broker,
        node: &NodeName,
        stream: StreamKind,
        from: StreamSeq,
        patience: Duration,
    ) -> Result<(Session, ConsumerInfo), SessionError> {
        let name = &broker.names.stream(stream);
        let link = broker.link();
        let link_times = link.borrow().times;
        let path = format!("CONSUMER.RESET.{name}.{node}");
        let info: ConsumerInfo = match broker.api_within(&path, &json!({ "seq": from }), patience).await {
            Ok(info) => info,
            // Missing, or lost with its server, or the link is slow: asking for it would take as long again.
            Err(error @ BrokerError::Timeout { .. }) => return Err(error.into()),
            Err(error) => return Err(missing_or(broker, name, node, error, patience).await),
        };
        let inbox = broker.client.new_inbox();
        let frames = broker.client.subscribe(format!("{inbox}.*")).await.map_err(|_| BrokerError::Closed)?;
        let session = Session {
            broker: broker.clone(),
            stream,
            pull_subject: format!("{}.CONSUMER.MSG.NEXT.{name}.{node}", broker.api),
            inbox,
            frames,
            pulls: Pulls::default(),
            heartbeat: broker.heartbeat(),
            link_times,
            link,
            held: None,
            broken: None,
        };
        Ok((session, info))
    }

    /// The first message, where there is one now.
    async fn first(&mut self) -> Result<Option<Received>, SessionError> {
        let number = self.pulls.due().unwrap_or_default();
        self.pull(number, true).await?;
        loop {
            let frame = self.frame().await?;
            if let Some(received) = self.sort(frame)? {
                return Ok(Some(received));
            }
            if self.pulls.are_over() {
                return Ok(None);
            }
        }
    }

    /// The next messages: waits for one, and adds those that are already here. Cancel safe.
    pub async fn next(&mut self) -> Result<Batch, SessionError> {
        let mut batch = Batch::default();
        let mut bytes = 0;
        let (message, ack, pending) = match self.held.take() {
            Some(held) => held,
            None => self.receive().await?,
        };
        let mut add = |batch: &mut Batch, message: StoredMessage, ack, pending| {
            bytes += message.body.len();
            batch.messages.push(message);
            (batch.ack, batch.pending) = (Some(ack), pending);
            bytes
        };
        add(&mut batch, message, ack, pending);
        while batch.messages.len() < HANDED_OVER {
            // Only what is here already: a batch must not wait for company.
            match self.frames.next().now_or_never().flatten().map(|frame| self.sort(frame)) {
                Some(Ok(Some((message, ack, pending)))) => {
                    if add(&mut batch, message, ack, pending) > HANDED_OVER_BYTES {
                        break;
                    }
                }
                Some(Ok(None)) => {}
                Some(Err(error)) => {
                    // This batch is good; the error ends the session at the next call.
                    self.broken = Some(error);
                    break;
                }
                None => break,
            }
        }
        Ok(batch)
    }

    /// Tells the broker that a batch is on the node; with policy `all`, its last message stands for all before it.
    pub async fn ack(&self, batch: &Batch) {
        if let Some(subject) = &batch.ack
            && let Err(error) = self.broker.client.publish(subject.clone(), Bytes::from_static(b"+ACK")).await
        {
            tracing::debug!(%error, "ack");
        }
    }

    async fn receive(&mut self) -> Result<Received, SessionError> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        loop {
            while let Some(number) = self.pulls.due() {
                self.pull(number, false).await?;
            }
            let frame = self.frame().await?;
            if let Some(received) = self.sort(frame)? {
                return Ok(received);
            }
        }
    }

    /// The next frame on the inbox, while the link stays what it was.
    async fn frame(&mut self) -> Result<Message, SessionError> {
        let times = self.link_times;
        tokio::select! {
            biased;
            _ = self.link.wait_for(|link| !link.up || link.times != times) => Err(SessionError::LinkLost),
            frame = tokio::time::timeout(2 * (self.heartbeat + HEARTBEAT_LATE), self.frames.next()) => match frame {
                Err(_) => Err(SessionError::Silent),
                Ok(None) => Err(BrokerError::Closed.into()),
                Ok(Some(message)) => Ok(message),
            },
        }
    }

    async fn pull(&self, number: u64, only_what_is_there: bool) -> Result<(), SessionError> {
        let mut request = json!({
            "batch": BATCH,
            // Less than the largest message would give 409 for ever when such a one is next.
            "max_bytes": HANDED_OVER_BYTES.max(self.broker.max_payload() + 64 * 1024),
        });
        if only_what_is_there {
            request["no_wait"] = true.into();
        } else {
            request["expires"] = json!(PULL_EXPIRES.as_nanos() as u64);
            request["idle_heartbeat"] = json!(self.heartbeat.as_nanos() as u64);
        }
        let reply = format!("{}.{number}", self.inbox);
        let sent =
            self.broker.client.publish_with_reply(self.pull_subject.clone(), reply, Bytes::from(request.to_string()));
        sent.await.map_err(|_| BrokerError::Closed.into())
    }

    /// A frame is a message, or something about the pulls.
    fn sort(&mut self, message: Message) -> Result<Option<Received>, SessionError> {
        if let Some(status) = message.status {
            let header = |name: &str| message.headers.as_ref()?.get(name)?.as_str().parse::<u64>().ok();
            let frame = match status.as_u16() {
                100 => match header("Nats-Last-Consumer") {
                    Some(last) => Frame::Heartbeat(last),
                    None => return Ok(None),
                },
                code => {
                    let number = message.subject.rsplit('.').next().and_then(|n| n.parse().ok()).unwrap_or(0);
                    Frame::End { number, code }
                }
            };
            self.pulls.take(frame).map_err(BrokenSession)?;
            return Ok(None);
        }
        let Some((reply, delivery)) = message.reply.and_then(|r| Delivery::parse(&r, self.stream).map(|d| (r, d)))
        else {
            // Something that is no delivery of a consumer: nobody's message.
            return Ok(None);
        };
        self.pulls.take(Frame::Message(delivery.consumer_seq)).map_err(BrokenSession)?;
        let stored = StoredMessage {
            at: delivery.at,
            subject: message.subject.to_string(),
            headers: from_wire(message.headers.as_ref()),
            body: message.payload,
        };
        Ok(Some((stored, reply, delivery.pending)))
    }
}
