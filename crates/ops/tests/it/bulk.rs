//! Bulks: the schedule in the rows, the canary, pause, resume, cancel, and what breaks them off.

use std::sync::Arc;
use std::time::Duration;

use ops::bulk::{self, Bulk, BulkAct, BulkOutcome, BulkState, Keeper, Plan, Progress};
use ops::table::Key;
use ops::{Error, Filter, State};
use svc_kit::admin::Readiness;
use tokio_util::sync::CancellationToken;

use crate::{World, by, worlds};

fn plan(canary: u32, rate: f64) -> Plan {
    Plan {
        canary,
        canary_wait: 60,
        rate,
        ..Plan::default()
    }
}

async fn start(world: &World, plan: &Plan) -> u64 {
    let id = world.console.bulk_start(plan, &by("ann")).await.unwrap();
    world.console.bulk_carry_out(id).await.unwrap();
    id
}

async fn show(world: &World, id: u64) -> Bulk {
    world.console.bulk(id).await.unwrap().unwrap()
}

async fn progress(world: &World, id: u64) -> Progress {
    let mut progress = show(world, id).await.progress.unwrap();
    progress.last_due_at = None;
    progress
}

async fn act(world: &World, id: u64, act: BulkAct) -> BulkOutcome {
    world.console.bulk_act(id, act, &by("bob")).await.unwrap()
}

/// What relay and pay-svc do when a row fails: its new state, and the bulk, in one transaction.
async fn fail(world: &World, key: &str) {
    let table = world.console.table();
    let key = table.key(key).unwrap();
    let mut tx = world.pool.begin().await.unwrap();
    let bulks = bulk::active(&mut tx, table, std::slice::from_ref(&key))
        .await
        .unwrap();
    let condition = match &key {
        Key::Id(id) => format!("id = {id}"),
        Key::Message(id) => format!("message_id = '{}'", String::from_utf8_lossy(id)),
    };
    let update = format!(
        "UPDATE `{}` SET attempts = 1, next_attempt_at = UTC_TIMESTAMP(6) + INTERVAL 5 SECOND \
         WHERE {condition}",
        table.name()
    );
    sqlx::query(sqlx::AssertSqlSafe(update))
        .execute(&mut *tx)
        .await
        .unwrap();
    for bulk in bulks {
        bulk::stop(&mut tx, table, bulk, ("relay", "too_large: again"))
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
}

/// As a worker that works on these.
async fn claim(world: &World, ids: &[&str]) {
    let claim = format!(
        "UPDATE TABLE SET next_attempt_at = UTC_TIMESTAMP(6) + INTERVAL 20 SECOND \
         WHERE message_id IN ('{}')",
        ids.join("', '")
    );
    world.sql(&claim).await;
}

/// What the service does right after it.
async fn carry_out(world: &World, id: u64) {
    world.console.bulk_carry_out(id).await.unwrap();
}

#[tokio::test]
async fn the_canary_is_due_now_and_the_rest_behind_it_at_the_rate() {
    for world in worlds().await {
        world.park("a", 12, "too_large").await;
        world.park("b", 3, "invalid").await;
        let mut plan = plan(2, 10.0);
        plan.filter.class = Some("too_large".to_owned());
        plan.max = 11;
        let id = start(&world, &plan).await;
        assert_eq!(world.count("status = 3").await, 4);
        assert_eq!(world.count("status = 1 AND attempts = 0").await, 11);
        let due = "next_attempt_at <= UTC_TIMESTAMP(6) AND message_id IN ('a0', 'a1')";
        assert_eq!(world.count(due).await, 2);
        let apart = format!(
            "TIMESTAMPDIFF(MICROSECOND, (SELECT started_at FROM {}_bulks), next_attempt_at) \
             = 60000000 + 100000 * (SUBSTRING(message_id, 2) - 2)",
            world.console.table().name()
        );
        assert_eq!(world.count(&format!("status = 1 AND {apart}")).await, 9);
        let bulk = show(&world, id).await;
        assert_eq!(
            (bulk.state, bulk.canary, bulk.rate),
            (BulkState::Running, 2, 10.0)
        );
        assert!(bulk.filter.contains("too_large"), "{}", bulk.filter);
        let expected = Progress {
            rows: 11,
            waiting: 9,
            trying: 2,
            ..Progress::default()
        };
        assert_eq!(progress(&world, id).await, expected);
        world
            .sql("UPDATE TABLE SET status = 2, next_attempt_at = NULL WHERE message_id = 'a0'")
            .await;
        world.sql("DELETE FROM TABLE WHERE message_id = 'a1'").await;
        let expected = Progress {
            rows: 11,
            waiting: 9,
            done: 1,
            gone: 1,
            ..Progress::default()
        };
        assert_eq!(progress(&world, id).await, expected);
        let key = match world.console.table() {
            ops::Table::Outbox { .. } => "5",
            ops::Table::Inbox => "a4",
        };
        let detail = world.console.detail(key).await.unwrap().unwrap();
        assert_eq!(detail.bulks, [id]);
    }
}

#[tokio::test]
async fn a_failure_holds_back_what_was_not_tried_and_resume_begins_with_a_canary() {
    for world in worlds().await {
        let keys = world.park("m", 10, "too_large").await;
        let id = start(&world, &plan(2, 1.0)).await;
        claim(&world, &["m0", "m1"]).await;
        fail(&world, &keys[0]).await;
        carry_out(&world, id).await;
        let bulk = show(&world, id).await;
        assert_eq!(bulk.state, BulkState::Stopped);
        assert_eq!(bulk.stopped_by.as_deref(), Some("too_large: again"));
        assert_eq!(
            world.count("status = 3 AND next_attempt_at IS NULL").await,
            8
        );
        let expected = Progress {
            rows: 10,
            trying: 2,
            held: 8,
            ..Progress::default()
        };
        assert_eq!(progress(&world, id).await, expected);
        // Once stopped, a further failure changes nothing.
        fail(&world, &keys[1]).await;
        let audit = world
            .console
            .actions(&Default::default())
            .await
            .unwrap()
            .actions;
        assert_eq!(audit.iter().filter(|a| a.action == "bulk_stop").count(), 1);
        let stop = audit.iter().find(|a| a.action == "bulk_stop").unwrap();
        assert_eq!(stop.actor, "relay");
        let held = audit.iter().find(|a| a.action == "bulk_held").unwrap();
        let counts = (held.before.as_deref(), held.after.as_deref());
        assert_eq!(counts, (Some("stopped"), Some("rows 10, trying 2, held 8")));

        // A person has decided on one of them meanwhile.
        world
            .console
            .discard(&keys[5..6], &by("ann"))
            .await
            .unwrap();
        let resumed = act(&world, id, BulkAct::Resume).await;
        assert!(
            matches!(resumed, BulkOutcome::Done { rows: Some(7), .. }),
            "{resumed:?}"
        );
        let due = "status = 1 AND next_attempt_at <= UTC_TIMESTAMP(6) AND attempts = 0";
        assert_eq!(world.count(due).await, 2);
        let later = "next_attempt_at > UTC_TIMESTAMP(6) + INTERVAL 50 SECOND";
        assert_eq!(world.count(later).await, 5);
        let expected = Progress {
            rows: 10,
            trying: 4,
            waiting: 5,
            discarded: 1,
            ..Progress::default()
        };
        assert_eq!(progress(&world, id).await, expected);
    }
}

#[tokio::test]
async fn pause_resume_and_cancel_are_reported_apart_from_what_somebody_else_did() {
    for world in worlds().await {
        world.park("m", 10, "too_large").await;
        let id = start(&world, &plan(1, 1.0)).await;
        claim(&world, &["m0"]).await;
        let paused = act(&world, id, BulkAct::Pause).await;
        assert!(matches!(
            paused,
            BulkOutcome::Done {
                rows: Some(9),
                after: BulkState::Paused,
                ..
            }
        ));
        assert_eq!(world.count("status = 3").await, 9);
        let again = act(&world, id, BulkAct::Pause).await;
        let BulkOutcome::Conflict {
            now: BulkState::Paused,
            last: Some(last),
            ..
        } = again
        else {
            panic!("{again:?}")
        };
        assert_eq!(
            (last.actor.as_str(), last.action.as_str()),
            ("bob", "bulk_pause")
        );
        let resumed = act(&world, id, BulkAct::Resume).await;
        assert!(
            matches!(resumed, BulkOutcome::Done { rows: Some(9), .. }),
            "{resumed:?}"
        );
        let cancelled = act(&world, id, BulkAct::Cancel).await;
        // One of them has become the canary of the second start: a relay may have it on its way, but
        // no worker of the inbox has claimed it.
        let held = match world.console.table() {
            ops::Table::Outbox { .. } => 8,
            ops::Table::Inbox => 9,
        };
        assert!(
            matches!(cancelled, BulkOutcome::Done { rows, .. } if rows == Some(held)),
            "{cancelled:?}"
        );
        let dead = act(&world, id, BulkAct::Resume).await;
        assert!(matches!(
            dead,
            BulkOutcome::Conflict {
                now: BulkState::Cancelled,
                ..
            }
        ));
        assert!(matches!(
            act(&world, 99, BulkAct::Pause).await,
            BulkOutcome::Missing { .. }
        ));
    }
}

#[tokio::test]
async fn a_turn_is_answered_before_the_rows_follow() {
    for world in worlds().await {
        world.park("m", 10, "too_large").await;
        let id = start(&world, &plan(1, 1.0)).await;
        // Somebody is at one of the rows, so none can be held back.
        let mut busy = world.pool.begin().await.unwrap();
        let lock = format!(
            "SELECT status FROM {} WHERE message_id = 'm5' FOR UPDATE",
            world.console.table().name()
        );
        sqlx::query(sqlx::AssertSqlSafe(lock))
            .fetch_one(&mut *busy)
            .await
            .unwrap();
        let turn = async |act| {
            let by = by("bob");
            world.console.bulk_turn(id, act, &by).await.unwrap()
        };
        let paused = BulkOutcome::Done {
            id,
            before: BulkState::Running,
            after: BulkState::Paused,
            rows: None,
        };
        assert_eq!(turn(BulkAct::Pause).await, paused);
        let bulk = show(&world, id).await;
        assert_eq!((bulk.state, bulk.followed), (BulkState::Paused, false));
        assert_eq!(bulk.progress.unwrap().held, 0);
        busy.rollback().await.unwrap();
        let followed = async |state| {
            e2e::wait::until("the rows", Duration::from_secs(20), async || {
                let bulk = show(&world, id).await;
                bulk.followed && bulk.state == state
            })
            .await;
        };
        followed(BulkState::Paused).await;
        let is_held = progress(&world, id).await.held;
        assert!(is_held >= 9, "{is_held}");
        assert!(matches!(
            turn(BulkAct::Resume).await,
            BulkOutcome::Done {
                after: BulkState::Filling,
                ..
            }
        ));
        followed(BulkState::Running).await;
        assert_eq!(world.count("status = 1").await, 10);
    }
}

#[tokio::test]
async fn what_was_touched_since_is_left_alone() {
    for world in worlds().await {
        world.park("m", 4, "too_large").await;
        let id = start(&world, &plan(0, 0.01)).await;
        // Claimed by a worker, or tried and put off: not as the bulk left it.
        claim(&world, &["m3"]).await;
        act(&world, id, BulkAct::Cancel).await;
        assert_eq!(
            world
                .count("status = 3 AND message_id IN ('m1', 'm2')")
                .await,
            2
        );
        assert_eq!(world.count("status = 1 AND message_id = 'm3'").await, 1);
        // m0 is due: a relay may have it on its way.
        let status = match world.console.table() {
            ops::Table::Outbox { .. } => 1,
            ops::Table::Inbox => 3,
        };
        let m0 = format!("status = {status} AND message_id = 'm0'");
        assert_eq!(world.count(&m0).await, 1);
    }
}

/// A keeper of its own for a while.
async fn keep(world: &World, until: impl AsyncFn() -> bool) {
    let stop = CancellationToken::new();
    let readiness = Readiness::new(&[]);
    let keeper = Keeper {
        console: world.console.clone(),
        failed: Arc::default(),
        looked: CancellationToken::new(),
        readiness: readiness.clone(),
    };
    let looked = keeper.looked.clone();
    let keeping = svc_kit::tasks::unit(keeper.run(stop.clone()));
    e2e::wait::until("the keeper", Duration::from_secs(60), async || {
        until().await
    })
    .await;
    looked.cancelled().await;
    assert!(readiness.is_ready());
    stop.cancel();
    keeping.await.unwrap();
}

#[tokio::test]
async fn what_a_service_left_half_done_is_done_by_the_next() {
    for world in worlds().await {
        let keys = world.park("m", 1_200, "too_large").await;
        let name = world.console.table().name().to_owned();
        // Stopped, and the service died before it held anything back.
        let id = start(&world, &plan(1, 1.0)).await;
        fail(&world, &keys[0]).await;
        assert_eq!(world.count("status = 3").await, 0);
        keep(&world, async || world.count("status = 3").await == 1_199).await;
        assert_eq!(show(&world, id).await.state, BulkState::Stopped);

        // Resumed, and the person's process died before it let anything go.
        let filling = format!(
            "UPDATE {name}_bulks SET state = 'filling', held = 0, canary_wait_us = 0, \
             interval_us = 0, changed_at = changed_at - INTERVAL 1 MINUTE"
        );
        world.sql(&filling).await;
        keep(&world, async || {
            show(&world, id).await.state == BulkState::Running
        })
        .await;
        assert_eq!(world.count("status = 1").await, 1_200);
        assert_eq!(progress(&world, id).await.rows, 1_200, "none twice");
    }
}

#[tokio::test]
async fn a_bulk_ends_with_its_last_row_and_its_list_is_deleted_a_month_later() {
    for world in worlds().await {
        world.park("m", 1_200, "too_large").await;
        let name = world.console.table().name().to_owned();
        let id = start(&world, &plan(0, 0.0)).await;
        world
            .sql("UPDATE TABLE SET status = 2, next_attempt_at = NULL WHERE message_id <> 'm7'")
            .await;
        world
            .sql("UPDATE TABLE SET status = 4 WHERE message_id = 'm7'")
            .await;
        keep(&world, async || {
            show(&world, id).await.state == BulkState::Done
        })
        .await;
        let filter = ops::audit::ActionFilter {
            action: Some("bulk_done".to_owned()),
            ..Default::default()
        };
        let audit = world.console.actions(&filter).await.unwrap().actions;
        let reported = audit[0].after.as_deref();
        assert_eq!(reported, Some("rows 1200, done 1199, discarded 1"));
        assert!(matches!(
            act(&world, id, BulkAct::Cancel).await,
            BulkOutcome::Conflict { .. }
        ));
        world.park("n", 1, "too_large").await;
        let younger = start(&world, &plan(0, 0.001)).await;
        let aged = format!("UPDATE {name}_bulks SET changed_at = changed_at - INTERVAL 31 DAY");
        world.sql(&aged).await;
        keep(&world, async || progress(&world, id).await.rows == 0).await;
        assert_eq!(progress(&world, younger).await.rows, 1, "it has not ended");
    }
}

#[tokio::test]
async fn all_waiting_rows_can_be_tried_now() {
    for world in worlds().await {
        world.park("m", 6, "provider_unavailable").await;
        world
            .sql(
                "UPDATE TABLE SET status = 1, next_attempt_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR",
            )
            .await;
        let plan = Plan {
            filter: Filter {
                state: State::Waiting,
                ..Filter::default()
            },
            ..Plan::default()
        };
        start(&world, &plan).await;
        let due = "status = 1 AND attempts = 5 AND next_attempt_at <= UTC_TIMESTAMP(6)";
        assert_eq!(world.count(due).await, 6);
    }
}

#[tokio::test]
async fn plans_that_can_not_work_are_refused() {
    let world = worlds().await.remove(0);
    let refused = [
        (
            Plan {
                max: 0,
                ..Plan::default()
            },
            "max",
        ),
        (
            Plan {
                max: 100_001,
                ..Plan::default()
            },
            "max",
        ),
        (
            Plan {
                rate: -1.0,
                ..Plan::default()
            },
            "rate",
        ),
        (
            Plan {
                rate: f64::NAN,
                ..Plan::default()
            },
            "rate",
        ),
        (
            Plan {
                rate: 1e300,
                ..Plan::default()
            },
            "rate",
        ),
        (
            Plan {
                canary: u32::MAX,
                ..Plan::default()
            },
            "canary",
        ),
        (
            Plan {
                canary_wait: u32::MAX,
                ..Plan::default()
            },
            "canary_wait",
        ),
        (
            Plan {
                filter: Filter {
                    state: State::Done,
                    ..Filter::default()
                },
                ..Plan::default()
            },
            "state",
        ),
    ];
    for (plan, field) in refused {
        match world.console.bulk_start(&plan, &by("ann")).await {
            Err(Error::Invalid { field: f, .. }) => assert_eq!(f, field),
            other => panic!("{plan:?}: {other:?}"),
        }
    }
}
