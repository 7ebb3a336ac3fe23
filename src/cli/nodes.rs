//! `edgeward nodes`: every node, with the age of what is known.

use super::error::CliError;
use super::exit::ExitCode;
use super::output::{self, Format};
use super::session::Session;
use crate::model::name::Sender;
use crate::model::node::{Contact, Spec, Status};
use crate::model::subject::RecordStream;
use crate::model::time::Timestamp;
use crate::operator::{NodeFacts, nodes, stream_facts};
use serde::Serialize;
use std::time::Duration;

/// A node's clock that is off by more is worth a word.
const CLOCK_OFF: Duration = Duration::from_secs(5);

/// Arguments of `nodes`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Who asks, where the credentials do not tell.
    #[arg(long, value_name = "NAME")]
    from: Option<Sender>,
}

#[derive(Serialize)]
struct NodeJson<'a> {
    v: u32,
    node: &'a str,
    contact: Contact,
    heard_at: Option<Timestamp>,
    hello_at: Option<Timestamp>,
    status: Option<&'a Status>,
    spec: Option<&'a Spec>,
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = session.load(args.from.as_ref())?;
    let broker = session.connect(&loaded).await?;
    let now = stream_facts(&broker, &broker.names().record_stream(RecordStream::Nodes)).await?.now;
    let all = nodes(&broker).await?;
    let mut table = output::table(&["NODE", "CONTACT", "HEARD", "WAITING", "OUTBOX", "VERSION", "NOTES"]);
    for (node, facts) in &all {
        if session.format == Format::Json {
            let (contact, heard_at, hello_at) = (facts.contact(now), facts.heard_at(), facts.hello_at);
            let status = facts.status.as_ref().map(|(status, _)| status);
            output::print_json(&NodeJson {
                v: 1,
                node,
                contact,
                heard_at,
                hello_at,
                status,
                spec: facts.spec.as_ref(),
            })?;
            continue;
        }
        table.add_row(cells(node, facts, now));
    }
    output::print_table(&table)?;
    Ok(ExitCode::Succeeded)
}

fn cells(node: &str, facts: &NodeFacts, now: Timestamp) -> [String; 7] {
    let status = facts.status.as_ref().map(|(status, _)| status);
    let heard = facts.heard_at().map(|at| output::age(at, now)).unwrap_or_default();
    let contact = match facts.contact(now) {
        Contact::InContact => "in contact",
        Contact::Stopped => "stopped",
        Contact::Silent => "unknown since",
        Contact::Never => "never heard",
    };
    let waiting = status.and_then(|s| s.lanes.as_ref()).map(|lanes| lanes.iter().map(|lane| lane.depth).sum::<u64>());
    let number = |number: Option<u64>| number.map(|n| n.to_string()).unwrap_or_default();
    let version = status.and_then(|s| s.version.clone()).unwrap_or_default();
    let outbox = number(status.and_then(|s| s.outbox));
    [node.to_owned(), contact.to_owned(), heard, number(waiting), outbox, version, notes(facts, status)]
}

fn notes(facts: &NodeFacts, status: Option<&Status>) -> String {
    let mut notes = Vec::new();
    if status.and_then(|s| s.insecure) == Some(true) {
        notes.push("insecure".to_owned());
    }
    if let Some(error) = status.and_then(|s| s.journal_error.as_ref()) {
        notes.push(error.clone());
    }
    if let Some(off) = status.and_then(|s| s.clock_offset_ms).map(|ms| Duration::from_millis(ms.unsigned_abs()))
        && off > CLOCK_OFF
    {
        notes.push(format!("clock off by {}", crate::model::time::rough(off)));
    }
    if facts.spec.is_none() {
        notes.push("the hub has not taken it in".to_owned());
    }
    notes.join("; ")
}
