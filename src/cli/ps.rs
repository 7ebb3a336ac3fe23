//! `edgeward ps`: the processes of a node, and orders to them.
//!
//! What is shown is what the node said last, with its age. An order is a control message like any other; this waits for
//! its record.

use super::args::duration;
use super::error::CliError;
use super::exit::ExitCode;
use super::output::{self, Format, RowJson};
use super::sending::{check_nodes, store};
use super::session::Session;
use super::watching::{Patience, exit_code, tell_end, wait_for};
use super::{say, sending};
use crate::model::message::Kind;
use crate::model::name::{MethodName, NodeName, Sender, Target};
use crate::model::node::{Contact, ProcessFacts, Status};
use crate::model::subject::RecordStream;
use crate::model::time::Timestamp;
use crate::operator::{Draft, NodeFacts, Row, Sent, Watch, node, stream_facts};
use serde::Serialize;
use std::time::Duration;

/// Arguments of `ps`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    #[command(subcommand)]
    order: Option<OrderVerb>,
    /// Whose processes.
    #[arg(value_name = "NODE", required = true)]
    node: Option<NodeName>,
    /// Who asks, where the credentials do not tell.
    #[arg(long, value_name = "NAME")]
    from: Option<Sender>,
}

#[derive(Debug, clap::Subcommand)]
enum OrderVerb {
    /// Nothing of it starts any more; its messages stay queued, what runs goes on.
    Stop(OrderArgs),
    /// Its messages start again.
    Start(OrderArgs),
    /// What runs of it is ended, and it goes on anew.
    Restart(OrderArgs),
}

#[derive(Debug, clap::Args)]
struct OrderArgs {
    /// The node.
    #[arg(value_name = "NODE")]
    node: NodeName,
    /// The process: a method, or '*' for all of the node's.
    #[arg(value_name = "PROCESS", value_parser = process)]
    process: String,
    /// How long to wait; without it until the node has done it, or is out of contact.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
    /// Who orders it, where the credentials do not tell.
    #[arg(long, value_name = "NAME")]
    from: Option<Sender>,
}

fn process(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    text.parse::<MethodName>().map(|name| name.to_string()).map_err(|bad| bad.to_string())
}

#[derive(Serialize)]
struct PsJson<'a> {
    v: u32,
    node: &'a NodeName,
    contact: Contact,
    heard_at: Option<Timestamp>,
    processes: &'a [ProcessFacts],
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    match (&args.order, &args.node) {
        (Some(OrderVerb::Stop(order)), _) => send(session, "stop", order).await,
        (Some(OrderVerb::Start(order)), _) => send(session, "start", order).await,
        (Some(OrderVerb::Restart(order)), _) => send(session, "restart", order).await,
        (None, Some(node)) => list(session, node, args.from.as_ref()).await,
        // The definition of the arguments leaves this out.
        (None, None) => Err(CliError::usage("say which node")),
    }
}

async fn list(session: &Session, name: &NodeName, from: Option<&Sender>) -> Result<ExitCode, CliError> {
    let loaded = session.load(from)?;
    let broker = session.connect(&loaded).await?;
    sending::known(&broker, std::slice::from_ref(name)).await?;
    let now = stream_facts(&broker, &broker.names().record_stream(RecordStream::Nodes)).await?.now;
    let facts = node(&broker, name).await?;
    let status = facts.status.as_ref().map(|(status, _)| status);
    let processes = status.and_then(|status| status.processes.as_deref()).unwrap_or_default();
    if session.format == Format::Json {
        let (contact, heard_at) = (facts.contact(now), facts.heard_at());
        output::print_json(&PsJson { v: 1, node: name, contact, heard_at, processes })?;
        return Ok(ExitCode::Succeeded);
    }
    tell_contact(name, &facts, now);
    let mut table =
        output::table(&["PROCESS", "STATE", "RUNNING", "WAITING", "FAILED 10 MIN", "RESTARTS", "LAST ERROR"]);
    for process in processes {
        table.add_row(cells(process, status, now));
    }
    output::print_table(&table)?;
    Ok(ExitCode::Succeeded)
}

/// How old the news is: also a node in contact tells only now and then.
fn tell_contact(name: &NodeName, facts: &NodeFacts, now: Timestamp) {
    let age = facts.heard_at().map(|at| output::age(at, now)).unwrap_or_default();
    match facts.contact(now) {
        Contact::InContact => say(&format!("what {name} said of itself is {age} old")),
        Contact::Stopped => say(&format!("{name} stopped {age} ago; this is how it was then")),
        Contact::Silent => say(&format!("{name} silent for {age}; this is how it was then")),
        Contact::Never => say(&format!("{name} was never in contact")),
    }
}

fn cells(process: &ProcessFacts, status: Option<&Status>, now: Timestamp) -> [String; 7] {
    let waiting = process.waiting.map_or_else(|| waiting_by_lanes(process, status), |waiting| waiting.to_string());
    let state = match &process.stopped_by {
        Some(by) => format!("{} by {by}", process.state),
        None => process.state.clone(),
    };
    let error = process.last_error.as_ref().map(|error| {
        let age = process.last_error_at.map(|at| output::age(at, now)).unwrap_or_default();
        format!("{age} ago  {error}")
    });
    let ProcessFacts { name, running, failures, restarts, .. } = process;
    let [running, failures, restarts] = [u64::from(*running), *failures, *restarts].map(|number| number.to_string());
    [name.clone(), state, running, waiting, failures, restarts, error.unwrap_or_default()]
}

/// What waits by the lanes told, as a node of an older release has it: the fullest only, and what waits in the others may be
/// any process's.
fn waiting_by_lanes(process: &ProcessFacts, status: Option<&Status>) -> String {
    let lanes = status.and_then(|status| status.lanes.as_deref()).unwrap_or_default();
    let of_it = lanes.iter().filter(|lane| lane.lane.split('.').nth(2) == Some(process.name.as_str()));
    let waiting = of_it.fold(0u64, |sum, lane| sum.saturating_add(lane.depth.saturating_sub(lane.running.into())));
    let told = status.and_then(Status::depth_told).unwrap_or(0);
    let is_all = status.and_then(|status| status.depth).is_none_or(|depth| depth <= told);
    if is_all { waiting.to_string() } else { format!("{waiting} or more") }
}

async fn send(session: &Session, verb: &str, args: &OrderArgs) -> Result<ExitCode, CliError> {
    let loaded = session.load(args.from.as_ref())?;
    let from = loaded.sender()?;
    let broker = session.connect(&loaded).await?;
    let body = serde_json::json!({ "process": args.process }).to_string();
    let draft = Draft::new(vec![Target::Node(args.node.clone())], Kind::Control, verb.parse()?, body);
    check_nodes(&broker, [&draft], false).await?;
    let mut watch = Watch::open(&broker, from.as_str(), &draft.id).await?;
    let stored = store(&broker, &loaded, &draft).await?.stored;
    let sent: Vec<Sent> = stored.iter().map(|(_, sent)| *sent).collect();
    watch.add_sent(&sent).await?;
    let patience = Patience { wait: args.wait, leave_silent: true };
    let end = wait_for(&mut watch, patience, None, |row, watch| show(session.format, row, watch)).await?;
    tell_end(end, &watch);
    Ok(exit_code(&watch))
}

fn show(format: Format, row: &Row<'_>, watch: &Watch) -> Result<(), CliError> {
    if format == Format::Json {
        return Ok(output::print_json(&RowJson::new(row))?);
    }
    if let Some(record) = row.record {
        output::print_output(record, None)?;
    }
    output::verdict(row, watch.view().now()).iter().for_each(|line| say(line));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_told_by_the_node_or_by_its_lanes_as_far_as_those_are_known() {
        let waiting = |depth: &str| {
            let lanes =
                r#"[{"lane":"command.ops.shell.a","depth":3,"running":true},{"lane":"event.ops.log","depth":2}]"#;
            let status = format!(r#"{{"v":1,"node":"n","lanes":{lanes}{depth}}}"#);
            let status: Status = serde_json::from_str(&status).unwrap();
            let shell = ProcessFacts { waiting: None, ..ProcessFacts::new("shell", false, 1, 7) };
            cells(&shell, Some(&status), Timestamp::from_nanos(0))[3].clone()
        };
        assert_eq!(waiting(""), "2", "a node of an older release does not tell");
        assert_eq!(waiting(r#","depth":5"#), "2");
        assert_eq!(waiting(r#","depth":9"#), "2 or more");
        let cells = cells(&ProcessFacts::new("shell", false, 1, 7), None, Timestamp::from_nanos(0));
        assert_eq!(cells[3], "7", "a node that tells it is believed");
    }
}
