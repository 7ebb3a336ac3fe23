//! Streams that store nothing any more, told to people: in the log and, where that is stored, as an error event.
//!
//! Never heals one: only a new start of nats-server does.

use super::HubError;
use super::nodes::Nodes;
use crate::broker::Writes;
use crate::model::error_event::Code;
use std::sync::Arc;
use std::time::Duration;

/// Tells of streams that are dead, for ever.
pub(super) async fn watch(nodes: Arc<Nodes>, every: Duration) -> Result<(), HubError> {
    let mut writes = Writes::new(nodes.broker(), every);
    loop {
        let dead = writes.next_dead().await?;
        let text = dead.to_string();
        tracing::error!("{text}");
        // Once for each death: the last message before it is the last one until it is healed.
        let cause = format!("edgeward:stream_write_dead/{}/{}", dead.stream, dead.state.last);
        if let Err(error) = nodes.tell("hub", Code::StreamWriteDead, &text, &cause, dead.state.now).await {
            tracing::warn!(error = %super::chain(&error), "that could not be stored as an error event");
        }
    }
}
