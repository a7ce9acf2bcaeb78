//! Payloads as large as they get.

use e2e::Db;
use e2e::rig::writers::print;
use e2e::rig::{LATER, Rig};

use crate::bulk::{Arrived, Filled, fill, peak_mib};

const PAYLOAD: usize = 8 << 20;

/// What the relay may have resident with the default settings and payloads of 8 MiB (measured: 149 to 161):
/// 24 MiB at rest; half of RELAY_BUFFER_BYTES loaded or being loaded; at most 12 MiB and one message more
/// on their way, each alone since it is over RELAY_BATCH_BYTES, as AMQP frames and as rows until these are
/// made; and the event of a mark, which has its row twice: 16 MiB, in the library's buffer and by itself.
const MEMORY_MAX_MIB: f64 = 176.0;

#[tokio::test]
async fn memory_is_bounded_with_payloads_of_8_mib() {
    payloads(e2e::shared::either().await, 24).await;
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_load_payloads_of_8_mib);
#[cfg(feature = "long")]
async fn long_load_payloads_of_8_mib(flavor: e2e::Flavor) {
    let db = e2e::shared::database(flavor).await;
    let figures = payloads(db, 200).await;
    let name = format!("2 × 200 payloads of 8 MiB, {:?}", db.flavor());
    e2e::figures::record(&name, &figures);
}

async fn payloads(db: &'static Db, rows: usize) -> String {
    let mut rig = Rig::new(db).await;
    rig.set("RUST_LOG", "info");
    let payload = format!("REPEAT('x', {PAYLOAD})");
    let large = || Filled {
        payload: &payload,
        ..Filled::default()
    };
    for _ in 0..rows {
        fill(&rig, 1, large()).await;
    }
    let arrived = Arrived::consume(&rig).await;
    let relay = rig.tailing().await;
    let catching_up = peak_mib(&relay);
    for _ in 0..rows {
        fill(&rig, 1, large()).await;
    }
    e2e::wait::until("everything to arrive", LATER, async || {
        arrived.count() == 2 * rows && rig.count("status = 1").await == 0
    })
    .await;
    let peak = peak_mib(&relay);
    relay.terminate().unwrap();
    let figures = format!(
        "at most {catching_up:.0} MiB while catching up with {rows}, {peak:.0} MiB after tailing as many"
    );
    print(&figures);
    assert!(peak < MEMORY_MAX_MIB, "{figures}");
    figures
}
