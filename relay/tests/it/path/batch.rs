//! A batch of several parts, by itself.

use std::cell::Cell;

use e2e::rig::{EXCHANGE, QUEUE, Rig, SOON};
use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection, ConnectionProperties};
use outbox::row::Row;
use relay::publish::batch::publish;
use relay::publish::confirms::{Outcome, Verdict};

const FRAME_MAX: usize = 131_072;

#[tokio::test]
async fn each_row_of_a_large_batch_has_its_own_answer() {
    let rig = Rig::new(e2e::shared::mariadb().await).await;
    let deliveries = rig.consume(QUEUE).await;
    let (channel, _connection) = channel(&rig).await;
    let invalid = [3, 510, 511, 512, 513, 1_099];
    let unroutable = [0, 509, 514, 1_023, 1_024, 1_098];
    let mut rows: Vec<Row> = (0..1_100).map(row).collect();
    for at in invalid {
        rows[at].headers = Some(b"[]".to_vec());
    }
    for at in unroutable {
        rows[at].routing_key = b"nobody.listens".to_vec();
    }

    let outcome = publish(&channel, &mut rows, FRAME_MAX, SOON, || true).await;
    let Outcome::Settled(verdicts) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(verdicts.len(), rows.len());
    for (at, verdict) in verdicts.iter().enumerate() {
        let right = match verdict {
            Verdict::Invalid(_) => invalid.contains(&at),
            Verdict::Returned(_) => unroutable.contains(&at),
            Verdict::Confirmed(_) => !invalid.contains(&at) && !unroutable.contains(&at),
            Verdict::Nacked => false,
        };
        assert!(right, "row {at}: {verdict:?}");
    }
    let sent = 1_100 - invalid.len() - unroutable.len();
    e2e::wait::until("the others", SOON, async || deliveries.count() == sent).await;
}

/// Stopped in the middle of a batch, a relay wakes up when another one has its place.
#[tokio::test]
async fn a_batch_goes_no_further_once_the_lease_is_over() {
    let rig = Rig::new(e2e::shared::mariadb().await).await;
    let deliveries = rig.consume(QUEUE).await;
    let (channel, connection) = channel(&rig).await;
    let mut rows: Vec<Row> = (0..1_100).map(row).collect();
    let calls = Cell::new(0);
    let once = || calls.replace(calls.get() + 1) == 0;

    let outcome = publish(&channel, &mut rows, FRAME_MAX, SOON, once).await;
    assert!(matches!(outcome, Outcome::Lost(_)), "{outcome:?}");
    let never = publish(&channel, &mut rows, FRAME_MAX, SOON, || false).await;
    assert!(matches!(never, Outcome::LeaseOver), "{never:?}");
    // After all that was sent before on this channel.
    let last = publish(&channel, &mut [row(5_000)], FRAME_MAX, SOON, || true).await;
    assert!(matches!(last, Outcome::Settled(_)), "{last:?}");
    drop(connection);
    let is_last = async || deliveries.ids().iter().any(|id| id == "m-5000");
    e2e::wait::until("the last message", SOON, is_last).await;
    assert_eq!(deliveries.count(), 512 + 1);
}

async fn channel(rig: &Rig) -> (Channel, Connection) {
    let url = &rig.vhost.amqp_url;
    let connection = Connection::connect(url, ConnectionProperties::default());
    let connection = connection.await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let confirm = ConfirmSelectOptions { nowait: false };
    channel.confirm_select(confirm).await.unwrap();
    (channel, connection)
}

/// A message that nothing is wrong with.
pub(crate) fn row(number: usize) -> Row {
    Row {
        id: number as u64,
        message_id: format!("m-{number}"),
        aggregate_type: "order".into(),
        aggregate_id: number.to_string().into(),
        event_type: "order.placed.v1".into(),
        exchange: EXCHANGE.into(),
        routing_key: "order.pay".into(),
        content_type: "application/json".into(),
        headers: None,
        payload: "{}".into(),
        created_at: Some(time::macros::datetime!(2026-01-01 0:00)),
    }
}
