//! A provider that is away for a while: nothing parks, nothing is charged twice, all is paid after.

use std::time::Duration;

use e2e::provider::Reply;
use e2e::wait::until;
use e2e::{Clock, Db, DbOptions, Flavor, Provider as FakeProvider, Vhost};
use sqlx::MySqlPool;
use uuid::Uuid;

use crate::app::{SOON, database, payments, vhost};
use crate::messages::{Outgoing, Publisher};
use crate::process::{exit_code, start};

async fn publish(vhost: &Vhost, orders: usize) {
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    for _ in 0..orders {
        publisher.publish(&Outgoing::order(Uuid::now_v7())).await;
    }
    publisher.close().await;
}

/// Failed tries of the message that has the fewest, and messages with an attempt spent or parked.
async fn tries(pool: &MySqlPool) -> (i64, i64) {
    let least = "SELECT COALESCE(MIN(tries), 0) FROM (SELECT COUNT(a.id) AS tries FROM inbox i \
                 LEFT JOIN inbox_attempts a USING (message_id) GROUP BY i.message_id) AS counted";
    let spent = "SELECT COUNT(*) FROM inbox WHERE attempts > 0 OR status = 3";
    let least = sqlx::query_scalar(least).fetch_one(pool).await.unwrap();
    (
        least,
        sqlx::query_scalar(spent).fetch_one(pool).await.unwrap(),
    )
}

/// Refused, then overloaded, then silent; the backlog is paid as soon as it is back.
#[tokio::test]
async fn an_outage_of_the_provider_is_waited_out() {
    let db = e2e::shared::either().await;
    let (tables, vhost) = (database(db).await, vhost(e2e::shared::rabbit().await).await);
    let (pool, fake) = (tables.pool().unwrap(), FakeProvider::start().unwrap());
    fake.close();
    publish(&vhost, 30).await;
    let url = fake.url();
    let env = [
        ("DATABASE_URL", tables.url.as_str()),
        ("AMQP_URL", vhost.amqp_url.as_str()),
        ("PAY_PROVIDER", "http"),
        ("PAY_PROVIDER_URL", url.as_str()),
        ("PAY_PROVIDER_TIMEOUT", "500ms"),
        ("PAY_MAX_ATTEMPTS", "1"),
        ("PAY_BACKOFF_MIN", "100ms"),
        ("PAY_BACKOFF_MAX", "400ms"),
    ];
    let process = start(&["run"], &env);
    let more_tries = async |than: i64| {
        until("every message to be tried again", SOON, async || {
            let (least, spent) = tries(&pool).await;
            assert_eq!(spent, 0, "{}", process.log());
            (least > than).then_some(least)
        })
        .await
    };
    let mut least = more_tries(1).await;
    for reply in [
        Reply::status(503).retry_after("1"),
        Reply::status(429),
        // Takes the money and does not say so in time.
        Reply::captured().after(Duration::from_secs(60)),
    ] {
        fake.script(move |_| reply.clone());
        fake.open();
        least = more_tries(least).await;
    }
    fake.script(|_| Reply::captured());
    until("all payments", SOON, async || payments(&pool).await == 30).await;
    let ledger = fake.ledger();
    assert_eq!((ledger.charged(), ledger.doubled()), (30, 0));
    assert_eq!((ledger.mismatched(), ledger.unreadable()), (0, 0));
    process.terminate().unwrap();
    assert_eq!(exit_code(&process).await, Some(0), "{}", process.log());
}

/// Patience has an end, and it is `PAY_MAX_AGE`.
#[tokio::test]
async fn a_message_that_grows_too_old_in_an_outage_is_parked_with_its_reason() {
    let db = e2e::shared::either().await;
    let (tables, vhost) = (database(db).await, vhost(e2e::shared::rabbit().await).await);
    let (pool, fake) = (tables.pool().unwrap(), FakeProvider::start().unwrap());
    fake.script(|_| Reply::status(503));
    publish(&vhost, 3).await;
    let url = fake.url();
    let env = [
        ("DATABASE_URL", tables.url.as_str()),
        ("AMQP_URL", vhost.amqp_url.as_str()),
        ("PAY_PROVIDER", "http"),
        ("PAY_PROVIDER_URL", url.as_str()),
        ("PAY_MAX_AGE", "2s"),
        ("PAY_BACKOFF_MIN", "100ms"),
        ("PAY_BACKOFF_MAX", "400ms"),
    ];
    let process = start(&["run"], &env);
    until("all to be parked", SOON, async || {
        let parked = "SELECT COUNT(*) FROM inbox WHERE status = 3 AND attempts = 0 AND last_error \
                      LIKE '%503 Service Unavailable%'";
        sqlx::query_scalar::<_, i64>(parked)
            .fetch_one(&pool)
            .await
            .unwrap()
            == 3
    })
    .await;
    let (least, _) = tries(&pool).await;
    assert!(least > 2, "parked after {least} tries");
    let early: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM inbox i WHERE (SELECT MAX(failed_at) FROM inbox_attempts a WHERE \
         a.message_id = i.message_id) < i.received_at + INTERVAL 2 SECOND",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(early, 0, "parked before their time");
    assert_eq!(fake.ledger().charged(), 0, "{}", process.log());
}

/// The default settings; the hour passes on the database's clock, by which messages age.
#[tokio::test]
async fn an_hour_of_outage_parks_nothing() {
    let clock = Clock::new().unwrap();
    let options = DbOptions {
        env: clock.env(),
        ..DbOptions::default()
    };
    let db = Db::start(Flavor::MariaDb, options).await.unwrap();
    let (tables, vhost) = (
        database(&db).await,
        vhost(e2e::shared::rabbit().await).await,
    );
    let (pool, fake) = (tables.pool().unwrap(), FakeProvider::start().unwrap());
    fake.close();
    publish(&vhost, 20).await;
    let url = fake.url();
    let env = [
        ("DATABASE_URL", tables.url.as_str()),
        ("AMQP_URL", vhost.amqp_url.as_str()),
        ("PAY_PROVIDER", "http"),
        ("PAY_PROVIDER_URL", url.as_str()),
    ];
    let process = start(&["run"], &env);
    let mut least = 0;
    for minutes in (0..=60).step_by(15) {
        clock.set(minutes * 60).unwrap();
        least = until("every message to be tried again", SOON, async || {
            let (now, spent) = tries(&pool).await;
            assert_eq!(spent, 0, "after {minutes} min: {}", process.log());
            (now > least).then_some(now)
        })
        .await;
    }
    let age: i64 = sqlx::query_scalar(
        "SELECT MIN(TIMESTAMPDIFF(SECOND, received_at, UTC_TIMESTAMP(6))) FROM inbox",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert!(age >= 3600, "only {age} s have passed");
    fake.open();
    // The last wait is five minutes at the most.
    clock.set(66 * 60).unwrap();
    until("all payments", SOON, async || payments(&pool).await == 20).await;
    assert_eq!((fake.ledger().charged(), fake.ledger().doubled()), (20, 0));
}
