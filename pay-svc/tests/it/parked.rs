//! `pay-svc parked …` as an operator meets it, and a pay-svc that works on what was retried.

use e2e::Flavor;
use e2e::Provider as FakeProvider;
use e2e::TestDatabase;
use e2e::product::Process;
use e2e::provider::Reply;
use e2e::wait::until;
use sqlx::{AssertSqlSafe, MySqlPool};
use uuid::Uuid;

use crate::app::{App, SOON, config, database, payments, vhost};
use crate::messages::order_payload;
use crate::process::{exit_code, start};
use crate::provider::{Act, Scripted};

/// A database with parked messages `m000`, `m001`, …, and the commands over it.
struct Desk {
    tables: TestDatabase,
    pool: MySqlPool,
}

impl Desk {
    async fn new(db: &e2e::Db, parked: usize) -> Self {
        let tables = database(db).await;
        let pool = tables.pool().unwrap();
        for number in 0..parked {
            let insert = "INSERT INTO inbox (message_id, event_type, exchange, routing_key, payload, \
                          status, attempts, last_error, received_at) VALUES \
                          (?, 'order.placed.v1', 'order-exchange', 'order.pay', ?, 3, 10, \
                          'provider_failed: 422', UTC_TIMESTAMP(6) - INTERVAL ? SECOND)";
            sqlx::query(insert)
                .bind(format!("m{number:03}"))
                .bind(order_payload(Uuid::now_v7()))
                .bind(1_000 - i64::try_from(number).unwrap())
                .execute(&pool)
                .await
                .unwrap();
        }
        Self { tables, pool }
    }

    /// Exit code, and what it printed.
    async fn run_with(&self, env: &[(&str, &str)], args: &[&str]) -> (i32, String) {
        let env = [&[("DATABASE_URL", self.tables.url.as_str())], env].concat();
        let process = start(&[&["parked"], args].concat(), &env);
        (exit_code(&process).await.unwrap(), process.log())
    }

    async fn run(&self, args: &[&str]) -> (i32, String) {
        self.run_with(&[], args).await
    }

    async fn ok(&self, args: &[&str]) -> String {
        let (code, text) = self.run(args).await;
        assert_eq!(code, 0, "{args:?}\n{text}");
        text
    }

    async fn count(&self, condition: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(format!(
            "SELECT COUNT(*) FROM inbox WHERE {condition}"
        )))
        .fetch_one(&self.pool)
        .await
        .unwrap()
    }

    /// A service that charges at this provider, and tries again in ten minutes.
    fn serve(&self, amqp_url: &str, provider: &FakeProvider) -> Process {
        let env = [
            ("DATABASE_URL", self.tables.url.as_str()),
            ("AMQP_URL", amqp_url),
            ("PAY_PROVIDER", "http"),
            ("PAY_PROVIDER_URL", &provider.url()),
            ("PAY_BACKOFF_MIN", "10m"),
            ("PAY_BACKOFF_MAX", "10m"),
        ];
        start(&["run"], &env)
    }
}

#[tokio::test]
async fn every_verb_does_what_it_says_and_its_exit_code_shows_it() {
    let desk = Desk::new(e2e::shared::either().await, 8).await;
    let list = desk.ok(&["list", "--class", "provider_failed"]).await;
    assert!(list.contains("m007") && list.contains("provider_failed: 422"));
    let json = ["list", "--limit", "3", "--order", "oldest", "--json"];
    let json: serde_json::Value = serde_json::from_str(&desk.ok(&json).await).unwrap();
    assert_eq!(json["rows"][2]["key"], "m002");
    assert!(json["next"].as_str().unwrap().ends_with(".m002"));
    assert!(desk.ok(&["groups"]).await.contains("provider_failed  8"));
    assert!(desk.ok(&["show", "m000"]).await.contains("order_id"));
    assert_eq!(desk.run(&["show", "nobody"]).await.0, 1);

    desk.ok(&["note", "m000", "seen", "--by", "ann"]).await;
    assert_eq!(desk.run(&["discard", "m000"]).await.0, 64, "no reason");
    desk.ok(&["discard", "m000", "--reason", "no use", "--by", "ann"])
        .await;
    let (code, reported) = desk.run(&["retry", "m000"]).await;
    assert_eq!(code, 1);
    assert!(
        reported.contains("NOT DONE, it is discarded") && reported.contains("by ann"),
        "{reported}"
    );
    desk.ok(&["restore", "m000"]).await;
    desk.ok(&["retry", "m000", "m001"]).await;
    assert_eq!(desk.count("status = 1 AND attempts = 0").await, 2);
    assert_eq!(desk.run(&["retry"]).await.0, 64);
    let edit = [
        "edit",
        "m002",
        "--type",
        "order.placed.v1",
        "--reason",
        "typo",
    ];
    assert_eq!(desk.run(&edit).await.0, 64, "editing is off");
    let (code, reported) = desk.run_with(&[("OPS_ALLOW_EDIT", "true")], &edit).await;
    assert_eq!(code, 0, "{reported}");
    assert_eq!(
        desk.count("status = 1 AND headers LIKE '%parent%'").await,
        1
    );
    assert_eq!(desk.count("status = 4").await, 1);

    let begin = [
        "bulk", "start", "--canary", "1", "--rate", "0.5", "--by", "ann",
    ];
    assert!(desk.ok(&begin).await.contains("waiting      4"));
    desk.ok(&["bulk", "pause", "1"]).await;
    assert_eq!(desk.run(&["bulk", "pause", "1"]).await.0, 1);
    assert_eq!(desk.count("status = 3").await, 5);
    desk.ok(&["bulk", "resume", "1"]).await;
    desk.ok(&["bulk", "cancel", "1"]).await;
    assert!(desk.ok(&["bulk", "show"]).await.contains("cancelled"));
    assert!(desk.ok(&["bulk", "show", "1"]).await.contains("held back"));
    assert_eq!(desk.run(&["bulk", "show", "9"]).await.0, 1);
    desk.ok(&["retry", "--all"]).await;
    assert_eq!(desk.count("status = 3").await, 0);
    let csv = desk.ok(&["actions", "--csv", "--actor", "ann"]).await;
    assert!(csv.contains("\"bulk_start\""), "{csv}");
    assert!(
        desk.ok(&["actions", "--json"])
            .await
            .contains("bulk_cancel")
    );
}

e2e::on_each_server!(a_canary_that_fails_holds_back_the_rest_and_one_that_passes_lets_it_go);
async fn a_canary_that_fails_holds_back_the_rest_and_one_that_passes_lets_it_go(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let desk = Desk::new(db, 40).await;
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let fake = FakeProvider::start().unwrap();
    fake.script(|_| Reply::status(422));
    let service = desk.serve(&vhost.amqp_url, &fake);
    let begin = [
        "bulk",
        "start",
        "--canary",
        "1",
        "--canary-wait",
        "60",
        "--rate",
        "20",
    ];
    desk.ok(&begin).await;
    until("the rest to be held back", SOON, async || {
        desk.count("status = 3 AND next_attempt_at IS NULL").await == 39
    })
    .await;
    let reported = desk.ok(&["bulk", "show", "1"]).await;
    assert!(
        reported.contains("stopped") && reported.contains("provider_error: "),
        "{reported}"
    );
    assert_eq!(fake.ledger().calls(), 1, "the canary alone");

    fake.script(|_| Reply::captured());
    desk.ok(&["retry", "m000"]).await;
    sqlx::query("UPDATE inbox_bulks SET canary_wait_us = 1000000")
        .execute(&desk.pool)
        .await
        .unwrap();
    desk.ok(&["bulk", "resume", "1"]).await;
    until("all to be paid", SOON, async || {
        payments(&desk.pool).await == 40
    })
    .await;
    until("the bulk to end", SOON, async || {
        desk.ok(&["bulk", "show", "1"])
            .await
            .contains("state        done")
    })
    .await;
    let ledger = fake.ledger();
    assert_eq!((ledger.charged(), ledger.doubled()), (40, 0));
    service.terminate().unwrap();
    assert_eq!(exit_code(&service).await, Some(0), "{}", service.log());
}

/// As a failure leaves it whose service is killed right after.
#[tokio::test]
async fn messages_of_a_stopped_bulk_are_held_back_before_a_new_process_works() {
    let desk = Desk::new(e2e::shared::either().await, 900).await;
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let fake = FakeProvider::start().unwrap();
    desk.ok(&["bulk", "start", "--canary", "0", "--rate", "0"])
        .await;
    assert_eq!(desk.count("status = 1").await, 900);
    sqlx::query("UPDATE inbox_bulks SET state = 'stopped', held = 0")
        .execute(&desk.pool)
        .await
        .unwrap();
    sqlx::query("UPDATE inbox SET next_attempt_at = NULL WHERE message_id = 'm000'")
        .execute(&desk.pool)
        .await
        .unwrap();
    let _service = desk.serve(&vhost.amqp_url, &fake);
    until("the message that is not of the bulk's", SOON, async || {
        payments(&desk.pool).await == 1
    })
    .await;
    assert_eq!(desk.count("status = 3").await, 899);
    assert_eq!(fake.ledger().calls(), 1);
}

e2e::on_each_server!(failures_and_an_operator_at_the_same_bulk_meet_no_deadlock);
/// Settling and an operator's acts take a bulk's lock first, then those of rows.
async fn failures_and_an_operator_at_the_same_bulk_meet_no_deadlock(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let desk = Desk::new(db, 400).await;
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let fake = FakeProvider::start().unwrap();
    fake.script(|_| Reply::status(422));
    let service = desk.serve(&vhost.amqp_url, &fake);
    desk.ok(&["bulk", "start", "--canary", "0", "--rate", "40"])
        .await;
    for _ in 0..6 {
        until("the bulk to be stopped", SOON, async || {
            desk.ok(&["bulk", "show", "1"]).await.contains("stopped")
        })
        .await;
        desk.run(&["bulk", "resume", "1"]).await;
        // One of them comes after the next failure; both report what is.
        desk.run(&["bulk", "pause", "1"]).await;
        desk.run(&["bulk", "resume", "1"]).await;
    }
    let tried = fake.ledger().calls();
    assert!(tried > 10, "{tried} calls: hardly anything was tried");
    let log = service.log();
    assert!(!log.to_lowercase().contains("deadlock"), "{log}");
}

#[tokio::test]
async fn a_service_that_can_not_see_bulks_says_so_and_pays() {
    let (db, rabbit) = (e2e::shared::either().await, e2e::shared::rabbit().await);
    let (tables, vhost) = (database(db).await, vhost(rabbit).await);
    let pool = tables.pool().unwrap();
    let rename = async |statement| {
        let renamed = sqlx::query(AssertSqlSafe(statement));
        renamed.execute(&pool).await.unwrap()
    };
    rename("RENAME TABLE inbox_bulk_rows TO aside").await;
    let config = config(&tables.url, &vhost.amqp_url);
    let app = App::serve(tables, config, Scripted::always(Act::Capture)).await;
    let says = async |text: &str| {
        until(text, SOON, async || {
            let (status, body) = app.readiness().await;
            let reported = body["conditions"]["bulks"]["detail"].as_str().unwrap_or("");
            status.is_success() && reported.contains(text)
        })
        .await;
    };
    says("inbox_bulk_rows' doesn't exist: migrate").await;
    app.until_it_pays(&vhost).await;
    rename("RENAME TABLE aside TO inbox_bulk_rows").await;
    says("kept").await;
    app.stop().await;
}
