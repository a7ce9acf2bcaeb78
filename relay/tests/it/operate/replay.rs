//! `relay replay`: what was sent goes again, with its rate, its header and its record; what the inbox
//! may have forgotten does not.

use std::time::{Duration, Instant};

use e2e::Flavor;
use e2e::rig::{Deliveries, LATER, QUEUE, Rig, SOON};
use serde_json::Value;

use super::commands::{command, done};

const ALL: [&str; 7] = [
    "replay",
    "--from",
    "2020-01-01T00:00:00Z",
    "--to",
    "2100-01-01T00:00:00Z",
    "--by",
    "ann",
];
const WHY: [&str; 2] = ["--reason", "the queue was purged"];

fn all<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&ALL[..], more, &WHY].concat()
}

/// Sent rows of keys k0, k1, …, without a relay: their ids are in order.
async fn sent(rig: &Rig, count: usize) -> Vec<String> {
    let rows = (0..count).map(|key| (format!("k{key}"), "order.pay"));
    let ids = rig.insert_all(rows).await;
    rig.sql("UPDATE outbox SET status = 2, sent_at = UTC_TIMESTAMP(6)")
        .await;
    ids
}

async fn report(rig: &Rig, args: &[&str]) -> (i32, Value) {
    let (code, output) = command(rig, &[args, &["--json"]].concat()).await;
    let json = output.find('{').map(|at| &output[at..]).unwrap_or_default();
    let report = serde_json::from_str(json);
    (code, report.unwrap_or_else(|err| panic!("{err}: {output}")))
}

/// Action, target, before and after.
async fn record(rig: &Rig) -> Vec<(String, String, String, String)> {
    sqlx::query_as(
        "SELECT CAST(action AS CHAR), target, before_state, after_state FROM operator_actions \
         WHERE actor = 'ann' AND reason = 'the queue was purged' ORDER BY id",
    )
    .fetch_all(&rig.pool)
    .await
    .unwrap()
}

async fn wait_count(deliveries: &Deliveries, count: usize) {
    e2e::wait::until(&format!("{count} deliveries"), SOON, async || {
        deliveries.count() == count
    })
    .await;
}

#[tokio::test]
async fn sent_rows_go_again_in_order_with_one_id_and_are_not_changed() {
    e2e::shared::on_every_server_at_once(goes_again).await;
}

async fn goes_again(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let ids = rig.insert(40).await;
    rig.wait_sent(40).await;
    rig.insert_one("waits", "nobody.listens", b"{}").await;
    wait_count(&deliveries, 40).await;
    let before = rows(&rig).await;

    // A dry run needs no broker, sends nothing and leaves no trace.
    let amqp_url = rig.env.remove("AMQP_URL").unwrap();
    let output = done(&rig, &[&ALL[..], &["--dry-run"]].concat()).await;
    for part in ["matched  40 rows", &ids[0], &ids[9], "and 30 more"] {
        assert!(output.contains(part), "{part}: {output}");
    }
    assert!(!output.contains(&ids[10]), "{output}");
    rig.set("AMQP_URL", &amqp_url);
    assert_eq!(record(&rig).await, []);

    let begun = Instant::now();
    let (code, output) = report(&rig, &all(&["--rate", "20"])).await;
    assert_eq!((code, &output["sent"]), (0, &Value::from(40)), "{output}");
    assert!(begun.elapsed() > Duration::from_millis(1800), "no rate");
    wait_count(&deliveries, 80).await;
    let again = deliveries.all().split_off(40);
    let replay_id = output["replay_id"].as_str().unwrap();
    for (delivery, id) in again.iter().zip(&ids) {
        assert_eq!(&delivery.message_id, id);
        assert_eq!(delivery.replay_id.as_deref(), Some(replay_id));
    }
    assert!(deliveries.all()[..40].iter().all(|d| d.replay_id.is_none()));
    assert_eq!(rows(&rig).await, before, "the rows were changed");
    let record = record(&rig).await;
    assert_eq!(record.len(), 2, "{record:?}");
    assert!(record[0].1.contains(replay_id), "{record:?}");
    let step = |(action, _, before, after): &(String, String, String, String)| {
        format!("{action}: {before} -> {after}")
    };
    assert_eq!(
        record.iter().map(step).collect::<Vec<_>>(),
        [
            "replay: 40 rows sent once -> being sent again",
            "replay_end: 40 rows sent once -> 40 rows sent again"
        ]
    );
    // The relay beside it has seen nothing of it.
    assert!(!relay.log().contains("starting again"), "{}", relay.log());
    filters(&rig, &deliveries, &ids).await;
}

async fn rows(rig: &Rig) -> Vec<(u64, u8, u32, Option<time::PrimitiveDateTime>)> {
    sqlx::query_as("SELECT id, status, attempts, sent_at FROM outbox WHERE status = 2 ORDER BY id")
        .fetch_all(&rig.pool)
        .await
        .unwrap()
}

async fn filters(rig: &Rig, deliveries: &Deliveries, ids: &[String]) {
    let matched = async |more: &[&str]| {
        let (code, output) = report(rig, &[&ALL[..], &["--dry-run"], more].concat()).await;
        assert_eq!(code, 0, "{output}");
        output["matched"].as_u64().unwrap()
    };
    assert_eq!(matched(&["--type", "order.placed.v1"]).await, 40);
    assert_eq!(matched(&["--type", "order.paid.v1"]).await, 0);
    assert_eq!(matched(&["--key", "k7"]).await, 1);
    let before = deliveries.count();
    let (code, output) = report(rig, &all(&["--key", "k7"])).await;
    assert_eq!((code, &output["sent"]), (0, &Value::from(1)), "{output}");
    wait_count(deliveries, before + 1).await;
    assert_eq!(deliveries.ids().last(), Some(&ids[7]));
    // Nothing is meant: nothing is done, and nothing written down.
    let actions = record(rig).await.len();
    let output = done(rig, &all(&["--key", "nobody"])).await;
    assert!(output.contains("matched  0 rows"), "{output}");
    assert_eq!(record(rig).await.len(), actions);
    let window = ["replay", "--from", "2020-01-01T00:00:00Z", "--dry-run"];
    let output = done(
        rig,
        &[&window[..], &["--to", "2020-01-02T00:00:00Z"]].concat(),
    )
    .await;
    assert!(output.contains("matched  0 rows"), "{output}");
}

#[tokio::test]
async fn what_the_inbox_may_have_forgotten_is_refused_with_rule_sum_and_setting() {
    let mut rig = Rig::new(e2e::shared::either().await).await;
    let deliveries = rig.consume(QUEUE).await;
    sent(&rig, 3).await;
    // Sent a moment ago, and yet the inbox may have known it since it was written.
    rig.sql(
        "UPDATE outbox SET created_at = created_at - INTERVAL 24 DAY WHERE aggregate_id = 'k1'",
    )
    .await;
    for args in [all(&[]), all(&["--dry-run"])] {
        let (code, output) = command(&rig, &args).await;
        assert_eq!(code, 1, "{output}");
        for part in [
            "REFUSED  1 of the rows",
            "age of the row + time in the broker's queue (RELAY_REPLAY_MARGIN) <= \
             RELAY_INBOX_RETENTION",
            "24days",
            "7days",
            "PAY_RETENTION",
            "Nothing was sent",
        ] {
            assert!(output.contains(part), "{part}: {output}");
        }
    }
    assert_eq!(record(&rig).await, []);
    assert_eq!(deliveries.count(), 0);
    // A consumer that remembers for longer, or for ever.
    for retention in ["32d", "0s"] {
        rig.set("RELAY_INBOX_RETENTION", retention);
        let (code, output) = report(&rig, &all(&[])).await;
        assert_eq!((code, &output["sent"]), (0, &Value::from(3)), "{output}");
    }
    wait_count(&deliveries, 6).await;
}

#[tokio::test]
async fn the_first_failure_ends_it_and_the_command_it_names_goes_on() {
    let rig = Rig::new(e2e::shared::either().await).await;
    let deliveries = rig.consume(QUEUE).await;
    let ids = sent(&rig, 30).await;
    let lost = format!("message_id = '{}'", ids[20]);
    let route = "UPDATE outbox SET routing_key =";
    rig.sql(&format!("{route} 'nobody.listens' WHERE {lost}"))
        .await;
    let (code, output) = report(&rig, &all(&[])).await;
    assert_eq!(code, 1, "{output}");
    let stopped = &output["stopped"];
    let why = stopped["why"].as_str().unwrap();
    assert!(why.contains("312 NO_ROUTE"), "{why}");
    assert!(why.contains(&ids[20]), "{why}");
    let end = record(&rig).await.pop().unwrap();
    assert_eq!(end.0, "replay_end");
    assert!(end.3.contains("312 NO_ROUTE"), "{end:?}");

    rig.sql(&format!("{route} 'order.pay' WHERE {lost}")).await;
    // As it is printed, by a shell.
    let go_on = stopped["go_on"].as_str().unwrap();
    let tail = " --rate 500 --reason 'the queue was purged' --by ann";
    assert!(go_on.ends_with(tail), "{go_on}");
    let go_on = go_on.strip_suffix(tail).unwrap();
    let mut go_on: Vec<&str> = go_on.split(' ').skip(1).collect();
    go_on.extend(["--rate", "500", WHY[0], WHY[1], "--by", "ann"]);
    let before = deliveries.count();
    let (code, output) = report(&rig, &go_on).await;
    assert_eq!((code, &output["sent"]), (0, &Value::from(10)), "{output}");
    wait_count(&deliveries, before + 10).await;
    assert_eq!(deliveries.ids()[before..], ids[20..]);
    assert_eq!(deliveries.first().len(), 30, "none is left out");
}

#[tokio::test]
async fn a_replay_waits_while_the_relay_is_paused_and_ends_well_on_a_signal() {
    let rig = Rig::new(e2e::shared::either().await).await;
    let deliveries = rig.consume(QUEUE).await;
    sent(&rig, 300).await;
    done(&rig, &["pause", "--reason", "upgrade", "--by", "bob"]).await;
    let replay = rig.command(&all(&["--rate", "10"]));
    e2e::wait::until("the wait", SOON, async || {
        replay.log().contains("the relay is paused by bob")
    })
    .await;
    assert_eq!(deliveries.count(), 0);
    done(&rig, &["resume"]).await;
    e2e::wait::until("some messages", SOON, async || deliveries.count() >= 2).await;
    let route = ["--route", "order-exchange", "order.pay"];
    done(&rig, &[&["pause", "--reason", "r"], &route[..]].concat()).await;
    e2e::wait::until("the wait for the route", SOON, async || {
        replay.log().contains("\"order.pay\" is paused")
    })
    .await;
    replay.terminate().unwrap();
    let status = replay.wait_exit(LATER).await.unwrap();
    assert_eq!(status.code(), Some(1), "{}", replay.log());
    let log = replay.log();
    assert!(log.contains("STOPPED  by a signal"), "{log}");
    assert!(log.contains("go on    relay replay --from"), "{log}");
    let sent = deliveries.count();
    assert!((2..300).contains(&sent), "{sent}");
    let end = record(&rig).await.pop().unwrap();
    let says = format!("{sent} rows sent again; stopped: by a signal");
    assert!(end.3.starts_with(&says), "{end:?}");
}

#[tokio::test]
async fn wrong_usage_is_64_and_a_broker_that_is_away_is_1() {
    let mut rig = Rig::without_queue(e2e::shared::either().await).await;
    sent(&rig, 1).await;
    let window = |from, to| [&["replay", "--from", from, "--to", to], &WHY[..]].concat();
    let (early, late) = ("2026-01-31T12:00:00Z", "2026-01-31T13:00:00Z");
    let wrong = [
        (window(late, early), "--from: it is not before --to"),
        (window("noon", late), "write it as 2026-01-31T12:00:00Z"),
        (ALL.to_vec(), "--reason <TEXT>"),
        (all(&["--rate", "0"]), "0 is not in 1..=1000000"),
        (all(&["--replay-margin", "30d"]), "RELAY_REPLAY_MARGIN"),
    ];
    for (args, says) in wrong {
        let (code, output) = command(&rig, &args).await;
        assert_eq!(code, 64, "{args:?}: {output}");
        assert!(output.contains(says), "{args:?}: {output}");
    }
    let port = e2e::port::free().unwrap();
    rig.set(
        "AMQP_URL",
        &format!("amqp://guest:guest@127.0.0.1:{port}/%2f"),
    );
    let (code, output) = command(&rig, &all(&[])).await;
    assert_eq!(code, 1, "{output}");
    assert!(output.contains("no way to the broker"), "{output}");
    assert_eq!(record(&rig).await, []);
}
