//! What has just been stored goes to a worker without being looked for, and is nobody's loss.

use e2e::Flavor;
use e2e::wait::until;
use outbox::inbox::Claim;
use pay_svc::worker::Step;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::app::{SOON, inbox_row, payments};
use crate::bench::Bench;
use crate::messages::{order_payload, received};
use crate::provider::{Act, Scripted, handle};

/// Stores a batch for a worker of this process.
async fn hand_over(bench: &Bench, ids: &[&str]) -> Vec<Claim> {
    let batch = ids
        .iter()
        .map(|id| received(id, &order_payload(Uuid::now_v7())))
        .collect();
    let handover = Some(&bench.handover);
    bench.store.take_in(batch, handover).await.unwrap()
}

/// Rows that wait for a time to come: the leased ones, since nothing has failed here.
async fn leased(bench: &Bench) -> i64 {
    let sql = "SELECT COUNT(*) FROM inbox WHERE status = 1 AND next_attempt_at > UTC_TIMESTAMP(6)";
    let count = sqlx::query_scalar(sql).fetch_one(&bench.pool);
    count.await.unwrap()
}

/// A worker as the service runs it, until `drain` and until nothing more can be handed over.
fn work(bench: &Bench, drain: &CancellationToken) -> JoinHandle<anyhow::Result<()>> {
    bench.worker.bulks_looked_at.cancel();
    let watch = std::sync::Arc::clone(&bench.worker.database).watch(drain.clone());
    let worker = bench.worker.clone().run(drain.clone());
    svc_kit::tasks::unit(async move {
        let (watched, worked) = tokio::join!(watch, worker);
        watched.and(worked)
    })
}

e2e::on_each_server!(a_worker_gets_what_was_stored_and_nobody_else_finds_it);
async fn a_worker_gets_what_was_stored_and_nobody_else_finds_it(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let provider = Scripted::always(Act::Capture);
    let bench = Bench::new(db, handle(&provider)).await;
    bench.take_in(received("known", "{}")).await;
    bench.work_off().await;

    let claims = hand_over(&bench, &["m-1", "known", "m-2", "m-1"]).await;
    let expected = [Claim::First, Claim::Conflict, Claim::First, Claim::Conflict];
    assert_eq!(claims, expected);
    assert_eq!(leased(&bench).await, 2);
    assert_eq!(bench.worker.step().await.unwrap(), Step::Idle);

    let drain = CancellationToken::new();
    let working = work(&bench, &drain);
    let paid = async || payments(&bench.pool).await == 2;
    until("both to be paid", SOON, paid).await;
    for id in ["m-1", "m-2"] {
        let row = inbox_row(&bench.pool, id).await.unwrap();
        assert_eq!((row.status, row.attempts), (2, 0));
    }
    drain.cancel();
    drop(bench.handover);
    working.await.unwrap().unwrap();
}

e2e::on_each_server!(more_than_a_worker_may_have_is_not_handed_over);
/// A worker charges all it has at once, and has no more than its share of what the provider takes.
async fn more_than_a_worker_may_have_is_not_handed_over(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let provider = Scripted::always(Act::Capture);
    let bench = Bench::new(db, handle(&provider)).await;
    let ids: Vec<String> = (0..=bench.handover.rows_max)
        .map(|n| n.to_string())
        .collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    hand_over(&bench, &ids).await;
    assert_eq!(leased(&bench).await, 0);
    assert_eq!(bench.work_off().await, ids.len());
}

e2e::on_each_server!(without_a_free_worker_rows_are_stored_for_whoever_finds_them);
async fn without_a_free_worker_rows_are_stored_for_whoever_finds_them(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let provider = Scripted::always(Act::Capture);
    let bench = Bench::new(db, handle(&provider)).await;
    hand_over(&bench, &["m-1"]).await;
    hand_over(&bench, &["m-2"]).await;
    assert_eq!(leased(&bench).await, 1);
    assert_eq!(bench.worker.step().await.unwrap(), Step::Worked(1));
    assert_eq!(inbox_row(&bench.pool, "m-2").await.unwrap().status, 2);
}

e2e::on_each_server!(what_was_handed_over_and_lost_comes_back_when_its_lease_ends);
/// A process that dies between the two gives its rows back by doing nothing.
async fn what_was_handed_over_and_lost_comes_back_when_its_lease_ends(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let provider = Scripted::always(Act::Capture);
    let bench = Bench::new(db, handle(&provider)).await;
    hand_over(&bench, &["m-1"]).await;
    drop(bench.worker.handed.lock().await.recv().await);
    assert_eq!(bench.worker.step().await.unwrap(), Step::Idle);
    bench.let_time_pass().await;
    assert_eq!(bench.worker.step().await.unwrap(), Step::Worked(1));
    assert_eq!(payments(&bench.pool).await, 1);
}

e2e::on_each_server!(a_drain_finishes_what_the_consumer_still_hands_over);
async fn a_drain_finishes_what_the_consumer_still_hands_over(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let provider = Scripted::always(Act::Capture);
    let bench = Bench::new(db, handle(&provider)).await;
    let drain = CancellationToken::new();
    drain.cancel();
    let working = work(&bench, &drain);
    hand_over(&bench, &["m-1"]).await;
    let pool = bench.pool.clone();
    drop(bench.handover);
    working.await.unwrap().unwrap();
    assert_eq!(payments(&pool).await, 1);
}
