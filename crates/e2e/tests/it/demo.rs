//! The demo is the shortest proof of the whole path, so it has to go on balancing.

use std::{path::Path, time::Duration};

use e2e::{product::Process, stage::client, wait};
use rustix::process::{Pid, Signal, kill_process};

/// Sixty orders, half a minute: the servers' starts take most of it.
const TIME_LIMIT: Duration = Duration::from_secs(240);
const LEDGER: &str = "LEDGER orders=60 sent=60 payments=60 lost=0 doubled=0";

fn start(database: &str, keep: &str) -> Process {
    let cache = e2e::cache::dir().unwrap().display().to_string();
    let settings = [
        ("DB", database),
        ("ORDERS", "60"),
        ("RATE", "30"),
        ("KEEP", keep),
        ("OUTBOX_RELAY_CACHE", &*cache),
    ];
    let demo = Path::new(env!("CARGO_BIN_EXE_demo"));
    Process::spawn(demo, &[], &settings).unwrap()
}

async fn balances(demo: Process) {
    let status = demo.wait_exit(TIME_LIMIT).await.unwrap();
    let log = demo.log();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(log.lines().last(), Some(LEDGER), "{log}");
    for event in [
        "RabbitMQ is back after",
        "the relay is at work again",
        "10 rows are set back to pending and 10 messages are published again",
    ] {
        assert!(log.contains(event), "no word of: {event}\n{log}");
    }
}

/// Waits until the demo has printed a line with `text`.
async fn reported(demo: &Process, text: &str) {
    let reported = wait::try_until(text, TIME_LIMIT, async || {
        demo.log().contains(text) || demo.ended().unwrap().is_some()
    });
    reported.await.unwrap();
    assert!(demo.ended().unwrap().is_none(), "{}", demo.log());
}

/// The addresses that end in one of `paths`.
fn addresses<'a>(log: &'a str, paths: &[&str]) -> Vec<&'a str> {
    let words = log.split_whitespace();
    words
        .filter(|word| word.starts_with("http://") && paths.iter().any(|path| word.ends_with(path)))
        .collect()
}

#[tokio::test]
async fn the_demo_balances_and_with_keep_its_addresses_answer_until_ctrl_c() {
    let demo = start("mariadb", "1");
    reported(&demo, LEDGER).await;
    let log = demo.log();
    let token = log.split_once("log in with ").unwrap().1;
    let token = token.split_whitespace().next().unwrap();
    let pages = addresses(&log, &["/ops", "/metrics"]);
    assert_eq!(pages.len(), 5, "{log}");
    let client = client().unwrap();
    for page in pages {
        let answer = client.get(page).send().await.unwrap();
        assert!(answer.status().is_success(), "{page}: {}", answer.status());
        if page.ends_with("/ops") {
            let list = client.get(format!("{page}/api/rows")).bearer_auth(token);
            let status = list.send().await.unwrap().status();
            assert!(status.is_success(), "{page}: {status}");
        }
    }
    let pid = Pid::from_raw(demo.pid().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    balances(demo).await;
}

#[tokio::test]
async fn the_demo_balances_on_mysql() {
    if e2e::shared::mysql().await.is_some() {
        balances(start("mysql", "")).await;
    }
}
