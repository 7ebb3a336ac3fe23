//! The checker: does a history keep what `docs/faults` says is proved?
//!
//! Pure. Every rule looks at the whole history and says what breaks it; none trusts another. Its own tests are in
//! `tests/it/faults.rs`.

#[path = "cancels.rs"]
mod cancels;
#[path = "outputs.rs"]
mod outputs;

use super::history::{At, Class, Expect, History, Mark, Record, Sent, Stored, Stream, runner_name};
use std::collections::{BTreeMap, HashMap};

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule, in a few words.
    pub rule: &'static str,
    /// The message's token; empty where it is about none.
    pub id: String,
    /// What is wrong.
    pub text: String,
}

/// A run that ends `interrupted` must have had a kill between these bounds around its life, in ns.
const KILL_SLACK: i64 = 2_000_000_000;

/// All that is wrong with a history.
pub fn check(history: &History) -> Vec<Violation> {
    let history = history.by_member();
    let mut check = Check::new(&history);
    check.what_was_sent_is_stored_once();
    check.every_message_has_one_fate();
    check.fates_are_those_that_were_meant();
    check.cancels_are_carried_out();
    check.runs_are_counted();
    check.lanes_are_in_order();
    check.outputs_are_true();
    check.logs_are_whole();
    check.journals_agree();
    check.results_came_back();
    check.none_left_unasked();
    for text in &history.fallen {
        check.found("a process ended by itself", "", text.clone());
    }
    check.violations
}

struct Check<'a> {
    history: &'a History,
    sent: HashMap<(&'a str, &'a str), &'a Sent>,
    stored: BTreeMap<At, &'a Stored>,
    /// Copies, with their originals.
    copies: BTreeMap<At, At>,
    terminal: BTreeMap<At, Vec<&'a Record>>,
    kills: BTreeMap<String, Vec<i64>>,
    violations: Vec<Violation>,
}

impl<'a> Check<'a> {
    fn new(history: &'a History) -> Check<'a> {
        let mut terminal: BTreeMap<At, Vec<&Record>> = BTreeMap::new();
        for record in history.records.iter().filter(|record| record.class == Class::Terminal) {
            terminal.entry(record.about).or_default().push(record);
        }
        Check {
            history,
            sent: history.sent.iter().map(|sent| ((sent.from.as_str(), sent.id.as_str()), sent)).collect(),
            stored: history.stored.iter().map(|stored| (stored.at, stored)).collect(),
            copies: history.originals(),
            kills: ends_by_kill(history, &terminal),
            terminal,
            violations: Vec::new(),
        }
    }

    fn found(&mut self, rule: &'static str, id: &str, text: impl Into<String>) {
        self.violations.push(Violation { rule, id: id.to_owned(), text: text.into() });
    }

    /// Messages that are no copies, with what was meant by them, where somebody of ours sent them.
    fn originals(&self) -> Vec<(&'a Stored, Option<&'a Sent>)> {
        let is_original = |stored: &&&Stored| !self.copies.contains_key(&stored.at);
        let with_sent = |stored: &&'a Stored| (*stored, self.sent.get(&(&*stored.from, &*stored.id)).copied());
        self.stored.values().filter(is_original).map(with_sent).collect()
    }

    /// The one terminal record of a message.
    fn fate(&self, at: At) -> Option<&'a Record> {
        self.terminal.get(&at).and_then(|records| records.first()).copied()
    }

    fn kills(&self, node: &str) -> &[i64] {
        self.kills.get(node).map_or(&[], Vec::as_slice)
    }

    /// Events run in the agent, commands in its runner: whose kill excuses an `interrupted`, or another try where the message
    /// allows it, of what ran then.
    fn where_it_runs(stored: &Stored) -> String {
        if stored.kind == "event" { stored.to.clone() } else { runner_name(&stored.to) }
    }

    fn what_was_sent_is_stored_once(&mut self) {
        let mut places: HashMap<(&str, &str), Vec<At>> = HashMap::new();
        for stored in self.stored.values() {
            let places = places.entry((&stored.from, &stored.id)).or_default();
            // One to a group is stored once, however many it is for.
            if places.last() != Some(&stored.at.whole()) {
                places.push(stored.at.whole());
            }
        }
        for sent in &self.history.sent {
            let none = Vec::new();
            let places = places.get(&(&*sent.from, &*sent.id)).unwrap_or(&none);
            for at in sent.confirmed.iter().filter(|at| !places.contains(at)) {
                self.found("lost", &sent.id, format!("the broker said that it is stored at {at:?}; it is not there"));
            }
            if sent.taken_from_file && places.is_empty() {
                self.found("lost", &sent.id, "the node took it from inmsg.txt; it is stored nowhere");
            }
            if places.len() > sent.copies {
                let text = format!("stored at {places:?}, sent {} times", sent.copies);
                self.found("stored twice", &sent.id, text);
            }
        }
        for (stored, sent) in self.originals() {
            if sent.is_none() && stored.from != "hub" {
                self.found("from nowhere", &stored.id, format!("nobody sent {} at {:?}", stored.subject, stored.at));
            }
        }
    }

    fn every_message_has_one_fate(&mut self) {
        for stored in self.history.stored.iter() {
            let records = self.terminal.get(&stored.at).map_or(0, Vec::len);
            let Some(original) = self.copies.get(&stored.at).copied() else {
                match records {
                    1 => {}
                    0 => self.found("no terminal record", &stored.id, stored.subject.clone()),
                    n => self.found("several terminal records", &stored.id, format!("{n} of {}", stored.subject)),
                }
                continue;
            };
            if records > 0 {
                self.found("a copy with a terminal record", &stored.id, format!("{:?}", stored.at));
            }
            let told = self.history.records.iter().any(|record| {
                record.about == stored.at
                    && record.class == Class::Progress
                    && record.state == "duplicate"
                    && record.duplicate_of == Some(original.seq)
            });
            if !told {
                let text = format!("{:?} is a copy of {original:?}, which no record tells", stored.at);
                self.found("no word of a copy", &stored.id, text);
            }
        }
        let mut subjects: BTreeMap<&str, usize> = BTreeMap::new();
        for record in &self.history.records {
            if !self.stored.contains_key(&record.about) {
                self.found("a record of nothing", "", format!("{} about {:?}", record.subject, record.about));
            }
            if record.class == Class::Late {
                self.found("a late record", "", format!("{} about {:?}", record.subject, record.about));
            }
            if record.class == Class::Terminal {
                *subjects.entry(&record.subject).or_default() += 1;
            }
        }
        for (subject, _) in subjects.into_iter().filter(|(_, count)| *count > 1) {
            self.found("several terminal records", "", format!("on {subject}"));
        }
    }

    fn fates_are_those_that_were_meant(&mut self) {
        let cancels = self.cancels();
        for (stored, sent) in self.originals() {
            let Some(record) = self.fate(stored.at) else { continue };
            let asked = cancels.get(&stored.at).map_or(&[][..], Vec::as_slice);
            let is_last_try = asked.iter().any(|(cancel, _)| self.fate(cancel.at).is_some_and(cancels::met_it_running));
            let Some(sent) = sent else {
                if record.state != "succeeded" {
                    self.found("a wrong end", &stored.id, format!("{} ended {}", stored.subject, record.state));
                }
                continue;
            };
            // A group that nobody was in.
            let is_nobodys = stored.to.starts_with('@') && record.state == "undeliverable";
            let may_crash = sent.rerun && !self.kills(&Self::where_it_runs(stored)).is_empty();
            if record.state == "interrupted" && !sent.rerun {
                self.is_interrupted_by_a_kill(stored, record);
            } else if !(is_own_end(sent, record, is_last_try, may_crash)
                || is_nobodys
                || record.state == "cancelled" && !asked.is_empty())
            {
                let Record { state, code, attempt, .. } = record;
                let text = format!("{state} {code} at attempt {attempt}, meant was {:?}", sent.expect);
                self.found("a wrong end", &stored.id, text);
            }
        }
    }

    fn is_interrupted_by_a_kill(&mut self, stored: &Stored, record: &Record) {
        let (Some(from), Some(to)) = (record.taken, record.finished) else {
            return self.found("a wrong end", &stored.id, "interrupted, without times");
        };
        let is_between = |at: &i64| (from - KILL_SLACK..=to + KILL_SLACK).contains(at);
        let place = Self::where_it_runs(stored);
        if !self.kills(&place).iter().any(is_between) {
            let text = format!("{place} was not killed between {from} and {to}");
            self.found("interrupted without a kill", &stored.id, text);
        }
    }

    fn runs_are_counted(&mut self) {
        let places: HashMap<(&str, &str), &Stored> = self
            .originals()
            .into_iter()
            .filter(|(stored, _)| stored.kind == "command")
            .map(|(stored, _)| ((stored.to.as_str(), stored.id.as_str()), stored))
            .collect();
        for (node, marks) in &self.history.marks {
            let mut tries: HashMap<&str, BTreeMap<u32, usize>> = HashMap::new();
            for mark in marks.iter().filter(|mark| !mark.is_end) {
                *tries.entry(&mark.id).or_default().entry(mark.attempt).or_default() += 1;
            }
            let mut tries: Vec<_> = tries.into_iter().collect();
            tries.sort_by_key(|(id, _)| *id);
            for (id, tries) in tries {
                let place = places.get(&(node, id)).copied();
                let sent = place.and_then(|stored| self.sent.get(&(&*stored.from, id)).copied());
                let (Some(stored), Some(sent)) = (place, sent) else {
                    self.found("ran out of nowhere", id, format!("on {node}"));
                    continue;
                };
                for (attempt, times) in tries.iter().filter(|(_, times)| **times > 1) {
                    self.found("ran twice", id, format!("attempt {attempt} ran {times} times on {node}"));
                }
                let crashes = if sent.rerun { self.kills(&runner_name(node)).len() } else { 0 };
                let allowed = 1 + sent.retries as usize + crashes;
                if tries.len() > allowed {
                    self.found("ran twice", id, format!("{} tries on {node}, {allowed} allowed", tries.len()));
                }
                let Some(record) = self.fate(stored.at) else { continue };
                let Record { state, attempt, .. } = record;
                let is_beyond = tries.last_key_value().is_some_and(|(last, _)| last > attempt);
                if is_beyond || matches!(&**state, "refused" | "expired" | "undeliverable") {
                    let text = format!("{state} at attempt {attempt}, but tries {:?} ran on {node}", tries.keys());
                    self.found("ran although it was not to", id, text);
                }
            }
        }
    }

    /// Starts in a lane are in stream order, and none begins while the one before it still runs.
    fn lanes_are_in_order(&mut self) {
        let places: HashMap<(&str, &str), &Stored> = self
            .originals()
            .into_iter()
            .map(|(stored, _)| ((stored.to.as_str(), stored.id.as_str()), stored))
            .collect();
        for (node, marks) in &self.history.marks {
            let mut lanes: HashMap<(&str, &str, &str), &Mark> = HashMap::new();
            for mark in marks {
                let Some(stored) = places.get(&(node, &mark.id)) else { continue };
                let lane = (&*stored.from, &*stored.method, &*stored.lane);
                if mark.is_end {
                    // Also what was stopped or timed out is gone before the lane goes on.
                    let now = lanes.get(&lane).filter(|now| (&now.id, now.attempt) != (&mark.id, mark.attempt));
                    if let Some(now) = now {
                        let text = format!("it began on {node} while {} ran", mark.id);
                        self.found("two at once in a lane", &now.id, text);
                    }
                    continue;
                }
                let before = lanes.insert(lane, mark).and_then(|mark| places.get(&(node, &mark.id)));
                if let Some(before) = before.filter(|before| before.at > stored.at) {
                    let text =
                        format!("{} ran after {} on {node}: {} {}", stored.at.seq, before.at.seq, mark.id, before.id);
                    self.found("out of order", &mark.id, text);
                }
            }
        }
    }

    fn journals_agree(&mut self) {
        for (node, rows) in &self.history.journals {
            let by_place: BTreeMap<At, &str> = rows.iter().map(|row| (row.at, row.state.as_str())).collect();
            for row in rows.iter().filter(|row| !row.is_finished) {
                self.found("left in a journal", "", format!("{:?} on {node}", row.at));
            }
            if by_place.len() != rows.len() {
                self.found("taken twice", "", format!("a message stands twice in the journal of {node}"));
            }
            for (stored, _) in self.originals().into_iter().filter(|(stored, _)| stored.to == *node) {
                let told = self.fate(stored.at).map(|record| record.state.as_str());
                let kept = by_place.get(&stored.at).copied();
                if told.is_some() && kept != told && told != Some("undeliverable") {
                    self.found("the journal differs", &stored.id, format!("{kept:?}, but the record says {told:?}"));
                }
            }
        }
        for (node, subjects) in &self.history.outboxes {
            if !subjects.is_empty() {
                self.found("left in an outbox", "", format!("{node}: {}", subjects.join(", ")));
            }
        }
    }

    fn none_left_unasked(&mut self) {
        let is_directive = |stored: &&&Stored| stored.kind == "control" && stored.method == "directive";
        let answers = self.stored.values().filter(is_directive).filter_map(|stored| self.fate(stored.at));
        let asked = answers.filter(|record| record.stdout == b"the agent ends\n").count();
        if self.history.left > asked {
            let text = format!("{} times, asked for {asked} times", self.history.left);
            self.found("an agent left unasked", "", text);
        }
    }

    fn results_came_back(&mut self) {
        for (stored, _) in self.originals() {
            if stored.at.stream == Stream::Events || !self.history.owes_result(stored, &self.copies) {
                continue;
            }
            let lines = self.history.results.get(&stored.from).map_or(&[][..], Vec::as_slice);
            let states: Vec<&str> =
                lines.iter().filter(|(at, _)| *at == stored.at).map(|(_, state)| state.as_str()).collect();
            let told = self.fate(stored.at).map(|record| record.state.as_str());
            if states.len() != 1 || told != states.first().copied() {
                let text = format!("{} was told {states:?}, the record says {told:?}", stored.from);
                self.found("a wrong result", &stored.id, text);
            }
        }
    }
}

/// When what runs on a node was ended: by a kill of where it runs, or by an order to restart its process.
fn ends_by_kill(history: &History, terminal: &BTreeMap<At, Vec<&Record>>) -> BTreeMap<String, Vec<i64>> {
    let mut kills = history.kills.clone();
    for order in history.stored.iter().filter(|stored| stored.kind == "control" && stored.method == "restart") {
        let obeyed = terminal.get(&order.at).into_iter().flatten().filter_map(|record| record.finished);
        kills.entry(runner_name(&order.to)).or_default().extend(obeyed);
    }
    kills
}

/// True where a message may end like this by itself, although nothing interrupted it. `is_last_try`: it was cancelled as it
/// ran, so that no other try followed. `may_crash`: it is tried again where what runs it is killed.
fn is_own_end(sent: &Sent, record: &Record, is_last_try: bool, may_crash: bool) -> bool {
    let Record { attempt, .. } = *record;
    let state = record.state.as_str();
    let failed = |code: i64| state == "failed" && record.exit_code == Some(code);
    match &sent.expect {
        Expect::Success => state == "succeeded" && (may_crash || attempt == 1),
        Expect::Exit(code) => failed(*code) && (attempt == 1 + sent.retries || is_last_try && attempt <= sent.retries),
        Expect::SuccessAt(good) => {
            state == "succeeded" && attempt == *good || is_last_try && failed(cancels::NOT_YET) && attempt < *good
        }
        Expect::Timeout => state == "timed_out",
        Expect::StartBy => matches!(state, "succeeded" | "expired"),
        Expect::Refused(code) => state == "refused" && record.code == *code,
        Expect::NoNode => state == "undeliverable",
        Expect::Order => matches!(state, "succeeded" | "failed"),
    }
}
