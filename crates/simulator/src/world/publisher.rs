//! The publishers of a session: a batch goes to the broker, and its outcome comes back.

use outbox::row::Row;
use relay::engine::Event;
use relay::publish::confirms::Outcome;

use super::SessionId;
use super::broker::{Broker, Closed, items};
use super::{Happening, World};
use crate::faults::Fault;
use crate::queue::{MILLI, Micros, SECOND};

impl World {
    /// A publisher begins with a batch: it looks at the lease first.
    pub(super) fn send(&mut self, id: SessionId, publisher: usize, batch: &[Row]) {
        let now = self.queue.now();
        let Some(session) = self.session(id) else {
            return;
        };
        if session.lease <= now {
            self.trace.line(
                now,
                format_args!(
                    "p{} the lease is over: publisher {publisher} publishes nothing",
                    id.process
                ),
            );
            self.outcome(id, publisher, 0, Outcome::LeaseOver);
            let wait = self.rng.below(100 * MILLI);
            return self
                .queue
                .after(wait, Happening::EndSession(id, "the lease is over"));
        }
        if session.broker_lost {
            return self.outcome(
                id,
                publisher,
                MILLI,
                Outcome::Lost("not connected".to_owned()),
            );
        }
        let lease = session.lease;
        self.checker.publishes(id, lease, now);
        let items = items(batch, &self.messages, Self::route_number);
        let flight = self.broker.take_off(id, publisher, items);
        let wait = self.rng.range(100, 2 * MILLI);
        self.queue.after(wait, Happening::Arrive(flight));
        self.queue
            .after(self.scenario.confirm_timeout, Happening::TimeOut(flight));
    }

    fn outcome(&mut self, id: SessionId, publisher: usize, wait: Micros, outcome: Outcome) {
        let event = Event::Published { publisher, outcome };
        self.queue
            .after(wait, Happening::Deliver(id, Box::new(event)));
    }

    /// The batch is at the broker.
    pub(super) fn arrive(&mut self, number: u64) {
        let now = self.queue.now();
        if self.broker.blocked_until > now {
            return self
                .queue
                .at(self.broker.blocked_until, Happening::Arrive(number));
        }
        for message in self.broker.arrive(number, now) {
            self.checker.stored(message);
        }
        let given_up = self
            .broker
            .flights
            .get(&number)
            .is_none_or(|flight| flight.given_up);
        if given_up {
            self.broker.flights.remove(&number);
        } else if self.broker.is_answered(number) {
            let wait = match self.is(Fault::SlowConfirms) && self.rng.percent(50) {
                true => {
                    self.coverage.fault(Fault::SlowConfirms);
                    self.rng.below(SECOND)
                }
                false => self.rng.range(200, 8 * MILLI),
            };
            self.queue.after(wait, Happening::Settle(number));
        }
    }

    /// The confirms of a batch reach its publisher.
    pub(super) fn settle(&mut self, number: u64) {
        let Some(flight) = self.broker.flights.remove(&number) else {
            return;
        };
        if flight.given_up {
            return;
        }
        let (id, publisher) = (flight.session, flight.publisher);
        match &flight.closed {
            Some(closed) if closed.connection => self.close_connection(id, publisher, closed),
            Some(Closed { code, text, .. }) => {
                let outcome = Outcome::Closed {
                    code: *code,
                    text: text.clone(),
                };
                self.outcome(id, publisher, 0, outcome);
            }
            None => match self.broker.settle(&flight, &mut self.rng) {
                Some(outcome) => self.outcome(id, publisher, 0, outcome),
                None => {
                    self.coverage.fault(Fault::StrayReturn);
                    self.outcome(
                        id,
                        publisher,
                        0,
                        Outcome::Lost("a returned message of no batch".to_owned()),
                    );
                    self.lose_connection(id, "a returned message of no batch");
                }
            },
        }
    }

    /// The broker closes the connection over a batch: every batch out gets its code.
    fn close_connection(&mut self, id: SessionId, publisher: usize, closed: &Closed) {
        self.checker.disturbed(self.queue.now());
        let outcome = || Outcome::Closed {
            code: closed.code,
            text: closed.text.clone(),
        };
        self.outcome(id, publisher, 0, outcome());
        for number in self.broker.flights_of(id) {
            if let Some(flight) = self.broker.flights.get_mut(&number) {
                flight.given_up = true;
                let publisher = flight.publisher;
                self.outcome(id, publisher, 0, outcome());
            }
        }
        self.lose_connection(id, &closed.text);
    }

    /// The publisher waits no longer.
    pub(super) fn time_out(&mut self, number: u64) {
        let Some(flight) = self
            .broker
            .flights
            .get_mut(&number)
            .filter(|flight| !flight.given_up)
        else {
            return;
        };
        flight.given_up = true;
        let (id, publisher, arrived) = (flight.session, flight.publisher, flight.arrived);
        let outcome = Outcome::TimedOut {
            answered: Broker::answered(flight),
        };
        if arrived {
            self.broker.flights.remove(&number);
        }
        self.outcome(id, publisher, 0, outcome);
    }

    /// The connection of a session is lost: what was published may have arrived or not.
    pub(super) fn lose_connection(&mut self, id: SessionId, why: &str) {
        let Some(session) = self.session(id) else {
            return;
        };
        if std::mem::replace(&mut session.broker_lost, true) {
            return;
        }
        self.checker.disturbed(self.queue.now());
        let event = Event::BrokerLost(why.to_owned());
        let wait = self.rng.below(5 * MILLI);
        self.queue
            .after(wait, Happening::Deliver(id, Box::new(event)));
        for number in self.broker.flights_of(id) {
            let publisher = self
                .broker
                .flights
                .get(&number)
                .map_or(0, |flight| flight.publisher);
            self.give_up(number);
            let wait = self.rng.below(10 * MILLI);
            self.outcome(id, publisher, wait, Outcome::Lost(why.to_owned()));
        }
    }

    /// Nobody waits for the batch any more; it may still arrive.
    fn give_up(&mut self, number: u64) {
        let arrives = self.rng.percent(50);
        let Some(flight) = self.broker.flights.get_mut(&number) else {
            return;
        };
        flight.given_up = true;
        if flight.arrived || !arrives {
            self.broker.flights.remove(&number);
        }
    }

    /// The session is over.
    pub(super) fn drop_flights(&mut self, id: SessionId) {
        for number in self.broker.flights_of(id) {
            self.give_up(number);
        }
    }
}
