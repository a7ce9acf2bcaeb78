//! What `relay check` looks at, and how it is.

use std::fmt;

use svc_kit::database::{Fault, classify};

/// How bad an unmet condition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Met.
    Ok,
    /// Met, but slower or less visible than it could be.
    Warning,
    /// Not met, and may be by itself or by somebody else in a while: the relay waits.
    Wait,
    /// Not met, and no waiting helps.
    Wrong,
}

/// One condition.
#[derive(Clone, Debug)]
pub struct Condition {
    /// What it is about.
    pub name: &'static str,
    /// Whether it is met.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What to do; empty when it is met.
    pub fix: String,
}

impl Condition {
    pub(super) fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Ok,
            detail: detail.into(),
            fix: String::new(),
        }
    }

    pub(super) fn not(
        state: State,
        name: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            name,
            state,
            detail: detail.into(),
            fix: fix.into(),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Wait => "WAIT",
            State::Wrong => "WRONG",
        };
        write!(f, "{word:<8} {:<22} {}", self.name, self.detail)?;
        if !self.fix.is_empty() {
            write!(f, "\n{:31} fix: {}", "", self.fix)?;
        }
        Ok(())
    }
}

/// A look that the database refused.
pub(super) fn denied(name: &'static str, err: &sqlx::Error, object: &str) -> Condition {
    match classify(err) {
        Fault::Misconfigured(_) => Condition::not(
            State::Wrong,
            name,
            err.to_string(),
            format!("GRANT what README lists for the relay on {object}"),
        ),
        Fault::ReadOnly => Condition::not(
            State::Wait,
            name,
            "the server is read-only",
            "point DATABASE_URL at the primary, or SET GLOBAL read_only = OFF there",
        ),
        _ => Condition::not(State::Wait, name, err.to_string(), "see the server's log"),
    }
}
