//! The ledger: what customers were promised against what was paid.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use e2e::{shop::Shop, stage::Stage};

use crate::story::Story;

/// The books after all is settled.
pub(crate) struct Ledger {
    /// Orders that were acknowledged to a customer.
    orders: usize,
    /// Rows in the orders table.
    stored: i64,
    /// Outbox rows that are marked sent.
    sent: i64,
    /// Payments, captured and declined.
    payments: usize,
    /// Payments that say that the customer paid.
    captured: usize,
    /// Orders that the provider took money for.
    charged: usize,
    /// Acknowledged orders without a payment.
    lost: usize,
    /// Charges beyond the first of an order.
    doubled: usize,
}

impl Ledger {
    /// Reads the books from the two databases and from the provider's own.
    pub(crate) async fn draw_up(stage: &Stage, shop: &Shop, story: &Story) -> anyhow::Result<Self> {
        let (stored, sent): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT COUNT(*) FROM orders.orders), \
                    (SELECT COUNT(*) FROM orders.outbox WHERE status = 2)",
        )
        .fetch_one(&stage.pool)
        .await?;
        let payments: Vec<(String, String, String)> =
            sqlx::query_as("SELECT order_id, payment_id, outcome FROM payments.payments")
                .fetch_all(&stage.pool)
                .await?;
        let acknowledged = shop.acknowledged();
        let paid: HashSet<&str> = payments.iter().map(|(order, ..)| order.as_str()).collect();
        let lost = acknowledged
            .iter()
            .filter(|id| !paid.contains(id.as_str()))
            .count();
        let captured = payments
            .iter()
            .filter(|(.., how)| how == "captured")
            .count();
        let payments: Vec<(String, String)> = payments
            .into_iter()
            .map(|(order, payment, _)| (order, payment))
            .collect();
        let provider = stage.provider.ledger();
        Ok(Self {
            orders: acknowledged.len(),
            stored,
            sent,
            payments: payments.len(),
            captured,
            charged: provider.charged(),
            lost,
            doubled: doubled(&payments, &story.paid_before, provider.doubled()),
        })
    }

    /// Why the ledger does not balance; empty when it does.
    pub(crate) fn imbalances(&self) -> Vec<String> {
        let Self {
            orders,
            stored,
            sent,
            payments,
            captured,
            charged,
            lost,
            doubled,
        } = self;
        let mut reasons = Vec::new();
        let mut check = |balances: bool, reason: String| {
            if !balances {
                reasons.push(reason);
            }
        };
        let number = i64::try_from(*orders).unwrap_or(i64::MAX);
        check(
            *stored == number,
            format!("{orders} orders acknowledged, {stored} in the table"),
        );
        check(
            *sent == number,
            format!("{orders} orders, but {sent} events sent"),
        );
        check(
            payments == orders,
            format!("{orders} orders, but {payments} payments"),
        );
        check(
            captured == charged,
            format!("{captured} payments captured, but the provider charged {charged} orders"),
        );
        check(*lost == 0, format!("{lost} orders were never paid"));
        check(
            *doubled == 0,
            format!("{doubled} charges beyond the first of an order"),
        );
        reasons
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            orders,
            sent,
            payments,
            lost,
            doubled,
            ..
        } = self;
        write!(
            f,
            "LEDGER orders={orders} sent={sent} payments={payments} lost={lost} doubled={doubled}"
        )
    }
}

/// How often an order was charged beyond once, by three independent signs, the strongest of which
/// counts. The table's unique keys alone would hide a second charge instead of showing it.
fn doubled(
    payments: &[(String, String)],
    before: &HashMap<String, String>,
    by_provider: usize,
) -> usize {
    // Two payments of one order.
    let distinct: HashSet<&str> = payments.iter().map(|(order, _)| order.as_str()).collect();
    let rows = payments.len() - distinct.len();
    // A payment that was made again, over the one that was there when messages were re-delivered.
    let replaced = payments
        .iter()
        .filter(|(order, payment)| before.get(order).is_some_and(|first| first != payment))
        .count();
    // Orders that the provider took money for more than once.
    rows.max(replaced).max(by_provider)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{Ledger, doubled};

    fn pair(order: &str, payment: &str) -> (String, String) {
        (order.to_owned(), payment.to_owned())
    }

    #[test]
    fn each_sign_of_a_second_charge_counts() {
        let once = [pair("a", "1"), pair("b", "2")];
        let none = HashMap::new();
        assert_eq!(doubled(&once, &none, 0), 0);
        assert_eq!(doubled(&once, &none, 1), 1, "charged twice");
        let twice = [pair("a", "1"), pair("a", "2")];
        assert_eq!(doubled(&twice, &none, 0), 1, "paid twice");
        let before = HashMap::from([pair("a", "0"), pair("b", "2")]);
        assert_eq!(doubled(&once, &before, 0), 1, "paid anew");
    }

    #[test]
    fn the_last_line_is_the_ledger_and_it_says_what_is_wrong() {
        let mut ledger = Ledger {
            orders: 500,
            stored: 500,
            sent: 500,
            payments: 500,
            captured: 450,
            charged: 450,
            lost: 0,
            doubled: 0,
        };
        assert_eq!(
            ledger.to_string(),
            "LEDGER orders=500 sent=500 payments=500 lost=0 doubled=0"
        );
        assert!(ledger.imbalances().is_empty());
        ledger.payments = 499;
        ledger.captured = 449;
        ledger.lost = 1;
        assert_eq!(ledger.imbalances().len(), 3);
    }
}
