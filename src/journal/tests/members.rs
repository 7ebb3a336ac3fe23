//! Memberships that several change at once: none is lost, whichever is kept last.

use super::*;
use crate::model::groups::{Intervals, Mark};
use crate::model::name::GroupName;
use crate::model::node::{PerStream, Spec};
use proptest::prelude::*;

fn web() -> GroupName {
    "web".parse().unwrap()
}

/// A member between these two places, or still, in both streams.
fn member(join: u64, leave: Option<u64>) -> Spec {
    let mut spec = Spec::new("n1".parse().unwrap());
    spec.want_groups = Some(vec!["web".to_owned()]);
    spec.plan_groups(uuid::Uuid::new_v4);
    let both = |seq: Option<u64>| PerStream { commands: seq.map(StreamSeq), events: seq.map(StreamSeq) };
    (spec.groups[0].join, spec.groups[0].leave) = (both(Some(join)), both(leave));
    spec
}

/// What changes memberships.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Joined(StreamKind),
    Left(StreamKind),
    Again(StreamKind),
    Begun(StreamKind),
    Learnt { left: bool },
}

impl Change {
    async fn is_kept(self, journal: &Journal) {
        let marked = |stream, seq, mark| {
            let door = Door::Over { state: State::Succeeded, reports: vec![], remember: vec![Remember::Mark(mark)] };
            let mut arrival = arrival(seq, &format!("{stream:?}-{seq}"), door);
            arrival.message.at.stream = stream;
            take(journal, vec![arrival])
        };
        match self {
            Change::Joined(stream) => drop(marked(stream, 5, Mark::Join(web())).await),
            Change::Left(stream) => drop(marked(stream, 9, Mark::Leave(web())).await),
            Change::Again(stream) => {
                drop(marked(stream, 12, Mark::Again { group: web(), join: StreamSeq(5), from: None }).await);
            }
            Change::Begun(stream) => journal.go_back(stream, StreamSeq(5), Arc::new([])).await.unwrap(),
            Change::Learnt { left } => journal.learn_members(member(5, left.then_some(9))).await.unwrap(),
        }
    }
}

/// The changes in the order in which each of the three who make them does so.
fn threads() -> [Vec<Change>; 3] {
    let of = |stream| vec![Change::Joined(stream), Change::Left(stream), Change::Again(stream), Change::Begun(stream)];
    let learnt = vec![Change::Learnt { left: false }, Change::Learnt { left: true }];
    [of(StreamKind::Commands), of(StreamKind::Events), learnt]
}

async fn kept(journal: &Journal) -> PerStream<Intervals> {
    journal.members().await.unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn what_was_kept_last_undoes_nothing(turns in proptest::collection::vec(0usize..3, 0..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bed = Bed::new();
            let journal = bed.open();
            let mut rest = threads();
            // What is left is done one after the other.
            for turn in turns.into_iter().chain([0, 1, 2].into_iter().flat_map(|thread| [thread; 4])) {
                if !rest[turn].is_empty() {
                    rest[turn].remove(0).is_kept(&journal).await;
                }
            }
            drop(journal);
            let members = kept(&bed.open()).await;
            for stream in StreamKind::ALL {
                let is_member = |seq| members.get(stream).contains(&web(), StreamSeq(seq));
                let found: Vec<u64> = (1..14).filter(|seq| is_member(*seq)).collect();
                assert_eq!(found, [6, 7, 8], "{members:?}");
                assert_eq!(members.get(stream).due(), None, "{members:?}");
            }
        });
    }
}

#[tokio::test]
async fn one_stream_that_begins_again_leaves_the_other_due() {
    let bed = Bed::new();
    let journal = bed.open();
    journal.learn_members(member(5, None)).await.unwrap();
    for stream in StreamKind::ALL {
        Change::Again(stream).is_kept(&journal).await;
    }
    Change::Begun(StreamKind::Commands).is_kept(&journal).await;
    drop(journal);
    let members = kept(&bed.open()).await;
    assert_eq!((members.commands.due(), members.events.due()), (None, Some(StreamSeq(5))));
}

#[tokio::test]
async fn a_text_that_does_not_read_is_replaced_by_what_is_learnt() {
    let bed = Bed::new();
    let journal = bed.open();
    journal.set_meta(Key::Members, "{").await.unwrap();
    assert_eq!(kept(&journal).await, PerStream::default());
    journal.learn_members(member(5, None)).await.unwrap();
    assert!(kept(&journal).await.events.contains(&web(), StreamSeq(6)));
}
