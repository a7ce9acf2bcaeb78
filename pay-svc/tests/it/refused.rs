//! A database that answers and refuses: its table space is full, or one of the tables beside the inbox
//! is gone, locked, changed or closed to the account.

use std::sync::Arc;
use std::time::Duration;

use e2e::wait::until;
use e2e::{Db, DbOptions, Flavor, Vhost};
use outbox::inbox::Claim;
use reqwest::StatusCode;
use sqlx::{AssertSqlSafe, Executor as _, MySqlConnection, MySqlPool};
use uuid::Uuid;

use crate::app::{App, OPERATOR, SOON, classes, config, config_with, database, payments, vhost};
use crate::app::{inbox_row, until_status};
use crate::bench::Bench;
use crate::messages::{Outgoing, Publisher, order_payload, received};
use crate::provider::{Act, Scripted, handle};

const BIG: usize = 40_000;

/// An order whose body is as long as that: spaces may follow JSON.
fn big_order() -> Outgoing {
    let mut order = Outgoing::order(Uuid::now_v7());
    order.payload.resize(BIG, b' ');
    order
}

async fn run(pool: &MySqlPool, statement: &str) {
    let done = pool.execute(sqlx::raw_sql(AssertSqlSafe(statement.to_owned())));
    done.await
        .unwrap_or_else(|err| panic!("{statement}: {err}"));
}

/// What the queue holds, delivered or not.
async fn queued(vhost: &Vhost) -> u64 {
    let api = e2e::shared::rabbit().await.management().unwrap();
    let queue = api
        .queue(&vhost.name, "order-queue")
        .await
        .unwrap()
        .unwrap();
    queue.ready + queue.unacked
}

e2e::on_each_server!(a_full_table_space_cuts_no_message_and_acknowledges_none);
async fn a_full_table_space_cuts_no_message_and_acknowledges_none(flavor: Flavor) {
    const MESSAGES: i64 = 400;
    const MAX: &str = "--innodb-data-file-path=ibdata1:12M:autoextend:max";
    let args = vec![
        format!("{MAX}:20M"),
        "--innodb-file-per-table=0".to_owned(),
        "--innodb-autoextend-increment=1".to_owned(),
    ];
    let options = DbOptions {
        args,
        ..DbOptions::default()
    };
    let mut db = Db::start(flavor, options).await.unwrap();
    let tables = database(&db).await;
    let pool = tables.pool().unwrap();
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    for _ in 0..MESSAGES {
        publisher.publish(&big_order()).await;
    }
    let config = config_with(&tables.url, &vhost.amqp_url, &["--batch-max", "1"]);
    let app = App::serve(tables, config, Scripted::always(Act::Capture)).await;

    let says_full = async || {
        let (status, body) = app.readiness().await;
        let detail = body["conditions"]["consumer"]["detail"].to_string();
        status == StatusCode::SERVICE_UNAVAILABLE && detail.contains("is full")
    };
    until("the full table to be reported", SOON, says_full).await;
    // It stays so, whatever is tried meanwhile.
    for _ in 0..30 {
        assert!(says_full().await, "{flavor:?}: {:?}", app.readiness().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let whole = "SELECT COUNT(*), CAST(COALESCE(SUM(OCTET_LENGTH(payload) = ? AND \
                 headers LIKE '%occurred-at%' AND status <> 3), 0) AS SIGNED) FROM inbox";
    let stored = async || -> (i64, i64) {
        let query = sqlx::query_as(whole).bind(i64::try_from(BIG).unwrap());
        query.fetch_one(&pool).await.unwrap()
    };
    let (rows, whole) = stored().await;
    assert!(rows < MESSAGES, "{flavor:?}: the table space is not full");
    assert_eq!(rows, whole, "{flavor:?}: a message was cut");
    until("all others to be in the queue", SOON, async || {
        i64::try_from(queued(&vhost).await).unwrap() + stored().await.0 == MESSAGES
    })
    .await;

    db.restart_with(&[&format!("{MAX}:200M")]).await.unwrap();
    app.until_ready().await;
    app.until_paid(MESSAGES).await;
    assert_eq!(stored().await, (MESSAGES, MESSAGES), "{flavor:?}");
    until("an empty queue", SOON, async || queued(&vhost).await == 0).await;
    eprintln!("{flavor:?}: {rows} of {MESSAGES} stored before it was full");
}

/// How a table beside the inbox may be of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Dropped,
    Locked,
    ReadOnly,
    NoRight,
    NoColumn,
}

const DAMAGES: [Damage; 5] = [
    Damage::Dropped,
    Damage::Locked,
    Damage::ReadOnly,
    Damage::NoRight,
    Damage::NoColumn,
];

/// A service with an account of its own, and the connection of whoever does the damage.
struct World {
    app: App,
    vhost: Vhost,
    provider: Arc<Scripted>,
    publisher: Publisher,
    user: String,
    /// Locks tables.
    vandal: MySqlConnection,
}

const COMPANIONS: [(&str, &str); 5] = [
    ("inbox_attempts", "error"),
    ("payments", "outcome"),
    ("operator_actions", "actor"),
    ("inbox_bulks", "state"),
    ("inbox_bulk_rows", "row_key"),
];

impl World {
    async fn new(db: &Db) -> Self {
        let tables = database(db).await;
        let user = format!("p{}", &tables.name[tables.name.len() - 12..]);
        let tables_of = ["inbox"]
            .into_iter()
            .chain(COMPANIONS.map(|(table, _)| table));
        let grants = tables_of.map(|table| {
            format!(
                "SELECT, INSERT, UPDATE, DELETE ON `{}`.{table}",
                tables.name
            )
        });
        let grants: Vec<String> = grants.collect();
        db.create_user(&user, "pw", &grants).await.unwrap();
        let url = db.user_url(&user, "pw", &tables.name);
        let vhost = vhost(e2e::shared::rabbit().await).await;
        let provider = Scripted::always(Act::Capture);
        let more = ["--ignore-types", "stock.*"];
        let config = config_with(&url, &vhost.amqp_url, &more);
        let vandal = tables.connect().await.unwrap();
        let app = App::serve(tables, config, handle(&provider)).await;
        app.until_it_pays(&vhost).await;
        let publisher = Publisher::connect(&vhost.amqp_url).await;
        Self {
            app,
            vhost,
            provider,
            publisher,
            user,
            vandal,
        }
    }

    fn statements(&self, table: &str, column: &str, damage: Damage) -> (String, String) {
        let (user, name) = (&self.user, &self.app.database.name);
        let both = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        match damage {
            Damage::Dropped => (
                format!("RENAME TABLE {table} TO aside"),
                format!("RENAME TABLE aside TO {table}"),
            ),
            Damage::Locked => both(&format!("LOCK TABLES {table} WRITE"), "UNLOCK TABLES"),
            Damage::ReadOnly => both(&format!("LOCK TABLES {table} READ"), "UNLOCK TABLES"),
            Damage::NoRight => (
                format!("REVOKE INSERT, UPDATE ON `{name}`.{table} FROM '{user}'@'%'"),
                format!("GRANT INSERT, UPDATE ON `{name}`.{table} TO '{user}'@'%'"),
            ),
            Damage::NoColumn => (
                format!("ALTER TABLE {table} RENAME COLUMN {column} TO aside"),
                format!("ALTER TABLE {table} RENAME COLUMN aside TO {column}"),
            ),
        }
    }

    async fn vandalise(&mut self, statement: &str) {
        let done = self
            .vandal
            .execute(sqlx::raw_sql(AssertSqlSafe(statement.to_owned())));
        done.await
            .unwrap_or_else(|err| panic!("{statement}: {err}"));
    }

    /// A message that fails, which is to be recorded.
    async fn publish_bad(&self) -> String {
        let id = Uuid::now_v7().to_string();
        self.publisher
            .publish(&Outgoing::new(&id, "no order"))
            .await;
        id
    }

    async fn publish_good(&self) {
        for _ in 0..5 {
            self.publisher
                .publish(&Outgoing::order(Uuid::now_v7()))
                .await;
        }
    }

    async fn until_reported(&self, what: &str, of: &str) {
        until(what, SOON, async || {
            let (status, body) = self.app.readiness().await;
            assert_eq!(status, StatusCode::OK, "{body}");
            let reported = body["conditions"]["records"]["detail"].as_str();
            reported
                .is_some_and(|reported| reported.contains(what))
                .then_some(())
        })
        .await;
        let name = format!("inbox_records_refused_total{{record=\"{of}\"}}");
        assert!(self.app.metric(&name).await > 0.0, "{name}");
    }
}

e2e::on_each_server!(a_failure_that_can_not_be_recorded_is_its_rows_own_trouble);
async fn a_failure_that_can_not_be_recorded_is_its_rows_own_trouble(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut world = World::new(db).await;
    let mut paid = 1;
    for damage in DAMAGES {
        let (harm, repair) = world.statements("inbox_attempts", "error", damage);
        world.vandalise(&harm).await;
        let bad = world.publish_bad().await;
        world.publish_good().await;
        paid += 5;
        world.app.until_paid(paid).await;
        world.until_reported("failure refused", "failure").await;
        let row = inbox_row(&world.app.pool, &bad).await.unwrap();
        assert_eq!((row.status, row.attempts), (1, 0), "{damage:?}: {row:?}");
        until("the reason in the row", SOON, async || {
            let row = inbox_row(&world.app.pool, &bad).await.unwrap();
            row.last_error
                .is_some_and(|why| why.starts_with("not recorded: "))
        })
        .await;
        world.vandalise(&repair).await;
        until_status(&world.app.pool, &bad, 3).await;
        assert_eq!(
            classes(&world.app.pool, &bad).await,
            ["malformed"],
            "{damage:?}"
        );
        world.until_reported("all is recorded", "failure").await;
    }
}

e2e::on_each_server!(without_the_table_of_payments_the_rest_flows_and_no_order_is_charged_twice);
async fn without_the_table_of_payments_the_rest_flows_and_no_order_is_charged_twice(
    flavor: Flavor,
) {
    let db = e2e::shared::database(flavor).await;
    let mut world = World::new(db).await;
    let mut paid = 1;
    for damage in DAMAGES {
        let (harm, repair) = world.statements("payments", "outcome", damage);
        world.vandalise(&harm).await;
        world.publish_good().await;
        let bad = world.publish_bad().await;
        let mut foreign = Outgoing::new(&Uuid::now_v7().to_string(), "{}");
        foreign.event_type = Some("stock.moved.v1".to_owned());
        world.publisher.publish(&foreign).await;
        until_status(&world.app.pool, &bad, 3).await;
        until_status(&world.app.pool, foreign.message_id.as_deref().unwrap(), 2).await;
        world.until_reported("payment refused", "payment").await;
        assert_eq!(queued(&world.vhost).await, 0, "{damage:?}");
        world.vandalise(&repair).await;
        paid += 5;
        world.app.until_paid(paid).await;
        let charged = i64::try_from(world.provider.charged()).unwrap();
        assert_eq!(charged, payments(&world.app.pool).await, "{damage:?}");
        world.until_reported("all is recorded", "payment").await;
    }
}

e2e::on_each_server!(without_the_tables_of_bulks_or_the_audit_messages_are_paid_and_parked);
async fn without_the_tables_of_bulks_or_the_audit_messages_are_paid_and_parked(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut world = World::new(db).await;
    let mut paid = 1;
    for (table, column) in &COMPANIONS[2..] {
        for damage in DAMAGES {
            let (harm, repair) = world.statements(table, column, damage);
            world.vandalise(&harm).await;
            let bad = world.publish_bad().await;
            world.publish_good().await;
            paid += 5;
            world.app.until_paid(paid).await;
            let (status, body) = world.app.readiness().await;
            assert_eq!(status, StatusCode::OK, "{table} {damage:?}: {body}");
            world.vandalise(&repair).await;
            until_status(&world.app.pool, &bad, 3).await;
            let classes = classes(&world.app.pool, &bad).await;
            assert_eq!(classes, ["malformed"], "{table} {damage:?}");
        }
    }
}

e2e::on_each_server!(a_message_is_stored_parked_though_its_reason_can_not_be_recorded);
/// An unusable id parks a message as it is stored, which is recorded as well.
async fn a_message_is_stored_parked_though_its_reason_can_not_be_recorded(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut world = World::new(db).await;
    let mut paid = 1;
    for damage in DAMAGES {
        let (harm, repair) = world.statements("inbox_attempts", "error", damage);
        world.vandalise(&harm).await;
        let mut nameless = Outgoing::new("", &format!("{damage:?}"));
        nameless.message_id = None;
        world.publisher.publish(&nameless).await;
        world.publish_good().await;
        paid += 5;
        world.app.until_paid(paid).await;
        world.until_reported("parked refused", "parked").await;
        world.vandalise(&repair).await;
        let parked: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM inbox WHERE payload = ? AND status = 3 \
             AND last_error LIKE 'message_id is absent%'",
        )
        .bind(format!("{damage:?}").as_bytes())
        .fetch_one(&world.app.pool)
        .await
        .unwrap();
        assert_eq!(parked, 1, "{damage:?}");
    }
}

/// By hand nothing is stored without its audit.
#[tokio::test]
async fn a_message_put_in_by_hand_without_an_audit_is_answered_503() {
    let db = e2e::shared::either().await;
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let tables = database(db).await;
    let config = config(&tables.url, &vhost.amqp_url);
    let app = App::serve(tables, config, Scripted::always(Act::Capture)).await;
    app.until_it_pays(&vhost).await;
    run(&app.pool, "RENAME TABLE operator_actions TO aside").await;
    let put_in = async || {
        let payload = order_payload(Uuid::from_u128(7));
        let body =
            format!(r#"{{"message_id":"m-1","type":"order.placed.v1","payload":{payload}}}"#);
        let request = app.client.post(format!("{}/pay", app.url));
        let request = request
            .bearer_auth(OPERATOR)
            .header("content-type", "application/json")
            .body(body);
        request.send().await.unwrap()
    };
    let answer = put_in().await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(inbox_row(&app.pool, "m-1").await, None);
    app.until_it_pays(&vhost).await;
    run(&app.pool, "RENAME TABLE aside TO operator_actions").await;
    assert_eq!(put_in().await.status(), StatusCode::ACCEPTED);
    app.until_paid(3).await;
}

e2e::on_each_server!(a_message_whose_values_are_refused_keeps_what_the_table_takes);
/// Only what is wrong with the values cuts a message, and no more is lost of it than must be.
async fn a_message_whose_values_are_refused_keeps_what_the_table_takes(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let bench = Bench::new(db, Scripted::always(Act::Capture)).await;
    run(
        &bench.pool,
        "ALTER TABLE inbox MODIFY payload BLOB NOT NULL",
    )
    .await;
    let latin = "ALTER TABLE inbox MODIFY event_type VARCHAR(255) CHARACTER SET latin1";
    run(&bench.pool, latin).await;
    let mut long = received("long", &"x".repeat(100_000));
    long.headers = serde_json::json!({"traceparent": "00-1"});
    let mut foreign = received("foreign", "{}");
    foreign.event_type = Some("\u{2603}".to_owned());
    let good = received("good", &order_payload(Uuid::now_v7()));
    let claims = bench.store.take_in(vec![long, foreign, good], None).await;
    assert_eq!(claims.unwrap(), [Claim::First; 3]);
    let stored = async |id: &str| -> (u8, i64, String) {
        let query = sqlx::query_as(
            "SELECT status, CAST(OCTET_LENGTH(payload) AS SIGNED), headers FROM inbox \
             WHERE message_id = ?",
        );
        query.bind(id).fetch_one(&bench.pool).await.unwrap()
    };
    let headers = r#"{"traceparent":"00-1"}"#.to_owned();
    assert_eq!(stored("long").await, (3, 1024, headers));
    assert_eq!(stored("foreign").await, (3, 2, "{}".to_owned()));
    assert_eq!(stored("good").await.0, 1);
}

e2e::on_each_server!(what_is_not_the_datas_fault_stores_nothing);
/// A trigger's refusal says nothing about the message: it is the server that does not store.
async fn what_is_not_the_datas_fault_stores_nothing(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let bench = Bench::new(db, Scripted::always(Act::Capture)).await;
    for number in [
        1021, 1030, 1114, 1216, 1317, 1452, 1644, 1969, 3024, 3101, 3819, 4025,
    ] {
        run(&bench.pool, "DROP TRIGGER IF EXISTS refuse").await;
        let trigger = format!(
            "CREATE TRIGGER refuse BEFORE INSERT ON inbox FOR EACH ROW \
             SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = 'refused'"
        );
        run(&bench.pool, &trigger).await;
        let message = received("m-1", &"x".repeat(BIG));
        let stored = bench.store.take_in(vec![message], None).await;
        assert!(
            stored.unwrap_err().is_answer(),
            "{:?} {number}",
            db.flavor()
        );
        assert_eq!(inbox_row(&bench.pool, "m-1").await, None, "{number}");
    }
}

e2e::on_each_server!(a_message_of_which_nothing_can_be_stored_is_not_acknowledged);
/// Even its beginning, without a text, is refused for its values: it waits in the queue, and readiness
/// has the reason.
async fn a_message_of_which_nothing_can_be_stored_is_not_acknowledged(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let tables = database(db).await;
    let config = config(&tables.url, &vhost.amqp_url);
    let app = App::serve(tables, config, Scripted::always(Act::Capture)).await;
    app.until_it_pays(&vhost).await;
    let trigger = "CREATE TRIGGER refuse BEFORE INSERT ON inbox FOR EACH ROW \
                   SIGNAL SQLSTATE '22001' SET MYSQL_ERRNO = 1406, MESSAGE_TEXT = 'no room'";
    run(&app.pool, trigger).await;
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    publisher.publish(&Outgoing::order(Uuid::now_v7())).await;
    let says_why = async || {
        let (status, body) = app.readiness().await;
        let detail = body["conditions"]["consumer"]["detail"].to_string();
        status == StatusCode::SERVICE_UNAVAILABLE && detail.contains("no room")
    };
    until("the reason in readiness", SOON, says_why).await;
    for _ in 0..20 {
        assert!(says_why().await, "{:?}", app.readiness().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    until("the message in the queue", SOON, async || {
        queued(&vhost).await == 1
    })
    .await;
    run(&app.pool, "DROP TRIGGER refuse").await;
    app.until_ready().await;
    app.until_paid(2).await;
}
