//! `edgeward hub`: the control plane's own part, as a service.

use super::agent::as_config;
use super::config::{Loaded, Scope};
use super::error::{CliError, chain};
use super::exit::ExitCode;
use super::service::{self, unusable};
use super::session::Session;
use crate::broker::ConnectOptions;
use crate::hub::{self, HubError, HubOptions};

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) async fn run(session: &Session, _args: &Args) -> Result<ExitCode, CliError> {
    let loaded = Loaded::load(&session.global, None, &session.env, Scope::Service).map_err(as_config)?;
    let connect = connect_options(&loaded, "edgeward hub")?;
    let (told, ready) = tokio::sync::oneshot::channel();
    let options = HubOptions {
        connect: ConnectOptions { keep_trying: true, ..connect },
        config: loaded.config.hub,
        ready: Some(told),
    };
    let stop = service::stop_on_signal()?;
    let hub = hub::run(options, stop.clone());
    tokio::pin!(hub);
    let ended = tokio::select! {
        ended = &mut hub => ended,
        Ok(()) = ready => {
            tracing::info!("hub");
            service::ready();
            hub.await
        }
    };
    match ended {
        Ok(()) => Ok(ExitCode::Succeeded),
        Err(error) if error.is_unusable() => Err(match error {
            HubError::Broker(error) => as_config(error.into()),
            error => unusable(chain(&error)),
        }),
        Err(error) => Err(CliError::new(ExitCode::Failed, chain(&error))),
    }
}

/// How the hub's side connects: in the account of the streams, with the hub's own inbox.
pub(super) fn connect_options(loaded: &Loaded, name: &str) -> Result<ConnectOptions, CliError> {
    let options = loaded.connect_options(name)?;
    let api = options.api_prefix.clone().unwrap_or_else(|| "$JS.API".to_owned());
    Ok(ConnectOptions { identity: Some("hub".to_owned()), api_prefix: Some(api), ..options })
}
