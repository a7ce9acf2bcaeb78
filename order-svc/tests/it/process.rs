//! The program as an operator meets it: settings, exit codes, signals, migrations.

use std::path::Path;

use e2e::Flavor;
use e2e::product::Process;
use e2e::wait::until;

use crate::app::SOON;

const LISTEN: [(&str, &str); 2] = [
    ("LISTEN_ADDR", "127.0.0.1:0"),
    ("ADMIN_ADDR", "127.0.0.1:0"),
];

fn start(args: &[&str], env: &[(&str, &str)]) -> Process {
    let program = Path::new(env!("CARGO_BIN_EXE_order-svc"));
    Process::spawn(program, args, &[&LISTEN, env].concat()).unwrap()
}

async fn exit_code(process: &Process) -> Option<i32> {
    process.wait_exit(SOON).await.unwrap().code()
}

#[tokio::test]
async fn wrong_configuration_is_one_line_with_the_fix_and_exit_64() {
    let db = e2e::shared::mariadb().await;
    let database = db.create_database().await.unwrap();
    let wrong_password = db.user_url("admin", "wrong", &database.name);
    let no_database = db.url("no_such_database");
    for (args, env, field) in [
        (vec!["run"], vec![], "DATABASE_URL: is not set; "),
        (
            vec!["run"],
            vec![("DATABASE_URL", "postgres://h/d")],
            "DATABASE_URL: ",
        ),
        (
            vec!["run"],
            vec![("DATABASE_URL", "mysql://h")],
            "DATABASE_URL: ",
        ),
        (
            vec!["run"],
            vec![("DATABASE_URL", wrong_password.as_str())],
            "DATABASE_URL: ",
        ),
        (
            vec!["run"],
            vec![("DATABASE_URL", no_database.as_str())],
            "DATABASE_URL: ",
        ),
        (
            vec!["run"],
            vec![("LISTEN_ADDR", "nowhere")],
            "--listen-addr",
        ),
        (vec!["run", "--no-such-flag"], vec![], "--no-such-flag"),
        (vec!["run"], vec![("LOG_FORMAT", "xml")], "--log-format"),
    ] {
        let process = start(&args, &env);
        assert_eq!(
            exit_code(&process).await,
            Some(64),
            "{env:?}\n{}",
            process.log()
        );
        let log = process.log();
        assert!(log.contains(field), "{field} is not in\n{log}");
        assert!(!log.contains("panicked"), "{log}");
        assert!(
            !log.contains("wrong@") && !log.contains(":wrong"),
            "a password is in\n{log}"
        );
    }
}

#[tokio::test]
async fn an_absent_database_is_waited_for_and_sigterm_ends_the_wait() {
    let port = e2e::port::free().unwrap();
    let url = format!("mysql://u:p@127.0.0.1:{port}/orders");
    let process = start(&["run"], &[("DATABASE_URL", &url)]);
    until("it to say what it waits for", SOON, async || {
        process.log().contains("waiting for the database")
    })
    .await;
    assert!(process.ended().unwrap().is_none());
    process.terminate().unwrap();
    assert_eq!(exit_code(&process).await, Some(0), "{}", process.log());
}

e2e::on_each_server!(migrating_is_idempotent_and_safe_when_several_start_at_once);
async fn migrating_is_idempotent_and_safe_when_several_start_at_once(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let database = db.create_database().await.unwrap();
    let env = [("DATABASE_URL", database.url.as_str())];
    let all: Vec<Process> = (0..4).map(|_| start(&["migrate"], &env)).collect();
    for process in &all {
        assert_eq!(exit_code(process).await, Some(0), "{}", process.log());
    }
    let again = start(&["migrate"], &env);
    assert_eq!(exit_code(&again).await, Some(0), "{}", again.log());
    let pool = database.pool().unwrap();
    let orders: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM orders")
        .fetch_one(&pool)
        .await
        .unwrap();
    let fence: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM outbox_fence")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!((orders, fence), (0, 1));
}

#[tokio::test]
async fn the_printed_sql_needs_no_database() {
    let process = start(&["migrate", "--print"], &[]);
    assert_eq!(exit_code(&process).await, Some(0), "{}", process.log());
    let sql = process.log();
    for table in ["`orders`", "`outbox`", "`idempotency_keys`"] {
        assert!(
            sql.contains(&format!("CREATE TABLE IF NOT EXISTS {table}")),
            "{table}"
        );
    }
}

#[tokio::test]
async fn before_the_tables_are_there_it_waits_for_them() {
    let db = e2e::shared::mariadb().await;
    let database = db.create_database().await.unwrap();
    let env = [("DATABASE_URL", database.url.as_str())];
    let process = start(&["run"], &env);
    until("it to name the fix", SOON, async || {
        process.log().contains("order-svc migrate")
    })
    .await;
    assert_eq!(exit_code(&start(&["migrate"], &env)).await, Some(0));
    until("it to be ready", SOON, async || {
        process.log().contains("database is up")
    })
    .await;
    process.terminate().unwrap();
    assert_eq!(exit_code(&process).await, Some(0), "{}", process.log());
}
