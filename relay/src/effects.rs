//! What follows from a batch's answers: what is to be written down.

use std::time::{Duration, Instant};

use crate::observe::metrics::{Reason, Source};
use crate::queue::{Item, RowId};
use crate::schedule::Next;

/// A confirmed row, to be marked sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The row.
    pub id: RowId,
    /// Its message id: the mark is conditional on it.
    pub message_id: String,
}

/// A row that failed by its own fault.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The row and its message id.
    pub row: Mark,
    /// Failed attempts, this one included.
    pub attempts: u32,
    /// The class.
    pub reason: Reason,
    /// The broker's or our own text for the operator.
    pub text: String,
    /// What follows.
    pub next: Next,
}

/// The row whose text tells why its route is closed.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The row and its message id.
    pub row: Mark,
    /// The class.
    pub reason: Reason,
    /// The broker's text.
    pub text: String,
    /// The row's own next attempt, when its route is one of too many to be remembered.
    pub wait: Option<Duration>,
}

/// What follows from a batch's answers.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be marked sent, with who brought each and when it was committed.
    pub sent: Vec<(Mark, Source, Option<Instant>)>,
    /// To be written down as failed.
    pub failed: Vec<Failure>,
    /// To be written down as the reason of a closed route.
    pub samples: Vec<Sample>,
    /// How many failed by the route's or the channel's fault, which spends no attempt.
    pub refused: Vec<Reason>,
}

/// `last_error` and `outbox_attempts.error` hold this many characters.
const ERROR_MAX: usize = 1000;

/// As much of a text as is written down. A record may wait for long, and among thousands.
pub fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(ERROR_MAX) {
        text.truncate(end);
        text.shrink_to_fit();
    }
    text
}

impl Mark {
    /// The mark of a row that has come back.
    pub fn of(item: &Item) -> Self {
        Self {
            id: item.id(),
            message_id: item.row.message_id.clone(),
        }
    }
}
