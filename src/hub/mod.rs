//! The hub: makes streams, nodes and consumers, and gives a fate to what no node can answer.
//!
//! Owns no state outside the broker: it may be stopped, moved, killed between any two steps, or run twice. It runs no
//! methods and reads no bodies but records'.

mod consumers;
mod fate;
mod groups;
mod journals;
mod locks;
mod messages;
mod nodes;
mod records;
mod results;
mod streams;
mod unread;
mod upkeep;
mod watch;
mod writes;

use crate::broker::{Access, Broker, BrokerError, ConnectOptions, PublishError, topology};
use crate::model::config::HubConfig;
use crate::model::jitter::Backoff;
use crate::model::message::StreamKind;
use crate::model::name::NodeName;
use nodes::Nodes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How to run a hub.
#[derive(Debug)]
pub struct HubOptions {
    /// The broker. With `keep_trying` the hub waits for one; otherwise a broker that cannot be reached is an error.
    pub connect: ConnectOptions,
    /// `[hub]` of the configuration.
    pub config: HubConfig,
    /// Told once the streams are there and every node has been looked at.
    pub ready: Option<oneshot::Sender<()>>,
}

/// Why a hub ended, or why one of its steps did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The broker cannot be used as it is, or did not answer.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// Something could not be stored.
    #[error("publish to {subject}")]
    Publish {
        /// Its subject.
        subject: String,
        /// Why not.
        #[source]
        source: PublishError,
    },
    /// A record of edgeward's own does not parse.
    #[error("{key} (revision {revision}) cannot be read: {reason}")]
    BadRecord {
        /// Its subject.
        key: String,
        /// Its sequence.
        revision: u64,
        /// Why not.
        reason: String,
    },
    /// Others changed the same thing again and again; a later try finds it settled.
    #[error("{what} keeps changing")]
    Contended {
        /// Its subject.
        what: String,
    },
    /// A join or leave is under way, and which side of it a message lies is not known yet.
    #[error("a join or leave of its group is under way")]
    JoinPending,
    /// The node was removed while something was decided about it.
    #[error("node `{0}` was removed")]
    NodeRemoved(NodeName),
    /// A part of the hub ended that never should.
    #[error("{0}")]
    Internal(String),
}

impl HubError {
    fn publish(subject: String, source: PublishError) -> HubError {
        HubError::Publish { subject, source }
    }

    /// True where the configuration, the rights or the broker's set-up have to change first: trying again will not help.
    pub fn is_unusable(&self) -> bool {
        matches!(self, HubError::Broker(error) if error.is_final())
    }
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Runs a hub until `stop`. An error means that it cannot go on: the broker refuses what it needs, or the connection is
/// closed for good. Lost links and restarted brokers are waited out.
pub async fn run(options: HubOptions, stop: CancellationToken) -> Result<(), HubError> {
    let broker = Broker::connect(&options.connect).await?;
    // By default only where nobody proves who he is: otherwise nodes are enrolled, or say hello themselves.
    let auto_nodes = options.config.auto_nodes.unwrap_or(options.connect.access == Access::Open);
    let serve = serve(&broker, &options.config, auto_nodes, options.ready);
    let result = tokio::select! {
        result = serve => result,
        () = broker.closed() => Err(BrokerError::Closed.into()),
        () = stop.cancelled() => Ok(()),
    };
    // Acks that are still in the client's buffer spare the next hub some work.
    broker.flush(Duration::from_secs(1)).await;
    result
}

async fn serve(
    broker: &Broker,
    config: &HubConfig,
    auto_nodes: bool,
    ready: Option<oneshot::Sender<()>>,
) -> Result<(), HubError> {
    make_streams(broker, config).await?;
    let nodes = Arc::new(Nodes::new(broker.clone(), auto_nodes));
    // Dropping the set ends all of them; each may be ended at any step.
    let mut parts = JoinSet::new();
    parts.spawn(watch::follow_specs(nodes.clone()));
    parts.spawn(watch::follow_wishes(nodes.clone()));
    parts.spawn(watch::follow_hellos(nodes.clone()));
    parts.spawn(watch::scan(nodes.clone(), ready));
    for stream in StreamKind::ALL {
        parts.spawn(messages::follow(nodes.clone(), stream));
    }
    parts.spawn(messages::follow_acks(nodes.clone()));
    parts.spawn(upkeep::run(nodes.clone(), config.clone()));
    parts.spawn(writes::watch(nodes, config.probe));
    match parts.join_next().await {
        Some(Ok(Err(error))) => Err(error),
        Some(Err(error)) => Err(HubError::Internal(format!("a part of the hub failed: {error}"))),
        Some(Ok(Ok(()))) | None => Err(HubError::Internal("a part of the hub ended".to_owned())),
    }
}

/// Waits for the broker and brings the streams to what is wanted. What only time can heal is tried again.
async fn make_streams(broker: &Broker, config: &HubConfig) -> Result<(), HubError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        wait_up(broker).await?;
        match topology::ensure(broker, config).await {
            Ok(plan) => {
                tracing::debug!(%plan, "streams");
                return Ok(());
            }
            Err(error) if error.is_final() || matches!(error, BrokerError::Closed) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "the streams could not be made; trying again");
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }
}

/// Waits until the link is up, and says now and then that it is not.
async fn wait_up(broker: &Broker) -> Result<(), HubError> {
    const SAY_EVERY: Duration = Duration::from_secs(10);
    loop {
        match tokio::time::timeout(SAY_EVERY, broker.wait_up()).await {
            Ok(up) => return Ok(up?),
            Err(_) => {
                let why = broker.link().borrow().last_error.clone().unwrap_or_default();
                tracing::warn!(why, "still no broker");
            }
        }
    }
}
