//! A folder whose files are waited for: who waits is woken when one is made, moved in, or closed after writing.
//!
//! Owns the kernel's watch. Never says what has changed, and never promises to see everything: file systems of other
//! machines tell of nothing, a watch may not be had, and a writer that keeps its file open is not heard. Whoever waits
//! here looks now and then as well.

use rustix::io::{Errno, read};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::io::unix::AsyncFd;

/// A watched folder.
pub(crate) struct Watch(Option<AsyncFd<OwnedFd>>);

impl Watch {
    /// Watches the files of a folder, not those of folders in it.
    pub(crate) fn new(folder: &Path) -> Watch {
        let watch = watch(folder);
        if let Err(error) = &watch {
            tracing::debug!(folder = %folder.display(), %error, "not watched");
        }
        Watch(watch.ok())
    }

    /// Waits until something may have changed since the last call. Cancel safe.
    pub(crate) async fn changed(&self) {
        let Some(events) = &self.0 else { return std::future::pending().await };
        match events.readable().await {
            Ok(mut ready) => {
                drop(ready.try_io(|events| drain(events.get_ref())));
            }
            // The runtime ends.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(target_os = "linux")]
#[expect(
    deprecated,
    reason = "unsound only for types that may change their descriptor; an OwnedFd never does, \
              and what replaces it is unsafe"
)]
fn watch(folder: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    use tokio::io::Interest;
    let events = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    add_watch(&events, folder, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE)?;
    AsyncFd::with_interest(events, Interest::READABLE)
}

#[cfg(not(target_os = "linux"))]
fn watch(_: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Reads all that there is. That it ends with `WouldBlock` is what makes the next wait wait.
fn drain(events: &OwnedFd) -> io::Result<()> {
    // An event is 16 bytes and a name.
    let mut buffer = [0; 1024];
    loop {
        match read(events, &mut buffer) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::fs;
    use std::time::Duration;

    #[tokio::test]
    async fn a_file_that_comes_or_is_written_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("old"), "x").unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        let watch = Watch::new(dir.path());
        let told = async || tokio::time::timeout(Duration::from_secs(30), watch.changed()).await.is_ok();
        assert!(watch.changed().now_or_never().is_none(), "nothing has changed");
        fs::write(dir.path().join("new"), "x").unwrap();
        assert!(told().await);
        fs::rename(dir.path().join("new"), dir.path().join("old")).unwrap();
        assert!(told().await);
        fs::write(dir.path().join("old"), "y").unwrap();
        assert!(told().await);
        fs::write(dir.path().join("folder/inner"), "y").unwrap();
        fs::remove_file(dir.path().join("old")).unwrap();
        assert!(watch.changed().now_or_never().is_none(), "neither is waited for");
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_watched_tells_nothing() {
        let watch = Watch::new(Path::new("/nowhere/at/all"));
        assert!(watch.changed().now_or_never().is_none());
    }
}
