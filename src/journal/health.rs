//! Whether the journal can be written now.
//!
//! Owns what the log says about it: once when it begins, once a minute while it lasts, once when it is over. Never
//! decides what to do about it; who waits for a commit gets the error itself.

use super::error::JournalError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often a journal that stays unwritable is told of in the log.
const REMIND: Duration = Duration::from_secs(60);

/// How a journal is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Condition {
    /// The last write was kept.
    #[default]
    Good,
    /// Writes fail: the disk is full, read-only or failing.
    Failing {
        /// Since when.
        since: Instant,
        /// What SQLite says.
        reason: String,
    },
    /// What is in it cannot be trusted any more; the agent must end.
    Damaged(String),
}

/// The writer's account of its commits.
pub(super) struct Health {
    condition: watch::Sender<Condition>,
    failures: AtomicU64,
}

impl Health {
    pub(super) fn new() -> Health {
        Health { condition: watch::Sender::new(Condition::Good), failures: AtomicU64::new(0) }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    /// How many commits have failed.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// A commit was kept.
    pub(super) fn good(&self) {
        self.condition.send_if_modified(|condition| match condition {
            Condition::Failing { since, .. } => {
                tracing::info!(after = ?since.elapsed(), "the journal can be written again");
                *condition = Condition::Good;
                true
            }
            Condition::Good | Condition::Damaged(_) => false,
        });
    }

    /// A request failed.
    pub(super) fn failed(&self, error: &JournalError, told: &mut Option<Instant>) {
        match error {
            JournalError::Damaged(reason) => self.damaged(reason),
            JournalError::Unwritable(reason) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                let now = Instant::now();
                if told.is_none_or(|at| now - at >= REMIND) {
                    *told = Some(now);
                    tracing::error!(%error, "nothing is taken or finished until it can be written; trying again");
                }
                self.condition.send_if_modified(|condition| {
                    let begins = *condition == Condition::Good;
                    if begins {
                        *condition = Condition::Failing { since: now, reason: reason.clone() };
                    }
                    begins
                });
            }
            // A request that was wrong in itself says nothing about the journal.
            _ => {}
        }
    }

    /// The file cannot be trusted.
    pub(super) fn damaged(&self, reason: &str) {
        self.condition.send_if_modified(|condition| {
            let begins = !matches!(condition, Condition::Damaged(_));
            if begins {
                tracing::error!(reason, "the journal is damaged");
                *condition = Condition::Damaged(reason.to_owned());
            }
            begins
        });
    }
}
