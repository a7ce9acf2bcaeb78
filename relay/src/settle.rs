//! From the broker's answers to a verdict per message. No IO.
//!
//! lapin hands a returned message to whichever confirm completes next, so one confirm alone says
//! nothing about its own message: only the whole batch does (lapin 4.12, measured: 14 of 16 runs
//! with pipelined publishes mixed them up). This is the only place where a message becomes
//! confirmed.

use std::collections::{HashMap, HashSet};

/// The broker's answer to one publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// basic.ack.
    Ack,
    /// basic.nack.
    Nack,
}

/// A message that came back by basic.return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returned {
    /// Its `message_id` property.
    pub message_id: String,
    /// The broker's code and text, e.g. `312 NO_ROUTE`.
    pub text: String,
}

/// What became of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The broker has it, in every queue it was routed to.
    Confirmed,
    /// No queue is bound for it.
    Returned(String),
    /// A queue refused it.
    Nacked,
    /// It can't be a message at all, and was not published.
    Invalid(String),
}

/// A returned message that is not of this batch: nothing about the batch can be trusted.
#[derive(Debug, PartialEq, Eq)]
pub struct Unattributed(pub Returned);

/// Settles a whole batch: `message_ids` in publish order with the answer to each.
///
/// # Errors
/// When a returned message belongs to none of them.
pub fn settle(
    published: &[(&str, Answer)],
    returned: Vec<Returned>,
) -> Result<Vec<Verdict>, Unattributed> {
    if returned.is_empty() {
        return Ok(published.iter().map(|(_, answer)| alone(*answer)).collect());
    }
    let known: HashSet<&str> = published.iter().map(|(id, _)| *id).collect();
    let mut texts: HashMap<&str, &Returned> = HashMap::with_capacity(returned.len());
    for message in &returned {
        if !known.contains(message.message_id.as_str()) {
            return Err(Unattributed(message.clone()));
        }
        texts.insert(&message.message_id, message);
    }
    Ok(published
        .iter()
        .map(|(id, answer)| match texts.get(id) {
            Some(returned) => Verdict::Returned(returned.text.clone()),
            None => alone(*answer),
        })
        .collect())
}

fn alone(answer: Answer) -> Verdict {
    match answer {
        Answer::Ack => Verdict::Confirmed,
        Answer::Nack => Verdict::Nacked,
    }
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

    #[test]
    fn a_returned_message_fails_whichever_confirm_brought_it() {
        let published = [("a", Answer::Ack), ("b", Answer::Ack), ("c", Answer::Nack)];
        let verdicts = settle(&published, vec![returned("b")]).unwrap();
        let expected = [
            Verdict::Confirmed,
            Verdict::Returned("312 NO_ROUTE".into()),
            Verdict::Nacked,
        ];
        assert_eq!(verdicts, expected);
    }

    #[test]
    fn a_stranger_among_the_returned_spoils_the_batch() {
        assert!(settle(&[("a", Answer::Ack)], vec![returned("z")]).is_err());
    }

    proptest! {
        #[test]
        fn confirmed_is_exactly_acked_and_not_returned(
            answers in proptest::collection::vec((any::<bool>(), any::<bool>()), 0..200),
            rotation in any::<prop::sample::Index>(),
        ) {
            let ids: Vec<String> = (0..answers.len()).map(|n| n.to_string()).collect();
            let published: Vec<_> = ids.iter().zip(&answers)
                .map(|(id, (ack, _))| (id.as_str(), if *ack { Answer::Ack } else { Answer::Nack }))
                .collect();
            let mut back: Vec<_> = ids.iter().zip(&answers)
                .filter(|(_, (_, returned))| *returned).map(|(id, _)| returned(id)).collect();
            if !back.is_empty() {
                let by = rotation.index(back.len());
                back.rotate_left(by);
            }
            let verdicts = settle(&published, back).unwrap();
            for (verdict, (ack, returned)) in verdicts.iter().zip(&answers) {
                prop_assert_eq!(*verdict == Verdict::Confirmed, *ack && !*returned);
            }
        }
    }
}
