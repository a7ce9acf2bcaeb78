//! From the broker's answers to a verdict for each message of a batch. No IO.
//!
//! lapin hands a returned message to whichever confirm completes next, so one confirm alone says nothing
//! about its own message: only the whole batch does (lapin 4.12, measured: 14 of 16 runs with pipelined
//! publishes mixed them up). This is the only place where a message becomes [`Confirmed`].

use std::collections::{HashMap, HashSet};

/// A message that the broker has, in every queue it was routed to. Only [`settle`] makes one, and only
/// one of these can become a sent mark.
#[derive(Debug, PartialEq, Eq)]
pub struct Confirmed {
    id: u64,
    message_id: String,
}

impl Confirmed {
    /// `outbox.id`.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The mark is conditional on it.
    pub fn message_id(&self) -> &str {
        &self.message_id
    }
}

/// What became of one message.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The broker has it.
    Confirmed(Confirmed),
    /// No queue is bound for it. The broker's code and text.
    Returned(String),
    /// A queue refused it.
    Nacked,
    /// It can't be a message at all, and was not published. Why.
    Invalid(String),
}

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every message has its verdict, in the batch's order.
    Settled(Vec<Verdict>),
    /// The broker closed the channel, or the connection, because of something in the batch.
    Closed {
        /// AMQP reply code; 0 when the relay panicked over the batch.
        code: u16,
        /// Code and text.
        text: String,
    },
    /// Some confirms did not come in time; the channel is closed.
    TimedOut {
        /// Which were answered, in the batch's order. Their answers are not to be trusted either.
        answered: Vec<bool>,
    },
    /// The connection is gone: every outcome is unknown and nobody is to blame.
    Lost(String),
    /// Nothing was published: another relay may hold the lock.
    LeaseOver,
}

/// The broker's answer to one publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// basic.ack.
    Ack,
    /// basic.nack.
    Nack,
}

/// A message that was published, and the answer on its confirm.
#[derive(Clone, Copy, Debug)]
pub struct Published<'a> {
    /// `outbox.id`.
    pub id: u64,
    /// Its `message_id` property.
    pub message_id: &'a str,
    /// What its confirm said.
    pub answer: Answer,
}

/// A message that came back by basic.return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returned {
    /// Its `message_id` property.
    pub message_id: String,
    /// The broker's code and text, e.g. `312 NO_ROUTE`.
    pub text: String,
}

/// A returned message that is not of this batch: nothing about the batch can be trusted.
#[derive(Debug, PartialEq, Eq)]
pub struct Unattributed(pub Returned);

/// Settles a whole batch, in its order.
///
/// # Errors
/// When a returned message belongs to none of them.
pub fn settle(
    published: &[Published<'_>],
    returned: Vec<Returned>,
) -> Result<Vec<Verdict>, Unattributed> {
    let known: HashSet<&str> = match returned.is_empty() {
        true => HashSet::new(),
        false => published.iter().map(|message| message.message_id).collect(),
    };
    let mut texts: HashMap<String, String> = HashMap::with_capacity(returned.len());
    for message in returned {
        if !known.contains(message.message_id.as_str()) {
            return Err(Unattributed(message));
        }
        texts.insert(message.message_id, message.text);
    }
    let verdict = |message: &Published<'_>| match (texts.get(message.message_id), message.answer) {
        (Some(text), _) => Verdict::Returned(text.clone()),
        (None, Answer::Nack) => Verdict::Nacked,
        (None, Answer::Ack) => Verdict::Confirmed(Confirmed {
            id: message.id,
            message_id: message.message_id.to_owned(),
        }),
    };
    Ok(published.iter().map(verdict).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn returned(id: &str) -> Returned {
        Returned {
            message_id: id.into(),
            text: "312 NO_ROUTE".into(),
        }
    }

    fn published(id: u64, message_id: &str, answer: Answer) -> Published<'_> {
        Published {
            id,
            message_id,
            answer,
        }
    }

    #[test]
    fn a_returned_message_fails_whichever_confirm_brought_it() {
        let batch = [
            published(1, "a", Answer::Ack),
            published(2, "b", Answer::Ack),
            published(3, "c", Answer::Nack),
        ];
        let verdicts = settle(&batch, vec![returned("b")]).unwrap();
        let confirmed = Confirmed {
            id: 1,
            message_id: "a".into(),
        };
        let expected = [
            Verdict::Confirmed(confirmed),
            Verdict::Returned("312 NO_ROUTE".into()),
            Verdict::Nacked,
        ];
        assert_eq!(verdicts, expected);
        let Verdict::Confirmed(confirmed) = &verdicts[0] else {
            unreachable!("it is the first of those expected");
        };
        assert_eq!((confirmed.id(), confirmed.message_id()), (1, "a"));
    }

    #[test]
    fn a_returned_message_of_no_batch_spoils_the_batch() {
        assert!(settle(&[published(1, "a", Answer::Ack)], vec![returned("z")]).is_err());
    }

    proptest! {
        #[test]
        fn confirmed_is_exactly_acked_and_not_returned(
            answers in proptest::collection::vec((any::<bool>(), any::<bool>()), 0..200),
            rotation in any::<prop::sample::Index>(),
        ) {
            let ids: Vec<String> = (0..answers.len()).map(|n| n.to_string()).collect();
            let batch: Vec<_> = ids.iter().zip(&answers)
                .map(|(id, (ack, _))| published(0, id, if *ack { Answer::Ack } else { Answer::Nack }))
                .collect();
            let mut back: Vec<_> = ids.iter().zip(&answers)
                .filter(|(_, (_, returned))| *returned).map(|(id, _)| returned(id)).collect();
            if !back.is_empty() {
                let by = rotation.index(back.len());
                back.rotate_left(by);
            }
            let verdicts = settle(&batch, back).unwrap();
            for (verdict, (ack, returned)) in verdicts.iter().zip(&answers) {
                prop_assert_eq!(matches!(verdict, Verdict::Confirmed(_)), *ack && !*returned);
            }
        }
    }
}
