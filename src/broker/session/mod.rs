//! A session: a node's messages from one stream, in order, from where the node's journal stands.
//!
//! A durable consumer alone gives new messages before unacked ones after a crash, and its acks are not durable over a
//! broker crash. So each session sets the consumer where the journal stands and proves that nothing is left out:
//!
//! ```text
//! RESET to the anchor → fresh inbox → raw pulls with idle heartbeats
//!   first message = anchor (same sequence and time)   → go on after it
//!   anything else                                     → look at the node's start, then at messages taken earlier
//!                                                       (`finding`), until a place is found to go on from
//! ```
//!
//! The **anchor** is the last message taken that the consumer's filters still reach, the **position** the last one taken;
//! they differ once the node has left a group. Messages taken earlier are asked for one by one ([`Anchors`]); which of
//! those that come again are known is for whoever takes them to tell.
//!
//! Owns anchors, resets, pulls and consumer sequences; outside nobody knows about them. Never acks what it was not told
//! to, and never decides what becomes of a message.

mod finding;
mod open;
mod place;
mod pulls;
mod reply;

use super::connect::{Broker, Link};
use super::convert::from_wire;
use super::error::BrokerError;
use crate::model::id::{MsgRef, StreamSeq};
use crate::model::message::{StoredMessage, StreamKind};
use crate::model::time::Timestamp;
use async_nats::{Message, Subscriber};
use bytes::Bytes;
use finding::Doubt;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use pulls::{BATCH, Broken, Frame, Pulls};
use reply::Delivery;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

pub use finding::Earlier;

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
    /// The last message taken.
    pub last: Option<MsgRef>,
    /// The last message taken that the filters still reach, and its size in bytes.
    pub anchor: Option<(MsgRef, u64)>,
    /// The consumer's creation time as it was known when `last` was taken.
    pub created: Option<String>,
    /// How long the broker may take to set the consumer; what lives answers in the time of the way there and back.
    pub patience: Duration,
}

/// What the node has taken from a stream.
pub trait Anchors: Send + Sync {
    /// The message taken `steps` before the last one, of those that the filters still reach; the oldest that can stand
    /// for a place where there are fewer.
    fn earlier(&self, steps: u64) -> BoxFuture<'_, Result<Option<Earlier>, AnchorError>>;
}

/// Why the node cannot tell what it has taken.
pub type AnchorError = Box<dyn std::error::Error + Send + Sync>;

/// How a session found its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Where the node stands, or at its start where nothing was taken yet.
    InPlace,
    /// The last message taken is gone, what comes is newer: deleted, purged or aged out.
    Purged,
    /// The last message taken is gone, an earlier one is there: what comes after that and is not known was not taken.
    SteppedBack {
        /// How many messages back.
        steps: u64,
        /// The message to which stream and node agree.
        agreed: MsgRef,
    },
    /// The stream is not the one that the node knows. It is read again from the node's start.
    Changed,
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
    /// What these messages tell about the stream, where it could not be told when the session began.
    pub found: Option<Found>,
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
    /// The node cannot tell what it has taken.
    #[error("what was taken cannot be told: {0}")]
    Anchors(Arc<dyn std::error::Error + Send + Sync>),
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
    /// What the next messages will decide.
    doubt: Option<Doubt>,
    /// What ends the session at the next call.
    broken: Option<SessionError>,
}

/// A message, where to ack it, and how many wait behind it.
type Received = (StoredMessage, async_nats::Subject, u64);

impl Session {
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
        batch.found = self.decide(&batch.messages);
        Ok(batch)
    }

    /// What the session was in doubt of, where these messages decide it.
    fn decide(&mut self, messages: &[StoredMessage]) -> Option<Found> {
        let doubt = self.doubt?;
        let decided = messages.iter().find_map(|message| doubt.over(message.at))?;
        self.doubt = None;
        decided
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
            while let Some(number) = self.pulls.due(BATCH) {
                self.pull(number, BATCH, false).await?;
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

    async fn pull(&self, number: u64, count: u64, only_what_is_there: bool) -> Result<(), SessionError> {
        let mut request = json!({
            "batch": count,
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
