//! Sending: one message to several targets, stored with the broker's word for each.
//!
//! Owns headers and dedup keys of what our tools send, repeating until the broker answers, and what a duplicate means.
//! Never waits for what becomes of it.

use crate::broker::{Broker, BrokerError, Outgoing, PublishError};
use crate::methods::Registry;
use crate::model::header::{MsgHeaders, RawHeaders, names};
use crate::model::id::{IdRef, MessageId, StreamSeq};
use crate::model::jitter::Backoff;
use crate::model::message::{Kind, StreamKind};
use crate::model::name::{LaneToken, MethodName, Sender, Target};
use crate::model::subject::{MsgSubject, Names};
use crate::model::time::Timestamp;
use bytes::Bytes;
use futures::StreamExt;
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::Instant;

/// How much of the broker's `max_payload` a body leaves free: headers, and those that a replay adds.
pub const BODY_RESERVE: usize = 4096;

/// How long one publish waits for the broker's word before it is repeated.
const ONE_TRY: Duration = Duration::from_secs(3);

/// Publishes on their way at once: the broker stores one after the other anyway, so more would only queue there.
const IN_FLIGHT: usize = 64;

/// A message that is not sent yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Whom it is for; the same target twice is one.
    pub to: Vec<Target>,
    /// Its kind.
    pub kind: Kind,
    /// What to do.
    pub method: MethodName,
    /// A lane of its own.
    pub lane: Option<LaneToken>,
    /// What it says besides.
    pub headers: MsgHeaders,
    /// The id: the same for all targets.
    pub id: MessageId,
    /// True where a person gave the id: it may be used up.
    pub id_given: bool,
    /// The body.
    pub body: Bytes,
}

impl Draft {
    /// A message with an id of its own and nothing else said.
    pub fn new(to: Vec<Target>, kind: Kind, method: MethodName, body: impl Into<Bytes>) -> Draft {
        Draft {
            to,
            kind,
            method,
            lane: None,
            headers: MsgHeaders::default(),
            id: MessageId::fresh(),
            id_given: false,
            body: body.into(),
        }
    }

    /// The targets, each once, in the order given.
    pub fn targets(&self) -> Vec<&Target> {
        let mut seen = HashSet::new();
        self.to.iter().filter(|target| seen.insert(*target)).collect()
    }
}

/// The kind that a method's messages have: what this release knows of it, else command.
pub fn usual_kind(method: &MethodName) -> Kind {
    Registry::default().kind_of(method.as_str()).unwrap_or(Kind::Command)
}

/// How to send.
#[derive(Debug, Clone, Copy)]
pub struct SendOptions {
    /// How long a publish is repeated while the broker does not answer.
    pub deadline: Duration,
}

impl Default for SendOptions {
    fn default() -> SendOptions {
        SendOptions { deadline: Duration::from_secs(15) }
    }
}

/// Where a message was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The stream.
    pub stream: StreamKind,
    /// The sequence.
    pub seq: StreamSeq,
    /// True where the very same message was stored before.
    pub again: bool,
}

impl Sent {
    /// How a person names it: `42` or `e42`.
    pub fn id_ref(&self) -> IdRef {
        IdRef::Stored(self.stream, self.seq)
    }
}

/// Why a message is not known to be stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SendError {
    /// The body leaves no room for headers; not sent.
    #[error(
        "the body has {size} bytes; the broker takes messages of {limit}, of which {BODY_RESERVE} are kept for headers"
    )]
    TooLarge {
        /// The body's size.
        size: usize,
        /// The broker's `max_payload`.
        limit: usize,
    },
    /// Another message has this id; not stored.
    #[error("the id `{id}` is already used by another message, stored as {}{}", .stored.id_ref(), when(*.stored_at))]
    IdUsed {
        /// The id.
        id: MessageId,
        /// The other message.
        stored: Sent,
        /// When it was stored, where it is still there.
        stored_at: Option<Timestamp>,
    },
    /// The broker does not let us publish there; not stored.
    #[error("no right to publish to `{subject}`")]
    Denied {
        /// The subject.
        subject: String,
    },
    /// The broker refuses, or has no stream for it; not stored.
    #[error("not stored")]
    Refused(#[source] PublishError),
    /// It cannot be sent as it is; not stored.
    #[error("cannot be sent")]
    Unsendable(#[source] PublishError),
    /// The broker did not answer until the deadline: it may be stored or not. The same id again is safe.
    #[error("the broker did not say whether it stored it")]
    Unknown,
    /// It is stored, or another is, and the broker could not be asked which.
    #[error("the broker has a message with this id, and it could not be read")]
    Unread(#[source] BrokerError),
}

fn when(stored_at: Option<Timestamp>) -> String {
    stored_at.map(|at| format!(" at {at}")).unwrap_or_default()
}

/// What came of the message to one target.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The target.
    pub to: Target,
    /// Where it was stored, or why not.
    pub result: Result<Sent, SendError>,
}

/// The message to one target, as it is published.
pub fn outgoing(broker_names: &Names, from: &Sender, draft: &Draft, to: &Target) -> Outgoing {
    let subject = MsgSubject {
        to: to.clone(),
        kind: draft.kind,
        from: from.clone(),
        method: draft.method.clone(),
        lane: draft.lane.clone(),
    };
    let mut headers = RawHeaders::default();
    MsgHeaders { id: Some(draft.id.clone()), ..draft.headers.clone() }.write(draft.kind, &mut headers);
    headers.push(names::MSG_ID, format!("{from}.{}.{to}", draft.id));
    Outgoing { subject: broker_names.message(&subject), headers, body: draft.body.clone() }
}

/// Stores the message for every target, and tells for each what came of it, in the targets' order.
pub async fn send(broker: &Broker, from: &Sender, draft: &Draft, options: &SendOptions) -> Vec<Delivery> {
    let until = Instant::now() + options.deadline;
    let publishes = draft.targets().into_iter().map(|to| {
        let message = outgoing(broker.names(), from, draft, to);
        async move {
            let result = store(broker, draft, &message, until).await;
            Delivery { to: to.clone(), result }
        }
    });
    futures::stream::iter(publishes).buffered(IN_FLIGHT).collect().await
}

async fn store(broker: &Broker, draft: &Draft, message: &Outgoing, until: Instant) -> Result<Sent, SendError> {
    let limit = broker.max_payload();
    if draft.body.len() + BODY_RESERVE > limit {
        return Err(SendError::TooLarge { size: draft.body.len(), limit });
    }
    let stored = publish_until(broker, message, until).await?;
    let Some(stream) = broker.names().stream_kind(&stored.stream) else {
        let description = format!("the stream `{}` took it, which is none of edgeward's", stored.stream);
        return Err(SendError::Refused(PublishError::Refused { code: 0, description }));
    };
    let sent = Sent { stream, seq: stored.seq, again: stored.duplicate };
    if stored.duplicate && draft.id_given {
        compare(broker, &draft.id, message, sent).await?;
    }
    Ok(sent)
}

/// Publishes until the broker answers or the time is over. Repeats carry the same `Nats-Msg-Id`: it is stored once.
async fn publish_until(
    broker: &Broker,
    message: &Outgoing,
    until: Instant,
) -> Result<crate::broker::Stored, SendError> {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    // A try without an answer may have been stored, whatever the broker says to a later one.
    let mut may_be_stored = false;
    loop {
        match broker.publish(message, ONE_TRY).await {
            Ok(stored) => return Ok(stored),
            Err(PublishError::Unknown) => may_be_stored = true,
            // A stream that has lost its leader is deaf until the others have elected one.
            Err(error) if error.lacks_leader() && broker.is_clustered() && Instant::now() < until => {}
            Err(_) if may_be_stored => return Err(SendError::Unknown),
            Err(error) => return Err(not_stored(error)),
        }
        if Instant::now() >= until {
            return Err(SendError::Unknown);
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// What the broker said to the only try.
fn not_stored(error: PublishError) -> SendError {
    match error {
        PublishError::Unknown | PublishError::Closed => SendError::Unknown,
        PublishError::Denied { subject } => SendError::Denied { subject },
        PublishError::TooLarge { .. } | PublishError::Unsendable(_) => SendError::Unsendable(error),
        PublishError::NoStream | PublishError::Refused { .. } | PublishError::WrongLast => SendError::Refused(error),
    }
}

/// A person's id came back as a duplicate: is what is stored the same message?
async fn compare(broker: &Broker, id: &MessageId, message: &Outgoing, sent: Sent) -> Result<(), SendError> {
    let stored = broker.get(&broker.names().stream(sent.stream), sent.seq).await.map_err(SendError::Unread)?;
    match stored {
        Some(stored)
            if stored.subject == message.subject
                && stored.body == message.body
                && fleet_headers(&stored.headers) == fleet_headers(&message.headers) =>
        {
            Ok(())
        }
        stored => {
            Err(SendError::IdUsed { id: id.clone(), stored: sent, stored_at: stored.map(|stored| stored.stored_at) })
        }
    }
}

fn fleet_headers(headers: &RawHeaders) -> Vec<(String, &str)> {
    let lower = headers.0.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()));
    let mut ours: Vec<(String, &str)> = lower.filter(|(name, _)| name.starts_with("fleet-")).collect();
    ours.sort();
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft() -> Draft {
        let to = ["ship1", "@web", "ship1"].into_iter().map(|t| t.parse().unwrap()).collect();
        let mut draft = Draft::new(to, Kind::Command, "shell".parse().unwrap(), "uname -a");
        draft.id = MessageId::given("restart-7").unwrap();
        draft
    }

    #[test]
    fn a_message_has_its_id_and_a_key_of_its_own_for_each_target() {
        let draft = draft();
        assert_eq!(draft.targets().len(), 2);
        let message = outgoing(&Names::default(), &"ops".parse().unwrap(), &draft, draft.targets()[1]);
        assert_eq!(message.subject, "fleet.msg.@web.command.ops.shell");
        assert_eq!(message.headers.get("Nats-Msg-Id"), Some("ops.restart-7.@web"));
        assert_eq!(message.headers.get("Fleet-Id"), Some("restart-7"));
        assert_eq!(message.headers.get("Fleet-Kind"), Some("command"));
    }

    #[test]
    fn only_what_edgeward_reads_is_compared() {
        let headers = |pairs: &[(&str, &str)]| {
            RawHeaders(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
        };
        let ours = headers(&[("Fleet-Id", "a"), ("Fleet-Kind", "command"), ("Nats-Msg-Id", "x")]);
        let stored = headers(&[("fleet-kind", "command"), ("Fleet-ID", "a"), ("X-Trace", "1")]);
        assert_eq!(fleet_headers(&ours), fleet_headers(&stored));
        assert_ne!(fleet_headers(&ours), fleet_headers(&headers(&[("Fleet-Id", "A"), ("Fleet-Kind", "command")])));
    }

    #[test]
    fn events_are_events_by_their_method() {
        assert_eq!(usual_kind(&"log".parse().unwrap()), Kind::Event);
        assert_eq!(usual_kind(&"shell".parse().unwrap()), Kind::Command);
    }
}
