//! What the tests have in common beyond rows and writers: metrics by name, a database user of the
//! relay's own, looks at its readiness, and the proof that all of it came through.

use serde_json::Value;
use sqlx::AssertSqlSafe;

use super::writers::{Writers, assert_first_deliveries_in_order, wait_all_delivered};
use super::{Deliveries, LATER, Rig};
use crate::Flavor;
use crate::product::Process;

/// Messages that are confirmed and whose rows came by the binlog.
pub const FROM_BINLOG: &str = "outbox_relay_confirmed_total{source=\"binlog\"}";
/// Rows that a scan found and the binlog should have brought.
pub const MISSED: &str = "outbox_relay_missed_by_binlog_total";
/// The phase in which the relay follows the binlog.
pub const TAILING: &str = "outbox_relay_phase{phase=\"tailing\"}";

impl Rig {
    /// The relay's user in the database.
    pub fn user(&self) -> String {
        let url = reqwest::Url::parse(&self.env["DATABASE_URL"]).unwrap();
        url.username().to_owned()
    }

    /// Kills every binlog connection of the relay's user, which must be its own.
    pub async fn kill_dump(&self) {
        self.kill("COMMAND LIKE 'Binlog Dump%'").await;
    }

    /// Kills every connection of the relay's user, which must be its own.
    pub async fn kill_relay_connections(&self) {
        self.kill("TRUE").await;
    }

    async fn kill(&self, condition: &str) {
        let mut admin = self.db.admin().await.unwrap();
        let statement = format!(
            "SELECT CAST(ID AS SIGNED) FROM information_schema.PROCESSLIST \
             WHERE USER = ? AND {condition}"
        );
        let ids: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(statement))
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

/// A database user of the relay's own, with the rights that README lists, so that its connections
/// can be distinguished from the writers'.
pub async fn own_user(rig: &mut Rig) -> String {
    let user = format!("r{}", &rig.database.name[20..]);
    let tables = format!(
        "SELECT, INSERT, UPDATE, DELETE ON `{}`.*",
        rig.database.name
    );
    let grants = [tables, format!("{} ON *.*", binlog_rights(rig))];
    rig.db.create_user(&user, "pw", &grants).await.unwrap();
    let url = rig.db.user_url(&user, "pw", &rig.database.name);
    rig.set("DATABASE_URL", &url);
    user
}

/// The rights to read the binlog, as `GRANT` and `REVOKE` take them.
pub fn binlog_rights(rig: &Rig) -> &'static str {
    match rig.db.flavor() {
        Flavor::MariaDb => "REPLICATION SLAVE, BINLOG MONITOR",
        Flavor::MySql => "REPLICATION SLAVE, REPLICATION CLIENT",
    }
}

/// Status and body of `/readyz`; `None` when nobody answers.
pub async fn readiness(rig: &Rig) -> Option<(u16, Value)> {
    let url = format!("http://{}/readyz", rig.env["ADMIN_ADDR"]);
    let answer = reqwest::get(url).await.ok()?;
    Some((answer.status().as_u16(), answer.json().await.ok()?))
}

/// Rows that are written now come by the binlog. Named as probes, which [`assert_complete`] counts.
pub async fn wait_live(rig: &Rig) {
    let before = rig.metric(FROM_BINLOG).await;
    crate::wait::until("rows by the binlog", LATER, async || {
        let id = uuid::Uuid::now_v7();
        rig.insert_one(&format!("probe {id}"), "order.pay", b"1")
            .await;
        rig.metric(FROM_BINLOG).await > before
    })
    .await;
}

/// Waits until each of these messages has been delivered.
pub async fn wait_delivered(deliveries: &Deliveries, ids: &[String]) {
    crate::wait::until(&format!("{} messages", ids.len()), LATER, async || {
        let arrived = deliveries.ids();
        ids.iter().all(|id| arrived.contains(id))
    })
    .await;
}

/// Everything that the writers and the probes committed has arrived, in the order of each key.
pub async fn assert_complete(rig: &Rig, writers: Writers, deliveries: &Deliveries) {
    let committed = writers.stop(rig).await;
    wait_all_delivered(rig, deliveries).await;
    let probes = rig.count("aggregate_id LIKE 'probe %'").await;
    let committed = committed + usize::try_from(probes).unwrap();
    assert_eq!(assert_first_deliveries_in_order(deliveries), committed);
}

/// The relay was started by nobody but the test, and it drains.
pub async fn stop(relay: &Process) {
    assert!(relay.ended().unwrap().is_none(), "{}", relay.log());
    relay.terminate().unwrap();
    let status = relay.wait_exit(LATER).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", relay.log());
}
