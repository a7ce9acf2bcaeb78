//! What one transaction takes, and who gets which answer. Pure.

use std::collections::HashMap;

use crate::idempotency::{IdempotencyKey, Key, Known};
use crate::order::Order;
use crate::trace::Trace;

/// What a row takes besides its texts, roughly, in bytes.
const ROW_BYTES: usize = 512;

/// How much one transaction takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Orders, at most.
    pub orders: usize,
    /// Bytes of their rows: the order that reaches this is the last of its batch.
    pub bytes: usize,
}

impl Bounds {
    /// Whether a batch of so many orders and bytes takes one more.
    #[must_use]
    pub fn have_room(self, orders: usize, bytes: usize) -> bool {
        orders < self.orders && bytes < self.bytes
    }
}

/// An order that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The order.
    pub order: Order,
    /// The body of the 201, which a key keeps as well.
    pub receipt: String,
    /// What the client knows its request by.
    pub key: Option<Key>,
    /// The trace its message carries on.
    pub trace: Trace,
}

impl Wanted {
    /// An order, requested under a key or not.
    #[must_use]
    pub fn new(order: Order, key: Option<IdempotencyKey>, trace: Trace) -> Self {
        let digest = |key| Key {
            key,
            digest: order.request.digest(),
        };
        let key = key.map(digest);
        Self {
            receipt: order.receipt().json(),
            order,
            key,
            trace,
        }
    }

    /// Roughly what its rows take in bytes. The receipt has all of the order's texts, and they are
    /// written as columns, as payload, and with a key as the receipt.
    #[must_use]
    pub fn bytes(&self) -> usize {
        ROW_BYTES + 3 * self.receipt.len() + self.trace.bytes()
    }
}

/// How a request was answered. The texts are the body of the 201.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placed {
    /// The order is committed.
    New(String),
    /// The same request was answered with this before; nothing was placed.
    Again(String),
    /// The idempotency key belongs to another request; nothing was placed.
    KeyReused,
}

/// Requests with one key that came together: one is written, and its outcome answers the others.
#[derive(Debug, PartialEq, Eq)]
pub struct Group<T> {
    /// The first that came; without a key it is the only one.
    pub first: T,
    /// The others, as they came.
    pub later: Vec<T>,
}

/// Groups requests by their keys. Groups without a key come first: when orders are placed one by one,
/// those that may have to wait for a key do not hold up those that can't.
pub fn group<T>(wanted: Vec<T>, key: impl Fn(&T) -> Option<&Key>) -> Vec<Group<T>> {
    let mut free = Vec::with_capacity(wanted.len());
    let mut keyed: Vec<Group<T>> = Vec::new();
    let mut places: HashMap<IdempotencyKey, usize> = HashMap::new();
    for one in wanted {
        let Some(name) = key(&one).map(|key| key.key.clone()) else {
            free.push(Group::alone(one));
            continue;
        };
        match places.get(&name) {
            Some(&place) => keyed[place].later.push(one),
            None => {
                places.insert(name, keyed.len());
                keyed.push(Group::alone(one));
            }
        }
    }
    free.append(&mut keyed);
    free
}

impl<T> Group<T> {
    /// Requests that all have one key; `None` when there are none.
    pub fn of(requests: Vec<T>) -> Option<Self> {
        let mut requests = requests.into_iter();
        let first = requests.next()?;
        let later = requests.collect();
        Some(Self { first, later })
    }

    /// The others, without the first.
    #[must_use]
    pub fn without_first(self) -> Option<Self> {
        Self::of(self.later)
    }

    fn alone(first: T) -> Self {
        let later = Vec::new();
        Self { first, later }
    }
}

/// The order in which orders are written: by key, and those without one last. Two transactions that
/// want the same keys then want them in the same order, so neither waits for what the other waits for.
#[must_use]
pub fn by_key(wanted: &[&Wanted]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|&index| match &wanted[index].key {
        Some(key) => (false, Some(&key.key)),
        None => (true, None),
    });
    order
}

/// What a key that is in the table says to a request.
#[must_use]
pub fn from_known(key: &Key, known: &Known) -> Placed {
    if known.digest == key.digest {
        Placed::Again(known.response.clone())
    } else {
        Placed::KeyReused
    }
}

/// What the first of a group says to one that came later; `None` when that has to be tried itself.
#[must_use]
pub fn from_first(first: &Wanted, placed: &Placed, later: &Wanted) -> Option<Placed> {
    let digest = |wanted: &Wanted| wanted.key.as_ref().map(|key| key.digest);
    let same = digest(first) == digest(later);
    match placed {
        Placed::New(receipt) | Placed::Again(receipt) if same => {
            Some(Placed::Again(receipt.clone()))
        }
        Placed::New(_) | Placed::Again(_) => Some(Placed::KeyReused),
        Placed::KeyReused if same => Some(Placed::KeyReused),
        // The key is known, but not by what the first of them requested.
        Placed::KeyReused => None,
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;
    use crate::request::OrderRequest;

    fn wanted(key: Option<&str>, amount_minor: i64) -> Wanted {
        let request = OrderRequest {
            amount_minor,
            ..OrderRequest::sample()
        };
        let order = Order::new(Uuid::now_v7(), OffsetDateTime::UNIX_EPOCH, request);
        Wanted::new(
            order,
            key.map(|key| IdempotencyKey::parse(key.as_bytes()).unwrap()),
            Trace::start(),
        )
    }

    fn keys<'a>(groups: &[Group<(&'a str, Wanted)>]) -> Vec<(&'a str, Vec<&'a str>)> {
        groups
            .iter()
            .map(|group| {
                let later = group.later.iter().map(|later| later.0);
                (group.first.0, later.collect())
            })
            .collect()
    }

    #[test]
    fn a_batch_ends_at_either_bound() {
        let bounds = Bounds {
            orders: 3,
            bytes: 100,
        };
        assert!(bounds.have_room(2, 99));
        assert!(!bounds.have_room(3, 0));
        assert!(!bounds.have_room(1, 100));
    }

    #[test]
    fn requests_with_one_key_are_one_group_in_the_order_they_came() {
        let batch = vec![
            ("a1", wanted(Some("a"), 1)),
            ("free", wanted(None, 1)),
            ("b1", wanted(Some("b"), 1)),
            ("a2", wanted(Some("a"), 2)),
            ("free too", wanted(None, 1)),
            ("a3", wanted(Some("a"), 1)),
        ];
        let groups = group(batch, |one| one.1.key.as_ref());
        assert_eq!(
            keys(&groups),
            [
                ("free", vec![]),
                ("free too", vec![]),
                ("a1", vec!["a2", "a3"]),
                ("b1", vec![]),
            ]
        );
    }

    #[test]
    fn whatever_the_order_they_came_in_keys_are_claimed_in_one_order() {
        let (c, none, a, b) = (
            wanted(Some("c"), 1),
            wanted(None, 1),
            wanted(Some("a"), 1),
            wanted(Some("b"), 1),
        );
        assert_eq!(by_key(&[&c, &none, &a, &b]), [2, 3, 0, 1]);
        assert_eq!(by_key(&[&none, &b, &c, &a]), [3, 1, 2, 0]);
    }

    #[test]
    fn one_that_came_later_gets_the_answer_of_the_first() {
        let first = wanted(Some("k"), 1);
        let (same, other) = (wanted(Some("k"), 1), wanted(Some("k"), 2));
        let receipt = || "receipt".to_owned();
        for placed in [Placed::New(receipt()), Placed::Again(receipt())] {
            let again = Some(Placed::Again(receipt()));
            assert_eq!(from_first(&first, &placed, &same), again);
            assert_eq!(from_first(&first, &placed, &other), Some(Placed::KeyReused));
        }
    }

    /// The table has the key with what the second requests: the first is wrong, the second right.
    #[test]
    fn one_that_came_later_is_tried_itself_when_the_first_says_nothing_of_it() {
        let first = wanted(Some("k"), 1);
        let (same, other) = (wanted(Some("k"), 1), wanted(Some("k"), 2));
        let reused = Placed::KeyReused;
        assert_eq!(from_first(&first, &reused, &same), Some(Placed::KeyReused));
        assert_eq!(from_first(&first, &reused, &other), None);
    }

    #[test]
    fn a_known_key_answers_its_own_request_alone() {
        let requested = wanted(Some("k"), 1);
        let mut known = Known {
            digest: requested.order.request.digest(),
            response: "r".into(),
        };
        let key = requested.key.as_ref().unwrap();
        assert_eq!(from_known(key, &known), Placed::Again("r".into()));
        known.digest = [0; 32];
        assert_eq!(from_known(key, &known), Placed::KeyReused);
    }
}
