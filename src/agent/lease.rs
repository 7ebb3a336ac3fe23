//! The lease on the node's name: `status.<node>`, held by whoever wrote it last.
//!
//! Owns the decision whether this run may write over the status that is there, and what the journal keeps for it: runs and
//! beats are kept before they are written, so what the journal does not know somebody else has written: the agent of a
//! copied disk. Never reads or writes the status itself.

use crate::model::id::JournalId;
use crate::model::node::Status;
use std::fmt;
use std::str::FromStr;
use tokio::sync::watch;
use uuid::Uuid;

/// Whether this run holds the lease.
#[derive(Debug)]
pub(crate) struct Lease {
    held: watch::Sender<Option<u64>>,
}

impl Default for Lease {
    fn default() -> Lease {
        Lease { held: watch::Sender::new(None) }
    }
}

impl Lease {
    /// The sequence of the status by which it is held.
    pub(crate) fn revision(&self) -> Option<u64> {
        *self.held.borrow()
    }

    /// The same, to look at and to wait for.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<u64>> {
        self.held.subscribe()
    }

    /// A status with this sequence holds it.
    pub(crate) fn hold(&self, revision: u64) {
        self.held.send_replace(Some(revision));
    }

    /// It is held no more.
    pub(crate) fn let_go(&self) {
        self.held.send_replace(None);
    }

    /// Waits until it is held.
    pub(crate) async fn held(&self) {
        self.wait(true).await;
    }

    /// Waits until it is not held.
    pub(crate) async fn lost(&self) {
        self.wait(false).await;
    }

    async fn wait(&self, held: bool) {
        let mut state = self.held.subscribe();
        // The sender lives as long as this does.
        if state.wait_for(|state| state.is_some() == held).await.is_err() {
            std::future::pending().await
        }
    }
}

/// What the journal keeps: the last beat's number, the run that wrote it, and the run whose status it wrote over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) beat: u64,
    pub(crate) run: Option<Uuid>,
    pub(crate) before: Option<Uuid>,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.beat)?;
        [self.run, self.before].into_iter().flatten().try_for_each(|run| write!(f, " {run}"))
    }
}

impl FromStr for Kept {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Kept, Self::Err> {
        let mut words = text.split(' ');
        let beat = words.next().unwrap_or_default().parse()?;
        let mut run = || words.next().and_then(|word| word.parse().ok());
        Ok(Kept { beat, run: run(), before: run() })
    }
}

/// How the status that is there stands to a run that wants to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is free to be written over: the node's own past, one that stopped, or another journal's, whose place the hub has
    /// given to this one.
    Free,
    /// Another run of this journal may be at work.
    Taken,
}

/// Judges the status that is there.
pub(crate) fn judge(status: Option<&Status>, kept: &Kept, journal: JournalId) -> Claim {
    let Some(status) = status else { return Claim::Free };
    let own_run = match kept.run {
        // Kept by a release that did not note runs.
        None => true,
        Some(_) => status.run.is_some() && [kept.run, kept.before].contains(&status.run),
    };
    // A beat is kept before it is written; a disk that lost its last write is one behind.
    let own = own_run && status.beat.is_none_or(|beat| beat <= kept.beat + 1);
    let free = own || status.stopped == Some(true) || status.journal != Some(journal);
    if free { Claim::Free } else { Claim::Taken }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(journal: JournalId, run: Uuid, beat: u64) -> Status {
        let text = serde_json::json!({ "v": 1, "node": "n1", "journal": journal, "run": run, "beat": beat });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn what_is_kept_reads_back_also_from_older_journals() {
        let (run, before) = (Uuid::from_u128(1), Uuid::from_u128(2));
        for kept in [
            Kept { beat: 7, run: Some(run), before: Some(before) },
            Kept { beat: 7, run: Some(run), before: None },
            Kept { beat: 7, run: None, before: None },
        ] {
            assert_eq!(kept.to_string().parse(), Ok(kept));
        }
        assert!("".parse::<Kept>().is_err());
    }

    #[test]
    fn the_past_of_this_journal_is_free_and_its_copys_present_is_not() {
        let (journal, old, new) = (JournalId::fresh(), Uuid::from_u128(1), Uuid::from_u128(2));
        let kept = Kept { beat: 7, run: Some(new), before: Some(old) };
        let judged = |status: &Status| judge(Some(status), &kept, journal);
        assert_eq!(judge(None, &kept, journal), Claim::Free);
        assert_eq!(judged(&status(journal, old, 5)), Claim::Free, "the new run's first beat was not stored");
        assert_eq!(judged(&status(journal, new, 7)), Claim::Free);
        assert_eq!(judged(&status(journal, new, 8)), Claim::Free, "the journal lost its last write");
        assert_eq!(judged(&status(journal, new, 9)), Claim::Taken, "the disk was copied after beat 7");
        assert_eq!(judged(&status(journal, Uuid::from_u128(3), 7)), Claim::Taken);
        assert_eq!(judged(&status(JournalId::fresh(), Uuid::from_u128(3), 9)), Claim::Free, "the hub replaced it");
        let stopped = Status { stopped: Some(true), ..status(journal, Uuid::from_u128(3), 9) };
        assert_eq!(judged(&stopped), Claim::Free);
    }

    #[tokio::test]
    async fn it_is_waited_for_both_ways() {
        let lease = Lease::default();
        lease.lost().await;
        lease.hold(4);
        lease.held().await;
        assert_eq!(lease.revision(), Some(4));
        lease.let_go();
        lease.lost().await;
    }
}
