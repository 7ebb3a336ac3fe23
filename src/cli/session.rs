//! What every verb begins with: its configuration, its way of writing, and a connection.

use super::args::SearchArgs;
use super::config::{Env, GlobalArgs, Loaded, Scope};
use super::error::CliError;
use super::output::Format;
use crate::broker::Broker;
use crate::model::id::IdRef;
use crate::model::name::Sender;
use crate::operator::{Call, Watch, find};

/// One run of the binary.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) global: GlobalArgs,
    pub(super) format: Format,
    pub(super) env: Env,
}

/// A message that was found.
pub(super) struct Watched {
    pub(super) broker: Broker,
    pub(super) call: Call,
    pub(super) watch: Watch,
}

impl Session {
    pub(super) fn new(global: GlobalArgs, format: Format) -> Session {
        Session { global, format, env: Env::current() }
    }

    /// The configuration of an operator's verb, with its `--from`.
    pub(super) fn load(&self, from: Option<&Sender>) -> Result<Loaded, CliError> {
        Loaded::load(&self.global, from, &self.env, Scope::Operator)
    }

    /// The configuration of a verb that looks for somebody's messages: he is who asks, too, where nothing else tells.
    pub(super) fn load_for(&self, whose: Option<&Sender>) -> Result<Loaded, CliError> {
        let mut loaded = self.load(None)?;
        if loaded.from.is_none() {
            loaded.from = whose.cloned();
        }
        Ok(loaded)
    }

    /// Connects as an operator.
    pub(super) async fn connect(&self, loaded: &Loaded) -> Result<Broker, CliError> {
        let name = match &loaded.from {
            Some(from) => format!("edgeward operator {from}"),
            None => "edgeward operator".to_owned(),
        };
        Ok(Broker::connect(&loaded.connect_options(&name)?).await?)
    }

    /// Connects, and finds a message with what became of it.
    pub(super) async fn watch(&self, id: &IdRef, search: &SearchArgs) -> Result<Watched, CliError> {
        let loaded = self.load_for(search.from.as_ref())?;
        let broker = self.connect(&loaded).await?;
        let call = find(&broker, id, search.from.as_ref().or(loaded.from.as_ref()), search.since()).await?;
        let watch = Watch::of(&broker, &call).await?;
        Ok(Watched { broker, call, watch })
    }
}
