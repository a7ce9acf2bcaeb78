//! What the database's faults have in common: a way to the server that can be cut, and how
//! soon rows flow again.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use e2e::Db;
use e2e::proxy::Proxy;
use e2e::rig::writers::print;
use e2e::rig::{Deliveries, LATER, Rig};

/// What is committed after a fault, or after the server is back, is delivered within this.
pub(crate) const FLOWS_WITHIN: Duration = Duration::from_secs(10);

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
    print(&format!(
        "{:?}: {what}: flows after {took:?}",
        rig.db.flavor()
    ));
    assert!(took < FLOWS_WITHIN, "{what}: {took:?}");
    took
}

/// Keeps what the long forms of a fault measured, by server.
#[cfg(feature = "long")]
pub(crate) fn record(what: &str, measured: impl IntoIterator<Item = (e2e::Flavor, Vec<Duration>)>) {
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
