//! `edgeward status`: what is known of a message now.

use super::args::SearchArgs;
use super::error::CliError;
use super::exit::ExitCode;
use super::output::{self, Format, RowJson};
use super::session::Session;
use super::watching::exit_code;
use crate::model::id::IdRef;
use crate::operator::{Watch, find};

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
    let loaded = session.load_for(args.search.from.as_ref())?;
    let broker = session.connect(&loaded).await?;
    let call = find(&broker, &args.id, args.search.from.as_ref().or(loaded.from.as_ref()), args.search.since).await?;
    let watch = Watch::of(&broker, &call).await?;
    let now = watch.view().now();
    let mut table = output::table(&["NODE", "STORED AS", "AGE", "STATE", "NOTES"]);
    for row in watch.view().rows() {
        if session.format == Format::Json {
            output::print_json(&RowJson::new(&row))?;
            continue;
        }
        let (at, age) = (output::id_ref(row.message.at), output::age(row.message.at.stored_at, now));
        table.add_row([row.node.clone(), at.to_string(), age, row.state.to_string(), output::notes(&row, now)]);
    }
    output::print_table(&table)?;
    Ok(exit_code(&watch))
}
