//! The checker's rules about what commands print and events leave in logs.

use super::super::history::{Mark, Sent, Stored};
use super::Check;
use std::collections::{BTreeSet, HashMap};

impl Check<'_> {
    /// What a record says is what the file says.
    pub(super) fn outputs_are_true(&mut self) {
        let mut ends: HashMap<(&str, &str, u32), &Mark> = HashMap::new();
        for (node, marks) in &self.history.marks {
            ends.extend(marks.iter().filter(|m| m.is_end).map(|m| ((node.as_str(), m.id.as_str(), m.attempt), m)));
        }
        for (stored, sent) in self.originals() {
            let (Some(record), Some(sent)) = (self.fate(stored.at), sent) else { continue };
            if stored.kind != "command" || !matches!(&*record.state, "succeeded" | "failed") {
                continue;
            }
            let Some(end) = ends.get(&(&*stored.to, &*stored.id, record.attempt)) else {
                let text = format!("{} at attempt {}, which never came to its end", record.state, record.attempt);
                self.found("a wrong output", &stored.id, text);
                continue;
            };
            let line = format!("{} {} {}\n", end.id, end.attempt, end.pid);
            let size = line.len() as u64 + sent.extra_output;
            let is_whole = sent.extra_output > 0 || record.stdout == line.as_bytes();
            if !record.stdout.starts_with(line.as_bytes()) || !is_whole || record.stdout_bytes != size {
                let got = String::from_utf8_lossy(&record.stdout[..record.stdout.len().min(100)]).into_owned();
                let text = format!("{got:?} of {} bytes, the file says {line:?} of {size}", record.stdout_bytes);
                self.found("a wrong output", &stored.id, text);
            }
        }
    }

    pub(super) fn logs_are_whole(&mut self) {
        let events: Vec<(&Stored, Option<&Sent>)> =
            self.originals().into_iter().filter(|(one, _)| one.kind == "event" && one.method != "member").collect();
        let places: HashMap<(&str, &str), &Stored> =
            events.iter().map(|(stored, _)| ((stored.to.as_str(), stored.id.as_str()), *stored)).collect();
        for (node, lines) in &self.history.logs {
            let mut seen: BTreeSet<&str> = BTreeSet::new();
            let mut last: HashMap<(&str, &str), &Stored> = HashMap::new();
            for line in lines {
                let Some(stored) = places.get(&(node, &line.id)) else {
                    self.found("logged out of nowhere", &line.id, format!("on {node}"));
                    continue;
                };
                if !seen.insert(&line.id) {
                    self.found("logged twice", &line.id, format!("on {node}"));
                }
                let before = last.insert((&line.from, &line.file), stored);
                if let Some(before) = before.filter(|before| before.at > stored.at) {
                    self.found("out of order", &line.id, format!("logged after {} on {node}", before.id));
                }
            }
        }
        for (stored, _) in events {
            let Some(record) = self.fate(stored.at) else { continue };
            let lines = self.history.logs.get(&stored.to);
            let is_logged = lines.is_some_and(|lines| lines.iter().any(|line| line.id == stored.id));
            if record.state == "succeeded" && !is_logged {
                self.found("a wrong output", &stored.id, "succeeded, but it is in no log");
            }
            if record.attempt == 0 && is_logged {
                self.found("ran although it was not to", &stored.id, format!("{}, but it is logged", record.state));
            }
        }
    }
}
