//! A queue that somebody else declared: what breaks a promise is named in readiness, with the fix, and
//! what would lose messages because it is consumed is not consumed.

use std::cell::Cell;
use std::time::Duration;

use e2e::wait::until;
use e2e::{Rabbit, RabbitOptions, Vhost};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use pay_svc::topology::QUEUE;
use reqwest::StatusCode;
use serde_json::{Value, json};
use svc_kit::boot::Exit;

use crate::app::{App, SOON, config_with, database, vhost};
use crate::process::{exit_code, start};
use crate::provider::{Act, Scripted};

async fn app(vhost: &Vhost, more: &[&str]) -> App {
    let tables = database(e2e::shared::either().await).await;
    let config = config_with(&tables.url, &vhost.amqp_url, more);
    App::serve(tables, config, Scripted::always(Act::Capture)).await
}

/// What readiness says of the consumer, once it is or is not consuming as wanted.
async fn reported(app: &App, consumes: bool, text: &str) {
    until(&format!("{text:?} in readiness"), SOON, async || {
        let (status, body) = app.readiness().await;
        let consumer = &body["conditions"]["consumer"];
        let detail = consumer["detail"].as_str().unwrap_or_default();
        let wanted = match consumes {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        status == wanted && consumer["ok"] == consumes && detail.contains(text)
    })
    .await;
}

async fn declared(rabbit: &Rabbit, body: &Value) -> (Vhost, App) {
    let vhost = vhost(rabbit).await;
    let path = format!("queues/{}/{QUEUE}", vhost.name);
    rabbit.management().unwrap().put(&path, body).await.unwrap();
    let app = app(&vhost, &[]).await;
    (vhost, app)
}

fn queue(arguments: Value) -> Value {
    json!({"durable": true, "auto_delete": false, "arguments": arguments})
}

async fn brokers() -> Vec<&'static Rabbit> {
    let both = [
        Some(e2e::shared::rabbit().await),
        e2e::shared::rabbit4().await,
    ];
    both.into_iter().flatten().collect()
}

#[tokio::test]
async fn a_queue_that_would_lose_messages_is_not_consumed_until_it_is_replaced() {
    for rabbit in brokers().await {
        let stream = queue(json!({"x-queue-type": "stream", "x-max-age": "7D"}));
        let fleeting = json!({"durable": true, "auto_delete": true, "arguments": {}});
        for (body, text) in [
            (
                stream,
                "x-queue-type is stream, so what arrives while no pay-svc is there",
            ),
            (
                fleeting,
                "auto_delete is true, so it is deleted with all its messages",
            ),
        ] {
            let (vhost, app) = declared(rabbit, &body).await;
            reported(&app, false, text).await;
            reported(
                &app,
                false,
                "pause the relay, delete order-queue when it is empty",
            )
            .await;
            let api = rabbit.management().unwrap();
            assert!(api.delete_queue(&vhost.name, QUEUE).await.unwrap());
            reported(&app, true, "consuming").await;
            app.until_it_pays(&vhost).await;
            assert_eq!(app.stop().await, Exit::Drained);
        }
    }
}

#[tokio::test]
async fn a_queue_that_is_exclusive_to_another_connection_is_named_and_waited_for() {
    for rabbit in brokers().await {
        let vhost = vhost(rabbit).await;
        let properties = ConnectionProperties::default();
        let owner = Connection::connect(&vhost.amqp_url, properties)
            .await
            .unwrap();
        let channel = owner.create_channel().await.unwrap();
        let exclusive = QueueDeclareOptions {
            exclusive: true,
            ..QueueDeclareOptions::default()
        };
        channel
            .queue_declare(QUEUE.into(), exclusive, FieldTable::default())
            .await
            .unwrap();
        let app = app(&vhost, &[]).await;
        reported(&app, false, "is exclusive to another connection").await;
        owner.close(200, "done".into()).await.unwrap();
        reported(&app, true, "consuming").await;
        app.until_it_pays(&vhost).await;
        assert_eq!(app.stop().await, Exit::Drained);
    }
}

#[tokio::test]
async fn every_property_that_breaks_a_promise_is_named_in_readiness() {
    for rabbit in brokers().await {
        let cases = [
            (
                json!({"x-queue-type": "classic"}),
                vec!["x-queue-type is classic"],
            ),
            (
                json!({"x-queue-type": "quorum"}),
                vec!["x-delivery-limit is absent", "set_policy"],
            ),
            (
                json!({"x-queue-type": "quorum", "x-delivery-limit": 3}),
                vec!["x-delivery-limit is 3, so a message is deleted"],
            ),
            (
                json!({"x-queue-type": "classic", "x-message-ttl": 3_600_000, "x-expires": 3_600_000,
                       "x-max-length": 1000, "x-max-length-bytes": 1_000_000, "x-max-priority": 3}),
                vec![
                    "x-message-ttl is 3600000, so messages are dropped",
                    "x-expires is 3600000, so it is deleted",
                    "x-max-length is 1000, so its oldest messages are dropped",
                    "x-max-length-bytes is 1000000, so its oldest",
                    "x-queue-type is classic",
                    "x-max-priority is 3",
                ],
            ),
        ];
        for (arguments, texts) in cases {
            let (vhost, app) = declared(rabbit, &queue(arguments)).await;
            for text in texts {
                reported(&app, true, text).await;
            }
            app.until_it_pays(&vhost).await;
            assert_eq!(app.stop().await, Exit::Drained);
        }
    }
}

/// Each look costs a channel, and a connection has few of them here.
#[tokio::test]
async fn looking_at_a_queue_costs_a_bounded_number_of_channels() {
    let rabbit = e2e::shared::rabbit().await;
    let vhost = vhost(rabbit).await;
    let arguments = json!({"x-queue-type": "classic", "x-max-priority": 3, "x-expires": 3_600_000});
    let path = format!("queues/{}/{QUEUE}", vhost.name);
    let api = rabbit.management().unwrap();
    api.put(&path, &queue(arguments)).await.unwrap();
    let mut few = vhost;
    let url = few.amqp_url.clone();
    few.amqp_url.push_str("?channel_max=2");
    let app = app(&few, &[]).await;
    reported(&app, true, "x-max-priority is 3").await;
    few.amqp_url = url;
    app.until_it_pays(&few).await;
    assert_eq!(app.stop().await, Exit::Drained);
}

/// A connection limit, on the vhost or the user, passes by itself.
#[tokio::test]
async fn a_connection_limit_at_the_start_is_waited_for_with_its_reason() {
    let rabbit = e2e::shared::rabbit().await;
    let (tables, vhost) = (
        database(e2e::shared::either().await).await,
        vhost(rabbit).await,
    );
    let limit = async |most: &str| {
        let limit = format!("{{\"max-connections\": {most}}}");
        let args = ["set_vhost_limits", "-p", &vhost.name, &limit];
        rabbit.ctl(&args).await.unwrap();
    };
    limit("0").await;
    let env = [
        ("DATABASE_URL", tables.url.as_str()),
        ("AMQP_URL", vhost.amqp_url.as_str()),
    ];
    let process = start(&["run"], &env);
    until("the limit in the log", SOON, async || {
        process.log().contains("connection limit (0) is reached")
    })
    .await;
    assert!(process.ended().unwrap().is_none(), "{}", process.log());
    limit("-1").await;
    until("it to consume", SOON, async || {
        process.log().contains("detail=\"consuming")
    })
    .await;
    process.terminate().unwrap();
    assert_eq!(exit_code(&process).await, Some(0), "{}", process.log());
}

/// Fifty times the silence after which a consumer is made anew: as of ten minutes and more.
#[tokio::test]
async fn an_idle_consumer_writes_nothing_into_the_brokers_log() {
    let rabbit = Rabbit::start(RabbitOptions::default()).await.unwrap();
    for arguments in [
        json!({"x-queue-type": "quorum"}),
        json!({"x-queue-type": "classic"}),
    ] {
        let vhost = vhost(&rabbit).await;
        let path = format!("queues/{}/{QUEUE}", vhost.name);
        let api = rabbit.management().unwrap();
        api.put(&path, &queue(arguments)).await.unwrap();
        let tables = database(e2e::shared::either().await).await;
        let mut config = config_with(&tables.url, &vhost.amqp_url, &[]);
        config.intake.silence_max = Duration::from_millis(100);
        let app = App::serve(tables, config, Scripted::always(Act::Capture)).await;
        app.until_it_pays(&vhost).await;
        // The broker writes its log behind what happens: the start is in it when it grows no more.
        let before = Cell::new(0);
        until("the broker's log to be quiet", SOON, async || {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let known = before.replace(rabbit.log().len());
            known == before.get()
        })
        .await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        let log = rabbit.log().split_off(before.get());
        assert!(
            !log.contains("[error]") && !log.contains("[warning]"),
            "{log}"
        );
        app.until_it_pays(&vhost).await;
        assert_eq!(app.stop().await, Exit::Drained);
    }
}
