//! `edgeward history`: messages of the past and what became of them.

use super::args::duration;
use super::error::CliError;
use super::exit::ExitCode;
use super::output::{self, Format, RowJson};
use super::session::Session;
use crate::model::message::Kind;
use crate::model::name::{MethodName, Sender, Target};
use crate::model::time::{Timestamp, rough};
use crate::operator::{HistoryFilter, Row, history};
use chrono::{Local, SecondsFormat};
use std::time::Duration;

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
    /// How far back.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "24h")]
    since: Duration,
    /// The newest so many.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u16,
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = session.load_for(args.from.as_ref())?;
    let broker = session.connect(&loaded).await?;
    let filter = HistoryFilter {
        since: args.since,
        to: args.to.clone(),
        from: args.from.clone(),
        method: args.method.clone(),
        kind: args.kind,
        limit: usize::from(args.limit).max(1),
    };
    let view = history(&broker, &filter).await?;
    let mut table = output::table(&["STORED", "AS", "NODE", "FROM", "METHOD", "STATE", "BODY"]);
    for row in view.rows() {
        match session.format {
            Format::Json => output::print_json(&RowJson::new(&row))?,
            Format::Table => drop(table.add_row(cells(&row))),
        }
    }
    output::print_table(&table)?;
    if view.messages().len() >= filter.limit {
        super::say(&format!("the newest {} of the last {}; --limit shows more", filter.limit, rough(filter.since)));
    }
    Ok(ExitCode::Succeeded)
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
