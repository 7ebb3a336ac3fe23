//! The connection: who we are to the broker, where it may be, and whether the link is up.
//!
//! Owns how old a broker may be, reconnecting with jitter, and the probe for the API's prefix. Never publishes.

use super::access::{Access, check_reach, read_creds, read_seed, without_password};
use super::api::{API_TIMEOUT, ASK_AGAIN, TIMES};
use super::denied::Denials;
use super::error::BrokerError;
use crate::model::subject::Names;
use async_nats::{Client, Event, ServerAddr};
use bytes::Bytes;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// The oldest nats-server that edgeward works with: the first with consumer resets.
const OLDEST_SERVER: (u64, u64, u64) = (2, 14, 0);

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Addresses, tried in turn.
    pub servers: Vec<String>,
    /// Credentials.
    pub access: Access,
    /// The certificate authority of the broker's certificate.
    pub tls_ca: Option<PathBuf>,
    /// Talk to other hosts without credentials.
    pub insecure: bool,
    /// The name shown in the broker's connection list, such as `edgeward agent ship1`.
    pub name: String,
    /// Whose inbox answers come to; with credentials, rights confine it to `_INBOX_<identity>`.
    pub identity: Option<String>,
    /// Names on the broker.
    pub names: Names,
    /// The API's prefix; probed where absent.
    pub api_prefix: Option<String>,
    /// Come back at once and keep trying while no broker is there (agent and hub), instead of failing.
    pub keep_trying: bool,
}

/// The state of the link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// True while connected.
    pub up: bool,
    /// How often it has come up.
    pub times: u64,
    /// The last thing that went wrong, as the client told it.
    pub last_error: Option<String>,
    /// What the broker does not let us do.
    pub denials: Denials,
}

impl Link {
    /// Takes note of the client's words for what went wrong.
    fn note_error(&mut self, error: &impl fmt::Display) {
        let error = error.to_string();
        let error = error.strip_prefix("nats: ").unwrap_or(&error).to_owned();
        // What comes again and again, such as credentials that are not accepted, is said once.
        if self.last_error.as_ref() != Some(&error) {
            tracing::warn!("the broker, or the link to it: {error}");
        }
        self.denials.note(&error);
        self.last_error = Some(error);
    }
}

/// A connection to the broker. Cheap to clone; all clones share one link.
#[derive(Debug, Clone)]
pub struct Broker {
    pub(super) client: Client,
    pub(super) names: Arc<Names>,
    pub(super) api: Arc<str>,
    link: watch::Receiver<Link>,
    asked: Arc<AtomicU64>,
}

impl Broker {
    /// Connects. With `keep_trying` it returns before a broker is there; otherwise a broker that cannot be reached, or
    /// is too old, is an error.
    pub async fn connect(options: &ConnectOptions) -> Result<Broker, BrokerError> {
        let addresses = addresses(&options.servers)?;
        check_reach(options, &addresses)?;
        let (sender, link) = watch::channel(Link::default());
        let client = client_options(options, sender)?;
        let servers = options.servers.iter().map(|server| without_password(server)).collect::<Vec<_>>().join(",");
        let client = client.connect(addresses).await.map_err(|error| match error.kind() {
            async_nats::ConnectErrorKind::ServerParse => {
                BrokerError::Options(format!("`{servers}` is no broker address"))
            }
            async_nats::ConnectErrorKind::Authentication | async_nats::ConnectErrorKind::AuthorizationViolation => {
                // A user or token may stand in the address.
                let given = options.access != Access::Open || servers.contains('@');
                BrokerError::NotAccepted { servers: servers.clone(), given }
            }
            _ => BrokerError::Unreachable { servers: servers.clone(), reason: error.to_string() },
        })?;
        let api: Arc<str> = options.api_prefix.as_deref().unwrap_or("$JS.API").into();
        let names = Arc::new(options.names.clone());
        let mut broker = Broker { client, names, api, link, asked: Arc::default() };
        if !options.keep_trying {
            broker.check_version()?;
            if options.api_prefix.is_none() && options.access != Access::Open {
                broker.find_api().await?;
            }
        }
        Ok(broker)
    }

    /// The names on this broker.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// How many requests this connection has made, besides publishes: what looking costs the broker.
    pub fn requests(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// One more request is on its way.
    pub(super) fn count_request(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    /// The link's state, to look at or to wait for.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Waits until the link is up.
    pub async fn wait_up(&self) -> Result<(), BrokerError> {
        let mut link = self.link();
        link.wait_for(|link| link.up).await.map(drop).map_err(|_| BrokerError::Closed)
    }

    /// Waits until the client's task has ended, for whatever reason: from then on every request fails, for ever. Only a
    /// new start helps.
    pub async fn closed(&self) {
        let mut link = self.link();
        while link.changed().await.is_ok() {}
    }

    /// Refuses a broker that is too old, naming both versions. Call it while the link is up.
    pub fn check_version(&self) -> Result<(), BrokerError> {
        let found = self.client.server_info().version;
        let (major, minor, _) = OLDEST_SERVER;
        if read_version(&found).is_some_and(|version| version >= OLDEST_SERVER) {
            return Ok(());
        }
        Err(BrokerError::Options(format!(
            "the broker is nats-server {found}; edgeward needs {major}.{minor} or newer: upgrade nats-server"
        )))
    }

    /// The broker's version, once it has said so.
    pub fn server_version(&self) -> Option<String> {
        self.client.try_server_info().map(|info| info.version)
    }

    /// The largest message that the broker takes, headers included, in bytes.
    pub fn max_payload(&self) -> usize {
        match self.client.max_payload() {
            0 => 1 << 20,
            size => size,
        }
    }

    /// How often a waiting pull is told that it is alive: what a lost consumer takes to be noticed, against what idle nodes
    /// cost. In a cluster a server may go with the consumer while the link to another one stays up.
    pub(super) fn heartbeat(&self) -> Duration {
        Duration::from_secs(if self.is_clustered() { 1 } else { 5 })
    }

    /// Whether the server is one of several, as far as is known.
    pub(crate) fn is_clustered(&self) -> bool {
        self.client.try_server_info().is_some_and(|info| info.cluster.is_some())
    }

    /// A wait before another try: half a second at most on a cluster, where what was lost with a server is back, or led by
    /// another one, within seconds.
    pub(crate) fn shortened(&self, wait: Duration) -> Duration {
        if self.is_clustered() { wait.min(Duration::from_millis(500)) } else { wait }
    }

    /// What the broker says of itself: whether JetStream is on.
    pub(super) fn has_jetstream(&self) -> bool {
        self.client.server_info().jetstream
    }

    /// Drops the connection and makes it anew: for a link that is half open, which the client cannot see yet.
    pub async fn reconnect(&self) {
        if let Err(error) = self.client.force_reconnect().await {
            tracing::debug!(%error, "reconnect");
        }
    }

    /// Sends what is still in the client's buffer.
    pub async fn flush(&self, within: Duration) -> bool {
        matches!(tokio::time::timeout(within, self.client.flush()).await, Ok(Ok(())))
    }

    /// With credentials the API may be imported under another prefix; the account's own JetStream answers otherwise. No answer
    /// at all says nothing yet: a cluster may be without a leader, or somebody listens to every subject.
    async fn find_api(&mut self) -> Result<(), BrokerError> {
        let imported = self.names.imported_api();
        let (times, within) = if self.is_clustered() { (TIMES, ASK_AGAIN) } else { (1, API_TIMEOUT) };
        for _ in 0..times {
            match self.ask(&format!("{imported}.INFO"), Bytes::new(), within).await {
                Ok(_) => {
                    self.api = imported.into();
                    return Ok(());
                }
                Err(error @ BrokerError::DeniedInbox { .. }) => return Err(error),
                Err(BrokerError::Timeout { .. } | BrokerError::LinkLost { .. }) => {}
                Err(error) => {
                    tracing::debug!(%error, "no API under the imported prefix");
                    return Ok(());
                }
            }
            if self.ask(&format!("{}.INFO", self.api), Bytes::new(), within).await.is_ok() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The same connection with the API under another prefix.
    #[must_use]
    pub fn with_api(mut self, prefix: &str) -> Broker {
        self.api = prefix.into();
        self
    }
}

fn addresses(servers: &[String]) -> Result<Vec<ServerAddr>, BrokerError> {
    let no_address =
        |server: &str| BrokerError::Options(format!("`{}` is no broker address", without_password(server)));
    servers.iter().map(|server| server.parse().map_err(|_| no_address(server))).collect()
}

fn client_options(
    options: &ConnectOptions,
    link: watch::Sender<Link>,
) -> Result<async_nats::ConnectOptions, BrokerError> {
    let mut client = async_nats::ConnectOptions::new()
        .name(&options.name)
        .ping_interval(Duration::from_secs(10))
        .connection_timeout(Duration::from_secs(5))
        .request_timeout(Some(Duration::from_secs(5)))
        .reconnect_delay_callback(reconnect_delay)
        .max_reconnects(None)
        .event_callback(move |event| {
            note_event(&link, event);
            async {}
        });
    client = match &options.access {
        Access::Open => client,
        Access::Creds(path) => {
            let (jwt, key) = read_creds(path)?;
            let key = Arc::new(key);
            client.jwt(jwt, move |nonce| {
                let key = Arc::clone(&key);
                async move { key.sign(&nonce).map_err(async_nats::AuthError::new) }
            })
        }
        Access::Nkey(path) => client.nkey(read_seed(path)?),
    };
    if let Some(identity) = &options.identity {
        client = client.custom_inbox_prefix(format!("_INBOX_{identity}"));
    }
    if let Some(ca) = &options.tls_ca {
        client = client.add_root_certificates(ca.clone()).require_tls(true);
    }
    Ok(if options.keep_trying { client.retry_on_initial_connect() } else { client })
}

/// Full jitter under a bound that doubles up to 800 ms: soon enough for the first message to start within a second of
/// the link's return, and ten thousand agents do not come in one instant.
fn reconnect_delay(attempts: usize) -> Duration {
    let bound = (50 << attempts.min(4)).min(800);
    Duration::from_millis(bound).mul_f64(crate::model::jitter::fraction())
}

fn note_event(link: &watch::Sender<Link>, event: Event) {
    match event {
        Event::Connected => {
            tracing::info!("connected to the broker");
            link.send_modify(|link| {
                link.up = true;
                link.times += 1;
                link.last_error = None;
                link.denials.reconnected();
            });
        }
        Event::Disconnected => {
            tracing::warn!("the link to the broker is down");
            link.send_modify(|link| link.up = false);
        }
        Event::Closed => link.send_modify(|link| link.up = false),
        Event::ServerError(error) => link.send_modify(|link| link.note_error(&error)),
        Event::ClientError(error) => link.send_modify(|link| link.note_error(&error)),
        Event::SlowConsumer(_) | Event::LameDuckMode | Event::Draining => {
            tracing::debug!(%event, "connection");
        }
    }
}

/// The numbers of a version, such as `2.14.0` or `v2.15.0-RC.1`; what is not said is 0.
fn read_version(text: &str) -> Option<(u64, u64, u64)> {
    let numbers = text.strip_prefix('v').unwrap_or(text);
    let numbers = numbers.split(|c: char| c != '.' && !c.is_ascii_digit()).next()?;
    let mut numbers = numbers.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next().flatten().unwrap_or(0), numbers.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        for (text, version) in
            [("2.14.0", (2, 14, 0)), ("v2.15.3-RC.1", (2, 15, 3)), ("2.14", (2, 14, 0)), ("3", (3, 0, 0))]
        {
            assert_eq!(read_version(text), Some(version), "{text}");
        }
        for text in ["", "-", "new", ".2.14", "99999999999999999999.1.0"] {
            assert_eq!(read_version(text), None, "{text}");
        }
        assert!(read_version("2.9.27") < Some(OLDEST_SERVER) && read_version("2.14.1") > Some(OLDEST_SERVER));
    }

    #[test]
    fn reconnects_come_soon_and_not_all_at_once() {
        let delays: Vec<Duration> = (0..200).map(|_| reconnect_delay(50)).collect();
        assert!(delays.iter().all(|d| *d <= Duration::from_millis(800)));
        assert!(delays.iter().any(|d| *d != delays[0]));
    }
}
