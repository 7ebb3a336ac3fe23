//! Whoever looks on, and when he has seen enough: by Ctrl-C, or because the reader of stdout has gone (`| head -1`).
//!
//! Owns both, so that what follows, watches or waits ends at once and not with its next line. Never cancels a message.

use super::error::CliError;
use rustix::fs::{FileType, fstat};
use std::io;
use std::os::fd::AsFd;
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Who looks on.
pub(super) struct Onlooker {
    interrupts: Signal,
    /// stdout, where that is a pipe: the reader of a file never goes, and a terminal that does says so by a signal.
    stdout: Option<pipe::Sender>,
}

impl Onlooker {
    /// From now on Ctrl-C does not end the process.
    pub(super) fn new() -> Result<Onlooker, CliError> {
        Ok(Onlooker { interrupts: signal(SignalKind::interrupt())?, stdout: watched(io::stdout()) })
    }

    /// Returns at Ctrl-C. A reader that has gone is the error of a write that nobody reads: a quiet end. Safe to drop.
    pub(super) async fn has_seen_enough(&mut self) -> Result<(), CliError> {
        tokio::select! {
            _ = self.interrupts.recv() => Ok(()),
            gone = reader_gone(self.stdout.as_ref()) => Err(gone.into()),
        }
    }
}

/// A pipe, to be waited for. Whoever writes to it goes on as before: nothing is set on what is shared with others.
fn watched(end: impl AsFd) -> Option<pipe::Sender> {
    let end = end.as_fd();
    let is_pipe = fstat(end).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    let end = is_pipe.then(|| end.try_clone_to_owned().ok()).flatten()?;
    pipe::Sender::from_owned_fd_unchecked(end).ok()
}

/// Returns when nobody reads it any more.
async fn reader_gone(end: Option<&pipe::Sender>) -> io::Error {
    match end {
        Some(end) => match end.ready(Interest::ERROR).await {
            Ok(_) => io::ErrorKind::BrokenPipe.into(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::io::{Read, Write};
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_reader_that_goes_is_noticed_and_one_that_reads_is_left_alone() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let end = watched(&writer);
        for _ in 0..3 {
            writer.write_all(b"x").unwrap();
            reader.read_exact(&mut [0]).unwrap();
            tokio::task::yield_now().await;
            assert!(reader_gone(end.as_ref()).now_or_never().is_none());
        }
        drop(reader);
        let gone = timeout(Duration::from_secs(20), reader_gone(end.as_ref())).await.unwrap();
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
        assert!(watched(tempfile::tempfile().unwrap()).is_none());
    }
}
