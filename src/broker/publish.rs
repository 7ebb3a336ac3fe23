//! Publishing with the broker's word that it is stored.
//!
//! Owns what an answer means: stored, a duplicate, refused, or not known. Never retries; who publishes decides that.

use super::connect::Broker;
use super::convert::to_wire;
use super::error::{BrokerError, PublishError};
use crate::model::header::{RawHeaders, names};
use crate::model::id::StreamSeq;
use async_nats::{HeaderMap, RequestErrorKind};
use bytes::Bytes;
use serde::Deserialize;
use std::time::Duration;

/// One message to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: RawHeaders,
    /// Its body.
    pub body: Bytes,
}

impl Outgoing {
    /// A message without headers.
    pub fn new(subject: impl Into<String>, body: impl Into<Bytes>) -> Outgoing {
        Outgoing { subject: subject.into(), headers: RawHeaders::default(), body: body.into() }
    }

    /// To be stored only where the last message of its subject has this sequence; 0: where there is none.
    #[must_use]
    pub fn expecting_last(mut self, seq: u64) -> Outgoing {
        self.headers.push(names::EXPECTED_LAST_SUBJECT_SEQ, seq.to_string());
        self
    }

    /// With a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Outgoing {
        self.headers.push(name, value);
        self
    }

    /// Its size on the wire, nearly: what counts against `max_payload`.
    pub fn size(&self) -> usize {
        self.parcel().size()
    }

    /// The same, lent.
    pub fn parcel(&self) -> Parcel<'_> {
        Parcel { subject: &self.subject, headers: &self.headers, body: &self.body }
    }
}

/// One message to be stored that somebody else holds.
#[derive(Debug, Clone, Copy)]
pub struct Parcel<'a> {
    /// Its subject.
    pub subject: &'a str,
    /// Its headers.
    pub headers: &'a RawHeaders,
    /// Its body.
    pub body: &'a Bytes,
}

impl Parcel<'_> {
    pub(super) fn size(&self) -> usize {
        let headers: usize = self.headers.0.iter().map(|(n, v)| n.len() + v.len() + 4).sum();
        self.body.len() + headers + if headers > 0 { 12 } else { 0 }
    }
}

/// The broker's word.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Stored {
    /// The stream that holds it.
    pub stream: String,
    /// Its sequence.
    pub seq: StreamSeq,
    /// True where a message with the same `Nats-Msg-Id` was already stored there, and nothing new was.
    #[serde(default)]
    pub duplicate: bool,
}

#[derive(Deserialize)]
struct PubAck {
    error: Option<ApiError>,
    stream: Option<String>,
    seq: Option<StreamSeq>,
    #[serde(default)]
    duplicate: bool,
}

#[derive(Deserialize)]
struct ApiError {
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// The subject's last message is another one than was expected.
const WRONG_LAST_SEQUENCE: u64 = 10071;

/// A cluster has another message under way, of this `Nats-Msg-Id` or this subject: it may be this very one, sent before, and
/// may still come to nothing. In words of nats-server: duplicate message id is in process; expected last sequence per subject
/// temporarily unavailable; wrong last sequence (without saying which).
const UNDER_WAY: [u64; 3] = [10158, 10163, 10164];

impl Broker {
    /// Publishes and waits for the broker's word, at most `within`.
    pub async fn publish(&self, message: &Outgoing, within: Duration) -> Result<Stored, PublishError> {
        let (subject, headers) = self.to_be_sent(&message.parcel())?;
        let mut request = async_nats::Request::new().payload(message.body.clone()).timeout(Some(within));
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let mark = self.mark();
        let answer = tokio::select! {
            biased;
            answer = self.client.send_request(subject, request) => answer,
            error = self.no_word(&message.subject, mark) => return Err(match error {
                BrokerError::Denied { subject } => PublishError::Denied { subject },
                _ => PublishError::Unknown,
            }),
        };
        match answer {
            Ok(answer) => read_answer(&answer.payload),
            Err(error) => Err(match error.kind() {
                RequestErrorKind::TimedOut => PublishError::Unknown,
                RequestErrorKind::NoResponders => PublishError::NoStream,
                RequestErrorKind::MaxPayloadExceeded => {
                    PublishError::TooLarge { size: message.size(), limit: self.max_payload() }
                }
                RequestErrorKind::InvalidSubject => PublishError::Unsendable(format!("subject `{}`", message.subject)),
                RequestErrorKind::Other => PublishError::Closed,
            }),
        }
    }

    /// The subject and the headers of a message as they go over the wire, where it can.
    pub(super) fn to_be_sent(&self, message: &Parcel<'_>) -> Result<(String, Option<HeaderMap>), PublishError> {
        let (size, limit) = (message.size(), self.max_payload());
        if size > limit {
            return Err(PublishError::TooLarge { size, limit });
        }
        let headers = to_wire(message.headers).map_err(PublishError::Unsendable)?;
        let headers = (!message.headers.0.is_empty()).then_some(headers);
        Ok((in_domain(&self.api, message.subject), headers))
    }
}

/// The subject as it reaches the stream: a leaf node lets a bucket's own subjects pass only under the API prefix of the
/// domain that holds it.
fn in_domain(api: &str, subject: &str) -> String {
    let is_domain = api != "$JS.API" && api.starts_with("$JS.") && api.ends_with(".API");
    if is_domain && subject.starts_with("$KV.") { format!("{api}.{subject}") } else { subject.to_owned() }
}

pub(super) fn read_answer(payload: &[u8]) -> Result<Stored, PublishError> {
    match serde_json::from_slice(payload) {
        Ok(PubAck { error: Some(error), .. }) => Err(match error.err_code {
            WRONG_LAST_SEQUENCE => PublishError::WrongLast,
            code if UNDER_WAY.contains(&code) => PublishError::Unknown,
            0 => PublishError::Refused { code: error.code, description: error.description },
            code => PublishError::Refused { code, description: error.description },
        }),
        Ok(PubAck { stream: Some(stream), seq: Some(seq), duplicate, .. }) => Ok(Stored { stream, seq, duplicate }),
        // Anything else that answers is no stream: a plain subscriber, say. Then nothing is known to be stored.
        _ => Err(PublishError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buckets_subjects_reach_the_domain_that_holds_it() {
        assert_eq!(in_domain("$JS.API", "$KV.B.k"), "$KV.B.k");
        assert_eq!(in_domain("fleet.api", "$KV.B.k"), "$KV.B.k");
        assert_eq!(in_domain("$JS.centre.API", "$KV.B.k"), "$JS.centre.API.$KV.B.k");
        assert_eq!(in_domain("$JS.centre.API", "fleet.ack.a"), "fleet.ack.a");
    }

    #[test]
    fn answers_are_told_apart() {
        let stored = read_answer(br#"{"stream":"S","seq":7,"duplicate":true}"#).unwrap();
        assert_eq!((stored.seq, stored.duplicate), (StreamSeq(7), true));
        let cas = read_answer(br#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 1"}}"#);
        assert!(matches!(cas, Err(PublishError::WrongLast)));
        let under_way = read_answer(br#"{"error":{"code":400,"err_code":10164,"description":"wrong last sequence"}}"#);
        assert!(matches!(under_way, Err(PublishError::Unknown)), "neither stored nor refused for good");
        let full = read_answer(br#"{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}}"#);
        assert!(matches!(full, Err(PublishError::Refused { code: 10077, .. })));
        assert!(matches!(read_answer(b"hello"), Err(PublishError::Unknown)));
    }
}
