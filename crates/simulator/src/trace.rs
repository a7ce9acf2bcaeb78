//! The last steps of a run, in words.

use std::collections::VecDeque;
use std::fmt::Arguments;

use crate::queue::Micros;

/// Lines that are kept for a failure.
const KEPT: usize = 80;

/// Writes only when it is wanted: formatting costs more than the engine.
pub(crate) struct Trace {
    wanted: Wanted,
    lines: VecDeque<String>,
    /// The last text, and how often it has come again.
    last: (String, u64),
}

/// What becomes of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Nothing is written.
    Nothing,
    /// The last ones are kept.
    Last,
    /// All go to standard error.
    All,
}

impl Trace {
    pub(crate) fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            lines: VecDeque::new(),
            last: (String::new(), 0),
        }
    }

    /// Is it worth preparing a line?
    pub(crate) fn is_on(&self) -> bool {
        self.wanted != Wanted::Nothing
    }

    /// Writes a line.
    pub(crate) fn line(&mut self, now: Micros, text: Arguments<'_>) {
        if self.wanted == Wanted::Nothing {
            return;
        }
        let text = text.to_string();
        if text == self.last.0 {
            self.last.1 += 1;
            if self.last.1 > 2 {
                return;
            }
        } else {
            self.last = (text.clone(), 0);
        }
        let line = format!("{:>11.6} {text}", now as f64 / 1e6);
        if self.wanted == Wanted::All {
            eprintln!("{line}");
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The last lines.
    pub(crate) fn last(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}
