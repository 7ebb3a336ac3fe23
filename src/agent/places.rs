//! Where the node stands in a stream: between the session, which asks, and the journal, which knows.
//!
//! Owns what is kept and told once a stream turns out not to be as it was, and which targets' messages still reach the
//! node. Never looks for the place itself; that is the session's.

use super::node::Node;
use crate::broker::{AnchorError, Anchors, Earlier, Found, Resume, Start};
use crate::journal::{Changed, Class, JournalError, Key, Reach};
use crate::killpoint::{Point, here};
use crate::model::error_event::{Code, Severity};
use crate::model::id::StreamSeq;
use crate::model::message::StreamKind;
use crate::model::time::Timestamp;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;

/// What the node has taken from one stream.
pub(crate) struct Places {
    node: Arc<Node>,
    reach: Reach,
}

impl Places {
    /// Of a stream in which the node's messages begin at `start`.
    pub(crate) fn of(node: &Arc<Node>, stream: StreamKind, start: StreamSeq) -> Places {
        Places { node: Arc::clone(node), reach: Reach { stream, start, targets: node.groups.targets() } }
    }

    /// What a session goes by.
    pub(crate) async fn resume(&self, patience: Duration) -> Result<Resume, JournalError> {
        let journal = &self.node.journal;
        let position = journal.position(self.reach.stream).await?;
        let anchor = journal.earlier(self.reach.clone(), 0).await?;
        Ok(Resume {
            start: self.reach.start,
            last: position.map(|position| position.last),
            anchor: anchor.map(|anchor| (anchor.at, anchor.size)),
            created: journal.meta(created_key(self.reach.stream)).await?,
            patience,
        })
    }

    /// Keeps and tells what was found at the start of a session.
    pub(crate) async fn found(&self, begun: &Start) -> Result<(), JournalError> {
        self.node.journal.set_meta(created_key(self.reach.stream), &begun.created).await?;
        self.changed(begun.found, Some(begun.broker_time)).await
    }

    /// Keeps and tells what was found. `began`: where messages that were there when the session began may have been taken
    /// without the journal's knowing it any more, the broker's time at that.
    pub(crate) async fn changed(&self, found: Found, began: Option<Timestamp>) -> Result<(), JournalError> {
        let stream = self.reach.stream;
        let name = self.node.names.stream(stream);
        let position = self.node.journal.position(stream).await?.map(|position| position.last);
        let last = position.map_or_else(String::new, |last| format!(" ({last})"));
        let gone = format!("the last message taken{last} is not in {name} as it was");
        let (agreed, known_until, text) = match found {
            Found::InPlace | Found::Purged => return Ok(()),
            Found::SteppedBack { steps, agreed } => {
                let text =
                    format!("{gone}; {steps} before it, {agreed} is: what follows that and is not known is taken");
                (Some(agreed), None, text)
            }
            Found::Changed => {
                // A message that is stored from now on is new, whatever the broker's clock says.
                let until = position.and_then(|last| began.map(|began| began.min(last.stored_at)));
                let counts =
                    until.map_or_else(String::new, |until| format!("; what was stored by {until} counts as taken"));
                (
                    None,
                    until,
                    format!("{gone}, nor is any message before it; read again from this node's start{counts}"),
                )
            }
        };
        let text = format!("{text}; records of messages after that are published again");
        let (reports, ruling) = self.node.ruled(self.node.event(Severity::Error, Code::StreamChanged, &text)).await;
        tracing::warn!(?stream, text, "the stream has changed");
        self.node.journal.stream_changed(Changed { stream, agreed, known_until, reports }).await?;
        here(Point::StreamChanged);
        self.node.wakes.ring(Class::Error);
        self.node.wakes.republish.notify_one();
        self.node.follow(&ruling);
        Ok(())
    }
}

impl Anchors for Places {
    fn earlier(&self, steps: u64) -> BoxFuture<'_, Result<Option<Earlier>, AnchorError>> {
        async move {
            let found = self.node.journal.earlier(self.reach.clone(), steps).await?;
            Ok(found.map(|earlier| Earlier { at: earlier.at, steps: earlier.steps }))
        }
        .boxed()
    }
}

fn created_key(stream: StreamKind) -> Key {
    match stream {
        StreamKind::Commands => Key::CommandsConsumer,
        StreamKind::Events => Key::EventsConsumer,
    }
}
