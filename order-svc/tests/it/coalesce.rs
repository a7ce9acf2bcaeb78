//! Orders that share a transaction: each succeeds, fails and is answered for itself.

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};

use e2e::proxy::Proxy;
use e2e::wait::until;
use e2e::{Db, DbOptions, Flavor};
use futures::future::join_all;
use order_svc::batch::Bounds;
use order_svc::config::Config;
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::Executor as _;
use svc_kit::boot::Exit;
use svc_kit::database::DatabaseUrl;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::app::{App, SOON, config, migrate, order, problem_code};

const INSERT: &str = "INSERT INTO orders";

fn one_committer(config: &mut Config) {
    config.commit.committers = 1;
}

fn by(customer: &str) -> Value {
    json!({"customer_id": customer, "amount_minor": 1999, "currency": "EUR"})
}

e2e::on_each_server!(orders_that_come_during_a_commit_share_the_next_one);
async fn orders_that_come_during_a_commit_share_the_next_one(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start_as(db, one_committer).await;
    let blocker = app.hold_up().await;
    let first = app.send(None, &order());
    app.until_running(1, INSERT).await;
    let others: Vec<_> = (0..60).map(|_| app.send(None, &order())).collect();
    app.until_queued(60.0).await;
    drop(blocker);

    let mut ids = HashSet::new();
    for answer in join_all(others.into_iter().chain([first])).await {
        let answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        let receipt: Value = answer.json().await.unwrap();
        ids.insert(receipt["order_id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids.len(), 61);
    assert_eq!(app.count("orders").await, 61);
    assert_eq!(app.unpaired().await, 0);
    assert_eq!(
        app.metric("orders_commit_batch_orders_count ").await,
        Some(2.0)
    );
    assert_eq!(
        app.metric("orders_commit_batch_orders_sum ").await,
        Some(61.0)
    );
    assert_eq!(app.metric("orders_placed_total ").await, Some(61.0));
}

#[tokio::test]
async fn a_batch_has_a_bound_in_orders_and_in_bytes() {
    let db = e2e::shared::mariadb().await;
    let orders = Bounds {
        orders: 5,
        bytes: 512 * 1024,
    };
    // An order takes some 1,200 bytes by the estimate: the fifth reaches this.
    let bytes = Bounds {
        orders: 128,
        bytes: 5_000,
    };
    for bounds in [orders, bytes] {
        let change = |config: &mut Config| {
            one_committer(config);
            config.commit.bounds = bounds;
        };
        let app = App::start_as(db, change).await;
        let blocker = app.hold_up().await;
        let first = app.send(None, &order());
        app.until_running(1, INSERT).await;
        let others: Vec<_> = (0..20).map(|_| app.send(None, &order())).collect();
        app.until_queued(20.0).await;
        drop(blocker);
        for answer in join_all(others.into_iter().chain([first])).await {
            assert_eq!(answer.unwrap().status(), StatusCode::CREATED);
        }
        let batches = app.metric("orders_commit_batch_orders_count ").await;
        assert_eq!(batches, Some(5.0), "{bounds:?}");
    }
}

e2e::on_each_server!(an_order_that_fails_does_not_fail_its_neighbours);
async fn an_order_that_fails_does_not_fail_its_neighbours(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start_as(db, one_committer).await;
    let rule = "ALTER TABLE orders ADD CONSTRAINT not_him CHECK (customer_id <> 'him')";
    app.pool.execute(rule).await.unwrap();
    let blocker = app.hold_up().await;
    let first = app.send(None, &order());
    app.until_running(1, INSERT).await;
    let sent: Vec<_> = (0..21)
        .map(|number| {
            let customer = if number % 7 == 3 { "him" } else { "c-17" };
            let key = format!("k-{number}");
            let key = (number % 2 == 0).then_some(key.as_str());
            (customer, app.send(key, &by(customer)))
        })
        .collect();
    app.until_queued(21.0).await;
    drop(blocker);

    assert_eq!(first.await.unwrap().status(), StatusCode::CREATED);
    for (customer, answer) in sent {
        let answer = answer.await.unwrap();
        if customer == "him" {
            let (status, code) = problem_code(answer).await;
            assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(code, "internal");
        } else {
            assert_eq!(answer.status(), StatusCode::CREATED);
        }
    }
    assert_eq!(app.count("orders").await, 19);
    assert_eq!(app.unpaired().await, 0);
    // Those that failed left no key behind: of eleven with a key, 10 is one of theirs.
    assert_eq!(app.count("idempotency_keys").await, 10);
}

e2e::on_each_server!(a_hundred_requests_of_one_batch_with_one_key_are_one_order);
async fn a_hundred_requests_of_one_batch_with_one_key_are_one_order(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start_as(db, one_committer).await;
    let blocker = app.hold_up().await;
    let first = app.send(None, &order());
    app.until_running(1, INSERT).await;
    let equal: Vec<_> = (0..100).map(|_| app.send(Some("k"), &order())).collect();
    app.until_queued(100.0).await;
    let others: Vec<_> = (0..5).map(|_| app.send(Some("k"), &by("other"))).collect();
    let free: Vec<_> = (0..5).map(|_| app.send(None, &order())).collect();
    app.until_queued(110.0).await;
    drop(blocker);

    let mut bodies = HashSet::new();
    for answer in join_all(equal).await {
        let answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        bodies.insert(answer.text().await.unwrap());
    }
    assert_eq!(bodies.len(), 1);
    for answer in join_all(others).await {
        let (status, code) = problem_code(answer.unwrap()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(code, "idempotency_key_reused");
    }
    for answer in join_all(free.into_iter().chain([first])).await {
        assert_eq!(answer.unwrap().status(), StatusCode::CREATED);
    }
    assert_eq!(app.count("orders").await, 7);
    assert_eq!(
        app.metric("orders_commit_batch_orders_count ").await,
        Some(2.0)
    );
}

e2e::on_each_server!(a_known_key_answers_those_behind_a_wrong_one);
/// The key is known with one body; then a batch has another body first and that one behind it.
async fn a_known_key_answers_those_behind_a_wrong_one(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start_as(db, one_committer).await;
    let known = app.send(Some("k"), &order()).await.unwrap();
    let known = known.text().await.unwrap();
    let blocker = app.hold_up().await;
    let first = app.send(None, &order());
    app.until_running(1, INSERT).await;
    let wrong = app.send(Some("k"), &by("other"));
    app.until_queued(1.0).await;
    let right: Vec<_> = (0..3).map(|_| app.send(Some("k"), &order())).collect();
    app.until_queued(4.0).await;
    drop(blocker);

    assert_eq!(first.await.unwrap().status(), StatusCode::CREATED);
    let refused = wrong.await.unwrap().status();
    assert_eq!(refused, StatusCode::UNPROCESSABLE_ENTITY);
    for answer in join_all(right).await {
        assert_eq!(answer.unwrap().text().await.unwrap(), known);
    }
    assert_eq!(app.count("orders").await, 2);
}

e2e::on_each_server!(two_instances_that_share_keys_place_each_order_once);
/// Both instances take the same keys in opposite orders, in batches: no deadlock reaches a client.
async fn two_instances_that_share_keys_place_each_order_once(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let one = App::start(db).await;
    let two = App::serve(one.database.clone()).await;
    for round in 0..4 {
        let keys: Vec<String> = (0..60).map(|key| format!("r{round}-{key}")).collect();
        let backwards = keys.iter().rev();
        let sent: Vec<_> = keys
            .iter()
            .zip(backwards)
            .flat_map(|(key, other)| {
                let request =
                    |app: &App, key: &str| (key.to_owned(), app.send(Some(key), &by(key)));
                [request(&one, key), request(&two, other)]
            })
            .collect();
        let mut bodies: BTreeMap<String, HashSet<String>> = BTreeMap::new();
        for (key, answer) in sent {
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), StatusCode::CREATED);
            bodies
                .entry(key)
                .or_default()
                .insert(answer.text().await.unwrap());
        }
        assert_eq!(bodies.len(), 60);
        assert!(bodies.values().all(|answers| answers.len() == 1));
        assert_eq!(one.count("orders").await, (round + 1) * 60);
    }
    assert_eq!(one.unpaired().await, 0);
}

e2e::on_each_server!(a_key_that_somebody_holds_does_not_hold_up_its_neighbours);
/// Its holder is a process that hangs: the others are placed, and that one's turn comes later.
async fn a_key_that_somebody_holds_does_not_hold_up_its_neighbours(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start_as(db, one_committer).await;
    let mut holder = app.database.connect().await.unwrap();
    holder.execute("BEGIN").await.unwrap();
    let take = "INSERT INTO idempotency_keys (idempotency_key, request_sha256, response) \
                VALUES ('k-3', REPEAT('x', 32), 'nobody')";
    holder.execute(take).await.unwrap();
    let blocker = app.hold_up().await;
    let first = app.send(None, &order());
    app.until_running(1, INSERT).await;
    let sent: Vec<_> = (0..6)
        .map(|number| app.send(Some(&format!("k-{number}")), &order()))
        .collect();
    // One second for all of them: thirty would be too late for everybody behind.
    let more: Vec<_> = (0..30).map(|_| app.send(Some("k-3"), &order())).collect();
    app.until_queued(36.0).await;
    drop(blocker);
    let begun = std::time::Instant::now();
    for answer in join_all(more).await {
        assert_eq!(answer.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));

    assert_eq!(first.await.unwrap().status(), StatusCode::CREATED);
    for (number, answer) in sent.into_iter().enumerate() {
        let answer = answer.await.unwrap();
        if number == 3 {
            assert!(answer.headers().contains_key("retry-after"));
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        } else {
            assert_eq!(answer.status(), StatusCode::CREATED, "{number}");
        }
    }
    holder.execute("ROLLBACK").await.unwrap();
    let again = app.send(Some("k-3"), &order()).await.unwrap();
    assert_eq!(again.status(), StatusCode::CREATED);
    assert_eq!(app.count("orders").await, 7);
}

e2e::on_each_server!(a_full_queue_refuses_at_once_and_does_nothing);
async fn a_full_queue_refuses_at_once_and_does_nothing(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let change = |config: &mut Config| {
        one_committer(config);
        config.commit.queue = 2;
    };
    let app = App::start_as(db, change).await;
    let blocker = app.hold_up().await;
    let first = app.send(None, &order());
    app.until_running(1, INSERT).await;
    let waiting: Vec<_> = (0..2).map(|_| app.send(None, &order())).collect();
    app.until_queued(2.0).await;
    for key in [None, Some("k")] {
        let answer = app.send(key, &order()).await.unwrap();
        assert_eq!(answer.headers()["retry-after"], "1");
        let (status, code) = problem_code(answer).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(code, "overloaded");
    }
    drop(blocker);
    for answer in join_all(waiting.into_iter().chain([first])).await {
        assert_eq!(answer.unwrap().status(), StatusCode::CREATED);
    }
    assert_eq!(app.count("orders").await, 3);
    assert_eq!(app.count("idempotency_keys").await, 0);
}

e2e::on_each_server!(clients_that_go_away_while_they_wait_have_whole_orders);
async fn clients_that_go_away_while_they_wait_have_whole_orders(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start_as(db, one_committer).await;
    let blocker = app.hold_up().await;
    let first = app.send(None, &order());
    app.until_running(1, INSERT).await;
    let body = order().to_string();
    let request = format!(
        "POST /orders HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = TcpStream::connect(app.address()).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        clients.push(client);
    }
    app.until_queued(20.0).await;
    drop(clients);
    drop(blocker);
    assert_eq!(first.await.unwrap().status(), StatusCode::CREATED);
    until("all orders", SOON, async || app.count("orders").await == 21).await;
    assert_eq!(app.unpaired().await, 0);
}

e2e::on_each_server!(what_is_queued_is_answered_before_the_service_ends);
async fn what_is_queued_is_answered_before_the_service_ends(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start_as(db, one_committer).await;
    let blocker = app.hold_up().await;
    let first = app.send(None, &order());
    app.until_running(1, INSERT).await;
    let queued: Vec<_> = (0..30).map(|_| app.send(None, &order())).collect();
    app.until_queued(30.0).await;
    app.shutdown.drain.cancel();
    until("the listener to close", SOON, async || {
        TcpStream::connect(app.address()).await.is_err()
    })
    .await;
    drop(blocker);
    for answer in join_all(queued.into_iter().chain([first])).await {
        assert_eq!(answer.unwrap().status(), StatusCode::CREATED);
    }
    assert_eq!(app.count("orders").await, 31);
    assert_eq!(app.stop().await, Exit::Drained);
}

/// A request whose client was informed that there is no answer is not begun any more.
#[tokio::test]
async fn an_order_that_waited_too_long_is_not_placed_later() {
    let change = |config: &mut Config| {
        one_committer(config);
        config.commit.timeout = std::time::Duration::from_secs(1);
    };
    let app = App::start_as(e2e::shared::mariadb().await, change).await;
    let blocker = app.hold_up().await;
    // The commit in progress is given up as well: its INSERT ends with its connection.
    for customer in ["early", "second"] {
        let answer = app.send(None, &by(customer)).await.unwrap();
        let (status, code) = problem_code(answer).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(code, "database_unavailable");
    }
    drop(blocker);
    until("an order", SOON, async || {
        app.post("/orders", &by("late")).await.status() == StatusCode::CREATED
    })
    .await;
    // One committer works in order: what was before the last one would be there by now.
    let customers: Vec<String> = sqlx::query_scalar("SELECT DISTINCT customer_id FROM orders")
        .fetch_all(&app.pool)
        .await
        .unwrap();
    assert_eq!(customers, ["late"]);
    assert_eq!(app.unpaired().await, 0);
}

/// Behind a proxy, so that its connections can be cut.
async fn behind_proxy(db: &Db, change: impl FnOnce(&mut Config)) -> (App, Proxy) {
    let database = db.create_database().await.unwrap();
    migrate(&database).await;
    let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, db.port()));
    let proxy = Proxy::start(upstream).unwrap();
    let mut config = config(&database.url);
    config.database = DatabaseUrl::parse(&proxy.url(&database.url)).unwrap();
    change(&mut config);
    (App::serve_as(database, config).await, proxy)
}

/// The server commits, and its answer is lost: nobody can know, so nothing is tried again.
#[tokio::test]
async fn an_order_whose_commit_gave_no_answer_is_not_placed_twice() {
    let db = Db::start(Flavor::MariaDb, DbOptions::default())
        .await
        .unwrap();
    let (app, proxy) = behind_proxy(&db, one_committer).await;
    for customer in ["warm", "lost"] {
        let mut blocker = app.database.connect().await.unwrap();
        for stage in ["START", "FLUSH", "BLOCK_DDL", "BLOCK_COMMIT"] {
            let sql = format!("BACKUP STAGE {stage}");
            blocker.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
        }
        let answer = app.send(None, &by(customer));
        app.until_running(1, "COMMIT").await;
        if customer == "lost" {
            proxy.stall_answers();
        }
        blocker.execute("BACKUP STAGE END").await.unwrap();
        if customer == "lost" {
            until("the commit", SOON, async || app.count("orders").await == 2).await;
            proxy.cut();
            proxy.resume();
            let (status, code) = problem_code(answer.await.unwrap()).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(code, "database_unavailable");
        } else {
            assert_eq!(answer.await.unwrap().status(), StatusCode::CREATED);
        }
    }
    let next = app.post("/orders", &by("next")).await;
    assert_eq!(next.status(), StatusCode::CREATED);
    assert_eq!(app.count("orders").await, 3);
    assert_eq!(app.unpaired().await, 0);
}

e2e::on_each_server!(cut_connections_neither_lose_nor_double_an_order);
/// Whenever the connection breaks: an order that was answered 201 is there, and none is there twice.
async fn cut_connections_neither_lose_nor_double_an_order(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let (app, proxy) = behind_proxy(db, |_| ()).await;
    let (mut placed, mut unknown) = (HashSet::new(), 0);
    for round in 0..12_u64 {
        let names: Vec<String> = (0..25).map(|n| format!("r{round}-{n}")).collect();
        // Somewhere between the first statement and the commit.
        proxy.cut_after(round * 700);
        let sent: Vec<_> = names.iter().map(|name| app.send(None, &by(name))).collect();
        for (name, answer) in names.into_iter().zip(sent) {
            match answer.await.unwrap().status() {
                StatusCode::CREATED => _ = placed.insert(name),
                StatusCode::SERVICE_UNAVAILABLE => unknown += 1,
                other => panic!("{other}"),
            }
        }
    }
    let customers: Vec<String> = sqlx::query_scalar("SELECT customer_id FROM orders")
        .fetch_all(&app.pool)
        .await
        .unwrap();
    let there: HashSet<String> = customers.iter().cloned().collect();
    assert_eq!(there.len(), customers.len(), "an order is there twice");
    assert!(
        placed.is_subset(&there),
        "an order that was answered is lost"
    );
    assert!(unknown > 0, "no cut hit a transaction");
    assert_eq!(app.unpaired().await, 0);
}
