//! `edgeward why`: a message's way, step by step, and what it waits for.

use super::args::IdArgs;
use super::error::CliError;
use super::exit::ExitCode;
use super::history::local;
use super::output::{self, Format};
use super::say;
use super::session::{Session, Watched};
use crate::broker::Progress;
use crate::model::id::{IdRef, MessageId, StreamSeq};
use crate::model::message::StreamKind;
use crate::model::name::near;
use crate::model::node::Contact;
use crate::model::state::State;
use crate::model::time::Timestamp;
use crate::operator::{Row, Step, StepKind, Wait, Why, why};
use serde::Serialize;

/// Nodes explained where none is named, what is not well first.
const SHOWN: usize = 20;

/// Arguments of `why`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    id: IdArgs,
    /// Only on this node; tells how far its consumer has come, too.
    #[arg(value_name = "NODE")]
    node: Option<String>,
}

#[derive(Serialize)]
struct WhyJson<'a> {
    v: u32,
    id: &'a MessageId,
    stream: StreamKind,
    seq: StreamSeq,
    node: &'a str,
    state: State,
    steps: &'a [Step],
    waits: &'a [Wait],
    ack_floor: Option<StreamSeq>,
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let Watched { broker, watch, .. } = session.watch(&args.id.id, &args.id.search).await?;
    let mut rows: Vec<Row<'_>> = watch.view().rows().collect();
    if let Some(node) = &args.node {
        let known: Vec<String> = rows.iter().map(|row| row.node.clone()).collect();
        rows.retain(|row| row.node == *node);
        if rows.is_empty() {
            return Err(not_sent_to(&args.id.id, node, &known));
        }
    }
    rows.sort_by_key(|row| (row.state == State::Succeeded, row.is_settled()));
    let more = rows.len().saturating_sub(SHOWN);
    rows.truncate(SHOWN);
    for (why, row) in why(&broker, &watch, &rows).await?.iter().zip(&rows) {
        match session.format {
            Format::Json => {
                let Why { at, node, state, steps, waits, consumer } = why;
                let ack_floor = consumer.map(|progress: Progress| progress.ack_floor);
                let id = &row.message.id;
                let (stream, seq, state) = (at.stream, at.seq, *state);
                output::print_json(&WhyJson { v: 1, id, stream, seq, node, state, steps, waits, ack_floor })?;
            }
            Format::Table => print(why, row, watch.view().now())?,
        }
    }
    if more > 0 {
        say(&format!("and {more} more; edgeward why {} NODE", args.id.id));
    }
    Ok(ExitCode::Succeeded)
}

fn not_sent_to(id: &IdRef, node: &str, known: &[String]) -> CliError {
    let error = CliError::usage(format!("the message `{id}` did not go to `{}`", node.escape_debug()));
    match near(node, known.iter().map(String::as_str))[..] {
        [] => error.hint(format!("edgeward status {id} shows where it went")),
        ref names => error.hint(format!("near `{node}`: {}", names.join(", "))),
    }
}

fn print(why: &Why, row: &Row<'_>, now: Timestamp) -> Result<(), CliError> {
    let message = row.message;
    let Why { at, node, state, steps, waits, consumer } = why;
    let head = [&output::id_ref(*at).to_string(), state.as_str(), &message.lane_text(), &message.preview].join("  ");
    output::print_line(&format!("{node}  {head}"))?;
    for step in steps {
        let time = step.at.map(|at| format!("{} ({} ago)", local(at), output::age(at, now)));
        let place = step.stored.as_ref().map(|(stream, seq)| format!("{stream} {seq}"));
        let note = (!step.note.is_empty()).then(|| step.note.clone());
        let told: Vec<String> = [time, place, note].into_iter().flatten().collect();
        tell(step_name(step.step), &told.join("  "))?;
    }
    let reason = row.record.filter(|_| row.is_settled()).and_then(output::reason);
    if let Some(line) = reason {
        tell("because", &line)?;
    }
    for wait in waits {
        tell("waits for", &wait_text(wait, row, now))?;
    }
    if let Some(deadline) = message.start_by.filter(|_| matches!(state, State::Queued | State::Delivered)) {
        tell("start by", &local(deadline))?;
    }
    if let Some(Progress { delivered, ack_floor, .. }) = consumer {
        tell("consumer", &format!("acked up to {ack_floor}, given out up to {delivered}"))?;
    }
    Ok(())
}

/// One line about the message.
fn tell(what: &str, text: &str) -> std::io::Result<()> {
    output::print_line(&format!("  {what:<11} {text}"))
}

fn step_name(step: StepKind) -> &'static str {
    match step {
        StepKind::Stored => "stored",
        StepKind::Delivered => "delivered",
        StepKind::Admitted => "admitted",
        StepKind::Started => "started",
        StepKind::Finished => "finished",
        StepKind::AckStored => "ack stored",
        StepKind::Corrected => "corrected",
    }
}

fn wait_text(wait: &Wait, row: &Row<'_>, now: Timestamp) -> String {
    let node = &row.node;
    match wait {
        Wait::Hub => {
            format!("the hub: it has not taken `{node}` in, or has to answer for it; is `edgeward hub` running?")
        }
        Wait::Closing => format!("the hub: it closes what an earlier journal of `{node}` left open"),
        Wait::Node { contact: Contact::Never, .. } => {
            format!("`{node}`, which was never heard; it runs on its first contact")
        }
        Wait::Node { .. } => format!("`{node}`, {}", output::contact_text(row, now)),
        Wait::Journal { error } => format!("`{node}`, which says: {error}"),
        Wait::Delivery => format!("its way to `{node}`, which is in contact and has not told of it yet"),
        Wait::Process { process } => {
            format!("the process `{process}`, which is stopped on `{node}`; edgeward ps start {node} {process}")
        }
        Wait::Lane { lane, head, running, running_since, depth } => {
            let since = running_since.map(|at| format!(" for {}", output::age(at, now))).unwrap_or_default();
            let runs = if *running { format!(", which runs{since}") } else { String::new() };
            let head = IdRef::Stored(row.message.at.stream, *head);
            let depth = depth.map(|depth| format!(" ({depth} in it)")).unwrap_or_default();
            format!("message {head}{runs}: the head of its lane {lane}{depth}; another --lane would not wait")
        }
        Wait::Place => {
            format!("a free place among the messages that `{node}` runs at once, or its word that it has begun")
        }
        Wait::Retry { attempt, error } => {
            let error = error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            format!("its next try, after try {attempt} failed{error}")
        }
        Wait::End => "its own end: it runs".to_owned(),
        Wait::Cancel => format!("the answer of `{node}` to a cancel"),
        Wait::Expiry => format!("the word of `{node}` that it expired: its start-by has passed"),
    }
}
