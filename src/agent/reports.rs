//! What a node says about a message, as entries for the outbox: records and error events.
//!
//! Owns their subjects and headers. Never writes to the journal.

use super::node::Node;
use crate::journal::{Again, Class, Finished, Loaded, Report};
use crate::model::admit::{Admitted, Rejected};
use crate::model::directive::Ruling;
use crate::model::error_event::{Code, ErrorEvent, Severity};
use crate::model::header::names;
use crate::model::id::MsgRef;
use crate::model::message::Kind;
use crate::model::record::{By, DuplicateOf, Outcome, Record};
use crate::model::state::State;
use crate::model::subject::{RecordClass, RecordSubject};
use crate::model::time::Timestamp;
use bytes::Bytes;

/// When a try was taken, begun and ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) received: Timestamp,
    pub(crate) started: Option<Timestamp>,
    pub(crate) finished: Option<Timestamp>,
}

impl Node {
    /// The terminal record of a message, and the error event where it did not succeed.
    pub(crate) fn terminal(&self, message: &Admitted, attempt: u32, times: Times, outcome: &Outcome) -> Vec<Report> {
        self.terminal_with(message, attempt, times, outcome, None)
    }

    /// The same where the error kernel was asked.
    pub(crate) fn terminal_with(
        &self,
        message: &Admitted,
        attempt: u32,
        times: Times,
        outcome: &Outcome,
        ruling: Option<&Ruling>,
    ) -> Vec<Report> {
        let record = self.filled(message, attempt, times, outcome.state);
        let mut reports = vec![self.record(RecordClass::Ack, record, outcome)];
        reports.extend(self.failure(message, attempt, outcome, ruling));
        reports
    }

    /// A progress record.
    pub(crate) fn progress(&self, message: &Admitted, attempt: u32, times: Times, outcome: &Outcome) -> Report {
        let record = self.filled(message, attempt, times, outcome.state);
        self.record(RecordClass::Progress, record, outcome)
    }

    /// The terminal record of a message that was not accepted, and its error event.
    pub(crate) fn refusal(&self, rejected: &Rejected, now: Timestamp) -> Vec<Report> {
        let mut record = rejected.record(&self.names, self.name.as_str(), State::Refused, By::Node);
        record.received_at = Some(now);
        record.finished_at = Some(now);
        record.journal = Some(self.journal.id());
        let outcome = Outcome { error: Some(rejected.error.clone()), state: State::Refused, ..Outcome::succeeded() };
        let mut event = self.event(Severity::Warning, Code::Refused, &rejected.error.message);
        event.process = (rejected.method != "_").then(|| rejected.method.clone());
        event.msg_id = Some(rejected.id.clone());
        vec![self.record(RecordClass::Ack, record, &outcome), self.error_report(&event)]
    }

    /// The terminal record of a message that ended `cancelled` without running, or without running again.
    pub(crate) fn withdrawal(&self, message: &Loaded, outcome: &Outcome, now: Timestamp) -> Vec<Report> {
        let (attempt, started) = (message.attempt, message.started_at);
        let times = Times { received: message.received_at, started, finished: Some(now) };
        match self.admit(&message.message) {
            Ok(admitted) => self.terminal(&admitted, attempt, times, outcome),
            // The rules have changed since it was taken; it is over all the same.
            Err(rejected) => {
                let record = rejected.record(&self.names, self.name.as_str(), outcome.state, By::Node);
                let record = Record { attempt, ..self.timed(record, times) };
                vec![self.record(RecordClass::Ack, record, outcome)]
            }
        }
    }

    /// What is said about a copy of a message that is known.
    pub(crate) fn copy(&self, mut record: Record, first: MsgRef) -> Report {
        record.state = State::Duplicate;
        record.error = None;
        record.duplicate_of = Some(DuplicateOf { stream: first.stream, seq: first.seq, stored_at: first.stored_at });
        let outcome = Outcome { state: State::Duplicate, ..Outcome::succeeded() };
        self.record(RecordClass::Progress, record, &outcome)
    }

    /// The error event of a try that did not succeed, with the directive that it got.
    pub(crate) fn failure(
        &self,
        message: &Admitted,
        attempt: u32,
        outcome: &Outcome,
        ruling: Option<&Ruling>,
    ) -> Vec<Report> {
        let Some((code, severity)) = failure_kind(outcome) else { return Vec::new() };
        let text = outcome.error.as_ref().map_or("", |error| error.message.as_str());
        let mut event = self.event(severity, code, text);
        event.process = Some(message.subject.method.to_string());
        event.msg_id = Some(message.id.clone());
        event.attempt = (attempt > 0).then_some(attempt);
        match ruling {
            Some(ruling) => self.decided(event, ruling),
            None => vec![self.error_report(&event)],
        }
    }

    /// An error event of this node.
    pub(crate) fn event(&self, severity: Severity, code: Code, text: &str) -> ErrorEvent {
        ErrorEvent::new(self.name.as_str(), severity, code, text, self.clock.now())
    }

    /// An error event, for the outbox.
    pub(crate) fn error_report(&self, event: &ErrorEvent) -> Report {
        let subject = self.names.error(self.name.as_str(), event.severity.as_str(), event.code.as_str());
        let headers = crate::model::header::RawHeaders::default().with(names::MSG_ID, event.id.to_string());
        Report { class: Class::Error, subject, headers, body: Bytes::from(event.encode()) }
    }

    /// A record of this message with everything but the outcome in it.
    pub(crate) fn filled(&self, message: &Admitted, attempt: u32, times: Times, state: State) -> Record {
        Record { attempt, ..self.timed(message.record(&self.names, &self.name, state), times) }
    }

    fn timed(&self, record: Record, times: Times) -> Record {
        Record {
            received_at: Some(times.received),
            started_at: times.started,
            finished_at: times.finished,
            journal: Some(self.journal.id()),
            ..record
        }
    }

    /// The terminal record of a message that was over long ago, once more.
    pub(crate) fn again(&self, finished: Finished) -> Option<Report> {
        let (subject, record, body) = match finished.record {
            Again::Kept { subject, body } => (subject, serde_json::from_slice::<Record>(&body).ok()?, body),
            Again::Row { id, from, name, state, attempt, times } => {
                let stream = self.names.stream(finished.at.stream);
                let (method, lane) = match name.split_once('.') {
                    Some((method, lane)) => (method.to_owned(), Some(lane.to_owned())),
                    None => (name, None),
                };
                let record = Record {
                    from,
                    kind: Some(Kind::Event),
                    method,
                    lane,
                    attempt,
                    received_at: Some(times.0),
                    started_at: times.1,
                    finished_at: times.2,
                    journal: Some(self.journal.id()),
                    ..Record::bare(id, finished.at, stream, self.name.as_str(), state, By::Node)
                };
                let body = Bytes::from(record.encode());
                (self.names.record(RecordClass::Ack, &subject_of(&record)), record, body)
            }
        };
        let headers = record.headers().with(names::EXPECTED_LAST_SUBJECT_SEQ, "0");
        Some(Report { class: Class::Ack, subject, headers, body })
    }

    fn record(&self, class: RecordClass, mut record: Record, outcome: &Outcome) -> Report {
        record.state = outcome.state;
        let subject = self.names.record(class, &subject_of(&record));
        let mut headers = record.headers();
        if class == RecordClass::Ack {
            // The broker itself keeps it single.
            headers.push(names::EXPECTED_LAST_SUBJECT_SEQ, "0");
        }
        Report {
            class: Class::Ack,
            subject,
            headers,
            body: Bytes::from(record.encode_with(outcome, self.record_limit())),
        }
    }
}

/// What an outcome is as a failure; `None` where it is none.
pub(crate) fn failure_kind(outcome: &Outcome) -> Option<(Code, Severity)> {
    let error = outcome.error.as_ref()?;
    let code = match outcome.state {
        State::Failed if error.code == Code::Panicked => Code::Panicked,
        State::Failed => Code::Failed,
        State::TimedOut => Code::TimedOut,
        State::Refused if error.code == Code::LaneFull => Code::LaneFull,
        State::Refused => Code::Refused,
        State::Expired => Code::Expired,
        State::Interrupted => Code::Interrupted,
        _ => return None,
    };
    Some((code, if code == Code::Panicked { Severity::Error } else { Severity::Warning }))
}

/// The subject tokens of a record.
pub(crate) fn subject_of(record: &Record) -> RecordSubject {
    RecordSubject {
        node: record.node.clone(),
        from: record.from.clone(),
        method: record.method.clone(),
        id: record.id.clone(),
    }
}
