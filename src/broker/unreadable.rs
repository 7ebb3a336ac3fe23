//! Messages that the client library cannot read: it drops the connection over each, and the broker gives them again.
//!
//! The broker stores any bytes as headers or subject. One message with a header that is not UTF-8 would keep every reader
//! of its stream reconnecting for ever. The API tells messages as JSON, which harms nobody: so they are found, and taken
//! out of the stream once their fate is durable.
//!
//! Readers of other streams get past them the same way, one message at a time.
//!
//! Owns what the client can read, and the search. Never decides what becomes of such a message.

use super::api::API_TIMEOUT;
use super::connect::Broker;
use super::error::BrokerError;
use super::read::{From, Page, Query, RawMessage};
use crate::model::id::StreamSeq;
use async_nats::{HeaderName, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::str::FromStr;

#[derive(Deserialize)]
struct ConsumerInfo {
    delivered: Place,
    ack_floor: Place,
}

#[derive(Deserialize)]
struct Place {
    stream_seq: StreamSeq,
}

impl Broker {
    /// What a consumer was given and has not acked, as far as the client cannot read it: each with the reason.
    pub(super) async fn unreadable(
        &self,
        stream: &str,
        consumer: &str,
        filter: &str,
    ) -> Result<Vec<(RawMessage, String)>, BrokerError> {
        let info: ConsumerInfo = self.api(&format!("CONSUMER.INFO.{stream}.{consumer}"), &Value::Null).await?;
        let last = info.delivered.stream_seq;
        let mut found = Vec::new();
        let mut next = StreamSeq(info.ack_floor.stream_seq.0 + 1);
        while next <= last {
            let body = json!({ "next_by_subj": filter, "seq": next });
            let Some(message) = self.leader_message(stream, body).await?.filter(|message| message.seq <= last) else {
                break;
            };
            next = StreamSeq(message.seq.0 + 1);
            if let Some(reason) = fault(&message.subject, &message.header_block(stream)?) {
                found.push((message.into_message(stream)?, reason));
            }
        }
        Ok(found)
    }

    /// Takes a message out of a stream. One that is gone already is no error.
    pub(super) async fn delete(&self, stream: &str, seq: StreamSeq) -> Result<(), BrokerError> {
        /// JetStream's codes for a sequence that holds nothing.
        const GONE: [u64; 2] = [10037, 10043];
        match self.api::<Value>(&format!("STREAM.MSG.DELETE.{stream}"), &json!({ "seq": seq, "no_erase": true })).await
        {
            Ok(_) => Ok(()),
            Err(error) if error.code().is_some_and(|code| GONE.contains(&code)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Messages read one by one at most, before the fast way is tried again.
const SLOW_PAGE: usize = 100;

impl Broker {
    /// True where the link has broken since it had come up `times` times: an answer that was due is lost.
    pub(super) fn link_broke(&self, times: u64) -> bool {
        let link = self.link.borrow();
        !link.up || link.times != times
    }

    /// A page of messages, each told by the API on its own: past one that breaks the connection.
    pub(super) async fn read_one_by_one(&self, query: &Query) -> Result<Page, BrokerError> {
        self.up_again(&query.stream).await?;
        let mut page = Page::default();
        let mut from = match query.from {
            From::Seq(seq) => json!({ "next_by_subj": query.filter, "seq": seq.0.max(1) }),
            From::Time(time) => json!({ "next_by_subj": query.filter, "start_time": time }),
        };
        while page.messages.len() < query.batch.min(SLOW_PAGE) {
            let Some(found) = self.leader_message(&query.stream, from).await? else { return Ok(page) };
            let message = found.into_message(&query.stream)?;
            from = json!({ "next_by_subj": query.filter, "seq": message.seq.0 + 1 });
            page.messages.push(message);
        }
        // How many there are is not told: one more at least has to be asked for.
        page.pending = 1;
        Ok(page)
    }

    /// The last message of each of these subjects, likewise.
    pub(super) async fn read_last_one_by_one(&self, stream: &str, subjects: &[String]) -> Result<Page, BrokerError> {
        self.up_again(stream).await?;
        let mut last: BTreeMap<String, RawMessage> = BTreeMap::new();
        for filter in subjects {
            let mut next = 1;
            while let Some(found) = self.leader_message(stream, json!({ "next_by_subj": filter, "seq": next })).await? {
                let message = found.into_message(stream)?;
                next = message.seq.0 + 1;
                last.insert(message.subject.clone(), message);
            }
        }
        let mut messages: Vec<RawMessage> = last.into_values().collect();
        messages.sort_by_key(|message| message.seq);
        Ok(Page { messages, pending: 0 })
    }

    async fn up_again(&self, stream: &str) -> Result<(), BrokerError> {
        let what = format!("STREAM.MSG.GET.{stream}");
        let up = tokio::time::timeout(API_TIMEOUT, self.wait_up()).await;
        up.map_err(|_| BrokerError::Timeout { what, after: API_TIMEOUT })?
    }
}

/// Why the client cannot read a message; `None` where it can. As strict as the client, line by line.
fn fault(subject: &str, block: &[u8]) -> Option<String> {
    // The API writes the replacement character for bytes that are not UTF-8.
    if subject.contains(char::REPLACEMENT_CHARACTER) || subject.contains(char::is_whitespace) {
        return Some("its subject is not UTF-8, or has a blank in it".to_owned());
    }
    if block.is_empty() {
        return None;
    }
    let Ok(text) = std::str::from_utf8(block) else { return Some("its headers are not UTF-8".to_owned()) };
    let mut lines = text.lines().peekable();
    let Some(status) = lines.next().and_then(|line| line.strip_prefix("NATS/1.0")) else {
        return Some("its headers do not begin with `NATS/1.0`".to_owned());
    };
    let status = status.trim().split(' ').next().unwrap_or_default();
    if !status.is_empty() && StatusCode::from_str(status).is_err() {
        return Some("its headers begin with a status that is none".to_owned());
    }
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let name = line.split_once(':').map(|(name, _)| name);
        if name.is_none_or(|name| HeaderName::from_str(name).is_err()) {
            return Some(format!("`{}` is no header", line.chars().take(80).collect::<String>()));
        }
        while lines.next_if(|line| line.starts_with(char::is_whitespace)).is_some() {}
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_can_read_has_no_fault() {
        for block in [
            "",
            "NATS/1.0\r\n\r\n",
            "NATS/1.0\r\nA: x\r\nB:y\r\n more\r\n\r\n",
            "NATS/1.0 404 No Messages\r\n\r\n",
            "NATS/1.0\r\nA: \u{fc}\r\n\r\n",
        ] {
            assert_eq!(fault("fleet.msg.n1.command.ops.shell", block.as_bytes()), None, "{block}");
        }
    }

    #[test]
    fn what_ends_its_connection_is_found() {
        let blocks: [&[u8]; 7] = [
            b"NATS/1.0\r\nA: \xff\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0\r\nA b: x\r\n\r\n",
            b"NATS/1.0\r\n: x\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
            b"\r\n",
            b"NATS/1.0 what\r\n\r\n",
        ];
        for block in blocks {
            assert!(fault("a.b", block).is_some(), "{:?}", String::from_utf8_lossy(block));
        }
        assert!(fault("a.\u{fffd}", b"").is_some() && fault("a.\u{a0}", b"").is_some());
    }
}
