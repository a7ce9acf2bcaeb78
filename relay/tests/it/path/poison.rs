//! Rows that fail by their own fault, and rows that wait for their time: attempts, back-off, parking,
//! and neighbours that never notice.

use e2e::Flavor;
use e2e::rig::ops::MISSED;
use e2e::rig::rows::assert_calm;
use e2e::rig::{LATER, QUEUE, Rig, SOON};
use sqlx::{AssertSqlSafe, Executor as _};
use uuid::Uuid;

const MIB: usize = 1 << 20;
const OK_DATE: &str = "2026-01-02 03:04:05.678901";

/// A row as any program may write it with plain SQL, in a session as lax as the server allows.
struct Raw {
    key: String,
    headers: Option<String>,
    created_at: &'static str,
}

impl Raw {
    fn good(key: &str) -> Self {
        Self {
            key: key.to_owned(),
            headers: Some(r#"{"traceparent": "00-1-1-01"}"#.to_owned()),
            created_at: OK_DATE,
        }
    }
}

/// Writes the rows in one transaction and returns their message ids.
async fn write(rig: &Rig, rows: &[Raw]) -> Vec<String> {
    let mut connection = rig.database.connect().await.unwrap();
    connection
        .execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES'")
        .await
        .unwrap();
    connection.execute("START TRANSACTION").await.unwrap();
    let mut ids = Vec::new();
    for row in rows {
        let id = Uuid::now_v7().to_string();
        // The date as SQL text: no client can bind a zero date.
        let statement = format!(
            "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, \
             routing_key, headers, payload, created_at) \
             VALUES (?, 'order', ?, 'order.placed.v1', 'order.pay', ?, '{{}}', '{}')",
            row.created_at
        );
        sqlx::query(AssertSqlSafe(statement))
            .bind(&id)
            .bind(&row.key)
            .bind(&row.headers)
            .execute(&mut connection)
            .await
            .unwrap();
        ids.push(id);
    }
    connection.execute("COMMIT").await.unwrap();
    ids
}

/// Rows that no message can carry, with what the relay says about each.
fn impossible() -> Vec<(Raw, &'static str)> {
    let headers = |json: String| Raw {
        headers: Some(json),
        ..Raw::good("")
    };
    let mut rows = vec![
        (
            headers("[\"a\"]".into()),
            "invalid: headers is not a JSON object",
        ),
        (
            headers("no json".into()),
            "invalid: headers is not a JSON object",
        ),
        (
            headers(r#"{"n": 1}"#.into()),
            "invalid: headers has a value that is not a string, at \"n\"",
        ),
        (headers(r#"{"CC": "x"}"#.into()), "invalid: headers has CC"),
        (
            headers(r#"{"BCC": "x"}"#.into()),
            "invalid: headers has BCC",
        ),
        // A delayed-message exchange would keep the message and return it, again and again.
        (
            headers(r#"{"x-delay": 5000}"#.into()),
            "invalid: headers has x-delay",
        ),
        (
            headers(r#"{"x-delay": "5000"}"#.into()),
            "invalid: headers has x-delay",
        ),
        (
            headers(format!("{{\"{}\": \"x\"}}", "n".repeat(256))),
            "invalid: headers has a name of more than 255 bytes",
        ),
        (
            headers(format!("{{\"x\": \"{}\"}}", "x".repeat(10_000))),
            "invalid: headers take 10",
        ),
        (
            Raw {
                created_at: "0000-00-00 00:00:00",
                ..Raw::good("")
            },
            "invalid: created_at is a zero date",
        ),
        (
            Raw {
                created_at: "2026-00-10 00:00:00",
                ..Raw::good("")
            },
            "invalid: created_at is a zero date",
        ),
        (
            Raw {
                created_at: "2026-02-31 00:00:00",
                ..Raw::good("")
            },
            "invalid: created_at is a zero date",
        ),
    ];
    for (number, (row, _)) in rows.iter_mut().enumerate() {
        row.key = format!("bad-{number}");
    }
    rows
}

/// Three attempts, each with the reason, further apart each time, and then parked.
async fn assert_spent(rig: &Rig, id: &str, text: &str) {
    let state = rig.wait_status(id, 3).await;
    assert_eq!(state.attempts, 3, "{state:?}");
    assert!(state.error().starts_with(text), "{text}: {state:?}");
    let attempts = rig.attempts(id).await;
    let numbers: Vec<_> = attempts.iter().map(|attempt| attempt.attempt).collect();
    assert_eq!(numbers, [1, 2, 3]);
    for attempt in &attempts {
        assert_eq!(attempt.class, "invalid");
        assert!(attempt.error.starts_with(text), "{attempt:?}");
    }
    // Half of the wait is random.
    assert!(attempts[1].gap >= Some(200), "{attempts:?}");
    assert!(attempts[2].gap >= Some(400), "{attempts:?}");
}

/// Each parking is in the audit, and no row of the key went before it.
async fn assert_audited(rig: &Rig, parked: i64) {
    let overtaken: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM outbox good JOIN outbox bad USING (aggregate_id) \
         JOIN operator_actions parked ON parked.target = bad.id \
         WHERE good.status = 2 AND bad.status = 3 AND good.sent_at < parked.at",
    )
    .fetch_one(&rig.pool)
    .await
    .unwrap();
    assert_eq!(overtaken, 0, "a parked head releases its key, not before");
    let actions: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM operator_actions JOIN outbox ON target = outbox.id \
         WHERE actor = 'relay' AND action = 'park' AND status = 3 \
         AND before_state = 'pending' AND after_state = 'parked' AND reason = last_error",
    )
    .fetch_one(&rig.pool)
    .await
    .unwrap();
    assert_eq!(actions, parked);
}

fn as_metric(count: i64) -> f64 {
    f64::from(i32::try_from(count).unwrap())
}

e2e::on_each_server!(a_row_that_can_not_be_a_message_is_tried_with_back_off_then_parked_alone);
async fn a_row_that_can_not_be_a_message_is_tried_with_back_off_then_parked_alone(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    // A sweep comes too late for this test: the back-off alone brings the next attempt.
    rig.set_backoff("400ms", "10s")
        .set("RELAY_SWEEP_INTERVAL", "5m")
        .set("RELAY_MAX_ATTEMPTS", "3");
    let url = format!("{}?frame_max=8192", rig.env["AMQP_URL"]);
    rig.set("AMQP_URL", &url);
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let mut rows = Vec::new();
    let mut expected = Vec::new();
    for (bad, text) in impossible() {
        let key = bad.key.clone();
        rows.extend([
            bad,
            Raw::good(&key),
            Raw::good(&format!("neighbour-of-{key}")),
        ]);
        expected.push(text);
    }
    let ids = write(&rig, &rows).await;
    let bad = i64::try_from(expected.len()).unwrap();
    let all = expected.len() * 3;

    // The neighbours go at once: while they do, no row behind a bad one has overtaken it.
    rig.wait_count("aggregate_id LIKE 'neighbour%' AND status = 2", bad)
        .await;
    for (row, text) in expected.iter().enumerate() {
        assert_spent(&rig, &ids[row * 3], text).await;
    }
    rig.wait_count("status = 2", bad * 2).await;
    assert_audited(&rig, bad).await;
    let failed = "outbox_relay_failed_total{reason=\"invalid\"}";
    assert_eq!(rig.metric(failed).await, Some(as_metric(bad * 3)));
    rig.wait_metric("outbox_relay_parked_rows", as_metric(bad))
        .await;
    e2e::wait::until("the good ones delivered", SOON, async || {
        deliveries.count() == all - expected.len()
    })
    .await;

    // A person fixes them, and they go.
    rig.sql(&format!(
        "UPDATE outbox SET headers = NULL, created_at = '{OK_DATE}', status = 1, attempts = 0 \
         WHERE status = 3"
    ))
    .await;
    relay.terminate().unwrap();
    assert!(relay.wait_exit(LATER).await.unwrap().success());
    relay.start_again().unwrap();
    rig.wait_sent(bad * 3).await;
    e2e::wait::until("all delivered", SOON, async || deliveries.count() == all).await;
    assert_calm(&relay);
}

#[tokio::test]
async fn attempts_and_back_off_outlive_the_relay() {
    let mut rig = Rig::new(e2e::shared::mariadb().await).await;
    rig.set_backoff("3s", "3s").set("RELAY_MAX_ATTEMPTS", "2");
    let relay = rig.tailing().await;
    let bad = Raw {
        headers: Some("[]".into()),
        ..Raw::good("k")
    };
    let ids = write(&rig, &[bad, Raw::good("k")]).await;
    e2e::wait::until("the first attempt", SOON, async || {
        rig.state(&ids[0]).await.attempts == 1
    })
    .await;
    relay.kill().unwrap();
    relay.start_again().unwrap();
    rig.wait_phase("tailing").await;
    let later = rig.insert(5).await;
    rig.wait_status(&later[4], 2).await;
    rig.wait_status(&ids[0], 3).await;
    let attempts = rig.attempts(&ids[0]).await;
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert!(attempts[1].gap >= Some(1500), "{attempts:?}");
    rig.wait_status(&ids[1], 2).await;
    assert_calm(&relay);
}

/// Three rows of one key, the first of which is not due yet, and ten others.
async fn delayed(rig: &Rig) -> Vec<String> {
    let mut tx = rig.pool.begin().await.unwrap();
    let due = time::OffsetDateTime::now_utc() + std::time::Duration::from_secs(3);
    let event = outbox::Event::new("order", "late", "order.placed.v1", "order.pay", b"{}");
    let event = event.not_before(due);
    let mut ids = vec![
        outbox::event::write(&mut tx, &event)
            .await
            .unwrap()
            .to_string(),
    ];
    tx.commit().await.unwrap();
    for _ in 0..2 {
        ids.push(rig.insert_one("late", "order.pay", b"{}").await);
    }
    rig.insert(10).await;
    ids
}

const BEFORE_DUE: &str = "aggregate_id = 'late' AND sent_at < \
                          (SELECT MAX(next_attempt_at) FROM outbox o WHERE o.aggregate_id = 'late')";

e2e::on_each_server!(a_delayed_row_goes_when_it_is_due_and_the_rows_behind_it_wait);
async fn a_delayed_row_goes_when_it_is_due_and_the_rows_behind_it_wait(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    // Written before the relay starts, and brought by the binlog.
    for running in [false, true] {
        let mut rig = Rig::new(db).await;
        rig.set("RELAY_SWEEP_INTERVAL", "5m");
        let deliveries = rig.consume(QUEUE).await;
        let (relay, ids) = if running {
            let relay = rig.tailing().await;
            (relay, delayed(&rig).await)
        } else {
            let ids = delayed(&rig).await;
            (rig.tailing().await, ids)
        };
        rig.wait_count("aggregate_id <> 'late' AND status = 2", 10)
            .await;
        rig.wait_sent(13).await;
        assert_eq!(rig.count(BEFORE_DUE).await, 0);
        let prompt = "aggregate_id = 'late' AND sent_at < TIMESTAMPADD(SECOND, 10, \
            (SELECT MAX(next_attempt_at) FROM outbox o WHERE o.aggregate_id = 'late'))";
        assert_eq!(rig.count(prompt).await, 3, "not by a sweep in five minutes");
        e2e::wait::until("13 deliveries", SOON, async || deliveries.count() == 13).await;
        let arrived: Vec<_> = deliveries
            .all()
            .into_iter()
            .filter(|delivery| delivery.key == "late")
            .map(|delivery| delivery.message_id)
            .collect();
        assert_eq!(arrived, ids);
        assert_eq!(rig.metric(MISSED).await, Some(0.0));
        assert_calm(&relay);
    }
}

#[tokio::test]
async fn without_an_order_nothing_waits_for_a_delayed_row() {
    let mut rig = Rig::new(e2e::shared::mariadb().await).await;
    rig.set("RELAY_SWEEP_INTERVAL", "5m")
        .set("RELAY_ORDER", "none");
    let relay = rig.tailing().await;
    let ids = delayed(&rig).await;
    rig.wait_sent(13).await;
    assert_eq!(rig.count(BEFORE_DUE).await, 2);
    let head = format!("message_id = '{}' AND sent_at >= next_attempt_at", ids[0]);
    assert_eq!(rig.count(&head).await, 1);
    assert_calm(&relay);
}

e2e::on_each_server!(a_32_mib_payload_goes_through_where_the_broker_takes_it);
async fn a_32_mib_payload_goes_through_where_the_broker_takes_it(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let payload: Vec<u8> = (0..=250).cycle().take(32 * MIB).collect();
    rig.insert(10).await;
    let large = rig.insert_one("large", "order.pay", &payload).await;
    let behind = rig.insert_one("large", "order.pay", b"{}").await;
    rig.insert(10).await;
    rig.wait_sent(22).await;
    e2e::wait::until("22 messages", LATER, async || {
        deliveries.first().len() == 22
    })
    .await;
    let of_key: Vec<_> = deliveries
        .first()
        .into_iter()
        .filter(|delivery| delivery.key == "large")
        .collect();
    assert_eq!(of_key[0].message_id, large);
    assert!(of_key[0].payload == payload, "the same bytes");
    assert_eq!(of_key[1].message_id, behind);
    assert_calm(&relay);
}

#[tokio::test]
async fn a_32_mib_payload_is_parked_alone_where_the_broker_refuses_it() {
    let Some(rabbit) = e2e::shared::rabbit4().await else {
        return;
    };
    let mut rig = Rig::on(e2e::shared::mariadb().await, rabbit).await;
    rig.declare_queue(QUEUE, "order.*").await;
    // Room for it in one batch with its neighbours: the whole batch becomes suspect.
    rig.set_backoff("200ms", "400ms")
        .set("RELAY_MAX_ATTEMPTS", "2")
        .set("RELAY_BATCH_BYTES", "67108864")
        .set("RELAY_BUFFER_BYTES", "268435456");
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let mut tx = rig.pool.begin().await.unwrap();
    let mut ids = Vec::new();
    for number in 0..40 {
        let payload = match number {
            20 => vec![b' '; 32 * MIB],
            _ => b"{}".to_vec(),
        };
        let key = format!("{}", number % 20);
        let event = outbox::Event::new("order", key, "order.placed.v1", "order.pay", payload);
        ids.push(
            outbox::event::write(&mut tx, &event)
                .await
                .unwrap()
                .to_string(),
        );
    }
    tx.commit().await.unwrap();

    let state = rig.wait_status(&ids[20], 3).await;
    assert_eq!(state.attempts, 2);
    assert!(state.error().starts_with("too_large: 406 "), "{state:?}");
    assert!(state.error().contains("larger than"), "{state:?}");
    let attempts = rig.attempts(&ids[20]).await;
    assert!(attempts.iter().all(|attempt| attempt.class == "too_large"));
    rig.wait_count("status = 2 AND attempts = 0", 39).await;
    e2e::wait::until("39 messages", SOON, async || deliveries.first().len() == 39).await;
    assert_eq!(rig.count("status = 2 AND last_error IS NOT NULL").await, 0);
    assert_calm(&relay);
}

e2e::on_each_server!(a_row_set_back_by_hand_goes_again_within_a_sweep);
async fn a_row_set_back_by_hand_goes_again_within_a_sweep(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_SWEEP_INTERVAL", "1s");
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let ids = rig.insert(5).await;
    rig.wait_sent(5).await;
    rig.sql(&format!(
        "UPDATE outbox SET status = 1 WHERE message_id = '{}'",
        ids[2]
    ))
    .await;
    e2e::wait::until("its second delivery", SOON, async || {
        let all = deliveries.all();
        all.iter().filter(|d| d.message_id == ids[2]).count() == 2
    })
    .await;
    rig.wait_sent(5).await;
    assert_eq!(deliveries.count(), 6);
    assert_eq!(rig.metric(MISSED).await, Some(0.0), "by hand is no miss");
    assert_calm(&relay);
}

e2e::on_each_server!(the_columns_refuse_what_no_short_string_can_hold);
async fn the_columns_refuse_what_no_short_string_can_hold(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::without_queue(db).await;
    for column in ["event_type", "exchange", "routing_key", "content_type"] {
        let mut values = vec!["order.placed.v1", "order-exchange", "order.pay", "a/b"];
        let columns = ["event_type", "exchange", "routing_key", "content_type"];
        let place = columns.iter().position(|name| *name == column).unwrap();
        values[place] = "größer";
        let mut insert = sqlx::query(
            "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, payload, \
             event_type, exchange, routing_key, content_type) \
             VALUES (UUID(), 'order', 'k', '', ?, ?, ?, ?)",
        );
        for value in values {
            insert = insert.bind(value);
        }
        // MySQL refuses the parameter itself (3988), MariaDB its value for the column (1366).
        let refused = insert.execute(&rig.pool).await.unwrap_err().to_string();
        assert!(
            refused.contains(column) || refused.contains("into ascii_bin impossible"),
            "{refused}"
        );
    }
}
