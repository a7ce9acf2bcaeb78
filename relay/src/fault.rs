//! Whose failure is it: nobody's, the route's or the message's? No IO.

use crate::observe::metrics::Reason;
use crate::publish::publisher_task::Outcome;
use crate::settle::Verdict;

/// Whose fault it is that a message was not confirmed.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// It was confirmed.
    None,
    /// Connection lost, lease over: the row is as good as before.
    Nobody,
    /// Somebody in the batch made the broker close.
    Suspect(String),
    /// The route: no attempt is spent and nothing parks; one row probes until it opens.
    Route(Reason, String),
    /// The message: attempts, back-off, parking.
    Message(Reason, String),
}

/// Finds it out for the message at place `at` of a batch; `alone` when the batch has no other.
pub fn find(outcome: &Outcome, at: usize, alone: bool) -> Fault {
    match outcome {
        Outcome::Settled(verdicts) => match verdicts.get(at) {
            Some(Verdict::Confirmed) => Fault::None,
            Some(Verdict::Returned(text)) => Fault::Route(Reason::Returned, text.clone()),
            Some(Verdict::Nacked) => {
                Fault::Route(Reason::Nack, "the queue refused it (basic.nack)".into())
            }
            Some(Verdict::Invalid(text)) => Fault::Message(Reason::Invalid, text.clone()),
            None => Fault::Nobody,
        },
        Outcome::Closed {
            code: 403 | 404,
            text,
        } if alone => Fault::Route(Reason::ChannelClosed, text.clone()),
        Outcome::Closed { code: 406, text } if alone => {
            Fault::Message(Reason::TooLarge, text.clone())
        }
        Outcome::Closed { text, .. } => Fault::Suspect(text.clone()),
        Outcome::TimedOut { answered } if answered.get(at) == Some(&false) => Fault::Route(
            Reason::Timeout,
            "no confirm within RELAY_CONFIRM_TIMEOUT".into(),
        ),
        Outcome::TimedOut { .. } | Outcome::Lost(_) | Outcome::LeaseOver => Fault::Nobody,
    }
}
