//! Node state on the broker: `spec` (the hub's word), `hello` (a journal asking in), `status` (the node's word).
//!
//! Owns the JSON shapes: unknown fields are ignored, missing ones are null, so that releases may differ. Never reads or
//! writes the bucket.

use super::id::{JournalId, StreamSeq};
use super::message::StreamKind;
use super::name::NodeName;
use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// One value per message stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PerStream<T> {
    /// For `FLEET_COMMANDS`.
    pub commands: T,
    /// For `FLEET_EVENTS`.
    pub events: T,
}

impl<T> PerStream<T> {
    /// The value of one stream.
    pub fn get(&self, stream: StreamKind) -> &T {
        match stream {
            StreamKind::Commands => &self.commands,
            StreamKind::Events => &self.events,
        }
    }

    /// The value of one stream, to change.
    pub fn get_mut(&mut self, stream: StreamKind) -> &mut T {
        match stream {
            StreamKind::Commands => &mut self.commands,
            StreamKind::Events => &mut self.events,
        }
    }
}

/// Where a node's messages begin, per stream; `null` where that is not decided yet.
pub type Starts = PerStream<Option<StreamSeq>>;

/// A node's membership in a group: between these marks, by stream sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The group.
    pub name: String,
    /// The join's sequences.
    #[serde(default)]
    pub join: Starts,
    /// The leave's sequences.
    #[serde(default)]
    pub leave: Starts,
    /// The marker's id while the join is being made.
    #[serde(default)]
    pub pending: Option<Uuid>,
    /// The id of the word that the node is to read again, while that has to be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<Uuid>,
    /// From where on it is, in each stream that is concerned.
    #[serde(default, skip_serializing_if = "is_nowhere")]
    pub again_from: Starts,
    /// Where that was said last.
    #[serde(default, skip_serializing_if = "is_nowhere")]
    pub again_at: Starts,
}

fn is_nowhere(at: &Starts) -> bool {
    *at == Starts::default()
}

/// `spec.<node>`: what the hub decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The format: 1.
    pub v: u32,
    /// The node.
    pub node: NodeName,
    /// The journal that is this node, once one has come.
    #[serde(default)]
    pub journal: Option<JournalId>,
    /// Where its messages begin.
    #[serde(default)]
    pub start: Starts,
    /// How long the streams keep messages, in seconds.
    #[serde(default)]
    pub retention_s: Option<u64>,
    /// Its memberships, the ended ones too.
    #[serde(default)]
    pub groups: Vec<Membership>,
    /// The groups that an admin asks for.
    #[serde(default)]
    pub want_groups: Option<Vec<String>>,
    /// A replaced journal whose messages are being closed.
    #[serde(default)]
    pub closing: Option<Closing>,
}

/// A journal that was replaced before all of its messages had a terminal record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    /// The journal.
    #[serde(default)]
    pub journal: Option<JournalId>,
    /// Where its messages began.
    #[serde(default)]
    pub start: Starts,
    /// The last sequences that it may have taken.
    #[serde(default)]
    pub taken: Starts,
    /// The first sequences that are no longer its own.
    #[serde(default)]
    pub until: Starts,
}

impl Closing {
    /// True where this sequence is one of those that are being closed.
    pub fn covers(&self, stream: StreamKind, seq: StreamSeq) -> bool {
        match (self.start.get(stream), self.until.get(stream)) {
            (Some(start), Some(until)) => (*start..*until).contains(&seq),
            _ => false,
        }
    }

    /// True where the journal may have taken the message with this sequence.
    pub fn may_have_taken(&self, stream: StreamKind, seq: StreamSeq) -> bool {
        self.taken.get(stream).is_some_and(|last| seq <= last)
    }
}

impl Spec {
    /// The first word about a new node: nothing decided.
    pub fn new(node: NodeName) -> Spec {
        Spec {
            v: 1,
            node,
            journal: None,
            start: Starts::default(),
            retention_s: None,
            groups: Vec::new(),
            want_groups: None,
            closing: None,
        }
    }
}

/// `hello.<node>`: a journal asks to be this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The format: 1.
    pub v: u32,
    /// The node.
    pub node: NodeName,
    /// The journal.
    pub journal: JournalId,
    /// When the agent started, by its own clock.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
}

/// Facts about the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostFacts {
    /// The host's own name.
    pub name: Option<String>,
    /// The operating system, as `uname -sr` says it.
    pub os: Option<String>,
    /// The machine type, as `uname -m` says it.
    pub arch: Option<String>,
    /// Seconds since the host booted.
    pub uptime_s: Option<u64>,
}

/// A process (one method) on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFacts {
    /// The method.
    pub name: String,
    /// `running` or `stopped`.
    pub state: String,
    /// Messages that it runs now.
    #[serde(default)]
    pub running: u32,
    /// Messages that wait for it, in all lanes; an older release does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u64>,
    /// Who stopped it, or why it was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_by: Option<String>,
    /// When it was last stopped, started or restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<Timestamp>,
    /// How often it was restarted.
    #[serde(default)]
    pub restarts: u64,
    /// How many tries have failed within [`FAILURE_WINDOW`].
    #[serde(default)]
    pub failures: u64,
    /// Its last failure: `<code>: <message>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error_at: Option<Timestamp>,
}

impl ProcessFacts {
    /// A process that was never stopped and never failed.
    pub fn new(name: &str, is_stopped: bool, running: u32, waiting: u64) -> ProcessFacts {
        ProcessFacts {
            name: name.to_owned(),
            state: if is_stopped { "stopped" } else { "running" }.to_owned(),
            running,
            waiting: Some(waiting),
            stopped_by: None,
            changed_at: None,
            restarts: 0,
            failures: 0,
            last_error: None,
            last_error_at: None,
        }
    }
}

/// How far back a process's failures are counted.
pub const FAILURE_WINDOW: Duration = Duration::from_secs(600);

/// How a node's link was when that last changed; kept in its journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkNote {
    /// True while connected.
    pub up: bool,
    /// Since when, by the node's own clock.
    pub since: Timestamp,
    /// What went wrong last.
    #[serde(default)]
    pub error: Option<String>,
    /// False where the link is up and this journal is not the node: the hub has not taken it in, or another is at work.
    #[serde(default = "yes")]
    pub in_contact: bool,
}

/// Older releases did not keep it.
fn yes() -> bool {
    true
}

/// A lane with something in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneFacts {
    /// `<kind>.<from>.<method>[.<lane>]`.
    pub lane: String,
    /// Messages queued and running.
    pub depth: u64,
    /// The stored sequence at its head.
    #[serde(default)]
    pub head: Option<StreamSeq>,
    /// When the head was stored.
    #[serde(default)]
    pub head_stored_at: Option<Timestamp>,
    /// True while the head runs.
    #[serde(default)]
    pub running: bool,
}

/// `status.<node>`: what the node says of itself, each beat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The format: 1.
    pub v: u32,
    /// The node.
    pub node: NodeName,
    /// Its journal.
    #[serde(default)]
    pub journal: Option<JournalId>,
    /// This run of the agent.
    #[serde(default)]
    pub run: Option<Uuid>,
    /// Counts up with each write; the journal stores it first.
    #[serde(default)]
    pub beat: Option<u64>,
    /// When it was written, by the broker's clock as the node knows it.
    #[serde(default)]
    pub at: Option<Timestamp>,
    /// Seconds until the next one at the latest.
    #[serde(default)]
    pub interval_s: Option<f64>,
    /// True where the agent stopped cleanly.
    #[serde(default)]
    pub stopped: Option<bool>,
    /// When the host booted.
    #[serde(default)]
    pub boot_at: Option<Timestamp>,
    /// When the agent started.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// The last sequences taken.
    #[serde(default)]
    pub position: Starts,
    /// The agent's version.
    #[serde(default)]
    pub version: Option<String>,
    /// The host.
    #[serde(default)]
    pub host: Option<HostFacts>,
    /// Labels from the node's config.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
    /// Its processes.
    #[serde(default)]
    pub processes: Option<Vec<ProcessFacts>>,
    /// The fullest lanes, 32 at most.
    #[serde(default)]
    pub lanes: Option<Vec<LaneFacts>>,
    /// Messages in all its lanes, running ones too, also in those that `lanes` has no room for.
    #[serde(default)]
    pub depth: Option<u64>,
    /// Rows in the journal.
    #[serde(default)]
    pub journal_rows: Option<u64>,
    /// Entries waiting to be published.
    #[serde(default)]
    pub outbox: Option<u64>,
    /// Why the journal cannot be written, while it cannot: nothing is taken or finished meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_error: Option<String>,
    /// The broker's clock minus the node's own, in milliseconds.
    #[serde(default)]
    pub clock_offset_ms: Option<i64>,
    /// True where it runs without credentials off loopback.
    #[serde(default)]
    pub insecure: Option<bool>,
}

/// Whether a node can be counted on to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contact {
    /// Its status is younger than two beats.
    InContact,
    /// It said that it stopped.
    Stopped,
    /// Silent for two beats.
    Silent,
    /// Never seen.
    Never,
}

impl Status {
    /// The node's contact at `now` (by the broker's clock), its status having been stored at `stored_at`.
    pub fn contact(&self, stored_at: Timestamp, now: Timestamp) -> Contact {
        match self.stopped {
            Some(true) => Contact::Stopped,
            _ if now.since(stored_at) <= self.two_beats() => Contact::InContact,
            _ => Contact::Silent,
        }
    }

    /// Messages in the lanes that it names; `None` where it names none.
    pub fn depth_told(&self) -> Option<u64> {
        Some(self.lanes.as_ref()?.iter().fold(0, |sum, lane| lane.depth.saturating_add(sum)))
    }

    /// How long it may stand unchanged before its writer counts as gone: two beats, and a little for a beat's jitter and its
    /// way to the reader. What it says of the interval is the node's word, and may be any number.
    pub fn two_beats(&self) -> Duration {
        const DEFAULT: Duration = Duration::from_secs(30);
        let interval = self.interval_s.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or(DEFAULT);
        interval.saturating_mul(2).saturating_add(Duration::from_millis(500))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_older_and_newer_releases_are_read() {
        let status: Status = serde_json::from_str(r#"{"v":1,"node":"ship1","mood":"good"}"#).unwrap();
        assert_eq!(status.position.commands, None);
        let spec: Spec = serde_json::from_str(r#"{"v":2,"node":"ship1","start":{"commands":4}}"#).unwrap();
        assert_eq!(spec.start, PerStream { commands: Some(StreamSeq(4)), events: None });
        assert!(serde_json::from_str::<Spec>(r#"{"v":1,"node":"a.b"}"#).is_err());
    }

    #[test]
    fn contact_is_judged_by_the_interval_in_the_status() {
        let mut status: Status = serde_json::from_str(r#"{"v":1,"node":"ship1","interval_s":1.0}"#).unwrap();
        let stored = Timestamp::from_nanos(0);
        assert_eq!(status.contact(stored, stored.plus(Duration::from_secs(2))), Contact::InContact);
        assert_eq!(status.contact(stored, stored.plus(Duration::from_secs(3))), Contact::Silent);
        status.stopped = Some(true);
        assert_eq!(status.contact(stored, stored), Contact::Stopped);
    }

    #[test]
    fn an_interval_may_be_any_number() {
        for (interval, beats) in
            [("1e19", Duration::MAX), ("-1", Duration::from_millis(60_500)), ("0", Duration::from_millis(500))]
        {
            let status = format!(r#"{{"v":1,"node":"ship1","interval_s":{interval}}}"#);
            let status: Status = serde_json::from_str(&status).unwrap();
            assert_eq!(status.two_beats(), beats, "{interval}");
        }
    }
}
