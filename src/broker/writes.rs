//! Streams that take nothing any more.
//!
//! Where a disk runs full while nats-server writes a stream, it stores nothing in that stream until it is started again, also
//! when there is room: a publish gets no answer, while `STREAM.INFO` and reads go on as before. So a stream that has been
//! quiet is sent a message for nobody, which is taken out again:
//!
//! ```text
//! quiet for `every` and not empty → probe ─ any answer → it lives
//!                                         └ none, twice, and STREAM.INFO answers → dead: told, and probed again soon
//! ```
//!
//! Owns the probe and its subjects. Decides nothing about the server. Where two do this at once, each sees what the other has
//! stored. A probe that stays behind harms nobody, be it by a crash or in the bucket, which lets nothing be taken out: what
//! reads streams passes it over ([`is_probe`]), and its key is no node's name.

use super::connect::Broker;
use super::error::{BrokerError, PublishError};
use super::publish::Outgoing;
use super::topology::StreamState;
use crate::model::jitter::fraction;
use crate::model::message::StreamKind;
use crate::model::subject::{NodeKey, RecordStream};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long a probe is waited for: many times what a stream that lives takes.
const WITHIN: Duration = Duration::from_secs(3);

/// What is dead is looked at again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// What stays dead is told again after this.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// The method of a probe.
const PROBE: &str = "probe";

/// A stream that stores nothing, although its server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteDead {
    /// Its name.
    pub stream: String,
    /// How it stood.
    pub state: StreamState,
}

impl std::fmt::Display for WriteDead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} stores nothing, although nats-server answers: its disk was full. Make room, then restart nats-server",
            self.stream
        )
    }
}

/// Looks after the six streams.
#[derive(Debug)]
pub struct Writes {
    broker: Broker,
    every: Duration,
    /// What is dead, and when that was told.
    dead: BTreeMap<String, Instant>,
}

impl Writes {
    /// A stream that was quiet for `every` is probed.
    pub fn new(broker: &Broker, every: Duration) -> Writes {
        Writes { broker: broker.clone(), every, dead: BTreeMap::new() }
    }

    /// Waits until a stream is found dead, or still is after a while. Fails when the connection is closed for good.
    pub async fn next_dead(&mut self) -> Result<WriteDead, BrokerError> {
        loop {
            for (stream, subject) in probes(&self.broker) {
                self.broker.wait_up().await?;
                match self.look(&stream, subject).await {
                    Ok(None) => {
                        if self.dead.remove(&stream).is_some() {
                            tracing::info!(%stream, "stores messages again");
                        }
                    }
                    Ok(Some(state)) => {
                        let told = self.dead.get(&stream);
                        if told.is_none_or(|at| at.elapsed() >= TELL_AGAIN) {
                            self.dead.insert(stream.clone(), Instant::now());
                            return Ok(WriteDead { stream, state });
                        }
                    }
                    // The broker has another trouble, which others tell of.
                    Err(error) => tracing::debug!(%stream, %error, "not probed"),
                }
            }
            let wait = if self.dead.is_empty() { self.every } else { AGAIN.min(self.every) };
            tokio::time::sleep(wait.mul_f64(0.5 + fraction() / 2.0)).await;
        }
    }

    /// How a stream stands that is dead.
    async fn look(&self, stream: &str, subject: String) -> Result<Option<StreamState>, BrokerError> {
        let state = self.broker.stream_state(stream).await?;
        let is_known = self.dead.contains_key(stream);
        if state.messages == 0 || (!is_known && state.now.since(state.last_at) < self.every) {
            return Ok(None);
        }
        let message = Outgoing::new(subject, "");
        for _ in 0..2 {
            match self.broker.publish(&message, WITHIN).await {
                Ok(stored) => {
                    // Not waited for with care: a probe that stays harms nobody.
                    let delete = json!({ "seq": stored.seq, "no_erase": true });
                    let path = format!("STREAM.MSG.DELETE.{stream}");
                    if let Err(error) = self.broker.api::<Value>(&path, &delete).await {
                        tracing::debug!(stream, %error, "a probe stays");
                    }
                    return Ok(None);
                }
                Err(PublishError::Unknown) => {}
                // An answer, or no link to hear one on.
                Err(error) => {
                    tracing::debug!(stream, %error, "a probe that was not stored");
                    return Ok(None);
                }
            }
        }
        self.broker.stream_state(stream).await.map(Some)
    }
}

/// The streams and the subjects of their probes: of nobody's message, record or key.
fn probes(broker: &Broker) -> Vec<(String, String)> {
    let names = broker.names();
    let prefix = names.prefix();
    vec![
        (names.stream(StreamKind::Commands), format!("{prefix}.msg._.control.hub.{PROBE}")),
        (names.stream(StreamKind::Events), format!("{prefix}.msg._.event.hub.{PROBE}")),
        (names.record_stream(RecordStream::Acks), format!("{prefix}.progress._.hub.{PROBE}.{PROBE}")),
        (names.record_stream(RecordStream::Output), format!("{prefix}.output._.hub.{PROBE}.1")),
        (names.record_stream(RecordStream::Errors), names.error("_", "warning", PROBE)),
        (names.record_stream(RecordStream::Nodes), names.node_key(NodeKey::Hello, "_")),
    ]
}

/// True for the subject of a probe in a message stream. Nobody but the hub may write there.
pub fn is_probe(subject: &str) -> bool {
    subject.ends_with(".msg._.control.hub.probe") || subject.ends_with(".msg._.event.hub.probe")
}
