//! Clients that are slow, endless, cut off or gone: each is cut, and nothing of it is stored.

use std::time::Duration;

use e2e::Flavor;
use e2e::wait::until;
use order_svc::config::Config;
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;

use crate::app::{App, SOON, order};

const HEAD: &str = "POST /orders HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n";

fn hasty(config: &mut Config) {
    config.times.body = Duration::from_secs(1);
}

async fn connect(app: &App, head: &str) -> TcpStream {
    let mut client = TcpStream::connect(app.address()).await.unwrap();
    client.write_all(head.as_bytes()).await.unwrap();
    client
}

/// All that the service says until it closes the connection, as it must.
async fn until_closed(mut answers: OwnedReadHalf) -> String {
    let mut said = Vec::new();
    let closed = async {
        let mut part = [0; 4096];
        // A reset is a close as well.
        while let Ok(length @ 1..) = answers.read(&mut part).await {
            said.extend_from_slice(&part[..length]);
        }
    };
    let in_time = tokio::time::timeout(SOON, closed).await;
    assert!(in_time.is_ok(), "the connection was not closed");
    String::from_utf8(said).unwrap()
}

async fn nothing_was_stored_and_others_are_served(app: &App) {
    assert_eq!(
        (app.count("orders").await, app.count("outbox").await),
        (0, 0)
    );
    let answer = app.post("/orders", &order()).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn a_body_that_comes_byte_by_byte_is_cut_off() {
    let app = App::start_as(e2e::shared::mariadb().await, hasty).await;
    let head = format!("{HEAD}content-length: 60000\r\n\r\n{{");
    let (answers, mut body) = connect(&app, &head).await.into_split();
    let trickle = async {
        let mut beat = tokio::time::interval(Duration::from_millis(50));
        while body.write_all(b" ").await.is_ok() {
            beat.tick().await;
        }
    };
    let said = tokio::select! {
        said = until_closed(answers) => said,
        () = trickle => panic!("closed without an answer"),
    };
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
    assert!(said.contains("application/problem+json"), "{said}");
    assert!(said.contains(r#""code":"body_too_slow""#), "{said}");
    nothing_was_stored_and_others_are_served(&app).await;
}

#[tokio::test]
async fn a_body_without_an_end_is_cut_off() {
    let app = App::start(e2e::shared::mariadb().await).await;
    let endless = ["transfer-encoding: chunked", "content-length: 10000000000"];
    for length in endless {
        let (answers, mut body) = connect(&app, &format!("{HEAD}{length}\r\n\r\n"))
            .await
            .into_split();
        let pour = async {
            let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
            let mut poured = 0;
            while body.write_all(chunk.as_bytes()).await.is_ok() {
                poured += chunk.len();
                assert!(poured < 64 * 1024 * 1024, "it takes whatever it is given");
            }
        };
        let (said, ()) = tokio::join!(until_closed(answers), pour);
        assert!(said.starts_with("HTTP/1.1 413 "), "{length}: {said}");
        assert!(said.contains(r#""code":"body_too_large""#), "{said}");
    }
    nothing_was_stored_and_others_are_served(&app).await;
}

#[tokio::test]
async fn a_head_without_an_end_is_cut_off() {
    let app = App::start(e2e::shared::mariadb().await).await;
    let (answers, mut head) = connect(&app, HEAD).await.into_split();
    let pour = async {
        let header = format!("x-more: {}\r\n", "x".repeat(8_000));
        let mut poured = 0;
        while head.write_all(header.as_bytes()).await.is_ok() {
            poured += header.len();
            assert!(poured < 64 * 1024 * 1024, "it takes whatever it is given");
        }
    };
    let (said, ()) = tokio::join!(until_closed(answers), pour);
    assert!(
        said.is_empty() || said.starts_with("HTTP/1.1 431 "),
        "{said}"
    );
    nothing_was_stored_and_others_are_served(&app).await;
}

#[tokio::test]
async fn a_request_that_is_cut_off_anywhere_places_nothing() {
    let app = App::start_as(e2e::shared::mariadb().await, hasty).await;
    let body = order().to_string();
    let request = format!("{HEAD}content-length: {}\r\n\r\n{body}", body.len());
    for length in (1..request.len()).step_by(3) {
        drop(connect(&app, &request[..length]).await);
    }
    // The last of them has been met: connections are taken in the order in which they came.
    assert_eq!(app.get("/orders/7").await.status(), StatusCode::NOT_FOUND);
    nothing_was_stored_and_others_are_served(&app).await;
}

e2e::on_each_server!(hundreds_of_clients_that_go_away_leave_whole_orders);
/// Some are gone before they are read, some while they wait, some before their answer is written.
async fn hundreds_of_clients_that_go_away_leave_whole_orders(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    let body = order().to_string();
    let request = format!("{HEAD}content-length: {}\r\n\r\n{body}", body.len());
    let mut waiting = Vec::new();
    for number in 0..600_u64 {
        let client = connect(&app, &request).await;
        waiting.push(client);
        if waiting.len() > usize::try_from(number % 40).unwrap() {
            waiting.clear();
        }
    }
    drop(waiting);
    assert_eq!(
        app.post("/orders", &order()).await.status(),
        StatusCode::CREATED
    );
    until("all to be placed", SOON, async || {
        let placed = app.metric("orders_placed_total ").await.unwrap();
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let there = app.count("orders").await as f64;
        app.metric("orders_queued ").await == Some(0.0) && there >= placed
    })
    .await;
    assert_eq!(app.count("orders").await, app.count("outbox").await);
    assert_eq!(app.unpaired().await, 0);
}
