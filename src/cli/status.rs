//! `edgeward status`: what is known of a message now, a row per target, and how old it is.

use super::args::SearchArgs;
use super::error::CliError;
use super::exit::ExitCode;
use super::output::{self, Format, RowJson};
use super::session::Session;
use super::watching::exit_code;
use crate::model::id::IdRef;
use crate::model::node::Contact;
use crate::model::time::Timestamp;
use crate::operator::{Row, Totals, Watch};
use std::io::Write;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The message: its id, 42 or s42 (a command's stored sequence), e42 (an event's), or `last` (mine).
    #[arg(value_name = "ID", default_value = "last")]
    id: IdRef,
    #[command(flatten)]
    search: SearchArgs,
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let watch = session.watch(&args.id, &args.search).await?.watch;
    if session.format == Format::Json {
        watch.view().rows().try_for_each(|row| output::print_json(&RowJson::new(&row)))?;
    } else {
        print(&watch)?;
    }
    Ok(exit_code(&watch))
}

fn print(watch: &Watch) -> Result<(), CliError> {
    let view = watch.view();
    let totals = Totals::of(view.rows());
    if totals.rows() > 1 {
        writeln!(std::io::stdout().lock(), "{} targets: {totals}", totals.rows())?;
    }
    let mut table = output::table(&["NODE", "STORED AS", "STATE", "SINCE", "KNOWN", "CONTACT", "NOTES"]);
    for row in view.rows() {
        table.add_row(cells(&row, view.now()));
    }
    Ok(output::print_table(&table)?)
}

fn cells(row: &Row<'_>, now: Timestamp) -> [String; 7] {
    let ago = |at: Timestamp| format!("{} ago", output::age(at, now));
    let since = row.since().map(ago).unwrap_or_default();
    let contact = match row.contact {
        Some(Contact::InContact) => "in contact".to_owned(),
        _ => output::contact_text(row, now),
    };
    // What a record tells for good has no age; what a node said last is as old as its word.
    let known = match row.heard_at {
        _ if row.is_settled() => "for good".to_owned(),
        Some(at) => ago(at),
        None => String::new(),
    };
    let at = output::id_ref(row.message.at).to_string();
    [row.node.clone(), at, row.state.to_string(), since, known, contact, output::notes_but_contact(row)]
}
