//! Groups: nodes that join and leave while messages are sent to them.
//!
//! Owns the wishes and the messages to groups. Who was a member of what is read from the stream afterwards.

use super::chaos::Shared;
use super::dice::Dice;
use super::load::{Planned, cancel, command, event};
use super::options::Options;
use edgeward::broker::Broker;
use edgeward::model::name::GroupName;
use edgeward::operator::want_groups;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const GROUPS: [&str; 2] = ["web", "db"];

/// Messages to groups, a tenth of the load, and cancels of some, to the group as it is then.
pub fn plan(options: &Options, files: &dyn Fn(&str) -> String) -> Vec<Planned> {
    if options.joins == 0 {
        return Vec::new();
    }
    let mut dice = Dice::new(options.seed, "messages to groups");
    let moments = dice.moments(options.messages / 10, options.duration());
    let mut cancels = Dice::new(options.seed, "cancels to groups");
    let message = |(number, when): (usize, Duration)| {
        let (id, to) = (format!("g{number:06}"), format!("@{}", dice.pick(&GROUPS)));
        let planned = if dice.percent(30) {
            event(&mut dice, id, when, &to)
        } else {
            // Each member writes into a file of its own.
            command(&mut dice, id, when, &to, &files("$EDGEWARD_MSG_NODE"))
        };
        let cancel = cancel(&mut cancels, 25, &planned);
        [Some(planned), cancel].into_iter().flatten()
    };
    moments.into_iter().enumerate().flat_map(message).collect()
}

/// Has nodes join and leave now and then, each in its turn or as soon after it as the broker lets it.
pub async fn change(options: Options, broker: Broker, shared: Shared, give_up: Instant) {
    let mut dice = Dice::new(options.seed, "groups");
    for when in dice.moments(options.joins, options.duration()) {
        let node = dice.pick(&options.node_names()).parse().unwrap();
        let wanted: Vec<GroupName> =
            GROUPS.iter().filter(|_| dice.percent(55)).map(|group| group.parse().unwrap()).collect();
        if !shared.wait(when).await {
            return;
        }
        while want_groups(&broker, &node, &wanted).await.is_err() && Instant::now() < give_up {
            sleep(Duration::from_millis(200)).await;
        }
        shared.count("groups_changed");
    }
}
