//! What all parts of an agent share: who it is, its journal, its broker, its clock.
//!
//! Owns nothing that runs. Parts know each other only through this and the dispatcher's handle.

use super::clock::Clock;
use super::groups::Groups;
use super::kernel::ErrorKernel;
use super::lease::Lease;
use super::supervisor::Pulses;
use crate::broker::Broker;
use crate::exec::runner::Runner;
use crate::journal::{Class, Journal, JournalError, Report};
use crate::methods::{NodeFacts, Registry};
use crate::model::admit::{Admitted, MethodFacts, Rejected, Rules, admit, is_mark};
use crate::model::config::Config;
use crate::model::message::{Kind, StoredMessage};
use crate::model::name::NodeName;
use crate::model::policy::Policy;
use crate::model::settings::Defaults;
use crate::model::subject::Names;
use crate::model::time::Timestamp;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The shared parts of one agent.
pub(crate) struct Node {
    pub(crate) name: NodeName,
    pub(crate) names: Names,
    pub(crate) config: Config,
    pub(crate) policy: Policy,
    pub(crate) registry: Registry,
    pub(crate) journal: Journal,
    pub(crate) broker: Broker,
    pub(crate) clock: Clock,
    /// This run of the agent.
    pub(crate) run: Uuid,
    /// When it began, by the own clock.
    pub(crate) started_at: Timestamp,
    pub(crate) log_dir: PathBuf,
    /// What the node's commands are children of.
    pub(crate) runner: Runner,
    pub(crate) wakes: Wakes,
    /// Whether this run may act for the node.
    pub(crate) lease: Lease,
    /// What it is a member of.
    pub(crate) groups: Groups,
    /// What is done about failures.
    pub(crate) kernel: ErrorKernel,
    /// When each part of the agent last got on.
    pub(crate) pulses: Pulses,
    /// The agent is to leave for good; kept in the journal before this is cancelled.
    pub(crate) shutdown: CancellationToken,
    retention: RwLock<Duration>,
}

/// Bells that one part rings for another; each keeps one ring for whoever is not listening yet.
#[derive(Default)]
pub(crate) struct Wakes {
    outbox: HashMap<Class, Arc<Notify>>,
    /// The hub has told where this node's events begin.
    pub(crate) events: Notify,
    /// This journal is the node: `status` may be written.
    pub(crate) status: Notify,
    /// Output has come that is published.
    pub(crate) output: Notify,
    /// The next status should not wait for its time.
    pub(crate) beat: Notify,
    /// Records are to be published once more.
    pub(crate) republish: Notify,
}

impl Wakes {
    pub(crate) fn new() -> Wakes {
        let classes = [Class::Ack, Class::Error, Class::Message, Class::Result];
        Wakes { outbox: classes.into_iter().map(|class| (class, Arc::default())).collect(), ..Wakes::default() }
    }

    /// Rings for the outbox of a class.
    pub(crate) fn ring(&self, class: Class) {
        if let Some(bell) = self.outbox.get(&class) {
            bell.notify_one();
        }
    }

    /// Waits for a ring for the outbox of a class.
    pub(crate) async fn rung(&self, class: Class) {
        match self.outbox.get(&class) {
            Some(bell) => bell.notified().await,
            None => std::future::pending().await,
        }
    }
}

/// What an agent is made of.
pub(crate) struct Parts {
    pub(crate) name: NodeName,
    pub(crate) names: Names,
    pub(crate) config: Config,
    pub(crate) policy: Policy,
    pub(crate) journal: Journal,
    pub(crate) broker: Broker,
    pub(crate) clock: Clock,
    pub(crate) runner: Runner,
}

impl Node {
    pub(crate) fn new(parts: Parts) -> Node {
        let Parts { name, names, config, policy, journal, broker, clock, runner } = parts;
        let folder = journal.folder().to_owned();
        Node {
            groups: Groups::new(&name),
            name,
            names,
            policy,
            registry: Registry::default(),
            journal,
            broker,
            clock,
            run: Uuid::now_v7(),
            started_at: Timestamp::local_now(),
            log_dir: config.agent.log_dir.clone().unwrap_or_else(|| folder.join("log")),
            runner,
            wakes: Wakes::new(),
            lease: Lease::default(),
            kernel: ErrorKernel::default(),
            pulses: Pulses::default(),
            shutdown: CancellationToken::new(),
            retention: RwLock::new(Defaults::default().retention),
            config,
        }
    }

    /// Judges a message by this node's rules.
    pub(crate) fn admit(&self, message: &StoredMessage) -> Result<Admitted, Box<Rejected>> {
        let defaults = self.defaults();
        let method = |kind: Kind, name: &str| -> Option<MethodFacts> {
            match kind {
                Kind::Control => super::control::facts(name),
                Kind::Event if is_mark(kind, name) => super::control::facts(name),
                _ => self.registry.facts(kind, name),
            }
        };
        let rules = Rules {
            names: &self.names,
            node: &self.name,
            is_member: &|_, _| !self.is_for_others(message),
            policy: &self.policy,
            defaults: &defaults,
            method: &method,
        };
        admit(message, &rules)
    }

    fn defaults(&self) -> Defaults {
        Defaults { timeouts: self.config.agent.timeouts.clone(), retention: self.retention() }
    }

    /// How long the streams keep messages.
    pub(crate) fn retention(&self) -> Duration {
        *self.retention.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the streams keep messages, as `spec` tells.
    pub(crate) fn set_retention(&self, retention: Duration) {
        *self.retention.write().unwrap_or_else(PoisonError::into_inner) = retention;
    }

    /// The largest record that may be published, encoded: half of what the broker takes.
    pub(crate) fn record_limit(&self) -> usize {
        self.broker.max_payload() / 2
    }

    /// Puts reports into the outbox; durable on return.
    pub(crate) async fn report(&self, reports: Vec<Report>) -> Result<(), JournalError> {
        let classes: Vec<Class> = reports.iter().map(|report| report.class).collect();
        self.journal.report(reports).await?;
        classes.into_iter().for_each(|class| self.wakes.ring(class));
        Ok(())
    }
}

impl NodeFacts for Node {
    fn broker_version(&self) -> Option<String> {
        self.broker.server_version()
    }

    fn started_at(&self) -> Timestamp {
        self.started_at
    }

    fn broker_now(&self) -> Timestamp {
        self.clock.now()
    }
}
