//! `edgeward history`: messages of the past and what became of them; with `--export` a file to send them again from.

use super::error::CliError;
use super::exit::ExitCode;
use super::output::{self, Format, RowJson};
use super::say;
use super::session::Session;
use crate::broker::Broker;
use crate::model::message::Kind;
use crate::model::name::{MethodName, Sender, Target};
use crate::model::state::State;
use crate::model::time::{Since, Timestamp};
use crate::operator::{HistoryFilter, MOST_REPLAYED, Row, View, export, history, write_export};
use chrono::{Local, SecondsFormat};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Messages shown where nothing else is said.
const SHOWN: usize = 50;

/// Arguments of `history`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only messages to this node or @group.
    #[arg(value_name = "TARGET")]
    to: Option<Target>,
    /// Only messages of this sender.
    #[arg(long, value_name = "NAME")]
    from: Option<Sender>,
    /// Only messages of this method.
    #[arg(short, long, value_name = "METHOD")]
    method: Option<MethodName>,
    /// Only messages of this kind [default: command and event].
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
    /// Only messages in this state on a node: failed, queued, …; several with commas, `open` for all that are not over.
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = state)]
    state: Vec<States>,
    /// Only messages whose body has this text, whatever its case.
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
    /// From when on: 24h, or a time such as 2026-11-23T21:00:00Z.
    #[arg(long, value_name = "WHEN", default_value = "24h")]
    since: Since,
    /// Until when.
    #[arg(long, value_name = "WHEN")]
    until: Option<Since>,
    /// The newest so many [default: 50; with --export as many as can be sent again at once].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    limit: Option<u16>,
    /// Write the messages to a new file, for `edgeward replay --file`; `-` writes to stdout.
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
}

/// One word of `--state`.
#[derive(Debug, Clone)]
struct States(Vec<State>);

fn state(text: &str) -> Result<States, String> {
    use State::*;
    match (text, State::named(text)) {
        ("open", _) => Ok(States(vec![Queued, Delivered, Running, Retrying])),
        (text, state) if state != Unknown || text == Unknown.as_str() => Ok(States(vec![state])),
        _ => {
            let states = [Queued, Delivered, Running, Succeeded, Failed, TimedOut, Expired, Refused, Cancelled];
            let more = [Interrupted, Undeliverable, Unknown];
            let names: Vec<&str> = states.iter().chain(&more).map(|state| state.as_str()).collect();
            Err(format!("is none of open, {}", names.join(", ")))
        }
    }
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = session.load_for(args.from.as_ref())?;
    let broker = session.connect(&loaded).await?;
    let usual = if args.export.is_some() { MOST_REPLAYED } else { SHOWN };
    let filter = HistoryFilter {
        since: args.since,
        until: args.until,
        to: args.to.clone(),
        from: args.from.clone(),
        method: args.method.clone(),
        kind: args.kind,
        states: args.state.iter().flat_map(|States(states)| states.clone()).collect(),
        text: args.grep.clone(),
        limit: args.limit.map_or(usual, usize::from),
    };
    let view = history(&broker, &filter).await?;
    match &args.export {
        Some(file) => write_file(&broker, &view, file).await?,
        None => show(session, &view, &filter)?,
    }
    if view.messages().is_empty() && args.export.is_none() {
        say(&format!("no such message in {}", filter.since));
    }
    if view.messages().len() >= filter.limit {
        say(&format!("the newest {} of {}; --limit shows more", filter.limit, filter.since));
    }
    Ok(ExitCode::Succeeded)
}

fn show(session: &Session, view: &View, filter: &HistoryFilter) -> Result<(), CliError> {
    let mut table = output::table(&["STORED", "AS", "NODE", "FROM", "METHOD", "STATE", "BODY"]);
    for row in view.rows().filter(|row| filter.wants_row(row)) {
        match session.format {
            Format::Json => output::print_json(&RowJson::new(&row))?,
            Format::Table => drop(table.add_row(cells(&row))),
        }
    }
    Ok(output::print_table(&table)?)
}

async fn write_file(broker: &Broker, view: &View, file: &Path) -> Result<(), CliError> {
    let (messages, unsendable) = export(broker, view.messages()).await?;
    for error in &unsendable {
        say(&format!("left out: {error}"));
    }
    if messages.is_empty() {
        return Err(CliError::usage("there is no message to export; nothing was written"));
    }
    let text = write_export(&messages);
    if file.as_os_str() == "-" {
        return Ok(std::io::stdout().lock().write_all(text.as_bytes())?);
    }
    let at = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => CliError::usage(format!("{} is there already", file.display())),
        _ => CliError::usage(format!("{}: {error}", file.display())),
    };
    // An export is never written over another one.
    let mut new = std::fs::OpenOptions::new().write(true).create_new(true).open(file).map_err(at)?;
    new.write_all(text.as_bytes()).and_then(|()| new.sync_all()).map_err(at)?;
    say(&format!("{} messages in {}; edgeward replay --file {}", messages.len(), file.display(), file.display()));
    Ok(())
}

fn cells(row: &Row<'_>) -> [String; 7] {
    let message = row.message;
    let method = match &message.lane {
        Some(lane) => format!("{}.{lane}", message.method),
        None => message.method.clone(),
    };
    let at = output::id_ref(message.at).to_string();
    let state = row.state.to_string();
    [local(message.at.stored_at), at, row.node.clone(), message.from.clone(), method, state, message.preview.clone()]
}

/// A time as people here read it.
pub(super) fn local(at: Timestamp) -> String {
    at.to_datetime().with_timezone(&Local).to_rfc3339_opts(SecondsFormat::Secs, false)
}
