//! Requests that are sent twice.

use std::collections::HashSet;
use std::time::Duration;

use e2e::Flavor;
use e2e::wait::until;
use futures::future::join_all;
use order_svc::prune::{self, Round};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use svc_kit::retention::Next;

use crate::app::{App, SOON, config, migrate, order, problem_code};

async fn post_with_key(app: &App, key: &str, body: &Value) -> Response {
    let request = app.client.post(format!("{}/orders", app.url));
    request
        .header("Idempotency-Key", key)
        .json(body)
        .send()
        .await
        .unwrap()
}

e2e::on_each_server!(the_same_key_and_order_get_the_same_answer_and_one_order);
async fn the_same_key_and_order_get_the_same_answer_and_one_order(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    let longest = "~".repeat(128);
    for key in ["!", &longest] {
        let first = post_with_key(&app, key, &order()).await;
        let again = post_with_key(&app, key, &order()).await;
        assert_eq!(
            (first.status(), again.status()),
            (StatusCode::CREATED, StatusCode::CREATED)
        );
        assert_eq!(first.headers()["location"], again.headers()["location"]);
        assert_eq!(first.bytes().await.unwrap(), again.bytes().await.unwrap());
    }
    assert_eq!(
        (app.count("orders").await, app.count("outbox").await),
        (2, 2)
    );
    assert_eq!(app.metric("orders_placed_total ").await, Some(2.0));
}

e2e::on_each_server!(the_same_key_with_another_order_is_refused);
async fn the_same_key_with_another_order_is_refused(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    post_with_key(&app, "k", &order()).await;
    let other = json!({"customer_id": "c-17", "amount_minor": 2000, "currency": "EUR"});
    let (status, code) = problem_code(post_with_key(&app, "k", &other).await).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(code, "idempotency_key_reused");
    assert_eq!(
        (app.count("orders").await, app.count("outbox").await),
        (1, 1)
    );
}

e2e::on_each_server!(of_many_at_once_exactly_one_places_the_order);
async fn of_many_at_once_exactly_one_places_the_order(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    for round in 0..5 {
        let (key, body) = (format!("round-{round}"), order());
        let answers = join_all((0..100).map(|_| post_with_key(&app, &key, &body))).await;
        let mut bodies = HashSet::new();
        for answer in answers {
            assert_eq!(answer.status(), StatusCode::CREATED);
            bodies.insert(answer.text().await.unwrap());
        }
        assert_eq!(bodies.len(), 1);
        assert_eq!(app.count("orders").await, round + 1);
        assert_eq!(app.count("outbox").await, round + 1);
    }
}

e2e::on_each_server!(a_key_is_free_again_when_its_order_was_not_placed);
/// The one that was first and failed must not take the key with it.
async fn a_key_is_free_again_when_its_order_was_not_placed(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    sqlx::query("RENAME TABLE outbox TO hidden_outbox")
        .execute(&app.pool)
        .await
        .unwrap();
    let body = order();
    let failed = join_all((0..10).map(|_| post_with_key(&app, "k", &body))).await;
    for answer in failed {
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    sqlx::query("RENAME TABLE hidden_outbox TO outbox")
        .execute(&app.pool)
        .await
        .unwrap();
    assert_eq!(app.count("idempotency_keys").await, 0);
    assert_eq!(
        post_with_key(&app, "k", &order()).await.status(),
        StatusCode::CREATED
    );
    assert_eq!(
        (app.count("orders").await, app.count("outbox").await),
        (1, 1)
    );
}

#[tokio::test]
async fn a_key_that_cannot_be_one_is_refused() {
    let app = App::start(e2e::shared::mariadb().await).await;
    let too_long = "k".repeat(129);
    for key in ["", "a b", "tab\tbed", &too_long] {
        let (status, code) = problem_code(post_with_key(&app, key, &order()).await).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{key:?}");
        assert_eq!(code, "bad_idempotency_key");
    }
    let url = format!("{}/orders", app.url);
    let twice = app
        .client
        .post(url)
        .header("Idempotency-Key", "a")
        .header("Idempotency-Key", "b");
    let answer = twice.json(&order()).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(app.count("orders").await, 0);
}

e2e::on_each_server!(old_keys_are_deleted_and_young_ones_stay);
/// With the rights of README.md: DELETE on the keys alone.
async fn old_keys_are_deleted_and_young_ones_stay(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let database = db.create_database().await.unwrap();
    migrate(&database).await;
    let name = &database.name;
    let user = format!("o{}", &name[name.len() - 12..]);
    let grants = [
        format!("SELECT, INSERT ON `{name}`.*"),
        format!("DELETE ON `{name}`.idempotency_keys"),
    ];
    db.create_user(&user, "pw", &grants).await.unwrap();
    let mut config = config(&db.user_url(&user, "pw", name));
    config.key_retention = Duration::from_hours(24);
    // More than a page of old ones, and some that are an hour short of it.
    let pool = database.pool().unwrap();
    for (prefix, hours, count) in [("old", 25, 1_100), ("young", 23, 40)] {
        let keys = vec!["(?, REPEAT('x', 32), '', UTC_TIMESTAMP(6) - INTERVAL ? HOUR)"; count];
        let sql = format!("INSERT INTO idempotency_keys VALUES {}", keys.join(", "));
        let mut insert = sqlx::query(sqlx::AssertSqlSafe(sql));
        for key in 0..count {
            insert = insert.bind(format!("{prefix}-{key}")).bind(hours);
        }
        insert.execute(&pool).await.unwrap();
    }
    // More than a page of them without a date that is in a calendar.
    let spoil = "SET SESSION sql_mode = ''; UPDATE idempotency_keys \
         SET created_at = '0000-00-00' WHERE idempotency_key LIKE 'old-___'; \
         SET SESSION sql_mode = DEFAULT";
    sqlx::Executor::execute(&pool, sqlx::raw_sql(spoil))
        .await
        .unwrap();

    let app = App::serve_as(database, config).await;
    until("the old keys to be gone", SOON, async || {
        app.count("idempotency_keys").await == 40
    })
    .await;
    let young: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM idempotency_keys WHERE idempotency_key LIKE 'young-%'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(young, 40);
    // A deleted key is new, and one that is there is not.
    let answer = post_with_key(&app, "old-1", &order()).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let answer = post_with_key(&app, "young-1", &order()).await;
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
}

e2e::on_each_server!(pruning_gets_past_keys_that_can_not_be_deleted);
/// What a trigger or somebody's lock keeps is passed over, and counted.
async fn pruning_gets_past_keys_that_can_not_be_deleted(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    let pool = app.database.pool().unwrap();
    let fill = "INSERT INTO idempotency_keys \
                SELECT CONCAT('k-', a.n, b.n, c.n, d.n), REPEAT('x', 32), '', \
                UTC_TIMESTAMP(6) - INTERVAL 2 DAY FROM \
                (SELECT 0 n UNION SELECT 1) a, {ten} b, {ten} c, {ten} d";
    let ten = (0..10).map(|n| format!("SELECT {n} n")).collect::<Vec<_>>();
    let fill = fill.replace("{ten}", &format!("({})", ten.join(" UNION ALL ")));
    let keep = "CREATE TRIGGER keep BEFORE DELETE ON idempotency_keys FOR EACH ROW \
                IF OLD.idempotency_key IN ('k-0007', 'k-0420', 'k-1999') THEN \
                SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'kept'; END IF";
    for statement in [fill.as_str(), keep] {
        let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned()));
        sqlx::Executor::execute(&pool, statement).await.unwrap();
    }
    let mut round = Round::default();
    let day = Duration::from_hours(24);
    while prune::page(&pool, day, &mut round).await.unwrap() == Next::Page {}
    assert_eq!(round.left, 3, "{:?}", db.flavor());
    assert_eq!(app.count("idempotency_keys").await, 3);
}

e2e::on_each_server!(without_the_table_of_keys_orders_without_a_key_are_placed);
/// Dropped, closed to the account, or changed: only who uses a key is refused, with the reason.
async fn without_the_table_of_keys_orders_without_a_key_are_placed(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let database = db.create_database().await.unwrap();
    migrate(&database).await;
    let name = database.name.clone();
    let user = format!("o{}", &name[name.len() - 12..]);
    let grants = ["orders", "outbox", "idempotency_keys"]
        .map(|table| format!("SELECT, INSERT, DELETE ON `{name}`.{table}"));
    db.create_user(&user, "pw", &grants).await.unwrap();
    let mut config = config(&db.user_url(&user, "pw", &name));
    config.commit.committers = 1;
    let app = App::serve_as(database, config).await;
    let table = "idempotency_keys";
    let mut placed = 0;
    for (harm, repair) in [
        (
            format!("RENAME TABLE {table} TO aside"),
            format!("RENAME TABLE aside TO {table}"),
        ),
        (
            format!("REVOKE INSERT ON `{name}`.{table} FROM '{user}'@'%'"),
            format!("GRANT INSERT ON `{name}`.{table} TO '{user}'@'%'"),
        ),
        (
            format!("ALTER TABLE {table} RENAME COLUMN response TO aside"),
            format!("ALTER TABLE {table} RENAME COLUMN aside TO response"),
        ),
    ] {
        run(&app, &harm).await;
        // All in one batch behind the first.
        let blocker = app.hold_up().await;
        let first = app.send(None, &order());
        app.until_running(1, "INSERT INTO orders").await;
        let sent: Vec<_> = (0..20)
            .map(|number| {
                let key = (number % 2 == 0).then(|| format!("k-{number}"));
                (key.is_some(), app.send(key.as_deref(), &order()))
            })
            .collect();
        app.until_queued(20.0).await;
        drop(blocker);
        assert_eq!(first.await.unwrap().status(), StatusCode::CREATED, "{harm}");
        for (keyed, answer) in sent {
            let answer = answer.await.unwrap();
            if !keyed {
                assert_eq!(answer.status(), StatusCode::CREATED, "{harm}");
                continue;
            }
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{harm}");
            assert!(answer.headers().contains_key("retry-after"));
            let body: Value = answer.json().await.unwrap();
            let detail = body["detail"].as_str().unwrap();
            assert!(detail.contains(table), "{body}");
        }
        placed += 11;
        assert_eq!(app.count("orders").await, placed, "{harm}");
        let alone = post_with_key(&app, "alone", &order()).await;
        assert_eq!(alone.status(), StatusCode::SERVICE_UNAVAILABLE, "{harm}");
        run(&app, &repair).await;
    }
    let answer = post_with_key(&app, "alone", &order()).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(app.unpaired().await, 0);
}

async fn run(app: &App, statement: &str) {
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned()));
    let done = sqlx::Executor::execute(&app.pool, done).await;
    done.unwrap_or_else(|err| panic!("{statement}: {err}"));
}
