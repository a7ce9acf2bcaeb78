//! Several instances on one inbox: they share the work, never do it twice, and take over from the
//! dead.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use e2e::figures;
use e2e::product::Process;
use e2e::provider::Reply;
use e2e::wait::until;
use e2e::{Provider as FakeProvider, TestDatabase, Vhost};
use uuid::Uuid;

use crate::app::{SOON, database, payments, vhost};
use crate::bench::Bench;
use crate::messages::{Outgoing, Publisher, order_payload, received};
use crate::process::{exit_code, start};
use crate::provider::{Act, Scripted};

/// What the product promises: rows of a dead instance are somebody else's by then.
const TAKE_OVER_MAX: Duration = Duration::from_secs(30);

struct Place {
    tables: TestDatabase,
    vhost: Vhost,
    fake: FakeProvider,
}

impl Place {
    async fn new() -> Self {
        let db = e2e::shared::either().await;
        Self {
            tables: database(db).await,
            vhost: vhost(e2e::shared::rabbit().await).await,
            fake: FakeProvider::start().unwrap(),
        }
    }

    /// An instance that is known to the provider by its name.
    fn instance(&self, name: &str, workers: &str) -> Process {
        let url = self.fake.url();
        let env = [
            ("DATABASE_URL", self.tables.url.as_str()),
            ("AMQP_URL", self.vhost.amqp_url.as_str()),
            ("PAY_PROVIDER", "http"),
            ("PAY_PROVIDER_URL", url.as_str()),
            ("PAY_PROVIDER_TOKEN", name),
            ("PAY_WORKERS", workers),
        ];
        start(&["run"], &env)
    }

    /// Orders that are there at once, so that one claim takes all of them.
    async fn receive(&self, orders: usize) -> Vec<String> {
        let bench = Bench::on(self.tables.clone(), Scripted::always(Act::Fail));
        let ids: Vec<Uuid> = (0..orders).map(|_| Uuid::now_v7()).collect();
        let batch = ids
            .iter()
            .map(|id| received(&format!("m-{id}"), &order_payload(*id)));
        bench.store.take_in(batch.collect(), None).await.unwrap();
        ids.iter().map(Uuid::to_string).collect()
    }

    async fn until_under_way(&self, calls: u32) {
        until("the charges to be under way", SOON, async || {
            self.fake.ledger().under_way() == calls
        })
        .await;
    }
}

/// One is killed, one is stopped for longer than its lease and wakes up again: default settings.
#[tokio::test]
async fn the_rows_of_a_dead_instance_are_taken_over_within_30_s() {
    let place = Place::new().await;
    let pool = place.tables.pool().unwrap();
    place
        .fake
        .script(|call| match call.authorization.as_deref() {
            // Its money is taken, its answer never comes.
            Some("Bearer killed") => Reply::captured().after(Duration::from_secs(3600)),
            // Answered while it sleeps.
            Some("Bearer stopped") => Reply::captured().after(Duration::from_secs(2)),
            _ => Reply::captured(),
        });
    let mut orders = place.receive(10).await;
    let killed = place.instance("killed", "1");
    place.until_under_way(10).await;
    orders.extend(place.receive(10).await);
    let stopped = place.instance("stopped", "1");
    place.until_under_way(20).await;

    stopped.pause().unwrap();
    killed.kill().unwrap();
    let died = Instant::now();
    let survivor = place.instance("survivor", "4");
    until("all payments", TAKE_OVER_MAX, async || {
        payments(&pool).await == 20
    })
    .await;
    let took = died.elapsed();
    figures::record(
        "pay-svc: rows of a killed and of a stopped instance taken over",
        &format!("{:.1} s", took.as_secs_f64()),
    );

    stopped.resume().unwrap();
    let publisher = Publisher::connect(&place.vhost.amqp_url).await;
    for _ in 0..20 {
        publisher.publish(&Outgoing::order(Uuid::now_v7())).await;
    }
    until("the payments after", SOON, async || {
        payments(&pool).await == 40
    })
    .await;
    until("the lost lease to be noticed", SOON, async || {
        stopped.log().contains("lease lost")
    })
    .await;
    let ledger = place.fake.ledger();
    assert_eq!(
        (
            ledger.charged(),
            ledger.doubled(),
            ledger.overlapped().len()
        ),
        (40, 0, 0)
    );
    for order in orders {
        assert_eq!(ledger.calls_with(&order), 2, "{}", survivor.log());
    }
}

/// Instances come and go in order while there is work: each message is worked on once.
#[tokio::test]
async fn instances_that_come_and_go_share_the_work_and_double_none() {
    let place = Place::new().await;
    let pool = place.tables.pool().unwrap();
    let shares = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let counted = Arc::clone(&shares);
    place.fake.script(move |call| {
        let name = call.authorization.clone().unwrap_or_default();
        *counted.lock().unwrap().entry(name).or_default() += 1;
        Reply::captured().after(Duration::from_millis(30))
    });
    let one = place.instance("one", "2");
    let other = place.instance("other", "2");
    let publisher = Publisher::connect(&place.vhost.amqp_url).await;
    for round in 0..3 {
        for _ in 0..150 {
            publisher.publish(&Outgoing::order(Uuid::now_v7())).await;
        }
        until("some of the work", SOON, async || {
            payments(&pool).await >= 150 * round + 20
        })
        .await;
        // What it has in hand it finishes; the rest is the other's.
        one.terminate().unwrap();
        assert_eq!(exit_code(&one).await, Some(0), "{}", one.log());
        one.start_again().unwrap();
    }
    until("all payments", SOON, async || payments(&pool).await == 450).await;
    let ledger = place.fake.ledger();
    assert_eq!(
        (ledger.calls(), ledger.charged()),
        (450, 450),
        "{}",
        other.log()
    );
    assert!(ledger.overlapped().is_empty());
    let shares = shares.lock().unwrap();
    assert!(
        shares.len() == 2 && shares.values().all(|share| *share > 20),
        "{shares:?}"
    );
}
