//! Named points at which a test has the process die, as `kill -9` would, or stop, as `kill -STOP` would: after exactly that
//! step.
//!
//! A normal build has nothing of it: without the feature `kill-points` each call is empty. With it, `KILL_AT=taken:3`
//! in the environment aborts the process when it comes to the point `taken` for the third time. With `KILL_AT=taken:3:FILE`
//! it makes that file as it dies, and lives where the file is there: of processes that follow each other one dies.
//! `STOP_AT` is written in the same way; a stopped process goes on when it is sent `CONT`. Never does anything else, and
//! decides nothing.

/// The variable that arms a point to die at: `<name>:<times>`, or `<name>:<times>:<file>`.
pub const VARIABLE: &str = "KILL_AT";

/// The same for one to stop at.
pub const STOP_VARIABLE: &str = "STOP_AT";

/// A step that is done when its point is reached; what comes after it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Point {
    /// What the last agent left behind is settled.
    Recovered,
    /// Messages are in the journal; the broker has not heard of it.
    Taken,
    /// The broker has been told that they are.
    Acked,
    /// The stream is not as it was; what follows from that is in the journal.
    StreamChanged,
    /// The turn of a message has come; its start is not kept.
    Turn,
    /// Its start is kept; nothing runs yet.
    Started,
    /// Its process runs; the journal does not know the pid.
    Spawned,
    /// The try is over; the journal does not know.
    Ended,
    /// The end and the record are kept; nothing is published.
    Finished,
    /// Another try is to follow, which is kept.
    TryAgain,
    /// The broker has stored a window of the outbox; the journal does not know.
    Published,
    /// Those entries have been taken out of the outbox.
    Removed,
    /// The broker has stored a window of output; the journal does not know.
    Chunked,
    /// A failed try and what its directive changed are kept; nothing has followed from it.
    Directed,
    /// An order about processes is carried out in the journal; nothing has followed from it.
    Obeyed,
    /// That the agent has left for good is kept; it has not ended.
    Left,
    /// `inmsg.txt` is renamed.
    Claimed,
    /// Its messages are in the outbox; the file is still there.
    Accepted,
    /// Lines are in `acks.jsonl`; the journal does not know.
    ResultWritten,
    /// The number of a status is kept; the status is not published.
    Beat,
    /// The file of a run is made; the runner has not started its process.
    RunClaimed,
    /// The process runs; no agent has heard of it.
    RunStarted,
    /// The end of a run is in its file; no agent has heard of it.
    RunEnded,
    /// The hub has made a message's fate durable; its feed has not heard of it.
    Settled,
    /// A join or leave is pending in `spec`.
    Planned,
    /// The filters are to be changed, and what that may cost is written down; they are as they were.
    Looked,
    /// The filters of a join are set; its marks are not published.
    Filtered,
    /// One of the two marks is stored; `spec` does not say where.
    Marked,
    /// `spec` says where the marks are.
    MarksKnown,
    /// `spec` says that a leave is over; the filters are as they were.
    Drained,
}

impl Point {
    /// The points of an agent, in the order of a message's way; but for [`Point::StreamChanged`], to which no agent comes
    /// whose streams stay what they are.
    pub const AGENT: [Point; 19] = [
        Point::Recovered,
        Point::Taken,
        Point::Acked,
        Point::Turn,
        Point::Started,
        Point::Spawned,
        Point::Ended,
        Point::Finished,
        Point::TryAgain,
        Point::Published,
        Point::Removed,
        Point::Chunked,
        Point::Directed,
        Point::Obeyed,
        Point::Left,
        Point::Claimed,
        Point::Accepted,
        Point::ResultWritten,
        Point::Beat,
    ];

    /// The points of a runner.
    pub const RUNNER: [Point; 3] = [Point::RunClaimed, Point::RunStarted, Point::RunEnded];

    /// The points of a hub.
    pub const HUB: [Point; 7] = [
        Point::Settled,
        Point::Planned,
        Point::Looked,
        Point::Filtered,
        Point::Marked,
        Point::MarksKnown,
        Point::Drained,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Point::Recovered => "recovered",
            Point::Taken => "taken",
            Point::Acked => "acked",
            Point::StreamChanged => "stream_changed",
            Point::Turn => "turn",
            Point::Started => "started",
            Point::Spawned => "spawned",
            Point::Ended => "ended",
            Point::Finished => "finished",
            Point::TryAgain => "try_again",
            Point::Published => "published",
            Point::Removed => "removed",
            Point::Chunked => "chunked",
            Point::Directed => "directed",
            Point::Obeyed => "obeyed",
            Point::Left => "left",
            Point::Claimed => "claimed",
            Point::Accepted => "accepted",
            Point::ResultWritten => "result_written",
            Point::Beat => "beat",
            Point::RunClaimed => "run_claimed",
            Point::RunStarted => "run_started",
            Point::RunEnded => "run_ended",
            Point::Settled => "settled",
            Point::Planned => "planned",
            Point::Looked => "looked",
            Point::Filtered => "filtered",
            Point::Marked => "marked",
            Point::MarksKnown => "marks_known",
            Point::Drained => "drained",
        }
    }
}

/// This point is reached.
#[cfg(not(feature = "kill-points"))]
#[inline(always)]
pub(crate) fn here(_point: Point) {}

/// This point is reached: the process ends or stops here where the environment says so.
#[cfg(feature = "kill-points")]
pub(crate) fn here(point: Point) {
    use rustix::process::{Signal, getpid, kill_process};
    static KILL: armed::Armed = armed::Armed::by(VARIABLE);
    static STOP: armed::Armed = armed::Armed::by(STOP_VARIABLE);
    if KILL.is_due(point) {
        std::process::abort();
    }
    if STOP.is_due(point) {
        // Nobody is refused that of himself.
        let _ = kill_process(getpid(), Signal::STOP);
    }
}

#[cfg(feature = "kill-points")]
mod armed {
    //! What the environment says of one way to end or stop.

    use super::Point;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    pub(super) struct Armed {
        variable: &'static str,
        /// The point, for the how-many-th time, and the file that is made then.
        said: OnceLock<Option<(String, u64, Option<String>)>>,
        reached: AtomicU64,
    }

    impl Armed {
        pub(super) const fn by(variable: &'static str) -> Armed {
            Armed { variable, said: OnceLock::new(), reached: AtomicU64::new(0) }
        }

        pub(super) fn is_due(&self, point: Point) -> bool {
            let read = || {
                let text = std::env::var(self.variable).ok()?;
                let mut parts = text.splitn(3, ':');
                Some((parts.next()?.to_owned(), parts.next()?.parse().ok()?, parts.next().map(str::to_owned)))
            };
            let Some((name, times, file)) = self.said.get_or_init(read) else { return false };
            name == point.as_str()
                && self.reached.fetch_add(1, Ordering::SeqCst) + 1 == *times
                && file.as_ref().is_none_or(|file| std::fs::File::create_new(file).is_ok())
        }
    }
}
