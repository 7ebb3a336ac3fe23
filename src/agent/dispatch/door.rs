//! What is to become of each message that arrives: refused, over, carried out at once, begun, or queued.
//!
//! Owns what the journal is asked to keep of it, and what is told where it turns out to be a copy or finds no space. Never
//! takes anything itself, and changes nothing in hand.

use super::super::control;
use super::super::reports::Times;
use super::super::worker::{self, Begun};
use super::Dispatcher;
use crate::journal::{Arrival, Door, Full, Report};
use crate::model::admit::{Admitted, Rejected, is_mark};
use crate::model::error_event::Code;
use crate::model::message::{Kind, StoredMessage};
use crate::model::record::{By, Outcome};
use crate::model::state::State;
use crate::model::subject::LaneKey;
use crate::model::time::Timestamp;
use std::collections::HashSet;
use std::sync::Arc;

/// As if so many ran that no other may begin.
const ALL_TAKEN: usize = usize::MAX / 2;

/// What was judged about a message before it was taken.
pub(super) enum Judged {
    /// It is over.
    Over,
    /// A control message that was acted on.
    Control,
    /// It stands in its lane, or has begun.
    Queued { lane: LaneKey, begun: Option<Box<Begun>> },
}

impl Dispatcher {
    /// Judges one message. `lanes_here` are those that messages before it in its batch stand in, `starting` how many of them
    /// begin.
    pub(super) fn judge(
        &self,
        message: StoredMessage,
        now: Timestamp,
        lanes_here: &mut HashSet<LaneKey>,
        starting: &mut usize,
    ) -> (Arrival, Judged) {
        let admitted = match self.node.admit(&message) {
            Ok(admitted) => Arc::new(admitted),
            Err(rejected) => return (self.refused(message, *rejected, now), Judged::Over),
        };
        let is_control =
            admitted.subject.kind == Kind::Control || is_mark(admitted.subject.kind, admitted.subject.method.as_str());
        let lane = admitted.subject.lane_key();
        let is_free = self.lanes.is_empty_lane(&lane) && lanes_here.insert(lane.clone());
        if (is_free || is_control)
            && let Some(outcome) = worker::overdue(&admitted, now)
        {
            let times = Times { received: now, started: None, finished: Some(now) };
            let reports = self.node.terminal(&admitted, 0, times, &outcome);
            let door = Door::Over { state: outcome.state, reports, remember: Vec::new() };
            return (self.arrival(message, &admitted, door, now), Judged::Over);
        }
        if is_control {
            let door = control::door(&self.node, &admitted, &message.body, now);
            if matches!(door, Door::Order(_)) {
                // What comes behind an order starts, or does not, by what the order leaves.
                *starting = ALL_TAKEN;
            }
            return (self.arrival(message, &admitted, door, now), Judged::Control);
        }
        let held = self.lanes.is_held() && lane.kind == Kind::Command || self.lanes.is_stopped(&lane.method);
        let start = is_free && !held && self.lanes.has_room_for(*starting + 1);
        if start && let Some(ended) = worker::at_once(&self.node, &admitted, now) {
            // What comes behind it finds the lane as free.
            lanes_here.remove(&lane);
            return (self.arrival(message, &admitted, Door::AtOnce(ended), now), Judged::Over);
        }
        *starting += usize::from(start);
        let begun = start.then(|| Begun {
            message: Admitted::clone(&admitted),
            body: message.body.clone(),
            attempt: 1,
            received_at: now,
            started_at: now,
            adopted: false,
        });
        let door = Door::Queue { lane: lane.clone(), start };
        (self.arrival(message, &admitted, door, now), Judged::Queued { lane, begun: begun.map(Box::new) })
    }

    fn arrival(&self, message: StoredMessage, admitted: &Arc<Admitted>, door: Door, now: Timestamp) -> Arrival {
        // What is told of copies and of what finds no space is made where there is one: nearly never.
        let (node, copy) = (Arc::clone(&self.node), Arc::clone(admitted));
        let times = Times { received: now, started: None, finished: None };
        Arrival {
            id: admitted.id.clone(),
            from: admitted.subject.from.to_string(),
            to: Some(admitted.subject.to.clone()),
            kind: Some(admitted.subject.kind),
            message,
            name: admitted.subject.lane.as_ref().map_or_else(
                || admitted.subject.method.to_string(),
                |lane| format!("{}.{lane}", admitted.subject.method),
            ),
            door,
            if_copy: Box::new(move |first| vec![node.copy(node.filled(&copy, 0, times, State::Duplicate), first)]),
            if_full: self.if_full(admitted, now),
        }
    }

    fn if_full(&self, admitted: &Arc<Admitted>, now: Timestamp) -> Box<dyn FnOnce(Full) -> Vec<Report> + Send> {
        let (node, admitted) = (Arc::clone(&self.node), Arc::clone(admitted));
        Box::new(move |full| {
            let times = Times { received: now, started: None, finished: Some(now) };
            let outcome = Outcome::ended(State::Refused, Code::LaneFull, full.to_string());
            node.terminal(&admitted, 0, times, &outcome)
        })
    }

    fn refused(&self, message: StoredMessage, rejected: Rejected, now: Timestamp) -> Arrival {
        let reports = self.node.refusal(&rejected, now);
        let node = Arc::clone(&self.node);
        let record = rejected.record(&self.node.names, self.node.name.as_str(), State::Duplicate, By::Node);
        Arrival {
            id: rejected.id,
            from: rejected.from,
            to: self.node.names.read_loosely(&message.subject).to,
            kind: rejected.kind,
            name: rejected.method,
            message,
            door: Door::Over { state: State::Refused, reports, remember: Vec::new() },
            if_copy: Box::new(move |first| vec![node.copy(record, first)]),
            // It does not wait.
            if_full: Box::new(|_| Vec::new()),
        }
    }
}
