//! Groups in a history: a message to `@web` is one message to each node that was in it where it is stored.
//!
//! By the marks in the message's own stream alone, as the protocol says: the last one of a node before the message.

use super::{At, History, Stored, Stream};
use std::collections::{BTreeMap, BTreeSet, HashMap};

impl History {
    /// The same with each message to a group in the place of what it is to each member; one to a group without members
    /// stays as it is.
    pub fn by_member(&self) -> History {
        let mut history = self.clone();
        let mut marks: Vec<&Stored> = self.stored.iter().filter(|stored| stored.mark.is_some()).collect();
        marks.sort_by_key(|stored| stored.at);
        let numbers: HashMap<&str, u32> = self.nodes.iter().map(String::as_str).zip(1..).collect();
        let mut of_groups: BTreeSet<At> = BTreeSet::new();
        history.stored = Vec::with_capacity(self.stored.len());
        for stored in &self.stored {
            let members =
                stored.to.strip_prefix('@').map(|group| members(&marks, group, stored.at)).unwrap_or_default();
            if members.is_empty() {
                history.stored.push(stored.clone());
            } else {
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
}

/// The members of a group where a message is stored.
fn members<'a>(marks: &[&'a Stored], group: &str, at: At) -> Vec<&'a str> {
    let before = marks.partition_point(|mark| mark.at < at);
    let mut is_in: BTreeMap<&str, bool> = BTreeMap::new();
    for mark in marks[..before].iter().filter(|mark| mark.at.stream == at.stream) {
        if let Some((joins, of)) = &mark.mark
            && of == group
        {
            is_in.insert(&mark.to, *joins);
        }
    }
    is_in.into_iter().filter(|(_, is_in)| *is_in).map(|(node, _)| node).collect()
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
