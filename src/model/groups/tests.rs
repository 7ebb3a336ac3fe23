//! Two hubs, crashes at every step, and steps that are repeated: the marks in the stream and `spec` agree.

use super::*;
use crate::model::node::PerStream;
use proptest::prelude::*;

fn web() -> GroupName {
    "web".parse().unwrap()
}

fn spec() -> Spec {
    let mut spec = Spec::new("n1".parse().unwrap());
    spec.start = PerStream { commands: Some(StreamSeq(1)), events: Some(StreamSeq(1)) };
    spec
}

fn both(seq: u64) -> Starts {
    PerStream { commands: Some(StreamSeq(seq)), events: Some(StreamSeq(seq)) }
}

#[test]
fn a_membership_goes_its_way() {
    let mut spec = spec();
    spec.want_groups = Some(vec!["web".to_owned(), "all".to_owned(), "a.b".to_owned()]);
    assert!(spec.plan_groups(Uuid::new_v4) && !spec.plan_groups(Uuid::new_v4));
    let [Step::Join { marker, .. }] = spec.group_steps()[..] else { panic!("{spec:?}") };
    assert_eq!(spec.belongs(&web(), StreamKind::Commands, StreamSeq(9)), Belongs::Pending);
    assert!(spec.group_done(marker, Done::Marked(both(5))) && !spec.group_done(marker, Done::Marked(both(6))));
    let at = |spec: &Spec, seq| spec.belongs(&web(), StreamKind::Events, StreamSeq(seq));
    assert_eq!((at(&spec, 5), at(&spec, 6)), (Belongs::No, Belongs::Member));

    spec.want_groups = Some(Vec::new());
    assert!(spec.plan_groups(Uuid::new_v4));
    let [Step::Leave { marker, .. }] = spec.group_steps()[..] else { panic!("{spec:?}") };
    assert_eq!(at(&spec, 6), Belongs::Pending, "the leave may lie before it");
    assert!(spec.group_done(marker, Done::Marked(both(8))));
    assert_eq!((at(&spec, 7), at(&spec, 8)), (Belongs::Member, Belongs::No));
    assert!(spec.groups_reached().contains(&web()), "what lies before the leave is still to be taken");
    assert!(!spec.group_done(marker, Done::Drained(both(7))), "judged by what is no longer so");
    assert!(spec.group_done(marker, Done::Drained(both(8))) && spec.groups_reached().is_empty());
    assert_eq!(at(&spec, 7), Belongs::Member, "closed intervals stay");
}

#[test]
fn a_filter_found_missing_has_the_node_read_again_from_its_join_on() {
    let mut spec = spec();
    spec.want_groups = Some(vec!["web".to_owned(), "db".to_owned()]);
    spec.plan_groups(Uuid::new_v4);
    let lacked = [web()];
    let since_join = both(0);
    assert!(
        !spec.read_again(&lacked, since_join, Uuid::new_v4),
        "its marks are not known: the filter may not have been set yet"
    );
    for step in spec.group_steps() {
        let Step::Join { marker, .. } = step else { panic!("{spec:?}") };
        spec.group_done(marker, Done::Marked(both(5)));
    }
    let of_events = PerStream { commands: None, events: Some(StreamSeq(7)) };
    assert!(spec.read_again(&lacked, of_events, Uuid::new_v4));
    let [Step::Again { marker: first, from, .. }] = spec.group_steps()[..] else { panic!("{spec:?}") };
    assert_eq!(from, of_events);
    assert!(spec.read_again(&lacked, since_join, Uuid::new_v4));
    let [Step::Again { ref group, marker, join, from }] = spec.group_steps()[..] else { panic!("{spec:?}") };
    assert_eq!((group, join, from), (&web(), both(5), both(5)), "from the earliest place, never before the join");
    assert!(!spec.again_said(first, both(8)), "what was found since is not in that word");
    assert!(spec.again_said(marker, both(9)) && !spec.again_said(marker, both(9)) && spec.group_steps().is_empty());

    let mut leaving = spec.clone();
    leaving.want_groups = Some(vec!["db".to_owned()]);
    leaving.plan_groups(Uuid::new_v4);
    let [Step::Leave { marker, .. }] = leaving.group_steps()[..] else { panic!("{leaving:?}") };
    leaving.group_done(marker, Done::Marked(both(8)));
    assert_eq!(leaving.group_steps(), [Step::Drain { marker, until: both(9) }], "not before it has read again");

    let mut node = Intervals::default();
    node.learn(&spec, StreamKind::Commands);
    assert_eq!(node.due(), None);
    let again = Mark::Again { group: web(), join: StreamSeq(5), from: None };
    let later = Mark::Again { group: web(), join: StreamSeq(5), from: Some(StreamSeq(7)) };
    node.mark(&later, StreamSeq(8));
    assert_eq!(node.due(), Some(StreamSeq(7)));
    node.mark(&again, StreamSeq(9));
    assert_eq!(node.due(), Some(StreamSeq(5)));
    node.begun_again();
    node.mark(&again, StreamSeq(9));
    assert_eq!(node.due(), None, "the word itself is read again, too");
    assert!(node.contains(&web(), StreamSeq(20)), "it changes no membership");
    node.mark(&Mark::Leave(web()), StreamSeq(10));
    node.mark(&Mark::Join(web()), StreamSeq(11));
    node.mark(&again, StreamSeq(12));
    assert_eq!(node.due(), Some(StreamSeq(5)), "of that join, not of the one that followed");
}

/// A hub: what it is about to do, by the `spec` as it read it.
#[derive(Default)]
struct Hub {
    read: Option<Spec>,
    marked: Option<(Uuid, StreamSeq)>,
}

/// The broker: one stream of marks, without duplicates, and `spec`.
struct World {
    spec: Spec,
    stream: Vec<Option<(Uuid, Mark)>>,
}

impl World {
    fn publish(&mut self, marker: Uuid, mark: Mark) -> StreamSeq {
        let at = |slot: &Option<(Uuid, Mark)>| slot.as_ref().is_some_and(|(id, _)| *id == marker);
        let found = self.stream.iter().position(at);
        let index = found.unwrap_or_else(|| {
            self.stream.push(Some((marker, mark)));
            self.stream.len() - 1
        });
        StreamSeq(index as u64 + 1)
    }

    /// The filters of the groups that are relied on may have been wrong since here: from where at least all that each was for
    /// has to be read again.
    fn doubt(&mut self, since: StreamSeq) -> Option<StreamSeq> {
        let groups: Vec<GroupName> = self.spec.groups_relied_on().collect();
        if !self.spec.read_again(&groups, both(since.0), Uuid::new_v4) {
            return None;
        }
        let doubted = self.spec.groups.iter().filter(|m| m.again.is_some());
        doubted.map(|m| since.max(m.join.commands.unwrap())).min()
    }

    fn turn(&mut self, hub: &mut Hub) {
        if let Some((marker, seq)) = hub.marked.take() {
            self.spec.group_done(marker, Done::Marked(both(seq.0)));
            hub.read = None;
            return;
        }
        let Some(read) = hub.read.take() else {
            self.spec.plan_groups(Uuid::new_v4);
            hub.read = Some(self.spec.clone());
            return;
        };
        match read.group_steps().into_iter().next() {
            Some(Step::Join { group, marker }) => hub.marked = Some((marker, self.publish(marker, Mark::Join(group)))),
            Some(Step::Leave { group, marker }) => {
                hub.marked = Some((marker, self.publish(marker, Mark::Leave(group))));
            }
            Some(Step::Again { group, marker, join, from }) => {
                let join = join.commands.unwrap();
                let said = self.publish(marker, Mark::Again { group, join, from: from.commands });
                self.spec.again_said(marker, both(said.0));
            }
            Some(Step::Drain { marker, until }) => drop(self.spec.group_done(marker, Done::Drained(until))),
            None => {}
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Turn(usize),
    Crash(usize),
    Want(Vec<String>),
    Message,
    Doubt(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0usize..2).prop_map(Act::Turn),
        1 => (0usize..2).prop_map(Act::Crash),
        1 => proptest::sample::subsequence(vec!["web".to_owned(), "db".to_owned()], 0..=2).prop_map(Act::Want),
        2 => Just(Act::Message),
        1 => (0u64..20).prop_map(Act::Doubt),
    ]
}

proptest! {
    #[test]
    fn what_spec_says_is_what_the_stream_says(acts in proptest::collection::vec(act(), 0..120)) {
        let mut world = World { spec: spec(), stream: Vec::new() };
        let mut hubs = [Hub::default(), Hub::default()];
        let mut doubted = None;
        for act in acts {
            match act {
                Act::Turn(hub) => world.turn(&mut hubs[hub]),
                Act::Crash(hub) => hubs[hub] = Hub::default(),
                Act::Want(groups) => world.spec.want_groups = Some(groups),
                Act::Message => world.stream.push(None),
                Act::Doubt(since) => doubted = world.doubt(StreamSeq(since)).into_iter().chain(doubted).min(),
            }
        }
        for _ in 0..40 {
            world.turn(&mut hubs[0]);
        }
        prop_assert!(world.spec.group_steps().is_empty(), "{:?}", world.spec);
        // The node sees the marks alone.
        let mut node = Intervals::default();
        for (index, slot) in world.stream.iter().enumerate() {
            if let Some((_, mark)) = slot {
                node.mark(mark, StreamSeq(index as u64 + 1));
            }
        }
        prop_assert!(doubted.is_none_or(|since| node.due() <= Some(since)) && doubted.is_some() == node.due().is_some());
        // A journal that begins now knows `spec` alone.
        let mut fresh = Intervals::default();
        fresh.learn(&world.spec, StreamKind::Commands);
        for name in ["web", "db"] {
            let group: GroupName = name.parse().unwrap();
            for seq in (1..=world.stream.len() as u64 + 1).map(StreamSeq) {
                let is_mark = world.stream.get(usize::try_from(seq.0).unwrap() - 1).is_some_and(Option::is_some);
                let member = world.spec.belongs(&group, StreamKind::Commands, seq) == Belongs::Member;
                prop_assert!(is_mark || node.contains(&group, seq) == member, "{name} at {seq}: {:?}", world.spec);
                prop_assert!(is_mark || fresh.contains(&group, seq) == member);
                prop_assert!(!member || node.was_member(&group, seq));
            }
            let wanted = world.spec.want_groups.iter().flatten().any(|want| want == name);
            prop_assert_eq!(world.spec.groups_reached().contains(&group), wanted);
        }
    }
}
