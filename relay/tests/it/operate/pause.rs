//! `relay pause` and `relay resume`: nothing goes while paused, all of it in order afterwards.

use std::time::{Duration, Instant};

use e2e::rig::ops::wait_delivered;
use e2e::rig::writers::{Writers, assert_first_deliveries_in_order, print, wait_all_delivered};
use e2e::rig::{LATER, QUEUE, Rig};
use e2e::{Db, Flavor};
use sqlx::Executor as _;

use super::commands::{command, done, sum, wait_condition};

const PUBLISHED: &str = "outbox_relay_published_total";
const PAUSED: &str = "outbox_relay_paused";
/// Twice the second between two looks, and a busy machine.
const EFFECT_MAX: Duration = Duration::from_secs(5);

/// Everything that was with the broker is confirmed and marked.
async fn wait_nothing_in_flight(rig: &Rig) {
    e2e::wait::until("nothing in flight", LATER, async || {
        rig.metric("outbox_relay_in_flight").await == Some(0.0)
    })
    .await;
}

async fn wait_pending(rig: &Rig, more_than: i64) {
    e2e::wait::until("pending rows", LATER, async || {
        rig.count("status = 1").await > more_than
    })
    .await;
}

async fn nothing_was_missed_or_failed(rig: &Rig) {
    assert_eq!(sum(rig, "outbox_relay_missed_by_binlog_total").await, 0.0);
    assert_eq!(sum(rig, "outbox_relay_failed_total").await, 0.0);
    assert_eq!(rig.count("attempts > 0 OR last_error IS NOT NULL").await, 0);
}

/// Time, actor, action, target, reason, before and after of what operators did.
async fn audit(rig: &Rig) -> Vec<(String, String, String, Option<String>, String, String)> {
    sqlx::query_as(
        "SELECT actor, CAST(action AS CHAR), target, reason, before_state, after_state \
         FROM operator_actions ORDER BY id",
    )
    .fetch_all(&rig.pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_paused_relay_sends_nothing_across_a_restart_and_then_everything_in_order() {
    e2e::shared::on_every_server_at_once(paused_whole).await;
}

async fn paused_whole(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_SWEEP_INTERVAL", "1s");
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(&rig, 4, 20).await;
    e2e::wait::until("a working relay", LATER, async || deliveries.count() > 200).await;

    let pause = ["pause", "--reason", "broker upgrade", "--by", "ann"];
    done(&rig, &pause).await;
    let since = Instant::now();
    e2e::wait::until("the pause", LATER, async || {
        rig.metric(PAUSED).await == Some(1.0)
    })
    .await;
    let took = since.elapsed();
    print(&format!("{:?}: paused after {took:?}", db.flavor()));
    assert!(took < EFFECT_MAX, "{took:?}");
    wait_nothing_in_flight(&rig).await;
    let sent = sum(&rig, PUBLISHED).await;
    wait_condition(&rig, 503, ("intake", false), "paused by ann since").await;
    wait_condition(&rig, 503, ("intake", false), "broker upgrade").await;
    rig.wait_phase("paused").await;
    assert_eq!(rig.metric("outbox_relay_leader").await, Some(1.0));
    let pending = rig.count("status = 1").await;
    wait_pending(&rig, pending + 200).await;
    assert_eq!(sum(&rig, PUBLISHED).await, sent);

    // What another operator has set is reported, not replaced.
    let (code, output) = command(&rig, &pause).await;
    assert_eq!(code, 1, "{output}");
    assert!(
        output.contains("the relay is paused by ann since"),
        "{output}"
    );

    relay.terminate().unwrap();
    assert_eq!(relay.wait_exit(LATER).await.unwrap().code(), Some(0));
    relay.start_again().unwrap();
    rig.wait_phase("paused").await;
    let pending = rig.count("status = 1").await;
    wait_pending(&rig, pending + 200).await;
    assert_eq!(sum(&rig, PUBLISHED).await, 0.0);

    done(&rig, &["resume", "--by", "bob"]).await;
    rig.wait_phase("tailing").await;
    wait_condition(&rig, 200, ("intake", true), "open").await;
    let written = writers.stop(&rig).await;
    wait_all_delivered(&rig, &deliveries).await;
    assert_eq!(assert_first_deliveries_in_order(&deliveries), written);
    assert_eq!(deliveries.twice(), 0);
    nothing_was_missed_or_failed(&rig).await;

    let (code, output) = command(&rig, &["resume"]).await;
    assert_eq!(code, 1, "{output}");
    assert!(output.contains("the relay is not paused"), "{output}");
    assert_audit(&rig).await;
}

/// Both commands are on record, with the state before and after.
async fn assert_audit(rig: &Rig) {
    let audit = audit(rig).await;
    assert_eq!(audit.len(), 2, "{audit:?}");
    let text = |text: &str| text.to_owned();
    let reason = Some(text("broker upgrade"));
    let (running, paused) = (text("running"), text("paused"));
    let first = (
        text("ann"),
        text("pause"),
        text("outbox"),
        reason,
        running,
        paused,
    );
    assert_eq!(audit[0], first);
    let (actor, action, _, reason, before, after) = &audit[1];
    assert_eq!((actor.as_str(), action.as_str()), ("bob", "resume"));
    assert_eq!((reason, after.as_str()), (&None, "running"));
    assert!(before.starts_with("paused by ann since "), "{before}");
}

const SLOW: &str = "order.slow";
const SLOW_WAITING: &str =
    "outbox_relay_waiting_rows{exchange=\"order-exchange\",routing_key=\"order.slow\"}";

#[tokio::test]
async fn the_rows_of_a_paused_route_wait_and_the_others_flow() {
    let db = e2e::shared::either().await;
    futures::future::join_all(["key", "none"].map(|order| paused_route(db, order))).await;
}

/// Rows of each of 30 keys: one for the paused route and, behind it, one for an open route.
struct Pairs {
    waiting: Vec<String>,
    behind: Vec<String>,
}

impl Pairs {
    async fn insert(rig: &Rig) -> Self {
        let (mut waiting, mut behind) = (Vec::new(), Vec::new());
        for key in 0..30 {
            let key = format!("k{key}");
            waiting.push(rig.insert_one(&key, SLOW, b"1").await);
            behind.push(rig.insert_one(&key, "order.pay", b"2").await);
        }
        Self { waiting, behind }
    }

    fn assert_in_order(&self, arrived: &[String]) {
        let place = |id| arrived.iter().position(|other| other == id).unwrap();
        for (first, second) in self.waiting.iter().zip(&self.behind) {
            assert!(place(first) < place(second), "a later row overtook");
        }
    }
}

/// Rows of 10 keys that nothing holds.
async fn insert_others(rig: &Rig, name: &str) -> Vec<String> {
    let rows = (0..10).map(|key| (format!("{name}{key}"), "order.pay"));
    rig.insert_all(rows).await
}

async fn wait_waiting(rig: &Rig) {
    e2e::wait::until("30 waiting rows", LATER, async || {
        rig.metric(SLOW_WAITING).await == Some(30.0)
    })
    .await;
}

async fn paused_route(db: &'static Db, order: &str) {
    let keyed = order == "key";
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_ORDER", order)
        .set("RELAY_SWEEP_INTERVAL", "1s");
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let route = ["--route", "order-exchange", SLOW];
    let why = ["--reason", "the shop moves", "--by", "ann"];
    done(&rig, &[&["pause"], &route[..], &why].concat()).await;
    e2e::wait::until("the pause", LATER, async || {
        rig.metric("outbox_relay_paused_routes").await == Some(1.0)
    })
    .await;

    let pairs = Pairs::insert(&rig).await;
    wait_delivered(&deliveries, &insert_others(&rig, "before").await).await;
    if !keyed {
        wait_delivered(&deliveries, &pairs.behind).await;
    }
    wait_waiting(&rig).await;
    let detail = "\"order.slow\" is paused by ann";
    wait_condition(&rig, 200, ("intake", true), detail).await;

    relay.terminate().unwrap();
    assert_eq!(relay.wait_exit(LATER).await.unwrap().code(), Some(0));
    let pending = rig.count("status = 1").await;
    assert_eq!(pending, if keyed { 60 } else { 30 });
    relay.start_again().unwrap();
    rig.wait_phase("tailing").await;
    wait_delivered(&deliveries, &insert_others(&rig, "after").await).await;
    wait_waiting(&rig).await;
    let arrived = deliveries.ids();
    assert!(pairs.waiting.iter().all(|id| !arrived.contains(id)));
    assert_eq!(sum(&rig, PUBLISHED).await, 10.0, "a probe");

    done(&rig, &[&["resume"], &route[..]].concat()).await;
    wait_delivered(&deliveries, &pairs.waiting).await;
    rig.wait_sent(80).await;
    wait_delivered(&deliveries, &pairs.behind).await;
    assert_eq!(deliveries.twice(), 0);
    if keyed {
        pairs.assert_in_order(&deliveries.ids());
    }
    nothing_was_missed_or_failed(&rig).await;
    wait_condition(&rig, 200, ("intake", true), "open").await;
}

#[tokio::test]
async fn what_can_not_be_paused_is_refused_with_64_and_the_fix() {
    let rig = Rig::without_queue(e2e::shared::either().await).await;
    let long = "x".repeat(1001);
    let wrong: [(&[&str], &str); 8] = [
        (&["pause"], "--reason <TEXT>"),
        (
            &["pause", "--reason", "  "],
            "--reason: it is not 1 to 1000 characters",
        ),
        (
            &["pause", "--reason", &long],
            "--reason: it is not 1 to 1000 characters",
        ),
        (
            &["pause", "--reason", "r", "--by", ""],
            "--by: it is not 1 to 64 characters",
        ),
        (
            &["pause", "--reason", "r", "--route", "order-exchange"],
            "2 values required",
        ),
        (
            &["pause", "--reason", "r", "order-exchange"],
            "unexpected argument",
        ),
        (
            &[
                "pause",
                "--reason",
                "r",
                "--route",
                "order-exchange",
                "bücher",
            ],
            "the routing key \"bücher\" is not up to 255 ASCII characters",
        ),
        (
            &["resume", "--route", &long, "k"],
            "is not up to 127 ASCII characters",
        ),
    ];
    for (args, says) in wrong {
        let (code, output) = command(&rig, args).await;
        assert_eq!(code, 64, "{args:?}: {output}");
        assert!(output.contains(says), "{args:?}: {output}");
    }
    assert_eq!(audit(&rig).await, []);
}

#[tokio::test]
async fn a_relay_on_the_tables_of_an_older_release_works_and_says_that_nothing_can_be_paused() {
    let mut rig = Rig::new(e2e::shared::either().await).await;
    rig.sql("DROP TABLE outbox_pauses").await;
    rig.sql("DELETE FROM _outbox_migrations WHERE version = 6")
        .await;
    rig.set("RELAY_SWEEP_INTERVAL", "1s");
    let relay = rig.tailing().await;
    rig.insert(5).await;
    rig.wait_sent(5).await;
    assert!(
        relay.log().contains("nothing can be paused"),
        "{}",
        relay.log()
    );
    let checked = done(&rig, &["check"]).await;
    assert!(checked.contains("warning  pauses"), "{checked}");
    assert!(checked.contains("ok       bulks"), "{checked}");
    rig.sql("RENAME TABLE outbox_bulk_rows TO aside").await;
    let checked = done(&rig, &["check"]).await;
    assert!(checked.contains("warning  bulks"), "{checked}");
    rig.sql("RENAME TABLE aside TO outbox_bulk_rows").await;
    let (code, output) = command(&rig, &["pause", "--reason", "r"]).await;
    assert_eq!(code, 1);
    assert!(output.contains("run `relay migrate`"), "{output}");

    // The rows that are there survive, and the relay that runs learns of the table.
    done(&rig, &["migrate"]).await;
    assert_eq!(rig.count("status = 2").await, 5);
    done(&rig, &["pause", "--reason", "r"]).await;
    rig.wait_phase("paused").await;
    assert!(!relay.log().contains("starting again"), "{}", relay.log());
}

e2e::on_each_server!(a_standby_that_can_not_read_what_is_paused_sends_nothing_until_it_can);
async fn a_standby_that_can_not_read_what_is_paused_sends_nothing_until_it_can(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    let active = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    done(&rig, &["pause", "--reason", "broker upgrade"]).await;
    rig.wait_phase("paused").await;
    let admin = format!("127.0.0.1:{}", e2e::port::free().unwrap());
    rig.set("ADMIN_ADDR", &admin);
    let standby = rig.relay();
    e2e::wait::until("a standby", LATER, async || {
        standby.log().contains("standing by")
    })
    .await;
    rig.insert(3).await;
    let mut other = rig.database.connect().await.unwrap();
    let lock = sqlx::raw_sql("LOCK TABLES outbox_pauses WRITE");
    other.execute(lock).await.unwrap();
    active.terminate().unwrap();
    assert_eq!(active.wait_exit(LATER).await.unwrap().code(), Some(0));

    let why = "what is paused can't be read";
    wait_condition(&rig, 503, ("database", false), why).await;
    e2e::wait::until("several tries", LATER, async || {
        standby.log().matches(why).count() >= 3
    })
    .await;
    assert_eq!(sum(&rig, PUBLISHED).await, 0.0);
    other.execute(sqlx::raw_sql("UNLOCK TABLES")).await.unwrap();
    rig.wait_phase("paused").await;
    assert_eq!(deliveries.count(), 0);

    // A restart with the lock in place waits as well, and says for what.
    let lock = sqlx::raw_sql("LOCK TABLES outbox_pauses WRITE");
    other.execute(lock).await.unwrap();
    let why = "what is paused can't be read, it stays as it was: ";
    wait_condition(&rig, 503, ("intake", false), why).await;
    standby.terminate().unwrap();
    assert_eq!(standby.wait_exit(LATER).await.unwrap().code(), Some(0));
    standby.start_again().unwrap();
    wait_condition(&rig, 503, ("database", false), "Lock wait timeout exceeded").await;
    other.execute(sqlx::raw_sql("UNLOCK TABLES")).await.unwrap();
    rig.wait_phase("paused").await;
    assert_eq!((deliveries.count(), rig.count("status = 1").await), (0, 3));
    done(&rig, &["resume"]).await;
    rig.wait_sent(3).await;
    assert_eq!(deliveries.twice(), 0);
}
