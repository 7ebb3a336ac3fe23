//! Why a message stands where it stands: its way on one node, step by step, and what it waits for.
//!
//! ```text
//! stored → delivered → admitted → started → finished → ack stored → (corrected by a late record)
//! ```
//!
//! Each step is told by who did it: the broker by its own sequences and times, the node by its records, or by the position
//! in its status where there is no record yet. A step that nobody told of is not there. Owns putting that together; where
//! more than one thing holds a message up, all are told, the one that has to give way first before the others.

use super::error::OperatorError;
use super::nodes::{NodeFacts, facts_of};
use super::records::{CLASSES, parse_record};
use super::row::Row;
use super::watch::Watch;
use crate::broker::{Broker, BrokerError, LAST_SUBJECTS, Progress};
use crate::model::id::{MsgRef, StreamSeq};
use crate::model::node::Contact;
use crate::model::record::{By, Record};
use crate::model::state::State;
use crate::model::subject::{RecordClass, RecordStream, RecordSubject};
use crate::model::time::Timestamp;
use serde::Serialize;
use std::collections::HashMap;

/// A step on a message's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// The broker stored the message.
    Stored,
    /// It is in the node's journal.
    Delivered,
    /// The node accepted it. It has no time of its own: that is between the step before and the one after.
    Admitted,
    /// Its last try began.
    Started,
    /// Its last try was over, or it was ended without one.
    Finished,
    /// The broker stored what became of it.
    AckStored,
    /// The broker stored a truth that came after the terminal record.
    Corrected,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Which.
    pub step: StepKind,
    /// When, by the clock of who did it; `None` where only that it was is known.
    pub at: Option<Timestamp>,
    /// The stream in which the step is stored, with its sequence there.
    pub stored: Option<(String, StreamSeq)>,
    /// What else is told of it; empty where nothing is.
    pub note: String,
}

/// What a message waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "for")]
pub enum Wait {
    /// The hub, to take the node in.
    Hub,
    /// The hub, to close what a replaced journal left open.
    Closing,
    /// Its node, which does not answer.
    Node {
        /// Stopped, silent, or never heard.
        contact: Contact,
        /// When it was last heard.
        heard_at: Option<Timestamp>,
    },
    /// The node's journal, which cannot be written.
    Journal {
        /// Why not.
        error: String,
    },
    /// Its way to the node: the node is there and has not told that it took it.
    Delivery,
    /// Its process on the node, which is stopped.
    Process {
        /// The process: the method.
        process: String,
    },
    /// The message at the head of its lane.
    Lane {
        /// The lane, as the node names it.
        lane: String,
        /// The stored sequence of the head.
        head: StreamSeq,
        /// True where the head runs.
        running: bool,
        /// Since when, where the node told.
        running_since: Option<Timestamp>,
        /// Messages in the lane, where the node told.
        depth: Option<u64>,
    },
    /// A free place among the messages that the node runs at once.
    Place,
    /// Its next try.
    Retry {
        /// The try that failed.
        attempt: u32,
        /// How.
        error: Option<String>,
    },
    /// Its own end: it runs.
    End,
    /// The node's answer to a cancel.
    Cancel,
    /// The node's word that it is too late for it.
    Expiry,
}

/// One message on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// Where the message is stored.
    pub at: MsgRef,
    /// The node, or the group as `@name`.
    pub node: String,
    /// Its state.
    pub state: State,
    /// Its way so far, in order.
    pub steps: Vec<Step>,
    /// What it waits for; empty where it is settled.
    pub waits: Vec<Wait>,
    /// How far the node's consumer has come; only where one row is asked for.
    pub consumer: Option<Progress>,
}

/// The records of one row, each with where and when the broker stored it.
#[derive(Debug, Default)]
struct Told {
    ack: Option<(StreamSeq, Timestamp, Record)>,
    progress: Option<(StreamSeq, Timestamp, Record)>,
    late: Option<(StreamSeq, Timestamp, Record)>,
}

/// Explains these rows of a watch. Of a single one the consumer is asked, too.
pub async fn why(broker: &Broker, watch: &Watch, rows: &[Row<'_>]) -> Result<Vec<Why>, OperatorError> {
    let mut told = read_told(broker, rows).await?;
    let open: Vec<String> = rows.iter().filter(|row| !row.is_settled()).map(|row| row.node.clone()).collect();
    let facts = facts_of(broker, &open).await?;
    let mut all = Vec::with_capacity(rows.len());
    for row in rows {
        let consumer = if rows.len() == 1 { consumer(broker, row).await? } else { None };
        let row = &with_ack_floor(row, consumer);
        let told = told.remove(&(row.message.at, row.node.clone())).unwrap_or_default();
        let mut waits = waits(row, facts.get(&row.node));
        for wait in &mut waits {
            if let (Wait::Lane { running: true, running_since, .. }, Some(behind)) = (wait, row.behind) {
                *running_since = watch.running_since(&row.node, behind).await;
            }
        }
        let (at, node, state) = (row.message.at, row.node.clone(), row.state);
        all.push(Why { at, node, state, steps: steps(broker, row, &told), waits, consumer });
    }
    Ok(all)
}

/// The consumer's ack is newer than the position in a status: what it has passed is on the node.
fn with_ack_floor<'a>(row: &Row<'a>, consumer: Option<Progress>) -> Row<'a> {
    let passed = consumer.is_some_and(|consumer| row.message.at.seq <= consumer.ack_floor);
    let state = if row.state == State::Queued && passed { State::Delivered } else { row.state };
    Row { state, ..row.clone() }
}

async fn consumer(broker: &Broker, row: &Row<'_>) -> Result<Option<Progress>, BrokerError> {
    match row.node.parse() {
        Ok(node) => broker.consumer_progress(row.message.at.stream, &node).await,
        Err(_) => Ok(None),
    }
}

/// The records of these rows: of each class the last, and the one under the longer name of an id that was used before.
async fn read_told(broker: &Broker, rows: &[Row<'_>]) -> Result<HashMap<(MsgRef, String), Told>, BrokerError> {
    let names = broker.names();
    let mut subjects = Vec::new();
    for row in rows {
        let message = row.message;
        // A copy's records are those of the message that it is a copy of; they stand under the same subject.
        let subject = |id| RecordSubject {
            node: row.node.clone(),
            from: message.from.clone(),
            method: message.method.clone(),
            id,
        };
        subjects.extend(CLASSES.map(|class| names.record(class, &subject(message.id.clone()))));
        subjects.push(names.record(RecordClass::Ack, &subject(message.id.reused(message.at.seq))));
        // What no node answers for is answered by nobody.
        let nobody = RecordSubject { node: "_".to_owned(), ..subject(message.id.clone()) };
        subjects.push(names.record(RecordClass::Ack, &nobody));
    }
    let mut all: HashMap<(MsgRef, String), Told> = HashMap::new();
    for some in subjects.chunks(LAST_SUBJECTS) {
        for raw in broker.read_last(&names.record_stream(RecordStream::Acks), some).await?.messages {
            let Some((class, subject, about, record)) = parse_record(names, &raw) else { continue };
            let row = rows.iter().find(|row| {
                let at = row.copy_of.unwrap_or(row.message.at);
                at == about && (row.node == subject.node || subject.node == "_")
            });
            let Some(row) = row else { continue };
            let told = all.entry((row.message.at, row.node.clone())).or_default();
            let entry = Some((raw.seq, raw.stored_at, record));
            match class {
                RecordClass::Ack => told.ack = entry,
                RecordClass::Progress => told.progress = entry,
                RecordClass::Late => told.late = entry,
            }
        }
    }
    Ok(all)
}

fn steps(broker: &Broker, row: &Row<'_>, told: &Told) -> Vec<Step> {
    let names = broker.names();
    let (message, acks) = (row.message, names.record_stream(RecordStream::Acks));
    let mut steps = vec![Step {
        step: StepKind::Stored,
        at: Some(message.at.stored_at),
        stored: Some((names.stream(message.at.stream), message.at.seq)),
        note: row.copy_of.map(|first| format!("a copy of {first}, which is told of here")).unwrap_or_default(),
    }];
    let last = told.ack.as_ref().or(told.progress.as_ref()).map(|(_, _, record)| record);
    let by_node = last.filter(|record| record.by == By::Node);
    let mut step = |step, at, stored, note| steps.push(Step { step, at, stored, note });
    match by_node.and_then(|record| record.received_at) {
        Some(at) => step(StepKind::Delivered, Some(at), None, String::new()),
        None if by_node.is_some() || row.state == State::Delivered => {
            step(StepKind::Delivered, None, None, "told by its position or its consumer's ack".to_owned());
        }
        None => {}
    }
    if let Some(record) = by_node.filter(|record| record.started_at.is_some()) {
        let tried = if record.attempt > 1 { format!("try {}", record.attempt) } else { String::new() };
        step(StepKind::Admitted, None, None, String::new());
        step(StepKind::Started, record.started_at, None, tried);
    }
    if let Some((seq, stored_at, record)) = &told.ack {
        let hub = if record.by == By::Hub { ", by the hub" } else { "" };
        step(StepKind::Finished, record.finished_at, None, format!("{}{hub}", record.state));
        step(StepKind::AckStored, Some(*stored_at), Some((acks.clone(), *seq)), String::new());
    }
    if let Some((seq, stored_at, record)) = &told.late {
        step(StepKind::Corrected, Some(*stored_at), Some((acks, *seq)), record.state.to_string());
    }
    steps
}

/// What an open row waits for. Pure.
fn waits(row: &Row<'_>, facts: Option<&NodeFacts>) -> Vec<Wait> {
    if row.is_settled() {
        return Vec::new();
    }
    let mut waits = Vec::new();
    let (message, spec) = (row.message, facts.and_then(|facts| facts.spec.as_ref()));
    let status = facts.and_then(|facts| facts.status.as_ref()).map(|(status, _)| status);
    let closing = spec.and_then(|spec| spec.closing.as_ref());
    if closing.is_some_and(|closing| closing.covers(message.at.stream, message.at.seq)) {
        waits.push(Wait::Closing);
    } else if spec.is_none() || spec.is_some_and(|s| s.start.get(message.at.stream).is_none_or(|s| message.at.seq < s))
    {
        waits.push(Wait::Hub);
    }
    if let Some(contact) = row.contact.filter(|_| row.is_out_of_contact()) {
        waits.push(Wait::Node { contact, heard_at: row.heard_at });
    }
    waits.extend(status.and_then(|s| s.journal_error.clone()).map(|error| Wait::Journal { error }));
    waits.extend(turn(row, facts));
    if row.cancel_requested {
        waits.push(Wait::Cancel);
    }
    if row.will_expire {
        waits.push(Wait::Expiry);
    }
    waits
}

/// What it waits for at the place where it is: at the broker, in its lane, between tries, or at work.
fn turn(row: &Row<'_>, facts: Option<&NodeFacts>) -> Option<Wait> {
    let status = facts.and_then(|facts| facts.status.as_ref()).map(|(status, _)| status);
    let process = status
        .and_then(|s| s.processes.as_ref())
        .and_then(|all| all.iter().find(|process| process.name == row.message.method && process.state == "stopped"));
    let in_contact = row.contact == Some(Contact::InContact);
    match (row.state, row.behind) {
        (State::Queued | State::Delivered | State::Retrying, _) if process.is_some() => {
            process.map(|process| Wait::Process { process: process.name.clone() })
        }
        (State::Queued | State::Delivered, Some(behind)) => {
            let lane = row.message.lane_text();
            let lanes = status.and_then(|s| s.lanes.as_ref());
            let depth = lanes.and_then(|all| all.iter().find(|facts| facts.lane == lane)).map(|facts| facts.depth);
            Some(Wait::Lane { lane, head: behind.head.seq, running: behind.running, running_since: None, depth })
        }
        (State::Queued, None) => in_contact.then_some(Wait::Delivery),
        (State::Delivered, None) => in_contact.then_some(Wait::Place),
        (State::Retrying, _) => {
            let record = row.record;
            let error = record.and_then(|r| r.error.as_ref()).map(|error| error.message.clone());
            Some(Wait::Retry { attempt: record.map_or(0, |record| record.attempt), error })
        }
        (State::Running, _) => Some(Wait::End),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::message;
    use super::*;
    use crate::operator::{Behind, View};

    fn facts(spec: &str, status: &str) -> NodeFacts {
        NodeFacts {
            spec: serde_json::from_str(spec).ok(),
            status: Some((serde_json::from_str(status).unwrap(), Timestamp::from_nanos(0))),
            hello_at: None,
        }
    }

    const SPEC: &str = r#"{"v":1,"node":"n1","start":{"commands":1}}"#;

    fn waits_of(change: impl FnOnce(&mut Row<'_>), facts: Option<&NodeFacts>) -> Vec<Wait> {
        let view = View::new(vec![message("n1", 9)]);
        let mut row = view.rows().next().unwrap();
        row.contact = Some(Contact::InContact);
        change(&mut row);
        waits(&row, facts)
    }

    #[test]
    fn a_message_at_the_broker_waits_for_the_hub_the_node_or_its_way() {
        let silent = |row: &mut Row<'_>| row.contact = Some(Contact::Silent);
        let away = Wait::Node { contact: Contact::Silent, heard_at: None };
        assert_eq!(waits_of(silent, None), [Wait::Hub, away.clone()]);
        let there = facts(SPEC, r#"{"v":1,"node":"n1"}"#);
        assert_eq!(waits_of(silent, Some(&there)), [away]);
        assert_eq!(waits_of(|_| {}, Some(&there)), [Wait::Delivery]);
        let early = facts(r#"{"v":1,"node":"n1","start":{"commands":10}}"#, r#"{"v":1,"node":"n1"}"#);
        assert_eq!(waits_of(|_| {}, Some(&early))[0], Wait::Hub, "the hub answers it");
        assert_eq!(waits_of(|row| row.state = State::Succeeded, None), []);
    }

    #[test]
    fn what_the_consumers_ack_has_passed_is_on_the_node() {
        let view = View::new(vec![message("n1", 9)]);
        let row = view.rows().next().unwrap();
        let at =
            |floor| Some(Progress { delivered: StreamSeq(12), ack_floor: StreamSeq(floor), deliveries: 1, pending: 0 });
        assert_eq!(with_ack_floor(&row, at(8)).state, State::Queued);
        assert_eq!(with_ack_floor(&row, at(9)).state, State::Delivered);
        let done = Row { state: State::Succeeded, ..row };
        assert_eq!(with_ack_floor(&done, at(9)).state, State::Succeeded);
    }

    #[test]
    fn a_message_on_the_node_waits_for_its_lane_its_process_or_a_place() {
        let head = MsgRef { seq: StreamSeq(4), ..message("n1", 9).at };
        let behind = |row: &mut Row<'_>| {
            row.state = State::Delivered;
            row.behind = Some(Behind { head, running: true });
        };
        let lanes = r#"{"v":1,"node":"n1","lanes":[{"lane":"command.ops.shell","depth":3,"head":4,"running":true}]}"#;
        let lane = "command.ops.shell".to_owned();
        let wait = Wait::Lane { lane, head: StreamSeq(4), running: true, running_since: None, depth: Some(3) };
        assert_eq!(waits_of(behind, Some(&facts(SPEC, lanes))), [wait]);
        let stopped = r#"{"v":1,"node":"n1","processes":[{"name":"shell","state":"stopped"}],"journal_error":"full"}"#;
        let held = [Wait::Journal { error: "full".to_owned() }, Wait::Process { process: "shell".to_owned() }];
        assert_eq!(waits_of(behind, Some(&facts(SPEC, stopped))), held);
        let free = facts(SPEC, r#"{"v":1,"node":"n1"}"#);
        assert_eq!(waits_of(|row| row.state = State::Delivered, Some(&free)), [Wait::Place]);
        let runs = |row: &mut Row<'_>| {
            row.state = State::Running;
            row.cancel_requested = true;
        };
        assert_eq!(waits_of(runs, Some(&free)), [Wait::End, Wait::Cancel]);
    }
}
