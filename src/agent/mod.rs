//! The agent: a node's side. It takes messages, runs them, and says what became of them, with or without a link.
//!
//! A message's way: `intake` hands it to `dispatch`, which judges it and takes it into the journal; a `worker` runs its
//! method and finishes it there; the `outbox` publishes what is to be said. Each part is a task, supervised (`parts`); they
//! share a `Node` and talk through the dispatcher's queue and the journal. What fails is put to the error `kernel`.
//!
//! Owns the start and the orderly stop. Never acks what is not in the journal.

mod attempt;
mod clock;
mod contact;
mod control;
mod dispatch;
mod groups;
mod inmsg;
mod intake;
mod kernel;
mod lease;
mod node;
mod outbox;
mod output;
mod parts;
mod places;
mod recover;
mod reports;
mod results;
mod run;
mod status;
mod supervisor;
mod upkeep;
mod vitals;
mod watch;
mod worker;

use crate::broker::{Access, Broker, BrokerError, ConnectOptions};
use crate::exec::boot_id;
use crate::exec::runner::{Place, Runner};
use crate::journal::{Journal, JournalError, Key, Leaving};
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
use supervisor::Exceeded;
use tokio_util::sync::CancellationToken;

pub use vitals::Host;

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
    /// By a directive: it is not to be started again until somebody has looked.
    ForGood,
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

/// Runs an agent until `stop`, or until it is decided that it leaves for good. `host` is told how it is.
pub async fn run(options: Options, stop: CancellationToken, host: impl Host) -> Result<Ended, AgentError> {
    let commands = options.commands;
    let node = Arc::new(open(options).await?);
    tracing::info!(node = %node.name, journal = %node.journal.id(), state_dir = %node.journal.folder().display(), "agent");
    resume_leaving(&node).await?;
    let was_leaving = node.shutdown.is_cancelled();
    if was_leaving {
        // Nothing begins any more.
        stop.cancel();
    }
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
    let host: Arc<dyn Host> = Arc::new(host);
    let mut dispatching = tokio::spawn(dispatcher.run(stop.clone()));
    let mut taking = tokio::spawn(parts::taking(&node, &handle).run(stop.clone()));
    let mut serving = tokio::spawn(parts::serving(&node, &handle, &host).run(leave.clone()));
    host.ready();
    let failed = tokio::select! {
        // Intake ends on `stop`, too: that is no failure.
        biased;
        () = stop.cancelled() => None,
        () = node.shutdown.cancelled() => None,
        reason = node.journal.damaged() => {
            // Nothing more can be kept: the next start makes a new journal and says so.
            node.journal.note_damage(&reason);
            cut.cancel();
            Some(JournalError::Damaged(reason).into())
        }
        ended = &mut taking => Some(part_failed(ended, "intake")),
        ended = &mut serving => Some(part_failed(ended, "supervisor")),
        ended = &mut dispatching => {
            tracing::error!(?ended, "the dispatcher has ended");
            Some(AgentError::Part("dispatcher"))
        }
    };
    stop.cancel();
    end_work(&node, dispatching, &cut).await;
    leave.cancel();
    ended(taking, serving).await;
    if commands == Commands::End {
        node.runner.leave().await;
    }
    kernel::tell_counted(&node).await;
    if was_leaving {
        // Why it leaves has not left itself yet; an agent that has just started needs a moment for its link.
        drop(tokio::time::timeout(DRAIN, node.broker.wait_up()).await);
    }
    outbox::drain(&node, DRAIN).await;
    if let Some(error) = failed {
        return Err(error);
    }
    status::stopped(Arc::clone(&node)).await;
    if !node.shutdown.is_cancelled() {
        return Ok(Ended::Stopped);
    }
    // The last thing of all: a crash before it leaves again, one after it has left.
    if let Err(error) = node.journal.left_for_good().await {
        tracing::error!(%error, "the next start leaves once more");
    }
    here(Point::Left);
    tracing::error!("something is seriously wrong, so it was decided that this agent ends; see `edgeward errors`");
    Ok(Ended::ForGood)
}

/// A decision to leave that a crash came before holds; whoever starts an agent that has left means it.
async fn resume_leaving(node: &Node) -> Result<(), JournalError> {
    match node.journal.leaving().await? {
        Some(Leaving::Decided) => {
            tracing::warn!("it was decided that this agent leaves; leaving");
            node.shutdown.cancel();
        }
        Some(Leaving::Done) => node.journal.stay().await?,
        None => {}
    }
    Ok(())
}

type Supervised = tokio::task::JoinHandle<Result<(), Exceeded>>;

fn part_failed(ended: Result<Result<(), Exceeded>, tokio::task::JoinError>, otherwise: &'static str) -> AgentError {
    match ended {
        Ok(Err(Exceeded(part))) => AgentError::Part(part),
        _ => AgentError::Part(otherwise),
    }
}

/// Waits for parts that have been told to end; one of them may have ended before.
async fn ended(taking: Supervised, serving: Supervised) {
    for supervisor in [taking, serving].into_iter().filter(|supervisor| !supervisor.is_finished()) {
        // It ends within its own time.
        drop(supervisor.await);
    }
}

/// Lets what runs in the agent finish for the configured grace, then ends it.
async fn end_work(node: &Node, mut dispatching: tokio::task::JoinHandle<()>, cut: &CancellationToken) {
    let grace = node.config.agent.grace;
    if dispatching.is_finished() {
        return;
    }
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
    let node = Node::new(Parts { name: node, names, config, policy, journal, broker, clock, runner });
    node.load_groups().await?;
    Ok(node)
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
