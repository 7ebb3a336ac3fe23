//! Many publishes at once, each with the broker's word.
//!
//! Owns one inbox for all of them: the last token of an answer's subject says which message it is about. A request for
//! each, as [`Broker::publish`] makes it, has a future, a timer and two looks at the link of its own, which together cost
//! more than the message; here a window of messages shares them. Never retries; who publishes decides that.
//!
//! ```text
//! to be sent → under way, so many at once → stored, refused or denied
//!                                         → not known: the link is gone, or nothing was heard for too long
//! ```

use super::connect::{Broker, Link};
use super::denied::Mark;
use super::error::{BrokerError, PublishError};
use super::publish::{Parcel, Stored, read_answer};
use async_nats::{Message, StatusCode, Subscriber};
use futures::{FutureExt, StreamExt};
use std::time::Duration;
use tokio::sync::watch;

/// What the broker says about one message.
pub type Word = Result<Stored, PublishError>;

/// An inbox for answers. Messages leave in order; several publishers on one connection do not disturb each other.
#[derive(Debug)]
pub struct Publisher {
    broker: Broker,
    inbox: String,
    answers: Subscriber,
    /// The number of the next message; never used twice, so that an answer that is late is about nothing.
    next: u64,
}

impl Publisher {
    /// A publisher on this connection.
    pub async fn new(broker: &Broker) -> Result<Publisher, BrokerError> {
        let inbox = broker.client.new_inbox();
        let answers = broker.client.subscribe(format!("{inbox}.*")).await.map_err(|_| BrokerError::Closed)?;
        Ok(Publisher { broker: broker.clone(), inbox, answers, next: 0 })
    }

    /// Publishes in order, at most `at_once` under way, and tells what became of each. `silence` is how long the broker may
    /// say nothing at all. Where the future is dropped, what is under way may or may not be stored.
    pub async fn publish_all(&mut self, messages: &[Parcel<'_>], at_once: usize, silence: Duration) -> Vec<Word> {
        let mut window = Window::new(self.next, messages.len());
        self.next += messages.len() as u64;
        let mark = self.broker.mark();
        let mut link = self.broker.link();
        loop {
            while let Some(at) = window.send(at_once) {
                if let Err(error) = self.send(&messages[at], window.number(at)).await {
                    window.answered(window.number(at), Err(error));
                }
            }
            if window.is_over() {
                return window.end(PublishError::Unknown);
            }
            // What is here already needs neither timer nor link.
            let heard = match self.answers.next().now_or_never() {
                Some(answer) => answer.map_or(Heard::End(PublishError::Closed), Heard::Answer),
                None => self.hear(&window, messages, mark, &mut link, silence).await,
            };
            match heard {
                Heard::Answer(answer) => self.note(&mut window, &answer),
                Heard::Denied(denied) => denied.into_iter().for_each(|at| {
                    let subject = messages[at].subject.to_owned();
                    window.answered(window.number(at), Err(PublishError::Denied { subject }));
                }),
                Heard::End(error) => return window.end(error),
            }
        }
    }

    async fn send(&self, message: &Parcel<'_>, number: u64) -> Result<(), PublishError> {
        let (subject, headers) = self.broker.to_be_sent(message)?;
        let reply = format!("{}.{number}", self.inbox);
        let (client, body) = (&self.broker.client, message.body.clone());
        let sent = match headers {
            Some(headers) => client.publish_with_reply_and_headers(subject, reply, headers, body).await,
            None => client.publish_with_reply(subject, reply, body).await,
        };
        sent.map_err(|error| match error.kind() {
            async_nats::client::PublishErrorKind::MaxPayloadExceeded => {
                PublishError::TooLarge { size: message.size(), limit: self.broker.max_payload() }
            }
            async_nats::client::PublishErrorKind::InvalidSubject => {
                PublishError::Unsendable(format!("subject `{}`", message.subject))
            }
            async_nats::client::PublishErrorKind::Send => PublishError::Closed,
        })
    }

    /// Waits for an answer, or for what says that one will not come.
    async fn hear(
        &mut self,
        window: &Window,
        messages: &[Parcel<'_>],
        mark: Mark,
        link: &mut watch::Receiver<Link>,
        silence: Duration,
    ) -> Heard {
        let denied = |link: &Link| -> Vec<usize> {
            window.under_way().filter(|at| mark.is_denied(link, messages[*at].subject)).collect()
        };
        tokio::select! {
            biased;
            answer = self.answers.next() => answer.map_or(Heard::End(PublishError::Closed), Heard::Answer),
            changed = link.wait_for(|link| mark.is_void(link) || !denied(link).is_empty()) => match changed {
                Ok(link) if mark.is_void(&link) => Heard::End(PublishError::Unknown),
                Ok(link) => Heard::Denied(denied(&link)),
                Err(_) => Heard::End(PublishError::Closed),
            },
            () = tokio::time::sleep(silence) => Heard::End(PublishError::Unknown),
        }
    }

    fn note(&self, window: &mut Window, answer: &Message) {
        let number = answer.subject.strip_prefix(&self.inbox).and_then(|rest| rest.strip_prefix('.'));
        let Some(number) = number.and_then(|number| number.parse().ok()) else { return };
        window.answered(
            number,
            match answer.status {
                Some(StatusCode::NO_RESPONDERS) => Err(PublishError::NoStream),
                _ => read_answer(&answer.payload),
            },
        );
    }
}

/// What comes while messages are under way.
enum Heard {
    Answer(Message),
    /// The broker has said that these may not be published.
    Denied(Vec<usize>),
    /// No more answers will come.
    End(PublishError),
}

/// Which messages are sent, and what is known of them. A value without I/O.
#[derive(Debug)]
struct Window {
    /// The number of the first message.
    first: u64,
    sent: usize,
    open: usize,
    words: Vec<Option<Word>>,
}

impl Window {
    fn new(first: u64, count: usize) -> Window {
        Window { first, sent: 0, open: 0, words: (0..count).map(|_| None).collect() }
    }

    /// The next message to be sent, where there is one and no more than `at_once` would be under way.
    fn send(&mut self, at_once: usize) -> Option<usize> {
        let at = self.sent;
        if at == self.words.len() || self.open >= at_once.max(1) {
            return None;
        }
        self.sent += 1;
        self.open += 1;
        Some(at)
    }

    fn number(&self, at: usize) -> u64 {
        self.first + at as u64
    }

    /// The first word about a message counts; one about a message of an earlier window is let pass.
    fn answered(&mut self, number: u64, word: Word) {
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        let sent = self.words[..self.sent].get_mut(at.unwrap_or(usize::MAX));
        if let Some(known @ None) = sent {
            *known = Some(word);
            self.open -= 1;
        }
    }

    /// Those that are sent and of which nothing is known.
    fn under_way(&self) -> impl Iterator<Item = usize> {
        self.words[..self.sent].iter().enumerate().filter(|(_, word)| word.is_none()).map(|(at, _)| at)
    }

    fn is_over(&self) -> bool {
        self.open == 0 && self.sent == self.words.len()
    }

    /// What is known of each; this of all others.
    fn end(self, otherwise: PublishError) -> Vec<Word> {
        self.words.into_iter().map(|word| word.unwrap_or_else(|| Err(otherwise.clone()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::StreamSeq;
    use proptest::prelude::*;

    fn stored(seq: u64) -> Word {
        Ok(Stored { stream: "S".to_owned(), seq: StreamSeq(seq), duplicate: false })
    }

    proptest! {
        /// Whatever answers come, in whatever order, late, twice or about nothing: each message is sent once and in order, at
        /// most so many are under way, and each word is about its message.
        #[test]
        fn every_message_has_its_own_word(
            count in 0usize..20,
            at_once in 0usize..8,
            answers in proptest::collection::vec(90u64..130, 0..200),
        ) {
            let (mut window, mut sent) = (Window::new(100, count), Vec::new());
            for number in answers {
                while let Some(at) = window.send(at_once) {
                    sent.push(at);
                    prop_assert!(window.under_way().count() <= at_once.max(1));
                }
                prop_assert_eq!(window.open, window.under_way().count());
                window.answered(number, stored(number));
                window.answered(number, Err(PublishError::WrongLast));
            }
            prop_assert_eq!(&sent, &(0..sent.len()).collect::<Vec<_>>());
            let (over, known) = (window.is_over(), window.under_way().count());
            let words = window.end(PublishError::Unknown);
            prop_assert_eq!(words.len(), count);
            prop_assert!(!over || known == 0 && sent.len() == count);
            for (at, word) in words.into_iter().enumerate() {
                match word {
                    Ok(stored) => prop_assert_eq!(stored.seq.0, 100 + at as u64),
                    Err(error) => prop_assert!(!over && matches!(error, PublishError::Unknown)),
                }
            }
        }
    }
}
