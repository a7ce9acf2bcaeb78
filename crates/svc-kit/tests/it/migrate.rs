//! Applying migrations to real servers.

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Executor as _, SqlSafeStr as _};
use svc_kit::migrate::{MigrateError, Set, run};

use crate::empty_database;

/// `INSERT` is not idempotent: applied twice, it shows.
const STATEMENTS: [&str; 3] = [
    "CREATE TABLE t (n INT)",
    "INSERT INTO t VALUES (1)",
    "INSERT INTO t VALUES (2)",
];

fn set(statements: &[&'static str]) -> Set {
    let migrations = (1..)
        .zip(statements)
        .map(|(version, sql)| {
            let (name, sql) = (format!("step {version}").into(), sql.into_sql_str());
            Migration::new(version, name, MigrationType::Simple, sql, false)
        })
        .collect();
    Set::new("steps", Migrator::with_migrations(migrations))
}

#[tokio::test]
async fn of_two_that_start_at_once_one_migrates_and_the_other_finds_it_done() {
    for server in e2e::shared::databases().await {
        let url = empty_database(server).await;
        let sets = [set(&STATEMENTS)];
        let (a, b) = tokio::join!(run(&url, &sets), run(&url, &sets));
        let mut new = [a.unwrap().new, b.unwrap().new];
        new.sort();
        let expected = ["steps 1 step 1", "steps 2 step 2", "steps 3 step 3"].map(str::to_owned);
        assert_eq!(new, [vec![], expected.to_vec()], "{:?}", server.flavor());
        let rows: Vec<i32> = sqlx::query_scalar("SELECT n FROM t ORDER BY n")
            .fetch_all(&url.pool(1))
            .await
            .unwrap();
        assert_eq!(rows, [1, 2], "{:?}", server.flavor());
    }
}

#[tokio::test]
async fn an_older_program_leaves_newer_migrations_alone() {
    for server in e2e::shared::databases().await {
        let url = empty_database(server).await;
        run(&url, &[set(&STATEMENTS)]).await.unwrap();
        let older = run(&url, &[set(&STATEMENTS[..2])]).await.unwrap();
        assert_eq!(
            (older.new.len(), older.already),
            (0, 2),
            "{:?}",
            server.flavor()
        );
    }
}

#[tokio::test]
async fn a_migration_that_was_cut_short_says_how_to_go_on() {
    for server in e2e::shared::databases().await {
        let url = empty_database(server).await;
        run(&url, &[set(&STATEMENTS)]).await.unwrap();
        let pool = url.pool(1);
        pool.execute("UPDATE _steps_migrations SET success = FALSE WHERE version = 3")
            .await
            .unwrap();
        let err = run(&url, &[set(&STATEMENTS)]).await.unwrap_err();
        assert!(
            matches!(err, MigrateError::CutShort { version: 3, .. }),
            "{err:?}"
        );
        let fix = "DELETE FROM _steps_migrations WHERE version = 3";
        assert!(err.to_string().contains(fix), "{err}");
    }
}

#[tokio::test]
async fn a_statement_that_fails_names_its_set_and_leaves_the_others_out() {
    for server in e2e::shared::databases().await {
        let url = empty_database(server).await;
        let err = run(
            &url,
            &[set(&["CREATE TABLE t (n INT)", "NONSENSE", "SELECT 1"])],
        )
        .await;
        let err = anyhow::Error::from(err.unwrap_err());
        let text = format!("{err:#}");
        assert!(text.starts_with("migrating steps failed: "), "{text}");
        assert!(text.contains("NONSENSE"), "{text}");
    }
}
