//! How the agent is, for whoever runs it (systemd) and for `edgeward local`: in contact or silent, and since when; how much
//! runs and waits; and whether it gets on at all.
//!
//! It gets on where the dispatcher and the journal answer and no part is stuck. The link has no say in that: an agent
//! without one for days is well. Owns what is said and noted about that; restarts nothing.

use super::dispatch::Handle;
use super::node::Node;
use super::supervisor::Pulses;
use crate::journal::Key;
use crate::model::node::LinkNote;
use crate::model::time::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long dispatcher and journal may take to answer; a disk may be slow.
const ANSWER: Duration = Duration::from_secs(10);

/// How often it is looked where nobody wants to be told.
const LOOK: Duration = Duration::from_secs(30);

/// Who runs the agent, and wants to know how it is.
pub trait Host: Send + Sync + 'static {
    /// It is ready: its journal is open, with or without a link.
    fn ready(&self) {}
    /// How often it wants to hear; `None` for never.
    fn interval(&self) -> Option<Duration> {
        None
    }
    /// How it is, in one line.
    fn says(&self, _status: &str) {}
    /// It gets on.
    fn alive(&self) {}
}

/// Nobody.
impl Host for () {}

/// Looks and tells until `stop`.
pub(super) async fn run(
    node: Arc<Node>,
    dispatcher: Handle,
    host: Arc<dyn Host>,
    pulses: Pulses,
    stop: CancellationToken,
) {
    let vitals = Vitals { node, dispatcher, host, pulses };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = vitals.watch() => {}
    }
}

struct Vitals {
    node: Arc<Node>,
    dispatcher: Handle,
    host: Arc<dyn Host>,
    pulses: Pulses,
}

impl Vitals {
    async fn watch(&self) {
        let (mut link, mut lease) = (self.node.broker.link(), self.node.lease.watch());
        let mut looks = tokio::time::interval(self.host.interval().unwrap_or(LOOK));
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut note, mut contact): (Option<LinkNote>, Option<(bool, Timestamp)>) = (None, None);
        loop {
            tokio::select! {
                changed = link.changed() => if changed.is_err() {
                    // The connection is another part's matter.
                    return std::future::pending().await;
                },
                Ok(()) = lease.changed() => {}
                _ = looks.tick() => {}
            }
            let (up, error) = {
                let link = link.borrow_and_update();
                (link.up, link.last_error.clone())
            };
            let now = Timestamp::local_now();
            let is_in_contact = up && lease.borrow_and_update().is_some();
            self.note_link(&mut note, LinkNote { up, since: now, error, in_contact: is_in_contact }).await;
            let (is_in_contact, since) = *contact.insert(match contact {
                Some((was, since)) if was == is_in_contact => (was, since),
                _ => (is_in_contact, now),
            });
            if self.host.interval().is_some() {
                self.tell(is_in_contact, since).await;
            }
        }
    }

    /// Keeps how the link is, where that has changed.
    async fn note_link(&self, note: &mut Option<LinkNote>, now: LinkNote) {
        let since = note.as_ref().filter(|note| note.up == now.up).map_or(now.since, |note| note.since);
        let now = LinkNote { since, ..now };
        if note.as_ref() == Some(&now) {
            return;
        }
        let kept = note.insert(now);
        let Ok(text) = serde_json::to_string(kept) else { return };
        if let Err(error) = self.node.journal.set_meta_lazily(Key::Link, text).await {
            tracing::debug!(%error, "how the link is was not kept");
        }
    }

    async fn tell(&self, is_in_contact: bool, since: Timestamp) {
        let Ok(facts) = timeout(ANSWER, self.dispatcher.facts()).await else {
            tracing::error!("the dispatcher does not answer");
            return;
        };
        let Ok(kept) = timeout(ANSWER, self.node.journal.outbox_len()).await else {
            tracing::error!("the journal does not answer");
            return;
        };
        let since = since.to_datetime().format("%Y-%m-%d %H:%M:%SZ");
        let contact = if is_in_contact { "in contact since" } else { "silent since" };
        let (running, waiting) = (facts.running, facts.depth.saturating_sub(facts.running));
        let to_tell = kept.map_or_else(|error| format!("; {error}"), |kept| format!(", {kept} to be told"));
        self.host.says(&format!("{}: {contact} {since}; {running} running, {waiting} queued{to_tell}", self.node.name));
        match self.pulses.stuck() {
            Some(part) => tracing::error!(part, "a part of the agent is stuck"),
            None => self.host.alive(),
        }
    }
}
