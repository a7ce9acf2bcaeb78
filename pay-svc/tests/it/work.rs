//! From a received message to a payment, step by step.

use std::time::Duration;

use e2e::Flavor;
use outbox::inbox::Claim;
use pay_svc::worker::Step;
use uuid::Uuid;

use crate::app::{classes, inbox_row, payments};
use crate::bench::Bench;
use crate::messages::{order_payload, received};
use crate::provider::{Act, Scripted, handle};

e2e::on_each_server!(a_received_order_is_paid_once_and_processed);
async fn a_received_order_is_paid_once_and_processed(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let provider = Scripted::always(Act::Capture);
    let bench = Bench::new(db, handle(&provider)).await;
    let order = Uuid::now_v7();
    bench.take_in(received("m-1", &order_payload(order))).await;

    assert_eq!(bench.worker.step().await.unwrap(), Step::Worked(1));
    assert_eq!(bench.worker.step().await.unwrap(), Step::Idle);

    let row = inbox_row(&bench.pool, "m-1").await.unwrap();
    assert_eq!((row.status, row.attempts, row.last_error), (2, 0, None));
    let payment: (String, Vec<u8>, i64, String, String, String) = sqlx::query_as(
        "SELECT order_id, message_id, amount_minor, currency, outcome, provider_ref FROM payments",
    )
    .fetch_one(&bench.pool)
    .await
    .unwrap();
    let expected = (
        order.to_string(),
        b"m-1".to_vec(),
        1999,
        "EUR".to_owned(),
        "captured".to_owned(),
        format!("ref-{order}"),
    );
    assert_eq!(payment, expected);
    assert_eq!(provider.calls(order).len(), 1);
    assert_eq!(bench.worker.metrics.order_to_payment.get_sample_count(), 1);
}

e2e::on_each_server!(a_failed_payment_is_retried_on_schedule);
/// C2, C3: a failed payment is tried again, when its time has come and not before.
async fn a_failed_payment_is_retried_on_schedule(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let script = |_: &_, call| if call < 3 { Act::Fail } else { Act::Capture };
    let provider = Scripted::new(script);
    let bench = Bench::new(db, handle(&provider)).await;
    let order = Uuid::now_v7();
    bench.take_in(received("m-1", &order_payload(order))).await;

    for attempt in 1..3 {
        assert_eq!(bench.worker.step().await.unwrap(), Step::Worked(1));
        assert_eq!(
            bench.worker.step().await.unwrap(),
            Step::Idle,
            "tried again at once"
        );
        let row = inbox_row(&bench.pool, "m-1").await.unwrap();
        assert_eq!((row.status, row.attempts), (1, attempt));
        assert!(row.last_error.unwrap().contains("card reader on fire"));
        // 60 s, doubled by each attempt, jittered.
        let wait: i64 = sqlx::query_scalar(
            "SELECT TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(6), next_attempt_at) FROM inbox",
        )
        .fetch_one(&bench.pool)
        .await
        .unwrap();
        assert!((55..=60 * 2_i64.pow(attempt)).contains(&wait), "{wait} s");
        bench.let_time_pass().await;
    }
    assert_eq!(bench.worker.step().await.unwrap(), Step::Worked(1));

    let row = inbox_row(&bench.pool, "m-1").await.unwrap();
    assert_eq!((row.status, row.attempts, row.last_error), (2, 2, None));
    assert_eq!(payments(&bench.pool).await, 1);
    assert_eq!(
        classes(&bench.pool, "m-1").await,
        ["provider_error", "provider_error"]
    );
    let failed = bench
        .worker
        .metrics
        .failed
        .with_label_values(&["provider_error"])
        .get();
    assert_eq!(failed, 2);
}

e2e::on_each_server!(a_payment_that_keeps_failing_is_parked_after_its_attempts);
/// C4: what keeps failing is handed to a person, with its history.
async fn a_payment_that_keeps_failing_is_parked_after_its_attempts(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let provider = Scripted::always(Act::Fail);
    let bench = Bench::new(db, handle(&provider)).await;
    let order = Uuid::now_v7();
    bench.take_in(received("m-1", &order_payload(order))).await;
    for _ in 0..3 {
        assert_eq!(bench.worker.step().await.unwrap(), Step::Worked(1));
        bench.let_time_pass().await;
    }
    assert_eq!(bench.worker.step().await.unwrap(), Step::Idle);

    let row = inbox_row(&bench.pool, "m-1").await.unwrap();
    assert_eq!((row.status, row.attempts), (3, 3));
    assert!(row.last_error.unwrap().contains("card reader on fire"));
    let attempts: Vec<u32> = sqlx::query_scalar(
        "SELECT attempt FROM inbox_attempts WHERE message_id = 'm-1' ORDER BY id",
    )
    .fetch_all(&bench.pool)
    .await
    .unwrap();
    assert_eq!(attempts, [1, 2, 3]);
    assert_eq!(provider.calls(order).len(), 3);
    assert_eq!(payments(&bench.pool).await, 0);
}

e2e::on_each_server!(an_outage_of_the_provider_spends_no_attempt_until_the_message_is_too_old);
async fn an_outage_of_the_provider_spends_no_attempt_until_the_message_is_too_old(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let provider = Scripted::always(Act::Unavailable);
    let bench = Bench::new(db, provider).await;
    bench
        .take_in(received("m-1", &order_payload(Uuid::now_v7())))
        .await;
    for _ in 0..20 {
        assert_eq!(bench.worker.step().await.unwrap(), Step::Worked(1));
        bench.let_time_pass().await;
    }
    let row = inbox_row(&bench.pool, "m-1").await.unwrap();
    assert_eq!((row.status, row.attempts), (1, 0));

    sqlx::query("UPDATE inbox SET received_at = received_at - INTERVAL 2 HOUR")
        .execute(&bench.pool)
        .await
        .unwrap();
    bench.worker.step().await.unwrap();
    let row = inbox_row(&bench.pool, "m-1").await.unwrap();
    assert_eq!((row.status, row.attempts), (3, 0));
    let all = classes(&bench.pool, "m-1").await;
    assert_eq!(all.len(), 21);
    assert!(all.iter().all(|class| class == "provider_unavailable"));
}

#[tokio::test]
async fn a_provider_that_does_not_answer_is_a_time_out_not_a_stuck_worker() {
    let db = e2e::shared::mariadb().await;
    let script = |_: &_, call| {
        if call == 1 {
            Act::ChargeAndHang
        } else {
            Act::Capture
        }
    };
    let provider = Scripted::new(script);
    let mut bench = Bench::new(db, handle(&provider)).await;
    bench.worker.settings.provider_timeout = Duration::from_millis(100);
    bench
        .take_in(received("m-1", &order_payload(Uuid::now_v7())))
        .await;

    bench.worker.step().await.unwrap();
    assert_eq!(classes(&bench.pool, "m-1").await, ["provider_timeout"]);
    assert_eq!(inbox_row(&bench.pool, "m-1").await.unwrap().attempts, 0);

    bench.let_time_pass().await;
    bench.worker.step().await.unwrap();
    assert_eq!(payments(&bench.pool).await, 1);
    assert_eq!(provider.charged(), 1);
}

e2e::on_each_server!(a_decline_is_an_outcome_and_not_tried_again);
async fn a_decline_is_an_outcome_and_not_tried_again(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let bench = Bench::new(db, Scripted::always(Act::Decline)).await;
    bench
        .take_in(received("m-1", &order_payload(Uuid::now_v7())))
        .await;
    assert_eq!(bench.work_off().await, 1);
    assert_eq!(inbox_row(&bench.pool, "m-1").await.unwrap().status, 2);
    let outcome: String = sqlx::query_scalar("SELECT outcome FROM payments")
        .fetch_one(&bench.pool)
        .await
        .unwrap();
    assert_eq!(outcome, "declined");
    let declined = bench
        .worker
        .metrics
        .processed
        .with_label_values(&["declined"])
        .get();
    assert_eq!(declined, 1);
}

e2e::on_each_server!(an_order_that_is_paid_already_is_not_charged_again);
/// Two messages of one order, in one batch and in two: one charge, one payment, both processed.
async fn an_order_that_is_paid_already_is_not_charged_again(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let provider = Scripted::always(Act::Capture);
    let bench = Bench::new(db, handle(&provider)).await;
    let order = Uuid::now_v7();
    for id in ["m-1", "m-2", "m-3"] {
        bench.take_in(received(id, &order_payload(order))).await;
    }
    assert_eq!(bench.work_off().await, 3);
    bench.take_in(received("m-4", &order_payload(order))).await;
    assert_eq!(bench.work_off().await, 1);

    for id in ["m-1", "m-2", "m-3", "m-4"] {
        assert_eq!(inbox_row(&bench.pool, id).await.unwrap().status, 2, "{id}");
    }
    assert_eq!(payments(&bench.pool).await, 1);
    assert_eq!(provider.calls(order).len(), 1);
    let already = bench
        .worker
        .metrics
        .processed
        .with_label_values(&["already_paid"])
        .get();
    assert_eq!(already, 3);
}

e2e::on_each_server!(what_can_never_be_processed_is_parked_at_once);
/// C6: what no handler can ever process is parked by its first look, and holds up nobody.
async fn what_can_never_be_processed_is_parked_at_once(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let bench = Bench::new(db, Scripted::always(Act::Capture)).await;
    bench.take_in(received("malformed", "{\"order_id\":")).await;
    bench.take_in(received("incomplete", "{}")).await;
    let mut unknown = received("unknown", &order_payload(Uuid::now_v7()));
    unknown.event_type = Some("order.cancelled.v1".to_owned());
    bench.take_in(unknown).await;
    let mut untyped = received("untyped", &order_payload(Uuid::now_v7()));
    untyped.event_type = None;
    bench.take_in(untyped).await;
    let long = format!("{}{}", order_payload(Uuid::now_v7()), " ".repeat(100_000));
    bench.take_in(received("long", &long)).await;
    bench
        .take_in(received("good", &order_payload(Uuid::now_v7())))
        .await;

    assert_eq!(bench.worker.step().await.unwrap(), Step::Worked(6));

    assert_eq!(inbox_row(&bench.pool, "good").await.unwrap().status, 2);
    for (id, class) in [
        ("malformed", "malformed"),
        ("incomplete", "malformed"),
        ("long", "malformed"),
        ("unknown", "unknown_type"),
        ("untyped", "unknown_type"),
    ] {
        let row = inbox_row(&bench.pool, id).await.unwrap();
        assert_eq!(row.status, 3, "{id}");
        assert!(!row.last_error.unwrap().is_empty());
        assert_eq!(classes(&bench.pool, id).await, [class]);
    }
    let stored: Vec<u8> =
        sqlx::query_scalar("SELECT payload FROM inbox WHERE message_id = 'malformed'")
            .fetch_one(&bench.pool)
            .await
            .unwrap();
    assert_eq!(stored, b"{\"order_id\":", "not stored as it came");
}

e2e::on_each_server!(a_type_that_is_none_of_its_business_is_counted_and_processed);
async fn a_type_that_is_none_of_its_business_is_counted_and_processed(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let provider = Scripted::always(Act::Capture);
    let bench = Bench::new(db, handle(&provider)).await;
    let mut ignored = received("m-1", "no order at all");
    ignored.event_type = Some("stock.low.v1".to_owned());
    bench.take_in(ignored.clone()).await;
    bench
        .take_in(received("m-2", &order_payload(Uuid::now_v7())))
        .await;

    assert_eq!(bench.worker.step().await.unwrap(), Step::Worked(2));

    for id in ["m-1", "m-2"] {
        let row = inbox_row(&bench.pool, id).await.unwrap();
        assert_eq!((row.status, row.attempts, row.last_error), (2, 0, None));
        assert!(classes(&bench.pool, id).await.is_empty());
    }
    for outcome in ["ignored", "captured"] {
        let counter = bench.worker.metrics.processed.with_label_values(&[outcome]);
        assert_eq!(counter.get(), 1, "{outcome}");
    }
    assert_eq!(provider.all_calls(), 1);
    assert_eq!(bench.take_in(ignored).await, Claim::Duplicate);
}

#[tokio::test]
async fn a_person_can_send_a_parked_message_round_again() {
    let db = e2e::shared::mariadb().await;
    let script = |_: &_, call| if call <= 3 { Act::Fail } else { Act::Capture };
    let bench = Bench::new(db, Scripted::new(script)).await;
    bench
        .take_in(received("m-1", &order_payload(Uuid::now_v7())))
        .await;
    for _ in 0..3 {
        bench.worker.step().await.unwrap();
        bench.let_time_pass().await;
    }
    assert_eq!(inbox_row(&bench.pool, "m-1").await.unwrap().status, 3);
    sqlx::query("UPDATE inbox SET status = 1 WHERE status = 3")
        .execute(&bench.pool)
        .await
        .unwrap();
    assert_eq!(bench.work_off().await, 1);
    assert_eq!(inbox_row(&bench.pool, "m-1").await.unwrap().status, 2);
}

e2e::on_each_server!(a_duplicate_of_a_processed_message_is_counted_and_does_nothing);
async fn a_duplicate_of_a_processed_message_is_counted_and_does_nothing(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let provider = Scripted::always(Act::Capture);
    let bench = Bench::new(db, handle(&provider)).await;
    let payload = order_payload(Uuid::now_v7());
    assert_eq!(bench.take_in(received("m-1", &payload)).await, Claim::First);
    bench.work_off().await;
    assert_eq!(
        bench.take_in(received("m-1", &payload)).await,
        Claim::Duplicate
    );
    assert_eq!(bench.work_off().await, 0);
    let row = inbox_row(&bench.pool, "m-1").await.unwrap();
    assert_eq!((row.status, row.deliveries), (2, 2));
    assert_eq!(provider.all_calls(), 1);
    assert_eq!(bench.store.metrics.duplicates.get(), 1);
    assert_eq!(bench.store.metrics.received.get(), 2);
}

/// A retry that is due must not wait behind a stream of new messages, nor the other way round.
#[tokio::test]
async fn retries_and_new_messages_share_a_claim() {
    let db = e2e::shared::mariadb().await;
    let mut bench = Bench::new(db, Scripted::always(Act::Fail)).await;
    bench.worker.settings.claim_max = 10;
    let batch = |prefix: &str| {
        let one = |n| received(&format!("{prefix}-{n}"), &order_payload(Uuid::now_v7()));
        (0..20).map(one).collect::<Vec<_>>()
    };
    bench.store.take_in(batch("retry"), None).await.unwrap();
    bench.work_off().await;
    bench.let_time_pass().await;
    bench.store.take_in(batch("new"), None).await.unwrap();

    bench.worker.step().await.unwrap();
    let by_attempts: Vec<(u32, i64)> =
        sqlx::query_as("SELECT attempts, COUNT(*) FROM inbox GROUP BY attempts ORDER BY attempts")
            .fetch_all(&bench.pool)
            .await
            .unwrap();
    // Of the 10: five retries have come to their second attempt, five new ones to their first.
    assert_eq!(by_attempts, [(0, 15), (1, 20), (2, 5)]);
}
