//! What the broker does not let us do. It tells that apart from the request, which only times out.
//!
//! Owns remembering refusals and putting them together with the request that they are about. Never decides what follows.

use super::connect::Broker;
use super::error::BrokerError;
use std::collections::VecDeque;

/// How many refused publishes are remembered: more than one call publishes at once.
const KEPT: usize = 64;

/// The refusals of one connection, newest last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Denials {
    publishes: VecDeque<(u64, String)>,
    count: u64,
    inbox: Option<String>,
}

impl Denials {
    /// Takes note of an error that the broker sent; others are left alone.
    pub(super) fn note(&mut self, error: &str) {
        if let Some(subject) = subject_of(error, "Publish") {
            if self.publishes.len() == KEPT {
                self.publishes.pop_front();
            }
            self.count += 1;
            self.publishes.push_back((self.count, subject.to_owned()));
        }
        if let Some(inbox) = subject_of(error, "Subscription").filter(|subject| subject.starts_with("_INBOX")) {
            self.inbox = inbox.split('.').next().map(str::to_owned);
        }
    }

    /// Another connection may be another user's, or the rights have been changed.
    pub(super) fn reconnected(&mut self) {
        self.inbox = None;
    }

    fn has(&self, subject: &str, after: u64) -> bool {
        self.publishes.iter().any(|(number, denied)| *number > after && denied == subject)
    }
}

/// The subject in the broker's `Permissions Violation for Publish to "…"`.
fn subject_of<'a>(error: &'a str, verb: &str) -> Option<&'a str> {
    let (_, rest) = error.split_once(&format!("ermissions Violation for {verb} to \""))?;
    rest.split('"').next()
}

impl Broker {
    /// A mark before a request: refusals from before it are not about it.
    pub(super) fn denials(&self) -> u64 {
        self.link().borrow().denials.count
    }

    /// Ends when the broker says that we may not publish to this subject.
    pub(super) async fn publish_denied(&self, subject: &str, after: u64) {
        let mut link = self.link();
        if link.wait_for(|link| link.denials.has(subject, after)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Ends when the broker says that we may not ask this, or not hear the answer.
    pub(super) async fn request_denied(&self, subject: &str, after: u64) -> BrokerError {
        let mut link = self.link();
        let told = link.wait_for(|link| link.denials.has(subject, after) || link.denials.inbox.is_some()).await;
        let Ok(inbox) = told.map(|link| link.denials.inbox.clone()) else { return std::future::pending().await };
        match inbox {
            Some(inbox) => BrokerError::DeniedInbox { inbox },
            None => BrokerError::Denied { subject: subject.to_owned() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_subject_is_remembered_for_the_requests_that_follow() {
        let mut denials = Denials::default();
        for n in 0..100 {
            denials.note(&format!("nats: Permissions Violation for Publish to \"fleet.msg.n{n}.command.ops.shell\""));
        }
        assert_eq!(denials.publishes.len(), KEPT);
        assert!(denials.has("fleet.msg.n99.command.ops.shell", 99));
        assert!(!denials.has("fleet.msg.n99.command.ops.shell", 100), "an earlier request's");
        denials.note("nats: authorization violation");
        assert_eq!(denials.count, 100);
    }

    #[test]
    fn an_inbox_is_refused_until_the_next_connection() {
        let mut denials = Denials::default();
        denials.note("nats: Permissions Violation for Subscription to \"fleet.stored.ack.>\"");
        assert_eq!(denials.inbox, None);
        denials.note("nats: Permissions Violation for Subscription to \"_INBOX_bob.wsP7rvQKnn.*\"");
        assert_eq!(denials.inbox.as_deref(), Some("_INBOX_bob"));
        denials.reconnected();
        assert_eq!(denials.inbox, None);
    }
}
