//! How a stream that is there differs from the wanted one, and what may be done about it.
//!
//! Owns the judgement per setting: changed at once, left because a change would lose something, or unusable.

use crate::model::time::format_duration;
use serde_json::{Map, Value};
use std::fmt;
use std::time::Duration;

/// What is done about a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// It is changed; nothing is lost by that.
    Change,
    /// It is left as it is, for this reason.
    Keep(&'static str),
    /// The stream cannot be used like this; the text says what to do.
    Refuse(&'static str),
}

/// One setting that is not as wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The setting, by the API's name.
    pub field: String,
    /// As it is.
    pub found: Value,
    /// As it should be.
    pub wanted: Value,
    /// What is done about it.
    pub handling: Handling,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.field, readable(&self.field, &self.found), readable(&self.field, &self.wanted))?;
        match self.handling {
            Handling::Change => Ok(()),
            Handling::Keep(reason) => write!(f, " (left: {reason})"),
            Handling::Refuse(remedy) => write!(f, " (refused: {remedy})"),
        }
    }
}

/// A value as people read it: the API has times in nanoseconds.
fn readable(field: &str, value: &Value) -> String {
    match (field, value.as_u64()) {
        ("max_age", Some(0)) => "unlimited".to_owned(),
        ("max_age" | "duplicate_window", Some(nanos)) => format_duration(Duration::from_nanos(nanos)),
        _ => value.to_string(),
    }
}

/// The differences of a stream from its wanted settings. Settings that are not named there are the admin's own.
pub(super) fn differences(found: &Map<String, Value>, wanted: &Map<String, Value>) -> Vec<Difference> {
    let mut all = Vec::new();
    for (field, want) in wanted {
        let have = found.get(field).cloned().unwrap_or_else(|| absent(want));
        // A stream's first sequence is given when it is made and never after.
        if field != "first_seq" && !same(&have, want) {
            let handling = handle(field, &have, want);
            all.push(Difference { field: field.clone(), found: have, wanted: want.clone(), handling });
        }
    }
    all
}

/// The broker leaves out what is off.
fn absent(wanted: &Value) -> Value {
    match wanted {
        Value::Bool(_) => Value::Bool(false),
        Value::Number(_) => Value::from(0),
        _ => Value::Null,
    }
}

fn same(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        // Subjects are a set.
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().all(|item| b.contains(item)),
        (Value::Object(have), Value::Object(want)) => want.iter().all(|(key, value)| have.get(key) == Some(value)),
        // Every number of a stream's settings is unlimited at 0 and -1 alike.
        (Value::Number(_), Value::Number(_)) => limit(found) == limit(wanted),
        _ => found == wanted,
    }
}

/// A limit, `None` where there is none.
fn limit(value: &Value) -> Option<i64> {
    value.as_i64().filter(|n| *n > 0)
}

fn handle(field: &str, found: &Value, wanted: &Value) -> Handling {
    let tighter = match (limit(found), limit(wanted)) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(found), Some(wanted)) => wanted < found,
    };
    match field {
        "storage" | "retention" => {
            Handling::Refuse("this never changes: back the stream up, remove it, and run `edgeward init` again")
        }
        "deny_delete" if found == &Value::Bool(true) => Handling::Keep("it cannot be turned off"),
        "allow_msg_ttl" | "allow_msg_schedules" => Handling::Keep("it cannot be turned off"),
        "max_age" | "max_msgs" | "max_msgs_per_subject" if tighter => {
            Handling::Keep("it would drop what is stored; `nats stream edit` does it")
        }
        "num_replicas" if tighter => Handling::Keep("it would drop copies; `nats stream edit` does it"),
        _ => Handling::Change,
    }
}

#[cfg(test)]
mod tests {
    use super::super::wanted::into_map;
    use super::*;
    use serde_json::json;

    fn diff(found: Value, wanted: Value) -> Vec<Difference> {
        differences(&into_map(found), &into_map(wanted))
    }

    #[test]
    fn what_is_left_out_or_unlimited_is_the_same() {
        let found = json!({ "max_msgs": -1, "subjects": ["b", "a"], "republish": { "src": "a", "dest": "b", "x": 1 } });
        let wanted = json!({ "max_msgs": 0, "allow_msg_ttl": false, "subjects": ["a", "b"], "first_seq": 7,
            "republish": { "src": "a", "dest": "b" } });
        assert_eq!(diff(found, wanted), []);
    }

    #[test]
    fn nothing_is_changed_that_would_lose_messages() {
        let shorter = diff(json!({ "max_age": 7_200_000_000_000u64 }), json!({ "max_age": 60_000_000_000u64 }));
        assert!(matches!(shorter[0].handling, Handling::Keep(_)));
        assert!(shorter[0].to_string().starts_with("max_age: 2h -> 1m (left"), "{}", shorter[0]);
        let longer = diff(json!({ "max_age": 50 }), json!({ "max_age": 100 }));
        assert_eq!(longer[0].handling, Handling::Change);
        let endless = diff(json!({ "max_age": 50 }), json!({ "max_age": 0 }));
        assert_eq!(endless[0].handling, Handling::Change);
        let memory = diff(json!({ "storage": "memory" }), json!({ "storage": "file" }));
        assert!(matches!(memory[0].handling, Handling::Refuse(_)));
        assert!(memory[0].to_string().contains("refused"), "{}", memory[0]);
    }
}
