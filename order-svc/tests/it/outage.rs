//! Clients that go away, a database that goes away, a service that is stopped.

use std::net::SocketAddr;

use e2e::wait::until;
use e2e::{Db, DbOptions, Flavor};
use reqwest::StatusCode;
use sqlx::Executor as _;
use svc_kit::boot::Exit;
use svc_kit::tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::app::{App, SOON, order, problem_code};

e2e::on_each_server!(without_its_database_it_says_so_and_comes_back_by_itself);
async fn without_its_database_it_says_so_and_comes_back_by_itself(flavor: Flavor) {
    let db = Db::start(flavor, DbOptions::default()).await.unwrap();
    let app = App::start(&db).await;
    until("readiness", SOON, async || {
        app.ready().await.0 == StatusCode::OK
    })
    .await;

    db.kill().unwrap();
    let answer = app.post("/orders", &order()).await;
    assert!(
        answer.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u32>()
            .unwrap()
            >= 1
    );
    let (status, code) = problem_code(answer).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(code, "database_unavailable");
    until("lost readiness", SOON, async || {
        app.ready().await.0 == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;

    db.restart().await.unwrap();
    until("readiness again", SOON, async || {
        app.ready().await.0 == StatusCode::OK
    })
    .await;
    until("an order", SOON, async || {
        app.post("/orders", &order()).await.status() == StatusCode::CREATED
    })
    .await;
    assert_eq!(app.stop().await, Exit::Drained);
}

/// A demoted primary takes no orders, and does not look ready while it takes none.
#[tokio::test]
async fn a_read_only_database_is_not_ready() {
    let db = Db::start(Flavor::MariaDb, DbOptions::default())
        .await
        .unwrap();
    let app = App::start(&db).await;
    until("readiness", SOON, async || {
        app.ready().await.0 == StatusCode::OK
    })
    .await;
    db.execute("SET GLOBAL read_only = 1").await.unwrap();
    let read_only = until("lost readiness", SOON, async || {
        let (status, body) = app.ready().await;
        (status == StatusCode::SERVICE_UNAVAILABLE).then_some(body)
    });
    let detail = read_only.await["conditions"]["database"]["detail"].clone();
    assert_eq!(detail, "the server is read-only");
    db.execute("SET GLOBAL read_only = 0").await.unwrap();
    until("readiness again", SOON, async || {
        app.ready().await.0 == StatusCode::OK
    })
    .await;
}

e2e::on_each_server!(clients_that_go_away_leave_no_half_orders);
/// hyper drops a handler whose client is gone; what it had begun must be whole or nothing, and the
/// next borrower of its connection must not find itself in a transaction.
async fn clients_that_go_away_leave_no_half_orders(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    let body = order().to_string();
    let request = format!(
        "POST /orders HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let addr: SocketAddr = app.url.trim_start_matches("http://").parse().unwrap();
    for _ in 0..150 {
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        drop(client);
    }
    // The connections those requests used serve these.
    for _ in 0..32 {
        assert_eq!(
            app.post("/orders", &order()).await.status(),
            StatusCode::CREATED
        );
    }
    until("every statement to end", SOON, async || {
        let running: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM information_schema.processlist \
             WHERE db = ? AND command <> 'Sleep' AND id <> CONNECTION_ID()",
        )
        .bind(&app.database.name)
        .fetch_one(&app.pool)
        .await
        .unwrap();
        running == 0
    })
    .await;
    let unpaired: i64 = sqlx::query_scalar(
        "SELECT (SELECT COUNT(*) FROM orders o LEFT JOIN outbox e ON e.message_id = o.order_id \
         WHERE e.id IS NULL) + (SELECT COUNT(*) FROM outbox e LEFT JOIN orders o \
         ON o.order_id = e.aggregate_id WHERE o.order_id IS NULL)",
    )
    .fetch_one(&app.pool)
    .await
    .unwrap();
    assert_eq!(unpaired, 0);
    assert!(app.count("orders").await >= 32);
}

e2e::on_each_server!(a_request_in_progress_is_finished_before_the_service_ends);
async fn a_request_in_progress_is_finished_before_the_service_ends(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    let mut blocker = app.database.connect().await.unwrap();
    blocker.execute("LOCK TABLES orders READ").await.unwrap();
    let request = app
        .client
        .post(format!("{}/orders", app.url))
        .json(&order())
        .send();
    let answer = tasks::unit(request);
    until("the order to wait for the table", SOON, async || {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM information_schema.processlist \
             WHERE db = ? AND info LIKE 'INSERT INTO orders%'",
        )
        .bind(&app.database.name)
        .fetch_one(&app.pool)
        .await
        .unwrap();
        waiting == 1
    })
    .await;

    app.shutdown.drain.cancel();
    let addr: SocketAddr = app.url.trim_start_matches("http://").parse().unwrap();
    until("the listener to close", SOON, async || {
        TcpStream::connect(addr).await.is_err()
    })
    .await;
    assert!(!app.running.is_finished());
    blocker.execute("UNLOCK TABLES").await.unwrap();

    assert_eq!(answer.await.unwrap().unwrap().status(), StatusCode::CREATED);
    assert_eq!(app.count("orders").await, 1);
    assert_eq!(app.stop().await, Exit::Drained);
}

#[tokio::test]
async fn a_client_that_sends_its_body_slowly_holds_up_nobody() {
    let app = App::start(e2e::shared::mariadb().await).await;
    let addr: SocketAddr = app.url.trim_start_matches("http://").parse().unwrap();
    let mut slow = TcpStream::connect(addr).await.unwrap();
    let head = "POST /orders HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n\
                content-length: 64\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(
        app.post("/orders", &order()).await.status(),
        StatusCode::CREATED
    );
    slow.shutdown().await.unwrap();
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).await.unwrap();
    assert_eq!(app.count("orders").await, 1);
}
