//! What becomes of a message: the states people see, and the state machine of a message in a node's journal.
//!
//! Owns which step may follow which. No clock, no I/O.

use super::message::Kind;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A state as it is shown and written in records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// At the broker.
    Queued,
    /// In the node's journal.
    Delivered,
    /// The handler runs.
    Running,
    /// Progress only: a try failed, another follows.
    Retrying,
    /// Progress only: a cancel was asked for.
    CancelRequested,
    /// Progress only: a second copy of a message that is known.
    Duplicate,
    /// Done, exit code 0.
    Succeeded,
    /// Done, with another exit code or an error.
    Failed,
    /// Killed after its timeout.
    TimedOut,
    /// Its start-by passed before it began.
    Expired,
    /// Not accepted by the node.
    Refused,
    /// Cancelled by its sender or an admin.
    Cancelled,
    /// The host or journal was lost while it may have run.
    Interrupted,
    /// No such node or member.
    Undeliverable,
    /// Cannot be known any more; also what a newer release may write.
    #[serde(other)]
    Unknown,
}

impl State {
    /// True where nothing follows: the state of a terminal record.
    pub fn is_terminal(self) -> bool {
        use State::*;
        matches!(self, Succeeded | Failed | TimedOut | Expired | Refused | Cancelled | Interrupted | Undeliverable)
    }

    /// As written in records and headers.
    pub fn as_str(self) -> &'static str {
        use State::*;
        match self {
            Queued => "queued",
            Delivered => "delivered",
            Running => "running",
            Retrying => "retrying",
            CancelRequested => "cancel_requested",
            Duplicate => "duplicate",
            Succeeded => "succeeded",
            Failed => "failed",
            TimedOut => "timed_out",
            Expired => "expired",
            Refused => "refused",
            Cancelled => "cancelled",
            Interrupted => "interrupted",
            Undeliverable => "undeliverable",
            Unknown => "unknown",
        }
    }

    /// The state of this name; `Unknown` for one that is not known.
    pub fn named(text: &str) -> State {
        use State::*;
        [
            Queued,
            Delivered,
            Running,
            Retrying,
            CancelRequested,
            Duplicate,
            Succeeded,
            Failed,
            TimedOut,
            Expired,
            Refused,
            Cancelled,
            Interrupted,
            Undeliverable,
        ]
        .into_iter()
        .find(|state| state.as_str() == text)
        .unwrap_or(Unknown)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where a message stands in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Taken, waiting for its turn in its lane.
    Queued,
    /// Try number `attempt` (from 1) has begun; durable before the handler runs.
    Running {
        /// Which try.
        attempt: u32,
    },
    /// Try number `attempt` is over without a result that counts; the next one follows.
    Waiting {
        /// The try that is over.
        attempt: u32,
    },
    /// Terminal.
    Finished(State),
}

/// What can happen to a message in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A try begins.
    Start,
    /// The try is over, or was broken off, and another is allowed.
    TryAgain,
    /// The first try was begun together with others, and did not come to pass.
    GiveBack,
    /// The message has its terminal state.
    Finish(State),
}

/// What a cancel does to a message in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCancel {
    /// It has not begun, or waits for its next try: it ends `cancelled` at once.
    End,
    /// It runs: it is stopped, and its worker says how it ended.
    Stop,
    /// It runs and may end as it will, but is not tried again.
    LetEnd,
    /// It is over, and stays as it is.
    TooLate(State),
}

/// A step that cannot follow the phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{step:?} cannot follow {phase:?}")]
pub struct IllegalStep {
    phase: Phase,
    step: Step,
}

impl Phase {
    /// The phase after `step`.
    pub fn next(self, step: Step) -> Result<Phase, IllegalStep> {
        let illegal = Err(IllegalStep { phase: self, step });
        match (self, step) {
            (Phase::Queued, Step::Start) => Ok(Phase::Running { attempt: 1 }),
            (Phase::Waiting { attempt }, Step::Start) => Ok(Phase::Running { attempt: attempt.saturating_add(1) }),
            (Phase::Running { attempt }, Step::TryAgain) => Ok(Phase::Waiting { attempt }),
            (Phase::Running { attempt: 1 }, Step::GiveBack) => Ok(Phase::Queued),
            (Phase::Finished(_), _) => illegal,
            (_, Step::Finish(state)) if self.may_end(state) => Ok(Phase::Finished(state)),
            _ => illegal,
        }
    }

    /// True where `state` can end a message in this phase: what has not begun cannot have succeeded.
    fn may_end(self, state: State) -> bool {
        use State::*;
        match self {
            Phase::Queued => matches!(state, Expired | Refused | Cancelled),
            Phase::Running { .. } => matches!(state, Succeeded | Failed | TimedOut | Cancelled | Interrupted | Refused),
            Phase::Waiting { .. } => matches!(state, Failed | TimedOut | Cancelled | Interrupted | Expired | Refused),
            Phase::Finished(_) => false,
        }
    }

    /// What a cancel does to a message of this kind. An event that has begun is not stopped.
    pub fn on_cancel(self, kind: Kind) -> OnCancel {
        match self {
            Phase::Queued | Phase::Waiting { .. } => OnCancel::End,
            Phase::Running { .. } if kind == Kind::Event => OnCancel::LetEnd,
            Phase::Running { .. } => OnCancel::Stop,
            Phase::Finished(state) => OnCancel::TooLate(state),
        }
    }

    /// The tries begun so far.
    pub fn attempt(self) -> u32 {
        match self {
            Phase::Running { attempt } | Phase::Waiting { attempt } => attempt,
            Phase::Queued | Phase::Finished(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_step() -> impl Strategy<Value = Step> {
        let states =
            vec![State::Succeeded, State::Failed, State::Expired, State::Cancelled, State::Running, State::Queued];
        prop_oneof![
            Just(Step::Start),
            Just(Step::TryAgain),
            Just(Step::GiveBack),
            proptest::sample::select(states).prop_map(Step::Finish),
        ]
    }

    proptest! {
        /// Whatever happens: one terminal state at most, tries count up by one, nothing succeeds without having begun.
        #[test]
        fn every_walk_is_legal(steps in proptest::collection::vec(any_step(), 0..40)) {
            let mut phase = Phase::Queued;
            let (mut starts, mut ends) = (0, 0);
            for step in steps {
                let Ok(next) = phase.next(step) else { continue };
                prop_assert_eq!(ends, 0, "nothing follows a terminal state");
                match (step, next) {
                    (Step::Start, Phase::Running { attempt }) => {
                        starts += 1;
                        prop_assert_eq!(attempt, starts);
                    }
                    (Step::GiveBack, _) => {
                        prop_assert_eq!((starts, next), (1, Phase::Queued));
                        starts = 0;
                    }
                    (Step::Finish(state), Phase::Finished(_)) => {
                        ends += 1;
                        prop_assert!(state.is_terminal());
                        prop_assert!(state != State::Succeeded || starts > 0);
                    }
                    _ => {}
                }
                phase = next;
            }
        }
    }

    #[test]
    fn a_cancel_ends_what_does_not_run_and_stops_commands_that_do() {
        let running = Phase::Running { attempt: 1 };
        for kind in [Kind::Command, Kind::Event] {
            for phase in [Phase::Queued, Phase::Waiting { attempt: 2 }] {
                assert_eq!(phase.on_cancel(kind), OnCancel::End);
                assert!(phase.next(Step::Finish(State::Cancelled)).is_ok());
            }
        }
        assert_eq!(running.on_cancel(Kind::Command), OnCancel::Stop);
        assert!(running.next(Step::Finish(State::Cancelled)).is_ok());
        assert_eq!(running.on_cancel(Kind::Event), OnCancel::LetEnd);
        assert_eq!(Phase::Finished(State::Failed).on_cancel(Kind::Command), OnCancel::TooLate(State::Failed));
    }

    #[test]
    fn names_read_back() {
        for state in [State::Succeeded, State::TimedOut, State::CancelRequested, State::Undeliverable] {
            assert_eq!(State::named(state.as_str()), state);
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        assert_eq!(serde_json::from_str::<State>("\"from_the_future\"").unwrap(), State::Unknown);
    }
}
