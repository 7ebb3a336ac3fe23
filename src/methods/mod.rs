//! Methods: what a node can do. One file each behind one trait, one line each in the registry.
//!
//! Owns the handlers and what admission has to know of them. Never touches the journal or the broker: a handler gets a
//! message and a context, and gives back an outcome.
//!
//! A handler may run again for the same message ([`Work::attempt`] above 1), after a failed try or after a crash of
//! agent or host. Retries, and whether a try that was stopped counts as cancelled, are the caller's.

mod exec;
mod fault;
#[cfg(test)]
mod fixture;
mod log;
mod note;
#[cfg(feature = "kill-points")]
mod panic;
mod ping;
mod process;
mod shell;

use crate::exec::Started;
use crate::exec::runner::{RunName, Runner};
use crate::model::admit::{Admitted, MethodFacts};
use crate::model::message::Kind;
use crate::model::name::NodeName;
use crate::model::record::Outcome;
use crate::model::time::Timestamp;
use bytes::Bytes;
use futures::future::BoxFuture;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// One try of one message.
#[derive(Debug, Clone)]
pub struct Work {
    /// The message, admitted.
    pub message: Admitted,
    /// Its body.
    pub body: Bytes,
    /// Which try, from 1. Above 1 an earlier one may have done part of the work.
    pub attempt: u32,
}

/// What a handler may use of the node.
#[derive(Clone)]
pub struct Context {
    /// The node.
    pub node: NodeName,
    /// Where `log` writes.
    pub log_dir: PathBuf,
    /// What the node knows of itself and its broker.
    pub facts: Arc<dyn NodeFacts>,
    /// Ends the try early: a cancel, or the agent stopping.
    pub stop: CancellationToken,
    /// Told of each process as it starts, so that a later agent can find it.
    pub processes: Arc<dyn ProcessLog>,
    /// What outlives the agent: commands are its children.
    pub runner: Runner,
    /// The name of this try there, unique for ever: `EDGEWARD_RUN` in the environment of its processes.
    pub run: RunName,
    /// Bytes of each output stream that are kept in full.
    pub output_bytes: u64,
    /// Whether what a command left in the background is ended with it.
    pub kill_left: bool,
}

/// What the node knows of itself and its broker.
pub trait NodeFacts: Send + Sync {
    /// The broker's version, while connected.
    fn broker_version(&self) -> Option<String>;
    /// When this agent started, by its own clock.
    fn started_at(&self) -> Timestamp;
    /// The broker's time, as the node keeps it.
    fn broker_now(&self) -> Timestamp;
}

/// Keeps which process a try has started.
pub trait ProcessLog: Send + Sync {
    /// A process was started. Does not wait.
    fn started(&self, process: Started);
}

/// How long a process has between TERM and KILL.
pub const KILL_GRACE: Duration = Duration::from_secs(5);

/// One method.
pub trait Handler: Send + Sync {
    /// Its name, a subject token.
    fn name(&self) -> &'static str;

    /// Its kind, and how a body is judged before it runs.
    fn facts(&self) -> MethodFacts;

    /// Does it once. Never panics on any body; ends soon after `cx.stop`.
    fn run<'a>(&'a self, work: &'a Work, cx: &'a Context) -> BoxFuture<'a, Outcome>;

    /// What comes of a message that needs no running: its method changes nothing and waits for nothing. Where its lane is
    /// free it is over in the commit that takes it, so no crash can find it half done. `None`: it has to run.
    fn at_once(&self, _message: &Admitted, _node: &NodeName, _facts: &dyn NodeFacts) -> Option<Outcome> {
        None
    }

    /// True where what `run` does goes on without the agent: it keeps the message's timeout itself, may be dropped at any
    /// time, and called again with the same try, by this agent or the next one, it takes up what it began.
    fn outlives_agent(&self) -> bool {
        false
    }
}

/// The methods of a node.
#[derive(Clone)]
pub struct Registry {
    handlers: Arc<[Arc<dyn Handler>]>,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry {
            handlers: Arc::new([
                Arc::new(shell::Shell),
                Arc::new(exec::Exec),
                Arc::new(log::Log),
                Arc::new(note::Note),
                #[cfg(feature = "kill-points")]
                Arc::new(panic::Panic),
                Arc::new(ping::Ping),
            ]),
        }
    }
}

impl Registry {
    /// The handler of this name.
    pub fn get(&self, method: &str) -> Option<&Arc<dyn Handler>> {
        self.handlers.iter().find(|handler| handler.name() == method)
    }

    /// What admission has to know of a method of this kind.
    pub fn facts(&self, kind: Kind, method: &str) -> Option<MethodFacts> {
        self.get(method).map(|handler| handler.facts()).filter(|facts| facts.kind == kind)
    }

    /// The kind of a method, for messages that name none.
    pub fn kind_of(&self, method: &str) -> Option<Kind> {
        self.get(method).map(|handler| handler.facts().kind)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.handlers.iter().map(|handler| handler.name())
    }
}
