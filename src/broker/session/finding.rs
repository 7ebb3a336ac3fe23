//! How a session finds its place, as a value: what to look at next, from what was seen.
//!
//! ```text
//! Anchor   the first message from the anchor on
//!            the anchor                                   → in place
//!            anything else, or nothing                    → Start
//! Start    the first message from the node's start on
//!            nothing                                      → purged; in doubt
//!            newer than the position in sequence and time → purged or aged out
//!            anything else                                → ask for an earlier message: 1, 2, 4, … back
//! Asked      there is one further back                    → Earlier
//!            there is none                                → Nowhere
//! Earlier  the first message from that one on
//!            that one                                     → stepped back; in doubt where what stood at the anchor's
//!                                                           place was newer
//!            anything else, or nothing                    → ask for one twice as far back
//! Nowhere  the first message from the node's start on     → not the stream that the node knows
//! ```
//!
//! The start is looked at before the place is believed to be purged: a stream that was restored, and has grown past the
//! position since, has something newer there, too, and what was stored in it below the position is not taken.
//!
//! **In doubt**: a message that was deleted and a stream that was restored look alike until the stream goes on. The first
//! message stored after the last one taken decides ([`Doubt`]): with a higher sequence, things were only deleted.
//!
//! Never resets, never pulls, and knows nothing of what the node keeps.

use super::Found;
use crate::model::id::{MsgRef, StreamSeq};

/// A message that the node took before the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Earlier {
    /// The message.
    pub at: MsgRef,
    /// How many before the last one.
    pub steps: u64,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Set the consumer to this sequence and look at the first message.
    First(StreamSeq),
    /// Ask the node for the message so many before the last one.
    Earlier(u64),
    /// The session begins where the consumer was set last.
    Done(Found, Option<Doubt>),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// The first message there, where there is one.
    First(Option<MsgRef>),
    /// The message so many back, or the oldest one that can stand for a place.
    Earlier(Option<Earlier>),
}

/// A session that has not found its place yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finding {
    /// The last message taken.
    position: MsgRef,
    start: StreamSeq,
    state: State,
    /// What stands at the anchor's place is newer than the position.
    is_newer_there: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Anchor(MsgRef),
    Start,
    Asked { steps: u64 },
    Earlier(Earlier),
    Nowhere,
}

impl Finding {
    /// Begins at the anchor.
    pub(super) fn new(position: MsgRef, anchor: MsgRef, start: StreamSeq) -> (Finding, Ask) {
        let finding = Finding { position, start, state: State::Anchor(anchor), is_newer_there: false };
        (finding, Ask::First(anchor.seq))
    }

    /// Takes in what came of the last [`Ask`].
    pub(super) fn next(&mut self, heard: Heard) -> Ask {
        match (self.state, heard) {
            (State::Anchor(anchor), Heard::First(Some(first))) if first == anchor => Ask::Done(Found::InPlace, None),
            (State::Anchor(_), Heard::First(first)) => {
                self.is_newer_there = first.is_some_and(|first| self.is_newer(first));
                self.state = State::Start;
                Ask::First(self.start)
            }
            (State::Start, Heard::First(None)) => Ask::Done(Found::Purged, self.doubt(Found::Changed)),
            (State::Start | State::Nowhere, Heard::First(Some(first))) if self.is_newer(first) => {
                Ask::Done(Found::Purged, None)
            }
            (State::Start, Heard::First(Some(_))) => self.ask(1),
            (State::Asked { steps }, Heard::Earlier(Some(earlier))) if earlier.steps > steps / 2 => {
                self.state = State::Earlier(earlier);
                Ask::First(earlier.at.seq)
            }
            (State::Earlier(earlier), Heard::First(Some(first))) if first == earlier.at => {
                let found = Found::SteppedBack { steps: earlier.steps, agreed: earlier.at };
                if self.is_newer_there { Ask::Done(Found::Purged, self.doubt(found)) } else { Ask::Done(found, None) }
            }
            (State::Earlier(earlier), Heard::First(_)) => self.ask(earlier.steps.saturating_mul(2)),
            (State::Nowhere, Heard::First(_)) => Ask::Done(Found::Changed, None),
            (State::Asked { .. }, _) | (_, Heard::Earlier(_)) => {
                self.state = State::Nowhere;
                Ask::First(self.start)
            }
        }
    }

    fn ask(&mut self, steps: u64) -> Ask {
        self.state = State::Asked { steps };
        Ask::Earlier(steps)
    }

    fn is_newer(&self, first: MsgRef) -> bool {
        first.seq > self.position.seq && first.stored_at > self.position.stored_at
    }

    fn doubt(&self, if_changed: Found) -> Option<Doubt> {
        Some(Doubt { position: self.position, if_changed })
    }
}

/// Messages are gone from where the node stands; whether more than that has happened the stream will tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Doubt {
    /// The last message taken.
    position: MsgRef,
    /// What was found, where the stream has changed.
    if_changed: Found,
}

impl Doubt {
    /// Looks at the next message: `None` while it does not decide; then what was found, where anything was.
    pub(super) fn over(&self, next: MsgRef) -> Option<Option<Found>> {
        let Doubt { position, if_changed } = self;
        if next.seq > position.seq {
            Some(None)
        } else if next.stored_at > position.stored_at {
            Some(Some(*if_changed))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests;
