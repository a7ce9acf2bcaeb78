//! `relay parked …` as an operator meets it, and a relay that sends what was retried.

use e2e::rig::ops::stop;
use e2e::rig::{LATER, QUEUE, Rig, SOON};
use e2e::wait::until;

/// Runs `relay parked …`; exit code and what it printed.
async fn parked(rig: &Rig, args: &[&str]) -> (i32, String) {
    let process = rig.command(&[&["parked"], args].concat());
    let status = process.wait_exit(SOON).await.unwrap();
    (status.code().unwrap(), process.log())
}

async fn ok(rig: &Rig, args: &[&str]) -> String {
    let (code, text) = parked(rig, args).await;
    assert_eq!(code, 0, "{args:?}\n{text}");
    text
}

/// Inserts `count` parked rows with keys of their own; returns their ids.
async fn park(rig: &Rig, count: usize) -> Vec<String> {
    rig.insert(count).await;
    rig.sql("UPDATE outbox SET status = 3, attempts = 5, last_error = 'too_large: 406' WHERE status = 1")
        .await;
    sqlx::query_scalar("SELECT CAST(id AS CHAR) FROM outbox WHERE status = 3 ORDER BY id")
        .fetch_all(&rig.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn every_verb_does_what_it_says_and_its_exit_code_shows_it() {
    let mut rig = Rig::without_queue(e2e::shared::either().await).await;
    let ids = park(&rig, 8).await;
    let id = ids[0].as_str();
    assert!(
        ok(&rig, &["list", "--class", "too_large"])
            .await
            .contains("too_large: 406")
    );
    let json = ok(
        &rig,
        &["list", "--limit", "3", "--order", "oldest", "--json"],
    )
    .await;
    assert!(
        json.contains(&format!("\"next\": \"{}\"", ids[2])),
        "{json}"
    );
    assert!(ok(&rig, &["groups"]).await.contains("too_large  8"));
    assert!(ok(&rig, &["show", id]).await.contains("payload, 2 bytes"));
    assert_eq!(parked(&rig, &["show", "4711"]).await.0, 1);

    ok(&rig, &["note", id, "seen", "--by", "ann"]).await;
    assert_eq!(parked(&rig, &["discard", id]).await.0, 64, "no reason");
    assert_eq!(parked(&rig, &["discard", id, "--reason", " "]).await.0, 64);
    ok(&rig, &["discard", id, "--reason", "no use", "--by", "ann"]).await;
    let (code, output) = parked(&rig, &["retry", id]).await;
    assert_eq!(code, 1);
    assert!(
        output.contains("NOT DONE, it is discarded") && output.contains("by ann"),
        "{output}"
    );
    ok(&rig, &["restore", id]).await;
    ok(&rig, &["retry", id, &ids[1]]).await;
    assert_eq!(parked(&rig, &["retry"]).await.0, 64);
    assert_eq!(
        parked(&rig, &["retry", &ids[2], "--class", "x"]).await.0,
        64
    );
    let edit = [
        "edit",
        ids[2].as_str(),
        "--routing-key",
        "order.other",
        "--reason",
        "moved",
    ];
    assert_eq!(parked(&rig, &edit).await.0, 64, "editing is off");
    rig.set("OPS_ALLOW_EDIT", "true");
    assert!(ok(&rig, &edit).await.contains("parked -> discarded"));
    assert_eq!(
        rig.count("routing_key = 'order.other' AND headers LIKE '%parent%'")
            .await,
        1
    );
}

#[tokio::test]
async fn a_bulk_is_begun_paused_resumed_and_cancelled() {
    let rig = Rig::without_queue(e2e::shared::either().await).await;
    park(&rig, 5).await;
    let start = [
        "bulk", "start", "--canary", "1", "--rate", "0.5", "--by", "ann",
    ];
    assert!(
        ok(&rig, &start).await.contains("waiting      4"),
        "5 are left"
    );
    assert_eq!(rig.count("status = 3").await, 0);
    ok(&rig, &["bulk", "pause", "1"]).await;
    assert_eq!(rig.count("status = 3").await, 4);
    assert_eq!(parked(&rig, &["bulk", "pause", "1"]).await.0, 1);
    ok(&rig, &["bulk", "resume", "1"]).await;
    ok(&rig, &["bulk", "cancel", "1"]).await;
    assert!(ok(&rig, &["bulk", "show"]).await.contains("cancelled"));
    assert!(ok(&rig, &["bulk", "show", "1"]).await.contains("held back"));
    assert_eq!(parked(&rig, &["bulk", "show", "9"]).await.0, 1);
    ok(&rig, &["retry", "--all"]).await;
    assert_eq!(rig.count("status = 3").await, 0);
    let csv = ok(&rig, &["actions", "--csv", "--actor", "ann"]).await;
    assert!(csv.contains("\"bulk_start\""), "{csv}");
    assert!(
        ok(&rig, &["actions", "--json"])
            .await
            .contains("\"bulk_cancel\"")
    );
}

#[tokio::test]
async fn a_canary_that_fails_holds_back_the_rest_and_a_killed_relay_loses_none_of_it() {
    let mut rig = Rig::new(e2e::shared::either().await).await;
    rig.set("RELAY_SWEEP_INTERVAL", "500ms")
        .set("RELAY_BACKOFF_MIN", "10m");
    rig.set("RELAY_BACKOFF_MAX", "10m");
    let ids = park(&rig, 30).await;
    rig.sql(&format!(
        "UPDATE outbox SET headers = 'none' WHERE id = {}",
        ids[0]
    ))
    .await;
    let relay = rig.tailing().await;
    let start = "bulk start --canary 1 --canary-wait 60 --rate 10";
    ok(&rig, &start.split(' ').collect::<Vec<_>>()).await;
    until("the bulk to stop", LATER, async || {
        ok(&rig, &["bulk", "show", "1"]).await.contains("stopped")
    })
    .await;
    // The failure turned the bulk; its rows follow.
    rig.wait_count("status = 3 AND next_attempt_at IS NULL", 29)
        .await;
    assert!(
        ok(&rig, &["bulk", "show", "1"])
            .await
            .contains("invalid: headers")
    );
    assert!(
        ok(&rig, &["actions", "--actor", "relay"])
            .await
            .contains("bulk_stop")
    );

    // Fixed: the failed one now and not in ten minutes, the rest after the second canary.
    rig.sql("UPDATE outbox SET headers = NULL").await;
    ok(&rig, &["retry", &ids[0]]).await;
    rig.sql("UPDATE outbox_bulks SET canary_wait_us = 1000000")
        .await;
    ok(&rig, &["bulk", "resume", "1"]).await;
    until("some to be sent", LATER, async || {
        rig.count("status = 2").await >= 3
    })
    .await;
    relay.kill().unwrap();
    assert!(
        rig.count("status = 1").await > 0,
        "killed too late to tell anything"
    );
    let _relay = rig.relay();
    rig.wait_sent(30).await;
    let output = ok(&rig, &["bulk", "show", "1"]).await;
    assert!(
        output.contains("done         30") && output.contains("failed       0"),
        "{output}"
    );
    until("the bulk to end", LATER, async || {
        ok(&rig, &["bulk", "show", "1"])
            .await
            .contains("state        done")
    })
    .await;
    let life = ok(&rig, &["show", &ids[29]]).await;
    for what in ["bulk_start", "bulk_stop", "bulk_resume", "bulk_done"] {
        assert!(life.contains(what), "{what} is not in\n{life}");
    }
}

/// As a failure leaves it whose relay dies right after: no other relay may send what was not tried.
#[tokio::test]
async fn rows_of_a_stopped_bulk_that_became_due_while_no_relay_ran_are_held_back() {
    let mut rig = Rig::new(e2e::shared::either().await).await;
    rig.set("RELAY_SWEEP_INTERVAL", "500ms");
    park(&rig, 1_100).await;
    ok(&rig, &["bulk", "start", "--canary", "0", "--rate", "0"]).await;
    rig.sql("UPDATE outbox_bulks SET state = 'stopped', held = 0")
        .await;
    rig.insert(1).await;
    let _relay = rig.tailing().await;
    rig.wait_sent(1).await;
    assert_eq!(rig.count("status = 3").await, 1_100);
    until("the bulk to be at rest", SOON, async || {
        ok(&rig, &["actions"]).await.contains("bulk_held")
    })
    .await;
}

#[tokio::test]
async fn a_bulk_whose_starter_is_killed_is_filled_by_resume_or_by_the_relay() {
    const ROWS: i64 = 20_000;
    let mut rig = Rig::new(e2e::shared::either().await).await;
    rig.set("RELAY_SWEEP_INTERVAL", "500ms");
    for (bulk, relay) in [("1", false), ("2", true)] {
        let fill = format!(
            "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, routing_key, \
             payload, status, attempts, last_error) WITH RECURSIVE seq (i) AS (SELECT 0 UNION ALL \
             SELECT i + 1 FROM seq WHERE i < 199) SELECT CONCAT('{bulk}-', a.i * 200 + b.i), 'order', \
             UUID(), 'order.placed.v1', 'order.pay', 'x', 3, 5, 'too_large: 406' \
             FROM seq a JOIN seq b WHERE a.i < 100"
        );
        rig.sql(&fill).await;
        let starter = rig.command(&["parked", "bulk", "start", "--rate", "0.001"]);
        until("some rows to be in", SOON, async || {
            rig.count("status = 1").await >= 500
        })
        .await;
        starter.kill().unwrap();
        assert!(
            rig.count("status = 3").await > 500,
            "killed too late to tell anything"
        );
        if relay {
            let relay = rig.tailing().await;
            rig.wait_count("status = 3", 0).await;
            stop(&relay).await;
        } else {
            let output = ok(&rig, &["bulk", "resume", bulk]).await;
            assert!(output.contains("filling -> running"), "{output}");
            assert_eq!(rig.count("status = 3").await, 0);
        }
        let members = format!(
            "SELECT CAST(COUNT(DISTINCT row_key) AS SIGNED), COUNT(*) FROM outbox_bulk_rows \
             WHERE bulk_id = {bulk}"
        );
        let members: (i64, i64) = sqlx::query_as(sqlx::AssertSqlSafe(members))
            .fetch_one(&rig.pool)
            .await
            .unwrap();
        assert_eq!(members, (ROWS, ROWS));
        assert!(
            ok(&rig, &["bulk", "show", bulk])
                .await
                .contains("state        running")
        );
        rig.sql("DELETE FROM outbox").await;
    }
}

/// As the page says: it stops no bulk, and what has become due meanwhile goes together.
#[tokio::test]
async fn behind_a_closed_route_the_rows_of_a_bulk_wait_and_then_go_together() {
    let mut rig = Rig::without_queue(e2e::shared::either().await).await;
    rig.set("RELAY_SWEEP_INTERVAL", "500ms");
    park(&rig, 20).await;
    let _relay = rig.tailing().await;
    let start = [
        "bulk",
        "start",
        "--canary",
        "1",
        "--canary-wait",
        "0",
        "--rate",
        "1000",
    ];
    ok(&rig, &start).await;
    rig.wait_waiting("order.pay", 20).await;
    assert!(
        ok(&rig, &["bulk", "show", "1"])
            .await
            .contains("state        running")
    );
    assert_eq!(rig.count("status = 1 AND attempts = 0").await, 20);
    rig.declare_queue(QUEUE, "order.*").await;
    rig.wait_sent(20).await;
}
