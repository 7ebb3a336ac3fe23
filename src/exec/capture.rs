//! What is kept of an output stream: first and last bytes, the true size and a hash of all.
//! Memory is bounded by the number of bytes to keep. It never reads anything itself.

use std::borrow::Cow;
use std::collections::VecDeque;

use sha2::{Digest, Sha256};

/// One output stream of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Bytes written in all.
    pub total: u64,
    /// SHA-256 of all bytes written, kept or not.
    pub sha256: [u8; 32],
}

impl Captured {
    pub(super) fn from_parts(head: Vec<u8>, tail: Vec<u8>, total: u64, sha256: [u8; 32]) -> Self {
        Self { head, tail, total, sha256 }
    }

    /// The first bytes.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// The last bytes, those of the head never among them.
    #[must_use]
    pub fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Whether bytes between head and tail are missing.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.total > (self.head.len() + self.tail.len()) as u64
    }

    /// All bytes, where none is missing.
    #[must_use]
    pub fn whole(&self) -> Option<Cow<'_, [u8]>> {
        if self.is_truncated() {
            None
        } else if self.tail.is_empty() {
            Some(Cow::Borrowed(&self.head))
        } else {
            Some(Cow::Owned([self.head.as_slice(), &self.tail].concat()))
        }
    }
}

/// Takes a stream piece by piece.
pub(super) struct Recorder {
    head: Vec<u8>,
    head_most: usize,
    tail: VecDeque<u8>,
    tail_most: usize,
    total: u64,
    hash: Sha256,
}

impl Recorder {
    pub(super) fn new(keep: usize) -> Self {
        Self {
            head: Vec::new(),
            head_most: keep.div_ceil(2),
            tail: VecDeque::new(),
            tail_most: keep / 2,
            total: 0,
            hash: Sha256::new(),
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        self.hash.update(bytes);
        let room = self.head_most - self.head.len();
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(first);
        let rest = &rest[rest.len().saturating_sub(self.tail_most)..];
        let over = (self.tail.len() + rest.len()).saturating_sub(self.tail_most);
        self.tail.drain(..over);
        self.tail.extend(rest);
    }

    pub(super) fn finish(self) -> Captured {
        Captured { head: self.head, tail: self.tail.into(), total: self.total, sha256: self.hash.finalize().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(keep: usize, pieces: &[&[u8]]) -> Captured {
        let mut recorder = Recorder::new(keep);
        for piece in pieces {
            recorder.push(piece);
        }
        recorder.finish()
    }

    #[test]
    fn what_fits_is_kept_whole() {
        let all = captured(5, &[b"ab", b"", b"cde"]);
        assert_eq!(all.whole().as_deref(), Some(&b"abcde"[..]));
        assert_eq!(all.total, 5);
    }

    #[test]
    fn what_does_not_fit_keeps_both_ends() {
        for pieces in [&[&b"0123456789"[..]][..], &[b"0", b"123", b"45678", b"9"]] {
            let cut = captured(5, pieces);
            assert_eq!((cut.head(), cut.tail()), (&b"012"[..], &b"89"[..]));
            assert!(cut.is_truncated());
            assert_eq!(cut.whole(), None);
            assert_eq!(cut.total, 10);
            assert_eq!(cut.sha256, <[u8; 32]>::from(Sha256::digest(b"0123456789")));
        }
    }

    #[test]
    fn nothing_may_be_kept() {
        let cut = captured(0, &[b"abc"]);
        assert_eq!((cut.head().len(), cut.tail().len(), cut.total), (0, 0, 3));
        assert!(cut.is_truncated());
        assert!(!captured(0, &[]).is_truncated());
    }
}
