//! Writing events inside the caller's transaction.

use outbox::event::{write, write_all};
use outbox::{Event, WriteError};
use sqlx::Row as _;
use time::macros::datetime;

use crate::databases;

fn placed(order: &str) -> Event {
    Event::new("order", order, "order.placed.v1", "order.pay", r#"{"n":1}"#)
}

#[tokio::test]
async fn an_event_is_there_if_and_only_if_its_transaction_commits() {
    for db in databases().await {
        let mut tx = db.pool.begin().await.unwrap();
        write(&mut tx, &placed("rolled-back")).await.unwrap();
        tx.rollback().await.unwrap();

        let mut tx = db.pool.begin().await.unwrap();
        let id = write(&mut tx, &placed("committed")).await.unwrap();
        tx.commit().await.unwrap();

        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT message_id, aggregate_id FROM outbox")
                .fetch_all(&db.pool)
                .await
                .unwrap();
        assert_eq!(
            rows,
            [(id.to_string(), "committed".to_owned())],
            "{:?}",
            db.flavor
        );
    }
}

#[tokio::test]
async fn what_an_event_does_not_say_is_the_tables_default() {
    for db in databases().await {
        let mut tx = db.pool.begin().await.unwrap();
        write(&mut tx, &placed("1")).await.unwrap();
        tx.commit().await.unwrap();

        let row = sqlx::query(
            "SELECT exchange, content_type, headers, status, attempts, next_attempt_at IS NULL, \
             sent_at IS NULL, payload FROM outbox",
        )
        .fetch_one(&db.pool)
        .await
        .unwrap();
        assert_eq!(row.get::<String, _>(0), "order-exchange", "{:?}", db.flavor);
        assert_eq!(row.get::<String, _>(1), "application/json");
        assert_eq!(row.get::<Option<String>, _>(2), None);
        assert_eq!((row.get::<u8, _>(3), row.get::<u32, _>(4)), (1, 0));
        assert!(row.get::<bool, _>(5) && row.get::<bool, _>(6));
        assert_eq!(row.get::<Vec<u8>, _>(7), br#"{"n":1}"#);
    }
}

#[tokio::test]
async fn what_an_event_says_is_in_its_row() {
    for db in databases().await {
        let bytes = [0, 0xff, b'\'', b'"', b'\\', 0];
        let event = Event::new("kund", "å-1", "kund.ändrad".replace('ä', "a"), "", bytes)
            .exchange("")
            .content_type("application/octet-stream")
            .header("traceparent", "00-\"1\"-å")
            .not_before(datetime!(2030-01-02 03:04:05.678901 +2));
        let mut tx = db.pool.begin().await.unwrap();
        write(&mut tx, &event).await.unwrap();
        tx.commit().await.unwrap();

        let row = sqlx::query(
            "SELECT aggregate_type, aggregate_id, event_type, exchange, routing_key, content_type, \
             headers, payload, CAST(next_attempt_at AS CHAR) FROM outbox",
        )
        .fetch_one(&db.pool)
        .await
        .unwrap();
        let text = |column: usize| row.get::<String, _>(column);
        assert_eq!(
            (text(0), text(1)),
            ("kund".to_owned(), "å-1".to_owned()),
            "{:?}",
            db.flavor
        );
        assert_eq!(
            (text(2), text(3), text(4)),
            ("kund.andrad".into(), String::new(), String::new())
        );
        assert_eq!(text(5), "application/octet-stream");
        assert_eq!(text(6), r#"{"traceparent":"00-\"1\"-å"}"#);
        assert_eq!(row.get::<Vec<u8>, _>(7), bytes);
        assert_eq!(text(8), "2030-01-02 01:04:05.678901");
    }
}

#[tokio::test]
async fn many_events_keep_their_order() {
    for db in databases().await {
        let events: Vec<Event> = (0..1203).map(|n| placed(&n.to_string())).collect();
        let mut tx = db.pool.begin().await.unwrap();
        let ids = write_all(&mut tx, &events).await.unwrap();
        assert!(write_all(&mut tx, &[]).await.unwrap().is_empty());
        tx.commit().await.unwrap();

        let stored: Vec<String> = sqlx::query_scalar("SELECT message_id FROM outbox ORDER BY id")
            .fetch_all(&db.pool)
            .await
            .unwrap();
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        assert_eq!(stored, ids, "{:?}", db.flavor);
    }
}

#[tokio::test]
async fn a_row_is_stamped_in_utc_whatever_the_sessions_time_zone() {
    for db in databases().await {
        let mut tx = db.pool.begin().await.unwrap();
        sqlx::query("SET time_zone = '+08:00'")
            .execute(&mut *tx)
            .await
            .unwrap();
        write(&mut tx, &placed("1")).await.unwrap();
        let age: i64 = sqlx::query_scalar(
            "SELECT TIMESTAMPDIFF(SECOND, created_at, UTC_TIMESTAMP(6)) FROM outbox",
        )
        .fetch_one(&mut *tx)
        .await
        .unwrap();
        assert!((0..60).contains(&age), "{:?}: {age} s", db.flavor);
        tx.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn an_invalid_event_does_not_spoil_the_transaction() {
    for db in databases().await {
        let mut tx = db.pool.begin().await.unwrap();
        let batch = [placed("1"), placed("2").header("CC", "elsewhere")];
        let err = write_all(&mut tx, &batch).await.unwrap_err();
        assert!(
            matches!(
                err,
                WriteError::Invalid {
                    field: "headers",
                    ..
                }
            ),
            "{err:?}"
        );
        write(&mut tx, &placed("3")).await.unwrap();
        tx.commit().await.unwrap();

        let ids: Vec<String> = sqlx::query_scalar("SELECT aggregate_id FROM outbox")
            .fetch_all(&db.pool)
            .await
            .unwrap();
        assert_eq!(ids, ["3"], "{:?}", db.flavor);
    }
}
