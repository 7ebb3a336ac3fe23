//! The runner's own process: it listens, starts what it is asked to, and stays until nobody needs it.
//!
//! One thread. Each connection is a task that answers its agent (`guest`), each run a task that sees to its end (`core`).
//!
//! Ends by itself when no agent is connected and nothing runs, and on SIGTERM, which ends all runs first. It decides
//! nothing about messages, and nothing that it is sent can end it.

use super::super::cgroup::Nest;
use super::core::Core;
use super::guest::Guest;
use super::place::Place;
use super::reap::Orphans;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Between two tries to accept where that fails (no descriptors left).
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Why a runner cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another one serves this folder.
    #[error("a runner serves {0} already")]
    Taken(PathBuf),
    /// A file, or the socket, cannot be used.
    #[error("{path} cannot be used")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Orphans do not come here.
    #[error("orphans cannot be adopted")]
    Orphans(#[source] io::Error),
}

/// Whether orphans of the whole process come here; not where other parts of the process have children of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The runner is all that this process is.
    Process,
    /// It is a part of a process that is more.
    Part,
}

/// Serves a folder until nobody needs it, or until `end`, which ends all runs.
///
/// # Errors
/// It cannot begin.
pub async fn serve(place: Place, role: Role, end: CancellationToken) -> Result<(), ServeError> {
    let lock = take_lock(&place)?;
    let address = place.socket().map_err(|source| ServeError::Io { path: place.folder().to_owned(), source })?;
    // Left by one that was killed: we have the lock.
    let _ = fs::remove_file(&address.path);
    place.clear_spares();
    let listener = UnixListener::bind(&address.path)
        .map_err(|source| ServeError::Io { path: place.folder().join("runner.sock"), source })?;
    let orphans = match role {
        Role::Process => Some(Orphans::adopt().map_err(ServeError::Orphans)?),
        Role::Part => None,
    };
    let nest = orphans.as_ref().and_then(|_| Nest::find());
    let core = Arc::new(Core::new(place, nest));
    tracing::debug!(folder = %core.place.folder().display(), "runner");
    tokio::select! {
        () = accept(&core, &listener) => {}
        () = core.idle(&end) => {}
        () = reap(orphans) => {}
    }
    // Before the lock goes: another one binds its own.
    let _ = fs::remove_file(&address.path);
    drop(lock);
    Ok(())
}

async fn reap(orphans: Option<Orphans>) {
    match orphans {
        Some(orphans) => orphans.reap().await,
        None => std::future::pending().await,
    }
}

fn take_lock(place: &Place) -> Result<File, ServeError> {
    let path = place.lock();
    let fault = |source| ServeError::Io { path: path.clone(), source };
    let mut lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(fault)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| ServeError::Taken(place.folder().to_owned()))?;
    lock.set_len(0).map_err(fault)?;
    // For people, and for who has to end it.
    let _ = writeln!(lock, "{}", std::process::id());
    Ok(lock)
}

async fn accept(core: &Arc<Core>, listener: &UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if is_ours(&stream) => {
                let guest = Guest::new(core);
                tokio::spawn(async move {
                    if let Err(error) = guest.serve(stream).await {
                        tracing::debug!(%error, "an agent's connection");
                    }
                });
            }
            Ok(_) => tracing::warn!("another user's connection is refused"),
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// The folder is closed to others; should somebody open it, this still holds.
fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}
