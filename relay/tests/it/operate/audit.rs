//! `relay audit`: outbox and inbox on two servers of different kinds, with one of everything.

use e2e::rig::Rig;
use e2e::{Db, TestDatabase};
use serde_json::Value;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, MySqlPool};

use super::commands::command;

/// The inbox that pay-svc's migrations make.
const INBOX: &str = include_str!("../../../../migrations/payments/0001_inbox.sql");

struct Inbox {
    database: TestDatabase,
    pool: MySqlPool,
}

impl Inbox {
    async fn on(db: &'static Db) -> Self {
        let database = db.create_database().await.unwrap();
        let pool = database.pool().unwrap();
        pool.execute(INBOX).await.unwrap();
        Self { database, pool }
    }

    async fn insert(&self, message_id: &str, status: u8) {
        let insert =
            "INSERT INTO inbox (message_id, event_type, payload, status) VALUES (?, 't', '', ?)";
        sqlx::query(insert)
            .bind(message_id.as_bytes())
            .bind(status)
            .execute(&self.pool)
            .await
            .unwrap();
    }

    async fn sql(&self, statement: &str) {
        let statement = sqlx::raw_sql(AssertSqlSafe(statement));
        self.pool.execute(statement).await.unwrap();
    }
}

/// Exit code and JSON of an audit that does not wait longer than it must.
async fn audit(rig: &Rig, more: &[&str]) -> (i32, Value) {
    let quick = ["audit", "--json", "--recheck-after", "10ms"];
    let (code, output) = command(rig, &[&quick[..], more].concat()).await;
    let json = output.find('{').map(|at| &output[at..]).unwrap_or_default();
    let ledger = serde_json::from_str(json);
    (code, ledger.unwrap_or_else(|err| panic!("{err}: {output}")))
}

#[track_caller]
fn counts(ledger: &Value, wanted: &[(&str, u64)]) {
    for (name, count) in wanted {
        assert_eq!(ledger["counts"][name], *count, "{name}: {ledger:#}");
    }
}

#[tokio::test]
async fn an_audit_of_two_servers_finds_one_message_of_every_kind() {
    let servers = e2e::shared::databases().await;
    let others = servers.iter().rev();
    let pairs = servers.iter().zip(others);
    futures::future::join_all(pairs.map(|(outbox, inbox)| every_kind(outbox, inbox))).await;
}

async fn every_kind(outbox_server: &'static Db, inbox_server: &'static Db) {
    let mut rig = Rig::without_queue(outbox_server).await;
    let inbox = Inbox::on(inbox_server).await;
    rig.set("RELAY_AUDIT_INBOX_URL", &inbox.database.url);
    // More than two pages, all well.
    let ids = rig
        .insert_all((0..2500).map(|key| (format!("k{key}"), "order.pay")))
        .await;
    rig.sql("UPDATE outbox SET status = 2, sent_at = UTC_TIMESTAMP(6) - INTERVAL 1 MINUTE")
        .await;
    for part in ids.chunks(500) {
        let values: Vec<String> = part.iter().map(|id| format!("('{id}', '', 2)")).collect();
        let values = values.join(", ");
        let insert = format!("INSERT INTO inbox (message_id, payload, status) VALUES {values}");
        inbox.sql(&insert).await;
    }
    // The relay's own, which no inbox sees.
    for status in [1, 2] {
        rig.sql(&format!(
            "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, exchange, \
             routing_key, payload, status) VALUES ('relay-canary-{status}', 'relay', 'canary', \
             'relay.canary', '', 'relay-canary.{status}', '{{}}', {status})"
        ))
        .await;
    }
    let (code, ledger) = audit(&rig, &[]).await;
    assert_eq!((code, &ledger["balances"]), (0, &Value::Bool(true)));
    let all = [("outbox_rows", 2500), ("done", 2500), ("inbox_rows", 2500)];
    counts(&ledger, &all);

    let books = Books {
        rig: &rig,
        inbox: &inbox,
        ids: &ids,
    };
    books.what_balances().await;
    books.what_does_not().await;
    books.text().await;
    books.chosen().await;
    books.since().await;
}

struct Books<'a> {
    rig: &'a Rig,
    inbox: &'a Inbox,
    ids: &'a [String],
}

impl Books<'_> {
    async fn outbox(&self, change: &str, message: usize) {
        let id = &self.ids[message];
        let update = format!("UPDATE outbox SET {change} WHERE message_id = '{id}'");
        self.rig.sql(&update).await;
    }

    async fn received(&self, message: usize, status: u8) {
        let id = &self.ids[message];
        let update = format!("UPDATE inbox SET status = {status} WHERE message_id = '{id}'");
        self.inbox.sql(&update).await;
    }

    async fn what_balances(&self) {
        self.outbox("status = 4", 0).await;
        self.received(1, 4).await;
        self.inbox.insert("from-elsewhere", 2).await;
        let (code, ledger) = audit(self.rig, &[]).await;
        assert_eq!(code, 0, "{ledger:#}");
        let all = [("discarded", 2), ("inbox_only", 1), ("done", 2498)];
        counts(&ledger, &all);
    }

    async fn what_does_not(&self) {
        self.outbox("status = 1", 2).await;
        self.outbox("status = 3", 3).await;
        self.received(4, 1).await;
        self.received(5, 3).await;
        for lost in [6, 7] {
            let delete = format!("DELETE FROM inbox WHERE message_id = '{}'", self.ids[lost]);
            self.inbox.sql(&delete).await;
        }
        // Sent a moment ago: on its way.
        self.outbox("sent_at = UTC_TIMESTAMP(6)", 7).await;
        for old in [2, 6] {
            let hour = "created_at = created_at - INTERVAL 1 HOUR";
            self.outbox(hour, old).await;
        }
        let (code, ledger) = audit(self.rig, &[]).await;
        assert_eq!(code, 1);
        let all = [("missing", 1), ("waiting", 3), ("parked", 2), ("late", 2)];
        counts(&ledger, &all);
        let all = [("discarded", 2), ("inbox_only", 1), ("done", 2492)];
        counts(&ledger, &all);
        let first = &ledger["rows"][0];
        assert_eq!(first["kind"], "missing");
        assert_eq!(first["message_id"], *self.ids[6]);
        assert_eq!(first["late"], true);
        assert_eq!(first["key"], "k6");

        // The wait that is over makes it missing.
        let (_, ledger) = audit(self.rig, &["--grace", "0s", "--limit", "1"]).await;
        counts(&ledger, &[("missing", 2), ("waiting", 2)]);
        let listed = ledger["rows"].as_array().unwrap().len();
        assert_eq!(listed, 5, "{ledger:#}");
    }

    async fn text(&self) {
        let args = ["audit", "--recheck-after", "10ms", "--grace", "0s"];
        let args = [&args[..], &["--limit", "1"]].concat();
        let (code, output) = command(self.rig, &args).await;
        assert_eq!(code, 1, "{output}");
        for part in [
            "missing     2 sent, not in the inbox",
            "late, with the missing: 2",
            &self.ids[6],
            "LATE, 1h",
            "missing     … and 1 more",
            "DOES NOT BALANCE",
        ] {
            assert!(output.contains(part), "{part}: {output}");
        }
    }

    /// Those of one type, or of one route.
    async fn chosen(&self) {
        let other = format!(
            "UPDATE outbox SET event_type = 'other', routing_key = 'order.other' WHERE message_id = '{}'",
            self.ids[0]
        );
        self.rig.sql(&other).await;
        for only in [
            ["--type", "other"].as_slice(),
            &["--route", "order-exchange", "order.other"],
        ] {
            let (_, ledger) = audit(self.rig, only).await;
            counts(&ledger, &[("outbox_rows", 1), ("inbox_rows", 0)]);
            assert!(ledger["only"].as_str().unwrap().contains("other"));
        }
        let (_, ledger) = audit(self.rig, &["--type", "nobody's"]).await;
        counts(&ledger, &[("outbox_rows", 0)]);
    }

    /// Rows that were written and received before a time are not looked at.
    async fn since(&self) {
        let long_ago = "= '2020-01-01' WHERE status <> 4";
        let outbox = format!("UPDATE outbox SET created_at {long_ago}");
        self.rig.sql(&outbox).await;
        let inbox = format!("UPDATE inbox SET received_at {long_ago}");
        self.inbox.sql(&inbox).await;
        let (code, ledger) = audit(self.rig, &["--since", "2020-01-02T00:00:00Z"]).await;
        assert_eq!(code, 0, "{ledger:#}");
        let all = [("outbox_rows", 1), ("inbox_rows", 1), ("discarded", 1)];
        counts(&ledger, &all);
    }
}

#[tokio::test]
async fn a_row_that_passes_on_between_two_looks_is_no_alarm() {
    let db = e2e::shared::either().await;
    let mut rig = Rig::without_queue(db).await;
    let inbox = Inbox::on(db).await;
    rig.set("RELAY_AUDIT_INBOX_URL", &inbox.database.url);
    let pending = rig.insert_one("pending", "order.pay", b"{}").await;
    let sent = rig.insert_one("sent", "order.pay", b"{}").await;
    let sent_is = format!("WHERE message_id = '{sent}'");
    rig.sql(&format!(
        "UPDATE outbox SET status = 2, sent_at = UTC_TIMESTAMP(6) - INTERVAL 1 HOUR {sent_is}"
    ))
    .await;
    let args = ["audit", "--recheck-after", "3s"];
    let newest = newest_connection(&rig).await;
    let running = rig.command(&args);
    first_look_is_over(&rig, &inbox, newest).await;
    inbox.insert(&pending, 2).await;
    inbox.insert(&sent, 2).await;
    rig.sql("UPDATE outbox SET status = 2").await;
    let status = running.wait_exit(e2e::rig::SOON).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", running.log());
    assert!(running.log().contains("done        2"), "{}", running.log());
}

#[tokio::test]
async fn a_lost_message_whose_row_is_cleaned_up_between_two_looks_stays_lost() {
    let db = e2e::shared::either().await;
    let mut rig = Rig::without_queue(db).await;
    let inbox = Inbox::on(db).await;
    rig.set("RELAY_AUDIT_INBOX_URL", &inbox.database.url);
    rig.insert_one("lost", "order.pay", b"{}").await;
    rig.sql("UPDATE outbox SET status = 2, sent_at = UTC_TIMESTAMP(6) - INTERVAL 1 HOUR")
        .await;
    let newest = newest_connection(&rig).await;
    let running = rig.command(&["audit", "--recheck-after", "3s"]);
    first_look_is_over(&rig, &inbox, newest).await;
    rig.sql("DELETE FROM outbox").await;
    let status = running.wait_exit(e2e::rig::SOON).await.unwrap();
    assert_eq!(status.code(), Some(1), "{}", running.log());
    assert!(running.log().contains("missing     1"), "{}", running.log());
}

async fn newest_connection(rig: &Rig) -> u64 {
    let mut newest = MySqlConnection::connect(&rig.database.url).await.unwrap();
    let id = sqlx::query_scalar("SELECT CONNECTION_ID()");
    id.fetch_one(&mut newest).await.unwrap()
}

/// When both connections of the audit have rested for a second: those of the rig are older.
async fn first_look_is_over(rig: &Rig, inbox: &Inbox, newest: u64) {
    let resting = "SELECT COUNT(*) FROM information_schema.PROCESSLIST \
                   WHERE COMMAND = 'Sleep' AND TIME >= 1 AND ID > ? AND DB IN (?, ?)";
    e2e::wait::until("the first look", e2e::rig::SOON, async || {
        let count: i64 = sqlx::query_scalar(resting)
            .bind(newest)
            .bind(&rig.database.name)
            .bind(&inbox.database.name)
            .fetch_one(&rig.pool)
            .await
            .unwrap();
        count >= 2
    })
    .await;
}

#[tokio::test]
async fn the_url_of_the_inbox_may_be_in_a_file_and_is_never_shown() {
    let db = e2e::shared::either().await;
    let mut rig = Rig::without_queue(db).await;
    let (code, output) = command(&rig, &["audit"]).await;
    assert_eq!(code, 64, "{output}");
    assert!(
        output.contains("RELAY_AUDIT_INBOX_URL: is not set"),
        "{output}"
    );
    let (code, output) = command(&rig, &["audit", "--inbox", "http://x:secret@y/z"]).await;
    assert_eq!(code, 64, "{output}");
    assert!(
        output.contains("RELAY_AUDIT_INBOX_URL: has the scheme"),
        "{output}"
    );
    let port = e2e::port::free().unwrap();
    let away = format!("mysql://pay:secret@127.0.0.1:{port}/payments");
    let (code, output) = command(&rig, &["audit", "--inbox", &away]).await;
    assert_eq!(code, 1, "{output}");
    assert!(
        output.contains("the inbox at mysql://127.0.0.1"),
        "{output}"
    );
    assert!(!output.contains("secret"), "{output}");

    let inbox = Inbox::on(db).await;
    let file = std::env::temp_dir().join(format!("inbox-url-{}", inbox.database.name));
    std::fs::write(&file, format!("{}\n", inbox.database.url)).unwrap();
    rig.set("RELAY_AUDIT_INBOX_URL_FILE", file.to_str().unwrap());
    let (code, output) = command(&rig, &["audit"]).await;
    std::fs::remove_file(&file).unwrap();
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("BALANCES"), "{output}");
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_operate_audit_of_a_million_rows);
/// How long an audit of a million rows takes, one of a thousand of them missing.
#[cfg(feature = "long")]
async fn long_operate_audit_of_a_million_rows(flavor: e2e::Flavor) {
    let db = e2e::shared::database(flavor).await;
    million(db).await;
}

#[cfg(feature = "long")]
async fn million(db: &'static Db) {
    const ROWS: u32 = 1_000_000;
    let mut rig = Rig::without_queue(db).await;
    let inbox = Inbox::on(db).await;
    rig.set("RELAY_AUDIT_INBOX_URL", &inbox.database.url);
    let id = "CONCAT('0198f1c2-0000-7000-8000-', LPAD(HEX(n), 12, '0'))";
    for from in (0..ROWS).step_by(20_000) {
        let numbers = format!(
            "WITH RECURSIVE seq (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM seq WHERE i < 199), \
             numbers (n) AS (SELECT {from} + a.i * 200 + b.i FROM seq a JOIN seq b \
             WHERE a.i * 200 + b.i < 20000)"
        );
        rig.sql(&format!(
            "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, \
             routing_key, payload, status, created_at, sent_at) {numbers} \
             SELECT {id}, 'order', n, 'order.placed.v1', 'order.pay', REPEAT('x', 300), 2, \
             UTC_TIMESTAMP(6) - INTERVAL 1 HOUR, UTC_TIMESTAMP(6) - INTERVAL 1 HOUR \
             FROM numbers ORDER BY n"
        ))
        .await;
        let fill = format!(
            "INSERT INTO inbox (message_id, event_type, aggregate_id, payload, status) {numbers} \
             SELECT {id}, 'order.placed.v1', n, REPEAT('x', 300), 2 FROM numbers \
             WHERE n % 1000 > 0 ORDER BY n"
        );
        inbox.sql(&fill).await;
    }
    let begun = std::time::Instant::now();
    let audit = rig.command(&["audit", "--json"]);
    let status = audit.wait_exit(e2e::rig::LATER * 5).await.unwrap();
    let took = begun.elapsed();
    let log = audit.log();
    assert_eq!(status.code(), Some(1), "{log}");
    let ledger: Value = serde_json::from_str(&log[log.find("{\n").unwrap()..]).unwrap();
    counts(&ledger, &[("missing", 1000), ("done", 999_000)]);
    let figure = format!("{took:.1?}, of which 2 s wait");
    let name = format!(
        "relay audit, 1,000,000 rows, {:?}, debug build",
        db.flavor()
    );
    e2e::figures::record(&name, &figure);
}
