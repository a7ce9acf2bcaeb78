//! The program as an operator meets it: settings, exit codes, signals, migrations.

use std::path::Path;

use e2e::Flavor;
use e2e::product::Process;
use e2e::wait::until;
use sqlx::MySqlPool;

use crate::app::{SOON, database, payments, vhost};
use crate::messages::{Outgoing, Publisher};

const LISTEN: [(&str, &str); 2] = [
    ("LISTEN_ADDR", "127.0.0.1:0"),
    ("ADMIN_ADDR", "127.0.0.1:0"),
];

pub(crate) fn start(args: &[&str], env: &[(&str, &str)]) -> Process {
    let program = Path::new(env!("CARGO_BIN_EXE_pay-svc"));
    Process::spawn(program, args, &[&LISTEN, env].concat()).unwrap()
}

pub(crate) async fn exit_code(process: &Process) -> Option<i32> {
    process.wait_exit(SOON).await.unwrap().code()
}

/// Rows that a worker has claimed and not settled.
async fn claimed(pool: &MySqlPool) -> i64 {
    sqlx::query_scalar(
        "SELECT COUNT(*) FROM inbox WHERE status = 1 AND next_attempt_at IS NOT NULL",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn wrong_configuration_is_one_line_with_the_fix_and_exit_64() {
    let db = e2e::shared::mariadb().await;
    let rabbit = e2e::shared::rabbit().await;
    let (tables, vhost) = (database(db).await, vhost(rabbit).await);
    let wrong_user = rabbit.user_url("admin", "wrong", &vhost.name);
    let no_vhost = rabbit.amqp_url("no-such-vhost");
    let wrong_password = db.user_url("admin", "wrong", &tables.name);
    let no_database = db.url("no_such_database");
    for (name, value, field) in [
        ("DATABASE_URL", "", "DATABASE_URL: is not set; "),
        ("DATABASE_URL", "mysql://h", "DATABASE_URL: "),
        ("DATABASE_URL", wrong_password.as_str(), "DATABASE_URL: "),
        ("DATABASE_URL", no_database.as_str(), "DATABASE_URL: "),
        ("AMQP_URL", "", "AMQP_URL: is not set; "),
        ("AMQP_URL", "http://h", "AMQP_URL: "),
        ("AMQP_URL", wrong_user.as_str(), "AMQP_URL: "),
        ("AMQP_URL", no_vhost.as_str(), "AMQP_URL: "),
        ("AMQP_CA_FILE", "/no/such/file", "AMQP_CA_FILE: "),
        ("OPS_TOKENS", "ann", "OPS_TOKENS: "),
        (
            "PAY_PROVIDER",
            "http",
            "PAY_PROVIDER_URL: is not set, PAY_PROVIDER=http needs it; ",
        ),
        (
            "PAY_SIMULATED_FAILURE_RATE",
            "2",
            "PAY_SIMULATED_FAILURE_RATE: ",
        ),
        ("PAY_BACKOFF_MIN", "soon", "--backoff-min"),
        ("PAY_RETENTION", "14d", "PAY_RETENTION: 14d is too short"),
        (
            "PAY_REPLAY_WINDOW",
            "25d",
            "PAY_REPLAY_WINDOW (25d) + 7d in the broker's queue + PAY_MAX_AGE (1d) = 33d",
        ),
        ("PAY_IGNORE_TYPES", "order.*", "PAY_IGNORE_TYPES: "),
    ] {
        let mut env = vec![
            ("DATABASE_URL", tables.url.as_str()),
            ("AMQP_URL", &vhost.amqp_url),
        ];
        env.retain(|(known, _)| *known != name);
        env.push((name, value));
        let process = start(&["run"], &env);
        assert_eq!(
            exit_code(&process).await,
            Some(64),
            "{name}={value}\n{}",
            process.log()
        );
        let log = process.log();
        assert!(log.contains(field), "{field} is not in\n{log}");
        assert!(
            !log.contains("panicked") && !log.contains(":wrong"),
            "{log}"
        );
    }
}

#[tokio::test]
async fn servers_that_are_absent_are_waited_for_and_sigterm_ends_the_wait() {
    let port = e2e::port::free().unwrap();
    let db_url = format!("mysql://u:p@127.0.0.1:{port}/payments");
    let amqp_url = format!("amqp://u:p@127.0.0.1:{port}/%2F");
    let process = start(
        &["run"],
        &[("DATABASE_URL", &db_url), ("AMQP_URL", &amqp_url)],
    );
    for what in ["waiting for the database", "waiting for the broker"] {
        until(what, SOON, async || process.log().contains(what)).await;
    }
    assert!(process.ended().unwrap().is_none());
    process.terminate().unwrap();
    assert_eq!(exit_code(&process).await, Some(0), "{}", process.log());
}

e2e::on_each_server!(sigterm_finishes_what_is_in_hand_and_exits_0);
async fn sigterm_finishes_what_is_in_hand_and_exits_0(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let (tables, vhost) = (database(db).await, vhost(e2e::shared::rabbit().await).await);
    let pool = tables.pool().unwrap();
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    for _ in 0..20 {
        publisher
            .publish(&Outgoing::order(uuid::Uuid::now_v7()))
            .await;
    }
    let env = [
        ("DATABASE_URL", tables.url.as_str()),
        ("AMQP_URL", vhost.amqp_url.as_str()),
        ("PAY_SIMULATED_LATENCY", "700ms"),
    ];
    let process = start(&["run"], &env);
    // All 20 are claimed, that is their charges are under way, when the signal comes.
    until("the claims", SOON, async || claimed(&pool).await == 20).await;
    process.terminate().unwrap();
    assert_eq!(exit_code(&process).await, Some(0), "{}", process.log());
    assert_eq!(payments(&pool).await, 20);
}

/// What can't be finished in time is left to its lease, and the exit code says so.
#[tokio::test]
async fn a_drain_is_cut_short_by_its_deadline_or_a_second_signal() {
    for (deadline, signals) in [("500ms", 1), ("10m", 2)] {
        let db = e2e::shared::mariadb().await;
        let (tables, vhost) = (database(db).await, vhost(e2e::shared::rabbit().await).await);
        let pool = tables.pool().unwrap();
        let publisher = Publisher::connect(&vhost.amqp_url).await;
        publisher
            .publish(&Outgoing::order(uuid::Uuid::now_v7()))
            .await;
        let env = [
            ("DATABASE_URL", tables.url.as_str()),
            ("AMQP_URL", vhost.amqp_url.as_str()),
            ("PAY_SIMULATED_LATENCY", "60s"),
            ("PAY_PROVIDER_TIMEOUT", "120s"),
            ("PAY_DRAIN_TIMEOUT", deadline),
        ];
        let process = start(&["run"], &env);
        until("the claim", SOON, async || claimed(&pool).await == 1).await;
        process.terminate().unwrap();
        until("the drain", SOON, async || {
            process.log().contains("draining")
        })
        .await;
        if signals == 2 {
            process.terminate().unwrap();
        }
        assert_eq!(exit_code(&process).await, Some(1), "{}", process.log());
        assert_eq!(payments(&pool).await, 0);
    }
}

e2e::on_each_server!(a_process_killed_while_it_charges_leaves_the_order_to_the_next);
/// C5 with a real process and a real SIGKILL.
async fn a_process_killed_while_it_charges_leaves_the_order_to_the_next(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let (tables, vhost) = (database(db).await, vhost(e2e::shared::rabbit().await).await);
    let pool = tables.pool().unwrap();
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    publisher
        .publish(&Outgoing::order(uuid::Uuid::now_v7()))
        .await;
    let urls = [
        ("DATABASE_URL", tables.url.as_str()),
        ("AMQP_URL", vhost.amqp_url.as_str()),
    ];
    let slow = [
        ("PAY_SIMULATED_LATENCY", "60s"),
        ("PAY_PROVIDER_TIMEOUT", "120s"),
    ];
    let victim = start(&["run"], &[&urls[..], &slow].concat());
    until("the claim", SOON, async || claimed(&pool).await == 1).await;
    victim.kill().unwrap();

    let next = start(&["run"], &urls);
    // The lease of the dead: ended by hand, for it is two minutes long.
    sqlx::query("UPDATE inbox SET next_attempt_at = UTC_TIMESTAMP(6)")
        .execute(&pool)
        .await
        .unwrap();
    until("the payment", SOON, async || payments(&pool).await == 1).await;
    next.terminate().unwrap();
    assert_eq!(exit_code(&next).await, Some(0), "{}", next.log());
    assert_eq!(payments(&pool).await, 1);
}

/// The library reads them by recursion: with a stack of 2 MiB this many ended the process, again at each
/// redelivery.
#[tokio::test]
async fn a_message_with_deeply_nested_headers_is_stored_like_any_other() {
    let db = e2e::shared::mariadb().await;
    let (tables, vhost) = (database(db).await, vhost(e2e::shared::rabbit().await).await);
    let pool = tables.pool().unwrap();
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    let mut message = Outgoing::order(uuid::Uuid::now_v7());
    message.depth = 1_000;
    publisher.publish(&message).await;
    let urls = [
        ("DATABASE_URL", tables.url.as_str()),
        ("AMQP_URL", vhost.amqp_url.as_str()),
    ];
    let process = start(&["run"], &urls);
    until("the payment or the end", SOON, async || {
        payments(&pool).await == 1 || process.ended().unwrap().is_some()
    })
    .await;
    assert_eq!(payments(&pool).await, 1, "{}", process.log());
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
    assert_eq!(payments(&database.pool().unwrap()).await, 0);
}

#[tokio::test]
async fn the_printed_sql_needs_no_database() {
    let process = start(&["migrate", "--print"], &[]);
    assert_eq!(exit_code(&process).await, Some(0), "{}", process.log());
    let sql = process.log();
    for table in ["`inbox`", "`payments`", "`inbox_attempts`"] {
        assert!(
            sql.contains(&format!("CREATE TABLE IF NOT EXISTS {table}")),
            "{table}"
        );
    }
}
