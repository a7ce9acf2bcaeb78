//! Rows for an operator to work on.

use serde_json::json;
use sqlx::MySqlPool;

/// What a browser would run if it were put on the page as it is.
const HOSTILE: &str = "<script>document.title='owned'</script><xss>\u{202e}\u{1b}[31m";

/// Parked rows of several classes, as the relay parks them; those of class `nack` can be sent.
pub(crate) async fn park(pool: &MySqlPool) {
    let rows = [
        (
            "too_large",
            "order.placed.v1",
            "order-1",
            3,
            "too_large: message of 20971520 bytes",
        ),
        (
            "nack",
            "order.placed.v1",
            "order-2",
            12,
            "nack: the broker refused it",
        ),
        ("invalid", "order.placed.v1", "order-3", 2, HOSTILE),
        (
            "held",
            "order.changed.v2",
            "order-4",
            8,
            "held: for the test of pause and cancel",
        ),
    ];
    for (class, event_type, key, count, error) in rows {
        for n in 0..count {
            let order = uuid::Uuid::now_v7().to_string();
            let payload = json!({"order_id": order, "customer_id": "c-1", "amount_minor": 1999,
                                 "currency": "EUR", "placed_at": "2026-01-01T00:00:00.000000Z"});
            let error = if class == "invalid" {
                format!("invalid: {error}")
            } else {
                error.to_owned()
            };
            let id = sqlx::query(
                "INSERT INTO orders.outbox (message_id, aggregate_type, aggregate_id, event_type, \
                 routing_key, headers, payload, status, attempts, last_error, created_at) \
                 VALUES (?, 'order', ?, ?, 'order.pay', ?, ?, 3, 5, ?, UTC_TIMESTAMP(6) - INTERVAL ? MINUTE)",
            )
            .bind(uuid::Uuid::now_v7().to_string())
            .bind(format!("{key}-{n}"))
            .bind(event_type)
            .bind(json!({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}).to_string())
            .bind(payload.to_string())
            .bind(&error)
            .bind(10 + 7 * n)
            .execute(pool)
            .await
            .unwrap()
            .last_insert_id();
            for attempt in 1..=5 {
                sqlx::query(
                    "INSERT INTO orders.outbox_attempts (outbox_id, message_id, attempt, class, error, failed_at) \
                     SELECT id, message_id, ?, ?, last_error, created_at + INTERVAL ? SECOND FROM orders.outbox WHERE id = ?",
                )
                .bind(attempt)
                .bind(class)
                .bind(attempt * 30)
                .bind(id)
                .execute(pool)
                .await
                .unwrap();
            }
        }
    }
}
