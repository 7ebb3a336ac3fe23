//! `edgeward up`: everything on one machine without any set-up: a nats-server as a child, the hub and an agent as tasks
//! of this process. Also the pieces that `demo` is put together from.
//!
//! Owns starting and stopping these parts in order, and bringing the broker back when it dies. Never touches what they
//! store.

use super::config::{Loaded, Scope};
use super::error::{CliError, chain};
use super::exit::ExitCode;
use super::say;
use super::service::{self, NodeArgs, NodePlace};
use super::session::Session;
use crate::agent::{self, AgentError, Ended};
use crate::broker::{Access, Broker, BrokerError, ConnectOptions, Writes};
use crate::hub::{self, HubError};
use crate::model::config::{Config, HubConfig};
use crate::model::jitter::Backoff;
use crate::model::name::{BadName, NodeName};
use crate::model::node::Contact;
use crate::model::policy::Policy;
use crate::model::subject::{Names, RecordStream};
use crate::operator::{self, OperatorError};
use crate::server::{self, FetchError, Found, Origin, Port, RunError, Server};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Where NATS clients look when nothing else is said.
const USUAL_PORT: u16 = 4222;
/// How long a broker with a large store may take to start.
const BROKER_READY: Duration = Duration::from_secs(120);
/// How long hub and agent may take until the node is in contact.
const CONTACT: Duration = Duration::from_secs(30);
/// How often it is looked whether a node is in contact.
const LOOK: Duration = Duration::from_millis(100);
/// The longest wait before a broker that keeps dying is started again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The bound of the first such wait.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// What has to be free for a broker whose disk was full to be started anew: some of the blocks that it writes.
const ROOM: u64 = 16 << 20;
/// A broker that has lived so long since its start is not one that keeps dying.
const STEADY: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    node: NodeArgs,
}

/// The verb.
pub(super) async fn verb(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    check_own_broker(session, "up")?;
    let mut loaded = Loaded::load(&session.global, None, &session.env, Scope::Service)?;
    // What it talks to is its own broker, without credentials.
    loaded.config = local_config(&loaded.config, "");
    let NodePlace { node, state_dir, policy } = args.node.place(session, &loaded)?;
    let options = UpOptions { config: loaded.config, node, state_dir, policy };
    let ended = run(options, service::stop_on_signal()?).await;
    ended.map(|()| ExitCode::Succeeded).map_err(|error| CliError::new(ExitCode::Failed, chain(&error)))
}

/// Refuses options for another broker than the verb's own: they would be passed over without a word.
pub(super) fn check_own_broker(session: &Session, verb: &str) -> Result<(), CliError> {
    match session.global.broker_option() {
        Some(option) => {
            Err(CliError::usage(format!("`edgeward {verb}` has a broker of its own: {option} is for others")))
        }
        None => Ok(()),
    }
}

/// What to bring up.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// The configuration; what it says about the broker's address and credentials is not used.
    pub config: Config,
    /// The agent's node.
    pub node: NodeName,
    /// The agent's state folder; the broker's folder is `nats` below it.
    pub state_dir: PathBuf,
    /// The node's policy.
    pub policy: Policy,
}

/// Why it could not be brought up, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// There is no nats-server.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It does not run.
    #[error(transparent)]
    Server(#[from] RunError),
    /// It does not answer.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// It could not be read.
    #[error(transparent)]
    Operator(#[from] OperatorError),
    /// A folder could not be used.
    #[error("the folder `{}` cannot be used", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The configured prefix is none.
    #[error(transparent)]
    Prefix(#[from] BadName),
    /// A node did not report in time.
    #[error("no word of {nodes} within {} s", .within.as_secs())]
    NoContact {
        /// The nodes.
        nodes: String,
        /// The time they had.
        within: Duration,
    },
    /// The hub ended with an error.
    #[error("the hub ended")]
    Hub(#[source] HubError),
    /// An agent ended with an error.
    #[error("the agent of {node} ended")]
    Agent {
        /// Its node.
        node: NodeName,
        /// Why.
        #[source]
        source: AgentError,
    },
    /// A part ended that was not asked to.
    #[error("{0} ended by itself")]
    Early(String),
    /// A task of this process panicked.
    #[error("{0} panicked")]
    Panicked(String),
}

/// Brings everything up and keeps it up until `stop`.
pub async fn run(options: UpOptions, stop: CancellationToken) -> Result<(), UpError> {
    let folder = options.state_dir.join("nats");
    let found = find_server().await?;
    let mut server_options = server::Options::new(&found.path, &folder);
    server_options.port = Port::Prefer(USUAL_PORT);
    server_options.ready_within = BROKER_READY;
    // What the broker has confirmed outlives a power cut.
    server_options.sync_always = true;
    let mut server = Server::start(server_options).await?;
    say(&format!("{} at {}, stored in {}", describe(&found), server.url(), folder.display()));

    let mut config = local_config(&options.config, &server.url());
    if config.hub.store_bytes == HubConfig::default().store_bytes {
        config.hub.store_bytes = half_of_free(&folder)?;
    }
    let mut parts = vec![Part::hub(&config)?, Part::agent(&config, &options.node, &options.state_dir, &options.policy)];
    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(()),
        outcome = serve(&mut server, &mut parts, &config, &options) => outcome,
    };
    say("stopping");
    let stopped = stop_all(parts).await;
    server.stop().await?;
    outcome.and(stopped)
}

/// Keeps the broker alive and says when all is ready; ends when a part does.
async fn serve(server: &mut Server, parts: &mut [Part], config: &Config, options: &UpOptions) -> Result<(), UpError> {
    let (port, url) = (server.port(), server.url());
    let announce = async {
        let broker = connect(config).await?;
        in_contact(&broker, std::slice::from_ref(&options.node), CONTACT).await?;
        say(&format!("hub, and node {} with its state in {}", options.node, options.state_dir.display()));
        if port != USUAL_PORT {
            say(&format!("port {USUAL_PORT} is in use; in other terminals first:"));
            show(&format!("export NATS_URL={url}"));
        }
        say("ready; Ctrl-C ends it");
        std::future::pending().await
    };
    tokio::select! {
        outcome = announce => outcome,
        outcome = keep_alive(server, config) => outcome,
        ended = first_end(parts) => Err(ended),
    }
}

/// Starts the broker again each time it dies, or has a stream that stores nothing any more; hub and agent wait for it by
/// themselves.
async fn keep_alive(server: &mut Server, config: &Config) -> Result<(), UpError> {
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let broker = connect(config).await?;
    let mut writes = Writes::new(&broker, config.hub.probe);
    loop {
        let ended = tokio::select! {
            status = server.exited() => Some(status?),
            dead = writes.next_dead() => {
                say(&dead?.to_string());
                None
            }
        };
        match ended {
            Some(status) => say(&format!("nats-server ended ({status}); starting it again")),
            // Until then it would meet the same again. It is looked at once more when it is told again.
            None if free(&server.options().store_dir)? < ROOM => continue,
            None => {
                say("there is room again; starting nats-server anew");
                server.kill().await?;
            }
        }
        // One that starts and dies at once is not started over and over without a pause either.
        sleep(backoff.next_wait()).await;
        while let Err(error) = server.restart().await {
            say(&format!("{}; trying again", chain(&error)));
            sleep(backoff.next_wait()).await;
        }
        say(&format!("nats-server is back at {}", server.url()));
        if timeout(STEADY, server.exited()).await.is_err() {
            backoff.reset();
        }
    }
}

/// A hub or an agent, running as a task of this process.
pub(super) struct Part {
    name: String,
    stop: CancellationToken,
    task: JoinHandle<Result<(), UpError>>,
}

impl Part {
    /// Starts a hub.
    pub(super) fn hub(config: &Config) -> Result<Part, UpError> {
        let stop = CancellationToken::new();
        let options = hub::HubOptions {
            connect: connect_options(config, "edgeward hub")?,
            config: config.hub.clone(),
            ready: None,
        };
        let run = hub::run(options, stop.clone());
        let task = tokio::spawn(async move { run.await.map_err(UpError::Hub) });
        Ok(Part { name: "the hub".to_owned(), stop, task })
    }

    /// Starts a node's agent.
    pub(super) fn agent(config: &Config, node: &NodeName, state_dir: &Path, policy: &Policy) -> Part {
        let stop = CancellationToken::new();
        let options = agent::Options {
            config: config.clone(),
            node: node.clone(),
            state_dir: state_dir.to_owned(),
            policy: policy.clone(),
            // The whole machine goes away.
            commands: agent::Commands::End,
        };
        let (run, node) = (agent::run(options, stop.clone(), ()), node.clone());
        let name = format!("the agent of {node}");
        let task =
            tokio::spawn(async move { run.await.map(|_: Ended| ()).map_err(|source| UpError::Agent { node, source }) });
        Part { name, stop, task }
    }

    /// Asks it to end and waits until it has.
    pub(super) async fn stop(self) -> Result<(), UpError> {
        self.stop.cancel();
        self.task.await.unwrap_or(Err(UpError::Panicked(self.name)))
    }

    /// Waits until it ends although nobody asked it to.
    async fn ended(&mut self) -> UpError {
        match (&mut self.task).await {
            Ok(Ok(())) => UpError::Early(self.name.clone()),
            Ok(Err(error)) => error,
            Err(_) => UpError::Panicked(self.name.clone()),
        }
    }
}

/// The first part that ends.
pub(super) async fn first_end(parts: &mut [Part]) -> UpError {
    futures::future::select_all(parts.iter_mut().map(|part| Box::pin(part.ended()))).await.0
}

/// Stops all parts at once, those that have ended left out; the first error, once all have ended.
pub(super) async fn stop_all(parts: Vec<Part>) -> Result<(), UpError> {
    let running = parts.into_iter().filter(|part| !part.task.is_finished()).map(Part::stop);
    futures::future::join_all(running).await.into_iter().collect()
}

/// The nats-server of this machine, fetched where there is none.
pub(super) async fn find_server() -> Result<Found, UpError> {
    let find = || server::nats_server(&server::default_cache(), &mut |line| say(line));
    spawn_blocking(find)
        .await
        .map_err(|_| UpError::Panicked("the search for nats-server".to_owned()))?
        .map_err(Into::into)
}

/// `nats-server 2.15.1 (from the PATH)`
pub(super) fn describe(found: &Found) -> String {
    let origin = match found.origin {
        Origin::Path => "from the PATH",
        Origin::Cache => "fetched earlier",
        Origin::Wheel => "fetched as a Python wheel",
        Origin::Release => "fetched from its release",
        Origin::Go => "built by Go",
    };
    format!("nats-server {} ({origin})", found.version)
}

/// The configuration for parts that share this machine with a broker that has no accounts.
pub(super) fn local_config(config: &Config, url: &str) -> Config {
    Config {
        server: vec![url.to_owned()],
        creds: None,
        nkey: None,
        tls_ca: None,
        api_prefix: None,
        insecure: false,
        ..config.clone()
    }
}

/// Half of the disk that is free at `folder`, in bytes.
pub(super) fn half_of_free(folder: &Path) -> Result<u64, UpError> {
    Ok(free(folder)? / 2)
}

/// The disk that is free at `folder`, in bytes.
fn free(folder: &Path) -> Result<u64, UpError> {
    let disk = rustix::fs::statvfs(folder)
        .map_err(|errno| UpError::Folder { path: folder.to_owned(), source: errno.into() })?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// A connection for looking and sending.
pub(super) async fn connect(config: &Config) -> Result<Broker, UpError> {
    Ok(Broker::connect(&connect_options(config, "edgeward")?).await?)
}

/// How to reach a broker without accounts that may be down for a moment.
fn connect_options(config: &Config, name: &str) -> Result<ConnectOptions, UpError> {
    Ok(ConnectOptions {
        servers: config.server.clone(),
        access: Access::Open,
        tls_ca: None,
        insecure: false,
        name: name.to_owned(),
        identity: None,
        names: Names::new(&config.prefix)?,
        api_prefix: None,
        keep_trying: true,
    })
}

/// Waits until all these nodes are in contact.
pub(super) async fn in_contact(broker: &Broker, nodes: &[NodeName], within: Duration) -> Result<(), UpError> {
    let bucket = broker.names().record_stream(RecordStream::Nodes);
    let mut missing: BTreeSet<&str> = nodes.iter().map(NodeName::as_str).collect();
    let look = async {
        let mut looks = interval(LOOK);
        while !missing.is_empty() {
            looks.tick().await;
            // Until the hub has made its streams, nobody answers.
            let Ok(known) = operator::nodes(broker).await else { continue };
            let Ok(stream) = operator::stream_facts(broker, &bucket).await else { continue };
            missing.retain(|node| known.get(*node).is_none_or(|facts| facts.contact(stream.now) != Contact::InContact));
        }
    };
    let done = timeout(within, look).await.is_ok();
    let nodes = Vec::from_iter(missing).join(", ");
    if done { Ok(()) } else { Err(UpError::NoContact { nodes, within }) }
}

/// A line of data, on stdout. A terminal that is gone is no reason to stop.
pub(super) fn show(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}
