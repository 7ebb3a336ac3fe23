//! Streams that somebody deleted while the hub runs: made again as at its start, and told of.
//!
//! What a stream held is gone. What else went with it finds itself again: feeds and agents ask for their consumers, nodes
//! whose `spec` is gone say hello. Owns noticing that, and what of the hub's memory a new bucket makes void. Safe to repeat
//! and to do twice at once: streams are made by name, and each making is told once.

use super::HubError;
use super::nodes::Nodes;
use crate::broker::topology::{self, StreamState};
use crate::model::config::HubConfig;
use crate::model::error_event::{Code, Severity};
use crate::model::subject::RecordStream;
use crate::model::time::Timestamp;
use std::collections::BTreeSet;
use std::time::Duration;

/// What the hub knows of the six streams.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// Those that were made anew, as long as that is not told.
    untold: BTreeSet<String>,
    /// When the bucket was made.
    bucket: Option<Timestamp>,
}

impl Streams {
    /// Makes what is missing.
    pub(super) async fn keep(&mut self, nodes: &Nodes, config: &HubConfig) -> Result<(), HubError> {
        let broker = nodes.broker();
        let nodes_stream = broker.names().record_stream(RecordStream::Nodes);
        let missing = topology::plan(broker, config).await?.missing();
        if !missing.is_empty() {
            tracing::error!(streams = missing.join(", "), "missing; made anew");
            if missing.contains(&nodes_stream) {
                nodes.forget();
            }
            topology::ensure(broker, config).await?;
            self.untold.extend(missing);
        }
        let bucket = broker.stream_state(&nodes_stream).await?.created;
        if self.bucket.replace(bucket).is_some_and(|known| known != bucket) {
            // Whoever made it: its revisions begin anew, and what is remembered would be taken for newer.
            nodes.forget();
        }
        while let Some(stream) = self.untold.first().cloned() {
            tell_made_anew(nodes, &stream, &broker.stream_state(&stream).await?).await?;
            self.untold.remove(&stream);
        }
        Ok(())
    }
}

/// Tells, once, of a message stream that was made anew above what old records name, by whatever hub: to a node that looks
/// like a purge.
pub(super) async fn tell_if_anew(nodes: &Nodes, stream: &str, state: &StreamState) -> Result<(), HubError> {
    /// Older news is none; and error events are not kept for ever.
    const NEWS: Duration = Duration::from_secs(86_400);
    let is_news = state.begins_at.is_some() && state.now.since(state.created) < NEWS;
    if is_news { tell_made_anew(nodes, stream, state).await } else { Ok(()) }
}

async fn tell_made_anew(nodes: &Nodes, stream: &str, state: &StreamState) -> Result<(), HubError> {
    let gone = match state.begins_at {
        Some(first) => format!(", from sequence {first} on: what no node had taken is gone"),
        None => ": what it held is gone".to_owned(),
    };
    let text = format!("{stream} was missing and was made anew at {}{gone}", state.created);
    let cause = format!("made-anew/{stream}/{}", state.created);
    nodes.tell_as(Severity::Critical, "hub", Code::StreamChanged, &text, &cause, state.now).await
}
