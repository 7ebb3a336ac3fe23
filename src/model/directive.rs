//! The error kernel as a value: which directive a failure gets, by a table of rules and by what has failed
//! before.
//!
//! ```text
//! failure → each rule that matches counts it; the first whose count is reached within its window decides
//!         → none: continue
//!         → restart, and the process has been restarted too often lately: stop
//!         → stop, and processes have been stopped too often lately: shutdown
//! ```
//!
//! Owns the rules, the built-in ones too, and the counting. No clock: time is handed in. Never carries anything out.

use super::error_event::{Code, Directive, Severity};
use super::time::{duration_text, format_duration};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// The largest count of a rule: each keeps that many times per process.
const MOST: u32 = 1000;

/// One line of the policy table: `[[agent.errors]]`. What it does not name matches anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The failure's code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// Its severity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// The process that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// How many such failures of one process within the window it takes.
    #[serde(default = "one")]
    pub count: u32,
    /// The window.
    #[serde(default = "ten_minutes", with = "duration_text")]
    pub window: Duration,
    /// What is done then.
    pub directive: Directive,
}

fn one() -> u32 {
    1
}

fn ten_minutes() -> Duration {
    Duration::from_secs(600)
}

impl Rule {
    /// What is wrong with it, where something is.
    pub fn problem(&self) -> Option<String> {
        if self.code == Some(Code::Other) {
            return Some("`agent.errors`: there is no such `code`".to_owned());
        }
        if self.count == 0 || self.count > MOST {
            return Some(format!("`agent.errors`: a `count` is from 1 to {MOST}"));
        }
        self.window.is_zero().then(|| "`agent.errors`: a `window` is not 0".to_owned())
    }

    fn matches(&self, failure: &Failure) -> bool {
        self.code.is_none_or(|code| code == failure.code)
            && self.severity.is_none_or(|severity| severity == failure.severity)
            && self.process.as_ref().is_none_or(|process| failure.process.as_ref() == Some(process))
    }
}

/// When one directive is not enough any more: `[agent.escalation]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Escalation {
    /// How often a process may be restarted within the window; then it is stopped.
    pub restarts: u32,
    /// How often processes of the node may be stopped within the window; then the agent ends.
    pub stops: u32,
    /// The window.
    #[serde(with = "duration_text")]
    pub window: Duration,
}

impl Default for Escalation {
    fn default() -> Escalation {
        Escalation { restarts: 5, stops: 3, window: ten_minutes() }
    }
}

impl Escalation {
    /// What is wrong with it, where something is.
    pub fn problem(&self) -> Option<String> {
        let bad = self.restarts > MOST || self.stops > MOST || self.window.is_zero();
        bad.then(|| format!("`agent.escalation`: `restarts` and `stops` are at most {MOST}, the `window` is not 0"))
    }
}

/// The rules that hold behind the configured ones.
fn built_in() -> [Rule; 1] {
    // A handler that panics is at fault itself, whatever its message said.
    [Rule {
        code: Some(Code::Panicked),
        severity: None,
        process: None,
        count: 1,
        window: ten_minutes(),
        directive: Directive::Restart,
    }]
}

/// What has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The code of its error event.
    pub code: Code,
    /// Its severity.
    pub severity: Severity,
    /// The process; `None` for a part of the agent.
    pub process: Option<String>,
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// The directive.
    pub directive: Directive,
    /// Why, where more than this failure led to it.
    pub why: Option<String>,
}

impl Ruling {
    /// Nothing special.
    pub fn go_on() -> Ruling {
        Ruling { directive: Directive::Continue, why: None }
    }
}

/// The times of what happened lately; never more than it takes to judge.
#[derive(Debug, Clone, Default)]
struct Lately(VecDeque<Duration>);

impl Lately {
    /// One more at `at`; true where that makes `count` within `window`. Then counting begins anew.
    fn reaches(&mut self, at: Duration, count: u32, window: Duration) -> bool {
        self.0.push_back(at);
        while self.0.front().is_some_and(|first| at.saturating_sub(*first) > window) {
            self.0.pop_front();
        }
        let reached = self.0.len() >= count as usize;
        if reached {
            self.0.clear();
        }
        reached
    }
}

/// The kernel: rules, and what it remembers.
#[derive(Debug, Clone)]
pub struct Kernel {
    rules: Vec<Rule>,
    escalation: Escalation,
    heard: HashMap<(usize, Option<String>), Lately>,
    restarts: HashMap<String, Lately>,
    stops: Lately,
}

impl Kernel {
    /// A kernel with these rules, the built-in ones behind them.
    pub fn new(rules: &[Rule], escalation: Escalation) -> Kernel {
        let rules = rules.iter().cloned().chain(built_in()).collect();
        Kernel { rules, escalation, heard: HashMap::new(), restarts: HashMap::new(), stops: Lately::default() }
    }

    /// Something has failed at `at`, by any clock that only goes forward.
    pub fn next(&mut self, failure: &Failure, at: Duration) -> Ruling {
        let mut ruling = Ruling::go_on();
        let mut decided = false;
        for (number, rule) in self.rules.iter().enumerate().filter(|(_, rule)| rule.matches(failure)) {
            let lately = self.heard.entry((number, failure.process.clone())).or_default();
            if lately.reaches(at, rule.count, rule.window) && !decided {
                decided = true;
                let many = rule.count > 1;
                let why = many.then(|| format!("{} within {}", rule.count, format_duration(rule.window)));
                ruling = Ruling { directive: rule.directive, why };
            }
        }
        match (&failure.process, ruling.directive) {
            (Some(process), _) => self.escalated(process, ruling, at),
            // There is nothing to restart or to stop.
            (None, Directive::Restart | Directive::Stop | Directive::Retry) => Ruling::go_on(),
            (None, _) => ruling,
        }
    }

    fn escalated(&mut self, process: &str, mut ruling: Ruling, at: Duration) -> Ruling {
        let Escalation { restarts, stops, window } = self.escalation;
        let within = format_duration(window);
        if ruling.directive == Directive::Restart {
            let lately = self.restarts.entry(process.to_owned()).or_default();
            if lately.reaches(at, restarts.saturating_add(1), window) {
                let why = format!("restarted {restarts} times within {within} and failing again");
                ruling = Ruling { directive: Directive::Stop, why: Some(why) };
            }
        }
        if ruling.directive == Directive::Stop && self.stops.reaches(at, stops.saturating_add(1), window) {
            let why = format!("processes were stopped {stops} times within {within}, and `{process}` is failing");
            ruling = Ruling { directive: Directive::Shutdown, why: Some(why) };
        }
        ruling
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn failure(process: &str, code: Code) -> Failure {
        Failure { code, severity: Severity::Warning, process: Some(process.to_owned()) }
    }

    fn rule(code: Option<Code>, count: u32, directive: Directive) -> Rule {
        Rule { code, severity: None, process: None, count, window: Duration::from_secs(10), directive }
    }

    fn directives(kernel: &mut Kernel, failure: &Failure, seconds: impl Iterator<Item = u64>) -> Vec<Directive> {
        seconds.map(|second| kernel.next(failure, Duration::from_secs(second)).directive).collect()
    }

    #[test]
    fn without_a_rule_all_goes_on_but_for_panics() {
        let mut kernel = Kernel::new(&[], Escalation::default());
        let all = directives(&mut kernel, &failure("shell", Code::Failed), 0..1000);
        assert!(all.iter().all(|directive| *directive == Directive::Continue));
        assert_eq!(kernel.next(&failure("shell", Code::Panicked), Duration::ZERO).directive, Directive::Restart);
    }

    #[test]
    fn the_first_rule_whose_count_is_reached_in_its_window_decides() {
        use Directive::{Continue, Restart, Retry};
        let rules = [rule(Some(Code::TimedOut), 1, Continue), rule(None, 3, Retry)];
        let mut kernel = Kernel::new(&rules, Escalation::default());
        let failed = failure("shell", Code::Failed);
        assert_eq!(directives(&mut kernel, &failed, [0, 1, 2, 3].into_iter()), [Continue, Continue, Retry, Continue]);
        assert_eq!(directives(&mut kernel, &failed, [100, 109, 120].into_iter()), [Continue; 3], "too slowly");
        // Ahead of the built-in rule for panics.
        let mut kernel = Kernel::new(&[rule(Some(Code::Panicked), 1, Continue)], Escalation::default());
        assert_eq!(kernel.next(&failure("log", Code::Panicked), Duration::ZERO).directive, Continue);
        // Each process is counted for itself.
        let mut kernel = Kernel::new(&[rule(None, 2, Restart)], Escalation::default());
        let mut next = |process: &str| kernel.next(&failure(process, Code::Failed), Duration::ZERO).directive;
        assert_eq!([next("shell"), next("exec"), next("exec")], [Continue, Continue, Restart]);
    }

    #[test]
    fn what_repeats_grows_from_restart_over_stop_to_shutdown() {
        use Directive::{Restart, Shutdown, Stop};
        let escalation = Escalation { restarts: 2, stops: 1, window: Duration::from_secs(60) };
        let mut kernel = Kernel::new(&[], escalation);
        let panicked = failure("log", Code::Panicked);
        let all = directives(&mut kernel, &panicked, 0..6);
        assert_eq!(all, [Restart, Restart, Stop, Restart, Restart, Shutdown]);
        let why = directives(&mut kernel, &panicked, [100, 200, 300, 400].into_iter());
        assert_eq!(why, [Restart; 4], "seldom enough");
    }

    #[test]
    fn a_part_of_the_agent_cannot_be_restarted_by_a_rule() {
        let part = Failure { code: Code::Journal, severity: Severity::Critical, process: None };
        let next = |directive| {
            Kernel::new(&[rule(None, 1, directive)], Escalation::default()).next(&part, Duration::ZERO).directive
        };
        assert_eq!(next(Directive::Restart), Directive::Continue);
        assert_eq!(next(Directive::Shutdown), Directive::Shutdown);
    }

    #[test]
    fn rules_are_read_as_they_are_written() {
        let read: Rule =
            toml::from_str("code = \"failed\"\nprocess = \"shell\"\ncount = 3\nwindow = \"1m\"\ndirective = \"stop\"")
                .unwrap();
        assert_eq!((read.count, read.window, read.directive), (3, Duration::from_secs(60), Directive::Stop));
        assert_eq!(read.problem(), None);
        assert!(toml::from_str::<Rule>("code = \"failed\"").is_err(), "no directive");
        let read: Rule = toml::from_str("code = \"exploded\"\ndirective = \"stop\"").unwrap();
        assert!(read.problem().unwrap().contains("code"));
        assert!(Rule { count: 0, code: None, ..read }.problem().unwrap().contains("count"));
    }

    proptest! {
        /// Whatever fails when: no process is restarted more often than allowed in any window, the node's processes are
        /// not stopped more often, and what is remembered stays small.
        #[test]
        fn the_bounds_hold(
            steps in proptest::collection::vec((0u64..20, 0u8..3, any::<bool>()), 0..200),
            restarts in 0u32..4,
            stops in 0u32..3,
            count in 1u32..4,
        ) {
            let window = Duration::from_secs(60);
            let rules = [rule(Some(Code::Failed), count, Directive::Restart)];
            let mut kernel = Kernel::new(&rules, Escalation { restarts, stops, window });
            let mut at = Duration::ZERO;
            let mut done: Vec<(Duration, String, Directive)> = Vec::new();
            for (wait, process, panics) in steps {
                at += Duration::from_secs(wait);
                let process = format!("p{process}");
                let code = if panics { Code::Panicked } else { Code::Failed };
                let ruling = kernel.next(&failure(&process, code), at);
                done.push((at, process, ruling.directive));
            }
            let lately = |end: Duration, is: &dyn Fn(&(Duration, String, Directive)) -> bool| {
                done.iter().filter(|one| one.0 <= end && end - one.0 <= window && is(one)).count()
            };
            for (end, process, _) in &done {
                let restarted = lately(*end, &|one| one.1 == *process && one.2 == Directive::Restart);
                // A stop begins the count anew.
                let stopped = lately(*end, &|one| one.1 == *process && one.2 >= Directive::Stop);
                prop_assert!(restarted <= restarts as usize * (stopped + 1), "{done:?}");
                let ended = lately(*end, &|one| one.2 == Directive::Shutdown);
                prop_assert!(lately(*end, &|one| one.2 == Directive::Stop) <= stops as usize * (ended + 1), "{done:?}");
            }
            prop_assert!(kernel.heard.values().all(|lately| lately.0.len() <= count as usize));
            prop_assert!(kernel.restarts.values().all(|lately| lately.0.len() <= restarts as usize));
            prop_assert!(kernel.stops.0.len() <= stops as usize);
        }
    }
}
