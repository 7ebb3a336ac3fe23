//! When a server is ready: it has written its ports file and greets on the port named there.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// How long a greeting may take; it is the first thing that a server sends.
const ANSWER: Duration = Duration::from_secs(1);
/// A greeting is one line of about 500 bytes; a longer one is not from a nats-server.
const GREETING_LIMIT: u64 = 64 * 1024;

/// Waits until a server greets on the port named in its ports file, with JetStream on; the port.
pub async fn port(ports: &Path, poll: Duration) -> u16 {
    loop {
        if let Some(port) = listening(ports)
            && timeout(ANSWER, greeting(port)).await.is_ok_and(|greeting| greeting.is_ok())
        {
            return port;
        }
        sleep(poll).await;
    }
}

/// The port in the ports file, once that is written whole.
fn listening(ports: &Path) -> Option<u16> {
    #[derive(Deserialize)]
    struct Ports {
        nats: Vec<String>,
    }
    let file = fs::read_dir(ports).ok()?.next()?.ok()?.path();
    let ports: Ports = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    ports.nats.first()?.rsplit_once(':')?.1.parse().ok()
}

/// Whether a server with JetStream greets on the port.
pub async fn greeting(port: u16) -> io::Result<()> {
    #[derive(Deserialize)]
    struct Info {
        #[serde(default)]
        jetstream: bool,
    }
    let stream = TcpStream::connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).await?;
    let mut line = String::new();
    BufReader::new(stream.take(GREETING_LIMIT)).read_line(&mut line).await?;
    let info: Info = serde_json::from_str(line.strip_prefix("INFO ").unwrap_or_default())?;
    info.jetstream.then_some(()).ok_or_else(|| io::ErrorKind::NotConnected.into())
}
