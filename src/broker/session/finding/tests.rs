//! The stepping, against a model of a stream and a journal.

use super::*;
use crate::model::message::StreamKind;
use crate::model::time::Timestamp;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn at(seq: u64, stored_at: i64) -> MsgRef {
    MsgRef { stream: StreamKind::Commands, seq: StreamSeq(seq), stored_at: Timestamp::from_nanos(stored_at) }
}

/// A stream and what a node has taken from it.
#[derive(Debug, Clone, Default)]
struct World {
    /// What is stored, in order: the message, and whether the node's filters reach it.
    stream: Vec<(MsgRef, bool)>,
    /// The next sequence, and the broker's clock.
    next: u64,
    clock: i64,
    /// How often it was restored; no two copies store at the same nanosecond.
    copies: i64,
    /// What was taken, in order of taking.
    rows: Vec<MsgRef>,
    position: Option<MsgRef>,
    /// What was stored no later counts as taken, in this session and those that follow.
    known_until: i64,
    /// Below this place in `rows` they have been thinned.
    thinned: usize,
}

/// What came of one session.
#[derive(Debug, Default)]
struct Session {
    found: Option<Found>,
    /// What the stream decided in the end.
    decided: Option<Found>,
    taken: Vec<MsgRef>,
    looks: usize,
}

impl World {
    fn store(&mut self, is_reached: bool) {
        self.next += 1;
        self.clock += 1;
        self.stream.push((at(self.next, self.clock * 1000 + self.copies), is_reached));
    }

    /// An older copy of the store, as it was when it held `len` messages, which has run elsewhere for a while: what is
    /// stored in it next may be older than what the node took here.
    fn restore(&mut self, len: usize, clock: i64) {
        let lost = self.stream.split_off(len.min(self.stream.len()));
        if let Some((first, _)) = lost.first() {
            self.next = first.seq.0 - 1;
            let last = self.stream.last().map_or(0, |(at, _)| at.stored_at.nanos() / 1000);
            self.clock = clock.max(last);
            self.copies += 1;
        }
    }

    fn first(&self, from: StreamSeq) -> Option<MsgRef> {
        self.stream.iter().find(|(at, reached)| *reached && at.seq >= from).map(|(at, _)| *at)
    }

    fn knows(&self, at: MsgRef) -> bool {
        self.rows[self.thinned..].contains(&at) || self.position == Some(at)
    }

    fn earlier(&self, steps: u64) -> Option<Earlier> {
        let kept = self.rows[self.thinned..].iter().rev().filter(|row| Some(**row) != self.position);
        let all = self.position.iter().chain(kept).zip(0..).map(|(at, steps)| Earlier { at: *at, steps });
        all.take_while(|earlier| earlier.steps <= steps).last()
    }

    /// A session to the stream's end.
    fn session(&mut self) -> Session {
        let mut session = Session::default();
        let mut from = StreamSeq(1);
        let (mut doubt, position) = (None, self.position);
        if let Some(position) = position {
            let (mut finding, mut ask) = Finding::new(position, position, StreamSeq(1));
            loop {
                let heard = match ask {
                    Ask::First(seq) => {
                        session.looks += 1;
                        from = seq;
                        Heard::First(self.first(seq))
                    }
                    Ask::Earlier(steps) => Heard::Earlier(self.earlier(steps)),
                    Ask::Done(found, in_doubt) => {
                        (session.found, doubt) = (Some(found), in_doubt);
                        if found == Found::Changed {
                            self.known_until = self.known_until.max(position.stored_at.nanos());
                        }
                        break;
                    }
                };
                ask = finding.next(heard);
            }
        }
        session.decided = session.found;
        let coming: Vec<MsgRef> =
            self.stream.iter().filter(|(at, reached)| *reached && at.seq >= from).map(|(at, _)| *at).collect();
        for at in coming {
            if let Some(decided) = doubt.and_then(|doubt| doubt.over(at)) {
                doubt = None;
                session.decided = decided.or(session.found);
            }
            if !self.knows(at) && at.stored_at.nanos() > self.known_until {
                session.taken.push(at);
                self.rows.push(at);
            }
            self.position = Some(at);
        }
        session
    }
}

#[derive(Debug, Clone)]
enum Act {
    Store(bool),
    Session,
    /// Back to this share of its length, with the clock so far behind.
    Restore(f64, i64),
    /// What is older goes.
    Purge(f64),
    Delete(f64),
    /// So much of the journal is thinned.
    Thin(f64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => any::<bool>().prop_map(Act::Store),
        3 => Just(Act::Session),
        1 => (0.0..1.0, 0i64..10).prop_map(|(share, behind)| Act::Restore(share, behind)),
        1 => (0.0..1.0).prop_map(Act::Purge),
        1 => (0.0..1.0).prop_map(Act::Delete),
        1 => (0.0..0.6).prop_map(Act::Thin),
    ]
}

fn share(len: usize, share: f64) -> usize {
    (len as f64 * share) as usize
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever is cut off, put back, purged, deleted and thinned: a session takes exactly what was never taken. Where
    /// no row matched any more, what is older than the position was then may be left out; nothing else may, ever.
    #[test]
    fn exactly_what_was_not_taken_is_taken(acts in proptest::collection::vec(act(), 1..60)) {
        let mut world = World::default();
        let mut ever: BTreeSet<MsgRef> = BTreeSet::new();
        for act in acts.into_iter().chain([Act::Session]) {
            match act {
                Act::Store(is_reached) => world.store(is_reached),
                Act::Restore(part, behind) => {
                    let clock = world.clock - behind;
                    world.restore(share(world.stream.len(), part), clock);
                }
                Act::Purge(part) => drop(world.stream.drain(..share(world.stream.len(), part))),
                Act::Delete(part) => {
                    let at = share(world.stream.len(), part);
                    if at < world.stream.len() {
                        world.stream.remove(at);
                    }
                }
                Act::Thin(part) => {
                    // A row goes when the stream cannot give its message any more.
                    let kept = &world.rows[world.thinned..];
                    let gone = kept.iter().take_while(|row| !world.stream.iter().any(|(at, _)| at == *row)).count();
                    world.thinned += share(kept.len(), part).min(gone);
                }
                Act::Session => {
                    let missing: BTreeSet<MsgRef> = world.stream.iter()
                        .filter(|(at, reached)| *reached && !ever.contains(at)).map(|(at, _)| *at).collect();
                    let session = world.session();
                    let taken: BTreeSet<MsgRef> = session.taken.iter().copied().collect();
                    prop_assert_eq!(taken.len(), session.taken.len(), "twice in one session");
                    prop_assert!(taken.is_disjoint(&ever), "taken again: {:?}", session);
                    for left in missing.difference(&taken) {
                        let excused = left.stored_at.nanos() <= world.known_until;
                        prop_assert!(excused, "left out {:?} of {:?}: {:?}", left, missing, session);
                    }
                    ever.extend(taken);
                    // What was left out counts as taken.
                    ever.extend(missing);
                }
            }
        }
    }

    /// Cutting off the end is told, and found in a number of looks that grows with the logarithm of what was cut off.
    #[test]
    fn a_shorter_stream_is_told_in_few_looks(len in 1usize..200, part in 0.0..1.0f64, more in 0usize..300) {
        let mut world = World::default();
        (0..len).for_each(|_| world.store(true));
        world.session();
        let cut = share(len, part).min(len - 1);
        let clock = world.clock;
        world.restore(cut, clock);
        (0..more).for_each(|_| world.store(true));
        let session = world.session();
        prop_assert_eq!(session.taken.len(), more);
        match session.decided {
            Some(Found::SteppedBack { agreed, .. }) => prop_assert!(cut > 0 && agreed.seq.0 <= cut as u64),
            Some(Found::Changed) => prop_assert!(cut == 0 && more > 0),
            // Nothing is there, and nothing comes that would tell.
            found => prop_assert!(cut == 0 && more == 0 && found == Some(Found::Purged), "{:?}", found),
        }
        prop_assert!(session.looks <= 5 + (len as f64).log2() as usize, "{} looks", session.looks);
    }

    /// A purge from the old end is nothing to tell, however far it goes.
    #[test]
    fn a_purge_is_not_told(len in 1usize..50, part in 0.0..=1.0f64, more in 0usize..20) {
        let mut world = World::default();
        (0..len).for_each(|_| world.store(true));
        world.session();
        (0..more).for_each(|_| world.store(true));
        let gone = share(world.stream.len(), part);
        world.stream.drain(..gone);
        let left = world.stream.iter().filter(|(at, _)| at.seq.0 > len as u64).count();
        let session = world.session();
        prop_assert_eq!(session.taken.len(), left);
        prop_assert!(matches!(session.decided, Some(Found::InPlace | Found::Purged)), "{:?}", session);
        world.store(true);
        let session = world.session();
        prop_assert_eq!(session.taken.len(), 1);
        prop_assert!(matches!(session.decided, Some(Found::InPlace | Found::Purged)), "{:?}", session);
    }
}

#[test]
fn a_deleted_anchor_with_newer_messages_behind_it_is_not_told() {
    let mut world = World::default();
    (0..5).for_each(|_| world.store(true));
    world.session();
    world.stream.pop();
    world.store(true);
    let session = world.session();
    assert_eq!((session.taken, session.decided), (vec![at(6, 6000)], Some(Found::Purged)));
}

#[test]
fn a_restored_stream_that_has_grown_past_the_position_is_not_taken_for_a_purge() {
    let mut world = World::default();
    (0..5).for_each(|_| world.store(true));
    world.session();
    let clock = world.clock;
    world.restore(3, clock);
    // 4 is the node's, 5 another's, 6 the node's.
    [true, false, true].into_iter().for_each(|reached| world.store(reached));
    let session = world.session();
    assert_eq!(session.taken, vec![at(4, 6001), at(6, 8001)]);
    assert_eq!(session.decided, Some(Found::SteppedBack { steps: 2, agreed: at(3, 3000) }));
}

#[test]
fn an_anchor_out_of_reach_is_no_change() {
    // The position was taken for a group that the node has left: the session begins at the message before it.
    let (mut finding, ask) = Finding::new(at(9, 90), at(7, 70), StreamSeq(1));
    assert_eq!(ask, Ask::First(StreamSeq(7)));
    assert_eq!(finding.next(Heard::First(Some(at(7, 70)))), Ask::Done(Found::InPlace, None));
}
