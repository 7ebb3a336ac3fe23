//! Chunks of output: what of a command's output one message in `FLEET_OUTPUT` holds.
//!
//! Owns how a chunk is read from its subject and headers, and how far out of order chunks may be stored. No I/O.

use super::header::{RawHeaders, names};
use bytes::Bytes;

/// So many chunks of one run are under way at once: a chunk is published only when all that are so many numbers before it
/// are stored. A reader who sees it therefore knows that one of those that is not there will not come.
pub const WINDOW: u64 = 8;

/// Numbers of chunks, and their places, are below this.
const LARGEST: u64 = 1 << 62;

/// Where a command wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

impl Channel {
    /// As headers and people say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Channel::Stdout => "stdout",
            Channel::Stderr => "stderr",
        }
    }
}

/// One chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its number in the message's output on its node, from 1, running on from try to try.
    pub number: u64,
    /// The try that wrote it, from 1.
    pub attempt: u32,
    /// Where it was written.
    pub channel: Channel,
    /// Its first byte's place in what that try wrote there.
    pub offset: u64,
    /// What was written.
    pub bytes: Bytes,
}

impl Chunk {
    /// Reads a chunk and the node that published it; `None` where it is none. Whoever counts on from a chunk's number or
    /// place does not come to the end of the numbers.
    pub fn read(subject: &str, headers: &RawHeaders, bytes: &Bytes) -> Option<(String, Chunk)> {
        let mut tokens = subject.rsplit('.');
        let number = tokens.next()?.parse().ok().filter(|number| (1..LARGEST).contains(number))?;
        let (_id, _from, node) = (tokens.next()?, tokens.next()?, tokens.next()?);
        let channel = match headers.get(names::OUTPUT)? {
            "stdout" => Channel::Stdout,
            "stderr" => Channel::Stderr,
            _ => return None,
        };
        let offset = headers.get(names::OFFSET)?.parse().ok().filter(|offset| *offset < LARGEST)?;
        let attempt = headers.get(names::ATTEMPT)?.parse().ok()?;
        Some((node.to_owned(), Chunk { number, attempt, channel, offset, bytes: bytes.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_chunk_is_not_read_as_one() {
        let headers = |offset: &str| {
            RawHeaders::default().with(names::OUTPUT, "stderr").with(names::OFFSET, offset).with(names::ATTEMPT, "2")
        };
        let read = |subject: &str, headers: &RawHeaders| Chunk::read(subject, headers, &Bytes::from_static(b"x"));
        let (node, chunk) = read("fleet.output.ship1.ops.a.7", &headers("9")).unwrap();
        assert_eq!((node.as_str(), chunk.number, chunk.attempt), ("ship1", 7, 2));
        assert_eq!((chunk.channel, chunk.offset, &chunk.bytes[..]), (Channel::Stderr, 9, &b"x"[..]));
        let last = format!("fleet.output.ship1.ops.a.{}", u64::MAX);
        for subject in ["fleet.output.ship1.ops.a.0", "fleet.output.ship1.ops.a.x", &last, "7", ""] {
            assert_eq!(read(subject, &headers("9")), None, "{subject}");
        }
        for offset in ["-1", &u64::MAX.to_string()] {
            assert_eq!(read("fleet.output.ship1.ops.a.7", &headers(offset)), None, "{offset}");
        }
        assert_eq!(read("fleet.output.ship1.ops.a.7", &RawHeaders::default()), None);
    }
}
