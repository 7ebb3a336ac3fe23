//! The pulls of a session, and the proof that nothing was left out between them.
//!
//! A value without I/O. Each message must have the consumer sequence after the last one's, and each idle heartbeat must
//! agree: a zombie that took a message of ours shows as a gap.

use std::collections::VecDeque;

/// Messages asked for by one pull.
pub(super) const BATCH: u64 = 512;

/// What a frame means for the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// A message with this consumer sequence.
    Message(u64),
    /// An idle heartbeat: the last consumer sequence that the broker delivered.
    Heartbeat(u64),
    /// The end of pull `number`: a status code.
    End { number: u64, code: u16 },
}

/// Why a session cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    /// Messages went elsewhere.
    #[error("a gap: consumer sequence {found} where {expected} was due")]
    Gap {
        /// What was due.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// A pull ended in a way that is not the normal one.
    #[error("a pull ended with status {0}")]
    Status(u16),
}

#[derive(Debug, Clone, Copy)]
struct Pull {
    number: u64,
    asked: u64,
    left: u64,
}

/// The pulls under way, and the last consumer sequence seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Pulls {
    last: u64,
    next_number: u64,
    open: VecDeque<Pull>,
}

impl Pulls {
    /// The number of a new pull for `count` messages, where one is due: the next batch is asked for while the last one
    /// still flows.
    pub(super) fn due(&mut self, count: u64) -> Option<u64> {
        let left: u64 = self.open.iter().map(|pull| pull.left).sum();
        if self.open.len() >= 2 || left > BATCH / 2 {
            return None;
        }
        self.next_number += 1;
        self.open.push_back(Pull { number: self.next_number, asked: count, left: count });
        Some(self.next_number)
    }

    /// True where no pull is open any more.
    pub(super) fn are_over(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes a frame in; an error ends the session.
    pub(super) fn take(&mut self, frame: Frame) -> Result<(), Broken> {
        match frame {
            Frame::Message(found) => {
                let expected = self.last + 1;
                if found != expected {
                    return Err(Broken::Gap { expected, found });
                }
                self.last = found;
                if let Some(pull) = self.open.front_mut() {
                    pull.left -= 1;
                    if pull.left == 0 {
                        self.open.pop_front();
                    }
                }
                Ok(())
            }
            Frame::Heartbeat(found) if found == self.last => Ok(()),
            Frame::Heartbeat(found) => Err(Broken::Gap { expected: self.last, found }),
            // 404 and 408: nothing (more) within the pull's time; 409 on a pull that had something: its bytes are full.
            Frame::End { number, code: 404 | 408 } => {
                self.close(number);
                Ok(())
            }
            Frame::End { number, code: 409 } => {
                let fresh = self.open.iter().any(|pull| pull.number == number && pull.left == pull.asked);
                self.close(number);
                if fresh { Err(Broken::Status(409)) } else { Ok(()) }
            }
            Frame::End { code, .. } => Err(Broken::Status(code)),
        }
    }

    fn close(&mut self, number: u64) {
        self.open.retain(|pull| pull.number != number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn gaps_and_foreign_deliveries_are_seen() {
        let mut pulls = Pulls::default();
        pulls.due(BATCH);
        pulls.take(Frame::Heartbeat(0)).unwrap();
        pulls.take(Frame::Message(1)).unwrap();
        assert_eq!(pulls.take(Frame::Heartbeat(2)), Err(Broken::Gap { expected: 1, found: 2 }));
        assert_eq!(pulls.take(Frame::Message(3)), Err(Broken::Gap { expected: 2, found: 3 }));
        assert_eq!(pulls.take(Frame::Message(1)), Err(Broken::Gap { expected: 2, found: 1 }));
    }

    #[test]
    fn a_pull_that_ends_normally_is_followed_by_another() {
        let mut pulls = Pulls::default();
        assert_eq!(pulls.due(BATCH), Some(1));
        assert_eq!(pulls.due(BATCH), None);
        pulls.take(Frame::End { number: 1, code: 408 }).unwrap();
        assert_eq!(pulls.due(BATCH), Some(2));
        assert_eq!(pulls.take(Frame::End { number: 2, code: 409 }), Err(Broken::Status(409)), "nothing came of it");
        assert_eq!(pulls.take(Frame::End { number: 9, code: 503 }), Err(Broken::Status(503)));
    }

    proptest! {
        /// Whatever the order of frames, a session that goes on has seen 1, 2, 3, … without exception.
        #[test]
        fn what_goes_on_is_contiguous(frames in proptest::collection::vec((0u64..4, 0u64..6), 0..60)) {
            let mut pulls = Pulls::default();
            let mut seen = 0;
            for (what, number) in frames {
                pulls.due(BATCH);
                let frame = match what {
                    0 | 1 => Frame::Message(number),
                    2 => Frame::Heartbeat(number),
                    _ => Frame::End { number, code: 408 },
                };
                let Ok(()) = pulls.take(frame) else { break };
                if let Frame::Message(number) = frame {
                    prop_assert_eq!(number, seen + 1);
                    seen = number;
                }
            }
        }
    }
}
