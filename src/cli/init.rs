//! `edgeward init`: makes or upgrades the streams. The hub does it at its start, too.

use super::config::{Loaded, Scope};
use super::error::CliError;
use super::exit::ExitCode;
use super::hub::connect_options;
use super::session::Session;
use crate::broker::{Broker, topology};
use std::io::Write;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only show what would be done; exit code 1 where that is anything.
    #[arg(long)]
    diff: bool,
    /// Share the disk out anew among the streams; sizes stay as they were set otherwise.
    #[arg(long, conflicts_with = "diff")]
    resize: bool,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = Loaded::load(&session.global, None, &session.env, Scope::Operator)?;
    let broker = Broker::connect(&connect_options(&loaded, "edgeward init")?).await?;
    let hub = &loaded.config.hub;
    if args.diff {
        let plan = topology::plan(&broker, hub).await?;
        write!(std::io::stdout().lock(), "{plan}")?;
        return Ok(if plan.needs_work() { ExitCode::Failed } else { ExitCode::Succeeded });
    }
    let plan = topology::ensure(&broker, hub).await?;
    write!(std::io::stdout().lock(), "{plan}")?;
    if args.resize {
        for resized in topology::resize(&broker, hub).await? {
            writeln!(std::io::stdout().lock(), "{resized}")?;
        }
    }
    Ok(ExitCode::Succeeded)
}
