//! Claiming messages inside the caller's transaction.

use std::time::Duration;

use outbox::inbox::{claim, claim_all};
use outbox::{Claim, Received};
use sqlx::{MySqlPool, Row as _};

use crate::{Database, databases};

pub(crate) fn message(id: Option<&str>, body: &[u8]) -> Received {
    let (message_id, problem) = Received::identify(id.map(str::as_bytes), body);
    Received {
        message_id,
        event_type: Some("order.placed.v1".to_owned()),
        aggregate_id: Some("42".to_owned()),
        exchange: "order-exchange".to_owned(),
        routing_key: "order.pay".to_owned(),
        headers: serde_json::json!({"aggregate-id": "42"}),
        payload: body.to_vec(),
        problem,
    }
}

pub(crate) async fn claim_committed(pool: &MySqlPool, received: &[Received]) -> Vec<Claim> {
    let mut tx = pool.begin().await.unwrap();
    let claims = claim_all(&mut tx, received).await.unwrap();
    tx.commit().await.unwrap();
    claims
}

/// Every row's id, status and deliveries, by id.
async fn rows(db: &Database) -> Vec<(String, u8, u32)> {
    let sql = "SELECT CAST(message_id AS CHAR), status, deliveries FROM inbox ORDER BY message_id";
    sqlx::query_as(sql).fetch_all(&db.pool).await.unwrap()
}

/// Every attempt's message, number, class and text, in the order they were recorded.
async fn attempts(db: &Database) -> Vec<(String, u32, String, String)> {
    let sql =
        "SELECT CAST(message_id AS CHAR), attempt, class, error FROM inbox_attempts ORDER BY id";
    sqlx::query_as(sql).fetch_all(&db.pool).await.unwrap()
}

/// SHA-256 of `other`.
const OTHER: &str = "sha256:d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

#[tokio::test]
async fn a_message_is_claimed_once_and_every_delivery_counted() {
    for db in databases().await {
        let received = [message(Some("m-1"), b"{}")];
        assert_eq!(
            claim_committed(&db.pool, &received).await,
            [Claim::First],
            "{:?}",
            db.flavor
        );
        assert_eq!(
            claim_committed(&db.pool, &received).await,
            [Claim::Duplicate]
        );
        assert_eq!(
            claim_committed(&db.pool, &received).await,
            [Claim::Duplicate]
        );
        assert_eq!(rows(&db).await, [("m-1".to_owned(), 1, 3)]);
        assert_eq!(attempts(&db).await, []);
    }
}

#[tokio::test]
async fn a_claim_that_is_rolled_back_was_never_made() {
    for db in databases().await {
        let received = message(Some("m-1"), b"{}");
        let mut tx = db.pool.begin().await.unwrap();
        assert_eq!(
            claim(&mut tx, &received).await.unwrap(),
            Claim::First,
            "{:?}",
            db.flavor
        );
        tx.rollback().await.unwrap();
        assert_eq!(rows(&db).await, []);
        assert_eq!(claim_committed(&db.pool, &[received]).await, [Claim::First]);
    }
}

#[tokio::test]
async fn a_row_has_all_of_the_message() {
    for db in databases().await {
        let body = [0, 0xff, b'\'', b'\\', 0xc3];
        claim_committed(&db.pool, &[message(Some("m-1"), &body)]).await;
        let row = sqlx::query(
            "SELECT event_type, aggregate_id, exchange, routing_key, headers, payload, attempts, \
             next_attempt_at IS NULL, last_error IS NULL, processed_at IS NULL, \
             TIMESTAMPDIFF(SECOND, received_at, UTC_TIMESTAMP(6)) FROM inbox",
        )
        .fetch_one(&db.pool)
        .await
        .unwrap();
        let texts: Vec<String> = (0..5).map(|column| row.get(column)).collect();
        let headers = r#"{"aggregate-id":"42"}"#;
        let expected = [
            "order.placed.v1",
            "42",
            "order-exchange",
            "order.pay",
            headers,
        ];
        assert_eq!(texts, expected, "{:?}", db.flavor);
        assert_eq!(row.get::<Vec<u8>, _>(5), body);
        assert_eq!(row.get::<u32, _>(6), 0);
        assert!((7..10).all(|column| row.get::<bool, _>(column)));
        assert!((0..60).contains(&row.get::<i64, _>(10)));
    }
}

#[tokio::test]
async fn texts_too_long_for_their_columns_are_cut_not_refused() {
    for db in databases().await {
        let long = "å".repeat(5_000);
        let received = Received {
            event_type: Some(long.clone()),
            aggregate_id: Some(long.clone()),
            exchange: long.clone(),
            routing_key: long.clone(),
            problem: Some(outbox::Problem::Malformed(long)),
            ..message(Some("m-1"), b"{}")
        };
        assert_eq!(
            claim_committed(&db.pool, &[received]).await,
            [Claim::First],
            "{:?}",
            db.flavor
        );
        let lengths: (i64, i64, i64, i64, i64) = sqlx::query_as(
            "SELECT CHAR_LENGTH(event_type), CHAR_LENGTH(aggregate_id), CHAR_LENGTH(exchange), \
             CHAR_LENGTH(routing_key), CHAR_LENGTH(last_error) FROM inbox",
        )
        .fetch_one(&db.pool)
        .await
        .unwrap();
        assert_eq!(lengths, (255, 255, 255, 255, 1000));
        assert_eq!(attempts(&db).await[0].3.chars().count(), 1000);
    }
}

#[tokio::test]
async fn a_message_without_a_usable_id_is_parked_under_its_digest() {
    for db in databases().await {
        let received = [
            message(None, b"other"),
            message(Some("two words"), b"other"),
        ];
        let claims = claim_committed(&db.pool, &received).await;
        assert_eq!(claims, [Claim::First, Claim::Duplicate], "{:?}", db.flavor);
        assert_eq!(rows(&db).await, [(OTHER.to_owned(), 3, 2)]);
        let error = "message_id is absent; stored under the digest of its body".to_owned();
        let expected = (
            OTHER.to_owned(),
            0,
            "bad_message_id".to_owned(),
            error.clone(),
        );
        assert_eq!(attempts(&db).await, [expected]);
        let last_error: String = sqlx::query_scalar("SELECT last_error FROM inbox")
            .fetch_one(&db.pool)
            .await
            .unwrap();
        assert_eq!(last_error, error);
    }
}

#[tokio::test]
async fn a_known_id_with_another_body_is_parked_under_its_digest() {
    for db in databases().await {
        let (first, other) = (message(Some("m-1"), b"one"), message(Some("m-1"), b"other"));
        claim_committed(&db.pool, std::slice::from_ref(&first)).await;
        let claims = claim_committed(&db.pool, std::slice::from_ref(&other)).await;
        assert_eq!(claims, [Claim::Conflict], "{:?}", db.flavor);
        // Each row counts its own message's deliveries.
        assert_eq!(
            rows(&db).await,
            [("m-1".to_owned(), 1, 1), (OTHER.to_owned(), 3, 1)]
        );

        let claims = claim_committed(&db.pool, &[other, first]).await;
        assert_eq!(claims, [Claim::Duplicate, Claim::Duplicate]);
        assert_eq!(
            rows(&db).await,
            [("m-1".to_owned(), 1, 2), (OTHER.to_owned(), 3, 2)]
        );

        let attempts = attempts(&db).await;
        assert_eq!(attempts.len(), 1, "{attempts:?}");
        assert_eq!(attempts[0].2, "id_conflict");
        assert!(
            attempts[0]
                .3
                .starts_with("message_id m-1 is known with another body")
        );
    }
}

#[tokio::test]
async fn repeats_within_a_batch_are_reported_apart_from_conflicts() {
    for db in databases().await {
        let batch = [
            message(Some("b"), b"one"),
            message(Some("a"), b"one"),
            message(Some("b"), b"one"),
            message(Some("b"), b"other"),
            message(Some("a"), b"one"),
            message(Some("b"), b"other"),
            message(None, b"other"),
        ];
        use Claim::{Conflict, Duplicate, First};
        let claims = claim_committed(&db.pool, &batch).await;
        // The body without an id is the first to be stored under the digest that they share.
        let expected = [
            First, First, Duplicate, Duplicate, Duplicate, Duplicate, First,
        ];
        assert_eq!(claims, expected, "{:?}", db.flavor);
        let expected = [
            ("a".to_owned(), 1, 2),
            ("b".to_owned(), 1, 2),
            (OTHER.to_owned(), 3, 3),
        ];
        assert_eq!(rows(&db).await, expected);

        let batch = [
            message(Some("c"), b"x"),
            message(Some("c"), b"y"),
            message(Some("c"), b"y"),
        ];
        assert_eq!(
            claim_committed(&db.pool, &batch).await,
            [First, Conflict, Duplicate]
        );
    }
}

#[tokio::test]
async fn ids_are_bytes_not_text_of_some_collation() {
    for db in databases().await {
        let ids = ["abc", "Abc", "ABC", "abc~", "ab"];
        let batch: Vec<Received> = ids
            .iter()
            .map(|id| message(Some(id), b"same body"))
            .collect();
        let claims = claim_committed(&db.pool, &batch).await;
        assert_eq!(claims, [Claim::First; 5], "{:?}", db.flavor);
        assert_eq!(rows(&db).await.len(), 5);
    }
}

#[tokio::test]
async fn of_two_claims_at_once_one_is_first_and_the_other_waits_to_know() {
    for db in databases().await {
        for commit in [true, false] {
            let received = message(Some(&format!("m-{commit}")), b"{}");
            let mut first = db.pool.begin().await.unwrap();
            assert_eq!(claim(&mut first, &received).await.unwrap(), Claim::First);

            let mut second = db.pool.begin().await.unwrap();
            let session: u64 = sqlx::query_scalar("SELECT CONNECTION_ID()")
                .fetch_one(&mut *second)
                .await
                .unwrap();
            let waiting = svc_kit::tasks::unit(async move {
                let claim = claim(&mut second, &received).await.unwrap();
                second.commit().await.unwrap();
                claim
            });
            e2e::wait::until(
                "the second claim to wait",
                Duration::from_secs(10),
                async || is_inserting(&db.pool, session).await,
            )
            .await;
            assert!(!waiting.is_finished());
            let expected = if commit {
                first.commit().await.unwrap();
                Claim::Duplicate
            } else {
                first.rollback().await.unwrap();
                Claim::First
            };
            assert_eq!(
                waiting.await.unwrap(),
                expected,
                "{:?}, commit {commit}",
                db.flavor
            );
        }
    }
}

/// Is the session in the middle of its `INSERT`? With the row locked, that is: waiting for the lock.
///
/// `innodb_trx` would say so by name, but is refreshed only when nobody has read it for 0.1 s.
async fn is_inserting(pool: &MySqlPool, session: u64) -> bool {
    let sessions = sqlx::query("SHOW FULL PROCESSLIST")
        .fetch_all(pool)
        .await
        .unwrap();
    sessions.iter().any(|row| {
        let statement = row.get::<Option<String>, _>("Info");
        row.get_unchecked::<u64, _>("Id") == session
            && statement.is_some_and(|sql| sql.starts_with("INSERT INTO `inbox`"))
    })
}

#[tokio::test]
async fn batches_with_messages_in_common_do_not_deadlock() {
    for db in databases().await {
        for round in 0..20 {
            let batch: Vec<Received> = (0..50)
                .map(|n| message(Some(&format!("{round}-{n}")), b"{}"))
                .collect();
            let backwards: Vec<Received> = batch.iter().rev().cloned().collect();
            let (a, b) = tokio::join!(
                claim_committed(&db.pool, &batch),
                claim_committed(&db.pool, &backwards)
            );
            let first = |claims: &[Claim]| claims.iter().filter(|c| **c == Claim::First).count();
            assert_eq!(first(&a) + first(&b), 50, "{:?}, round {round}", db.flavor);
        }
    }
}

#[tokio::test]
async fn a_batch_larger_than_a_statement_is_claimed_whole() {
    for db in databases().await {
        let batch: Vec<Received> = (0..1_203)
            .map(|n| message(Some(&format!("m-{n}")), b"{}"))
            .collect();
        let claims = claim_committed(&db.pool, &batch).await;
        assert!(
            claims.iter().all(|claim| *claim == Claim::First),
            "{:?}",
            db.flavor
        );
        let half: Vec<Received> = (600..1_800)
            .map(|n| message(Some(&format!("m-{n}")), b"{}"))
            .collect();
        let claims = claim_committed(&db.pool, &half).await;
        assert!(claims[..603].iter().all(|claim| *claim == Claim::Duplicate));
        assert!(claims[603..].iter().all(|claim| *claim == Claim::First));
        assert!(claim_committed(&db.pool, &[]).await.is_empty());
    }
}
