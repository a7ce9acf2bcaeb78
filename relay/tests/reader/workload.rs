//! Transactions of every kind that a server writes into its binlog differently.

use e2e::Flavor;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Executor};
use uuid::Uuid;

/// Runs all of it on one connection.
pub(crate) async fn run(connection: &mut MySqlConnection, statements: &[String]) {
    for statement in statements {
        let sql = sqlx::raw_sql(AssertSqlSafe(statement.as_str()));
        let short: String = statement.chars().take(200).collect();
        let done = connection.execute(sql).await;
        done.unwrap_or_else(|err| panic!("{short}: {err}"));
    }
}

/// An INSERT of one row; these columns differ from the others' values.
fn insert(columns: &[(&str, &str)]) -> String {
    let id = format!("'{}'", Uuid::now_v7());
    let mut row = vec![
        ("message_id", id.as_str()),
        ("aggregate_type", "'order'"),
        ("aggregate_id", "'k'"),
        ("event_type", "'order.placed.v1'"),
        ("routing_key", "'order.pay'"),
        ("payload", "'{}'"),
    ];
    for (name, value) in columns {
        row.retain(|(known, _)| known != name);
        row.push((name, value));
    }
    let names: Vec<&str> = row.iter().map(|(name, _)| *name).collect();
    let values: Vec<&str> = row.iter().map(|(_, value)| *value).collect();
    let (names, values) = (names.join(", "), values.join(", "));
    format!("INSERT INTO outbox ({names}) VALUES ({values})")
}

pub(crate) fn plain() -> String {
    insert(&[])
}

fn transaction(statements: impl IntoIterator<Item = String>, end: &str) -> Vec<String> {
    let begin = std::iter::once("BEGIN".to_owned());
    begin
        .chain(statements)
        .chain(std::iter::once(end.to_owned()))
        .collect()
}

fn own(statements: &[&str]) -> Vec<String> {
    statements.iter().map(|&sql| sql.to_owned()).collect()
}

/// Each kind once, and small.
pub(crate) fn essence(flavor: Flavor) -> Vec<String> {
    let mut all = own(&[
        "SET SESSION sql_mode = '', time_zone = '+09:30'",
        "CREATE TABLE journal (n INT) ENGINE = MyISAM",
        "CREATE TABLE zoo (n INT PRIMARY KEY, a BINARY(16), b VARBINARY(300), c BIT(11), \
         d ENUM('x', 'y'), e SET('p', 'q'), f DECIMAL(20, 6), g YEAR, h TIME(3), i DATE, \
         j TIMESTAMP(6) NULL, k FLOAT, l DOUBLE, m MEDIUMINT, o JSON, p GEOMETRY, q CHAR(200))",
        "INSERT INTO zoo VALUES (1, x'00ff', x'fe', b'101', 'y', 'p,q', -12.5, 1999, \
         '-12:34:56.789', '2024-02-29', '2024-02-29 12:00:00.000001', 1.5, -2.5, -3, '{\"a\": 1}', \
         ST_GeomFromText('POINT(1 2)'), 'ü')",
        "UPDATE zoo SET m = m + 1",
    ]);
    all.extend(values());
    all.extend(transactions());
    all.extend(xa());
    all.extend(own(&[
        "FLUSH BINARY LOGS",
        "SET SESSION binlog_format = 'STATEMENT'",
    ]));
    all.push(plain());
    all.extend(own(&[
        "SET SESSION binlog_format = 'ROW'",
        "SET SESSION binlog_row_image = 'MINIMAL'",
    ]));
    all.push(plain());
    all.extend(own(&[
        "SET SESSION binlog_row_image = 'FULL'",
        "SET GLOBAL binlog_row_metadata = 'FULL'",
    ]));
    all.push(plain());
    all.push("SET GLOBAL binlog_row_metadata = 'MINIMAL'".into());
    all.push("ALTER TABLE outbox ADD COLUMN tenant INT NULL".into());
    all.push(plain());
    all.push("ALTER TABLE outbox DROP COLUMN tenant".into());
    all.push("DROP TABLE zoo".into());
    if flavor == Flavor::MySql {
        // INSERT beside a MyISAM table: ROLLBACK TO is in the binlog then; MariaDB always has it.
        all.extend(rolled_back_to("INSERT INTO journal VALUES (1)"));
    }
    all.extend(rolled_back_to("DO 0"));
    // Above what a signed number holds; what follows goes on from there.
    all.push(insert(&[("id", "9223372036854775809")]));
    all.push(plain());
    all
}

/// Every column at its edges.
fn values() -> Vec<String> {
    let mut all = vec![
        insert(&[("headers", "NULL"), ("payload", "''")]),
        insert(&[("headers", "''"), ("payload", "x'00ff80c328fe'")]),
        insert(&[(
            "headers",
            "'{\"traceparent\": \"00-ab-cd-01\", \"ü\": \"😀\"}'",
        )]),
        insert(&[
            ("aggregate_type", "'注文'"),
            ("aggregate_id", "'e\u{301}\u{200d}👩‍🚀'"),
        ]),
        insert(&[
            ("aggregate_type", "''"),
            ("aggregate_id", "''"),
            ("event_type", "''"),
        ]),
        insert(&[
            ("exchange", "''"),
            ("routing_key", "''"),
            ("content_type", "''"),
        ]),
        insert(&[("message_id", "'short'"), ("aggregate_id", "'  spaces  '")]),
        insert(&[
            ("aggregate_type", "REPEAT('😀', 64)"),
            ("aggregate_id", "REPEAT('é', 128)"),
            ("event_type", "REPEAT('t', 128)"),
            ("exchange", "REPEAT('x', 127)"),
            ("routing_key", "REPEAT('r', 255)"),
            ("content_type", "REPEAT('c', 64)"),
        ]),
    ];
    for status in ["2", "3", "4", "0", "255"] {
        all.push(insert(&[("status", status)]));
    }
    for attempts in ["1", "2147483648", "4294967295"] {
        all.push(insert(&[("attempts", attempts), ("payload", "'deferred'")]));
    }
    for at in ["'2030-01-01 00:00:00.5'", "'1000-01-01'", "'0000-00-00'"] {
        all.push(insert(&[
            ("next_attempt_at", at),
            ("last_error", "'it failed'"),
        ]));
    }
    for at in [
        "'0000-00-00 00:00:00'",
        "'2024-00-00 00:00:00'",
        "'1000-01-01 00:00:00.000000'",
        "'9999-12-31 23:59:59.999999'",
        "'2024-02-29 12:34:56.000001'",
        "'1969-12-31 23:59:59.100000'",
        "'2038-01-19 03:14:08.000100'",
        "'0001-01-01 00:00:00.123456'",
    ] {
        all.push(insert(&[("created_at", at)]));
    }
    all
}

fn transactions() -> Vec<String> {
    let several = "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, \
                   routing_key, payload) SELECT CONCAT('m', @@pseudo_thread_id, '-', \
                   (@n := @n + 1)), 'order', 'k', 't', 'order.pay', REPEAT('p', @n) \
                   FROM information_schema.COLLATIONS LIMIT 20";
    let foreign = || "INSERT INTO journal VALUES (2)".to_owned();
    let zoo = || "UPDATE zoo SET m = m + 1".to_owned();
    let mut all = vec!["SET @n := 0".into(), several.into(), plain()];
    all.extend(transaction([plain(), zoo(), plain(), zoo()], "COMMIT"));
    all.extend(transaction([plain(), zoo()], "ROLLBACK"));
    all.extend(transaction([plain(), foreign(), plain()], "ROLLBACK"));
    all.extend(transaction([zoo()], "COMMIT"));
    for change in [
        "UPDATE outbox SET payload = 'changed' ORDER BY id DESC LIMIT 1",
        "UPDATE outbox SET status = 2 ORDER BY id LIMIT 3",
        "DELETE FROM outbox ORDER BY id DESC LIMIT 1",
        "REPLACE INTO outbox SELECT * FROM outbox ORDER BY id DESC LIMIT 1",
        "INSERT INTO outbox SELECT * FROM outbox ORDER BY id DESC LIMIT 1 \
         ON DUPLICATE KEY UPDATE payload = 'again'",
    ] {
        all.push(change.to_owned());
        all.extend(transaction([plain(), change.to_owned()], "COMMIT"));
    }
    let savepoint = own(&["SAVEPOINT here"]);
    let released = savepoint.into_iter().chain([plain()]);
    let released = released.chain(own(&["RELEASE SAVEPOINT here"]));
    all.extend(transaction(released, "COMMIT"));
    all
}

fn rolled_back_to(between: &str) -> Vec<String> {
    let savepoint = "SAVEPOINT `a b`".to_owned();
    let back = "ROLLBACK TO SAVEPOINT `a b`".to_owned();
    transaction(
        [plain(), savepoint, plain(), between.to_owned(), back],
        "COMMIT",
    )
}

fn xa() -> Vec<String> {
    let mut all = Vec::new();
    for (number, (what, end)) in [
        (plain(), "XA COMMIT"),
        (plain(), "XA ROLLBACK"),
        ("UPDATE zoo SET m = m + 1".to_owned(), "XA COMMIT"),
        ("UPDATE zoo SET m = m + 1".to_owned(), "XA ROLLBACK"),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("'global{number}', 'branch', 7");
        all.push(format!("XA START {id}"));
        all.push(what);
        all.push(format!("XA END {id}"));
        all.push(format!("XA PREPARE {id}"));
        all.push(format!("{end} {id}"));
    }
    all.push("XA START 'one'".into());
    all.push(plain());
    all.extend(own(&["XA END 'one'", "XA COMMIT 'one' ONE PHASE"]));
    all
}

/// Rows by the hundred, and large ones.
pub(crate) fn bulk(seed: u64) -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut all = vec!["SET SESSION sql_mode = ''".to_owned()];
    for _ in 0..60 {
        let rows = (0..rng.random_range(1..20)).map(|_| random(&mut rng));
        all.extend(transaction(rows.collect::<Vec<_>>(), "COMMIT"));
    }
    for bytes in [254, 255, 256, 257, 65_535, 65_536, 8 << 20] {
        let payload = format!("REPEAT('ab', {bytes} DIV 2)");
        all.push(insert(&[("payload", &payload)]));
    }
    // One packet to the last byte and around it; then one that comes in two parts.
    for bytes in [(16 << 20) - 300, 17 << 20, 33 << 20] {
        let payload = format!("REPEAT('x', {bytes})");
        all.push(insert(&[("payload", &payload)]));
        all.push(plain());
    }
    all
}

fn random(rng: &mut StdRng) -> String {
    let length = rng.random_range(0..400);
    let payload = hex(rng, length);
    let key: String = (0..rng.random_range(0..30))
        .map(|_| rng.random::<char>())
        .filter(|c| !matches!(c, '\'' | '\\' | '\0'))
        .collect();
    let at = format!(
        "'{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:06}'",
        rng.random_range(1..=9999),
        rng.random_range(1..=12),
        rng.random_range(1..=28),
        rng.random_range(0..24),
        rng.random_range(0..60),
        rng.random_range(0..60),
        rng.random_range(0..1_000_000),
    );
    let length = rng.random_range(0..300);
    let headers = match rng.random_range(0..3) {
        0 => "NULL".to_owned(),
        1 => format!("'{{\"a\": \"{}\"}}'", hex(rng, length)),
        _ => "'{}'".to_owned(),
    };
    insert(&[
        ("aggregate_id", &format!("'{key}'")),
        ("payload", &format!("x'{payload}'")),
        ("headers", &headers),
        ("created_at", &at),
        ("status", &rng.random_range(1..3).to_string()),
        ("attempts", if rng.random_ratio(1, 8) { "3" } else { "0" }),
    ])
}

fn hex(rng: &mut StdRng, length: usize) -> String {
    let mut bytes = vec![0; length];
    rng.fill_bytes(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
