//! How the rows of a view add up: what a person wants to know first of many targets.
//!
//! A value without I/O. Each row counts once: by its state, or as out of contact where it is open and its node does not
//! answer.

use super::view::Row;
use crate::model::state::State;
use std::collections::BTreeMap;
use std::fmt;

/// Rows by what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Rows whose node answers, or that are settled, by state.
    pub states: BTreeMap<State, usize>,
    /// Open rows whose node does not answer now.
    pub out_of_contact: usize,
}

impl Totals {
    /// Adds up these rows.
    pub fn of<'a>(rows: impl Iterator<Item = Row<'a>>) -> Totals {
        let mut totals = Totals::default();
        rows.for_each(|row| totals.count(&row));
        totals
    }

    fn count(&mut self, row: &Row<'_>) {
        if !row.is_settled() && row.is_out_of_contact() {
            self.out_of_contact += 1;
        } else {
            *self.states.entry(row.state).or_default() += 1;
        }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.states.values().sum::<usize>() + self.out_of_contact
    }

    /// How many did not succeed and never will.
    pub fn not_succeeded(&self) -> usize {
        let ended = |state: State| (state.is_terminal() || state == State::Unknown) && state != State::Succeeded;
        self.states.iter().filter(|(state, _)| ended(**state)).map(|(_, count)| count).sum()
    }
}

/// The order in which people read it: what is done, what went wrong, what is on its way.
const ORDER: [State; 15] = [
    State::Succeeded,
    State::Failed,
    State::TimedOut,
    State::Interrupted,
    State::Refused,
    State::Expired,
    State::Undeliverable,
    State::Cancelled,
    State::Unknown,
    State::Running,
    State::Retrying,
    State::CancelRequested,
    State::Duplicate,
    State::Delivered,
    State::Queued,
];

/// `412 ok · 3 failed · 9 running · 76 out of contact`
impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |state: State| if state == State::Succeeded { "ok".to_owned() } else { state.to_string() };
        let of_state = |state: State| self.states.get(&state).map(|count| format!("{count} {}", name(state)));
        let mut parts: Vec<String> = ORDER.into_iter().filter_map(of_state).collect();
        if self.out_of_contact > 0 {
            parts.push(format!("{} out of contact", self.out_of_contact));
        }
        f.write_str(&parts.join(" · "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_read_as_people_say_them() {
        let states = [(State::Queued, 1), (State::Running, 9), (State::Succeeded, 412), (State::Failed, 3)];
        let totals = Totals { states: states.into_iter().collect(), out_of_contact: 76 };
        assert_eq!(totals.to_string(), "412 ok · 3 failed · 9 running · 1 queued · 76 out of contact");
        assert_eq!((totals.rows(), totals.not_succeeded()), (501, 3));
    }

    #[test]
    fn every_state_is_said() {
        let mut said = ORDER;
        said.sort();
        said.windows(2).for_each(|pair| assert!(pair[0] < pair[1], "{pair:?} is there twice"));
        assert_eq!(said.last(), Some(&State::Unknown), "the last of the enum: none is missing");
    }
}
