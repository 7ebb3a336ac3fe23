//! Room in the message streams: a stream that fills up is emptied from its oldest end, never beyond a message
//! that is still open. What no node took in its time is `unread`'s, in the same pass.
//!
//! Owns when to purge, to give more room and to complain, as pure decisions, and their carrying out. Safe to repeat and to do
//! twice at once: records are kept single, and purging or giving room twice does no harm.

use super::HubError;
use super::fate::{Letter, NOBODY};
use super::groups::Audience;
use super::nodes::Nodes;
use super::streams::{self, Streams};
use super::{records, unread};
use crate::broker::topology::StreamState;
use crate::broker::{From, Query, RawMessage, is_probe};
use crate::model::config::HubConfig;
use crate::model::error_event::Code;
use crate::model::id::StreamSeq;
use crate::model::message::StreamKind;
use crate::model::name::NodeName;
use crate::model::node::PerStream;
use crate::model::subject::RecordStream;
use crate::model::time::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// A stream fuller than so many hundredths needs something done.
const FULL: u64 = 80;

/// And is emptied down to so many.
const EMPTIED: u64 = 70;

/// Messages read at once; bodies come with them.
pub(super) const PAGE: usize = 64;

/// Messages looked at in one pass over a stream: a pass ends, and the next one goes on.
pub(super) const PER_PASS: usize = 20_000;

/// Nodes named in an error event.
const NAMED: usize = 10;

/// Longest and shortest time between two passes.
const EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How far upkeep has come with a message stream, as long as that is the same.
#[derive(Debug, Clone, Copy)]
struct Progress {
    created: Timestamp,
    /// Whether a making anew is told.
    is_told: bool,
    looked: StreamSeq,
    warned: StreamSeq,
}

impl Progress {
    fn none(created: Timestamp) -> Progress {
        Progress { created, is_told: false, looked: StreamSeq(0), warned: StreamSeq(0) }
    }
}

/// Looks after the streams for ever.
pub(super) async fn run(nodes: Arc<Nodes>, config: HubConfig) -> Result<(), HubError> {
    let every = (config.retention / 100).clamp(EVERY.0, EVERY.1);
    let none = Progress::none(Timestamp::from_nanos(0));
    let mut progress = PerStream { commands: none, events: none };
    let mut streams = Streams::default();
    loop {
        nodes.broker().wait_up().await?;
        if let Err(error) = streams.keep(&nodes, &config).await {
            tracing::warn!(error = %super::chain(&error), "the streams are left as they are for now");
        }
        for stream in StreamKind::ALL {
            if let Err(error) = look_after(&nodes, stream, progress.get_mut(stream), &config).await {
                tracing::warn!(?stream, error = %super::chain(&error), "the stream's upkeep is left for later");
            }
        }
        if let Err(error) = warn_of_acks(&nodes).await {
            tracing::warn!(error = %super::chain(&error), "the records' upkeep is left for later");
        }
        tokio::time::sleep(every).await;
    }
}

async fn look_after(
    nodes: &Nodes,
    stream: StreamKind,
    progress: &mut Progress,
    config: &HubConfig,
) -> Result<(), HubError> {
    let name = nodes.broker().names().stream(stream);
    let state = nodes.broker().stream_state(&name).await?;
    if progress.created != state.created {
        *progress = Progress::none(state.created);
    }
    if !progress.is_told {
        streams::tell_if_anew(nodes, &name, &state).await?;
        progress.is_told = true;
    }
    // After a pause of the hub both may be due at once.
    unread::warn(nodes, stream, &state, &mut progress.warned).await?;
    unread::expire(nodes, stream, &state, &mut progress.looked).await?;
    if state.is_above(FULL) { make_room(nodes, stream, &state, config).await } else { Ok(()) }
}

/// What is done about a stream that fills up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relief {
    /// Everything below this sequence goes.
    Purge(StreamSeq),
    /// An open message stands in the way: the stream gets so many bytes.
    Grow(u64),
    /// And there is nothing left to give.
    Nothing,
}

/// Decides. `below`: up to where messages may go; `goes`: how many bytes that frees; `reserve`: what no stream has.
fn relief(state: &StreamState, below: StreamSeq, goes: u64, reserve: u64) -> Relief {
    let limit = state.max_bytes.unwrap_or(u64::MAX);
    let enough = state.bytes.saturating_sub(goes) <= limit / 100 * FULL;
    if goes > 0 && enough {
        return Relief::Purge(below);
    }
    // A quarter of what it has, so that a flood does not take the whole reserve at once.
    match (limit / 4).min(reserve) {
        0 if goes > 0 => Relief::Purge(below),
        0 => Relief::Nothing,
        more => Relief::Grow(limit + more),
    }
}

async fn make_room(nodes: &Nodes, stream: StreamKind, state: &StreamState, config: &HubConfig) -> Result<(), HubError> {
    let broker = nodes.broker();
    let name = broker.names().stream(stream);
    let Closed { below, bytes, open } = closed_messages(nodes, stream, state).await?;
    let held_up = match relief(state, below, bytes, reserve(nodes, config).await?) {
        Relief::Purge(below) => {
            broker.purge_below(&name, below).await?;
            tracing::info!(stream = %name, %below, bytes, "purged: all of it has its records");
            return Ok(());
        }
        Relief::Grow(limit) => {
            broker.set_max_bytes(&name, limit).await?;
            format!("it was given {} MiB", limit >> 20)
        }
        Relief::Nothing => {
            "there is no reserve left: raise `hub.store_bytes` and run `edgeward init --resize`, or cancel what waits"
                .into()
        }
    };
    let named: Vec<String> = open.iter().take(NAMED).map(ToString::to_string).collect();
    let text = format!(
        "{name} is above {FULL} % of its {} MiB, and open messages keep it so, the oldest {below} of {}; {held_up}",
        state.max_bytes.unwrap_or(0) >> 20,
        named.join(", "),
    );
    tracing::error!("{text}");
    let cause = format!("edgeward:stream_full/{name}/{below}/{:?}", state.max_bytes);
    nodes.tell("hub", Code::StreamFull, &text, &cause, state.now).await
}

/// The oldest messages of a stream, up to the first that is open.
struct Closed {
    /// They are below this.
    below: StreamSeq,
    /// What they take, nearly.
    bytes: u64,
    /// Whose messages stand open on the page where it ends.
    open: BTreeSet<NodeName>,
}

async fn closed_messages(nodes: &Nodes, stream: StreamKind, state: &StreamState) -> Result<Closed, HubError> {
    let wanted = state.bytes.saturating_sub(state.max_bytes.unwrap_or(u64::MAX) / 100 * EMPTIED);
    // What is older than the first record kept is unknown for ever.
    let known_since = nodes.broker().dropped_until(RecordStream::Acks).await?;
    let mut closed = Closed { below: state.first, bytes: 0, open: BTreeSet::new() };
    let mut audience = Audience::new(nodes);
    for _ in 0..PER_PASS / PAGE {
        let page = page(nodes, stream, closed.below).await?;
        if page.is_empty() {
            return Ok(closed);
        }
        for message in page {
            let letter = Letter::read(nodes.broker().names(), stream, &message);
            let is_over = known_since.is_some_and(|first| message.stored_at < first) || is_probe(&message.subject);
            let told = is_over || is_told_by_all(nodes, &letter, &mut audience, &mut closed.open).await?;
            if closed.open.is_empty() && !told {
                // For nobody, which the hub has not said yet.
                return Ok(closed);
            }
            if closed.open.is_empty() {
                closed.below = StreamSeq(message.seq.0 + 1);
                closed.bytes += size(&message);
            }
        }
        if !closed.open.is_empty() || closed.bytes >= wanted {
            return Ok(closed);
        }
    }
    Ok(closed)
}

/// True where everybody that it is for has told what became of it; puts down some of those who have not.
async fn is_told_by_all(
    nodes: &Nodes,
    letter: &Letter,
    audience: &mut Audience<'_>,
    open: &mut BTreeSet<NodeName>,
) -> Result<bool, HubError> {
    let everybody = audience.of(letter).await?;
    if everybody.is_empty() {
        return records::is_told(nodes.broker(), letter, NOBODY).await;
    }
    let silent = records::silent(nodes.broker(), letter, everybody).await?;
    let are_all = silent.is_empty();
    open.extend(silent.into_iter().take(NAMED));
    Ok(are_all)
}

/// What a message takes in the stream, nearly.
fn size(message: &RawMessage) -> u64 {
    let headers: usize = message.headers.0.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    (message.subject.len() + message.body.len() + headers) as u64
}

pub(super) async fn page(nodes: &Nodes, stream: StreamKind, from: StreamSeq) -> Result<Vec<RawMessage>, HubError> {
    let names = nodes.broker().names();
    let filter = format!("{}.msg.>", names.prefix());
    let query = Query { stream: names.stream(stream), filter, from: From::Seq(from), batch: PAGE };
    Ok(nodes.broker().read(&query).await?.messages)
}

/// What the streams together leave of the disk that is theirs.
async fn reserve(nodes: &Nodes, config: &HubConfig) -> Result<u64, HubError> {
    let broker = nodes.broker();
    let names = broker.names();
    let records = [RecordStream::Acks, RecordStream::Output, RecordStream::Errors, RecordStream::Nodes];
    let all = StreamKind::ALL.map(|s| names.stream(s)).into_iter().chain(records.map(|s| names.record_stream(s)));
    let mut given = 0;
    for name in all {
        given += broker.stream_state(&name).await?.max_bytes.unwrap_or(0);
    }
    Ok(broker.disk_share(config).await?.saturating_sub(given))
}

/// Records that fall out make their messages unknown: told before it happens.
async fn warn_of_acks(nodes: &Nodes) -> Result<(), HubError> {
    let name = nodes.broker().names().record_stream(RecordStream::Acks);
    let state = nodes.broker().stream_state(&name).await?;
    if !state.is_above(FULL) {
        return Ok(());
    }
    let text = format!(
        "{name} is above {FULL} % of its {} MiB; what falls out of it becomes unknown: raise `hub.store_bytes` and run \
         `edgeward init --resize`",
        state.max_bytes.unwrap_or(0) >> 20
    );
    let cause = format!("edgeward:stream_full/{name}/{:?}/{}", state.max_bytes, day(state.now));
    nodes.tell("hub", Code::StreamFull, &text, &cause, state.now).await
}

/// The day of a time: what lasts is told once a day.
pub(super) fn day(time: Timestamp) -> i64 {
    time.nanos() / (86_400 * 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(bytes: u64, max_bytes: u64) -> StreamState {
        let zero = Timestamp::from_nanos(0);
        StreamState {
            first: StreamSeq(1),
            last: StreamSeq(9),
            messages: 9,
            bytes,
            max_bytes: Some(max_bytes),
            max_age: None,
            first_at: zero,
            last_at: zero,
            now: zero,
            created: Timestamp::from_nanos(0),
            begins_at: None,
        }
    }

    #[test]
    fn a_full_stream_is_purged_where_that_helps_and_grows_where_it_does_not() {
        let full = state(900, 1000);
        assert!(full.is_above(FULL) && !state(800, 1000).is_above(FULL));
        assert_eq!(relief(&full, StreamSeq(5), 200, 0), Relief::Purge(StreamSeq(5)));
        assert_eq!(relief(&full, StreamSeq(1), 0, 5000), Relief::Grow(1250));
        assert_eq!(relief(&full, StreamSeq(2), 50, 100), Relief::Grow(1100), "what may go is not enough");
        assert_eq!(relief(&full, StreamSeq(2), 50, 0), Relief::Purge(StreamSeq(2)), "better than nothing");
        assert_eq!(relief(&full, StreamSeq(1), 0, 0), Relief::Nothing);
    }
}
