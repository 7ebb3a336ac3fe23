//! Control messages: taken in stream order like all others and acted on at once, not queued in lanes.
//!
//! Owns the verbs that this node knows. The change that a verb makes is kept in the same commit as its record; effects
//! outside the journal follow from what is kept. Verbs that are not here are refused.
//!
//! Of orders about processes (`stop`, `start`, `restart`, `directive`): what they do is in the journal (`Order`).
//!
//! Of a cancel: what it does to messages is decided in `model::state` and carried out in the journal; here is what is
//! said about it. Its own record succeeds whatever it met, and tells in `stdout` what that was.

use super::node::Node;
use super::reports::Times;
use crate::journal::{
    Cancel, Change as ProcessChange, Class, Door, Effect, EndOrder, JournalError, Key, Loaded, Met, Obeyed, Order,
    Remember, Report, What, Words,
};
use crate::model::admit::{Admitted, BodyFacts, MethodFacts};
use crate::model::error_event::{Code, Directive};
use crate::model::groups::Mark;
use crate::model::header::RawHeaders;
use crate::model::id::{IdRef, MessageId};
use crate::model::lanes::RowId;
use crate::model::message::{Kind, StoredMessage};
use crate::model::name::Sender;
use crate::model::record::{Outcome, Output, Record, RecordError};
use crate::model::state::State;
use crate::model::subject::LooseSubject;
use crate::model::time::Timestamp;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

/// What a control message changes, besides what a cancel does.
#[derive(Debug, Default)]
struct Change {
    /// What the journal keeps from it.
    remember: Vec<Remember>,
    /// What leaves the node because of it.
    reports: Vec<Report>,
}

/// A typo in `from` must not make it another cancel: unknown fields are refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelBody {
    id: MessageId,
    from: Option<Sender>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProcessBody {
    process: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DirectiveBody {
    error: Uuid,
    directive: Directive,
}

/// Names every process in the body of `stop`, `start` and `restart`.
const EVERY: &str = "*";

#[derive(Deserialize)]
struct EventsBody {
    start: u64,
}

/// What admission has to know of a verb; `None` for one that this node does not have.
pub(crate) fn facts(verb: &str) -> Option<MethodFacts> {
    let check: fn(&[u8]) -> Result<BodyFacts, RecordError> = match verb {
        "cancel" => {
            |body| parse::<CancelBody>(body).map(|cancel| BodyFacts { whose: cancel.from, ..BodyFacts::default() })
        }
        "stop" | "start" | "restart" => |body| parse::<ProcessBody>(body).map(|_| BodyFacts::default()),
        "directive" => |body| parse::<DirectiveBody>(body).map(|_| BodyFacts::default()),
        "member" => |body| parse::<Mark>(body).map(|_| BodyFacts::default()),
        "events" => |body| parse::<EventsBody>(body).map(|_| BodyFacts::default()),
        "result" => |body| parse::<Record>(body).map(|_| BodyFacts::default()),
        _ => return None,
    };
    Some(MethodFacts { kind: Kind::Control, check })
}

/// What a cancel names; `None` for anything else, and for one that does not read as one.
pub(crate) fn cancelled(subject: &LooseSubject, body: &[u8]) -> Option<IdRef> {
    let is_cancel = subject.kind == Some(Kind::Control) && subject.method == "cancel";
    parse::<CancelBody>(body).ok().filter(|_| is_cancel)?.id.as_str().parse().ok()
}

/// What becomes of an admitted control message.
pub(crate) fn door(node: &Node, admitted: &Admitted, body: &[u8], now: Timestamp) -> Door {
    let verb = admitted.subject.method.as_str();
    if verb == "cancel"
        && let Ok(CancelBody { id, from }) = parse::<CancelBody>(body)
    {
        let by = admitted.subject.from.to_string();
        let from = from.map_or_else(|| by.clone(), |from| from.to_string());
        return Door::Cancel(Cancel { from, id, by, until: admitted.at.stored_at.plus(node.retention()) });
    }
    let by = admitted.subject.from.to_string();
    match order(node, verb, body) {
        Some(Ok(what)) => return Door::Order(Order { what, by }),
        Some(Err(error)) => {
            let outcome = Outcome { state: State::Refused, error: Some(error), ..Outcome::succeeded() };
            return Door::Over {
                state: outcome.state,
                reports: done(node, admitted, &outcome, now),
                remember: Vec::new(),
            };
        }
        None => {}
    }
    let mut change = change(verb, body);
    if verb == "member"
        && let Ok(mark) = parse::<Mark>(body)
    {
        node.groups.mark(&mark, admitted.at);
        change.remember.push(Remember::Mark(mark));
    }
    let mut reports = done(node, admitted, &Outcome::succeeded(), now);
    reports.extend(change.reports);
    Door::Over { state: State::Succeeded, reports, remember: change.remember }
}

/// What a verb orders; `None` for one that orders nothing about processes.
fn order(node: &Node, verb: &str, body: &[u8]) -> Option<Result<What, RecordError>> {
    let change = match verb {
        "stop" => ProcessChange::Stop,
        "start" => ProcessChange::Start,
        "restart" => ProcessChange::Restart,
        "directive" => {
            let what = |DirectiveBody { error, directive }| What::Directive { error, directive };
            return Some(parse::<DirectiveBody>(body).map(what));
        }
        _ => return None,
    };
    Some(parse::<ProcessBody>(body).and_then(|ProcessBody { process }| {
        let known: Vec<String> = node.registry.names().map(str::to_owned).collect();
        if process == EVERY {
            return Ok(What::Processes { names: known, change });
        }
        if !known.contains(&process) {
            let text = format!("this node has no process `{process}`; it has {}", known.join(", "));
            return Err(RecordError::new(Code::UnknownMethod, text));
        }
        Ok(What::Processes { names: vec![process], change })
    }))
}

fn done(node: &Node, admitted: &Admitted, outcome: &Outcome, now: Timestamp) -> Vec<Report> {
    node.terminal(admitted, 1, Times { received: now, started: Some(now), finished: Some(now) }, outcome)
}

fn change(verb: &str, body: &[u8]) -> Change {
    match verb {
        "events" => match parse::<EventsBody>(body) {
            Ok(events) => {
                let start = Remember::Value(Key::EventsStart, events.start.to_string());
                Change { remember: vec![start], ..Change::default() }
            }
            Err(_) => Change::default(),
        },
        "result" => Change { reports: vec![result_line(body)], ..Change::default() },
        _ => Change::default(),
    }
}

/// The line of `acks.jsonl` for a result: its JSON on one line.
fn result_line(body: &[u8]) -> Report {
    let line = match serde_json::from_slice::<Value>(body) {
        Ok(value) if body.contains(&b'\n') => value.to_string().into_bytes(),
        _ => body.to_vec(),
    };
    Report {
        class: Class::Result,
        subject: "acks.jsonl".to_owned(),
        headers: RawHeaders::default(),
        body: Bytes::from(line),
    }
}

/// The outcome of a try that was broken off: who asked for that, where somebody did, and `cancelled` where by a cancel.
pub(crate) async fn if_asked_for(node: &Node, row: RowId, outcome: Outcome) -> Result<Outcome, JournalError> {
    let ending = outcome.error.as_ref().map_or("", |error| error.message.as_str());
    let ending = ending.strip_prefix("was stopped: ").unwrap_or(ending);
    let (state, error) = if let Some(by) = node.journal.cancelled_by(row, node.clock.at_last()).await? {
        (State::Cancelled, cancel_error(&by, ending))
    } else if let Some(EndOrder { process, by }) = node.journal.end_order(row).await? {
        let text = format!("ended by `restart` of process {process}, asked by {by}; {ending}");
        (outcome.state, RecordError::new(Code::Interrupted, text))
    } else {
        return Ok(outcome);
    };
    Ok(Outcome { state, error: Some(error), ..outcome })
}

/// The outcome of a try that ended by itself and that a cancel made the last: as it was, and why no other follows.
pub(crate) async fn last_try(node: &Node, row: RowId, outcome: Outcome) -> Result<Outcome, JournalError> {
    let by = node.journal.cancelled_by(row, node.clock.at_last()).await?;
    Ok(match by {
        Some(by) => not_followed(outcome, &by),
        None => outcome,
    })
}

fn not_followed(mut outcome: Outcome, by: &str) -> Outcome {
    if let Some(error) = &mut outcome.error {
        error.message.push_str(&format!("; not tried again: {by} cancelled it as it ran"));
    }
    outcome
}

fn cancel_error(by: &str, what: &str) -> RecordError {
    RecordError::new(Code::Cancelled, format!("asked for by {by}; {what}"))
}

impl Words for Node {
    fn cancelled(&self, message: &Loaded, by: &str, now: Timestamp) -> Vec<Report> {
        let what = if message.attempt == 0 { "it had not begun" } else { "it waited for its next try" };
        let outcome = Outcome { state: State::Cancelled, error: Some(cancel_error(by, what)), ..Outcome::succeeded() };
        self.withdrawal(message, &outcome, now)
    }

    fn cancel_requested(&self, message: &Loaded, by: &str) -> Vec<Report> {
        let Ok(admitted) = self.admit(&message.message) else { return Vec::new() };
        let error = Some(cancel_error(by, "it runs"));
        let outcome = Outcome { state: State::CancelRequested, error, ..Outcome::succeeded() };
        let times = Times { received: message.received_at, started: message.started_at, finished: None };
        vec![self.progress(&admitted, message.attempt, times, &outcome)]
    }

    fn carried_out(&self, cancel: &StoredMessage, met: &[Met], now: Timestamp) -> Vec<Report> {
        // It was admitted a moment ago by the same rules.
        let Ok(admitted) = self.admit(cancel) else { return Vec::new() };
        let text = if met.is_empty() { "not known here; cancelled when it comes\n".to_owned() } else { told(met) };
        done(self, &admitted, &Outcome { stdout: Output::whole(text), ..Outcome::succeeded() }, now)
    }

    fn obeyed(&self, order: &StoredMessage, obeyed: &Obeyed, now: Timestamp) -> Vec<Report> {
        let Ok(admitted) = self.admit(order) else { return Vec::new() };
        let mut outcome =
            Outcome { state: obeyed.state(), stdout: Output::whole(did(&obeyed.effects)), ..Outcome::succeeded() };
        for effect in &obeyed.effects {
            if let Effect::Impossible(why) = effect {
                outcome.error = Some(RecordError::new(Code::Failed, why));
            }
        }
        let mut reports = done(self, &admitted, &outcome, now);
        if obeyed.effects.contains(&Effect::Leaving) {
            reports.push(self.farewell(&format!("asked for by {}", admitted.subject.from)));
        }
        reports
    }
}

/// What an order did, one line each.
fn did(effects: &[Effect]) -> String {
    let line = |effect: &Effect| match effect {
        Effect::Stopped { name, changed: true } => format!("{name}: stopped\n"),
        Effect::Stopped { name, changed: false } => format!("{name}: was stopped before\n"),
        Effect::Started { name, changed: true } => format!("{name}: started\n"),
        Effect::Started { name, changed: false } => format!("{name}: was not stopped\n"),
        Effect::Restarted { name, ended: 0 } => format!("{name}: restarted\n"),
        Effect::Restarted { name, ended } => format!("{name}: restarted; running and being ended: {ended}\n"),
        Effect::Granted => "one more try\n".to_owned(),
        Effect::GoesOn => "goes on\n".to_owned(),
        Effect::Leaving => "the agent ends\n".to_owned(),
        // The record's error tells.
        Effect::Impossible(_) => String::new(),
    };
    effects.iter().map(line).collect()
}

/// What a cancel met, one line each.
fn told(met: &[Met]) -> String {
    let line = |met: &Met| match met {
        Met::Ended { .. } => "cancelled\n".to_owned(),
        Met::ToStop { .. } => "runs; being stopped\n".to_owned(),
        Met::GoesOn => "an event that has begun; not tried again\n".to_owned(),
        Met::WasOver(state) => format!("no effect: {state} before\n"),
    };
    met.iter().map(line).collect()
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, RecordError> {
    serde_json::from_slice(body)
        .map_err(|e| RecordError::new(Code::BadBody, format!("the body is not what this verb takes: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_judge_their_bodies_and_others_are_unknown() {
        assert!((facts("events").unwrap().check)(b"{\"start\":4}").is_ok());
        assert!((facts("events").unwrap().check)(b"{\"start\":-4}").is_err());
        assert!((facts("result").unwrap().check)(b"nonsense").is_err());
        assert!(facts("explode").is_none());
        let cancel = facts("cancel").unwrap().check;
        assert_eq!(cancel(b"{\"id\":\"s4\"}").unwrap().whose, None);
        assert_eq!(cancel(b"{\"id\":\"a\",\"from\":\"ops\"}").unwrap().whose, Some("ops".parse().unwrap()));
        for bad in ["{\"id\":4}", "{\"id\":\"a.b\"}", "{}", "{\"id\":\"a\",\"form\":\"ops\"}", "s4"] {
            assert!(cancel(bad.as_bytes()).is_err(), "{bad}");
        }
        let failed = Outcome::ended(State::Failed, Code::Failed, "exit code 4");
        let last = not_followed(failed, "ops");
        assert_eq!(last.state, State::Failed, "a try that ended by itself keeps its own truth");
        assert_eq!(last.error.unwrap().message, "exit code 4; not tried again: ops cancelled it as it ran");
        let named = |subject: &str| {
            cancelled(&crate::model::subject::Names::default().read_loosely(subject), b"{\"id\":\"e4\"}")
        };
        let place = IdRef::Stored(crate::model::message::StreamKind::Events, crate::model::id::StreamSeq(4));
        assert_eq!(named("fleet.msg.@web.control.ops.cancel"), Some(place));
        assert_eq!(named("fleet.msg.@web.command.ops.cancel"), None);
        let start = Remember::Value(Key::EventsStart, "4".to_owned());
        assert_eq!(change("events", b"{\"start\":4}").remember, vec![start]);
    }
}
