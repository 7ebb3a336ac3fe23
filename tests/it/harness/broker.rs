//! A nats-server per test, in a temporary folder of its own, on a free port.

use super::wait::SOON;
use edgeward::broker::{Access, Broker, ConnectOptions};
use edgeward::model::subject::Names;
use edgeward::server::{Found, Options, Server, default_cache, nats_server};
use std::path::Path;
use std::sync::OnceLock;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

/// The nats-server's binary: looked for (and fetched where there is none) once per test run. Blocks.
pub fn nats_server_binary() -> &'static Path {
    static FOUND: OnceLock<Found> = OnceLock::new();
    let find = || nats_server(&default_cache(), &mut |line| eprintln!("{line}")).expect("a nats-server");
    &FOUND.get_or_init(find).path
}

async fn binary() -> &'static Path {
    spawn_blocking(nats_server_binary).await.expect("looking for nats-server")
}

/// A running broker; it ends, with its folder, when this is dropped.
#[derive(Debug)]
pub struct TestBroker {
    /// The server, to be killed, stopped or restarted.
    pub server: Server,
    _folder: TempDir,
}

impl TestBroker {
    /// A broker without accounts.
    pub async fn start() -> TestBroker {
        TestBroker::with(|_| {}).await
    }

    /// A broker with a changed set of options: `extra_config` for users and accounts, `config` for a file, `max_payload`.
    /// What is stored is on the disk when the broker says so, unless the change says otherwise.
    pub async fn with(change: impl FnOnce(&mut Options)) -> TestBroker {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut options = Options::new(binary().await, folder.path().join("nats"));
        options.sync_always = true;
        options.ready_within = SOON;
        change(&mut options);
        let server = Server::start(options).await.unwrap_or_else(|error| panic!("{error}: {error:?}"));
        TestBroker { server, _folder: folder }
    }

    /// Its address.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// A connection of the test's own, without credentials.
    pub async fn client(&self) -> Broker {
        self.connect(Access::Open, None).await
    }

    /// A connection as one of the broker's users; `identity` names the inbox that its rights allow.
    pub async fn connect(&self, access: Access, identity: Option<&str>) -> Broker {
        let identity = identity.map(str::to_owned);
        let options = ConnectOptions { access, identity, keep_trying: false, ..open_to(vec![self.url()]) };
        Broker::connect(&options).await.unwrap_or_else(|error| panic!("{error}; {}", self.server.log_tail(10)))
    }
}

/// How to connect without credentials and for good: through whatever happens to the broker.
pub fn open_to(servers: Vec<String>) -> ConnectOptions {
    ConnectOptions {
        servers,
        access: Access::Open,
        tls_ca: None,
        insecure: false,
        name: "test".to_owned(),
        identity: None,
        names: Names::default(),
        api_prefix: None,
        keep_trying: true,
    }
}
