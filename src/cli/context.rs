//! The contexts of the `nats` CLI: where they are and which keys of them count.
//!
//! Owns nothing of ours; read by operator verbs alone.

use super::config::Env;
use super::error::CliError;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What a context says that we use. Empty texts are as good as absent, as in the `nats` CLI.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct NatsContext {
    /// The broker's addresses.
    pub url: String,
    /// A credentials file.
    pub creds: String,
    /// A file with an nkey seed.
    pub nkey: String,
    /// The broker's certificate authority.
    pub ca: String,
    /// The prefix of inboxes.
    pub inbox_prefix: String,
    /// The prefix of the JetStream API.
    pub jetstream_api_prefix: String,
    /// A user's name; not used.
    pub user: String,
    /// A token; not used.
    pub token: String,
}

/// The context of this name, or the selected one, where there is any.
pub(super) fn read(env: &Env, wanted: Option<&str>) -> Result<Option<NatsContext>, CliError> {
    let Some(folder) = env.config_home().map(|home| home.join("nats")) else { return Ok(None) };
    let Some(name) = wanted.map(str::to_owned).or_else(|| selected(&folder)) else { return Ok(None) };
    let path = folder.join("context").join(format!("{name}.json"));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(_) if wanted.is_none() => return Ok(None),
        Err(error) => {
            return Err(CliError::usage(format!("context `{name}`: {}: {error}", path.display()))
                .hint("`nats context ls` shows the contexts"));
        }
    };
    let mut context: NatsContext = serde_json::from_str(&text)
        .map_err(|error| CliError::usage(format!("context `{name}`: {}: {error}", path.display())))?;
    if !context.user.is_empty() || !context.token.is_empty() {
        tracing::warn!(context = name, "user, password and token of a context are not used; creds and nkey are");
    }
    for path in [&mut context.creds, &mut context.nkey, &mut context.ca] {
        expand_home(path, env);
    }
    Ok(Some(context))
}

fn selected(folder: &Path) -> Option<String> {
    let text = std::fs::read_to_string(folder.join("context.txt")).ok()?;
    Some(text.trim().to_owned()).filter(|name| !name.is_empty())
}

fn expand_home(path: &mut String, env: &Env) {
    if let Some(rest) = path.strip_prefix("~/")
        && let Some(home) = env.get("HOME")
    {
        *path = PathBuf::from(home).join(rest).display().to_string();
    }
}
