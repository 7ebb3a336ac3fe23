//! `edgeward wait`: until a message is done.

use super::args::{IdArgs, duration};
use super::error::CliError;
use super::exit::ExitCode;
use super::output::{self, Format, RowJson};
use super::session::Session;
use super::watching::{Patience, exit_code, tell_end, wait_for};
use std::time::Duration;

/// Arguments of `wait`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    id: IdArgs,
    /// How long to wait at most; without it as long as it takes.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let mut watch = session.watch(&args.id.id, &args.id.search).await?.watch;
    let patience = Patience { wait: args.wait, leave_silent: false };
    let end = wait_for(&mut watch, patience, None, |row, watch| {
        if session.format == Format::Json {
            return Ok(output::print_json(&RowJson::new(row))?);
        }
        let notes = output::notes(row, watch.view().now());
        Ok(output::print_line(&format!("{}  {}  {notes}", row.node, row.state))?)
    })
    .await?;
    tell_end(end, &watch);
    Ok(exit_code(&watch))
}
