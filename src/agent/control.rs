//! Control messages: taken in stream order like all others and acted on at once, not queued in lanes (PROTOCOL §7).
//!
//! Owns the verbs that this node knows. The change that a verb makes is kept in the same commit as its record; effects
//! outside the journal follow from what is kept. Verbs that are not here are refused.

use crate::journal::{Class, Key, Report};
use crate::model::admit::{BodyFacts, MethodFacts};
use crate::model::error_event::Code;
use crate::model::header::RawHeaders;
use crate::model::message::Kind;
use crate::model::record::{Record, RecordError};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

/// What a control message changes.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// What the journal keeps from it.
    pub(crate) remember: Vec<(Key, String)>,
    /// What leaves the node because of it.
    pub(crate) reports: Vec<Report>,
}

#[derive(Deserialize)]
struct EventsBody {
    start: u64,
}

/// What admission has to know of a verb; `None` for one that this node does not have.
pub(crate) fn facts(verb: &str) -> Option<MethodFacts> {
    let check: fn(&[u8]) -> Result<BodyFacts, RecordError> = match verb {
        "events" => |body| parse::<EventsBody>(body).map(|_| BodyFacts::default()),
        "result" => |body| parse::<Record>(body).map(|_| BodyFacts::default()),
        _ => return None,
    };
    Some(MethodFacts { kind: Kind::Control, check })
}

/// What an admitted control message changes.
pub(crate) fn change(verb: &str, body: &[u8]) -> Change {
    match verb {
        "events" => match parse::<EventsBody>(body) {
            Ok(events) => Change { remember: vec![(Key::EventsStart, events.start.to_string())], ..Change::default() },
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
        assert_eq!(change("events", b"{\"start\":4}").remember, vec![(Key::EventsStart, "4".to_owned())]);
    }
}
