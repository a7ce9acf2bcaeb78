//! Somebody else's table under a name of ours: refused by every command, and left as it is.

use e2e::product::Process;
use e2e::rig::{LATER, Rig};
use e2e::{Db, Flavor};
use sqlx::{AssertSqlSafe, Executor as _, MySqlPool, Row as _};

/// Debezium's.
const OUTBOXEVENT: &str = "CREATE TABLE outboxevent (id CHAR(36) NOT NULL PRIMARY KEY, \
                           aggregatetype VARCHAR(255) NOT NULL, aggregateid VARCHAR(255) NOT NULL, \
                           type VARCHAR(255) NOT NULL, payload LONGTEXT)";

/// Every command that reads or writes the outbox.
const COMMANDS: [&[&str]; 14] = [
    &["migrate"],
    &["run"],
    &["status"],
    &["pause", "--reason", "r"],
    &["resume"],
    &["audit"],
    &[
        "replay",
        "--from",
        "2026-01-01T00:00:00Z",
        "--to",
        "2026-01-02T00:00:00Z",
        "--reason",
        "r",
    ],
    &["parked", "list"],
    &["parked", "groups"],
    &["parked", "show", "1"],
    &["parked", "retry", "1"],
    &["parked", "discard", "1", "--reason", "r"],
    &["parked", "bulk", "show"],
    &["parked", "actions"],
];

/// Every table of the database with its definition and its rows' checksum.
async fn everything(pool: &MySqlPool) -> Vec<(String, String, Option<i64>)> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT CAST(TABLE_NAME AS CHAR) FROM information_schema.TABLES \
         WHERE TABLE_SCHEMA = DATABASE() ORDER BY 1",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut tables = Vec::new();
    for name in names {
        let request = async |what: &str| {
            let statement = sqlx::raw_sql(AssertSqlSafe(format!("{what} `{name}`")));
            pool.fetch_one(statement).await.unwrap()
        };
        let shown = request("SHOW CREATE TABLE").await;
        let sum = request("CHECKSUM TABLE").await;
        tables.push((name, shown.get(1), sum.get(1)));
    }
    tables
}

/// A rig whose database has only what these statements make.
async fn rig_with(db: &'static Db, statements: &[&str]) -> Rig {
    let mut rig = Rig::without_queue(db).await;
    let name = db.create_database().await.unwrap();
    rig.pool = name.pool().unwrap();
    rig.set("DATABASE_URL", &name.url)
        .set("RELAY_AUDIT_INBOX_URL", &name.url);
    rig.database = name;
    for statement in statements {
        rig.sql(statement).await;
    }
    rig
}

/// The command ends with 64 and says all of `texts`; nothing in the database is another than before.
async fn refused_unchanged(rig: &Rig, command: &[&str], code: i32, texts: &[&str]) {
    let before = everything(&rig.pool).await;
    let process = rig.command(command);
    let status = process.wait_exit(LATER).await.unwrap();
    let log = process.log();
    assert_eq!(status.code(), Some(code), "{command:?}: {log}");
    for text in texts {
        assert!(log.contains(text), "{command:?}: {text:?} in {log}");
    }
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(everything(&rig.pool).await, before, "{command:?}");
}

e2e::on_each_server!(a_table_of_another_product_is_refused_by_every_command_and_not_touched);
async fn a_table_of_another_product_is_refused_by_every_command_and_not_touched(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let row = "INSERT INTO outboxevent VALUES (UUID(), 'order', '1', 'placed', '{}')";
    let mut rig = rig_with(db, &[OUTBOXEVENT, row]).await;
    rig.set("RELAY_OUTBOX_TABLE", "outboxevent");
    let texts = [
        "RELAY_OUTBOX_TABLE",
        "`outboxevent`",
        "message_id",
        "aggregatetype",
    ];
    for command in COMMANDS {
        refused_unchanged(&rig, command, 64, &texts).await;
    }
    refused_unchanged(&rig, &["check"], 1, &texts).await;
}

e2e::on_each_server!(a_companion_of_another_program_is_refused_before_anything_is_made);
async fn a_companion_of_another_program_is_refused_before_anything_is_made(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    for table in [
        "outbox_fence",
        "outbox_attempts",
        "outbox_pauses",
        "outbox_bulks",
        "outbox_bulk_rows",
        "operator_actions",
        "_outbox_migrations",
    ] {
        let strange = format!("CREATE TABLE `{table}` (height INT, width INT)");
        let rig = rig_with(db, &[&strange]).await;
        let texts = [table, "height"];
        refused_unchanged(&rig, &["migrate"], 64, &texts).await;
        refused_unchanged(&rig, &["parked", "list"], 64, &texts).await;
    }
}

e2e::on_each_server!(what_is_not_an_innodb_table_is_refused);
async fn what_is_not_an_innodb_table_is_refused(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::without_queue(db).await;
    rig.sql("CREATE VIEW seen AS SELECT * FROM outbox").await;
    rig.set("RELAY_OUTBOX_TABLE", "seen");
    for command in [&["migrate"], &["run"], &["status"]] {
        refused_unchanged(&rig, command, 64, &["`seen`", "VIEW"]).await;
    }
    let mut engines = vec!["MyISAM"];
    if db.flavor() == Flavor::MariaDb {
        engines.push("Aria");
    }
    for engine in engines {
        let rig = Rig::without_queue(db).await;
        rig.sql(&format!(
            "ALTER TABLE outbox ROW_FORMAT = DEFAULT, ENGINE = {engine}"
        ))
        .await;
        let texts = ["`outbox`", engine, "ENGINE = InnoDB"];
        refused_unchanged(&rig, &["migrate"], 64, &texts).await;
        refused_unchanged(&rig, &["run"], 64, &texts).await;
    }
}

e2e::on_each_server!(
    further_columns_with_defaults_and_tables_of_an_older_release_are_the_products_own
);
async fn further_columns_with_defaults_and_tables_of_an_older_release_are_the_products_own(
    flavor: Flavor,
) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::without_queue(db).await;
    rig.sql("ALTER TABLE outbox ADD COLUMN tenant INT NOT NULL DEFAULT 0")
        .await;
    // The first release made three tables and no more.
    for table in ["outbox_pauses", "outbox_bulks", "outbox_bulk_rows"] {
        rig.sql(&format!("DROP TABLE {table}")).await;
    }
    rig.sql("DELETE FROM _outbox_migrations WHERE version > 5")
        .await;
    let migrate = rig.command(&["migrate"]);
    let status = migrate.wait_exit(LATER).await.unwrap();
    assert!(status.success(), "{}", migrate.log());
    // By hand, with the SQL of `relay migrate --print`: nothing tracks it.
    rig.sql("DROP TABLE _outbox_migrations").await;
    let migrate = rig.command(&["migrate"]);
    let status = migrate.wait_exit(LATER).await.unwrap();
    assert!(status.success(), "{}", migrate.log());
}

e2e::on_each_server!(the_services_migrations_refuse_tables_of_other_programs);
/// The same for the tables of the two services.
async fn the_services_migrations_refuse_tables_of_other_programs(flavor: Flavor) {
    let tables = [
        ("order-svc", "orders"),
        ("order-svc", "idempotency_keys"),
        ("order-svc", "outbox"),
        ("pay-svc", "inbox"),
        ("pay-svc", "payments"),
        ("pay-svc", "operator_actions"),
    ];
    let db = e2e::shared::database(flavor).await;
    for (program, table) in tables {
        let strange = format!("CREATE TABLE `{table}` (height INT, width INT)");
        let rig = rig_with(db, &[&strange]).await;
        let before = everything(&rig.pool).await;
        let binary = e2e::product::binary(program).unwrap();
        let env = [("DATABASE_URL", &*rig.env["DATABASE_URL"])];
        let process = Process::spawn(&binary, &["migrate"], &env).unwrap();
        let status = process.wait_exit(LATER).await.unwrap();
        let log = process.log();
        assert_eq!(status.code(), Some(64), "{program}: {log}");
        for text in ["DATABASE_URL", table, "height"] {
            assert!(log.contains(text), "{program}: {text} in {log}");
        }
        assert_eq!(everything(&rig.pool).await, before, "{program} {table}");
    }
}

e2e::on_each_server!(the_services_do_not_run_on_a_table_of_another_program);
/// What is amiss with a table beside these holds up its own rows alone.
async fn the_services_do_not_run_on_a_table_of_another_program(flavor: Flavor) {
    let vhost = e2e::shared::rabbit().await.create_vhost().await.unwrap();
    let tables = [
        ("order-svc", "orders"),
        ("order-svc", "outbox"),
        ("pay-svc", "inbox"),
        ("pay-svc", "payments"),
    ];
    let db = e2e::shared::database(flavor).await;
    for (program, table) in tables {
        let strange = format!("CREATE TABLE `{table}` (height INT, width INT)");
        let rig = rig_with(db, &[&strange]).await;
        let before = everything(&rig.pool).await;
        let binary = e2e::product::binary(program).unwrap();
        let mut env = vec![
            ("DATABASE_URL", &*rig.env["DATABASE_URL"]),
            ("LISTEN_ADDR", "127.0.0.1:0"),
            ("ADMIN_ADDR", "127.0.0.1:0"),
        ];
        if program == "pay-svc" {
            env.push(("AMQP_URL", &vhost.amqp_url));
        }
        let process = Process::spawn(&binary, &["run"], &env).unwrap();
        let status = process.wait_exit(LATER).await.unwrap();
        let log = process.log();
        assert_eq!(status.code(), Some(64), "{program}: {log}");
        for text in ["DATABASE_URL", table, "height"] {
            assert!(log.contains(text), "{program}: {text} in {log}");
        }
        assert_eq!(everything(&rig.pool).await, before, "{program} {table}");
    }
}
