//! The end of the outbox in memory: what has just been kept is published without being read again.
//!
//! The table is the truth, and this a copy of its last rows. Of each class that leaves to the broker it knows nothing, or
//! every open entry behind a certain one:
//!
//! ```text
//! unknown ── the table was read to its end ──▶ known from there on
//! known   ── a commit added entries ─────────▶ known, with them; where that is too much: unknown
//! known   ── entries were published ─────────▶ known, without them
//! any     ── a commit failed ────────────────▶ unknown
//! ```
//!
//! Who asks for what lies before the known part is sent to the table. So order, trying again and what a new agent finds
//! are the table's alone. Never holds more than [`MOST`] entries or [`MOST_BYTES`] of a class.

use super::outbox::{Class, Entry, EntryId};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Entries of a class that are held: some commits' worth. A flood is read from the table, many at once.
const MOST: usize = 256;

/// Bytes of their bodies.
const MOST_BYTES: usize = 256 * 1024;

/// How many entries are asked for, and about how many bytes of bodies; one entry at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

impl Window {
    /// Whether an entry of this size still belongs to a window of so many entries and bytes.
    pub(super) fn takes(self, entries: usize, bytes: usize, more: usize) -> bool {
        entries < self.entries && (entries == 0 || bytes + more <= self.bytes)
    }
}

/// What is known of each class. The writer adds; whoever publishes reads and takes out.
#[derive(Default)]
pub(super) struct Fresh {
    tails: Mutex<[Tail; Class::PUBLISHED.len()]>,
    grows: AtomicBool,
}

impl Fresh {
    /// A commit is under way, or is over.
    pub(super) fn grows(&self, grows: bool) {
        self.grows.store(grows, Ordering::Relaxed);
    }

    /// Whether a commit is under way: who waits for it has more to send at once.
    pub(super) fn is_growing(&self) -> bool {
        self.grows.load(Ordering::Relaxed)
    }

    /// Entries that a commit has added, in order.
    pub(super) fn kept(&self, entries: Vec<Entry>) {
        let mut tails = self.tails();
        for entry in entries {
            if let Some(tail) = place(entry.report.class).and_then(|at| tails.get_mut(at)) {
                tail.kept(entry);
            }
        }
    }

    /// The table has no open entry of this class behind this one.
    pub(super) fn none_behind(&self, class: Class, last: EntryId) {
        self.on(class, |tail| tail.none_behind(last));
    }

    /// The open entries behind this one; none where the table has to be asked.
    pub(super) fn behind(&self, class: Class, after: EntryId, window: Window) -> Option<Vec<Entry>> {
        self.on(class, |tail| tail.behind(after, window)).flatten()
    }

    /// The entries of a class up to this one, and these others, are not open any more.
    pub(super) fn gone(&self, class: Class, up_to: EntryId, others: &[EntryId]) {
        self.on(class, |tail| tail.gone(up_to, others));
    }

    /// This entry, of whichever class, has been set aside.
    pub(super) fn parked(&self, entry: EntryId) {
        self.tails().iter_mut().for_each(|tail| tail.gone(EntryId(0), &[entry]));
    }

    /// What the table holds is not certain: it has to be read.
    pub(super) fn forget(&self) {
        *self.tails() = Default::default();
    }

    fn on<T>(&self, class: Class, act: impl FnOnce(&mut Tail) -> T) -> Option<T> {
        place(class).and_then(|at| self.tails().get_mut(at).map(act))
    }

    fn tails(&self) -> MutexGuard<'_, [Tail; Class::PUBLISHED.len()]> {
        self.tails.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(class: Class) -> Option<usize> {
    Class::PUBLISHED.iter().position(|published| *published == class)
}

/// The last entries of one class.
#[derive(Default)]
struct Tail {
    /// Every open entry behind this one is in `entries`; none: nothing is known.
    since: Option<EntryId>,
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Tail {
    fn kept(&mut self, entry: Entry) {
        // Or it was read in the commit that added it.
        if self.since.is_none_or(|since| entry.id <= since) {
            return;
        }
        self.bytes += entry.report.body.len();
        self.entries.push_back(entry);
        if self.entries.len() > MOST || self.bytes > MOST_BYTES {
            *self = Tail::default();
        }
    }

    fn none_behind(&mut self, last: EntryId) {
        *self = Tail { since: Some(last), ..Tail::default() };
    }

    fn behind(&self, after: EntryId, window: Window) -> Option<Vec<Entry>> {
        if self.since.is_none_or(|since| since > after) {
            return None;
        }
        let (mut found, mut bytes) = (Vec::new(), 0);
        for entry in self.entries.iter().filter(|entry| entry.id > after) {
            let size = entry.report.body.len();
            if !window.takes(found.len(), bytes, size) {
                break;
            }
            bytes += size;
            found.push(entry.clone());
        }
        Some(found)
    }

    fn gone(&mut self, up_to: EntryId, others: &[EntryId]) {
        self.entries.retain(|entry| entry.id > up_to && !others.contains(&entry.id));
        self.bytes = self.entries.iter().map(|entry| entry.report.body.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::super::outbox::Report;
    use super::*;
    use crate::model::header::RawHeaders;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry(id: i64, size: usize) -> Entry {
        let body = vec![b'x'; size].into();
        let report = Report { class: Class::Ack, subject: id.to_string(), headers: RawHeaders::default(), body };
        Entry { id: EntryId(id), report }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Commit(Vec<usize>),
        CommitFails,
        Read { after: i64, window: Window },
        Gone { up_to: i64, other: i64 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let size = prop_oneof![8 => 0..200_usize, 1 => 100_000..200_000_usize];
        let window = (1..20_usize, 0..2000_usize).prop_map(|(entries, bytes)| Window { entries, bytes });
        let step = prop_oneof![
            4 => proptest::collection::vec(size, 1..120).prop_map(Step::Commit),
            1 => Just(Step::CommitFails),
            4 => (0..300_i64, window).prop_map(|(after, window)| Step::Read { after, window }),
            2 => (0..300_i64, 0..300_i64).prop_map(|(up_to, other)| Step::Gone { up_to, other }),
        ];
        proptest::collection::vec(step, 1..40)
    }

    /// What the table gives, and whether it was read to its end.
    fn table_behind(table: &BTreeMap<i64, usize>, after: i64, window: Window) -> (Vec<i64>, bool) {
        let (mut found, mut bytes) = (Vec::new(), 0);
        for (id, size) in table.range(after + 1..) {
            if !window.takes(found.len(), bytes, *size) {
                return (found, false);
            }
            bytes += size;
            found.push(*id);
        }
        (found, true)
    }

    proptest! {
        #[test]
        fn what_it_knows_is_what_the_table_has(steps in steps()) {
            let (fresh, mut table, mut last) = (Fresh::default(), BTreeMap::new(), 0);
            for step in steps {
                match step {
                    Step::Commit(sizes) => {
                        let added: Vec<Entry> = sizes.into_iter().map(|size| {
                            last += 1;
                            table.insert(last, size);
                            entry(last, size)
                        }).collect();
                        fresh.kept(added);
                    }
                    Step::CommitFails => fresh.forget(),
                    Step::Read { after, window } => {
                        let (wanted, is_all) = table_behind(&table, after, window);
                        match fresh.behind(Class::Ack, EntryId(after), window) {
                            Some(found) => {
                                let found: Vec<i64> = found.iter().map(|entry| entry.id.0).collect();
                                prop_assert_eq!(found, wanted);
                            }
                            None if is_all => {
                                fresh.none_behind(Class::Ack, EntryId(wanted.last().copied().unwrap_or(after)));
                            }
                            None => {}
                        }
                    }
                    Step::Gone { up_to, other } => {
                        fresh.gone(Class::Ack, EntryId(up_to), &[EntryId(other)]);
                        table.retain(|id, _| *id > up_to && *id != other);
                    }
                }
                let tails = fresh.tails();
                prop_assert!(tails[0].entries.len() <= MOST && tails[0].bytes <= MOST_BYTES);
            }
        }
    }

    #[test]
    fn what_has_just_been_kept_is_given_without_the_table() {
        let fresh = Fresh::default();
        let window = Window { entries: 9, bytes: 100 };
        fresh.kept(vec![entry(1, 1)]);
        assert_eq!(fresh.behind(Class::Ack, EntryId(0), window), None, "nothing is known before the table was read");
        fresh.none_behind(Class::Ack, EntryId(1));
        fresh.kept(vec![entry(2, 60), entry(3, 60)]);
        assert_eq!(fresh.behind(Class::Ack, EntryId(1), window), Some(vec![entry(2, 60)]));
        assert_eq!(fresh.behind(Class::Ack, EntryId(0), window), None, "what lies before is the table's");
        fresh.gone(Class::Ack, EntryId(2), &[]);
        assert_eq!(fresh.behind(Class::Ack, EntryId(2), window), Some(vec![entry(3, 60)]));
        fresh.forget();
        assert_eq!(fresh.behind(Class::Ack, EntryId(2), window), None);
    }
}
