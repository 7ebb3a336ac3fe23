//! What agent, hub and `up` have in common as services: who and where they are, when they are told to stop, and what
//! systemd is told (`sd_notify(3)`).
//!
//! Owns defaults of node name, state folder and policy file. Never runs a service itself.

use super::config::{Env, Loaded};
use super::error::CliError;
use super::exit::ExitCode;
use super::session::Session;
use crate::agent::Host;
use crate::model::name::NodeName;
use crate::model::policy::Policy;
use sd_notify::NotifyState;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Options of the verbs that run an agent.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct NodeArgs {
    /// This node's name (default: the first label of the host's name).
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// Where journal, logs and inmsg.txt are (default: /var/lib/edgeward, or below $XDG_STATE_HOME).
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Which senders may do what (default: policy.toml beside the config file).
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

/// An agent's identity.
pub(super) struct NodePlace {
    pub(super) node: NodeName,
    pub(super) state_dir: PathBuf,
    pub(super) policy: Policy,
}

impl NodeArgs {
    /// Lays options, configuration and defaults over each other.
    pub(super) fn place(&self, session: &Session, loaded: &Loaded) -> Result<NodePlace, CliError> {
        let config = &loaded.config;
        let node = match self.node.clone().or_else(|| config.node.clone()) {
            Some(node) => node,
            None => host_label()?,
        };
        let state_dir = state_dir(self.state_dir.as_deref(), session, loaded)?;
        let policy = self.policy.clone().or_else(|| config.agent.policy.clone());
        let policy = read_policy(policy.as_deref(), loaded)?;
        match policy {
            Policy::HubOnly => {
                let path = usual_policy(loaded);
                tracing::warn!(path = %path.display(), "no policy file: nothing but the hub's own verbs is accepted");
            }
            Policy::Open => tracing::info!("no policy file and no credentials: everything is accepted"),
            Policy::Rules(_) => {}
        }
        Ok(NodePlace { node, state_dir, policy })
    }
}

/// The state folder: as given, else as configured, else the usual one.
pub(super) fn state_dir(given: Option<&Path>, session: &Session, loaded: &Loaded) -> Result<PathBuf, CliError> {
    match given.map(Path::to_owned).or_else(|| loaded.config.state_dir.clone()) {
        Some(dir) => Ok(dir),
        None => default_state_dir(&session.env),
    }
}

pub(super) fn host_label() -> Result<NodeName, CliError> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let label = name.split('.').next().unwrap_or_default();
    label.parse().map_err(|e| unusable(format!("the host's name gives no node name: {e}")).hint("give --node NAME"))
}

fn default_state_dir(env: &Env) -> Result<PathBuf, CliError> {
    // systemd tells where StateDirectory= is.
    if let Some(dir) = env.get("STATE_DIRECTORY").and_then(|dirs| dirs.split(':').next()) {
        return Ok(dir.into());
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/edgeward".into());
    }
    let home = env.get("HOME").map(|home| Path::new(home).join(".local/state"));
    let base = env.get("XDG_STATE_HOME").map(PathBuf::from).or(home);
    base.map(|base| base.join("edgeward")).ok_or_else(|| unusable("there is no HOME").hint("give --state-dir DIR"))
}

/// Where the policy is looked for if nobody says: beside the config file.
fn usual_policy(loaded: &Loaded) -> PathBuf {
    loaded.file.as_deref().and_then(Path::parent).unwrap_or(Path::new("/etc/edgeward")).join("policy.toml")
}

/// The named policy file, else the one beside the config file; where there is none, credentials decide.
pub(super) fn read_policy(named: Option<&Path>, loaded: &Loaded) -> Result<Policy, CliError> {
    let usual = usual_policy(loaded);
    let path = named.unwrap_or(&usual);
    match std::fs::read_to_string(path) {
        Ok(text) => Policy::parse(&text).map_err(|error| unusable(format!("{}: {}", path.display(), error.trim_end()))),
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            Ok(if loaded.config.has_credentials() { Policy::HubOnly } else { Policy::Open })
        }
        Err(error) => Err(unusable(format!("{}: {error}", path.display()))),
    }
}

/// An error for which a service ends with 78.
pub(super) fn unusable(message: impl Into<String>) -> CliError {
    CliError::new(ExitCode::Config, message)
}

/// Cancelled by SIGTERM or Ctrl-C. A second signal changes nothing: whoever will not wait has KILL.
pub(super) fn stop_on_signal() -> Result<CancellationToken, CliError> {
    let stop = CancellationToken::new();
    let signals = signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
    let (mut term, mut int) = signals.map_err(|e| unusable(format!("signals cannot be caught: {e}")))?;
    let told = stop.clone();
    tokio::spawn(async move {
        let signal = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        };
        tracing::info!(signal, "told to stop");
        notify(Word::Stopping);
        told.cancel();
    });
    Ok(stop)
}

/// systemd, as the agent's host: it hears how the agent is, and its watchdog is fed while the agent gets on.
pub(super) struct Systemd;

/// How often systemd is told how the agent is, where it has no watchdog.
const STATUS_EVERY: Duration = Duration::from_secs(15);

impl Host for Systemd {
    fn ready(&self) {
        notify(Word::Ready);
    }

    fn interval(&self) -> Option<Duration> {
        std::env::var_os("NOTIFY_SOCKET")?;
        let every = sd_notify::watchdog_enabled().map_or(STATUS_EVERY, |limit| (limit / 3).min(STATUS_EVERY));
        Some(every.max(Duration::from_millis(100)))
    }

    fn says(&self, status: &str) {
        notify(Word::Status(status.to_owned()));
    }

    fn alive(&self) {
        if sd_notify::watchdog_enabled().is_some() {
            notify(Word::Watchdog);
        }
    }
}

/// Tells systemd that a service is ready, and feeds its watchdog from then on.
pub(super) fn ready() {
    notify(Word::Ready);
    if let Some(interval) = sd_notify::watchdog_enabled() {
        tokio::spawn(feed_watchdog(interval / 2));
    }
}

async fn feed_watchdog(interval: Duration) {
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        notify(Word::Watchdog);
    }
}

/// What systemd is told.
enum Word {
    Ready,
    Stopping,
    Status(String),
    Watchdog,
}

/// Words that may wait; a systemd that does not listen misses what comes then.
const WORDS: usize = 16;

/// Tells systemd, from a thread of its own: the socket blocks while nobody reads from it, and the service goes on.
fn notify(word: Word) {
    static WAY: OnceLock<Option<SyncSender<Word>>> = OnceLock::new();
    let start = || {
        std::env::var_os("NOTIFY_SOCKET")?;
        let (way, words) = sync_channel(WORDS);
        std::thread::Builder::new()
            .name("systemd".to_owned())
            .spawn(move || words.into_iter().for_each(pass_on))
            .ok()?;
        Some(way)
    };
    if let Some(way) = WAY.get_or_init(start)
        && way.try_send(word).is_err()
    {
        tracing::debug!("systemd does not listen");
    }
}

fn pass_on(word: Word) {
    let state = match &word {
        Word::Ready => NotifyState::Ready,
        Word::Stopping => NotifyState::Stopping,
        Word::Status(status) => NotifyState::Status(status),
        Word::Watchdog => NotifyState::Watchdog,
    };
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd was not told");
    }
}
