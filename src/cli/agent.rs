//! `edgeward agent`: a node's side, as a service.

use super::config::{Loaded, Scope};
use super::error::{CliError, chain};
use super::exit::ExitCode;
use super::service::{self, NodeArgs, NodePlace, unusable};
use super::session::Session;
use crate::agent::{self, Ended};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    node: NodeArgs,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = Loaded::load(&session.global, None, &session.env, Scope::Service).map_err(as_config)?;
    let NodePlace { node, state_dir, policy } = args.node.place(session, &loaded)?;
    if loaded.config.insecure && !loaded.config.has_credentials() {
        tracing::warn!("--insecure: whoever reaches the broker commands this node");
    }
    let commands = agent::Commands::GoOn;
    let options = agent::Options { config: loaded.config, node, state_dir, policy, commands };
    match agent::run(options, service::stop_on_signal()?, service::Systemd).await {
        Ok(Ended::Stopped) => Ok(ExitCode::Succeeded),
        Ok(Ended::ForGood) => Ok(ExitCode::Shutdown),
        Err(error @ agent::AgentError::Part(_)) => Err(CliError::new(ExitCode::Failed, chain(&error))),
        Err(error) => Err(unusable(chain(&error))),
    }
}

/// A service's unusable configuration is 78, whatever it is for an operator.
pub(super) fn as_config(error: CliError) -> CliError {
    CliError { exit: ExitCode::Config, ..error }
}
