//! Workers that die, overlap, come late or meet a row the database refuses.

use std::sync::Arc;
use std::time::Duration;

use e2e::Flavor;
use e2e::TestDatabase;
use e2e::wait::until;
use futures::future::join_all;
use pay_svc::claim;
use pay_svc::payment::PlacedOrder;
use pay_svc::provider::{Outcome, Receipt};
use pay_svc::settle::{self, Settlement, Verdict, Written};
use pay_svc::worker::Step;
use svc_kit::tasks;
use uuid::Uuid;

use crate::app::{SOON, classes, inbox_row, payments};
use crate::bench::Bench;
use crate::messages::{order_payload, received};
use crate::provider::{Act, Scripted, handle};

fn another(database: &TestDatabase) -> TestDatabase {
    TestDatabase {
        name: database.name.clone(),
        url: database.url.clone(),
    }
}

e2e::on_each_server!(killed_between_charge_and_settlement_an_order_is_paid_exactly_once);
/// C5: the money is taken, the process dies before it can write that down.
async fn killed_between_charge_and_settlement_an_order_is_paid_exactly_once(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let script = |_: &_, call| {
        if call == 1 {
            Act::ChargeAndHang
        } else {
            Act::Capture
        }
    };
    let provider = Scripted::new(script);
    let mut bench = Bench::new(db, handle(&provider)).await;
    bench.worker.settings.provider_timeout = Duration::from_secs(30);
    let order = Uuid::now_v7();
    bench.take_in(received("m-1", &order_payload(order))).await;
    let victim = bench.worker.clone();
    let dying = tasks::unit(async move { victim.step().await });
    until("the charge", SOON, async || provider.charged() == 1).await;
    dying.abort();
    assert!(dying.await.unwrap_err().is_cancelled());
    assert_eq!(payments(&bench.pool).await, 0);

    let survivor = Bench::on(another(&bench.database), handle(&provider));
    assert_eq!(
        survivor.worker.step().await.unwrap(),
        Step::Idle,
        "the lease was not respected"
    );
    bench.let_time_pass().await;
    assert_eq!(survivor.worker.step().await.unwrap(), Step::Worked(1));

    assert_eq!(payments(&bench.pool).await, 1);
    assert_eq!(provider.charged(), 1, "charged twice");
    assert_eq!(provider.calls(order).len(), 2);
    let row = inbox_row(&bench.pool, "m-1").await.unwrap();
    assert_eq!((row.status, row.attempts), (2, 0));
}

e2e::on_each_server!(instances_share_the_work_and_never_work_on_one_message_at_a_time);
async fn instances_share_the_work_and_never_work_on_one_message_at_a_time(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let provider = Scripted::always(Act::Capture);
    let first = Bench::new(db, handle(&provider)).await;
    let batch = (0..600).map(|n| received(&format!("m-{n}"), &order_payload(Uuid::now_v7())));
    first.store.take_in(batch.collect(), None).await.unwrap();
    let others = (0..3).map(|_| Bench::on(another(&first.database), handle(&provider)));
    let mut instances: Vec<Bench> = others.collect();
    instances.push(first);
    for bench in &mut instances {
        bench.worker.settings.claim_max = 20;
    }

    until("all rows to be processed", SOON, async || {
        join_all(instances.iter().map(Bench::work_off)).await;
        payments(&instances[0].pool).await == 600
    })
    .await;

    assert_eq!(provider.all_calls(), 600, "a message was worked on twice");
    assert_eq!(provider.overlaps(), 0);
    let counted: Vec<u64> = instances
        .iter()
        .map(|bench| {
            bench
                .worker
                .metrics
                .processed
                .with_label_values(&["captured"])
                .get()
        })
        .collect();
    assert_eq!(counted.iter().sum::<u64>(), 600);
    assert!(
        counted.iter().filter(|count| **count > 0).count() > 1,
        "{counted:?}"
    );
}

e2e::on_each_server!(an_outcome_that_comes_after_its_lease_is_not_written);
/// A worker that was stopped for longer than its lease wakes up with an outcome in its hand.
async fn an_outcome_that_comes_after_its_lease_is_not_written(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let bench = Bench::new(db, Scripted::always(Act::Capture)).await;
    bench
        .take_in(received("m-1", &order_payload(Uuid::now_v7())))
        .await;
    let late = claim::claim(&bench.pool, 10, Duration::from_secs(60))
        .await
        .unwrap()
        .unwrap();
    bench.let_time_pass().await;
    let other = claim::claim(&bench.pool, 10, Duration::from_secs(60))
        .await
        .unwrap()
        .unwrap();

    let outcome = |due| Settlement {
        due,
        verdict: Verdict::Charged {
            order: PlacedOrder {
                order_id: Uuid::from_u128(7),
                amount_minor: 1,
                currency: "EUR".to_owned(),
                placed_at: None,
            },
            receipt: Receipt {
                outcome: Outcome::Captured,
                reference: Some("r".to_owned()),
            },
        },
    };
    let mine = [outcome(late.rows[0].clone())];
    let written = settle::settle(&bench.pool, &late.lease, &mine)
        .await
        .unwrap();
    assert_eq!(written, [Written::Lost]);
    assert_eq!(payments(&bench.pool).await, 0);
    assert_eq!(inbox_row(&bench.pool, "m-1").await.unwrap().status, 1);

    let theirs = [outcome(other.rows[0].clone())];
    let written = settle::settle(&bench.pool, &other.lease, &theirs)
        .await
        .unwrap();
    assert_eq!(written, [Written::Processed("captured")]);
    assert_eq!(payments(&bench.pool).await, 1);
    let again = settle::settle(&bench.pool, &other.lease, &theirs)
        .await
        .unwrap();
    assert_eq!(again, [Written::Lost], "settled twice");
}

e2e::on_each_server!(an_outcome_the_database_refuses_fails_alone);
/// One outcome that the database refuses must not take those settled with it along.
async fn an_outcome_the_database_refuses_fails_alone(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let script = |charge: &pay_svc::provider::Charge, _| {
        if charge.amount_minor == 666 {
            Act::TooMuch
        } else {
            Act::Capture
        }
    };
    let bench = Bench::new(db, Scripted::new(script)).await;
    let mut batch: Vec<_> = (0..20)
        .map(|n| received(&format!("m-{n}"), &order_payload(Uuid::now_v7())))
        .collect();
    let bad = order_payload(Uuid::now_v7()).replace("1999", "666");
    batch.insert(10, received("bad", &bad));
    bench.store.take_in(batch, None).await.unwrap();

    bench.work_off().await;

    assert_eq!(payments(&bench.pool).await, 20);
    let row = inbox_row(&bench.pool, "bad").await.unwrap();
    assert_eq!((row.status, row.attempts), (1, 1));
    assert_eq!(classes(&bench.pool, "bad").await, ["settle"]);
}

e2e::on_each_server!(workers_that_race_for_one_order_pay_it_once);
/// Many workers on the same orders at once: the unique order id decides, nothing deadlocks for good.
async fn workers_that_race_for_one_order_pay_it_once(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let provider = Scripted::always(Act::Capture);
    let first = Bench::new(db, handle(&provider)).await;
    let orders: Vec<Uuid> = (0..40).map(|_| Uuid::now_v7()).collect();
    let mut batch = Vec::new();
    for copy in 0..5 {
        for (n, order) in orders.iter().enumerate() {
            batch.push(received(&format!("m-{copy}-{n}"), &order_payload(*order)));
        }
    }
    first.store.take_in(batch, None).await.unwrap();
    let mut workers: Vec<_> = (0..4).map(|_| first.worker.clone()).collect();
    for worker in &mut workers {
        worker.settings.claim_max = 30;
    }
    until("all rows to be processed", SOON, async || {
        let step = async |worker: &pay_svc::worker::Worker| {
            while let Step::Worked(_) = worker.step().await.unwrap() {}
        };
        join_all(workers.iter().map(step)).await;
        let left: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM inbox WHERE status <> 2")
            .fetch_one(&first.pool)
            .await
            .unwrap();
        left == 0
    })
    .await;
    assert_eq!(payments(&first.pool).await, 40);
    assert_eq!(provider.charged(), 40);
}

/// The database goes away between the charge and its settlement, and comes back within the lease.
#[tokio::test]
async fn a_settlement_waits_for_the_database() {
    let flavor = e2e::Flavor::MariaDb;
    let db = e2e::Db::start(flavor, e2e::DbOptions::default())
        .await
        .unwrap();
    let db = Arc::new(db);
    let (charged, settle) = (Arc::new(tokio::sync::Notify::new()), Arc::clone(&db));
    let signal = Arc::clone(&charged);
    let provider = Scripted::new(move |_, _| {
        settle.kill().unwrap();
        signal.notify_one();
        Act::Capture
    });
    let bench = Bench::new(&db, handle(&provider)).await;
    bench
        .take_in(received("m-1", &order_payload(Uuid::now_v7())))
        .await;
    let worker = bench.worker.clone();
    let working = tasks::unit(async move { worker.step().await });
    charged.notified().await;
    db.restart().await.unwrap();
    assert_eq!(working.await.unwrap().unwrap(), Step::Worked(1));
    assert_eq!(payments(&bench.pool).await, 1);
    assert_eq!(provider.all_calls(), 1);
}
