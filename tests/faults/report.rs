//! The report of a run, as JSON.

use super::chaos::Tally;
use super::check::Violation;
use super::history::{At, Class, History};
use super::options::Options;
use edgeward::killpoint::Point;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Messages whose history is told in full.
const TOLD: usize = 20;

/// How long the parts of a run took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    pub faults: Duration,
    /// From healing to rest.
    pub rest: Duration,
    pub all: Duration,
}

pub fn report(
    options: &Options,
    history: &History,
    tally: &Tally,
    errors: &BTreeMap<String, usize>,
    took: Took,
    violations: &[Violation],
) -> Value {
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    for record in &history.records {
        let name = match record.class {
            Class::Terminal => record.state.clone(),
            Class::Progress => format!("progress: {}", record.state),
            Class::Late => format!("late: {}", record.state),
        };
        *states.entry(name).or_default() += 1;
    }
    let points: BTreeMap<&str, usize> = Point::AGENT
        .iter()
        .chain(&Point::RUNNER)
        .chain(&Point::HUB)
        .map(|point| (point.as_str(), tally.points.get(point.as_str()).copied().unwrap_or(0)))
        .collect();
    let orders = ["stop", "start", "restart", "directive"].map(|verb| answers(history, verb));
    let of_kind = |kind: &str| history.stored.iter().filter(|stored| stored.kind == kind).count();
    let starts = history.marks.values().flatten().filter(|mark| !mark.is_end).count();
    let mut told: Vec<&str> = violations.iter().map(|one| one.id.as_str()).filter(|id| !id.is_empty()).collect();
    told.sort_unstable();
    told.dedup();
    let histories: BTreeMap<&str, Vec<String>> = told.into_iter().take(TOLD).map(|id| (id, history.tell(id))).collect();
    json!({
        "v": 1,
        "options": options,
        "kill_points": cfg!(feature = "kill-points"),
        "seconds": {
            "faults": took.faults.as_secs_f64(), "rest": took.rest.as_secs_f64(), "all": took.all.as_secs_f64(),
        },
        "faults": tally.faults,
        "kills_at_points": points,
        "messages": {
            "sent": history.sent.len(),
            "not_confirmed": history.sent.iter().filter(|s| s.confirmed.is_empty() && !s.taken_from_file).count(),
            "stored": history.stored.len(),
            "commands": of_kind("command"),
            "events": of_kind("event"),
            "control": of_kind("control"),
            "to_groups": history.stored.iter().filter(|stored| stored.to.starts_with('@')).count(),
            "copies": history.originals().len(),
            "cancels": answers(history, "cancel"),
            "orders": orders,
            "starts_of_commands": starts,
        },
        "records": states,
        "error_events": errors,
        "violations": violations
            .iter()
            .map(|one| json!({ "rule": one.rule, "message": one.id, "text": one.text }))
            .collect::<Vec<_>>(),
        "histories": histories,
    })
}

/// What nodes said that they did about these, and how often.
fn answers(history: &History, verb: &str) -> BTreeMap<String, usize> {
    let stored = history.stored.iter().filter(|stored| stored.kind == "control" && stored.method == verb);
    let places: BTreeSet<At> = stored.map(|stored| stored.at).collect();
    let mut met: BTreeMap<String, usize> = BTreeMap::new();
    for record in history.records.iter().filter(|r| r.class == Class::Terminal && places.contains(&r.about)) {
        *met.entry(String::from_utf8_lossy(&record.stdout).trim_end().to_owned()).or_default() += 1;
    }
    met
}
