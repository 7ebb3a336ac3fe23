//! The checker's rules about cancels: what the node said it did to a message is what became of that message, and nothing
//! ends as if it had been cancelled that nobody cancelled.

use super::super::history::{At, Record, Sent, Stored, Stream};
use super::{Check, is_own_end};
use std::collections::{BTreeMap, HashMap};

/// What the exit code of a try is that is to be followed by a good one.
pub const NOT_YET: i64 = 4;

impl<'a> Check<'a> {
    /// The cancels that were stored, by the message that each names, where that is stored too.
    pub(super) fn cancels(&self) -> BTreeMap<At, Vec<(&'a Stored, &'a Stored)>> {
        let originals = self.originals();
        let places: HashMap<(&str, &str, &str), &Stored> = originals
            .iter()
            // What is still for a group is nobody's.
            .filter(|(stored, _)| stored.kind != "control" && !stored.to.starts_with('@'))
            .map(|(stored, _)| ((&*stored.to, &*stored.from, &*stored.id), *stored))
            .collect();
        let mut cancels: BTreeMap<At, Vec<(&Stored, &Stored)>> = BTreeMap::new();
        for (cancel, sent) in originals {
            let Some((from, id)) = sent.and_then(|sent| sent.cancels.as_ref()) else { continue };
            if let Some(message) = places.get(&(&*cancel.to, &**from, &**id)) {
                cancels.entry(message.at).or_default().push((cancel, message));
            }
        }
        cancels
    }

    pub(super) fn cancels_are_carried_out(&mut self) {
        for (cancel, message) in self.cancels().into_values().flatten() {
            let (Some(answer), Some(fate)) = (self.fate(cancel.at), self.fate(message.at)) else { continue };
            let sent = self.sent.get(&(&*message.from, &*message.id)).copied();
            let told = String::from_utf8_lossy(&answer.stdout);
            if !agrees(told.trim_end(), fate, sent) || !is_in_order(cancel.at, message.at, &told) {
                let Record { state, attempt, .. } = fate;
                let places = format!("stored at {:?}, its cancel at {:?}", message.at, cancel.at);
                let text = format!("the cancel met {told:?}, it ended {state} at attempt {attempt}; {places}");
                self.found("a cancel's wrong answer", &message.id, text);
            }
        }
    }
}

/// True where a message can have ended like this after what its cancel met.
fn agrees(told: &str, fate: &Record, sent: Option<&Sent>) -> bool {
    let is_cancelled = fate.state == "cancelled";
    match told {
        "cancelled" => is_cancelled,
        // Whether it is late is judged before whether it is cancelled.
        NOT_KNOWN => (is_cancelled && fate.attempt == 0) || fate.state == "expired",
        // Begun together with those before it in its lane, and given back untried.
        EVENT_RUNS if fate.attempt == 0 => is_cancelled,
        RUNS | EVENT_RUNS => {
            fate.attempt > 0 && (is_cancelled || sent.is_none_or(|sent| is_own_end(sent, fate, true, sent.rerun)))
        }
        _ => told.strip_prefix("no effect: ").and_then(|rest| rest.strip_suffix(" before")) == Some(&*fate.state),
    }
}

const NOT_KNOWN: &str = "not known here; cancelled when it comes";
const RUNS: &str = "runs; being stopped";
const EVENT_RUNS: &str = "an event that has begun; not tried again";

/// One stream is taken in order: a cancel knows what was stored before it, and nothing else. Two streams have no order.
fn is_in_order(cancel: At, message: At, told: &str) -> bool {
    message.stream == Stream::Events || (message.seq < cancel.seq) != told.starts_with(NOT_KNOWN)
}

/// True where a cancel found the message's last try running: that try may have ended by itself, and is not followed by
/// another.
pub(super) fn met_it_running(answer: &Record) -> bool {
    matches!(String::from_utf8_lossy(&answer.stdout).trim_end(), RUNS | EVENT_RUNS)
}
