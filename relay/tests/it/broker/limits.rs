//! Limits of the broker: on connections, which pass by themselves, and on channels, which refusals use up.

use std::time::Instant;

use e2e::product::Process;
use e2e::rig::rows::{assert_calm, wait_log};
use e2e::rig::{LATER, QUEUE, Rig, SOON};
use e2e::{Rabbit, RabbitOptions, RabbitVersion};
use tokio::sync::OnceCell;

use super::world::{flows, own_user, topology, wait_ready, wait_unready};

/// Who may have no connection for now.
#[derive(Clone, Copy, Debug)]
enum Limit {
    Vhost,
    User,
    Node,
}

impl Limit {
    async fn set(self, rig: &Rig, user: &str, most: &str) {
        let vhost = rig.vhost.name.as_str();
        let limit = format!("{{\"max-connections\": {most}}}");
        let eval = match most {
            "-1" => "application:unset_env(rabbit, connection_max).",
            _ => "application:set_env(rabbit, connection_max, 0).",
        };
        let args = match self {
            Self::Vhost => vec!["set_vhost_limits", "-p", vhost, &limit],
            Self::User => vec!["set_user_limits", user, &limit],
            Self::Node => vec!["eval", eval],
        };
        rig.rabbit.ctl(&args).await.unwrap();
    }
}

fn assert_waits(relay: &Process) {
    assert!(relay.ended().unwrap().is_none(), "{}", relay.log());
}

#[tokio::test]
async fn a_connection_limit_at_the_start_is_waited_for_by_leader_and_standby() {
    limits(e2e::shared::rabbit().await, &[Limit::Vhost, Limit::User]).await;
}

/// RabbitMQ 3.10 knows no limit of a node.
#[tokio::test]
async fn a_connection_limit_of_the_broker_at_the_start_is_waited_for() {
    static BROKER: OnceCell<Rabbit> = OnceCell::const_new();
    let Ok(root) = e2e::cache::rabbitmq4_root() else {
        return;
    };
    let options = RabbitOptions {
        version: RabbitVersion::Chroot(root),
        ..RabbitOptions::default()
    };
    let rabbit = BROKER.get_or_try_init(async || Rabbit::start(options).await);
    limits(rabbit.await.unwrap(), &[Limit::Node]).await;
}

async fn limits(rabbit: &'static Rabbit, all: &[Limit]) {
    let mut rig = Rig::on(e2e::shared::either().await, rabbit).await;
    let user = own_user(&mut rig).await;
    topology(&rig).await;
    for limit in all {
        limit.set(&rig, &user, "0").await;
        let leader = rig.relay();
        wait_unready(&rig, "limit").await;
        wait_log(&leader, "is reached").await;
        let other = e2e::port::free().unwrap();
        let address = rig.env["ADMIN_ADDR"].clone();
        rig.set("ADMIN_ADDR", &format!("127.0.0.1:{other}"));
        let standby = rig.relay();
        wait_log(&standby, "standing by, the broker was tried").await;
        wait_log(&standby, "is reached").await;
        assert_waits(&standby);
        rig.set("ADMIN_ADDR", &address);
        assert_waits(&leader);

        limit.set(&rig, &user, "-1").await;
        flows(&rig, Instant::now(), "the limit is lifted").await;
        wait_ready(&rig).await;
        for relay in [standby, leader] {
            relay.terminate().unwrap();
            let status = relay.wait_exit(SOON).await.unwrap();
            assert_eq!(status.code(), Some(0), "{limit:?}\n{}", relay.log());
        }
    }
}

const REFUSED: &str = "outbox_relay_failed_total{reason=\"channel_closed\"}";
/// Of one missing exchange in an hour, with the default settings.
const PROBES_OF_AN_HOUR: f64 = 360.0;

/// An hour's probes of missing exchanges within seconds, with so few channels that each one counts.
#[tokio::test]
async fn refusals_use_up_no_connection_and_disturb_no_lane() {
    for channels in ["6", "2"] {
        let mut rig = Rig::new(e2e::shared::either().await).await;
        let url = format!("{}?channel_max={channels}", rig.env["AMQP_URL"]);
        rig.set("AMQP_URL", &url)
            .set("RELAY_CANARY_INTERVAL", "1s")
            .set_backoff("50ms", "100ms");
        let relay = rig.tailing().await;
        let deliveries = rig.consume(QUEUE).await;
        for missing in 0..30 {
            let values = format!(
                "UUID(), 'order', 'm{missing}', 'order.placed.v1', 'missing-{missing}', 'k', '{{}}'"
            );
            let insert = format!(
                "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, exchange, \
                 routing_key, payload) VALUES ({values})"
            );
            rig.sql(&insert).await;
        }
        // A row in one batch with the first refusal may go twice; every route is closed by now.
        e2e::wait::until("the first refusals", LATER, async || {
            rig.metric(REFUSED).await >= Some(60.0)
        })
        .await;
        e2e::wait::until("an hour's refusals", LATER, async || {
            let good = rig.insert_one("good", "order.pay", b"{}").await;
            rig.wait_status(&good, 2).await;
            rig.metric(REFUSED).await >= Some(PROBES_OF_AN_HOUR)
        })
        .await;
        wait_ready(&rig).await;
        assert_calm(&relay);
        let log = relay.log();
        assert_eq!(log.matches("starting again").count(), 0, "{log}");
        assert_eq!(deliveries.twice(), 0, "{log}");
        relay.terminate().unwrap();
        assert_eq!(relay.wait_exit(SOON).await.unwrap().code(), Some(0));
    }
}
