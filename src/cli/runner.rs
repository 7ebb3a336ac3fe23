//! `edgeward runner`: what an agent starts to run its commands, and what outlives it. Not for people.

use super::error::{CliError, chain};
use super::exit::ExitCode;
use super::service::unusable;
use crate::exec::runner::{Place, Role, ServeError, serve};
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where its socket and the files of runs are.
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
}

pub(super) async fn run(args: &Args) -> Result<ExitCode, CliError> {
    let place = Place::make(&args.folder).map_err(|error| unusable(format!("{}: {error}", args.folder.display())))?;
    match serve(place, Role::Process, end_on_term()?).await {
        // The other one does what this one was started for.
        Ok(()) | Err(ServeError::Taken(_)) => Ok(ExitCode::Succeeded),
        Err(error) => Err(unusable(chain(&error))),
    }
}

/// Cancelled by SIGTERM. A terminal that goes away, or a Ctrl-C there, is nothing to a runner.
fn end_on_term() -> Result<CancellationToken, CliError> {
    let caught = |kind| signal(kind).map_err(|error| unusable(format!("signals cannot be caught: {error}")));
    let (mut term, mut hangup, mut interrupt) =
        (caught(SignalKind::terminate())?, caught(SignalKind::hangup())?, caught(SignalKind::interrupt())?);
    let end = CancellationToken::new();
    let told = end.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => return told.cancel(),
                _ = hangup.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
    });
    Ok(end)
}
