//! `edgeward result`: what a command wrote, as `run` would have shown it.

use super::args::IdArgs;
use super::error::CliError;
use super::exit::ExitCode;
use super::output::{self, Format, RowJson};
use super::say;
use super::session::Session;
use super::watching::exit_code;
use crate::model::name::NodeName;
use crate::operator::{Watch, find};

/// Arguments of `result`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    id: IdArgs,
    /// Only of this node; its output is written as it is.
    #[arg(value_name = "NODE")]
    node: Option<NodeName>,
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = session.load_for(args.id.search.from.as_ref())?;
    let broker = session.connect(&loaded).await?;
    let call =
        find(&broker, &args.id.id, args.id.search.from.as_ref().or(loaded.from.as_ref()), args.id.search.since())
            .await?;
    let watch = Watch::of(&broker, &call).await?;
    let wanted = |node: &str| args.node.as_ref().is_none_or(|only| only.as_str() == node);
    let rows: Vec<_> = watch.view().rows().filter(|row| wanted(&row.node)).collect();
    if rows.is_empty() {
        let node = args.node.as_ref().map(ToString::to_string).unwrap_or_default();
        return Err(CliError::usage(format!("the message `{}` did not go to `{node}`", args.id.id)));
    }
    for row in &rows {
        if session.format == Format::Json {
            output::print_json(&RowJson::new(row))?;
            continue;
        }
        if let Some(record) = row.record {
            output::print_output(record, (rows.len() > 1).then_some(row.node.as_str()))?;
        }
        output::cut(row).iter().chain(output::verdict(row, watch.view().now()).iter()).for_each(|line| say(line));
    }
    match args.node {
        Some(_) => Ok(ExitCode::of_several(rows.iter().map(|row| row.state))),
        None => Ok(exit_code(&watch)),
    }
}
