//! Payloads of tens of MiB, and those a server does not take.

use e2e::{Db, DbOptions, Flavor};
use outbox::inbox::{Error, claim, claim_all};
use outbox::{Claim, Event, Received};
use sqlx::Row as _;

use crate::inbox::{claim_committed, message};
use crate::{database, databases};

const MIB: usize = 1024 * 1024;

/// Bytes that neither compress nor repeat within a packet of the protocol.
fn bytes(length: usize) -> Vec<u8> {
    (0_u32..)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .take(length)
        .collect()
}

#[tokio::test]
async fn a_payload_of_32_mib_goes_through_both_tables_unharmed() {
    for db in databases().await {
        // One more byte would do; this one also ends on no boundary of the protocol.
        let payload = bytes(32 * MIB + 7);
        let event = Event::new(
            "order",
            "1",
            "order.placed.v1",
            "order.pay",
            payload.clone(),
        );
        let mut tx = db.pool.begin().await.unwrap();
        outbox::event::write(&mut tx, &event).await.unwrap();
        tx.commit().await.unwrap();
        let written: Vec<u8> = sqlx::query_scalar("SELECT payload FROM outbox")
            .fetch_one(&db.pool)
            .await
            .unwrap();
        assert!(written == payload, "{:?}", db.flavor);

        let small = message(Some("small"), b"{}");
        let batch = [small.clone(), message(Some("large"), &payload), small];
        let claims = claim_committed(&db.pool, &batch).await;
        assert_eq!(
            claims,
            [Claim::First, Claim::First, Claim::Duplicate],
            "{:?}",
            db.flavor
        );
        assert_eq!(
            claim_committed(&db.pool, &batch[1..2]).await,
            [Claim::Duplicate]
        );
        let stored: Vec<u8> =
            sqlx::query_scalar("SELECT payload FROM inbox WHERE message_id = 'large'")
                .fetch_one(&db.pool)
                .await
                .unwrap();
        assert!(stored == payload, "{:?}", db.flavor);
    }
}

#[tokio::test]
async fn what_the_server_does_not_take_is_stored_truncated() {
    let mut flavors = vec![Flavor::MariaDb];
    if e2e::shared::mysql().await.is_some() {
        flavors.push(Flavor::MySql);
    }
    for flavor in flavors {
        let options = DbOptions {
            args: vec!["--max-allowed-packet=1M".to_owned()],
            ..DbOptions::default()
        };
        let server = Db::start(flavor, options).await.unwrap();
        let db = database(&server).await;
        let payload = bytes(3 * MIB);
        let mut batch = [
            message(Some("small"), b"{}"),
            message(Some("large"), &payload),
        ];

        let mut tx = db.pool.begin().await.unwrap();
        let Err(Error::TooLarge {
            index: 1,
            bytes,
            max_payload,
        }) = claim_all(&mut tx, &batch).await
        else {
            panic!("{flavor:?}: a message that does not fit was not refused")
        };
        assert_eq!(bytes, 3 * MIB);
        assert!(
            (MIB - 64 * 1024..MIB).contains(&max_payload),
            "{max_payload}"
        );
        // The same transaction goes on, with the message cut to what the server takes.
        batch[1].truncate(max_payload);
        let claims = claim_all(&mut tx, &batch).await.unwrap();
        assert_eq!(claims, [Claim::First, Claim::First], "{flavor:?}");
        tx.commit().await.unwrap();

        let row =
            sqlx::query("SELECT payload, status, last_error FROM inbox WHERE message_id = 'large'")
                .fetch_one(&db.pool)
                .await
                .unwrap();
        assert!(
            row.get::<Vec<u8>, _>(0) == payload[..max_payload],
            "{flavor:?}"
        );
        assert_eq!(row.get::<u8, _>(1), 3);
        let error: String = row.get(2);
        assert!(
            error.starts_with(&format!("truncated: {max_payload} of 3145728 bytes")),
            "{error}"
        );
        let class: String = sqlx::query_scalar("SELECT class FROM inbox_attempts")
            .fetch_one(&db.pool)
            .await
            .unwrap();
        assert_eq!(class, "truncated");
    }
}

#[tokio::test]
async fn two_truncated_messages_with_one_beginning_are_not_taken_for_one() {
    for db in databases().await {
        let cut = |body: &[u8]| {
            let mut received: Received = message(Some("m-1"), body);
            received.truncate(4);
            received
        };
        let mut tx = db.pool.begin().await.unwrap();
        for (body, expected) in [
            (b"same-one", Claim::First),
            (b"same-one", Claim::Duplicate),
            (b"same-two", Claim::Conflict),
            (b"same-two", Claim::Duplicate),
        ] {
            let claimed = claim(&mut tx, &cut(body)).await.unwrap();
            assert_eq!(claimed, expected, "{:?}", db.flavor);
        }
        tx.rollback().await.unwrap();
    }
}
