//! Where the log goes: to stderr, or, where that is the system's journal anyway, there with its fields.
//!
//! Owns nothing but that choice. `EDGEWARD_LOG` says what is logged.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What the fields are called in the journal: `journalctl EDGEWARD_NODE=ship1`.
const FIELDS: &str = "EDGEWARD";

/// Begins to log; `default` is what `EDGEWARD_LOG` says where it says nothing, or nothing that can be read.
pub fn init(default: &str) {
    let told = std::env::var("EDGEWARD_LOG").ok().filter(|told| !told.is_empty());
    let read = told.as_deref().unwrap_or(default).parse::<Targets>();
    let bad = read.as_ref().err().map(ToString::to_string);
    let filter = read.unwrap_or_else(|_| default.parse().unwrap_or_default());
    let log = tracing_subscriber::registry().with(filter);
    match journald() {
        Some(journald) => log.with(journald).init(),
        None => {
            // In a log file, colours are noise.
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            log.with(fmt::layer().with_ansi(colours).with_writer(std::io::stderr)).init();
        }
    }
    if let Some(bad) = bad {
        tracing::warn!("EDGEWARD_LOG is `level` or `target=level`, with commas between: {bad}");
    }
}

/// The journal, where stderr leads to it and it can be reached.
fn journald() -> Option<tracing_journald::Layer> {
    let stderr = rustix::fs::fstat(std::io::stderr().as_fd()).ok()?;
    let told = std::env::var("JOURNAL_STREAM").ok()?;
    if !is_stream(&told, stderr.st_dev, stderr.st_ino) {
        return None;
    }
    let layer = tracing_journald::layer().ok()?;
    Some(layer.with_field_prefix(Some(FIELDS.to_owned())).with_syslog_identifier("edgeward".to_owned()))
}

/// True where `JOURNAL_STREAM` (`systemd.exec(5)`) names this file: a child of a service may have another stderr.
fn is_stream(told: &str, device: u64, inode: u64) -> bool {
    told == format!("{device}:{inode}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_stream_is_the_journal() {
        assert!(is_stream("9:1234", 9, 1234));
        for other in ["", "9", "9:123", "8:1234", "9:1234 ", "9:1234:5"] {
            assert!(!is_stream(other, 9, 1234), "{other}");
        }
    }
}
