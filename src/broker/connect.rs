//! The connection: who we are to the broker, where it may be, and whether the link is up.
//!
//! Owns the rule that without credentials only loopback is spoken to (DESIGN §9), reconnecting with jitter, and the
//! probe for the API's prefix. Never publishes.

use super::api::API_TIMEOUT;
use super::denied::Denials;
use super::error::BrokerError;
use crate::model::config::Config;
use crate::model::rights::is_sample_key;
use crate::model::subject::Names;
use async_nats::{Client, Event, ServerAddr};
use bytes::Bytes;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// The oldest nats-server that edgeward works with: the first with consumer resets.
pub const OLDEST_SERVER: (i64, i64, i64) = (2, 14, 0);

/// How we prove who we are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Access {
    /// Not at all: development, on loopback.
    #[default]
    Open,
    /// A credentials file: JWT and seed.
    Creds(PathBuf),
    /// A file with an nkey seed.
    Nkey(PathBuf),
}

impl Access {
    /// As a configuration says.
    pub fn from_config(config: &Config) -> Access {
        match (&config.creds, &config.nkey) {
            (Some(creds), _) => Access::Creds(creds.clone()),
            (None, Some(nkey)) => Access::Nkey(nkey.clone()),
            (None, None) => Access::Open,
        }
    }
}

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
    fn note_error(&mut self, error: String) {
        // What comes again and again, such as credentials that are not accepted, is said once.
        if self.last_error.as_ref() != Some(&error) {
            tracing::warn!("from the broker: {error}");
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
        check_reach(options)?;
        let (sender, link) = watch::channel(Link::default());
        let client = client_options(options, sender)?;
        let servers = options.servers.join(",");
        let client = client.connect(addresses(&options.servers)?).await.map_err(|error| match error.kind() {
            async_nats::ConnectErrorKind::ServerParse => {
                BrokerError::Options(format!("`{servers}` is no broker address"))
            }
            async_nats::ConnectErrorKind::Authentication | async_nats::ConnectErrorKind::AuthorizationViolation => {
                BrokerError::Options(format!("the broker at {servers} does not accept these credentials"))
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
        let (major, minor, patch) = OLDEST_SERVER;
        if self.client.is_server_compatible(major, minor, patch) {
            return Ok(());
        }
        let found = self.client.server_info().version;
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

    /// With credentials the API may be imported under another prefix; the account's own JetStream answers otherwise.
    async fn find_api(&mut self) -> Result<(), BrokerError> {
        let imported = self.names.imported_api();
        match self.ask(&format!("{imported}.INFO"), Bytes::new(), API_TIMEOUT).await {
            Ok(_) => self.api = imported.into(),
            Err(error @ BrokerError::DeniedInbox { .. }) => return Err(error),
            Err(error) => tracing::debug!(%error, "no API under the imported prefix"),
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
    let parse =
        |server: &String| server.parse().map_err(|_| BrokerError::Options(format!("`{server}` is no broker address")));
    servers.iter().map(parse).collect()
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
            let text = read_secret(path)?;
            client
                .credentials(&text)
                .map_err(|e| BrokerError::Options(format!("credentials {}: {e}", path.display())))?
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
        Event::ServerError(error) => link.send_modify(|link| link.note_error(error.to_string())),
        Event::ClientError(error) => link.send_modify(|link| link.note_error(error.to_string())),
        Event::SlowConsumer(_) | Event::LameDuckMode | Event::Draining => {
            tracing::debug!(%event, "connection");
        }
    }
}

/// Without credentials only loopback; with sample keys, too.
fn check_reach(options: &ConnectOptions) -> Result<(), BrokerError> {
    let Some(far) = options.servers.iter().find(|server| !is_loopback(server)) else { return Ok(()) };
    match &options.access {
        Access::Open if options.insecure => Ok(()),
        Access::Open => Err(BrokerError::Options(format!(
            "{far} is another host and there are no credentials: give --creds or --nkey, or --insecure if the link is trusted"
        ))),
        Access::Nkey(path) => {
            let key = nkeys::KeyPair::from_seed(&read_seed(path)?)
                .map_err(|e| BrokerError::Options(format!("nkey {}: {e}", path.display())))?;
            if is_sample_key(&key.public_key()) {
                return Err(BrokerError::Options(format!(
                    "{} is a sample key that everybody knows; it is refused off loopback ({far}): make keys of your own",
                    path.display()
                )));
            }
            Ok(())
        }
        Access::Creds(_) => Ok(()),
    }
}

/// True for addresses on this machine: `localhost`, `127.0.0.0/8`, `::1`.
fn is_loopback(server: &str) -> bool {
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let host = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => host.split([':', '/']).next().unwrap_or(host),
    };
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn read_secret(path: &PathBuf) -> Result<String, BrokerError> {
    std::fs::read_to_string(path).map_err(|e| BrokerError::Options(format!("{}: {e}", path.display())))
}

fn read_seed(path: &PathBuf) -> Result<String, BrokerError> {
    let text = read_secret(path)?;
    let seed = text.lines().map(str::trim).find(|line| line.starts_with('S'));
    seed.map(str::to_owned)
        .ok_or_else(|| BrokerError::Options(format!("{}: no nkey seed in this file", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for near in ["nats://127.0.0.1:4222", "localhost:4222", "127.9.9.9", "nats://[::1]:4222", "tls://a:b@localhost"]
        {
            assert!(is_loopback(near), "{near}");
        }
        for far in
            ["nats://10.0.0.1:4222", "broker.example:4222", "localhost.evil.example", "nats://127.0.0.1@evil:4222"]
        {
            assert!(!is_loopback(far), "{far}");
        }
    }

    #[test]
    fn reconnects_come_soon_and_not_all_at_once() {
        let delays: Vec<Duration> = (0..200).map(|_| reconnect_delay(50)).collect();
        assert!(delays.iter().all(|d| *d <= Duration::from_millis(800)));
        assert!(delays.iter().any(|d| *d != delays[0]));
    }
}
