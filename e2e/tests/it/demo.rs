//! The demo is the shortest proof of the whole path, so it has to go on balancing.

use std::{path::Path, time::Duration};

use e2e::product::Process;

/// Sixty orders, half a minute: the servers' starts take most of it.
const TIME_LIMIT: Duration = Duration::from_secs(240);

async fn balances(database: &str) {
    let cache = e2e::cache::dir().unwrap().display().to_string();
    let settings = [
        ("DB", database),
        ("ORDERS", "60"),
        ("RATE", "30"),
        ("OUTBOX_RELAY_CACHE", &*cache),
    ];
    let demo = Path::new(env!("CARGO_BIN_EXE_demo"));
    let demo = Process::spawn(demo, &[], &settings).unwrap();
    let status = demo.wait_exit(TIME_LIMIT).await.unwrap();
    let log = demo.log();
    assert_eq!(status.code(), Some(0), "{log}");
    let ledger = "LEDGER orders=60 sent=60 payments=60 lost=0 doubled=0";
    assert_eq!(log.lines().last(), Some(ledger), "{log}");
    for event in [
        "RabbitMQ is back after",
        "the relay is at work again",
        "10 rows are set back to pending and 10 messages are published again",
    ] {
        assert!(log.contains(event), "no word of: {event}\n{log}");
    }
}

#[tokio::test]
async fn the_demo_balances_on_mariadb() {
    balances("mariadb").await;
}

#[tokio::test]
async fn the_demo_balances_on_mysql() {
    if e2e::shared::mysql().await.is_some() {
        balances("mysql").await;
    }
}
