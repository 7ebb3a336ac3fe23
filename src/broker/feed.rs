//! What is stored, handed to the hub: a durable that all hubs share.
//!
//! Owns the shared durables `_hub` and their raw pulls. Gives no bodies on; an ack follows once a message's fate is durable,
//! and what was not acked comes again. Never says what a message means.
//!
//! The durables are not `headers_only`, although no body is needed: nats-server 2.15.1 takes two bytes off the block of
//! headers for such a consumer, whatever they are. A block of one byte, which anybody who may send a command can store, ends
//! the broker with a panic at the hub's pull, and again after each restart.

use super::api::nanos;
use super::connect::{Broker, Link};
use super::convert::from_wire;
use super::error::BrokerError;
use super::read::{From, RawMessage};
use crate::model::id::StreamSeq;
use crate::model::jitter::Backoff;
use crate::model::message::StreamKind;
use crate::model::time::Timestamp;
use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::watch;

/// The durable that all hubs share on each stream.
const DURABLE: &str = "_hub";

/// How long a hub may take over a message before another one gets it; what a hub that died had in hand waits as long. A
/// fate takes milliseconds, and giving one twice is harmless.
const ACK_WAIT: Duration = Duration::from_secs(10);

/// Messages that all hubs together may have in hand, those given back included: while many of these wait for something that
/// fails, such as a full stream, others still come.
const MAX_ACK_PENDING: usize = 20_000;

/// Messages asked for at once.
const BATCH: usize = 512;

/// Bytes asked for at once: what a hub may have in memory, bodies included. A pull that has no room for the largest message
/// would fail for ever.
const MAX_BYTES: usize = 8 << 20;

/// How long the broker keeps a pull open.
const PULL: Duration = Duration::from_secs(30);

/// One message of a feed, without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The message; its body is empty.
    pub message: RawMessage,
    /// How often it has been given, this time included.
    pub tries: u32,
    reply: String,
}

/// The messages of one stream that no hub has dealt with yet, oldest first; what was not acked in time comes again.
#[derive(Debug)]
pub struct Feed {
    broker: Broker,
    stream: String,
    filter: Option<String>,
    link: watch::Receiver<Link>,
    backoff: Backoff,
    pull: Option<Pull>,
    /// The durable has been made, or brought to what is wanted, since the start.
    is_made: bool,
}

/// One inbox with one pull on it.
#[derive(Debug)]
struct Pull {
    inbox: String,
    answers: Subscriber,
    /// Messages that the pull still owes.
    left: usize,
    /// How often the link had come up when it began; pulls do not outlive a connection.
    times: u64,
}

/// What an answer to a pull is.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Message(Delivery),
    Heartbeat,
    /// The pull is over as it should be; another one goes on.
    Over,
    /// There is no consumer.
    NoConsumer,
    /// The pull failed.
    Failed(String),
}

impl Feed {
    /// The feed of a stream, of the subjects that match the filter where one is given. Nothing is asked of the broker yet.
    pub fn new(broker: &Broker, stream: String, filter: Option<String>) -> Feed {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        Feed { broker: broker.clone(), link: broker.link(), stream, filter, backoff, pull: None, is_made: false }
    }

    /// Waits for messages: at least one, at most what one pull gives. It outlives lost links and lost consumers, and fails
    /// only when the connection is closed for good. Dropping the future loses nothing: what it held comes again.
    pub async fn next(&mut self) -> Result<Vec<Delivery>, BrokerError> {
        loop {
            match self.try_next().await {
                Ok(batch) if !batch.is_empty() => {
                    self.backoff.reset();
                    return Ok(batch);
                }
                Ok(_) => {}
                Err(BrokerError::Closed) => return Err(BrokerError::Closed),
                Err(error) => {
                    self.pull = None;
                    let wait = self.broker.shortened(self.backoff.next_wait());
                    tracing::warn!(stream = %self.stream, %error, "no messages from the hubs' consumer; trying again");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Tells the broker that these messages' fates are durable. Not waited for: a lost ack brings a message again.
    pub async fn ack(&self, delivery: &Delivery) -> Result<(), BrokerError> {
        let ack = self.broker.client.publish(delivery.reply.clone(), Bytes::from_static(b"+ACK"));
        ack.await.map_err(|_| BrokerError::Closed)
    }

    /// Gives a message back whose fate could not be made durable, to come again soon; the oftener it came, the later.
    pub async fn give_back(&self, delivery: &Delivery) -> Result<(), BrokerError> {
        let delay = Duration::from_secs(1 << delivery.tries.saturating_sub(1).min(5)).min(ACK_WAIT);
        let nak = format!("-NAK {}", json!({ "delay": nanos(delay) }));
        let sent = self.broker.client.publish(delivery.reply.clone(), nak.into());
        sent.await.map_err(|_| BrokerError::Closed)
    }

    async fn try_next(&mut self) -> Result<Vec<Delivery>, BrokerError> {
        let mut pull = match self.pull.take() {
            Some(pull) => pull,
            None => self.start().await?,
        };
        if pull.left == 0 {
            self.ask(&mut pull).await?;
        }
        let silence = self.broker.heartbeat() * 2 + Duration::from_secs(1);
        let first = tokio::select! {
            answer = pull.answers.next() => answer.ok_or(BrokerError::Closed)?,
            () = link_came_up(&mut self.link, pull.times) => return Ok(Vec::new()),
            () = tokio::time::sleep(silence) => {
                return Err(BrokerError::Timeout { what: self.next_path(), after: silence });
            }
        };
        let mut batch = Vec::new();
        let mut answer = Some(first);
        while let Some(message) = answer {
            match self.read(&message) {
                Answer::Message(delivery) => {
                    batch.push(delivery);
                    pull.left = pull.left.saturating_sub(1);
                }
                Answer::Heartbeat => {}
                Answer::Over => pull.left = 0,
                Answer::NoConsumer => {
                    self.ensure_durable().await?;
                    return Ok(batch);
                }
                Answer::Failed(reason) => {
                    return if batch.is_empty() { Err(self.failed(reason)) } else { Ok(batch) };
                }
            }
            let ended = pull.left == 0;
            answer = if ended { None } else { pull.answers.next().now_or_never().flatten() };
        }
        self.pull = Some(pull);
        Ok(batch)
    }

    /// A fresh inbox, once the link is up.
    async fn start(&mut self) -> Result<Pull, BrokerError> {
        self.broker.wait_up().await?;
        let times = self.link.borrow_and_update().times;
        if !self.is_made {
            self.ensure_durable().await?;
            self.is_made = true;
        }
        let inbox = self.broker.client.new_inbox();
        let answers = self.broker.client.subscribe(inbox.clone()).await.map_err(|_| BrokerError::Closed)?;
        Ok(Pull { inbox, answers, left: 0, times })
    }

    async fn ask(&self, pull: &mut Pull) -> Result<(), BrokerError> {
        let largest = self.broker.max_payload() + (64 << 10);
        let body = json!({
            "batch": BATCH,
            "max_bytes": largest.max(MAX_BYTES),
            "expires": nanos(PULL),
            "idle_heartbeat": nanos(self.broker.heartbeat()),
        });
        let subject = format!("{}.{}", self.broker.api, self.next_path());
        let sent = self.broker.client.publish_with_reply(subject, pull.inbox.clone(), body.to_string().into());
        sent.await.map_err(|_| BrokerError::Closed)?;
        pull.left = BATCH;
        Ok(())
    }

    fn next_path(&self) -> String {
        format!("CONSUMER.MSG.NEXT.{}.{DURABLE}", self.stream)
    }

    fn failed(&self, description: String) -> BrokerError {
        BrokerError::Refused { what: self.next_path(), code: 409, description }
    }

    /// Makes the durable, or brings one of an older release up to date; the same again is harmless, so several hubs may do it
    /// at once.
    async fn ensure_durable(&self) -> Result<(), BrokerError> {
        tracing::debug!(stream = %self.stream, "making the hubs' consumer");
        let mut config = json!({
            "durable_name": DURABLE,
            "name": DURABLE,
            "ack_policy": "explicit",
            "ack_wait": nanos(ACK_WAIT),
            "max_deliver": -1,
            "max_ack_pending": MAX_ACK_PENDING,
            "deliver_policy": "all",
            // As many as the stream has: lost with a server, it would begin at the first message again.
            "num_replicas": 0,
        });
        if let Some(filter) = &self.filter {
            config["filter_subject"] = json!(filter);
        }
        let body = json!({ "stream_name": self.stream, "config": config });
        // With one filter its subject is part of the request's; without, the name is the end.
        let path = match &self.filter {
            Some(filter) => format!("CONSUMER.CREATE.{}.{DURABLE}.{filter}", self.stream),
            None => format!("CONSUMER.CREATE.{}.{DURABLE}", self.stream),
        };
        self.broker.api::<Value>(&path, &body).await.map(drop)
    }

    fn read(&self, message: &Message) -> Answer {
        let description = || message.description.clone().unwrap_or_default();
        match message.status.map(|status| status.as_u16()) {
            None => match delivery(message) {
                Some(delivery) => Answer::Message(delivery),
                None => Answer::Failed("a message without an ack subject".to_owned()),
            },
            Some(100) => Answer::Heartbeat,
            // Expired, all given, or as many bytes as were asked for.
            Some(408) => Answer::Over,
            Some(409) if ["Batch Completed", "MaxBytes"].iter().any(|end| description().contains(end)) => Answer::Over,
            Some(409) if description().contains("Consumer Deleted") => Answer::NoConsumer,
            Some(503) => Answer::NoConsumer,
            Some(code) => Answer::Failed(format!("{code} {}", description())),
        }
    }
}

impl Broker {
    /// True where the fates of all messages of a stream below this one are durable: none of them is still to be acked on the
    /// hubs' consumer.
    pub async fn is_settled_below(&self, stream: StreamKind, seq: StreamSeq) -> Result<bool, BrokerError> {
        let name = self.names.stream(stream);
        let Some(floor) = self.durable_progress(&name, DURABLE).await?.map(|progress| progress.ack_floor) else {
            return Ok(false);
        };
        // The floor stays at the last one acked, however many sequences behind it are empty.
        let filter = format!("{}.msg.>", self.names.prefix());
        let open = self.get_next_at_leader(&name, &filter, From::Seq(StreamSeq(floor.0 + 1))).await?;
        Ok(open.is_none_or(|open| open.seq >= seq))
    }
}

/// Waits until the link has come up again after the `times`th time.
async fn link_came_up(link: &mut watch::Receiver<Link>, times: u64) {
    if link.wait_for(|link| link.times > times).await.is_err() {
        // The client is gone; the subscription's end tells it.
        std::future::pending::<()>().await;
    }
}

fn delivery(message: &Message) -> Option<Delivery> {
    let reply = message.reply.as_ref()?.to_string();
    let Place { tries, seq, stored_at } = place(&reply)?;
    // Bodies end here: a batch waits in memory for its fates.
    let headers = from_wire(message.headers.as_ref());
    let subject = message.subject.to_string();
    Some(Delivery { message: RawMessage { subject, seq, stored_at, headers, body: Bytes::new() }, tries, reply })
}

/// What an ack subject tells of a message.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    tries: u32,
    seq: StreamSeq,
    stored_at: Timestamp,
}

/// Reads `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`, in the newer form with
/// domain and account before the stream, and room for more at its end.
fn place(reply: &str) -> Option<Place> {
    let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
    let first = match tokens.len() {
        7 => 2,
        n if n >= 9 => 4,
        _ => return None,
    };
    let number = |at: usize| tokens.get(first + at);
    Some(Place {
        tries: number(0)?.parse().ok()?,
        seq: StreamSeq(number(1)?.parse().ok()?),
        stored_at: Timestamp::from_nanos(number(3)?.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_ack_subjects_are_read() {
        let stored_at = Timestamp::from_nanos(1_700_000_000_000_000_001);
        let expected = Some(Place { tries: 3, seq: StreamSeq(42), stored_at });
        assert_eq!(place("$JS.ACK.S._hub.3.42.7.1700000000000000001.0"), expected);
        assert_eq!(place("$JS.ACK._.yyrAQgBn.S._hub.3.42.7.1700000000000000001.0"), expected);
        assert_eq!(place("$JS.ACK._.yyrAQgBn.S._hub.3.42.7.1700000000000000001.0.x.y"), expected);
        for bad in ["", "$JS.ACK.S._hub.1.42.7", "$JS.ACK.S._hub.1.x.7.1.0", "_INBOX.a.b.c.d.e.f.g.h"] {
            assert_eq!(place(bad), None, "{bad}");
        }
    }
}
