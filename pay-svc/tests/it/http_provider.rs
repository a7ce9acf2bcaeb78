//! `PAY_PROVIDER=http`: what goes over the wire, and what each answer means.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use e2e::Flavor;
use e2e::Provider as FakeProvider;
use e2e::certificates::{Authority, Validity};
use e2e::provider::Reply;
use e2e::wait::until;
use pay_svc::config::ProviderSettings;
use pay_svc::provider::{Charge, ChargeError, Http, Outcome, Provider, Receipt};
use svc_kit::trace::TraceParent;
use uuid::Uuid;

use crate::app::{App, SOON, classes, config_with, database, inbox_row, payments, vhost};
use crate::bench::Bench;
use crate::messages::{Outgoing, Publisher, order_payload, received};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A client as these flags make it.
pub(crate) fn client(url: &str, more: &[&str]) -> Http {
    let mut args = vec!["--provider", "http", "--provider-url", url];
    args.extend(more);
    let config = config_with("mysql://u@h/d", "amqp://h", &args);
    match config.provider {
        ProviderSettings::Http(settings) => Http::new(&settings),
        ProviderSettings::Simulated(_) => panic!("http was requested"),
    }
}

fn charge(order_id: Uuid) -> Charge {
    Charge {
        order_id,
        amount_minor: 1999,
        currency: "EUR".to_owned(),
        traceparent: TraceParent::parse(TRACEPARENT),
    }
}

async fn request(client: &Http) -> Result<Receipt, ChargeError> {
    client.charge(&charge(Uuid::now_v7())).await
}

#[tokio::test]
async fn a_charge_is_one_post_with_the_order_as_its_key() {
    let fake = FakeProvider::start().unwrap();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    fake.script(move |call| {
        seen.lock().unwrap().push(call.clone());
        Reply::captured()
    });
    let (order, client) = (
        Uuid::now_v7(),
        client(&fake.url(), &["--provider-token", "t0ken"]),
    );
    for _ in 0..2 {
        let receipt = client.charge(&charge(order)).await.unwrap();
        assert_eq!(receipt.outcome, Outcome::Captured);
        assert_eq!(receipt.reference, Some(format!("fake-{order}")));
    }
    let calls = calls.lock().unwrap().clone();
    for (n, call) in calls.iter().enumerate() {
        assert_eq!(
            (&call.key, &call.order_id),
            (&order.to_string(), &order.to_string())
        );
        assert_eq!((call.amount_minor, call.currency.as_str()), (1999, "EUR"));
        assert_eq!(call.authorization.as_deref(), Some("Bearer t0ken"));
        assert_eq!(call.traceparent.as_deref(), Some(TRACEPARENT));
        assert_eq!(call.nth, n + 1);
    }
    let ledger = fake.ledger();
    assert_eq!(
        (ledger.calls(), ledger.charged(), ledger.doubled()),
        (2, 1, 0)
    );
    assert_eq!((ledger.unreadable(), ledger.mismatched()), (0, 0));
}

#[tokio::test]
async fn each_answer_has_its_meaning() {
    let fake = FakeProvider::start().unwrap();
    let client = client(&fake.url(), &[]);
    let endless = format!(r#"{{"outcome":"captured","x":"{}"}}"#, "x".repeat(100_000));
    let script = |reply: Reply| fake.script(move |_| reply.clone());

    script(Reply::status(200).body(r#"{"outcome":"declined"}"#));
    let declined = Receipt {
        outcome: Outcome::Declined,
        reference: None,
    };
    assert_eq!(request(&client).await, Ok(declined.clone()));
    script(Reply::status(402));
    assert_eq!(request(&client).await, Ok(declined));

    for reply in [
        Reply::status(200).body("<html>"),
        Reply::status(200).body(&endless),
        Reply::status(302),
        Reply::status(404),
        Reply::status(422),
    ] {
        script(reply.clone());
        let failed = request(&client).await.unwrap_err();
        assert!(
            matches!(failed, ChargeError::Failed(_)),
            "{reply:?}: {failed}"
        );
    }
    for (reply, wait) in [
        (Reply::status(429).retry_after("7"), Some(7)),
        (Reply::status(503).retry_after("later").body(&endless), None),
        (Reply::status(409), None),
        (Reply::status(500), None),
    ] {
        script(reply.clone());
        let failed = request(&client).await.unwrap_err();
        assert!(
            matches!(failed, ChargeError::Unavailable { .. }),
            "{reply:?}: {failed}"
        );
        assert_eq!(
            failed.retry_after(),
            wait.map(Duration::from_secs),
            "{reply:?}"
        );
    }
    assert_eq!(fake.ledger().charged(), 0);
}

#[tokio::test]
async fn a_provider_that_goes_away_is_unavailable_and_found_again_at_once() {
    let fake = FakeProvider::start().unwrap();
    let client = client(&fake.url(), &[]);
    request(&client).await.unwrap();
    fake.close();
    for _ in 0..3 {
        let away = request(&client).await.unwrap_err();
        assert!(matches!(away, ChargeError::Unavailable { .. }), "{away}");
    }
    fake.open();
    // The connections of before are dead, and nobody has informed the client.
    request(&client).await.unwrap();

    // A call that is given up does not go on behind our back.
    fake.script(|_| Reply::captured().after(Duration::from_secs(3600)));
    let order = Uuid::now_v7();
    for _ in 0..2 {
        let requested = charge(order);
        let asking = client.charge(&requested);
        let given_up = tokio::time::timeout(Duration::from_millis(100), asking).await;
        assert!(given_up.is_err());
        until("the connection to be closed", SOON, async || {
            fake.ledger().under_way() == 0
        })
        .await;
    }
    assert!(fake.ledger().overlapped().is_empty());
    assert_eq!(fake.ledger().doubled(), 0);
}

#[tokio::test]
async fn with_https_the_provider_must_be_who_it_says() {
    let authority = Authority::new("a provider's authority").unwrap();
    let other = Authority::new("somebody else").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, authority: &Authority| {
        let path = directory.path().join(name);
        std::fs::write(&path, authority.pem()).unwrap();
        path.display().to_string()
    };
    let (ours, theirs) = (write("ours", &authority), write("theirs", &other));
    let right = authority.server(&["127.0.0.1"], Validity::Now).unwrap();
    let elsewhere = authority.server(&["db.example"], Validity::Now).unwrap();
    let expired = authority.server(&["127.0.0.1"], Validity::Expired).unwrap();

    let fake = FakeProvider::start_tls(&right).unwrap();
    request(&client(&fake.url(), &["--provider-ca-file", &ours]))
        .await
        .unwrap();
    let plain = fake.url().replace("https://", "http://");
    for (client, what) in [
        (
            client(&fake.url(), &["--provider-ca-file", &theirs]),
            "authority",
        ),
        (client(&fake.url(), &[]), "authority"),
        (client(&plain, &[]), "no TLS"),
    ] {
        let refused = request(&client).await.unwrap_err();
        assert!(
            matches!(refused, ChargeError::Unavailable { .. }),
            "{what}: {refused}"
        );
    }
    for (identity, what) in [(elsewhere, "not valid for name"), (expired, "expired")] {
        let fake = FakeProvider::start_tls(&identity).unwrap();
        let refused = request(&client(&fake.url(), &["--provider-ca-file", &ours]))
            .await
            .unwrap_err();
        assert!(refused.to_string().contains(what), "{refused}");
    }
}

e2e::on_each_server!(an_error_of_the_message_spends_attempts_and_one_of_the_provider_waits);
/// A status's class all the way into the table.
async fn an_error_of_the_message_spends_attempts_and_one_of_the_provider_waits(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let fake = FakeProvider::start().unwrap();
    fake.script(|call| match call.amount_minor {
        1 => Reply::status(403),
        2 => Reply::status(429).retry_after("400"),
        _ => Reply::captured(),
    });
    let bench = Bench::new(db, Arc::new(client(&fake.url(), &[]))).await;
    for amount in ["1", "2", "3"] {
        let payload = order_payload(Uuid::now_v7()).replace("1999", amount);
        bench.take_in(received(amount, &payload)).await;
    }
    bench.worker.step().await.unwrap();
    let wait = async |id: &str| {
        sqlx::query_scalar::<_, Option<i64>>(
            "SELECT TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(6), next_attempt_at) FROM inbox \
             WHERE message_id = ?",
        )
        .bind(id)
        .fetch_one(&bench.pool)
        .await
        .unwrap()
    };
    let of_message = inbox_row(&bench.pool, "1").await.unwrap();
    assert_eq!((of_message.status, of_message.attempts), (1, 1));
    assert_eq!(
        of_message.last_error.as_deref(),
        Some("provider_error: the provider failed: 403 Forbidden, status_403")
    );
    assert_eq!(classes(&bench.pool, "1").await, ["provider_error"]);
    let of_provider = inbox_row(&bench.pool, "2").await.unwrap();
    assert_eq!((of_provider.status, of_provider.attempts), (1, 0));
    assert_eq!(classes(&bench.pool, "2").await, ["provider_unavailable"]);
    // Its own wait would be 60 to 120 s.
    assert!((395..=500).contains(&wait("2").await.unwrap()));
    assert_eq!(inbox_row(&bench.pool, "3").await.unwrap().status, 2);
    let reference: Option<String> = sqlx::query_scalar("SELECT provider_ref FROM payments")
        .fetch_one(&bench.pool)
        .await
        .unwrap();
    assert!(reference.unwrap().starts_with("fake-"));
}

/// From the queue to the provider and back, with no more calls at once than allowed.
#[tokio::test]
async fn a_service_requests_its_provider_no_more_at_once_than_it_may() {
    let db = e2e::shared::mariadb().await;
    let fake = FakeProvider::start().unwrap();
    fake.script(|_| Reply::captured().after(Duration::from_millis(40)));
    let (tables, vhost) = (database(db).await, vhost(e2e::shared::rabbit().await).await);
    let url = fake.url();
    let flags = [
        "--provider",
        "http",
        "--provider-url",
        &url,
        "--provider-concurrency",
        "8",
    ];
    let config = config_with(&tables.url, &vhost.amqp_url, &flags);
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    for _ in 0..100 {
        publisher.publish(&Outgoing::order(Uuid::now_v7())).await;
    }
    let (began, provider) = (Instant::now(), Arc::new(client(&url, &[])));
    let app = App::serve(tables, config, provider).await;
    app.until_paid(100).await;
    let ledger = fake.ledger();
    assert_eq!((ledger.charged(), ledger.calls()), (100, 100));
    assert!(ledger.most_at_once() <= 8, "{}", ledger.most_at_once());
    assert!(began.elapsed() >= Duration::from_millis(40 * 100 / 8));
    assert_eq!(payments(&app.pool).await, 100);
}
