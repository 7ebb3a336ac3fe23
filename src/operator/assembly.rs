//! The chunks of one message's output on one node, put in order.
//!
//! ```text
//! offered (followed, or read)       → held until those before it are there, then given, once
//! scanned (read in stream order)    → one more is known: what is a window before it and not there will not come; told, passed
//! told (the ack)                    → the end is known: over when all are given, and the hash is compared
//! given up                          → what is held is given, what is missing is told
//! ```
//!
//! A value without I/O and without a clock. Nothing is given twice, whatever is offered how often; it holds a bounded number
//! of chunks, since what it does not take can be read again.

use crate::model::id::StreamSeq;
use crate::model::output::{Channel, Chunk, WINDOW};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};

/// Chunks held at most; more can be read again.
const HELD: usize = 4 * WINDOW as usize;

/// What comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The next chunk.
    Chunk(Chunk),
    /// From here on it is this try's.
    Try(u32),
    /// The node itself left out so many bytes here: it publishes head and tail of very long output.
    LeftOut {
        /// Where.
        channel: Channel,
        /// How many.
        bytes: u64,
    },
    /// These are not in the stream any more.
    Lost {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// The last ones are not stored, or not yet.
    Missing {
        /// How many there are.
        stored: u64,
        /// How many the ack tells of.
        of: u64,
    },
    /// All are there, and what they hold is not what the ack tells of.
    Differs,
}

/// What an ack tells of the chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// How many there are.
    pub chunks: u64,
    /// The try that the hash is of.
    pub attempt: u32,
    /// The hash of that try's chunks.
    pub sha256: Option<String>,
}

/// The state of one node's output.
#[derive(Debug)]
pub(super) struct Assembly {
    next: u64,
    held: BTreeMap<u64, (StreamSeq, Chunk)>,
    /// Where the last ones that were given are stored.
    recent: VecDeque<StreamSeq>,
    told: Option<Told>,
    attempt: u32,
    hash: Sha256,
    /// Something of this try is lost.
    has_hole: bool,
    /// Where each channel goes on; none where something was lost since.
    ends: BTreeMap<Channel, u64>,
    over: bool,
}

impl Assembly {
    pub(super) fn new() -> Assembly {
        Assembly {
            next: 1,
            held: BTreeMap::new(),
            recent: VecDeque::new(),
            told: None,
            attempt: 0,
            hash: Sha256::new(),
            has_hole: false,
            ends: BTreeMap::new(),
            over: false,
        }
    }

    /// The number that is to come next.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Nothing more will be given.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// True where the end is known.
    pub(super) fn is_told(&self) -> bool {
        self.told.is_some()
    }

    /// True where something waits for one before it.
    pub(super) fn has_gap(&self) -> bool {
        !self.held.is_empty()
    }

    /// Where a reading has to begin that misses nothing: whatever is not given yet is stored after this. None: at the start.
    pub(super) fn read_from(&self) -> Option<StreamSeq> {
        self.recent.front().copied().filter(|_| self.recent.len() as u64 == WINDOW)
    }

    /// A chunk, in whatever order.
    pub(super) fn offer(&mut self, seq: StreamSeq, chunk: Chunk, out: &mut Vec<Piece>) {
        if self.over || chunk.number < self.next {
            return;
        }
        if self.held.len() < HELD || chunk.number == self.next {
            self.held.entry(chunk.number).or_insert((seq, chunk));
        }
        self.give(out);
    }

    /// A chunk of a reading in stream order that began at `read_from`.
    pub(super) fn scan(&mut self, seq: StreamSeq, chunk: Chunk, out: &mut Vec<Piece>) {
        while !self.over && chunk.number >= self.next.saturating_add(WINDOW) {
            let before = self.held.keys().next().map_or(u64::MAX, |first| first - 1);
            self.lose(before.min(chunk.number - WINDOW), out);
            self.give(out);
        }
        self.offer(seq, chunk, out);
    }

    /// The ack is there.
    pub(super) fn tell(&mut self, told: Told, out: &mut Vec<Piece>) {
        if self.told.is_none() {
            self.told = Some(told);
            self.give(out);
        }
    }

    /// No more is waited for.
    pub(super) fn give_up(&mut self, out: &mut Vec<Piece>) {
        while !self.over
            && let Some(first) = self.held.keys().next().copied()
        {
            self.lose(first - 1, out);
            self.give(out);
        }
        let (stored, of) = (self.next - 1, self.told.as_ref().map_or(0, |told| told.chunks));
        if !self.over && stored < of {
            out.push(Piece::Missing { stored, of });
        }
        self.over = true;
    }

    fn lose(&mut self, last: u64, out: &mut Vec<Piece>) {
        if last >= self.next {
            match out.last_mut() {
                Some(Piece::Lost { last: before, .. }) if *before + 1 == self.next => *before = last,
                _ => out.push(Piece::Lost { first: self.next, last }),
            }
            self.next = last + 1;
            self.has_hole = true;
            self.ends.clear();
        }
    }

    fn give(&mut self, out: &mut Vec<Piece>) {
        while let Some((seq, chunk)) = self.held.remove(&self.next) {
            self.next += 1;
            self.recent.push_back(seq);
            if self.recent.len() as u64 > WINDOW {
                self.recent.pop_front();
            }
            self.pass(chunk, out);
        }
        let Some(told) = self.told.as_ref().filter(|told| !self.over && self.next > told.chunks) else { return };
        self.over = true;
        let whole = told.attempt == self.attempt && !self.has_hole;
        let is =
            |hash: &str| hash == self.hash.clone().finalize().iter().map(|b| format!("{b:02x}")).collect::<String>();
        if whole && told.sha256.as_deref().is_some_and(|hash| !is(hash)) {
            out.push(Piece::Differs);
        }
    }

    fn pass(&mut self, chunk: Chunk, out: &mut Vec<Piece>) {
        if chunk.attempt != self.attempt {
            // What was lost may have been of this try, unless another one is known to have come before.
            self.has_hole &= self.attempt == 0 || self.ends.is_empty();
            if chunk.attempt > 1 {
                out.push(Piece::Try(chunk.attempt));
            }
            self.attempt = chunk.attempt;
            self.hash = Sha256::new();
            self.ends.clear();
        }
        let end = chunk.offset + chunk.bytes.len() as u64;
        let begins = self.ends.insert(chunk.channel, end);
        if let Some(bytes) = begins.and_then(|begins| chunk.offset.checked_sub(begins)).filter(|bytes| *bytes > 0) {
            out.push(Piece::LeftOut { channel: chunk.channel, bytes });
        }
        self.hash.update(&chunk.bytes);
        out.push(Piece::Chunk(chunk));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn chunk(number: u64) -> Chunk {
        let bytes = Bytes::from(format!("{number};"));
        Chunk { number, attempt: 1, channel: Channel::Stdout, offset: 0, bytes }
    }

    fn told(chunks: u64) -> Told {
        let all: String = (1..=chunks).map(|n| format!("{n};")).collect();
        let sha256 = Sha256::digest(all).iter().map(|b| format!("{b:02x}")).collect();
        Told { chunks, attempt: 1, sha256: Some(sha256) }
    }

    fn numbers(pieces: &[Piece]) -> Vec<u64> {
        let number = |piece: &Piece| if let Piece::Chunk(chunk) = piece { Some(chunk.number) } else { None };
        pieces.iter().filter_map(number).collect()
    }

    #[test]
    fn what_will_not_come_is_told_and_passed() {
        let (mut assembly, mut out) = (Assembly::new(), Vec::new());
        assembly.tell(told(30), &mut out);
        for number in 20..=25 {
            assembly.scan(StreamSeq(number), chunk(number), &mut out);
        }
        assert_eq!(out, [Piece::Lost { first: 1, last: 17 }]);
        assembly.give_up(&mut out);
        assert_eq!(out[0], Piece::Lost { first: 1, last: 19 });
        assert_eq!(numbers(&out), (20..=25).collect::<Vec<_>>());
        assert_eq!(out.last(), Some(&Piece::Missing { stored: 25, of: 30 }));
        assert!(assembly.is_over());
    }

    #[test]
    fn a_wrong_hash_and_what_the_node_left_out_are_told() {
        let (mut assembly, mut out) = (Assembly::new(), Vec::new());
        assembly.offer(StreamSeq(1), chunk(1), &mut out);
        assembly.offer(StreamSeq(2), Chunk { offset: 12, ..chunk(2) }, &mut out);
        assembly.tell(Told { sha256: Some("00".to_owned()), ..told(2) }, &mut out);
        let left_out = Piece::LeftOut { channel: Channel::Stdout, bytes: 10 };
        assert_eq!(out[1..], [left_out, Piece::Chunk(Chunk { offset: 12, ..chunk(2) }), Piece::Differs]);
    }

    #[test]
    fn another_try_is_told_and_its_hash_is_its_own() {
        let (mut assembly, mut out) = (Assembly::new(), Vec::new());
        assembly.offer(StreamSeq(1), chunk(1), &mut out);
        assembly.offer(StreamSeq(2), Chunk { attempt: 2, number: 2, ..chunk(1) }, &mut out);
        assembly.tell(Told { chunks: 2, attempt: 2, ..told(1) }, &mut out);
        assert_eq!(out[1], Piece::Try(2));
        assert!(assembly.is_over() && !out.contains(&Piece::Differs), "{out:?}");
    }

    proptest! {
        /// Followed chunks may be missed and come in any order; with one reading at the end all are given, in order, once.
        #[test]
        fn nothing_is_missed_and_nothing_is_doubled(
            followed in proptest::collection::vec(1..60u64, 0..120),
            tell_at in 0..120usize,
            count in 1..60u64,
        ) {
            let (mut assembly, mut out) = (Assembly::new(), Vec::new());
            for (step, number) in followed.into_iter().enumerate() {
                if step == tell_at {
                    assembly.tell(told(count), &mut out);
                }
                if number <= count {
                    assembly.offer(StreamSeq(number), chunk(number), &mut out);
                }
            }
            assembly.tell(told(count), &mut out);
            let begin = assembly.read_from().map_or(1, |seq| seq.0);
            for number in begin..=count {
                assembly.scan(StreamSeq(number), chunk(number), &mut out);
            }
            prop_assert_eq!(numbers(&out), (1..=count).collect::<Vec<_>>());
            prop_assert_eq!(out.len() as u64, count);
            prop_assert!(assembly.is_over());
        }
    }
}
