//! Tables beside the outbox that can't be used, and rows that can't be marked.

use std::time::{Duration, Instant};

use e2e::Flavor;
use e2e::rig::ops::{binlog_rights, readiness};
use e2e::rig::rows::assert_calm;
use e2e::rig::{QUEUE, Rig, SOON};
use sqlx::Executor as _;
use sqlx::mysql::MySqlConnection;

/// A companion with one of the columns that the relay needs.
const COMPANIONS: [(&str, &str); 6] = [
    ("outbox_attempts", "class"),
    ("operator_actions", "target"),
    ("outbox_bulk_rows", "row_key"),
    ("outbox_bulks", "state"),
    ("outbox_pauses", "scope"),
    ("outbox_fence", "n"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Damage {
    Dropped,
    Locked,
    ReadLocked,
    ReadOnly,
    NoRight,
    NoColumn,
    /// Of the fence.
    NoRow,
}

impl Damage {
    const ALL: [Self; 6] = [
        Self::Dropped,
        Self::Locked,
        Self::ReadLocked,
        Self::ReadOnly,
        Self::NoRight,
        Self::NoColumn,
    ];

    /// What does it, and what undoes it. Locks are the other connection's.
    fn statements(self, (table, column): (&str, &str), user: &str) -> (String, String) {
        let grant = format!("GRANT SELECT, INSERT, UPDATE, DELETE ON `{table}` TO '{user}'@'%'");
        match self {
            Self::Dropped => (
                format!("RENAME TABLE {table} TO {table}_away"),
                format!("RENAME TABLE {table}_away TO {table}"),
            ),
            Self::Locked => (format!("LOCK TABLES {table} WRITE"), "UNLOCK TABLES".into()),
            Self::ReadLocked => (format!("LOCK TABLES {table} READ"), "UNLOCK TABLES".into()),
            Self::ReadOnly => (
                format!("REVOKE INSERT, UPDATE, DELETE ON `{table}` FROM '{user}'@'%'"),
                grant,
            ),
            Self::NoRight => (
                format!("REVOKE SELECT, INSERT, UPDATE, DELETE ON `{table}` FROM '{user}'@'%'"),
                grant,
            ),
            Self::NoColumn => (
                format!("ALTER TABLE {table} RENAME COLUMN {column} TO away"),
                format!("ALTER TABLE {table} RENAME COLUMN away TO {column}"),
            ),
            Self::NoRow => (
                format!(
                    "CREATE TABLE its_row LIKE {table}; INSERT INTO its_row SELECT * FROM {table}; DELETE FROM {table}"
                ),
                format!("INSERT INTO {table} SELECT * FROM its_row; DROP TABLE its_row"),
            ),
        }
    }
}

/// A user with rights on each table alone, so that each can be taken away.
async fn user_by_table(rig: &mut Rig) -> String {
    let user = format!("c{}", &rig.database.name[20..]);
    let name = rig.database.name.clone();
    let tables = COMPANIONS.map(|(table, _)| table);
    let mut grants: Vec<String> = tables
        .iter()
        .chain(["outbox"].iter())
        .map(|table| format!("SELECT, INSERT, UPDATE, DELETE ON `{name}`.`{table}`"))
        .collect();
    grants.push(format!("{} ON *.*", binlog_rights(rig)));
    rig.db.create_user(&user, "pw", &grants).await.unwrap();
    let url = rig.db.user_url(&user, "pw", &name);
    rig.set("DATABASE_URL", &url);
    user
}

async fn insert_bad(rig: &Rig, key: &str) -> String {
    let id = uuid::Uuid::now_v7().to_string();
    rig.sql(&format!(
        "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, routing_key, \
         headers, payload) VALUES ('{id}', 'order', '{key}', 'order.placed.v1', 'order.pay', \
         'no JSON', '{{}}')"
    ))
    .await;
    id
}

/// What readiness says of a table that holds no record back.
fn shown(companion: &str, damage: Damage) -> Option<&'static str> {
    match (companion, damage) {
        // It is read and not written.
        ("outbox_pauses", Damage::ReadLocked | Damage::ReadOnly) => None,
        ("outbox_pauses", _) => Some("what is paused can't be read"),
        ("outbox_fence", _) => Some("the fence table can't be written"),
        _ => None,
    }
}

struct Round<'a> {
    rig: &'a Rig,
    user: &'a str,
    other: MySqlConnection,
    good: usize,
}

impl Round<'_> {
    /// A bad row, one behind it and good ones, while a companion can't be used and afterwards.
    async fn run(&mut self, companion: (&str, &str), damage: Damage) {
        let case = format!("{companion:?} {damage:?}");
        eprintln!("{:?} {case}", self.rig.db.flavor());
        let (doing, undoing) = damage.statements(companion, self.user);
        let doing = sqlx::raw_sql(sqlx::AssertSqlSafe(doing));
        self.other.execute(doing).await.unwrap();
        if companion.0 == "outbox_fence" {
            // The fence is used by a scan that catches up, which a statement on the outbox leads to.
            self.rig
                .sql("ALTER TABLE outbox COMMENT = 'the events'")
                .await;
        }
        let key = format!("bad {case}").replace(['"', '(', ')', ','], "");
        let bad = insert_bad(self.rig, &key).await;
        let behind = self.rig.insert_one(&key, "order.pay", b"{}").await;
        self.rig.insert(20).await;
        self.good += 20;
        let good = i64::try_from(self.good).unwrap();
        self.rig
            .wait_count("status = 2 AND aggregate_id LIKE 'k%'", good)
            .await;
        // Without its bulks a failure is recorded all the same.
        if matches!(companion.0, "outbox_attempts" | "operator_actions") {
            let refused = "outbox_relay_refused_records{kind=\"failure\"}";
            self.rig.wait_metric(refused, 1.0).await;
            assert_eq!(self.rig.state(&bad).await.status, 1, "{case}");
            assert_eq!(
                self.rig.state(&behind).await.status,
                1,
                "{case}: its key is held"
            );
            e2e::wait::until("readiness says so", SOON, async || {
                let (status, body) = readiness(self.rig).await.unwrap();
                status == 200 && body.to_string().contains("1 records of failures")
            })
            .await;
        }
        if let Some(says) = shown(companion.0, damage) {
            e2e::wait::until(&format!("readiness: {says}, {case}"), SOON, async || {
                let (status, body) = readiness(self.rig).await.unwrap();
                status == 200 && body.to_string().contains(says)
            })
            .await;
        }
        let undoing = sqlx::raw_sql(sqlx::AssertSqlSafe(undoing));
        self.other.execute(undoing).await.unwrap();
        self.rig.wait_status(&bad, 3).await;
        self.rig.wait_status(&behind, 2).await;
        self.rig.wait_phase("tailing").await;
    }
}

e2e::on_each_server!(a_companion_that_can_not_be_used_costs_no_copy_and_no_session);
async fn a_companion_that_can_not_be_used_costs_no_copy_and_no_session(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_MAX_ATTEMPTS", "1")
        .set("RELAY_SWEEP_INTERVAL", "500ms")
        .set("RELAY_POLL_INTERVAL", "100ms");
    let user = user_by_table(&mut rig).await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let other = rig.database.connect().await.unwrap();
    let mut round = Round {
        rig: &rig,
        user: &user,
        other,
        good: 0,
    };
    for companion in COMPANIONS {
        for damage in Damage::ALL {
            round.run(companion, damage).await;
        }
    }
    let rounds = COMPANIONS.len() * Damage::ALL.len();
    let sent = round.good + rounds;
    e2e::wait::until("all deliveries", SOON, async || deliveries.count() >= sent).await;
    assert_eq!((deliveries.count(), deliveries.twice()), (sent, 0));
    assert_eq!(
        rig.count("status = 3").await,
        i64::try_from(rounds).unwrap()
    );
    assert_calm(&relay);
}

e2e::on_each_server!(a_fence_without_its_row_costs_no_copy_and_no_session);
async fn a_fence_without_its_row_costs_no_copy_and_no_session(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_MAX_ATTEMPTS", "1")
        .set("RELAY_SWEEP_INTERVAL", "500ms")
        .set("RELAY_POLL_INTERVAL", "100ms");
    let user = user_by_table(&mut rig).await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let other = rig.database.connect().await.unwrap();
    let mut round = Round {
        rig: &rig,
        user: &user,
        other,
        good: 0,
    };
    round.run(("outbox_fence", "n"), Damage::NoRow).await;
    e2e::wait::until("all deliveries", SOON, async || deliveries.count() >= 21).await;
    assert_eq!((deliveries.count(), deliveries.twice()), (21, 0));
    assert_calm(&relay);
}

e2e::on_each_server!(a_row_that_can_not_be_marked_keeps_no_other_from_its_mark);
async fn a_row_that_can_not_be_marked_keeps_no_other_from_its_mark(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    rig.sql(
        "CREATE TRIGGER outbox_frozen BEFORE UPDATE ON outbox FOR EACH ROW \
         IF OLD.aggregate_id LIKE 'frozen%' AND NEW.status = 2 THEN \
         SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'this row is frozen'; END IF",
    )
    .await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let frozen = (0..30).map(|n| format!("frozen-{n}"));
    let good = (0..1500).map(|n| format!("good-{n}"));
    // One alone, and others side by side.
    let keys = good.clone().take(700).chain(frozen).chain(good.skip(700));
    rig.insert_all(keys.map(|key| (key, "order.pay"))).await;
    rig.wait_count("status = 2", 1500).await;
    let refused = "outbox_relay_refused_records{kind=\"mark\"}";
    rig.wait_metric(refused, 30.0).await;
    rig.insert_all((0..200).map(|n| (format!("later-{n}"), "order.pay")))
        .await;
    rig.wait_count("status = 2", 1700).await;
    rig.sql("DROP TRIGGER outbox_frozen").await;
    rig.wait_sent(1730).await;
    rig.wait_metric(refused, 0.0).await;
    assert_eq!((deliveries.count(), deliveries.twice()), (1730, 0));
    assert_calm(&relay);
}

e2e::on_each_server!(a_relay_that_may_not_mark_sends_nothing_twice_and_marks_once_it_may);
async fn a_relay_that_may_not_mark_sends_nothing_twice_and_marks_once_it_may(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_SWEEP_INTERVAL", "200ms");
    let user = user_by_table(&mut rig).await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let outbox = format!("`{}`.outbox", rig.database.name);
    db.execute(&format!("REVOKE UPDATE ON {outbox} FROM '{user}'@'%'"))
        .await
        .unwrap();
    rig.insert(50).await;
    rig.wait_metric("outbox_relay_refused_records{kind=\"mark\"}", 50.0)
        .await;
    // Several sweeps meet the rows, which are on their way still.
    let marked = Instant::now() + Duration::from_secs(2);
    e2e::wait::until("two seconds of sweeps", SOON, async || {
        Instant::now() > marked
    })
    .await;
    db.execute(&format!("GRANT UPDATE ON {outbox} TO '{user}'@'%'"))
        .await
        .unwrap();
    rig.wait_sent(50).await;
    assert_eq!((deliveries.count(), deliveries.twice()), (50, 0));
    assert_calm(&relay);
}
