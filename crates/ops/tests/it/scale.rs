//! A large table: every page looks at a bounded number of rows. Short form: 100,000 parked rows; long
//! form (`--features long`): a million, with the times reported.

use std::time::{Duration, Instant};

use ops::bulk::{BulkAct, Plan};
use ops::{Filter, Order, PageRequest, Table};
use sqlx::AssertSqlSafe;

use crate::{World, by, worlds};

const ROWS: u64 = if cfg!(feature = "long") {
    1_000_000
} else {
    100_000
};
/// A page's, on a machine that has little else to do. The short form runs beside other tests.
const PAGE_MAX: Duration = if cfg!(feature = "long") {
    Duration::from_millis(200)
} else {
    Duration::from_secs(2)
};

/// Doubles one row until there are enough, each with its own id and time.
async fn fill(world: &World) {
    world.park("seed", 1, "too_large").await;
    let columns = match world.console.table() {
        Table::Outbox { .. } => {
            "aggregate_type, aggregate_id, event_type, routing_key, payload, status, attempts, \
             last_error, created_at"
        }
        Table::Inbox => {
            "aggregate_id, event_type, exchange, routing_key, payload, status, attempts, \
             last_error, received_at"
        }
    };
    let created = world.console.table().created_column();
    let spread = format!("{created} + INTERVAL FLOOR(RAND() * 1000000000) MICROSECOND");
    let values = columns.replace(created, &spread);
    let mut rows = 1;
    while rows < ROWS {
        let more = rows.min(ROWS - rows).min(50_000);
        let double = format!(
            "INSERT INTO TABLE (message_id, {columns}) SELECT UUID(), {values} FROM TABLE LIMIT {more}"
        );
        world.sql(&double).await;
        rows += more;
    }
    world
        .sql(&format!(
            "UPDATE TABLE SET {created} = {created} - INTERVAL 1 DAY WHERE message_id = 'seed0'"
        ))
        .await;
    let table = world.console.table().name();
    sqlx::query(AssertSqlSafe(format!("ANALYZE TABLE `{table}`")))
        .fetch_all(&world.pool)
        .await
        .unwrap();
}

fn report(what: &str, took: Duration) {
    if cfg!(feature = "long") {
        let mut err = std::io::stderr().lock();
        std::io::Write::write_fmt(&mut err, format_args!("figure: {what}: {took:?}\n")).unwrap();
    }
}

async fn timed<T>(what: &str, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let found = work.await;
    let took = begun.elapsed();
    report(what, took);
    assert!(took < PAGE_MAX, "{what} took {took:?}");
    found
}

#[tokio::test]
async fn long_it_pages_of_a_large_table_are_quick_whatever_the_filter() {
    for world in worlds().await {
        fill(&world).await;
        let name = world.console.table().name();
        let (all, first) = (Filter::default(), PageRequest::default());
        world.console.list(&all, &first).await.unwrap();
        for (what, filter) in &filters() {
            for order in [Order::Oldest, Order::Newest] {
                let request = PageRequest {
                    order,
                    ..PageRequest::default()
                };
                let what = format!("{name}: {what}, {order:?}");
                let page = timed(&what, world.console.list(filter, &request))
                    .await
                    .unwrap();
                if page.rows.is_empty() && page.next.is_some() {
                    assert!(page.looked_at.is_some(), "{what}");
                    let request = PageRequest {
                        order,
                        after: page.next,
                        ..PageRequest::default()
                    };
                    let what = format!("{what}, second page");
                    timed(&what, world.console.list(filter, &request))
                        .await
                        .unwrap();
                }
            }
            let what = format!("{name}: {what}, groups");
            let groups = timed(&what, world.console.groups(filter)).await.unwrap();
            assert!(groups.or_more || filter.message_id.is_some(), "{what}");
        }
        let key = match world.console.table() {
            Table::Outbox { .. } => "1",
            Table::Inbox => "seed0",
        };
        let what = format!("{name}: detail");
        timed(&what, world.console.detail(key))
            .await
            .unwrap()
            .unwrap();
        bulk(&world, name).await;
    }
}

fn filters() -> [(&'static str, Filter); 7] {
    let with = |set: fn(&mut Filter)| {
        let mut filter = Filter::default();
        set(&mut filter);
        filter
    };
    [
        ("no filter", with(|_| ())),
        (
            "class that all have",
            with(|f| f.class = Some("too_large".into())),
        ),
        (
            "class that none has",
            with(|f| f.class = Some("invalid".into())),
        ),
        (
            "text that none has",
            with(|f| f.text = Some("nowhere".into())),
        ),
        (
            "key that none has",
            with(|f| f.aggregate_id = Some("nobody".into())),
        ),
        ("age that one has", with(|f| f.older_than = Some(80_000))),
        ("message id", with(|f| f.message_id = Some("seed0".into()))),
    ]
}

/// The largest bulk.
async fn bulk(world: &World, name: &str) {
    let max = u32::try_from(ROWS / 10).unwrap();
    let plan = Plan {
        max,
        canary: 10,
        rate: 100.0,
        ..Plan::default()
    };
    let begun = Instant::now();
    let id = world.console.bulk_start(&plan, &by("ann")).await.unwrap();
    let rows = world.console.bulk_carry_out(id).await.unwrap();
    report(
        &format!("{name}: a bulk of {rows} rows is put together"),
        begun.elapsed(),
    );
    assert_eq!(rows, u64::from(max));
    let begun = Instant::now();
    let bulk = world.console.bulk(id).await.unwrap().unwrap();
    report(&format!("{name}: its progress"), begun.elapsed());
    assert_eq!(bulk.progress.unwrap().waiting, rows - 10);
    for (act, what) in [
        (BulkAct::Pause, "paused"),
        (BulkAct::Resume, "resumed"),
        (BulkAct::Cancel, "cancelled"),
    ] {
        let begun = Instant::now();
        world.console.bulk_act(id, act, &by("ann")).await.unwrap();
        report(&format!("{name}: it is {what}"), begun.elapsed());
    }
}
