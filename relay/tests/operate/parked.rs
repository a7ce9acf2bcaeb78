//! `relay parked …` as an operator meets it, and a relay that sends what was retried.

use e2e::wait::until;

use crate::rig::{LATER, Rig, SOON};

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
async fn every_verb_does_what_it_says_and_its_exit_code_tells() {
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
    let (code, told) = parked(&rig, &["retry", id]).await;
    assert_eq!(code, 1);
    assert!(
        told.contains("NOT DONE, it is discarded") && told.contains("by ann"),
        "{told}"
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
    ok(
        &rig,
        &[
            "bulk",
            "start",
            "--canary",
            "1",
            "--canary-wait",
            "60",
            "--rate",
            "10",
        ],
    )
    .await;
    until("the bulk to stop", LATER, async || {
        ok(&rig, &["bulk", "show", "1"]).await.contains("stopped")
    })
    .await;
    assert_eq!(
        rig.count("status = 3 AND next_attempt_at IS NULL").await,
        29
    );
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

    // Mended: the failed one now and not in ten minutes, the rest after the second canary.
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
    let told = ok(&rig, &["bulk", "show", "1"]).await;
    assert!(
        told.contains("done         30") && told.contains("failed       0"),
        "{told}"
    );
}
