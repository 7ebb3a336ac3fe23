//! Why an answer will never come: the broker refused the request, which it tells apart from it, or the link that it was
//! sent on is gone. Without this both would only be timeouts.
//!
//! Owns remembering refusals and putting them together with the request that they are about. Never decides what follows.

use super::connect::{Broker, Link};
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

/// Set before a request: what happened earlier is not about it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    denials: u64,
    /// Which coming up of the link carries the request: the one that is, or, while it is down, the next one.
    link: u64,
}

impl Mark {
    fn of(link: &Link) -> Mark {
        Mark { denials: link.denials.count, link: link.times + u64::from(!link.up) }
    }

    /// True where the broker has refused a publish to this subject since.
    pub(super) fn is_denied(self, link: &Link, subject: &str) -> bool {
        link.denials.has(subject, self.denials)
    }

    /// True once the link that carried the request is gone, and an answer with it.
    pub(super) fn is_void(self, link: &Link) -> bool {
        link.times > self.link || (link.times == self.link && !link.up)
    }
}

impl Broker {
    /// A mark before a request.
    pub(super) fn mark(&self) -> Mark {
        Mark::of(&self.link().borrow())
    }

    /// Ends when a publish since `mark` will get no answer: [`BrokerError::Denied`] or [`BrokerError::LinkLost`].
    pub(super) async fn no_word(&self, subject: &str, mark: Mark) -> BrokerError {
        self.hopeless(mark, subject, |_| false).await
    }

    /// Ends when a request since `mark` will get no answer; our inbox may also be refused
    /// ([`BrokerError::DeniedInbox`]).
    pub(super) async fn no_answer(&self, subject: &str, mark: Mark) -> BrokerError {
        self.hopeless(mark, subject, |link| link.denials.inbox.is_some()).await
    }

    async fn hopeless(&self, mark: Mark, subject: &str, deaf: impl Fn(&Link) -> bool) -> BrokerError {
        let mut link = self.link();
        let is_denied = |link: &Link| mark.is_denied(link, subject);
        let Ok(link) = link.wait_for(|link| is_denied(link) || deaf(link) || mark.is_void(link)).await else {
            return std::future::pending().await;
        };
        match &link.denials.inbox {
            Some(inbox) if deaf(&link) => BrokerError::DeniedInbox { inbox: inbox.clone() },
            _ if is_denied(&link) => BrokerError::Denied { subject: subject.to_owned() },
            _ => BrokerError::LinkLost { what: subject.to_owned() },
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
    fn a_request_is_void_once_the_link_that_carried_it_is_gone() {
        let link = |up, times| Link { up, times, ..Link::default() };
        let sent_up = Mark::of(&link(true, 3));
        assert!(!sent_up.is_void(&link(true, 3)));
        assert!(sent_up.is_void(&link(false, 3)));
        assert!(sent_up.is_void(&link(true, 4)), "down and up again between two looks");
        let sent_down = Mark::of(&link(false, 3));
        assert!(!sent_down.is_void(&link(false, 3)), "it goes out with the next link");
        assert!(!sent_down.is_void(&link(true, 4)));
        assert!(sent_down.is_void(&link(false, 4)));
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
