//! One node in detail: what the hub decided of it, what it said last and how old that is, what waits for it, what failed.

use super::super::error::CliError;
use super::super::exit::ExitCode;
use super::super::nodes::{notes, offset, waiting};
use super::super::output::{self, Format, age};
use crate::broker::Broker;
use crate::model::error_event::ErrorEvent;
use crate::model::id::StreamSeq;
use crate::model::name::NodeName;
use crate::model::node::{Contact, HostFacts, LaneFacts, Membership, PerStream, Spec, Starts, Status};
use crate::model::subject::RecordStream;
use crate::model::time::{Timestamp, rough};
use crate::operator::{NodeFacts, StoredError, last_errors, node, stream_facts, waiting_for};
use serde::Serialize;
use std::time::Duration;

/// Error events shown to people.
const ERRORS: usize = 5;

/// All that is known of one node.
struct Detail {
    facts: NodeFacts,
    waiting: PerStream<Option<u64>>,
    errors: Vec<StoredError>,
    now: Timestamp,
}

#[derive(Serialize)]
struct DetailJson<'a> {
    v: u32,
    node: &'a NodeName,
    contact: Contact,
    heard_at: Option<Timestamp>,
    hello_at: Option<Timestamp>,
    /// Messages at the broker that its consumers have still to give out.
    waiting: PerStream<Option<u64>>,
    status: Option<&'a Status>,
    spec: Option<&'a Spec>,
    last_errors: Vec<&'a ErrorEvent>,
}

/// Reads and prints it.
pub(super) async fn show(broker: &Broker, name: &NodeName, format: Format) -> Result<ExitCode, CliError> {
    let detail = Detail {
        facts: node(broker, name).await?,
        waiting: waiting_for(broker, name).await?,
        errors: last_errors(broker, name).await?,
        now: stream_facts(broker, &broker.names().record_stream(RecordStream::Nodes)).await?.now,
    };
    match format {
        Format::Json => output::print_json(&json(name, &detail))?,
        Format::Table => print(name, &detail)?,
    }
    Ok(ExitCode::Succeeded)
}

fn json<'a>(node: &'a NodeName, detail: &'a Detail) -> DetailJson<'a> {
    let Detail { facts, waiting, errors, now } = detail;
    DetailJson {
        v: 1,
        node,
        contact: facts.contact(*now),
        heard_at: facts.heard_at(),
        hello_at: facts.hello_at,
        waiting: *waiting,
        status: facts.status.as_ref().map(|(status, _)| status),
        spec: facts.spec.as_ref(),
        last_errors: errors.iter().map(|error| &error.event).collect(),
    }
}

fn print(name: &NodeName, detail: &Detail) -> std::io::Result<()> {
    let Detail { facts, errors, now, .. } = detail;
    output::print_line(&format!("{name}: {}", contact(facts, *now)))?;
    for (what, text) in lines(detail).into_iter().filter(|(_, text)| !text.is_empty()) {
        output::print_line(&format!("  {what:<9}  {text}"))?;
    }
    let mut groups = output::table(&["GROUP", "STATE", "COMMANDS", "EVENTS"]);
    for membership in facts.spec.iter().flat_map(|spec| &spec.groups) {
        groups.add_row(group_cells(membership));
    }
    let mut lanes = output::table(&["LANE", "DEPTH", "HEAD", "AGE", "HEAD IS"]);
    for lane in facts.status.iter().flat_map(|(status, _)| status.lanes.iter().flatten()) {
        lanes.add_row(lane_cells(lane, *now));
    }
    let mut failed = output::table(&["LAST ERRORS", "SEVERITY", "CODE", "MESSAGE"]);
    for error in errors.iter().take(ERRORS) {
        failed.add_row(error_cells(error, *now));
    }
    [groups, lanes, failed].iter().try_for_each(output::print_table)
}

/// Whether it can be counted on to answer, since when, and how old all that it said is.
fn contact(facts: &NodeFacts, now: Timestamp) -> String {
    let Some(heard) = facts.heard_at() else {
        return match facts.hello_at {
            Some(at) => format!("never told how it is; asked in {} ago", age(at, now)),
            None => "never heard".to_owned(),
        };
    };
    let old = age(heard, now);
    match facts.contact(now) {
        Contact::InContact => format!("in contact; what it said of itself is {old} old"),
        Contact::Stopped => format!("stopped cleanly {old} ago, at {heard}; this is how it was then"),
        Contact::Silent | Contact::Never => {
            format!("unknown since {heard}: silent for {old}; this is how it was then")
        }
    }
}

fn lines(detail: &Detail) -> Vec<(&'static str, String)> {
    let Detail { facts, waiting: at_broker, now, .. } = detail;
    let status = facts.status.as_ref().map(|(status, _)| status);
    let text = |of: fn(&Status, Timestamp) -> Option<String>| status.and_then(|s| of(s, *now)).unwrap_or_default();
    let journal = facts.spec.as_ref().and_then(|spec| spec.journal).or(status.and_then(|s| s.journal));
    let retired = status.and_then(|s| s.journal).filter(|own| Some(*own) != journal);
    vec![
        ("note", notes(facts)),
        ("agent", text(agent)),
        ("host", text(|status, _| status.host.as_ref().map(host))),
        ("labels", text(|status, _| status.labels.as_ref().map(labels))),
        ("clock", text(|status, _| status.clock_offset_ms.map(|ms| format!("{} of the broker's", offset(ms))))),
        ("journal", {
            let old = retired.map(|old| format!("; what it said last came from {old}")).unwrap_or_default();
            journal.map(|journal| format!("{journal}{old}")).unwrap_or_default()
        }),
        ("taken", text(|status, _| Some(taken(&status.position)))),
        ("to take", to_take(at_broker)),
        ("on it", on_it(facts)),
    ]
}

fn agent(status: &Status, now: Timestamp) -> Option<String> {
    let version = status.version.as_ref()?;
    let since = status.started_at.map(|at| format!(", started {} ago", age(at, now))).unwrap_or_default();
    let beat = status.interval_s.map(|s| format!(", tells how it is every {s} s")).unwrap_or_default();
    Some(format!("version {version}{since}{beat}"))
}

fn host(host: &HostFacts) -> String {
    let HostFacts { name, os, arch, uptime_s } = host;
    let up = uptime_s.map(|seconds| format!("up for {}", rough(Duration::from_secs(seconds))));
    [name.clone(), os.clone(), arch.clone(), up].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
}

/// The last stored sequences that the node has taken.
fn taken(position: &Starts) -> String {
    let up_to = |seq: Option<StreamSeq>, sign| seq.map_or("none".to_owned(), |seq| format!("up to {sign}{seq}"));
    format!("commands {}, events {}", up_to(position.commands, ""), up_to(position.events, "e"))
}

fn to_take(waiting: &PerStream<Option<u64>>) -> String {
    let count = |number: Option<u64>| number.map_or("not open".to_owned(), |number| number.to_string());
    format!("commands {}, events {} at the broker", count(waiting.commands), count(waiting.events))
}

/// What is on the node: messages in its lanes, rows of its journal, what it has still to tell.
fn on_it(facts: &NodeFacts) -> String {
    let Some((status, _)) = &facts.status else { return String::new() };
    let running: u64 = status.processes.iter().flatten().map(|process| u64::from(process.running)).sum();
    let queued = waiting(facts).map(|all| format!("{} queued, {running} running", all.saturating_sub(running)));
    let rows = status.journal_rows.map(|rows| format!("{rows} rows in the journal"));
    let outbox = status.outbox.map(|entries| format!("{entries} to be told"));
    [queued, rows, outbox].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn group_cells(membership: &Membership) -> [String; 4] {
    let Membership { name, join, leave, pending, .. } = membership;
    let state = match (pending, join.events, leave.events) {
        (Some(_), None, _) => "joining",
        (Some(_), _, None) => "leaving",
        (None, _, None) => "member",
        (_, _, Some(_)) => "left",
    };
    let stretch = |of: fn(&Starts) -> Option<StreamSeq>| {
        let text = |marks| of(marks).map(|seq| seq.to_string()).unwrap_or_default();
        format!("{}–{}", text(join), text(leave))
    };
    [format!("@{name}"), state.to_owned(), stretch(|s| s.commands), stretch(|s| s.events)]
}

fn lane_cells(lane: &LaneFacts, now: Timestamp) -> [String; 5] {
    let head = lane.head.map(|seq| seq.to_string()).unwrap_or_default();
    let since = lane.head_stored_at.map(|at| age(at, now)).unwrap_or_default();
    let state = if lane.running { "running" } else { "waiting" };
    [lane.lane.clone(), lane.depth.to_string(), head, since, state.to_owned()]
}

fn error_cells(error: &StoredError, now: Timestamp) -> [String; 4] {
    let ErrorEvent { severity, code, message, .. } = &error.event;
    let line = message.lines().next().unwrap_or_default().to_owned();
    [format!("{} ago", age(error.stored_at, now)), severity.as_str().to_owned(), code.as_str().to_owned(), line]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(status: &str) -> NodeFacts {
        let status = serde_json::from_str(status).unwrap();
        NodeFacts { status: Some((status, Timestamp::from_nanos(0))), ..NodeFacts::default() }
    }

    #[test]
    fn contact_says_since_when_and_how_old_it_is() {
        let at = |seconds| Timestamp::from_nanos(0).plus(Duration::from_secs(seconds));
        let alive = facts(r#"{"v":1,"node":"n","interval_s":1.0}"#);
        assert_eq!(contact(&alive, at(1)), "in contact; what it said of itself is 1 s old");
        assert!(contact(&alive, at(30)).starts_with("unknown since 1970-01-01T00:00:00"));
        let stopped = facts(r#"{"v":1,"node":"n","stopped":true}"#);
        assert!(contact(&stopped, at(30)).starts_with("stopped cleanly 30 s ago, at 1970"));
        assert_eq!(contact(&NodeFacts::default(), at(1)), "never heard");
        let asked = NodeFacts { hello_at: Some(at(0)), ..NodeFacts::default() };
        assert_eq!(contact(&asked, at(4)), "never told how it is; asked in 4 s ago");
    }

    #[test]
    fn what_runs_is_not_queued() {
        let busy = facts(
            r#"{"v":1,"node":"n","outbox":2,"lanes":[{"lane":"command.ops.shell","depth":3,"running":true}],
                "processes":[{"name":"shell","state":"running","running":1}]}"#,
        );
        assert_eq!(on_it(&busy), "2 queued, 1 running, 2 to be told");
        let full = facts(
            r#"{"v":1,"node":"n","depth":40,"lanes":[{"lane":"command.ops.shell","depth":3,"running":true}],
                "processes":[{"name":"shell","state":"running","running":1}]}"#,
        );
        assert_eq!(on_it(&full), "39 queued, 1 running", "also what is in lanes that are not told one by one");
    }
}
