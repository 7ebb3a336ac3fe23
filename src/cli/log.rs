//! Where the log goes: to stderr, or, where that is the system's journal anyway, there with its fields.
//!
//! Owns nothing but that choice. `EDGEWARD_LOG` says what is logged.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What the fields are called in the journal: `journalctl EDGEWARD_NODE=ship1`.
const FIELDS: &str = "EDGEWARD";

/// Begins to log; `default` is what `EDGEWARD_LOG` says where it says nothing.
pub fn init(default: &str) {
    let filter = EnvFilter::try_from_env("EDGEWARD_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    if let Some(journald) = journald() {
        return tracing_subscriber::registry().with(filter).with(journald).init();
    }
    // In a log file, colours are noise.
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
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
