//! SIGKILL at any moment: an order is charged once and paid once.

use std::collections::HashSet;
use std::time::Duration;

use e2e::product::Process;
use e2e::provider::Reply;
use e2e::wait::until;
use e2e::{Db, Provider as FakeProvider, figures};
use sqlx::MySqlPool;
use uuid::Uuid;

use crate::app::{SOON, database, payments, vhost};
use crate::messages::{Outgoing, Publisher};
use crate::process::{exit_code, start};

/// Orders between two kills.
const ORDERS: usize = 40;
/// Long enough for the last lease: `PAY_PROVIDER_TIMEOUT` + 10 s.
const LEASE: Duration = Duration::from_secs(60);

async fn count(pool: &MySqlPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// Every order once, every seventh delivered twice; every fifth has a second message, and is
/// returned.
async fn publish(publisher: &Publisher) -> Vec<String> {
    let mut twice = Vec::new();
    for n in 0..ORDERS {
        let order = Uuid::now_v7();
        let message = Outgoing::order(order);
        publisher.publish(&message).await;
        if n % 5 == 0 {
            publisher.publish(&Outgoing::order(order)).await;
            twice.push(order.to_string());
        }
        if n % 7 == 0 {
            publisher.publish(&message).await;
        }
    }
    twice
}

/// Waits for a moment that differs from kill to kill, and kills.
async fn kill(process: &Process, fake: &FakeProvider, kill: usize) {
    let before = fake.ledger().charged();
    until("the moment to kill", LEASE, async || {
        let ledger = fake.ledger();
        let charged = ledger.charged() - before;
        match kill % 4 {
            // Money is taken, and no answer was read.
            0 | 1 => ledger.under_way() > 5,
            // Some answers were; their payments may be half-way to the database.
            2 => charged > kill % ORDERS / 2,
            // Whatever it is doing now.
            _ => charged > 0,
        }
    })
    .await;
    process.kill().unwrap();
    process.start_again().unwrap();
}

async fn pays_once_through(kills: usize, db: &Db) {
    let (tables, vhost) = (database(db).await, vhost(e2e::shared::rabbit().await).await);
    let (pool, fake) = (tables.pool().unwrap(), FakeProvider::start().unwrap());
    fake.script(|call| {
        let jitter = u64::from(call.order_id.as_bytes()[35] % 16);
        Reply::captured().after(Duration::from_millis(20 + 10 * jitter))
    });
    let url = fake.url();
    let env = [
        ("DATABASE_URL", tables.url.as_str()),
        ("AMQP_URL", vhost.amqp_url.as_str()),
        ("PAY_PROVIDER", "http"),
        ("PAY_PROVIDER_URL", url.as_str()),
        ("PAY_PROVIDER_TIMEOUT", "1s"),
    ];
    let process = start(&["run"], &env);
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    let mut twice = HashSet::new();
    for n in 0..kills {
        let (published, ()) = tokio::join!(publish(&publisher), kill(&process, &fake, n));
        twice.extend(published);
    }
    let orders = kills * ORDERS;
    until("all payments", LEASE, async || {
        payments(&pool).await >= i64::try_from(orders).unwrap()
    })
    .await;
    let waiting = "SELECT COUNT(*) FROM inbox WHERE status <> 2";
    until("all messages", SOON, async || {
        count(&pool, waiting).await == 0
    })
    .await;
    process.terminate().unwrap();
    assert_eq!(exit_code(&process).await, Some(0), "{}", process.log());

    let ledger = fake.ledger();
    assert_eq!(payments(&pool).await, i64::try_from(orders).unwrap());
    assert_eq!((ledger.charged(), ledger.doubled()), (orders, 0));
    assert_eq!((ledger.mismatched(), ledger.unreadable()), (0, 0));
    // Two messages of one order may be in the hands of two workers; one message never is.
    let two_hands = ledger
        .overlapped()
        .iter()
        .find(|order| !twice.contains(*order));
    assert_eq!(two_hands, None, "one message was worked on by two");
    let again = ledger.calls() - orders;
    assert!(
        again >= kills,
        "{again} charges were requested again: killed at the wrong moments"
    );
    figures::record(
        &format!(
            "pay-svc: {kills} SIGKILLs, {orders} orders, {:?}",
            db.flavor()
        ),
        &format!("charged twice 0, requested again {again}"),
    );
}

#[tokio::test]
async fn an_order_is_charged_once_through_kills() {
    pays_once_through(5, e2e::shared::either().await).await;
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_pay_an_order_is_charged_once_through_50_kills);
#[cfg(feature = "long")]
async fn long_pay_an_order_is_charged_once_through_50_kills(flavor: e2e::Flavor) {
    let db = e2e::shared::database(flavor).await;
    pays_once_through(50, db).await;
}
