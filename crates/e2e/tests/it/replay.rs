//! The operator's two ways to be sure, on the whole system: `relay audit` tells the truth under load,
//! and `relay replay` brings back what the consumer lost, without a second payment.

use std::time::Duration;

use e2e::{
    Flavor,
    product::{self, Process},
    shop::Shop,
    stage::Stage,
    wait,
};
use serde_json::Value;

const ORDERS: u32 = 600;
const RATE: u32 = 100;
const LATER: Duration = Duration::from_secs(60);

#[tokio::test]
async fn an_audit_tells_what_is_missing_and_a_replay_brings_it_back_on_mariadb() {
    lost_and_found(Flavor::MariaDb).await;
}

#[tokio::test]
async fn an_audit_tells_what_is_missing_and_a_replay_brings_it_back_on_mysql() {
    // Says loudly when MySQL can't be had, or fails when it is required.
    if e2e::shared::mysql().await.is_some() {
        lost_and_found(Flavor::MySql).await;
    }
}

/// Exit code and JSON of a relay command with the services' own accounts.
async fn relay(stage: &Stage, args: &[&str]) -> (i32, Value) {
    let amqp = stage.rabbit.amqp_url("/");
    let env = [
        ("DATABASE_URL", stage.relay_url.as_str()),
        ("AMQP_URL", &amqp),
        ("RELAY_AUDIT_INBOX_URL", &stage.pay_url),
    ];
    let process = Process::spawn(&product::binary("relay").unwrap(), args, &env).unwrap();
    let code = process.wait_exit(LATER).await.unwrap().code().unwrap();
    let log = process.log();
    let json = log.find('{').map(|at| &log[at..]).unwrap_or_default();
    let reported = serde_json::from_str(json);
    (code, reported.unwrap_or_else(|err| panic!("{err}: {log}")))
}

async fn lost_and_found(flavor: Flavor) {
    let stage = Stage::set_up(flavor).await.unwrap();
    let shop = Shop::new(&stage.order.url, ORDERS, RATE).unwrap();
    let audits = async {
        let mut seen = 0;
        while shop.placed() < ORDERS as usize {
            let (_, ledger) = relay(&stage, &["audit", "--json", "--grace", "0s"]).await;
            let counts = &ledger["counts"];
            // However busy: nothing that is only on its way is called missing.
            assert_eq!(counts["missing"], 0, "{ledger:#}");
            assert_eq!(counts["parked"], 0, "{ledger:#}");
            seen += counts["outbox_rows"].as_u64().unwrap();
        }
        assert!(seen > 0, "no audit saw a row");
    };
    let (sold, ()) = futures::join!(shop.open(), audits);
    sold.unwrap();
    wait::until("all orders to be paid", LATER, async || {
        let (code, _) = relay(&stage, &["audit", "--json"]).await;
        code == 0
    })
    .await;

    // An operator restores an older inbox: 50 messages are gone, their payments are not.
    let lost = "DELETE FROM payments.inbox ORDER BY message_id DESC LIMIT 50";
    sqlx::query(lost).execute(&stage.pool).await.unwrap();
    let before = books(&stage).await;
    let (code, ledger) = relay(&stage, &["audit", "--json", "--grace", "0s"]).await;
    assert_eq!(
        (code, &ledger["counts"]["missing"]),
        (1, &50.into()),
        "{ledger:#}"
    );
    let replay = [
        "replay",
        "--json",
        "--from",
        "2020-01-01T00:00:00Z",
        "--to",
        "2100-01-01T00:00:00Z",
        "--rate",
        "1000",
        "--reason",
        "the inbox was restored",
    ];
    let (code, reported) = relay(&stage, &replay).await;
    assert_eq!(
        (code, &reported["sent"]),
        (0, &ORDERS.into()),
        "{reported:#}"
    );
    wait::until("the ledger to balance", LATER, async || {
        let (code, _) = relay(&stage, &["audit", "--json"]).await;
        code == 0
    })
    .await;
    let after = books(&stage).await;
    let orders = i64::from(ORDERS);
    assert_eq!(after.payments, before.payments, "somebody paid twice");
    assert_eq!(after.messages, orders);
    // One more delivery of each: a second one of those that were known.
    assert_eq!(after.deliveries, before.deliveries + orders);
    let id = reported["replay_id"].as_str().unwrap();
    let marked: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM payments.inbox WHERE headers LIKE CONCAT('%\"x-replay-id\":\"', ?, '\"%')",
    )
    .bind(id)
    .fetch_one(&stage.pool)
    .await
    .unwrap();
    assert_eq!(marked, 50, "those that were lost came by the replay");
}

#[derive(sqlx::FromRow)]
struct Books {
    /// Digest of every payment's id, reference and time.
    payments: String,
    messages: i64,
    deliveries: i64,
}

async fn books(stage: &Stage) -> Books {
    let mut connection = stage.pool.acquire().await.unwrap();
    sqlx::query("SET SESSION group_concat_max_len = 10000000")
        .execute(&mut *connection)
        .await
        .unwrap();
    sqlx::query_as(
        "SELECT (SELECT SHA2(GROUP_CONCAT(CONCAT(payment_id, order_id, provider_ref, created_at) \
                 ORDER BY payment_id), 256) FROM payments.payments) AS payments, \
                (SELECT COUNT(*) FROM payments.inbox) AS messages, \
                (SELECT CAST(SUM(deliveries) AS SIGNED) FROM payments.inbox) AS deliveries",
    )
    .fetch_one(&mut *connection)
    .await
    .unwrap()
}
