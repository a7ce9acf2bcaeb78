//! `relay status`: one screen, true, and cheap.

use std::time::{Duration, Instant};

use e2e::rig::writers::print;
use e2e::rig::{LATER, Rig, SOON};
use e2e::{Db, Flavor};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor as _};

use super::commands::{command, done};

async fn json(rig: &Rig) -> Value {
    let (code, output) = command(rig, &["status", "--json"]).await;
    assert_eq!(code, 0, "{output}");
    serde_json::from_str(&output).unwrap()
}

/// The line that begins with this word.
#[track_caller]
fn line<'a>(screen: &'a str, what: &str) -> &'a str {
    let found = screen.lines().find(|line| line.starts_with(what));
    found.unwrap_or_else(|| panic!("no {what} in {screen}"))
}

#[tokio::test]
async fn one_screen_shows_who_works_what_waits_and_what_is_paused() {
    e2e::shared::on_every_server_at_once(screen).await;
}

async fn screen(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set_backoff("10s", "10s");
    let _relay = rig.tailing().await;
    let route = ["--route", "order-exchange", "order.slow"];
    let why = ["--reason", "the shop moves", "--by", "ann"];
    done(&rig, &[&["pause"], &route[..], &why].concat()).await;
    e2e::wait::until("the pause", LATER, async || {
        rig.metric("outbox_relay_paused_routes").await == Some(1.0)
    })
    .await;
    for key in ["a", "b", "c"] {
        rig.insert_one(key, "nobody.listens", b"{}").await;
    }
    rig.insert_one("d", "order.slow", b"{}").await;
    let parked = rig.insert_one("e", "order.pay", b"{}").await;
    rig.wait_status(&parked, 2).await;
    rig.sql("UPDATE outbox SET status = 3 WHERE status = 2")
        .await;
    e2e::wait::until("the waiting rows", LATER, async || {
        json(&rig).await["relay"]["waiting"]
            .as_array()
            .is_some_and(|routes| routes.iter().any(|route| route["rows"] == 3.0))
    })
    .await;
    e2e::wait::until("the broker's text", LATER, async || {
        rig.count("last_error IS NOT NULL").await == 1
    })
    .await;

    let screen = done(&rig, &["status"]).await;
    assert!(line(&screen, "outbox").ends_with(&format!("{}.outbox", rig.database.name)));
    assert!(!screen.contains("throwaway"), "the password: {screen}");
    let leader = line(&screen, "leader");
    assert!(leader.contains("connection "), "{leader}");
    assert!(
        leader.contains("from 127.0.0.1:") || leader.contains("from localhost"),
        "{leader}"
    );
    assert!(line(&screen, "pending").contains("4, the oldest is "));
    assert!(line(&screen, "parked").contains("1, the oldest is "));
    assert!(
        line(&screen, "paused").contains("route \"order-exchange\" \"order.slow\" by ann since")
    );
    assert!(line(&screen, "relay").contains(": active, tailing, ready"));
    assert!(line(&screen, "broker").ends_with("connected"));
    assert!(line(&screen, "lag").contains(" in flight"));
    let waiting = line(&screen, "waiting");
    assert!(
        waiting.contains("\"nobody.listens\", 3 rows: returned: 312 NO_ROUTE"),
        "{waiting}"
    );
    assert!(screen.lines().count() < 24, "{screen}");

    assert_json(&json(&rig).await);
    done(&rig, &["pause", "--reason", "upgrade", "--by", "bob"]).await;
    rig.wait_phase("paused").await;
    let screen = done(&rig, &["status"]).await;
    assert!(
        line(&screen, "paused").contains("THE WHOLE RELAY by bob since "),
        "{screen}"
    );
    assert!(
        line(&screen, "relay").contains(": active, paused, NOT READY"),
        "{screen}"
    );
    assert!(screen.contains("intake: paused by bob since"), "{screen}");
}

fn assert_json(status: &Value) {
    let database = &status["database"];
    assert!(database["leader"]["connection"].as_u64().unwrap() > 0);
    assert_eq!(database["pending"]["rows"], 4);
    assert_eq!(database["paused"]["routes"][0]["reason"], "the shop moves");
    assert_eq!(database["paused"]["relay"], Value::Null);
    assert_eq!(database["routes"][0]["routing_key"], "nobody.listens");
    assert_eq!(status["relay"]["phase"], "tailing");
    assert_eq!(status["relay"]["ready"], true);
}

#[tokio::test]
async fn what_can_not_be_queried_is_reported_and_without_the_database_the_code_is_1() {
    let mut rig = Rig::new(e2e::shared::either().await).await;
    rig.insert(3).await;
    let screen = done(&rig, &["status"]).await;
    assert!(
        line(&screen, "leader").contains("NOBODY holds the lock"),
        "{screen}"
    );
    assert!(
        line(&screen, "pending").contains("3, the oldest"),
        "{screen}"
    );
    let relay = line(&screen, "relay");
    assert!(
        relay.contains("COULD NOT BE ASKED") && relay.contains("refused"),
        "{relay}"
    );
    assert_eq!(
        json(&rig).await["relay"]["address"],
        rig.env["ADMIN_ADDR"].as_str()
    );

    let relay = rig.tailing().await;
    rig.wait_sent(3).await;
    let good = rig.env["DATABASE_URL"].clone();
    let port = e2e::port::free().unwrap();
    rig.set(
        "DATABASE_URL",
        &format!("mysql://a:throwaway@127.0.0.1:{port}/d"),
    );
    let (code, screen) = command(&rig, &["status"]).await;
    assert_eq!(code, 1, "{screen}");
    let database = line(&screen, "database");
    assert!(
        database.contains("COULD NOT BE ASKED") && database.contains("refused"),
        "{database}"
    );
    assert!(!screen.contains("throwaway"), "the password: {screen}");
    assert!(
        line(&screen, "relay").contains(": active, tailing, ready"),
        "{screen}"
    );

    // Tables that are not there are no panic either.
    let other = rig.db.create_database().await.unwrap();
    rig.set("DATABASE_URL", &other.url);
    let (code, screen) = command(&rig, &["status"]).await;
    assert_eq!(code, 1, "{screen}");
    assert!(
        line(&screen, "database").contains("doesn't exist"),
        "{screen}"
    );
    rig.set("DATABASE_URL", &good);
    rig.set("RELAY_OUTBOX_TABLE", "a.b");
    assert_eq!(command(&rig, &["status"]).await.0, 64);
    relay.terminate().unwrap();
    assert_eq!(relay.wait_exit(SOON).await.unwrap().code(), Some(0));
}

/// Fills the table with `rows` pending rows and as many sent ones.
async fn fill(rig: &Rig, rows: u64) {
    let (half, sent) = (rows / 1000, 2 * rows);
    let mut connection = rig.database.connect().await.unwrap();
    let thousand = "SELECT a.n * 100 + b.n * 10 + c.n AS n FROM digits a, digits b, digits c";
    for statement in [
        "CREATE TABLE digits (n INT)".to_owned(),
        "INSERT INTO digits VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9)".to_owned(),
        format!("CREATE TABLE thousand AS {thousand}"),
    ] {
        connection.execute(AssertSqlSafe(statement)).await.unwrap();
    }
    for _ in 0..2 * half {
        let insert = "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, \
             routing_key, payload, status) SELECT UUID(), 'order', n, 'order.placed.v1', \
             'order.pay', REPEAT('x', 200), 1 + (n & 1) FROM thousand";
        connection.execute(insert).await.unwrap();
    }
    assert_eq!(rig.count("id > 0").await.unsigned_abs(), sent);
}

/// How long `relay status` takes, the start of the process included.
async fn timed(db: &'static Db, rows: u64) -> Duration {
    let rig = Rig::without_queue(db).await;
    fill(&rig, rows).await;
    let began = Instant::now();
    let screen = done(&rig, &["status"]).await;
    let took = began.elapsed();
    let pending = line(&screen, "pending");
    assert!(
        pending.contains("100000 or more, the oldest is"),
        "{pending}"
    );
    print(&format!(
        "{:?}: status of {rows} pending rows in {took:?}",
        db.flavor()
    ));
    took
}

#[tokio::test]
async fn a_full_table_is_not_counted_to_its_end() {
    let took = timed(e2e::shared::either().await, 110_000).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_operate_a_full_table_is_not_counted_to_its_end);
#[cfg(feature = "long")]
async fn long_operate_a_full_table_is_not_counted_to_its_end(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let took = timed(db, 2_000_000).await;
    let name = format!("relay status, 2,000,000 pending rows, {:?}", db.flavor());
    e2e::figures::record(&name, &format!("{} ms", took.as_millis()));
    assert!(took < Duration::from_secs(5), "{took:?}");
}
