//! Opening a session: the consumer is set, and the place to go on from is found.
//!
//! Carries out what [`Finding`] asks for. Owns resets; never decides where to look.

use super::finding::{Ask, Finding, Heard};
use super::place::{ConsumerInfo, Place, missing_or, place};
use super::pulls::{BATCH, Pulls};
use super::{Anchors, Broker, BrokerError, Found, Received, Resume, Session, SessionError, Start};
use crate::model::id::StreamSeq;
use crate::model::message::StreamKind;
use crate::model::name::NodeName;
use serde_json::json;
use std::time::Duration;

impl Session {
    /// Begins a session of `node` on a stream.
    pub async fn open(
        broker: &Broker,
        node: &NodeName,
        stream: StreamKind,
        resume: &Resume,
        anchors: &dyn Anchors,
    ) -> Result<(Session, Start), SessionError> {
        let mut link = broker.link();
        let times = link.borrow().times;
        tokio::select! {
            biased;
            // An answer that the old link took with it never comes: begin again on the new one, not after a timeout.
            _ = link.wait_for(|link| !link.up || link.times != times) => Err(SessionError::LinkLost),
            begun = Session::begin(broker, node, stream, resume, anchors) => begun,
        }
    }

    async fn begin(
        broker: &Broker,
        node: &NodeName,
        stream: StreamKind,
        resume: &Resume,
        anchors: &dyn Anchors,
    ) -> Result<(Session, Start), SessionError> {
        let place = place(broker, &broker.names.stream(stream), node, resume).await?;
        let (mut finding, mut ask) = match place {
            Place::Trusted(from) => {
                let (mut session, info) = Session::reset(broker, node, stream, from, resume.patience).await?;
                let first = session.first(BATCH).await?;
                return Ok(session.starting_with(first, &info, Found::InPlace));
            }
            Place::At { position, anchor } => Finding::new(position, anchor, resume.start),
        };
        // The usual case takes along what follows the anchor; in search of a place, one message tells.
        let (mut count, mut looked) = (BATCH, None);
        let mut taken = resume.anchor.map(|(at, _)| at);
        loop {
            let heard = match ask {
                Ask::First(from) => {
                    let (mut session, info) = Session::reset(broker, node, stream, from, resume.patience).await?;
                    let first = session.first(count).await?;
                    count = 1;
                    let at = first.as_ref().map(|(message, _, _)| message.at);
                    looked = Some((session, info, first));
                    Heard::First(at)
                }
                Ask::Earlier(steps) => {
                    let earlier = anchors.earlier(steps).await;
                    let earlier = earlier.map_err(|error| SessionError::Anchors(error.into()))?;
                    taken = earlier.map(|earlier| earlier.at);
                    Heard::Earlier(earlier)
                }
                Ask::Done(found, doubt) => {
                    let Some((mut session, info, first)) = looked else { return Err(SessionError::Silent) };
                    session.doubt = doubt;
                    if let Some((message, _, pending)) = &first
                        && Some(message.at) == taken
                    {
                        return Ok((session, info.start(found, *pending == 0)));
                    }
                    return Ok(session.starting_with(first, &info, found));
                }
            };
            ask = finding.next(heard);
        }
    }

    fn starting_with(mut self, first: Option<Received>, info: &ConsumerInfo, found: Found) -> (Session, Start) {
        let is_caught_up = first.is_none();
        self.held = first;
        (self, info.start(found, is_caught_up))
    }

    async fn reset(
        broker: &Broker,
        node: &NodeName,
        stream: StreamKind,
        from: StreamSeq,
        patience: Duration,
    ) -> Result<(Session, ConsumerInfo), SessionError> {
        let name = &broker.names.stream(stream);
        let link = broker.link();
        let link_times = link.borrow().times;
        let path = format!("CONSUMER.RESET.{name}.{node}");
        let info: ConsumerInfo = match broker.api_within(&path, &json!({ "seq": from }), patience).await {
            Ok(info) => info,
            // Missing, or lost with its server, or the link is slow: asking for it would take as long again.
            Err(error @ BrokerError::Timeout { .. }) => return Err(error.into()),
            Err(error) => return Err(missing_or(broker, name, node, error, patience).await),
        };
        let inbox = broker.client.new_inbox();
        let frames = broker.client.subscribe(format!("{inbox}.*")).await.map_err(|_| BrokerError::Closed)?;
        let session = Session {
            broker: broker.clone(),
            stream,
            pull_subject: format!("{}.CONSUMER.MSG.NEXT.{name}.{node}", broker.api),
            inbox,
            frames,
            pulls: Pulls::default(),
            heartbeat: broker.heartbeat(),
            link_times,
            link,
            held: None,
            doubt: None,
            broken: None,
        };
        Ok((session, info))
    }

    /// The first message, where there is one now; up to `count` come along.
    async fn first(&mut self, count: u64) -> Result<Option<Received>, SessionError> {
        let number = self.pulls.due(count).unwrap_or_default();
        self.pull(number, count, true).await?;
        loop {
            let frame = self.frame().await?;
            if let Some(received) = self.sort(frame)? {
                return Ok(Some(received));
            }
            if self.pulls.are_over() {
                return Ok(None);
            }
        }
    }
}
