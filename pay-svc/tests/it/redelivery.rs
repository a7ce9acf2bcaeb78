//! Sixty redeliveries lose nothing. Without a delivery limit of its own, RabbitMQ 4 deletes a
//! message at its 21st delivery, and closed connections count.

use e2e::wait::until;
use e2e::{Db, Rabbit, Vhost};
use futures::StreamExt as _;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use pay_svc::topology::QUEUE;
use serde_json::Value;
use sqlx::{MySql, MySqlPool, Transaction};
use uuid::Uuid;

use crate::app::{App, SOON, config, database, payments, vhost};
use crate::messages::{Outgoing, Publisher};
use crate::process::{exit_code, start};
use crate::provider::{Act, Scripted, handle};

const REDELIVERIES: usize = 60;
const MESSAGES: i64 = 10;

/// Publishes messages that can't be stored until the transaction is rolled back: it holds the id of
/// the first, so every batch that begins with it waits.
async fn publish_behind_a_lock(pool: &MySqlPool, vhost: &Vhost) -> Transaction<'static, MySql> {
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("INSERT INTO inbox (message_id, payload) VALUES ('first', '')")
        .execute(&mut *lock)
        .await
        .unwrap();
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    let mut first = Outgoing::order(Uuid::now_v7());
    first.message_id = Some("first".to_owned());
    publisher.publish(&first).await;
    for _ in 1..MESSAGES {
        publisher.publish(&Outgoing::order(Uuid::now_v7())).await;
    }
    publisher.close().await;
    lock
}

async fn assert_redelivered(pool: &MySqlPool) {
    let headers: String =
        sqlx::query_scalar("SELECT headers FROM inbox WHERE message_id = 'first'")
            .fetch_one(pool)
            .await
            .unwrap();
    let headers: Value = serde_json::from_str(&headers).unwrap();
    let count = headers["x-delivery-count"].as_u64().unwrap_or(0);
    assert!(
        count >= REDELIVERIES as u64,
        "redelivered {count} times only"
    );
}

async fn survives_a_crash_loop(db: &Db, rabbit: &Rabbit) {
    let (tables, vhost) = (database(db).await, vhost(rabbit).await);
    let pool = tables.pool().unwrap();
    let lock = publish_behind_a_lock(&pool, &vhost).await;
    let env = [
        ("DATABASE_URL", tables.url.as_str()),
        ("AMQP_URL", vhost.amqp_url.as_str()),
        ("RUST_LOG", "info,pay_svc=debug"),
    ];
    let process = start(&["run"], &env);
    for crash in 0..REDELIVERIES {
        // A batch that has arrived waits for the lock, and is not acknowledged.
        until("a batch", SOON, async || {
            process.log().matches("batch arrived").count() > crash
        })
        .await;
        process.kill().unwrap();
        process.start_again().unwrap();
    }
    lock.rollback().await.unwrap();
    until("all payments", SOON, async || {
        payments(&pool).await == MESSAGES
    })
    .await;
    assert_redelivered(&pool).await;
    process.terminate().unwrap();
    assert_eq!(exit_code(&process).await, Some(0), "{}", process.log());
    assert_eq!(payments(&pool).await, MESSAGES);
}

/// Another consumer of the queue takes everything and goes away without a word, again and again.
async fn survives_closed_connections(db: &Db, rabbit: &Rabbit) {
    let (tables, vhost) = (database(db).await, vhost(rabbit).await);
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    let mut first = Outgoing::order(Uuid::now_v7());
    first.message_id = Some("first".to_owned());
    publisher.publish(&first).await;
    for _ in 1..MESSAGES {
        publisher.publish(&Outgoing::order(Uuid::now_v7())).await;
    }
    for _ in 0..REDELIVERIES {
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(&vhost.amqp_url, properties)
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        let options = BasicConsumeOptions {
            no_local: false,
            no_ack: false,
            exclusive: false,
            nowait: false,
        };
        let consumer = channel
            .basic_consume(QUEUE.into(), "".into(), options, FieldTable::default())
            .await
            .unwrap();
        let all = consumer
            .take(usize::try_from(MESSAGES).unwrap())
            .collect::<Vec<_>>();
        let all = tokio::time::timeout(SOON, all)
            .await
            .expect("not all were delivered again");
        assert!(all.iter().all(Result::is_ok));
        connection.close(200, "gone".into()).await.unwrap();
    }
    let provider = Scripted::always(Act::Capture);
    let config = config(&tables.url, &vhost.amqp_url);
    let app = App::serve(tables, config, handle(&provider)).await;
    app.until_paid(MESSAGES).await;
    assert_redelivered(&app.pool).await;
    assert_eq!(provider.all_calls(), usize::try_from(MESSAGES).unwrap());
}

#[tokio::test]
async fn sixty_crashes_lose_nothing_on_rabbitmq_3() {
    survives_a_crash_loop(e2e::shared::mariadb().await, e2e::shared::rabbit().await).await;
}

#[tokio::test]
async fn sixty_crashes_lose_nothing_on_rabbitmq_4() {
    if let Some(rabbit) = e2e::shared::rabbit4().await {
        let db = e2e::shared::mysql()
            .await
            .unwrap_or(e2e::shared::mariadb().await);
        survives_a_crash_loop(db, rabbit).await;
    }
}

#[tokio::test]
async fn sixty_closed_connections_lose_nothing_on_rabbitmq_3() {
    survives_closed_connections(e2e::shared::mariadb().await, e2e::shared::rabbit().await).await;
}

#[tokio::test]
async fn sixty_closed_connections_lose_nothing_on_rabbitmq_4() {
    if let Some(rabbit) = e2e::shared::rabbit4().await {
        survives_closed_connections(e2e::shared::mariadb().await, rabbit).await;
    }
}
