//! The broker: what becomes of a message depends on its route and on itself.

use std::collections::{BTreeMap, BTreeSet};

use outbox::row::Row;
use relay::publish::confirms::{Answer, Outcome, Published, Returned, Verdict, settle};

use super::SessionId;
use super::{Message, RowFault, message_number};
use crate::faults::Fault;
use crate::queue::{Micros, SECOND};
use crate::rng::Rng;

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) id: u64,
    pub(crate) message_id: String,
    pub(crate) message: u32,
    pub(crate) route: u64,
    fault: RowFault,
}

/// A batch between a publisher and the broker.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) session: SessionId,
    pub(crate) publisher: usize,
    pub(crate) items: Vec<Item>,
    pub(crate) arrived: bool,
    /// The publisher does not wait for it any more.
    pub(crate) given_up: bool,
    answers: Vec<Option<Answer>>,
    returned: Vec<Returned>,
    pub(crate) closed: Option<Closed>,
}

/// The broker has closed a channel or the connection.
#[derive(Clone, Debug)]
pub(crate) struct Closed {
    pub(crate) code: u16,
    pub(crate) text: String,
    /// The whole connection.
    pub(crate) connection: bool,
}

/// The broker of all relays.
#[derive(Debug, Default)]
pub(crate) struct Broker {
    /// Until when it takes no connections.
    pub(crate) down_until: Micros,
    pub(crate) blocked_until: Micros,
    /// The faults of each route.
    troubles: BTreeMap<u64, Vec<Fault>>,
    pub(crate) flights: BTreeMap<u64, Flight>,
    next: u64,
    /// The next batch brings a returned message of another one.
    pub(crate) stray: bool,
}

impl Broker {
    /// A route has a fault (true), or has it no more.
    pub(crate) fn trouble(&mut self, route: u64, fault: Fault, on: bool) {
        let faults = self.troubles.entry(route).or_default();
        if on {
            faults.push(fault);
        } else if let Some(place) = faults.iter().position(|known| *known == fault) {
            faults.remove(place);
        }
        if self.troubles.get(&route).is_some_and(Vec::is_empty) {
            self.troubles.remove(&route);
        }
    }

    /// The fault of a route now.
    fn fault_of(&self, route: u64, now: Micros) -> Option<Fault> {
        let fault = self
            .troubles
            .get(&route)
            .and_then(|faults| faults.last().copied());
        fault.filter(|fault| *fault != Fault::Flapping || (now / SECOND).is_multiple_of(2))
    }

    /// Routes that have a fault, whether it shows just now or not.
    pub(crate) fn troubled(&self) -> impl Iterator<Item = u64> {
        self.troubles.keys().copied()
    }

    /// A publisher begins with a batch.
    pub(crate) fn take_off(
        &mut self,
        session: SessionId,
        publisher: usize,
        items: Vec<Item>,
    ) -> u64 {
        self.next += 1;
        let flight = Flight {
            session,
            publisher,
            arrived: false,
            given_up: false,
            answers: vec![None; items.len()],
            returned: Vec::new(),
            closed: None,
            items,
        };
        self.flights.insert(self.next, flight);
        self.next
    }

    /// The batch reaches the broker. Returns the messages that are stored.
    pub(crate) fn arrive(&mut self, number: u64, now: Micros) -> Vec<u32> {
        let Some(mut flight) = self.flights.remove(&number) else {
            return Vec::new();
        };
        flight.arrived = true;
        let mut stored = Vec::new();
        for place in 0..flight.items.len() {
            let item = &flight.items[place];
            if item.fault == RowFault::Invalid {
                flight.answers[place] = Some(Answer::Ack);
                continue;
            }
            let (kept, effect) = effect(item.fault, self.fault_of(item.route, now));
            if kept {
                stored.push(item.message);
            }
            match effect {
                Effect::Answer(answer) => flight.answers[place] = Some(answer),
                Effect::Nothing => {}
                Effect::Return => {
                    flight.answers[place] = Some(Answer::Ack);
                    let text = "312 NO_ROUTE".to_owned();
                    let message_id = item.message_id.clone();
                    flight.returned.push(Returned { message_id, text });
                }
                Effect::Close(closed) => {
                    flight.closed = Some(closed);
                    break;
                }
            }
        }
        self.flights.insert(number, flight);
        stored
    }

    /// Has every message of the batch been answered, or the channel been closed?
    pub(crate) fn is_answered(&self, number: u64) -> bool {
        let flight = self.flights.get(&number);
        flight.is_some_and(|flight| {
            flight.closed.is_some() || flight.answers.iter().all(Option::is_some)
        })
    }

    /// The outcome of an answered batch; `None` when a returned message is of no message in it.
    pub(crate) fn settle(&mut self, flight: &Flight, rng: &mut Rng) -> Option<Outcome> {
        let mut returned = flight.returned.clone();
        rng.shuffle(&mut returned);
        if std::mem::take(&mut self.stray) {
            let text = "312 NO_ROUTE".to_owned();
            let message_id = "of-another-batch".to_owned();
            returned.push(Returned { message_id, text });
        }
        let sent = |(item, answer): (&'_ Item, &Option<Answer>)| {
            (item.fault != RowFault::Invalid).then(|| {
                (
                    item.id,
                    item.message_id.clone(),
                    answer.unwrap_or(Answer::Nack),
                )
            })
        };
        let sent: Vec<_> = flight
            .items
            .iter()
            .zip(&flight.answers)
            .filter_map(sent)
            .collect();
        let published: Vec<_> = sent
            .iter()
            .map(|(id, message_id, answer)| Published {
                id: *id,
                message_id,
                answer: *answer,
            })
            .collect();
        let mut verdicts = settle(&published, returned).ok()?.into_iter();
        let merged = flight.items.iter().map(|item| match item.fault {
            RowFault::Invalid => Verdict::Invalid("routing key: over 255 bytes".to_owned()),
            _ => verdicts
                .next()
                .expect("there is one for each published message"),
        });
        Some(Outcome::Settled(merged.collect()))
    }

    /// Which messages of a batch have been answered.
    pub(crate) fn answered(flight: &Flight) -> Vec<bool> {
        flight.answers.iter().map(Option::is_some).collect()
    }

    /// The batches of a session that are not answered yet, by number.
    pub(crate) fn flights_of(&self, session: SessionId) -> BTreeSet<u64> {
        let of = |(number, flight): (&u64, &Flight)| {
            (flight.session == session && !flight.given_up).then_some(*number)
        };
        self.flights.iter().filter_map(of).collect()
    }
}

enum Effect {
    Answer(Answer),
    Return,
    Nothing,
    Close(Closed),
}

fn close(code: u16, text: &str, connection: bool) -> (bool, Effect) {
    let text = text.to_owned();
    (
        false,
        Effect::Close(Closed {
            code,
            text,
            connection,
        }),
    )
}

/// Is the message stored, and what does the broker answer?
fn effect(own: RowFault, route: Option<Fault>) -> (bool, Effect) {
    match own {
        RowFault::Large => {
            return close(
                406,
                "406 PRECONDITION_FAILED - message size is larger than configured max size",
                false,
            );
        }
        RowFault::Panic => return close(0, "the publisher panicked", false),
        RowFault::Channel => return close(504, "504 CHANNEL_ERROR", false),
        RowFault::Fatal => return close(501, "501 FRAME_ERROR", true),
        RowFault::None | RowFault::Invalid | RowFault::Nacked => {}
    }
    match route {
        Some(Fault::NoExchange) => close(404, "404 NOT_FOUND - no exchange", false),
        Some(Fault::Forbidden) => close(403, "403 ACCESS_REFUSED", false),
        Some(Fault::Unroutable | Fault::Flapping) => (false, Effect::Return),
        Some(Fault::Silent) => (true, Effect::Nothing),
        Some(Fault::Full) => (false, Effect::Answer(Answer::Nack)),
        _ if own == RowFault::Nacked => (false, Effect::Answer(Answer::Nack)),
        _ => (true, Effect::Answer(Answer::Ack)),
    }
}

/// The messages of a batch.
pub(crate) fn items(
    batch: &[Row],
    messages: &[Message],
    route_of: impl Fn(&Row) -> u64,
) -> Vec<Item> {
    let item = |row: &Row| {
        let message = message_number(&row.message_id);
        Item {
            id: row.id,
            message_id: row.message_id.clone(),
            message,
            route: route_of(row),
            fault: messages[message as usize].fault,
        }
    };
    batch.iter().map(item).collect()
}
