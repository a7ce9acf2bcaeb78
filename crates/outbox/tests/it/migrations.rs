//! Applying the tables: twice, by many at once, by hand, under another name.

use sqlx::AssertSqlSafe;
use svc_kit::migrate::{self, Set};

use crate::{empty_database, sets};

/// How many migrations there are.
fn all() -> usize {
    let payments = sqlx::migrate!("../../migrations/payments");
    outbox::migrations().iter().count() + payments.iter().count()
}

#[tokio::test]
async fn a_second_run_finds_nothing_to_do() {
    for server in e2e::shared::databases().await {
        let url = empty_database(server).await;
        let first = migrate::run(&url, &sets()).await.unwrap();
        assert_eq!(
            (first.new.len(), first.already),
            (all(), 0),
            "{:?}",
            server.flavor()
        );
        let second = migrate::run(&url, &sets()).await.unwrap();
        assert_eq!(
            (second.new.len(), second.already),
            (0, all()),
            "{:?}",
            server.flavor()
        );
    }
}

#[tokio::test]
async fn of_many_that_start_at_once_each_migration_is_applied_by_one() {
    for server in e2e::shared::databases().await {
        let url = empty_database(server).await;
        let runs: Vec<_> = (0..6)
            .map(|_| {
                let url = url.clone();
                svc_kit::tasks::unit(async move { migrate::run(&url, &sets()).await.unwrap() })
            })
            .collect();
        let mut applied = 0;
        for run in runs {
            applied += run.await.unwrap().new.len();
        }
        assert_eq!(applied, all(), "{:?}", server.flavor());
        let fences: Vec<(u8, u64)> = sqlx::query_as("SELECT id, n FROM outbox_fence")
            .fetch_all(&url.pool(1))
            .await
            .unwrap();
        assert_eq!(fences, [(1, 0)], "{:?}", server.flavor());
    }
}

#[tokio::test]
async fn an_outbox_by_another_name_lives_beside_the_default() {
    for server in e2e::shared::databases().await {
        let url = empty_database(server).await;
        let billing = Set::new("billing", outbox::migrations_for("billing").unwrap());
        let [outbox, _] = sets();
        let applied = migrate::run(&url, &[outbox, billing]).await.unwrap();
        assert_eq!(
            applied.new.len(),
            2 * outbox::migrations().iter().count(),
            "{:?}",
            server.flavor()
        );
        let mut tables: Vec<String> = sqlx::query_scalar(
            "SELECT CAST(TABLE_NAME AS CHAR) FROM information_schema.TABLES \
             WHERE TABLE_SCHEMA = DATABASE()",
        )
        .fetch_all(&url.pool(1))
        .await
        .unwrap();
        tables.sort();
        let expected = [
            "_billing_migrations",
            "_outbox_migrations",
            "billing",
            "billing_attempts",
            "billing_bulk_rows",
            "billing_bulks",
            "billing_fence",
            "billing_pauses",
            "operator_actions",
            "outbox",
            "outbox_attempts",
            "outbox_bulk_rows",
            "outbox_bulks",
            "outbox_fence",
            "outbox_pauses",
        ];
        assert_eq!(tables, expected, "{:?}", server.flavor());
    }
}

#[tokio::test]
async fn what_print_writes_can_be_run_by_hand_and_migrated_over() {
    for server in e2e::shared::databases().await {
        let url = empty_database(server).await;
        let mut sql = Vec::new();
        migrate::print(&sets(), &mut sql).unwrap();
        let mut connection = url.connect().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(String::from_utf8(sql).unwrap()))
            .execute(&mut connection)
            .await
            .unwrap();
        let applied = migrate::run(&url, &sets()).await.unwrap();
        assert_eq!(
            (applied.new.len(), applied.already),
            (all(), 0),
            "{:?}",
            server.flavor()
        );
    }
}

#[tokio::test]
async fn the_place_of_a_null_is_kept_but_a_table_with_much_in_it_is_left_as_it_is() {
    for server in e2e::shared::databases().await {
        let url = empty_database(server).await;
        let sets = [Set::new(
            "billing",
            outbox::migrations_for("billing").unwrap(),
        )];
        migrate::run(&url, &sets).await.unwrap();
        let pool = url.pool(1);
        assert_eq!(
            row_format(&pool).await,
            "redundant",
            "{:?}",
            server.flavor()
        );
        for statement in [
            "ALTER TABLE billing ROW_FORMAT = DYNAMIC",
            "INSERT INTO billing (message_id, aggregate_type, aggregate_id, event_type, routing_key, \
             payload) SELECT UUID(), '', '', '', '', REPEAT('x', 100000) FROM \
             information_schema.COLUMNS LIMIT 400",
            // Both servers' statistics of a table may be old.
            "ANALYZE TABLE billing",
            "DELETE FROM _billing_migrations WHERE version = 10",
        ] {
            sqlx::raw_sql(statement).execute(&pool).await.unwrap();
        }
        assert_eq!(migrate::run(&url, &sets).await.unwrap().new.len(), 1);
        assert_eq!(row_format(&pool).await, "dynamic", "{:?}", server.flavor());
    }
}

async fn row_format(pool: &sqlx::MySqlPool) -> String {
    sqlx::query_scalar(
        "SELECT LOWER(CAST(ROW_FORMAT AS CHAR)) FROM information_schema.TABLES \
         WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'billing'",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}
