//! Reading streams without consumers: direct gets, batches, and following what the broker republishes.
//!
//! Owns the paging of direct gets and the headers in which the broker tells where a message was stored. Never makes a
//! consumer.

use super::api::API_TIMEOUT;
use super::connect::Broker;
use super::convert::from_wire;
use super::error::BrokerError;
use crate::model::header::RawHeaders;
use crate::model::id::StreamSeq;
use crate::model::time::Timestamp;
use async_nats::{Message, StatusCode, Subscriber};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};

/// A message of any stream, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawMessage {
    /// The subject it was stored under.
    pub subject: String,
    /// Its sequence.
    pub seq: StreamSeq,
    /// When it was stored.
    pub stored_at: Timestamp,
    /// Its own headers, without those in which the broker tells the above.
    pub headers: RawHeaders,
    /// Its body.
    pub body: Bytes,
}

/// Where a reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// At this sequence.
    Seq(StreamSeq),
    /// At the first message stored at this time or later.
    Time(Timestamp),
}

/// Which messages of a stream to read, in stream order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The stream.
    pub stream: String,
    /// A subject, wildcards allowed.
    pub filter: String,
    /// Where to begin.
    pub from: From,
    /// At most so many.
    pub batch: usize,
}

/// One answer to a [`Query`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The messages, oldest first.
    pub messages: Vec<RawMessage>,
    /// How many more match after the last one here.
    pub pending: u64,
}

/// For so many subjects at most the broker answers with their last messages.
pub const LAST_SUBJECTS: usize = 1024;

/// A page of large messages ends after so many bytes: what a reader holds in memory at once.
const PAGE_BYTES: usize = 8 << 20;

/// Headers that the broker adds to what it serves.
const BROKER_HEADERS: [&str; 8] = [
    "Nats-Stream",
    "Nats-Sequence",
    "Nats-Subject",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
    "Nats-UpTo-Sequence",
    "Nats-Stream-Source",
];

impl Broker {
    /// The message at a sequence, where it is there.
    pub async fn get(&self, stream: &str, seq: StreamSeq) -> Result<Option<RawMessage>, BrokerError> {
        self.direct(&format!("DIRECT.GET.{stream}"), json!({ "seq": seq })).await
    }

    /// The last message of a subject, by the form of request that a node's rights can be confined to.
    pub async fn get_last(&self, stream: &str, subject: &str) -> Result<Option<RawMessage>, BrokerError> {
        self.direct(&format!("DIRECT.GET.{stream}.{subject}"), Value::Null).await
    }

    /// The first message at or after `seq` that matches the filter.
    pub async fn get_next(
        &self,
        stream: &str,
        filter: &str,
        seq: StreamSeq,
    ) -> Result<Option<RawMessage>, BrokerError> {
        self.direct(&format!("DIRECT.GET.{stream}"), json!({ "next_by_subj": filter, "seq": seq.0.max(1) })).await
    }

    /// The last message of all that match the filter, wildcards allowed.
    pub async fn get_last_matching(&self, stream: &str, filter: &str) -> Result<Option<RawMessage>, BrokerError> {
        self.direct(&format!("DIRECT.GET.{stream}"), json!({ "last_by_subj": filter })).await
    }

    async fn direct(&self, path: &str, body: Value) -> Result<Option<RawMessage>, BrokerError> {
        let payload = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let message = self.ask_message(&format!("{}.{path}", self.api), payload, API_TIMEOUT).await?;
        match message.status {
            None => parse(&message).map(Some).ok_or_else(|| unreadable(path)),
            Some(StatusCode::NOT_FOUND) => Ok(None),
            Some(status) => Err(refused(path, status, &message)),
        }
    }

    /// The last message of a subject as the stream's leader knows it: what compare-and-set needs, since a direct get may be
    /// answered by a follower that is behind.
    pub async fn get_last_at_leader(&self, stream: &str, subject: &str) -> Result<Option<RawMessage>, BrokerError> {
        self.at_leader(stream, json!({ "last_by_subj": subject })).await
    }

    /// The first message at or after this place that matches the filter, as the stream's leader knows it.
    pub async fn get_next_at_leader(
        &self,
        stream: &str,
        filter: &str,
        from: From,
    ) -> Result<Option<RawMessage>, BrokerError> {
        let body = match from {
            From::Seq(seq) => json!({ "next_by_subj": filter, "seq": seq.0.max(1) }),
            From::Time(time) => json!({ "next_by_subj": filter, "start_time": time }),
        };
        self.at_leader(stream, body).await
    }

    async fn at_leader(&self, stream: &str, body: Value) -> Result<Option<RawMessage>, BrokerError> {
        /// JetStream's code for "no message found".
        const NO_MESSAGE: u64 = 10037;
        let path = format!("STREAM.MSG.GET.{stream}");
        match self.api::<LeaderAnswer>(&path, &body).await {
            Ok(answer) => answer.message.into_message(&path).map(Some),
            Err(error) if error.code() == Some(NO_MESSAGE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One batch of messages. A large answer may stop before `batch`; go on while `pending` is above 0.
    pub async fn read(&self, query: &Query) -> Result<Page, BrokerError> {
        // Less than the largest message would end every page before it.
        let max_bytes = PAGE_BYTES.max(self.max_payload() + 64 * 1024);
        let mut body = json!({ "next_by_subj": query.filter, "batch": query.batch.max(1), "max_bytes": max_bytes });
        match query.from {
            From::Seq(seq) => body["seq"] = json!(seq.0.max(1)),
            From::Time(time) => body["start_time"] = json!(time),
        }
        self.batch(&query.stream, body).await
    }

    /// The last message of each of these subjects (wildcards allowed, at most [`LAST_SUBJECTS`] in the answer).
    pub async fn read_last(&self, stream: &str, subjects: &[String]) -> Result<Page, BrokerError> {
        self.batch(stream, json!({ "multi_last": subjects, "batch": LAST_SUBJECTS })).await
    }

    /// The last message of each of these subjects of those that are stored before `seq`.
    pub async fn read_last_before(
        &self,
        stream: &str,
        subjects: &[String],
        seq: StreamSeq,
    ) -> Result<Page, BrokerError> {
        let up_to = seq.0.saturating_sub(1);
        // To the broker 0 is no bound.
        if up_to == 0 {
            return Ok(Page::default());
        }
        self.batch(stream, json!({ "multi_last": subjects, "batch": LAST_SUBJECTS, "up_to_seq": up_to })).await
    }

    async fn batch(&self, stream: &str, body: Value) -> Result<Page, BrokerError> {
        let what = format!("DIRECT.GET.{stream}");
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(inbox.clone()).await.map_err(|_| BrokerError::Closed)?;
        let subject = format!("{}.{what}", self.api);
        let payload = Bytes::from(body.to_string());
        self.count_request();
        let mark = self.mark();
        let asked = self.client.publish_with_reply(subject.clone(), inbox, payload);
        asked.await.map_err(|_| BrokerError::Closed)?;
        let mut page = Page::default();
        loop {
            let message = tokio::select! {
                biased;
                answer = tokio::time::timeout(API_TIMEOUT, answers.next()) => answer
                    .map_err(|_| BrokerError::Timeout { what: what.clone(), after: API_TIMEOUT })?
                    .ok_or(BrokerError::Closed)?,
                error = self.no_answer(&subject, mark) => return Err(error),
            };
            match message.status.map(|s| s.as_u16()) {
                None => {
                    page.pending = pending(&message).unwrap_or(page.pending);
                    page.messages.push(parse(&message).ok_or_else(|| unreadable(&what))?);
                }
                // End of batch.
                Some(204) => {
                    page.pending = pending(&message).unwrap_or(page.pending);
                    return Ok(page);
                }
                Some(404) => return Ok(page),
                Some(503) => return Err(BrokerError::NoResponders { what }),
                Some(_) => return Err(refused(&what, message.status.unwrap_or_default(), &message)),
            }
        }
    }

    /// Reads everything that matches, page by page, at most `limit` messages.
    pub async fn read_all(
        &self,
        stream: &str,
        filter: &str,
        from: From,
        limit: usize,
    ) -> Result<Vec<RawMessage>, BrokerError> {
        const PAGE: usize = 1000;
        let mut all: Vec<RawMessage> = Vec::new();
        let mut from = from;
        loop {
            let batch = PAGE.min(limit.saturating_sub(all.len()));
            if batch == 0 {
                return Ok(all);
            }
            let query = Query { stream: stream.to_owned(), filter: filter.to_owned(), from, batch };
            let page = self.read(&query).await?;
            let Some(last) = page.messages.last() else { return Ok(all) };
            from = From::Seq(StreamSeq(last.seq.0 + 1));
            all.extend(page.messages);
            if page.pending == 0 {
                return Ok(all);
            }
        }
    }

    /// Follows what the broker stores from now on under `subject` (which begins with the prefix), as republished.
    pub async fn follow(&self, subject: &str) -> Result<Follower, BrokerError> {
        let subscriber = self.client.subscribe(self.names.stored(subject)).await.map_err(|_| BrokerError::Closed)?;
        // On its way before anything that is asked from here on: what is stored after an answer to that is seen.
        self.flush(API_TIMEOUT).await;
        Ok(Follower { subscriber })
    }

    /// Follows node state (`spec`, `status`, `hello`) as it is stored; subjects are the bucket's own.
    pub async fn follow_nodes(&self, key_pattern: &str) -> Result<Follower, BrokerError> {
        let subject = format!("{}.nodes.{key_pattern}", self.names.prefix());
        self.follow(&subject).await
    }
}

/// What is stored from a moment on. It may miss messages while the link is down: whoever must not miss any reads again.
#[derive(Debug)]
pub struct Follower {
    subscriber: Subscriber,
}

impl Follower {
    /// The next message; `None` when the connection is closed for good.
    pub async fn next(&mut self) -> Option<RawMessage> {
        loop {
            let message = self.subscriber.next().await?;
            // Only the broker's own repetition tells a sequence; anything else on these subjects is nobody's record.
            if let Some(parsed) = parse(&message) {
                return Some(parsed);
            }
        }
    }
}

#[derive(Deserialize)]
struct LeaderAnswer {
    message: LeaderMessage,
}

#[derive(Deserialize)]
struct LeaderMessage {
    subject: String,
    seq: StreamSeq,
    time: Timestamp,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

impl LeaderMessage {
    fn into_message(self, path: &str) -> Result<RawMessage, BrokerError> {
        let decode = |text: &str| {
            BASE64
                .decode(text)
                .map_err(|e| BrokerError::BadAnswer { what: path.to_owned(), reason: format!("not base64: {e}") })
        };
        let headers = wire_headers(&String::from_utf8_lossy(&decode(&self.hdrs)?));
        let body = Bytes::from(decode(&self.data)?);
        Ok(RawMessage { subject: self.subject, seq: self.seq, stored_at: self.time, headers, body })
    }
}

/// Headers as they are on the wire: a version line, then `name: value` lines.
fn wire_headers(text: &str) -> RawHeaders {
    let pair = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    RawHeaders(text.split("\r\n").skip(1).filter_map(pair).collect())
}

fn parse(message: &Message) -> Option<RawMessage> {
    let mut headers = from_wire(message.headers.as_ref());
    // A message may carry such headers of its own; the broker's stand last.
    let own = |name: &str| headers.0.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let seq = own("Nats-Sequence")?.parse().ok()?;
    let stored_at = own("Nats-Time-Stamp")?.parse().ok()?;
    let subject = own("Nats-Subject")?;
    headers.0.retain(|(name, _)| !BROKER_HEADERS.contains(&name.as_str()));
    Some(RawMessage { subject, seq: StreamSeq(seq), stored_at, headers, body: message.payload.clone() })
}

fn pending(message: &Message) -> Option<u64> {
    message.headers.as_ref()?.get("Nats-Num-Pending")?.as_str().parse().ok()
}

fn unreadable(what: &str) -> BrokerError {
    BrokerError::BadAnswer { what: what.to_owned(), reason: "no sequence, time or subject in its headers".to_owned() }
}

fn refused(what: &str, status: StatusCode, message: &Message) -> BrokerError {
    BrokerError::Refused {
        what: what.to_owned(),
        code: u64::from(status.as_u16()),
        description: message.description.clone().unwrap_or_default(),
    }
}
