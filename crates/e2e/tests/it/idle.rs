//! A healthy system that has nothing to do: nobody writes a warning or an error.

use std::time::Duration;

use e2e::{Flavor, shop::Shop, stage::Stage, wait};

/// As of ten minutes with the settings' defaults: the consumer is made anew forty times.
const IDLE: Duration = Duration::from_secs(10);
const QUICK: [(&str, &str); 3] = [
    ("PAY_IDLE_RENEWAL", "250ms"),
    ("RELAY_CANARY_INTERVAL", "1s"),
    // What a test beside this one sets would be another kind of log.
    ("RUST_LOG", "info"),
];
const TROUBLE: [&str; 6] = [
    " WARN ",
    " ERROR ",
    "[warning]",
    "[error]",
    "[Warning]",
    "[ERROR]",
];

#[tokio::test]
async fn an_idle_system_on_mariadb_writes_no_warning_and_no_error() {
    idle(Flavor::MariaDb).await;
}

#[tokio::test]
async fn an_idle_system_on_mysql_writes_no_warning_and_no_error() {
    if e2e::shared::mysql().await.is_some() {
        idle(Flavor::MySql).await;
    }
}

fn logs(stage: &Stage) -> [(&'static str, String); 5] {
    [
        ("order-svc", stage.order.process.log()),
        ("relay", stage.relay.process.log()),
        ("pay-svc", stage.pay.process.log()),
        ("RabbitMQ", stage.rabbit.log()),
        ("the database", stage.db.log()),
    ]
}

async fn idle(flavor: Flavor) {
    let stage = Stage::with(flavor, &QUICK).await.unwrap();
    let shop = Shop::new(&stage.order.url, 20, 20).unwrap();
    shop.open().await.unwrap();
    wait::until("the payments", Duration::from_secs(30), async || {
        let paid: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM payments.payments")
            .fetch_one(&stage.pool)
            .await
            .unwrap();
        paid == 20
    })
    .await;
    let before = logs(&stage);
    for (name, log) in &before[..3] {
        assert!(!log.contains("lapin"), "{name}, at the first start:\n{log}");
    }
    tokio::time::sleep(IDLE).await;
    for ((name, before), (_, after)) in before.iter().zip(logs(&stage)) {
        let new = &after[before.len()..];
        let trouble: Vec<&str> = new
            .lines()
            .filter(|line| TROUBLE.iter().any(|word| line.contains(word)))
            .collect();
        assert!(trouble.is_empty(), "{name}: {trouble:#?}");
    }
}
