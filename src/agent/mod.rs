//! The agent: a node's side. It takes messages, runs them, and says what became of them, with or without a link.
//!
//! A message's way: `intake` hands it to `dispatch`, which judges it and takes it into the journal; a `worker` runs its
//! method and finishes it there; the `outbox` publishes what is to be said. Each part is a task; they share a `Node` and
//! talk through the dispatcher's queue and the journal.
//!
//! Owns the start and the orderly stop. Never acks what is not in the journal.

mod clock;
mod contact;
mod control;
mod dispatch;
mod inmsg;
mod intake;
mod lease;
mod node;
mod outbox;
mod output;
mod recover;
mod reports;
mod results;
mod status;
mod upkeep;
mod worker;

use crate::broker::{Access, Broker, BrokerError, ConnectOptions};
use crate::exec::boot_id;
use crate::exec::runner::{Place, Runner};
use crate::journal::{Class, Journal, JournalError, Key};
use crate::killpoint::{Point, here};
use crate::model::config::Config;
use crate::model::name::{BadName, NodeName};
use crate::model::policy::Policy;
use crate::model::subject::Names;
use crate::model::time::Timestamp;
use clock::{BootClock, Clock, Kept};
use dispatch::{Dispatcher, Ends};
use node::{Node, Parts};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What an agent needs to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The whole configuration.
    pub config: Config,
    /// Which node it is.
    pub node: NodeName,
    /// Where journal, logs and `inmsg.txt` are.
    pub state_dir: PathBuf,
    /// What the node accepts.
    pub policy: Policy,
    /// What becomes of commands that run when it is told to stop.
    pub commands: Commands,
}

/// What becomes of running commands when an agent is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commands {
    /// They go on; the next agent reports them.
    GoOn,
    /// They are ended after the grace: the whole node goes away.
    End,
}

/// How an agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop, and did.
    Stopped,
}

/// Why an agent cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The state folder or journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The broker's options cannot be used.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The prefix is none.
    #[error(transparent)]
    Prefix(#[from] BadName),
    /// A folder cannot be made.
    #[error("{path} cannot be made")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A part that must not end has ended.
    #[error("the agent's {0} has failed; see the log")]
    Part(&'static str),
}

/// What a runner is started from: this very program, also where its file has been replaced since.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// How long a node that leaves may take to publish what it has to say.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs an agent until `stop`. `ready` is called once the journal is open, with or without a link.
pub async fn run(options: Options, stop: CancellationToken, ready: impl FnOnce() + Send) -> Result<Ended, AgentError> {
    let commands = options.commands;
    let node = Arc::new(open(options).await?);
    tracing::info!(node = %node.name, journal = %node.journal.id(), state_dir = %node.journal.folder().display(), "agent");
    upkeep::tell_replaced(&node).await?;
    let adopted = recover::run(&node).await?;
    here(Point::Recovered);
    // Four things end in turn: intake and starting (`stop`), running work (`cut`), then publishing (`leave`).
    let (cut, leave) = (CancellationToken::new(), CancellationToken::new());
    let ends = Ends {
        cut: cut.clone(),
        left: match commands {
            Commands::GoOn => stop.clone(),
            Commands::End => CancellationToken::new(),
        },
    };
    let (dispatcher, handle) = Dispatcher::load(Arc::clone(&node), ends, adopted).await?;
    let mut parts = Tasks::default();
    parts.add("outbox of acks", outbox::run(Arc::clone(&node), Class::Ack, leave.clone()));
    parts.add("outbox of error events", outbox::run(Arc::clone(&node), Class::Error, leave.clone()));
    parts.add("outbox of messages", outbox::run(Arc::clone(&node), Class::Message, leave.clone()));
    parts.add("output of commands", output::run(Arc::clone(&node), leave.clone()));
    parts.add("results", results::run(Arc::clone(&node), leave.clone()));
    parts.add("connection to the broker", connection(Arc::clone(&node), leave.clone()));
    parts.add("status", status::run(Arc::clone(&node), handle.clone(), leave.clone()));
    parts.add("upkeep", upkeep::run(Arc::clone(&node), leave.clone()));
    parts.add("inmsg.txt", inmsg::run(Arc::clone(&node), leave.clone()));
    parts.add("intake", intake::run(Arc::clone(&node), handle, stop.clone()));
    let dispatching = tokio::spawn(dispatcher.run(stop.clone()));
    ready();
    let failed = tokio::select! {
        // Intake ends on `stop`, too: that is no failure.
        biased;
        () = stop.cancelled() => None,
        reason = node.journal.damaged() => {
            // Nothing more can be kept: the next start makes a new journal and says so.
            node.journal.note_damage(&reason);
            cut.cancel();
            Some(JournalError::Damaged(reason).into())
        }
        part = parts.failed() => Some(AgentError::Part(part)),
    };
    stop.cancel();
    end_work(&node, dispatching, &cut).await;
    leave.cancel();
    parts.end().await;
    if commands == Commands::End {
        node.runner.leave().await;
    }
    outbox::drain(&node, DRAIN).await;
    match failed {
        Some(error) => Err(error),
        None => {
            status::stopped(node).await;
            Ok(Ended::Stopped)
        }
    }
}

/// Ends when the client has ended for good: nothing would come or go any more, only a new start helps.
async fn connection(node: Arc<Node>, leave: CancellationToken) {
    tokio::select! {
        () = leave.cancelled() => {}
        () = node.broker.closed() => tracing::error!("the connection to the broker has ended for good"),
    }
}

/// Lets what runs in the agent finish for the configured grace, then ends it.
async fn end_work(node: &Node, mut dispatching: tokio::task::JoinHandle<()>, cut: &CancellationToken) {
    let grace = node.config.agent.grace;
    if tokio::time::timeout(grace, &mut dispatching).await.is_ok() {
        return;
    }
    tracing::warn!(?grace, "the grace is over; ending running work");
    cut.cancel();
    // TERM, five seconds, KILL, and a commit.
    if tokio::time::timeout(crate::methods::KILL_GRACE + Duration::from_secs(5), dispatching).await.is_err() {
        tracing::error!("some work did not end; the next start ends it");
    }
}

async fn open(options: Options) -> Result<Node, AgentError> {
    let Options { config, node, state_dir, policy, .. } = options;
    let names = Names::new(&config.prefix)?;
    let journal = {
        let (folder, node) = (state_dir.clone(), node.clone());
        let opened = tokio::task::spawn_blocking(move || Journal::open(&folder, &node, boot_id())).await;
        opened.map_err(|_| JournalError::Closed)??.journal.with_space(config.agent.journal_bytes)
    };
    let run_dir = state_dir.join("run");
    let place = Place::make(&run_dir).map_err(|source| AgentError::Folder { path: run_dir, source })?;
    let runner = Runner::new(place, OWN_PROGRAM.into());
    let boot = journal.meta::<BootClock>(Key::BootClock).await?;
    let kept = Kept {
        offset: journal.meta(Key::ClockOffset).await?.unwrap_or(0),
        heard: journal.meta(Key::BrokerTime).await?.map(Timestamp::from_nanos),
        boot: boot.filter(|clock| Some(clock.boot.as_str()) == boot_id()),
    };
    let broker = Broker::connect(&connect_options(&config, &names, &node)).await?;
    let clock = Clock::new(&kept);
    Ok(Node::new(Parts { name: node, names, config, policy, journal, broker, clock, runner }))
}

fn connect_options(config: &Config, names: &Names, node: &NodeName) -> ConnectOptions {
    let access = Access::from_config(config);
    // With credentials a node lives in an account without streams of its own.
    let imported = (access != Access::Open).then(|| names.imported_api());
    ConnectOptions {
        servers: config.server.clone(),
        access,
        tls_ca: config.tls_ca.clone(),
        insecure: config.insecure,
        name: format!("edgeward agent {node}"),
        identity: Some(node.to_string()),
        names: names.clone(),
        api_prefix: Some(config.api_prefix.clone().or(imported).unwrap_or_else(|| "$JS.API".to_owned())),
        keep_trying: true,
    }
}

/// The agent's tasks, by what they are called.
#[derive(Default)]
struct Tasks {
    tasks: JoinSet<&'static str>,
    names: Vec<(tokio::task::Id, &'static str)>,
}

impl Tasks {
    fn add(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let handle = self.tasks.spawn(async move {
            part.await;
            name
        });
        self.names.push((handle.id(), name));
    }

    /// The first part that ends: none should before it is told to.
    async fn failed(&mut self) -> &'static str {
        match self.tasks.join_next().await {
            Some(Ok(name)) => name,
            Some(Err(error)) => {
                let name = self.names.iter().find(|(id, _)| *id == error.id()).map_or("task", |(_, name)| name);
                tracing::error!(%error, part = name, "a part of the agent has failed");
                name
            }
            None => std::future::pending().await,
        }
    }

    async fn end(mut self) {
        while tokio::time::timeout(DRAIN, self.tasks.join_next()).await.is_ok_and(|ended| ended.is_some()) {}
        self.tasks.shutdown().await;
    }
}
