//! What the database's faults have in common: a way to the server that can be cut, load, and the
//! proof that all of it came through.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use e2e::product::Process;
use e2e::proxy::Proxy;
use e2e::{Db, Flavor};

use crate::rig::{Deliveries, LATER, Rig};
use crate::writers::{Writers, assert_first_deliveries_in_order, tell, wait_all_delivered};

/// What is committed after a fault, or after the server is back, is delivered within this.
pub(crate) const FLOWS_WITHIN: Duration = Duration::from_secs(10);

pub(crate) const FROM_BINLOG: &str = "outbox_relay_confirmed_total{source=\"binlog\"}";
pub(crate) const TAILING: &str = "outbox_relay_phase{phase=\"tailing\"}";

pub(crate) fn address(db: &Db) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, db.port()))
}

/// The relay alone goes through the proxy; the test and its writers go straight to the server.
pub(crate) fn put_between(rig: &mut Rig) -> Proxy {
    let proxy = Proxy::start(address(rig.db)).unwrap();
    let url = proxy.url(&rig.env["DATABASE_URL"]);
    rig.set("DATABASE_URL", &url);
    proxy
}

impl Rig {
    /// The relay's user.
    pub(crate) fn user(&self) -> String {
        let url = reqwest::Url::parse(&self.env["DATABASE_URL"]).unwrap();
        url.username().to_owned()
    }

    /// Kills every connection of the relay's user, which must be its own.
    pub(crate) async fn kill_relay_connections(&self) {
        let mut admin = self.db.admin().await.unwrap();
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT CAST(ID AS SIGNED) FROM information_schema.PROCESSLIST WHERE USER = ?",
        )
        .bind(self.user())
        .fetch_all(&mut admin)
        .await
        .unwrap();
        for id in ids {
            // It may have gone by itself.
            drop(self.db.execute(&format!("KILL {id}")).await);
        }
    }
}

/// A user of the relay's own, with the rights that README lists, so that its connections can be told
/// from the writers'.
pub(crate) async fn own_user(rig: &mut Rig) -> String {
    let user = format!("r{}", &rig.database.name[20..]);
    let rights = match rig.db.flavor() {
        Flavor::MariaDb => "REPLICATION SLAVE, BINLOG MONITOR",
        Flavor::MySql => "REPLICATION SLAVE, REPLICATION CLIENT",
    };
    let grants = [
        format!(
            "SELECT, INSERT, UPDATE, DELETE ON `{}`.*",
            rig.database.name
        ),
        format!("{rights} ON *.*"),
    ];
    rig.db.create_user(&user, "pw", &grants).await.unwrap();
    let url = rig.db.user_url(&user, "pw", &rig.database.name);
    rig.set("DATABASE_URL", &url);
    user
}

/// How long a row that is committed now takes to arrive.
pub(crate) async fn probe(rig: &Rig, deliveries: &Deliveries) -> Duration {
    let committed = Instant::now();
    let key = format!("probe {}", uuid::Uuid::now_v7());
    let id = rig.insert_one(&key, "order.pay", b"1").await;
    e2e::wait::until("the probe", LATER, async || deliveries.ids().contains(&id)).await;
    committed.elapsed()
}

/// Rows flow within the time the issue allows, counted from `since`.
pub(crate) async fn flows(
    rig: &Rig,
    deliveries: &Deliveries,
    since: Instant,
    what: &str,
) -> Duration {
    probe(rig, deliveries).await;
    let took = since.elapsed();
    tell(&format!(
        "{:?}: {what}: flows after {took:?}",
        rig.db.flavor()
    ));
    assert!(took < FLOWS_WITHIN, "{what}: {took:?}");
    took
}

/// Keeps what the long forms of a fault measured, by server.
#[cfg(feature = "long")]
pub(crate) fn record(what: &str, measured: impl IntoIterator<Item = (Flavor, Vec<Duration>)>) {
    for (flavor, mut took) in measured {
        took.sort();
        let text = format!(
            "{} times, none lost; median {:.1?}, longest {:.1?}",
            took.len(),
            took[took.len() / 2],
            took[took.len() - 1]
        );
        e2e::figures::record(&format!("{what}, {flavor:?}"), &text);
    }
}

/// Everything that the writers committed has arrived, in the order of each key.
pub(crate) async fn assert_complete(rig: &Rig, writers: Writers, deliveries: &Deliveries) {
    let committed = writers.stop(rig).await;
    wait_all_delivered(rig, deliveries).await;
    let probes = rig.count("aggregate_id LIKE 'probe %'").await;
    let committed = committed + usize::try_from(probes).unwrap();
    assert_eq!(assert_first_deliveries_in_order(deliveries), committed);
}

/// The relay was started by nobody but the test, and it drains.
pub(crate) async fn stop(relay: &Process) {
    assert!(relay.ended().unwrap().is_none(), "{}", relay.log());
    relay.terminate().unwrap();
    let status = relay.wait_exit(LATER).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", relay.log());
}
