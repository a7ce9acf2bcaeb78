//! One service, one broker, one fault after the other: each must end without a hand, with what was
//! published meanwhile paid, and readiness must have reported what lasts.

use e2e::wait::until;
use e2e::{Rabbit, RabbitOptions, Vhost};
use reqwest::StatusCode;
use svc_kit::boot::Exit;
use uuid::Uuid;

use crate::app::{App, SOON, config, database, inbox_row, payments, vhost};
use crate::messages::{Outgoing, Publisher};
use crate::provider::{Act, Scripted};

/// The account of the service: its rights can be taken.
const USER: &str = "pay";

struct Scene {
    rabbit: Rabbit,
    vhost: Vhost,
    app: App,
}

impl Scene {
    async fn set() -> Self {
        let rabbit = Rabbit::start(RabbitOptions::default()).await.unwrap();
        // A consumer that owes an acknowledgement for three seconds loses its channel.
        let patience = "[application:set_env(rabbit, Name, Value) || {Name, Value} <- \
                        [{consumer_timeout, 3000}, {channel_tick_interval, 500}]].";
        rabbit.ctl(&["eval", patience]).await.unwrap();
        let vhost = vhost(&rabbit).await;
        let api = rabbit.management().unwrap();
        api.create_user(USER, "secret", "").await.unwrap();
        api.set_permissions(&vhost.name, USER, [".*"; 3])
            .await
            .unwrap();
        let tables = database(e2e::shared::either().await).await;
        let url = format!(
            "{}?heartbeat=2",
            rabbit.user_url(USER, "secret", &vhost.name)
        );
        let config = config(&tables.url, &url);
        let app = App::serve(tables, config, Scripted::always(Act::Capture)).await;
        app.until_ready().await;
        app.until_it_pays(&vhost).await;
        Self { rabbit, vhost, app }
    }

    async fn eval(&self, expression: &str) {
        let reported = self.rabbit.ctl(&["eval", expression]).await.unwrap();
        assert!(!reported.contains("Error"), "{reported}");
    }

    /// Whose condition does not hold, and why.
    async fn until_not_ready(&self, condition: &str) -> String {
        until(&format!("{condition} not to hold"), SOON, async || {
            let (status, body) = self.app.readiness().await;
            let reported = &body["conditions"][condition];
            let lost = status == StatusCode::SERVICE_UNAVAILABLE && reported["ok"] == false;
            lost.then(|| reported["detail"].as_str().unwrap_or_default().to_owned())
        })
        .await
    }

    async fn heals(&self, what: &str) {
        eprintln!("{what}");
        self.app.until_it_pays(&self.vhost).await;
        self.app.until_ready().await;
    }

    /// The broker ends every channel, and with it every connection, of every client.
    async fn channels_die(&self) {
        self.eval("[exit(P, kill) || P <- rabbit_channel:list()].")
            .await;
        self.heals("channels killed").await;
    }

    /// The queue's own process dies; its supervisor starts it again, with its consumers or without.
    async fn the_queue_crashes(&self) {
        let vhost = &self.vhost.name;
        self.eval(&format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{vhost}\">>, queue, \
             <<\"order-queue\">>)), exit(whereis(element(1, amqqueue:get_pid(Q))), kill)."
        ))
        .await;
        self.heals("the queue's process killed").await;
    }

    /// `PRECONDITION_FAILED`, code 406, for an acknowledgement that is late: the message comes again,
    /// and is known.
    async fn the_channel_is_closed_over_a_late_acknowledgement(&self) {
        let mut late = Outgoing::order(Uuid::now_v7());
        late.message_id = Some("late".to_owned());
        let mut lock = self.app.pool.begin().await.unwrap();
        sqlx::query("INSERT INTO inbox (message_id, payload) VALUES ('late', '')")
            .execute(&mut *lock)
            .await
            .unwrap();
        let publisher = Publisher::connect(&self.vhost.amqp_url).await;
        publisher.publish(&late).await;
        until("the broker to lose its patience", SOON, async || {
            let log = self.rabbit.log();
            log.contains("delivery acknowledgement on channel") || log.contains("has timed out")
        })
        .await;
        lock.rollback().await.unwrap();
        until("the message to come again", SOON, async || {
            let row = inbox_row(&self.app.pool, "late").await;
            row.is_some_and(|row| (row.status, row.deliveries) == (2, 2))
        })
        .await;
        self.heals("channel closed with 406").await;
    }

    /// Short of memory, a broker reads from no publisher; consumers go on.
    async fn the_broker_blocks_publishers(&self) {
        let before = payments(&self.app.pool).await;
        let publisher = Publisher::connect(&self.vhost.amqp_url).await;
        let watermark = async |value| {
            let args = ["set_vm_memory_high_watermark", value];
            self.rabbit.ctl(&args).await.unwrap();
        };
        watermark("0.00001").await;
        let waiting = Outgoing::order(Uuid::now_v7());
        let api = self.rabbit.management().unwrap();
        let blocked = until("the publisher to be blocked", SOON, async || {
            let connections = api.connections(&self.vhost.name).await.unwrap();
            let mut states = connections.iter().map(|it| it.state.as_deref());
            states.any(|state| state == Some("blocked"))
        });
        tokio::select! {
            () = publisher.publish(&waiting) => panic!("published in spite of the alarm"),
            () = blocked => {}
        }
        // A new connection, channel and consumer, in the middle of it.
        self.eval("[exit(P, kill) || P <- rabbit_channel:list_local()], ok.")
            .await;
        self.app.until_ready().await;
        let (_, body) = self.app.readiness().await;
        assert_eq!(body["conditions"]["consumer"]["ok"], true, "{body}");
        watermark("0.4").await;
        self.heals("publishers blocked").await;
        assert!(payments(&self.app.pool).await > before);
    }

    /// It answers nobody, and closes nothing.
    async fn the_broker_falls_silent(&self) {
        self.rabbit.pause().unwrap();
        let why = self.until_not_ready("broker").await;
        self.rabbit.resume().unwrap();
        self.heals(&format!("silent: {why}")).await;
    }

    async fn the_right_to_consume_is_taken(&self) {
        let api = self.rabbit.management().unwrap();
        let rights = async |read| {
            let rights = [".*", ".*", read];
            api.set_permissions(&self.vhost.name, USER, rights)
                .await
                .unwrap();
        };
        rights("^$").await;
        api.close_connections(&self.vhost.name).await.unwrap();
        let why = self.until_not_ready("consumer").await;
        let reported = until("the broker's words", SOON, async || {
            let why = self.until_not_ready("consumer").await;
            why.contains("refused").then_some(why)
        })
        .await;
        rights(".*").await;
        self.heals(&format!("right taken: {why}; {reported}")).await;
    }
}

#[tokio::test]
async fn whatever_the_broker_does_to_a_consumer_it_consumes_again() {
    let scene = Scene::set().await;
    scene.channels_die().await;
    scene.the_queue_crashes().await;
    scene
        .the_channel_is_closed_over_a_late_acknowledgement()
        .await;
    scene.the_broker_blocks_publishers().await;
    scene.the_broker_falls_silent().await;
    scene.the_right_to_consume_is_taken().await;
    assert_eq!(scene.app.stop().await, Exit::Drained);
}
