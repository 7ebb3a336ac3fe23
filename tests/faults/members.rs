//! Groups in a history: a message to `@web` is one message to each node that was in it where it is stored.
//!
//! By the marks in the message's own stream alone, as the protocol says: the last one of a node before the message. A cancel
//! is also for those that were in it before, as far as it still reaches them: of these it counts where they have answered.

use super::{At, Class, History, Stored, Stream};
use std::collections::{BTreeMap, BTreeSet, HashMap};

impl History {
    /// The same with each message to a group in the place of what it is to each member; one to a group without members
    /// stays as it is, too.
    pub fn by_member(&self) -> History {
        let mut history = self.clone();
        let mut marks: Vec<&Stored> = self.stored.iter().filter(|stored| stored.mark.is_some()).collect();
        marks.sort_by_key(|stored| stored.at);
        let numbers: HashMap<&str, u32> = self.nodes.iter().map(String::as_str).zip(1..).collect();
        let mut of_groups: BTreeSet<At> = BTreeSet::new();
        history.stored = Vec::with_capacity(self.stored.len());
        let told = self.tellers();
        for stored in &self.stored {
            let (mut members, before) =
                stored.to.strip_prefix('@').map(|group| members(&marks, group, stored.at)).unwrap_or_default();
            if members.is_empty() {
                history.stored.push(stored.clone());
            }
            if stored.kind == "control" {
                members.extend(before.into_iter().filter(|node| told.contains(&(stored.at, node))));
            }
            if !members.is_empty() {
                of_groups.insert(stored.at);
            }
            for node in members {
                let at = At { member: numbers.get(node).copied().unwrap_or(0), ..stored.at };
                history.stored.push(Stored { at, to: node.to_owned(), ..stored.clone() });
            }
        }
        let of_node = |at: At, node: Option<&str>| match node.and_then(|node| numbers.get(node)) {
            Some(&member) if of_groups.contains(&at) => At { member, ..at },
            _ => at,
        };
        for record in &mut history.records {
            record.about = of_node(record.about, record.subject.split('.').nth(2));
        }
        for (node, rows) in &mut history.journals {
            rows.iter_mut().for_each(|row| row.at = of_node(row.at, Some(node)));
        }
        history
    }

    /// Who has ended which message.
    fn tellers(&self) -> BTreeSet<(At, &str)> {
        let terminal = self.records.iter().filter(|record| record.class == Class::Terminal);
        terminal.filter_map(|record| Some((record.about, record.subject.split('.').nth(2)?))).collect()
    }
}

/// The members of a group where a message is stored, and who was one before.
fn members<'a>(marks: &[&'a Stored], group: &str, at: At) -> (Vec<&'a str>, Vec<&'a str>) {
    let before = marks.partition_point(|mark| mark.at < at);
    let mut is_in: BTreeMap<&str, bool> = BTreeMap::new();
    for mark in marks[..before].iter().filter(|mark| mark.at.stream == at.stream) {
        if let Some((joins, of)) = &mark.mark
            && of == group
        {
            is_in.insert(&mark.to, *joins);
        }
    }
    let (now, before): (Vec<_>, Vec<_>) = is_in.into_iter().partition(|(_, is_in)| *is_in);
    let names = |nodes: Vec<(&'a str, bool)>| nodes.into_iter().map(|(node, _)| node).collect();
    (names(now), names(before))
}

impl At {
    /// A place in a stream.
    pub fn new(stream: Stream, seq: u64) -> At {
        At { stream, seq, member: 0 }
    }

    /// The place in the stream, whichever member it is about.
    pub fn whole(self) -> At {
        At { member: 0, ..self }
    }
}
