//! A TCP proxy in front of the broker: a link that can be cut, stalled and slowed, and that counts what crosses it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// What the link does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Everything passes.
    Open,
    /// Connections are closed, and new ones as soon as they are made.
    Cut,
    /// Half open: connections stay, nothing passes in either direction. What was sent meanwhile passes afterwards, as it
    /// does when TCP sends it again.
    Stalled,
    /// Half open in one direction: what is sent towards the broker passes, its answers wait until the link heals.
    Deaf,
    /// So many bytes per second in each direction and connection.
    Slow(u32),
}

impl Link {
    fn passes_up(&self) -> bool {
        *self != Link::Stalled
    }

    fn passes_down(&self) -> bool {
        !matches!(self, Link::Stalled | Link::Deaf)
    }
}

/// Bytes that crossed the link since the proxy started.
#[derive(Debug, Default)]
struct Counters {
    up: AtomicU64,
    down: AtomicU64,
    connections: AtomicU64,
}

/// The proxy; it closes all its connections when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    link: watch::Sender<Link>,
    counters: Arc<Counters>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A proxy for a port on this machine, on a free port.
    pub async fn start(port: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (link, state) = watch::channel(Link::Open);
        let counters = Arc::new(Counters::default());
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let accepting = tokio::spawn(accept(listener, target, state, counters.clone()));
        Proxy { address, link, counters, accepting }
    }

    /// The address to use instead of the broker's.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the link, for the connections that are there and for new ones.
    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }

    /// Bytes towards the broker.
    pub fn up(&self) -> u64 {
        self.counters.up.load(Ordering::SeqCst)
    }

    /// Bytes from the broker.
    pub fn down(&self) -> u64 {
        self.counters.down.load(Ordering::SeqCst)
    }

    /// Connections made so far, those refused by a cut not counted.
    pub fn connections(&self) -> u64 {
        self.counters.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, link: watch::Receiver<Link>, counters: Arc<Counters>) {
    // Aborted, with every connection, together with this task.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        if *link.borrow() != Link::Cut {
            connections.spawn(carry(client, target, link.clone(), counters.clone()));
        }
    }
}

/// One connection, until one side closes it or the link is cut.
async fn carry(client: TcpStream, target: SocketAddr, link: watch::Receiver<Link>, counters: Arc<Counters>) {
    let Ok(broker) = TcpStream::connect(target).await else { return };
    // The proxy is not to add delays of its own.
    let _ = (client.set_nodelay(true), broker.set_nodelay(true));
    counters.connections.fetch_add(1, Ordering::SeqCst);
    let (from_client, to_client) = client.into_split();
    let (from_broker, to_broker) = broker.into_split();
    let mut cut = link.clone();
    tokio::select! {
        () = pump(from_client, to_broker, link.clone(), Link::passes_up, &counters.up) => {}
        () = pump(from_broker, to_client, link, Link::passes_down, &counters.down) => {}
        _ = cut.wait_for(|link| *link == Link::Cut) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut link: watch::Receiver<Link>,
    passes: fn(&Link) -> bool,
    counter: &AtomicU64,
) {
    /// A slow link passes its share of a second in so many pieces.
    const PIECES: u32 = 20;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(now) = link.wait_for(passes).await.map(|link| *link) else { return };
        let room = match now {
            Link::Slow(rate) => buffer.len().min((rate / PIECES).max(1) as usize),
            _ => buffer.len(),
        };
        let Ok(count @ 1..) = from.read(&mut buffer[..room]).await else { return };
        // A stall that began during the read holds this piece, too.
        if link.wait_for(passes).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        counter.fetch_add(count as u64, Ordering::SeqCst);
        if let Link::Slow(rate) = now {
            let pause = Duration::from_secs_f64(count as f64 / f64::from(rate.max(1)));
            // Ends early only when the link is no longer slow.
            let _ = timeout(pause, link.wait_for(|link| *link != now)).await;
        }
    }
}
