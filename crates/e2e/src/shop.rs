//! The customers: orders over HTTP at a steady rate.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, stream::FuturesUnordered};
use serde_json::{Value, json};

use crate::stage::client;

/// Requests on the way at once; beyond it customers queue.
const IN_FLIGHT_MAX: usize = 64;
/// How long one order is tried again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Places the orders, and remembers the ids of those that were acknowledged.
pub struct Shop {
    client: reqwest::Client,
    url: String,
    orders: u32,
    rate: u32,
    acknowledged: RefCell<Vec<String>>,
}

impl Shop {
    /// Customers of the order service at this base URL, `rate` orders a second.
    pub fn new(order_svc: &str, orders: u32, rate: u32) -> anyhow::Result<Self> {
        Ok(Self {
            client: client()?,
            url: format!("{order_svc}/orders"),
            orders,
            rate,
            acknowledged: RefCell::default(),
        })
    }

    /// How many orders are to be placed.
    pub fn orders(&self) -> u32 {
        self.orders
    }

    /// How many orders were acknowledged.
    pub fn placed(&self) -> usize {
        self.acknowledged.borrow().len()
    }

    /// The ids of the orders that were acknowledged.
    pub fn acknowledged(&self) -> Vec<String> {
        self.acknowledged.borrow().clone()
    }

    /// Places all orders. A customer who gets no answer tries again with the same key.
    pub async fn open(&self) -> anyhow::Result<()> {
        let mut clock = tokio::time::interval(Duration::from_secs(1) / self.rate);
        let mut waiting = FuturesUnordered::new();
        let mut next = 0;
        while next < self.orders || !waiting.is_empty() {
            tokio::select! {
                _ = clock.tick(), if next < self.orders && waiting.len() < IN_FLIGHT_MAX => {
                    waiting.push(self.place(next));
                    next += 1;
                }
                Some(placed) = waiting.next() => self.acknowledged.borrow_mut().push(placed?),
            }
        }
        Ok(())
    }

    async fn place(&self, number: u32) -> anyhow::Result<String> {
        // The provider declines the test currency, so that the ledger has both outcomes.
        let currency = if number % 10 == 9 { "XTS" } else { "EUR" };
        let order = json!({
            "customer_id": format!("customer-{}", number % 50),
            "amount_minor": 100 + number,
            "currency": currency,
        });
        let requested = Instant::now();
        loop {
            match self.request(number, &order).await {
                Ok(id) => return Ok(id),
                Err(err) if requested.elapsed() > PATIENCE => {
                    return Err(err).with_context(|| format!("order {number}"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(250)).await,
            }
        }
    }

    async fn request(&self, number: u32, order: &Value) -> anyhow::Result<String> {
        let response = self
            .client
            .post(&self.url)
            .header("Idempotency-Key", format!("demo-{number}"))
            .json(order)
            .send()
            .await?;
        let status = response.status();
        let text = response.text().await?;
        if status != reqwest::StatusCode::CREATED {
            bail!("{status}: {text}");
        }
        let body: Value = serde_json::from_str(&text).context("the answer is not JSON")?;
        let id = body["order_id"]
            .as_str()
            .context("the answer has no order_id")?;
        Ok(id.to_owned())
    }
}
