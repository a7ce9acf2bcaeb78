//! The ledger: what customers were promised against what was paid.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use anyhow::Context as _;

use e2e::{
    shop::Shop,
    stage::{Stage, client},
};

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
    /// Acknowledged orders without a payment.
    lost: usize,
    /// Charges beyond the first of an order.
    doubled: usize,
}

impl Ledger {
    /// Reads the books from the two databases and from what the consumer counted.
    pub(crate) async fn draw_up(stage: &Stage, shop: &Shop, story: &Story) -> anyhow::Result<Self> {
        let (stored, sent): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT COUNT(*) FROM orders.orders), \
                    (SELECT COUNT(*) FROM orders.outbox WHERE status = 2)",
        )
        .fetch_one(&stage.pool)
        .await?;
        let payments: Vec<(String, String)> =
            sqlx::query_as("SELECT order_id, payment_id FROM payments.payments")
                .fetch_all(&stage.pool)
                .await?;
        let acknowledged = shop.acknowledged();
        let paid: HashSet<&str> = payments.iter().map(|(order, _)| order.as_str()).collect();
        let lost = acknowledged
            .iter()
            .filter(|id| !paid.contains(id.as_str()))
            .count();
        let charges = charges(stage).await?;
        Ok(Self {
            orders: acknowledged.len(),
            stored,
            sent,
            payments: payments.len(),
            lost,
            doubled: doubled(&payments, &story.paid_before, charges),
        })
    }

    /// Why the ledger does not balance; empty when it does.
    pub(crate) fn imbalances(&self) -> Vec<String> {
        let Self {
            orders,
            stored,
            sent,
            payments,
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
    charges: Option<usize>,
) -> usize {
    // Two payments of one order.
    let distinct: HashSet<&str> = payments.iter().map(|(order, _)| order.as_str()).collect();
    let rows = payments.len() - distinct.len();
    // A payment that was made again, over the one that was there when messages were re-delivered.
    let replaced = payments
        .iter()
        .filter(|(order, payment)| before.get(order).is_some_and(|first| first != payment))
        .count();
    // Charges the consumer recorded, against the orders they can have been for.
    let charged = charges.map_or(0, |charges| charges.saturating_sub(distinct.len()));
    rows.max(replaced).max(charged)
}

/// Messages that ended in a charge, by pay-svc's own count since its start.
async fn charges(stage: &Stage) -> anyhow::Result<Option<usize>> {
    let url = format!("{}/metrics", stage.pay.admin);
    let text = async {
        client()?
            .get(&url)
            .send()
            .await?
            .error_for_status()?
            .text()
            .await
            .map_err(Into::into)
    }
    .await
    .map_err(|err: anyhow::Error| err.context("could not read pay-svc's metrics"))?;
    let counts = text
        .lines()
        .filter_map(|line| line.strip_prefix("inbox_processed_total{outcome=\""))
        .filter(|line| line.starts_with("captured\"") || line.starts_with("declined\""))
        .map(|line| {
            line.rsplit_once(' ')
                .map_or("", |(_, count)| count)
                .parse::<usize>()
        })
        .collect::<Result<Vec<_>, _>>()
        .context("pay-svc's metrics do not parse")?;
    Ok((!counts.is_empty()).then(|| counts.iter().sum()))
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
        assert_eq!(doubled(&once, &none, Some(2)), 0);
        assert_eq!(
            doubled(&once, &none, Some(3)),
            1,
            "charged more often than paid"
        );
        assert_eq!(
            doubled(&[pair("a", "1"), pair("a", "2")], &none, None),
            1,
            "paid twice"
        );
        let before = HashMap::from([pair("a", "0"), pair("b", "2")]);
        assert_eq!(doubled(&once, &before, Some(2)), 1, "paid anew");
    }

    #[test]
    fn the_last_line_is_the_ledger_and_it_says_what_is_wrong() {
        let mut ledger = Ledger {
            orders: 500,
            stored: 500,
            sent: 500,
            payments: 500,
            lost: 0,
            doubled: 0,
        };
        assert_eq!(
            ledger.to_string(),
            "LEDGER orders=500 sent=500 payments=500 lost=0 doubled=0"
        );
        assert!(ledger.imbalances().is_empty());
        ledger.payments = 499;
        ledger.lost = 1;
        assert_eq!(ledger.imbalances().len(), 2);
    }
}
