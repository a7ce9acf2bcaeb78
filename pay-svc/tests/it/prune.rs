//! What is long done goes, by its age and in pages; what a person may still need stays.

use std::time::Duration;

use e2e::Flavor;
use e2e::wait::until;
use pay_svc::prune::{self, Round};
use pay_svc::worker::Step as Worked;
use sqlx::MySqlPool;
use sqlx::mysql::MySqlPoolOptions;
use svc_kit::retention::Next;
use uuid::Uuid;

use crate::app::{App, SOON, classes, config, database, inbox_row, payments, vhost};
use crate::bench::Bench;
use crate::messages::{order_payload, received};
use crate::provider::{Act, Scripted, handle};

const RETENTION: Duration = Duration::from_hours(24 * 30);

/// A row as it would be, so many days after it was received and so many after it was done.
async fn insert(pool: &MySqlPool, id: &str, status: u8, received: u32, done: Option<u32>) {
    sqlx::query(
        "INSERT INTO inbox (message_id, payload, status, received_at, processed_at) VALUES \
         (?, '', ?, UTC_TIMESTAMP(6) - INTERVAL ? DAY, UTC_TIMESTAMP(6) - INTERVAL ? DAY)",
    )
    .bind(id)
    .bind(status)
    .bind(received)
    .bind(done)
    .execute(pool)
    .await
    .unwrap();
    sqlx::query("INSERT INTO inbox_attempts (message_id, attempt, class, error) VALUES (?, 1, 'settle', '')")
        .bind(id)
        .execute(pool)
        .await
        .unwrap();
}

/// One whole round; the messages it deleted.
async fn round(pool: &MySqlPool) -> u64 {
    let (mut round, mut deleted) = (Round::default(), 0);
    loop {
        let page = prune::page(pool, RETENTION, &mut round).await.unwrap();
        assert!(page.deleted <= 500, "a page of {}", page.deleted);
        deleted += page.deleted;
        if page.next == Next::Rest {
            return deleted;
        }
    }
}

async fn count(pool: &MySqlPool, table: &str) -> i64 {
    let sql = format!("SELECT COUNT(*) FROM {table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .fetch_one(pool)
        .await
        .unwrap()
}

e2e::on_each_server!(what_is_done_and_older_than_the_retention_goes_with_its_attempts);
async fn what_is_done_and_older_than_the_retention_goes_with_its_attempts(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let pool = database(db).await.pool().unwrap();
    for (id, status, received, done) in [
        ("processed-31", 2, 31, Some(31)),
        ("processed-29", 2, 29, Some(29)),
        ("retried-yesterday", 2, 400, Some(1)),
        ("waiting", 1, 400, None),
        ("parked", 3, 400, None),
        ("parked-again", 3, 400, Some(400)),
        ("discarded-31", 4, 31, None),
        ("discarded-yesterday", 4, 400, Some(1)),
    ] {
        insert(&pool, id, status, received, done).await;
    }
    assert_eq!(round(&pool).await, 2);
    for gone in ["processed-31", "discarded-31"] {
        assert_eq!(inbox_row(&pool, gone).await, None, "{gone}");
        assert!(classes(&pool, gone).await.is_empty(), "{gone}");
    }
    assert_eq!(count(&pool, "inbox").await, 6);
    assert_eq!(count(&pool, "inbox_attempts").await, 6);
    assert_eq!(round(&pool).await, 0);
}

e2e::on_each_server!(payments_stay_and_keep_their_orders_from_being_charged_again);
/// Should a message come back all the same, its order is paid already.
async fn payments_stay_and_keep_their_orders_from_being_charged_again(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let provider = Scripted::always(Act::Capture);
    let bench = Bench::new(db, handle(&provider)).await;
    let message = received("m-1", &order_payload(Uuid::now_v7()));
    bench.take_in(message.clone()).await;
    bench.work_off().await;
    sqlx::query("UPDATE inbox SET received_at = '2020-01-01', processed_at = '2020-01-01'")
        .execute(&bench.pool)
        .await
        .unwrap();
    assert_eq!(round(&bench.pool).await, 1);
    assert_eq!(payments(&bench.pool).await, 1);

    assert_eq!(
        bench.take_in(message).await,
        outbox::inbox::Claim::First,
        "the row was not gone"
    );
    assert_eq!(bench.worker.step().await.unwrap(), Worked::Worked(1));
    assert_eq!(provider.all_calls(), 1, "charged again");
    let already = &bench.worker.metrics.processed;
    assert_eq!(already.with_label_values(&["already_paid"]).get(), 1);
}

async fn fill(pool: &MySqlPool, prefix: &str, rows: u32, days: u32) {
    let sql = "INSERT INTO inbox (message_id, payload, status, received_at, processed_at) \
               WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?) \
               SELECT CONCAT(?, n), '', 2, UTC_TIMESTAMP(6) - INTERVAL ? DAY, \
               UTC_TIMESTAMP(6) - INTERVAL ? DAY FROM n";
    let mut connection = pool.acquire().await.unwrap();
    // MySQL and MariaDB each refuse the other's name for it; 1,000 is the default of both.
    assert!(rows <= 1000);
    sqlx::query(sql)
        .bind(rows)
        .bind(prefix)
        .bind(days)
        .bind(days)
        .execute(&mut *connection)
        .await
        .unwrap();
}

e2e::on_each_server!(a_round_goes_through_any_number_of_rows_and_attempts_page_by_page);
/// Many rows of one moment, a row with very many attempts, two instances at once.
async fn a_round_goes_through_any_number_of_rows_and_attempts_page_by_page(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let pool = database(db).await.pool().unwrap();
    for day in [40, 41] {
        fill(&pool, &format!("old-{day}-"), 1000, day).await;
    }
    fill(&pool, "young-", 700, 3).await;
    for copy in 0..9 {
        // Each copy doubles what is there: 512 × 10 in the end.
        let sql = if copy == 0 {
            "INSERT INTO inbox_attempts (message_id, attempt, class, error) \
             SELECT message_id, 1, 'settle', '' FROM inbox WHERE message_id LIKE 'old-40-1_'"
        } else {
            "INSERT INTO inbox_attempts (message_id, attempt, class, error) \
             SELECT message_id, 1, 'settle', '' FROM inbox_attempts"
        };
        sqlx::query(sql).execute(&pool).await.unwrap();
    }
    assert!(count(&pool, "inbox_attempts").await > 2500);
    let (one, other) = tokio::join!(round(&pool), round(&pool));
    // What one was at, the other has left out; the next round has it.
    assert_eq!(one + other + round(&pool).await, 2000);
    assert_eq!(count(&pool, "inbox_attempts").await, 0);
    assert_eq!(count(&pool, "inbox").await, 700);
}

e2e::on_each_server!(a_round_without_anything_expired_reads_one_page);
/// A look that finds nothing must not read the whole table.
async fn a_round_without_anything_expired_reads_one_page(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let database = database(db).await;
    let options = MySqlPoolOptions::new().max_connections(1);
    let pool = options.connect(&database.url).await.unwrap();
    for part in 0..5 {
        fill(&pool, &format!("young-{part}-"), 1000, 3).await;
    }
    sqlx::query("FLUSH STATUS").execute(&pool).await.unwrap();
    assert_eq!(round(&pool).await, 0);
    let read: Vec<(String, String)> = sqlx::query_as("SHOW SESSION STATUS LIKE 'Handler_read%'")
        .fetch_all(&pool)
        .await
        .unwrap();
    let read: u64 = read.iter().map(|(_, n)| n.parse::<u64>().unwrap()).sum();
    assert!((500..2000).contains(&read), "{read} rows were read");
}

#[tokio::test]
async fn a_running_service_prunes_and_counts() {
    let db = e2e::shared::mariadb().await;
    let (tables, vhost) = (database(db).await, vhost(e2e::shared::rabbit().await).await);
    let pool = tables.pool().unwrap();
    insert(&pool, "old", 2, 31, Some(31)).await;
    insert(&pool, "young", 2, 29, Some(29)).await;
    let config = config(&tables.url, &vhost.amqp_url);
    assert_eq!(config.retention, Some(RETENTION));
    let app = App::serve(tables, config, Scripted::always(Act::Capture)).await;
    until("the old message to go", SOON, async || {
        app.metric("inbox_pruned_total").await > 0.0
    })
    .await;
    assert_eq!(count(&pool, "inbox").await, 1);
}

e2e::on_each_server!(pruning_gets_past_whatever_a_message_may_contain);
async fn pruning_gets_past_whatever_a_message_may_contain(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let pool = database(db).await.pool().unwrap();
    for number in 0..1200 {
        insert(&pool, &format!("old-{number}"), 2, 90, Some(90)).await;
    }
    let spoil = "SET SESSION sql_mode = ''; \
         UPDATE inbox SET processed_at = '0000-00-00' WHERE message_id LIKE 'old-_'; \
         UPDATE inbox SET processed_at = '9999-12-31' WHERE message_id LIKE 'old-1_'; \
         UPDATE inbox SET received_at = '0000-00-00' WHERE message_id LIKE 'old-2_'; \
         UPDATE inbox SET received_at = '9999-12-31' WHERE message_id LIKE 'old-3_'; \
         SET SESSION sql_mode = DEFAULT; \
         CREATE TABLE kept (message_id VARBINARY(128) NOT NULL, \
         FOREIGN KEY (message_id) REFERENCES inbox (message_id)); \
         INSERT INTO kept VALUES ('old-500'), ('old-900'), ('old-901')";
    sqlx::Executor::execute(&pool, sqlx::raw_sql(spoil))
        .await
        .unwrap();

    let (mut at, mut skipped) = (Round::default(), (0, 0));
    let mut deleted = 0;
    loop {
        let page = prune::page(&pool, RETENTION, &mut at).await.unwrap();
        deleted += page.deleted;
        skipped.0 += page.skipped.no_time;
        skipped.1 += page.skipped.refused;
        if page.next == Next::Rest {
            break;
        }
    }
    // Ten without a date of receipt, and three that are referred to.
    assert_eq!((deleted, skipped), (1200 - 10 - 3, (10, 3)));
}
