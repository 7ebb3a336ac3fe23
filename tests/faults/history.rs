//! What happened in a run, as plain values: what was sent, what the streams hold, what the files and journals say.
//!
//! Read from outside and independent of edgeward's own types, so that an error in those cannot hide itself. Never judges.

#[path = "members.rs"]
mod members;

use std::collections::{BTreeMap, BTreeSet};

/// A message stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    Commands,
    Events,
}

/// Where a message is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    pub stream: Stream,
    pub seq: u64,
    /// Which node of those that a group's message went to; 0 for the message itself.
    pub member: u32,
}

/// What is to become of a message where nothing dies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// It ends well at the first try.
    Success,
    /// Every try ends with this exit code.
    Exit(i64),
    /// It ends well at this try, those before fail.
    SuccessAt(u32),
    /// It never ends by itself.
    Timeout,
    /// It may begin in time or not.
    StartBy,
    /// The node refuses it with this code.
    Refused(&'static str),
    /// No node is there to answer.
    NoNode,
    /// A directive: carried out, or about an error that the node does not know any more.
    Order,
}

/// A message as it was meant; `id` is its token everywhere.
#[derive(Debug, Clone)]
pub struct Sent {
    pub id: String,
    pub from: String,
    pub to: String,
    pub expect: Expect,
    /// Further tries that it allows.
    pub retries: u32,
    /// It may run again after a crash.
    pub rerun: bool,
    /// The message that it cancels, by sender and id, where it is a cancel.
    pub cancels: Option<(String, String)>,
    /// Bytes of output after its first line.
    pub extra_output: u64,
    /// How often it was to be stored.
    pub copies: usize,
    /// Where the broker said that it is stored. A file that a node took is as good as that, without a place.
    pub confirmed: Vec<At>,
    pub taken_from_file: bool,
}

/// A message in a stream. Tokens that its subject does not have are empty.
#[derive(Debug, Clone)]
pub struct Stored {
    pub at: At,
    pub subject: String,
    pub to: String,
    pub kind: String,
    pub from: String,
    pub method: String,
    pub lane: String,
    pub id: String,
    /// That a node joins (true) or leaves this group, where it says so.
    pub mark: Option<(bool, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Terminal,
    Progress,
    Late,
}

/// A record in `FLEET_ACKS`.
#[derive(Debug, Clone)]
pub struct Record {
    pub class: Class,
    pub subject: String,
    /// The message that it is about.
    pub about: At,
    pub state: String,
    pub code: String,
    pub exit_code: Option<i64>,
    pub attempt: u32,
    pub stdout: Vec<u8>,
    pub stdout_bytes: u64,
    /// Begin and end in ns by the broker's clock.
    pub taken: Option<i64>,
    pub finished: Option<i64>,
    pub duplicate_of: Option<u64>,
}

/// A line that a command wrote into its node's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub is_end: bool,
    pub id: String,
    pub attempt: u32,
    pub pid: u32,
}

/// A line of a log file.
#[derive(Debug, Clone)]
pub struct LogLine {
    pub from: String,
    pub file: String,
    pub id: String,
}

/// A row of a journal.
#[derive(Debug, Clone)]
pub struct Row {
    pub at: At,
    pub is_finished: bool,
    pub state: String,
}

/// Everything.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub nodes: BTreeSet<String>,
    pub sent: Vec<Sent>,
    pub stored: Vec<Stored>,
    pub records: Vec<Record>,
    pub marks: BTreeMap<String, Vec<Mark>>,
    pub logs: BTreeMap<String, Vec<LogLine>>,
    pub journals: BTreeMap<String, Vec<Row>>,
    /// Subjects that wait in a node's outbox.
    pub outboxes: BTreeMap<String, Vec<String>>,
    /// Lines of `acks.jsonl`: the command, its state.
    pub results: BTreeMap<String, Vec<(At, String)>>,
    /// When a node's agent was killed, or its runner ([`runner_name`]), in ns.
    pub kills: BTreeMap<String, Vec<i64>>,
    /// Processes that ended although nobody killed them.
    pub fallen: Vec<String>,
    /// How often an agent ended by a directive.
    pub left: usize,
}

impl History {
    /// For each stored message the first with its identity, where it is a copy. A node's journal knows which was first; of
    /// those that the hub answers, because no node can, it is the one that was answered first: the hub works on many at once.
    pub fn originals(&self) -> BTreeMap<At, At> {
        let mut first: BTreeMap<(&str, &str, &str, &str), At> = BTreeMap::new();
        let mut originals = BTreeMap::new();
        let is_by_hub = |record: &&Record| record.class == Class::Terminal && record.state == "undeliverable";
        let by_hub: BTreeSet<At> = self.records.iter().filter(is_by_hub).map(|record| record.about).collect();
        let mut stored: Vec<&Stored> = self.stored.iter().collect();
        stored.sort_by_key(|message| (!by_hub.contains(&message.at), message.at));
        for message in stored {
            let key = (message.to.as_str(), message.from.as_str(), message.id.as_str(), message.kind.as_str());
            let original = *first.entry(key).or_insert(message.at);
            if original != message.at {
                originals.insert(message.at, original);
            }
        }
        originals
    }

    /// What is still to come: messages without a fate, results that have not come back.
    pub fn open(&self) -> Vec<String> {
        self.by_member().open_of_all()
    }

    fn open_of_all(&self) -> Vec<String> {
        let copies = self.originals();
        let of = |class: Class| -> BTreeSet<At> {
            self.records.iter().filter(|r| r.class == class).map(|r| r.about).collect()
        };
        let (terminal, progress) = (of(Class::Terminal), of(Class::Progress));
        let returned: BTreeSet<(&str, At)> =
            self.results.iter().flat_map(|(node, all)| all.iter().map(move |(at, _)| (node.as_str(), *at))).collect();
        let mut open = Vec::new();
        for message in &self.stored {
            let has_fate = match copies.get(&message.at) {
                Some(_) => progress.contains(&message.at),
                None => terminal.contains(&message.at),
            };
            if !has_fate {
                open.push(format!("{} {} has no fate", message.subject, message.id));
            } else if self.owes_result(message, &copies) && !returned.contains(&(message.from.as_str(), message.at)) {
                open.push(format!("{} {}: no result has come back", message.subject, message.id));
            }
        }
        open
    }

    /// True for a command of a node: what became of it comes back.
    pub fn owes_result(&self, message: &Stored, copies: &BTreeMap<At, At>) -> bool {
        message.kind == "command" && self.nodes.contains(&message.from) && !copies.contains_key(&message.at)
    }

    /// Everything that is known about a message and its cancels, one line each.
    pub fn tell(&self, id: &str) -> Vec<String> {
        let concerns = |one: &&Sent| one.id == id || one.cancels.as_ref().is_some_and(|(_, cancelled)| cancelled == id);
        let sent: Vec<&Sent> = self.sent.iter().filter(concerns).collect();
        let mut lines: Vec<String> = sent.iter().map(|one| format!("sent: {one:?}")).collect();
        let is_named = |stored: &&Stored| stored.id == id || sent.iter().any(|one| one.id == stored.id);
        let stored: Vec<&Stored> = self.stored.iter().filter(is_named).collect();
        let is_about = |at: At| stored.iter().any(|one| one.at == at);
        lines.extend(stored.iter().map(|one| format!("stored: {one:?}")));
        for record in self.records.iter().filter(|one| is_about(one.about)) {
            let Record { class, subject, about, state, code, attempt, taken, finished, .. } = record;
            let output = String::from_utf8_lossy(&record.stdout[..record.stdout.len().min(80)]).into_owned();
            lines.push(format!(
                "record: {class:?} {subject} about {about:?}: {state} {code} attempt {attempt}, {taken:?} to {finished:?}, {output:?}"
            ));
        }
        for (node, marks) in &self.marks {
            lines.extend(marks.iter().filter(|one| one.id == id).map(|one| format!("file of {node}: {one:?}")));
        }
        for (node, logged) in &self.logs {
            lines.extend(logged.iter().filter(|one| one.id == id).map(|one| format!("log of {node}: {one:?}")));
        }
        for one in &stored {
            for place in [one.to.clone(), runner_name(&one.to)] {
                let kills = self.kills.get(&place).map_or(&[][..], Vec::as_slice);
                lines.push(format!("kills of {place}: {kills:?}"));
            }
        }
        for (node, rows) in &self.journals {
            lines.extend(rows.iter().filter(|one| is_about(one.at)).map(|one| format!("journal of {node}: {one:?}")));
        }
        lines
    }
}

/// Under which name the kills of a node's runner are told.
pub fn runner_name(node: &str) -> String {
    format!("the runner of {node}")
}
