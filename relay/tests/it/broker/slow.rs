//! A way that is slow without being broken.

use e2e::Proxy;
use e2e::rig::{LATER, QUEUE, Rig, SOON};

use super::world::put_between;

/// A slow link: a batch of 1,000 messages of 1 kB takes ten seconds, less than any time-out.
const BYTES_PER_SECOND: u32 = 100_000;
const ROWS: usize = 1_000;

#[tokio::test]
async fn a_slow_way_to_broker_or_database_is_waited_for_and_repeats_nothing() {
    for slow_broker in [true, false] {
        let mut rig = Rig::new(e2e::shared::either().await).await;
        let proxy = if slow_broker {
            put_between(&mut rig, "")
        } else {
            let address = ([127, 0, 0, 1], rig.db.port()).into();
            let proxy = Proxy::start(address).unwrap();
            let url = proxy.url(&rig.env["DATABASE_URL"]);
            rig.set("DATABASE_URL", &url);
            proxy
        };
        let deliveries = rig.consume(QUEUE).await;
        let relay = rig.tailing().await;
        proxy.limit(Some(BYTES_PER_SECOND));
        let payload = vec![b'1'; 1_000];
        for row in 0..ROWS {
            rig.insert_one(&format!("k{row}"), "order.pay", &payload)
                .await;
        }
        let slowly = deliveries.count();
        assert!(slowly < ROWS, "the way is not slow");
        e2e::wait::until("all to arrive slowly", LATER, async || {
            deliveries.count() >= ROWS
        })
        .await;
        proxy.limit(None);
        rig.wait_sent(i64::try_from(ROWS).unwrap()).await;
        assert_eq!(deliveries.count(), ROWS, "{}", relay.log());
        assert_eq!(rig.count("attempts > 0").await, 0);
        relay.terminate().unwrap();
        assert!(relay.wait_exit(SOON).await.unwrap().success());
    }
}
