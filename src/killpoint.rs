//! Named points at which a test has the process die: after exactly that step, as `kill -9` would.
//!
//! A normal build has nothing of it: without the feature `kill-points` each call is empty. With it, `KILL_AT=taken:3`
//! in the environment aborts the process when it comes to the point `taken` for the third time. With `KILL_AT=taken:3:FILE`
//! it makes that file as it dies, and lives where the file is there: of processes that follow each other one dies. Never
//! does anything else, and decides nothing.

/// The variable that arms a point: `<name>:<times>`, or `<name>:<times>:<file>`.
pub const VARIABLE: &str = "KILL_AT";

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
    pub const HUB: [Point; 6] =
        [Point::Settled, Point::Planned, Point::Filtered, Point::Marked, Point::MarksKnown, Point::Drained];

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

/// This point is reached: the process ends here where the environment says so.
#[cfg(feature = "kill-points")]
pub(crate) fn here(point: Point) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static ARMED: OnceLock<Option<(String, u64, Option<String>)>> = OnceLock::new();
    static REACHED: AtomicU64 = AtomicU64::new(0);
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var(VARIABLE).ok()?;
        let mut parts = text.splitn(3, ':');
        Some((parts.next()?.to_owned(), parts.next()?.parse().ok()?, parts.next().map(str::to_owned)))
    });
    if let Some((name, times, file)) = armed
        && name == point.as_str()
        && REACHED.fetch_add(1, Ordering::SeqCst) + 1 == *times
        && file.as_ref().is_none_or(|file| std::fs::File::create_new(file).is_ok())
    {
        std::process::abort();
    }
}
