//! Joins and leaves to the sequence, in both streams: for a node that is behind the marks and for one that is ahead of them,
//! under load, with hubs that die.

use super::*;
use edgeward::broker::Outgoing;

/// What is sent to the group, in both streams.
const TO_GROUP: [(&str, StreamKind); 2] =
    [("fleet.msg.@web.command.ops.ping", StreamKind::Commands), ("fleet.msg.@web.event.ops.log", StreamKind::Events)];

/// What its member alone gets: with these its consumers pass what their filters lack.
const TO_NODE: [(&str, StreamKind); 2] =
    [("fleet.msg.ship1.command.ops.ping", StreamKind::Commands), ("fleet.msg.ship1.event.ops.log", StreamKind::Events)];

type Stored = (StreamKind, StreamSeq);

/// As it is named among [`tellers`].
fn name((stream, seq): Stored) -> String {
    match stream {
        StreamKind::Commands => format!("ping.s{seq}"),
        StreamKind::Events => format!("log.e{seq}"),
    }
}

/// Waits until all of these are told, and sees that each is by whom it was for, once: those to the group by the node where
/// it was a member, and by nobody (`_`) elsewhere. How many it was a member for.
async fn each_is_told_once(fleet: &Fleet, spec: &Spec, to_group: &[Stored], to_node: &[Stored]) -> usize {
    let is_member = |(stream, seq): &Stored| spec.belongs(&web(), *stream, *seq) == Belongs::Member;
    let by_group = to_group.iter().map(|at| (name(*at), if is_member(at) { "ship1" } else { "_" }));
    let expected: BTreeMap<String, &str> = by_group.chain(to_node.iter().map(|at| (name(*at), "ship1"))).collect();
    let told = wait_until(LONG, format!("all {} to be told: {spec:?}", expected.len()), async || {
        let told = tellers(fleet).await;
        if told.len() == expected.len() { Ok(told) } else { Err(told.len()) }
    })
    .await;
    for (id, by) in &expected {
        assert_eq!(told.get(id).map(Vec::as_slice), Some(&[(*by).to_owned()][..]), "{id}: {spec:?}");
    }
    to_group.iter().filter(|at| is_member(at)).count()
}

/// Joins and leaves while messages are sent; with `to_node` the node reads on beside those to the group.
async fn under_load(to_node: &'static [(&'static str, StreamKind)]) {
    const TURNS: usize = 60;
    let mut fleet = Fleet::start(&["ship1"]).await;
    let mut second = Process::hub(&fleet.broker.url());
    second.start();
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let client = fleet.broker.client().await;
    let load = tokio::spawn(async move {
        let mut stored: [Vec<Stored>; 2] = Default::default();
        while !*stopped.borrow_and_update() {
            for (subjects, stored) in [&TO_GROUP[..], to_node].into_iter().zip(&mut stored) {
                for (subject, stream) in subjects {
                    let message = Outgoing::new(*subject, "line");
                    stored.push((*stream, client.publish(&message, Duration::from_secs(10)).await.unwrap().seq));
                }
            }
        }
        stored
    });
    for turn in 0..TURNS {
        let is_member = turn % 2 == 0;
        let groups = if is_member { vec![web()] } else { Vec::new() };
        want(&fleet, "ship1", &groups).await;
        // One of the two dies somewhere on the way, and comes back.
        let hub = if turn % 3 == 0 { &mut fleet.hub } else { &mut second };
        hub.restart();
        settled(&fleet, "ship1", is_member).await;
        if turn == TURNS / 2 {
            fleet.agent("ship1").kill();
            fleet.agent("ship1").start();
        }
    }
    stop.send(true).unwrap();
    let [to_group, to_node] = load.await.unwrap();
    let spec = settled(&fleet, "ship1", false).await;
    assert_eq!(spec.groups.len(), TURNS / 2, "{spec:?}");
    let members = each_is_told_once(&fleet, &spec, &to_group, &to_node).await;
    assert!(members > 0, "nothing was sent while it was a member");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_and_leaves_are_exact_under_load_with_hubs_that_die() {
    under_load(&[]).await;
}

/// What it gets beside the group's messages moves its consumers on past those that their filters lack.
#[tokio::test(flavor = "multi_thread")]
async fn joins_and_leaves_are_exact_for_a_node_that_reads_on_meanwhile() {
    under_load(&TO_NODE).await;
}

/// Messages to the group and then to the node, in both streams; it has taken and acked all there is when this returns.
#[cfg(feature = "kill-points")]
async fn volley(fleet: &Fleet, to_group: &mut Vec<Stored>, to_node: &mut Vec<Stored>) {
    for (subjects, stored) in [(&TO_GROUP, to_group), (&TO_NODE, &mut *to_node)] {
        for (subject, stream) in subjects {
            stored.push((*stream, fleet.publish(subject, &[], "line").await.seq));
        }
    }
    for (stream, seq) in &to_node[to_node.len() - 2..] {
        wait_until(SOON, format!("its ack floors to pass {stream:?} {seq}"), async || {
            let progress = fleet.client.consumer_progress(*stream, &"ship1".parse().unwrap()).await.unwrap();
            progress.filter(|progress| progress.ack_floor >= *seq).ok_or_else(|| format!("{progress:?}"))
        })
        .await;
    }
}

/// The hub dies behind each step, and the node, which is there, reads past the place where the next marks will be looked
/// for: past messages to the group that its filters lack, that they bring too early, and behind a leave that it has acked.
#[cfg(feature = "kill-points")]
#[tokio::test(flavor = "multi_thread")]
async fn a_node_ahead_of_the_marks_is_a_member_exactly_between_them() {
    use edgeward::killpoint::{Point, VARIABLE};
    let mut fleet = Fleet::start(&["ship1"]).await;
    let (mut to_group, mut to_node) = (Vec::new(), Vec::new());
    volley(&fleet, &mut to_group, &mut to_node).await;
    let joins =
        [(Point::Planned, 1), (Point::Filtered, 1), (Point::Marked, 1), (Point::Marked, 2), (Point::MarksKnown, 1)];
    let leaves =
        [(Point::Planned, 1), (Point::Marked, 1), (Point::Marked, 2), (Point::MarksKnown, 1), (Point::Drained, 1)];
    for (join, leave) in joins.into_iter().zip(leaves) {
        for ((point, times), is_member) in [(join, true), (leave, false)] {
            fleet.hub.kill();
            want(&fleet, "ship1", &if is_member { vec![web()] } else { Vec::new() }).await;
            fleet.hub.set_env(VARIABLE, &format!("{}:{times}", point.as_str()));
            fleet.hub.start();
            fleet.hub.exited(LONG).await;
            volley(&fleet, &mut to_group, &mut to_node).await;
            fleet.hub.set_env(VARIABLE, "");
            fleet.hub.start();
            settled(&fleet, "ship1", is_member).await;
            volley(&fleet, &mut to_group, &mut to_node).await;
        }
    }
    let spec = settled(&fleet, "ship1", false).await;
    assert_eq!(spec.groups.len(), joins.len(), "marked once each: {spec:?}");
    let members = each_is_told_once(&fleet, &spec, &to_group, &to_node).await;
    assert!(members >= 2 * joins.len(), "one of each volley behind a join at least, in both streams: {members}");
}
