//! The line of live counters below what is said, on a terminal: `412 ok · 3 failed · 9 running · 76 out of contact`.
//!
//! Owns drawing it and taking it away before anything else is written. Where stderr is no terminal it writes nothing.

use crate::operator::Totals;
use std::io::{IsTerminal, Write};

/// To the line's start, and all of it away.
const CLEAR: &str = "\r\x1b[K";

/// The line.
#[derive(Debug)]
pub(super) struct Counters {
    on: bool,
    drawn: String,
}

impl Counters {
    /// Nothing drawn yet.
    pub(super) fn new() -> Counters {
        Counters { on: std::io::stderr().is_terminal(), drawn: String::new() }
    }

    /// True where counters are shown.
    pub(super) fn are_shown(&self) -> bool {
        self.on
    }

    /// Draws these totals, where they are worth a line: one target tells its own story.
    pub(super) fn draw(&mut self, totals: &Totals) {
        let text = totals.to_string();
        if !self.on || totals.rows() < 2 || text == self.drawn {
            return;
        }
        // Without wrapping: a line that is too long for the terminal could not be taken away again.
        let mut err = std::io::stderr().lock();
        let _ = write!(err, "{CLEAR}\x1b[?7l{text}\x1b[?7h").and_then(|()| err.flush());
        self.drawn = text;
    }

    /// Takes the line away, so that something else can be written.
    pub(super) fn clear(&mut self) {
        if !self.drawn.is_empty() {
            let mut err = std::io::stderr().lock();
            let _ = write!(err, "{CLEAR}").and_then(|()| err.flush());
            self.drawn.clear();
        }
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        self.clear();
    }
}
