//! Exit codes, and which one stands for several outcomes.

use crate::model::state::State;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    /// 0: all succeeded.
    Succeeded,
    /// 1: some failed or timed out.
    Failed,
    /// 2: usage, empty target set, unknown node or id, id already used.
    Usage,
    /// 3: not finished when the wait ended.
    NotFinished,
    /// 4: expired or undeliverable.
    Expired,
    /// 5: cancelled.
    Cancelled,
    /// 6: outcome unknown or interrupted somewhere, or the broker did not say whether it stored.
    Unknown,
    /// 7: refused, or no right to.
    Refused,
    /// 8: broker unreachable or refusing to store; nothing stored.
    Broker,
    /// 78: config, state or policy unusable (agent and hub).
    Config,
    /// 100: ended by directive `shutdown` (agent).
    Shutdown,
    /// The remote exit code, with `--exit-status`.
    Remote(u8),
}

impl ExitCode {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            ExitCode::Succeeded => 0,
            ExitCode::Failed => 1,
            ExitCode::Usage => 2,
            ExitCode::NotFinished => 3,
            ExitCode::Expired => 4,
            ExitCode::Cancelled => 5,
            ExitCode::Unknown => 6,
            ExitCode::Refused => 7,
            ExitCode::Broker => 8,
            ExitCode::Config => 78,
            ExitCode::Shutdown => 100,
            ExitCode::Remote(code) => code,
        }
    }

    /// The code for one message in this state.
    pub fn of(state: State) -> ExitCode {
        match state {
            State::Succeeded => ExitCode::Succeeded,
            State::Failed | State::TimedOut => ExitCode::Failed,
            State::Expired | State::Undeliverable => ExitCode::Expired,
            State::Cancelled => ExitCode::Cancelled,
            State::Interrupted | State::Unknown => ExitCode::Unknown,
            State::Refused => ExitCode::Refused,
            State::Queued
            | State::Delivered
            | State::Running
            | State::Retrying
            | State::CancelRequested
            | State::Duplicate => ExitCode::NotFinished,
        }
    }

    /// The code for several messages: the first that occurs in the order 3, 6, 1, 7, 4, 5; else 0.
    pub fn of_several(states: impl Iterator<Item = State>) -> ExitCode {
        use ExitCode::{Cancelled, Expired, Failed, NotFinished, Refused, Succeeded, Unknown};
        const ORDER: [ExitCode; 7] = [NotFinished, Unknown, Failed, Refused, Expired, Cancelled, Succeeded];
        let rank = |code: &ExitCode| ORDER.iter().position(|c| c == code).unwrap_or(0);
        states.map(ExitCode::of).min_by_key(rank).unwrap_or(Succeeded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_outcomes_have_one_code() {
        use State::*;
        let code = |states: &[State]| ExitCode::of_several(states.iter().copied()).code();
        // Each list is headed by the state that decides.
        let order = [Running, Unknown, Failed, Refused, Expired, Cancelled, Succeeded];
        let codes = [3, 6, 1, 7, 4, 5, 0];
        for (at, expected) in codes.into_iter().enumerate() {
            let mut rest = order[at..].to_vec();
            rest.reverse();
            assert_eq!(code(&rest), expected, "{rest:?}");
        }
        assert_eq!((code(&[Interrupted]), code(&[TimedOut]), code(&[Undeliverable])), (6, 1, 4));
        assert_eq!(code(&[]), 0);
    }
}
