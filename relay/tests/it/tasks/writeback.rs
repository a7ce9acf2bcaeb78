use std::sync::Arc;
use std::time::Duration;

use e2e::Flavor;
use e2e::rig::{LATER, Rig};
use prometheus::Registry;
use relay::config::RowImage;
use relay::engine::{Reason, Record, Then, Write, Written};
use relay::observe::metrics::Metrics;
use relay::publish::confirms::{Answer, Confirmed, Published, Verdict, settle};
use relay::writeback::marker_task::{self, Marking};
use tokio::sync::{Notify, mpsc};

use super::{Outbox, ids};

fn confirmed(rows: &[(u64, &str)]) -> Vec<Confirmed> {
    let published: Vec<_> = rows
        .iter()
        .map(|(id, message_id)| Published {
            id: *id,
            message_id,
            answer: Answer::Ack,
        })
        .collect();
    let verdicts = settle(&published, Vec::new()).unwrap().into_iter();
    verdicts
        .map(|verdict| match verdict {
            Verdict::Confirmed(confirmed) => confirmed,
            other => panic!("{other:?}"),
        })
        .collect()
}

e2e::on_each_server!(marks_and_records_are_written_and_reported);
async fn marks_and_records_are_written_and_reported(flavor: Flavor) {
    let rig = Rig::new(e2e::shared::database(flavor).await).await;
    let message_ids = rig.insert(6).await;
    let all = ids(&rig).await;
    let outbox = Outbox::of(&rig).await;
    let metrics = Metrics::register(&Registry::new()).unwrap();
    let failed = Arc::new(Notify::new());
    let marking = Marking {
        table: outbox.table.for_ops(),
        image: RowImage::Full,
        metrics: metrics.clone(),
        failed: Arc::clone(&failed),
    };
    let (writes, writes_out) = mpsc::channel(16);
    let (written_in, mut written) = mpsc::channel(1);
    let marker = marker_task::run(outbox.connection, marking, writes_out, written_in);
    let marker = svc_kit::tasks::unit(marker);
    let mut write = async |write: Write| -> Written {
        writes.send(write).await.unwrap();
        let written = tokio::time::timeout(LATER, written.recv()).await;
        written.unwrap().unwrap()
    };
    let record = |at: usize, then: Then| {
        Write::Record(Record {
            id: all[at],
            message_id: message_ids[at].clone(),
            reason: Reason::Invalid,
            text: "x".repeat(2_000),
            then,
        })
    };

    // The second is another message by now.
    let marks = confirmed(&[(all[0], &message_ids[0]), (all[1], "another")]);
    let done = write(Write::Sent(marks)).await;
    assert_eq!((&done.rows[..], done.finished), (&all[..2], 2));
    assert_eq!((metrics.marked.get(), metrics.unmarked.get()), (1, 1));

    let after = Duration::from_hours(1);
    let retry = write(record(2, Then::Retry { attempts: 2, after })).await;
    assert_eq!((&retry.rows[..], retry.finished), (&all[2..3], 1));
    failed.notified().await;
    let park = write(record(3, Then::Park { attempts: 5 })).await;
    assert_eq!(park.rows, all[3..4]);
    let explain = write(record(4, Then::Explain)).await;
    assert_eq!((explain.rows.len(), explain.finished), (0, 1));
    let wait = write(record(5, Then::Wait(after))).await;
    assert_eq!(wait.rows, all[5..]);
    drop(writes);
    marker.await.unwrap().unwrap();

    let found: Vec<(u64, u64, bool, Option<i64>)> = sqlx::query_as(
        "SELECT CAST(status AS UNSIGNED), CAST(attempts AS UNSIGNED), \
         COALESCE(next_attempt_at > UTC_TIMESTAMP(), FALSE), CHAR_LENGTH(last_error) \
         FROM outbox ORDER BY id",
    )
    .fetch_all(&rig.pool)
    .await
    .unwrap();
    let expected = [
        (2, 0, false, None),
        (1, 0, false, None),
        (1, 2, true, Some(1_000)),
        (3, 5, false, Some(1_000)),
        (1, 0, false, Some(1_000)),
        (1, 0, true, Some(1_000)),
    ];
    assert_eq!(found, expected);
    let attempts: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM outbox_attempts")
        .fetch_one(&rig.pool)
        .await
        .unwrap();
    assert_eq!(attempts, 2);
}
