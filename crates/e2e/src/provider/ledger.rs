//! The requests to a fake provider, and what it took.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Call;

/// What has happened at a provider.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Calls by key, with what the first of them requested.
    keys: HashMap<String, Key>,
    /// How often money was taken for an order: once for each key that requested it.
    charges: BTreeMap<String, u32>,
    /// Calls under way, by order.
    under_way: HashMap<String, u32>,
    most_at_once: u32,
    /// Orders for which there was a call while another was under way.
    overlapped: BTreeSet<String>,
    mismatched: usize,
    unreadable: usize,
}

#[derive(Clone, Debug)]
struct Key {
    requested: (String, i64, String),
    calls: usize,
    charged: bool,
}

impl Ledger {
    /// Calls that could be read.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.keys.values().map(|key| key.calls).sum()
    }

    /// Calls with this key.
    #[must_use]
    pub fn calls_with(&self, key: &str) -> usize {
        self.keys.get(key).map_or(0, |key| key.calls)
    }

    /// Orders that money was taken for.
    #[must_use]
    pub fn charged(&self) -> usize {
        self.charges.len()
    }

    /// Orders that money was taken for more than once.
    #[must_use]
    pub fn doubled(&self) -> usize {
        self.charges.values().filter(|times| **times > 1).count()
    }

    /// Orders for which there was a call while another for the same order was under way.
    #[must_use]
    pub fn overlapped(&self) -> &BTreeSet<String> {
        &self.overlapped
    }

    /// Calls that are not answered yet, nor given up.
    #[must_use]
    pub fn under_way(&self) -> u32 {
        self.under_way.values().sum()
    }

    /// The most calls that were under way at any moment.
    #[must_use]
    pub fn most_at_once(&self) -> u32 {
        self.most_at_once
    }

    /// Calls with a known key that requested something else than the first with it.
    #[must_use]
    pub fn mismatched(&self) -> usize {
        self.mismatched
    }

    /// Requests that were no charge: no key, another method, a body that is none.
    #[must_use]
    pub fn unreadable(&self) -> usize {
        self.unreadable
    }

    pub(super) fn refuse(&mut self) {
        self.unreadable += 1;
    }

    /// Counts a call, which is under way until [`Ledger::end`]. `false`: its key is known with
    /// another body.
    pub(super) fn begin(&mut self, call: &mut Call) -> bool {
        let under_way = self.under_way.entry(call.order_id.clone()).or_default();
        *under_way += 1;
        if *under_way > 1 {
            self.overlapped.insert(call.order_id.clone());
        }
        self.most_at_once = self.most_at_once.max(self.under_way());
        let requested = (
            call.order_id.clone(),
            call.amount_minor,
            call.currency.clone(),
        );
        let key = self.keys.entry(call.key.clone()).or_insert_with(|| Key {
            requested: requested.clone(),
            calls: 0,
            charged: false,
        });
        key.calls += 1;
        call.nth = key.calls;
        let is_same = key.requested == requested;
        self.mismatched += usize::from(!is_same);
        is_same
    }

    pub(super) fn end(&mut self, order_id: &str) {
        let Some(under_way) = self.under_way.get_mut(order_id) else {
            return;
        };
        *under_way -= 1;
        if *under_way == 0 {
            self.under_way.remove(order_id);
        }
    }

    /// Takes the money, once for each key.
    pub(super) fn take(&mut self, call: &Call) {
        if let Some(key) = self.keys.get_mut(&call.key)
            && !key.charged
        {
            key.charged = true;
            *self.charges.entry(call.order_id.clone()).or_default() += 1;
        }
    }
}
