//! The broker: first contact and faults.

use std::time::Duration;

use svc_kit::amqp::{Amqp, BrokerFault, classify, first_contact};
use svc_kit::boot::{ConfigError, install_crypto};
use tokio_util::sync::CancellationToken;

async fn contact(url: &str) -> Result<(), ConfigError> {
    let amqp = Amqp::parse(url).unwrap();
    let never = CancellationToken::new();
    let contact = first_contact(&amqp, &never, |_| {});
    tokio::time::timeout(Duration::from_secs(30), contact)
        .await
        .expect("it waits in vain")
}

#[tokio::test]
async fn first_contact_tells_what_no_waiting_can_fix() {
    install_crypto();
    let rabbit = e2e::shared::rabbit().await;
    let vhost = rabbit.create_vhost().await.unwrap();
    contact(&vhost.amqp_url).await.unwrap();

    let err = contact(&rabbit.user_url("admin", "hunter2", &vhost.name))
        .await
        .unwrap_err();
    assert_eq!(
        (err.field.as_str(), err.fix.as_str()),
        ("AMQP_URL", "check user and password")
    );
    assert!(!err.to_string().contains("hunter2"), "{err}");

    let err = contact(&rabbit.amqp_url("no-such-vhost"))
        .await
        .unwrap_err();
    assert!(err.problem.contains("no-such-vhost"), "{err}");
    assert!(err.fix.contains("vhost"), "{err}");
}

#[tokio::test]
async fn a_broker_that_can_not_be_reached_is_away() {
    // A port that was free a moment ago.
    let port = e2e::port::free().unwrap();
    let amqp = Amqp::parse(&format!("amqp://guest:guest@127.0.0.1:{port}/%2F")).unwrap();
    let err = amqp.connect("test").await.unwrap_err();
    assert!(matches!(classify(&err), BrokerFault::Away(_)), "{err}");

    let stop = CancellationToken::new();
    let waiting = {
        let stop = stop.clone();
        svc_kit::tasks::unit(async move { first_contact(&amqp, &stop, |_| {}).await })
    };
    stop.cancel();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_shows_its_name_and_keeps_a_heartbeat() {
    let rabbit = e2e::shared::rabbit().await;
    let vhost = rabbit.create_vhost().await.unwrap();
    let connection = Amqp::parse(&vhost.amqp_url)
        .unwrap()
        .connect("relay publish")
        .await
        .unwrap();
    assert_eq!(connection.configuration().heartbeat(), 10);
    let management = rabbit.management().unwrap();
    e2e::wait::until(
        "the broker to show the connection",
        Duration::from_secs(30),
        async || {
            let connections = management.connections(&vhost.name).await.unwrap();
            connections
                .iter()
                .any(|one| one.client_name.as_deref() == Some("relay publish"))
        },
    )
    .await;
    connection.close(200, "done".into()).await.unwrap();
}
