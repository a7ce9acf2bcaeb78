//! What a process has resident while messages of every size wait for it.

use e2e::product::Process;
use e2e::wait::until;
use e2e::{Db, Rabbit};
use sqlx::MySqlPool;
use std::time::Duration;

use crate::app::{database, vhost};
use crate::messages::{Outgoing, Publisher};
use crate::process::{exit_code, start};

const MIB: usize = 1 << 20;
/// Hundreds of megabytes are written to the disk of a busy machine.
const LATER: Duration = Duration::from_secs(180);
/// `PAY_BUFFER_BYTES` of these tests, in MiB.
const BUFFER_MIB: usize = 32;

/// The bound of docs/sizing.md, in MiB, with messages of `largest` MiB.
const fn bound(largest: usize) -> usize {
    50 + BUFFER_MIB + 5 * largest
}

/// The most memory that the process has ever had resident, in MiB.
fn peak_mib(process: &Process) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid().unwrap()));
    let status = status.unwrap();
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: usize = line.split_whitespace().next().unwrap().parse().unwrap();
    kib / 1024
}

/// Without a line for each message: none of them is an order.
fn log_of(process: &Process) -> String {
    let log = process.log();
    let lines = log.lines().filter(|line| !line.contains("message failed"));
    lines.collect::<Vec<_>>().join("\n")
}

async fn stored(pool: &MySqlPool) -> usize {
    let rows: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM inbox")
        .fetch_one(pool)
        .await
        .unwrap();
    usize::try_from(rows).unwrap()
}

/// Messages of each size in turn, all of them waiting when the process starts; small ones between them,
/// so that the prefetch is wide when the next large one comes.
async fn measure(db: &'static Db, rabbit: &Rabbit, sizes: &[(usize, usize)]) {
    let (tables, vhost) = (database(db).await, vhost(rabbit).await);
    let pool = tables.pool().unwrap();
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    let mut sent = 0;
    for (count, bytes) in sizes {
        let payload = "x".repeat(*bytes);
        for _ in 0..*count {
            sent += 1;
            let message = Outgoing::new(&format!("m{sent}"), &payload);
            publisher.publish(&message).await;
        }
    }
    let buffer = (BUFFER_MIB * MIB).to_string();
    let env = [
        ("DATABASE_URL", tables.url.as_str()),
        ("AMQP_URL", vhost.amqp_url.as_str()),
        ("PAY_BUFFER_BYTES", buffer.as_str()),
    ];
    let began = std::time::Instant::now();
    let process = start(&["run"], &env);
    until("everything to be stored", LATER, async || {
        assert!(process.ended().unwrap().is_none(), "{}", process.log());
        stored(&pool).await == sent
    })
    .await;
    let (peak, took) = (peak_mib(&process), began.elapsed());
    let largest = sizes.iter().map(|(_, bytes)| bytes.div_ceil(MIB)).max();
    let bound = bound(largest.unwrap());
    eprintln!("{sizes:?}: {peak} MiB resident at most, the bound is {bound} MiB, {took:?}");
    let log = || log_of(&process);
    assert!(peak <= bound, "{peak} MiB of {bound}\n{}", log());
    process.terminate().unwrap();
    assert_eq!(exit_code(&process).await, Some(0), "{}", process.log());
    let log = log_of(&process);
    assert!(!log.contains("consumer stopped"), "{log}");
}

#[tokio::test]
async fn memory_is_bounded_with_messages_of_8_mib() {
    let sizes = [(40, 8 * MIB), (1500, 300), (20, 8 * MIB)];
    measure(
        e2e::shared::either().await,
        e2e::shared::rabbit().await,
        &sizes,
    )
    .await;
}

#[tokio::test]
async fn memory_is_bounded_with_the_largest_messages_of_rabbitmq_3() {
    let sizes = [(4, 128 * MIB), (1500, 300), (2, 128 * MIB)];
    measure(
        e2e::shared::either().await,
        e2e::shared::rabbit().await,
        &sizes,
    )
    .await;
}

#[tokio::test]
async fn memory_is_bounded_with_the_largest_messages_of_rabbitmq_4() {
    let Some(rabbit) = e2e::shared::rabbit4().await else {
        return;
    };
    let sizes = [(20, 16 * MIB), (1500, 300), (10, 16 * MIB)];
    measure(e2e::shared::either().await, rabbit, &sizes).await;
}
