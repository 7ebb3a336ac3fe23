//! Watching the messages of one call until they are done.
//!
//! Owns the order that misses nothing: first subscribe to what the broker republishes, then read what is there, then
//! follow; and read again every few seconds and after each reconnect, since a plain subscription may miss messages.

use super::cancel::CancelReader;
use super::error::OperatorError;
use super::find::{Call, message_at};
use super::lane::find_heads;
use super::message::Message;
use super::nodes::{statuses, stream_facts};
use super::pages::each_message;
use super::records::{CLASSES, RecordReader};
use super::row::Behind;
use super::send::Sent;
use super::targets::resolve;
use super::view::View;
use crate::broker::{Broker, BrokerError, Follower, From as Begin, Link, RawMessage};
use crate::model::id::{IdRef, MessageId, StreamSeq};
use crate::model::jitter::Backoff;
use crate::model::message::StreamKind;
use crate::model::record::Record;
use crate::model::subject::{RecordClass, RecordStream, RecordSubject};
use crate::model::time::Timestamp;
use futures::stream::{self, BoxStream, SelectAll};
use futures::{FutureExt, StreamExt};
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// How often it reads again: node states come only by reading, and a missed record is seen after this at the latest.
const READ_AGAIN: Duration = Duration::from_secs(2);

/// When it first reads after a message was stored: until then the records that it follows are enough.
const FIRST_READ: Duration = Duration::from_millis(100);

/// How long a message that was just stored is asked for: a follower of a cluster may not have it yet.
const SETTLE: Duration = Duration::from_secs(5);

/// More messages of one call than this are read in pages.
const FEW: usize = 16;

/// One call being watched.
pub struct Watch {
    broker: Broker,
    from: String,
    view: View,
    reader: RecordReader,
    cancels: CancelReader,
    records: SelectAll<BoxStream<'static, RawMessage>>,
    link: watch::Receiver<Link>,
    read_at: Option<Instant>,
    ticks: tokio::time::Interval,
    due: bool,
}

impl Watch {
    /// Begins to listen for records of this sender and id. Messages are added as they are known.
    pub async fn open(broker: &Broker, from: &str, id: &MessageId) -> Result<Watch, OperatorError> {
        let mut records = SelectAll::new();
        for class in CLASSES {
            let pattern = broker.names().record_pattern(class, from, id.as_str());
            let follower = broker.follow(&pattern).await?;
            let next = |mut follower: Follower| async { follower.next().await.map(|m| (m, follower)) };
            records.push(stream::unfold(follower, next).boxed());
        }
        let mut ticks = tokio::time::interval(READ_AGAIN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let mut link = broker.link();
        // What the link went through before is no news.
        link.mark_unchanged();
        Ok(Watch {
            broker: broker.clone(),
            from: from.to_owned(),
            view: View::new(Vec::new()),
            reader: RecordReader::new(from, id),
            cancels: CancelReader::default(),
            records,
            link,
            read_at: None,
            ticks,
            due: false,
        })
    }

    /// Watches a call that was found, and reads what is there.
    pub async fn of(broker: &Broker, call: &Call) -> Result<Watch, OperatorError> {
        let mut watch = Watch::open(broker, &call.from, &call.id).await?;
        for message in &call.messages {
            watch.view.push(message.clone());
        }
        watch.read().await?;
        Ok(watch)
    }

    /// Adds messages that were just stored, once the broker serves them.
    pub async fn add_sent(&mut self, sent: &[Sent]) -> Result<(), OperatorError> {
        let mut read = if sent.len() > FEW { read_sent(&self.broker, &self.from, sent).await? } else { HashMap::new() };
        for one in sent {
            let message = match read.remove(&(one.stream, one.seq)) {
                Some(message) => message,
                None => served(&self.broker, one).await?,
            };
            self.view.push(message);
        }
        self.ticks.reset_after(FIRST_READ);
        Ok(())
    }

    /// What is known now.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// When records and node states were last read; `None` where that has not been yet.
    pub fn read_at(&self) -> Option<Instant> {
        self.read_at
    }

    /// Reads records and node states.
    pub async fn read(&mut self) -> Result<(), OperatorError> {
        self.due = true;
        let acks = stream_facts(&self.broker, &self.broker.names().record_stream(RecordStream::Acks)).await?;
        self.view.set_records_stream(&acks);
        self.reader.read(&self.broker, &mut self.view, acks.last_seq).await?;
        self.cancels.read(&self.broker, &mut self.view).await?;
        resolve(&self.broker, &mut self.view).await?;
        for (node, facts) in statuses(&self.broker, &self.view.open_nodes()).await? {
            self.view.set_node(node, facts);
        }
        find_heads(&self.broker, &mut self.view).await?;
        self.due = false;
        self.read_at = Some(Instant::now());
        Ok(())
    }

    /// Waits until something may have changed, and takes it in. Safe to drop and call again: nothing is lost by it.
    /// A broker that does not answer for now is waited for; the error is the end of the connection.
    pub async fn changed(&mut self) -> Result<(), OperatorError> {
        if !self.due {
            tokio::select! {
                record = self.records.next() => match record {
                    Some(record) => {
                        self.take(&record);
                        while let Some(Some(more)) = self.records.next().now_or_never() {
                            self.take(&more);
                        }
                        return Ok(());
                    }
                    None => return Err(BrokerError::Closed.into()),
                },
                _ = self.ticks.tick() => {}
                changed = self.link.changed() => {
                    changed.map_err(|_| BrokerError::Closed)?;
                    if !self.link.borrow_and_update().up {
                        return Ok(());
                    }
                }
            }
        }
        match self.read().await {
            Err(OperatorError::Broker(BrokerError::Closed)) => Err(BrokerError::Closed.into()),
            Err(error) => {
                tracing::debug!(?error, "reading again later");
                // The next tick reads again; until then what is known stands.
                self.due = false;
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn take(&mut self, raw: &RawMessage) {
        let names = self.broker.names().clone();
        self.reader.take(&names, &mut self.view, raw);
    }

    /// Since when the message that another waits behind has been running, where its node told.
    pub async fn running_since(&self, node: &str, behind: Behind) -> Option<Timestamp> {
        let head = message_at(&self.broker, behind.head.stream, behind.head.seq).await.ok()??;
        let subject = RecordSubject { node: node.to_owned(), from: head.from, method: head.method, id: head.id };
        let names = self.broker.names();
        let subject = names.record(RecordClass::Progress, &subject);
        let raw = self.broker.get_last(&names.record_stream(RecordStream::Acks), &subject).await.ok()??;
        let record: Record = serde_json::from_slice(&raw.body).ok()?;
        record.started_at.filter(|_| record.seq == head.at.seq)
    }
}

/// Those of these messages that the broker serves already, read in pages.
async fn read_sent(
    broker: &Broker,
    from: &str,
    sent: &[Sent],
) -> Result<HashMap<(StreamKind, StreamSeq), Message>, BrokerError> {
    let wanted: HashSet<(StreamKind, StreamSeq)> = sent.iter().map(|one| (one.stream, one.seq)).collect();
    let mut found = HashMap::new();
    for stream in StreamKind::ALL {
        let seqs = || sent.iter().filter(|one| one.stream == stream).map(|one| one.seq);
        let (Some(first), Some(last)) = (seqs().min(), seqs().max()) else { continue };
        let filter = format!("{}.msg.*.*.{from}.>", broker.names().prefix());
        each_message(broker, &broker.names().stream(stream), &filter, Begin::Seq(first), |raw| {
            if raw.seq > last {
                return ControlFlow::Break(());
            }
            if wanted.contains(&(stream, raw.seq)) {
                found.insert((stream, raw.seq), Message::read(broker.names(), stream, &raw));
            }
            ControlFlow::Continue(())
        })
        .await?;
    }
    Ok(found)
}

/// The message as the broker serves it; right after storing, a cluster may need a moment.
async fn served(broker: &Broker, sent: &Sent) -> Result<Message, OperatorError> {
    let until = Instant::now() + SETTLE;
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(500));
    loop {
        let answer = message_at(broker, sent.stream, sent.seq).await;
        let not_yet = matches!(answer, Ok(None) | Err(BrokerError::Timeout { .. } | BrokerError::LinkLost { .. }));
        if not_yet && Instant::now() < until {
            tokio::time::sleep(backoff.next_wait()).await;
            continue;
        }
        let id = IdRef::Stored(sent.stream, sent.seq);
        return answer?.ok_or(OperatorError::NotFound { id, back: None });
    }
}
