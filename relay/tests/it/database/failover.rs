//! Another server answers under the same name: a replica that was promoted, with the data, but with
//! binlog files and an identity of its own.

use std::time::{Duration, Instant};

use e2e::rig::ops::{FROM_BINLOG, TAILING, stop};
use e2e::rig::servers::OwnDb;
use e2e::rig::{LATER, QUEUE, Rig};
use e2e::{Db, Flavor};
use sqlx::{AssertSqlSafe, Row};

#[cfg(feature = "long")]
use super::world::record;
use super::world::{address, flows, probe, put_between};

const REPLICATOR: &str = "replicator";

/// How the old primary leaves.
#[derive(Clone, Copy, Debug)]
enum Old {
    /// Killed.
    Dead,
    /// Demoted in order: it lives, read-only, and keeps its connections.
    Demoted,
    /// Forgotten: it lives, takes writes, keeps its connections, and nobody places orders there.
    Forgotten,
}

/// A replica of `source` that has its data, from its first binlog event on.
async fn replica_of(source: &Db) -> OwnDb {
    let flavor = source.flavor();
    let args: &[&str] = match flavor {
        Flavor::MariaDb => &["--log-slave-updates=ON", "--log-bin=other"],
        Flavor::MySql => &["--log-bin=other"],
    };
    let replica = OwnDb::start(flavor, args).await;
    // Files and positions that have nothing to do with the source's.
    for _ in 0..3 {
        replica.execute("FLUSH BINARY LOGS").await.unwrap();
    }
    let port = source.port();
    let statements = match flavor {
        Flavor::MariaDb => [
            format!(
                "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port}, \
                 MASTER_USER = '{REPLICATOR}', MASTER_PASSWORD = 'pw', \
                 MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1"
            ),
            "START SLAVE".to_owned(),
        ],
        Flavor::MySql => [
            format!(
                "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {port}, \
                 SOURCE_USER = '{REPLICATOR}', SOURCE_PASSWORD = 'pw', SOURCE_AUTO_POSITION = 1, \
                 GET_SOURCE_PUBLIC_KEY = 1, SOURCE_CONNECT_RETRY = 1"
            ),
            "START REPLICA".to_owned(),
        ],
    };
    for statement in statements {
        replica.execute(&statement).await.unwrap();
    }
    replica.execute("SET GLOBAL read_only = ON").await.unwrap();
    replica
}

/// Everything that the source has committed, by GTID.
async fn committed(db: &Db) -> String {
    let statement = match db.flavor() {
        Flavor::MariaDb => "SELECT @@GLOBAL.gtid_binlog_pos",
        Flavor::MySql => "SELECT @@GLOBAL.gtid_executed",
    };
    let mut admin = db.admin().await.unwrap();
    sqlx::query_scalar(statement)
        .fetch_one(&mut admin)
        .await
        .unwrap()
}

async fn wait_caught_up(source: &Db, replica: &Db) {
    let wanted = committed(source).await;
    let wait = match source.flavor() {
        Flavor::MariaDb => "SELECT CAST(MASTER_GTID_WAIT(?, 30) AS SIGNED)",
        Flavor::MySql => "SELECT CAST(WAIT_FOR_EXECUTED_GTID_SET(?, 30) AS SIGNED)",
    };
    let mut admin = replica.admin().await.unwrap();
    let came: i64 = sqlx::query_scalar(wait)
        .bind(&wanted)
        .fetch_one(&mut admin)
        .await
        .unwrap();
    assert_eq!(came, 0, "{}", replica_state(replica).await);
}

async fn replica_state(replica: &Db) -> String {
    let mut admin = replica.admin().await.unwrap();
    let statement = match replica.flavor() {
        Flavor::MariaDb => "SHOW SLAVE STATUS",
        Flavor::MySql => "SHOW REPLICA STATUS",
    };
    let row = sqlx::raw_sql(AssertSqlSafe(statement))
        .fetch_one(&mut admin)
        .await
        .unwrap();
    (0..row.len())
        .filter_map(|column| row.try_get_unchecked::<String, _>(column).ok())
        .collect::<Vec<_>>()
        .join(" | ")
}

async fn promote(replica: &Db) {
    let statements = match replica.flavor() {
        Flavor::MariaDb => [
            "STOP SLAVE",
            "RESET SLAVE ALL",
            "SET GLOBAL read_only = OFF",
        ],
        Flavor::MySql => [
            "STOP REPLICA",
            "RESET REPLICA ALL",
            "SET GLOBAL read_only = OFF",
        ],
    };
    for statement in statements {
        replica.execute(statement).await.unwrap();
    }
}

/// The rig on another server with the same data.
fn moved(rig: &mut Rig, to: &'static Db) {
    rig.db = to;
    rig.database.url = to.url(&rig.database.name);
    rig.pool = rig.database.pool().unwrap();
}

async fn fail_over(flavor: Flavor, old: Old, rounds: usize) -> (Flavor, Vec<Duration>) {
    let mut took = Vec::new();
    let mut primary = OwnDb::start(flavor, &[]).await;
    let create = format!("CREATE USER '{REPLICATOR}'@'%' IDENTIFIED BY 'pw'");
    primary.execute(&create).await.unwrap();
    let grant = format!("GRANT REPLICATION SLAVE ON *.* TO '{REPLICATOR}'@'%'");
    primary.execute(&grant).await.unwrap();
    let mut rig = primary.rig().await;
    let proxy = put_between(&mut rig);
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let mut written = Vec::new();
    for round in 0..rounds {
        let replica = replica_of(&primary).await;
        rig.wait_metric(TAILING, 1.0).await;
        probe(&rig, &deliveries).await;
        // On the replica as well, whatever became of them: published, marked, or neither.
        written.extend(rig.insert(100).await);
        wait_caught_up(&primary, &replica).await;
        match old {
            Old::Dead => primary.kill().unwrap(),
            Old::Demoted => primary.execute("SET GLOBAL read_only = ON").await.unwrap(),
            Old::Forgotten => {}
        }
        promote(&replica).await;
        proxy.set_upstream(address(&replica));
        let began = Instant::now();
        moved(&mut rig, replica.server());
        written.extend(rig.insert(20).await);
        let what = format!("{old:?} primary, round {round}");
        took.push(flows(&rig, &deliveries, began, &what).await);
        primary = replica;
    }
    e2e::wait::until("every row", LATER, async || {
        let arrived = deliveries.ids();
        written.iter().all(|id| arrived.contains(id))
    })
    .await;
    rig.wait_metric(TAILING, 1.0).await;
    let before = rig.metric(FROM_BINLOG).await;
    probe(&rig, &deliveries).await;
    e2e::wait::until("the new server's binlog", LATER, async || {
        rig.metric(FROM_BINLOG).await > before
    })
    .await;
    // The row gauges are of the new server as well, which has nothing pending.
    e2e::wait::until(
        "the new server's gauges",
        Duration::from_secs(20),
        async || rig.metric("outbox_relay_pending_rows").await == Some(0.0),
    )
    .await;
    stop(&relay).await;
    (flavor, took)
}

#[tokio::test]
async fn orders_of_a_promoted_replica_flow_within_10_s_when_the_primary_died() {
    e2e::shared::on_every_server_at_once(async |flavor| fail_over(flavor, Old::Dead, 1).await)
        .await;
}

#[tokio::test]
async fn orders_of_a_promoted_replica_flow_within_10_s_when_the_primary_lives_on_as_a_replica() {
    e2e::shared::on_every_server_at_once(async |flavor| fail_over(flavor, Old::Demoted, 1).await)
        .await;
}

#[tokio::test]
async fn orders_of_a_promoted_replica_flow_within_10_s_when_the_primary_does_not_know() {
    fail_over(Flavor::MariaDb, Old::Forgotten, 1).await;
}

#[cfg(feature = "long")]
#[tokio::test]
async fn long_database_three_failovers_in_a_row_of_each_kind() {
    for old in [Old::Dead, Old::Demoted, Old::Forgotten] {
        let took =
            e2e::shared::on_every_server_at_once(async |flavor| fail_over(flavor, old, 3).await)
                .await;
        record(&format!("failovers, {old:?} primary"), took);
    }
}
