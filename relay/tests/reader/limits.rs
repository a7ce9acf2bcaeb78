//! What the second reader can't do is refused before it reads, or told when it meets it.

use e2e::Flavor;
use e2e::product::Process;
use futures::StreamExt;
use relay::source::binlog::library::Reader;
use relay::source::binlog::transaction::Doubt;
use svc_kit::database::DatabaseUrl;

use crate::reading::Outbox;
use crate::rig::servers::{OwnDb, flavors};
use crate::rig::{LATER, Rig, SOON};
use crate::workload;

/// `relay run` and `relay check` end with these words.
async fn refused(rig: &Rig, check: i32, words: &[&str]) {
    for (command, code) in [("run", 64), ("check", check)] {
        let relay = rig.command(&[command]);
        let status = relay.wait_exit(SOON).await.unwrap();
        assert_eq!(status.code(), Some(code), "{command}: {}", relay.log());
        for word in words.iter().chain(&["RELAY_READER=mysql_async"]) {
            assert!(relay.log().contains(word), "{word}: {}", relay.log());
        }
    }
}

async fn checked(rig: &Rig) -> Process {
    let check = rig.command(&["check"]);
    let status = check.wait_exit(SOON).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", check.log());
    check
}

#[tokio::test]
async fn a_server_that_it_cannot_read_is_refused_with_the_fix() {
    for flavor in flavors().await {
        let db = OwnDb::start(flavor, &[]).await;
        let mut rig = db.rig().await;
        rig.set("RELAY_READER", "mysql_cdc");
        let url = rig.database.url.clone();

        rig.set("DATABASE_URL", &format!("{url}?ssl-mode=REQUIRED"));
        refused(&rig, 64, &["no TLS", "ssl-mode=DISABLED"]).await;
        rig.set("DATABASE_URL", &url);
        let check = checked(&rig).await;
        assert!(check.log().contains("unencrypted"), "{}", check.log());
        rig.set("DATABASE_URL", &format!("{url}?ssl-mode=DISABLED"));
        assert!(!checked(&rig).await.log().contains("unencrypted"));

        for column in ["VARCHAR(1000) CHARACTER SET latin1", "VARBINARY(1000)"] {
            rig.sql(&format!(
                "ALTER TABLE outbox MODIFY last_error {column} NULL"
            ))
            .await;
            refused(&rig, 1, &["last_error", "MODIFY", "utf8mb4"]).await;
        }
        rig.sql("ALTER TABLE outbox MODIFY last_error TEXT CHARACTER SET latin1 NULL")
            .await;
        checked(&rig).await;

        if flavor == Flavor::MySql {
            rig.sql("SET GLOBAL binlog_transaction_compression = ON")
                .await;
            refused(
                &rig,
                1,
                &[
                    "compressed",
                    "SET GLOBAL binlog_transaction_compression = OFF",
                ],
            )
            .await;
        }
    }
}

#[tokio::test]
async fn a_compressed_transaction_of_one_session_is_told_and_never_missed() {
    let Some(db) = e2e::shared::mysql().await else {
        return;
    };
    let mut rig = Rig::new(db).await;
    let outbox = Outbox::of(&rig).await;
    let from = outbox.position().await;
    let mut connection = rig.database.connect().await.unwrap();
    let compress = "SET SESSION binlog_transaction_compression = ON".to_owned();
    workload::run(&mut connection, &[compress, workload::plain()]).await;
    let until = outbox.position().await;

    let first = outbox
        .read(Reader::MysqlAsync, (&from, &until), |_| {})
        .await;
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].rows.len(), 1, "the first reader looks into it");
    let second = outbox.read(Reader::MysqlCdc, (&from, &until), |_| {}).await;
    assert_eq!(second.len(), 1);
    assert!(
        matches!(second[0].doubt, Some(Doubt::Undecodable(_))),
        "{second:?}"
    );

    // The relay finds it by a pass, at once.
    rig.set("RELAY_READER", "mysql_cdc")
        .set("RELAY_SWEEP_INTERVAL", "10m");
    let relay = rig.tailing().await;
    rig.wait_sent(1).await;
    workload::run(&mut connection, &[workload::plain()]).await;
    rig.wait_sent(2).await;
    let hidden = rig.metric("outbox_relay_undecodable_events_total").await;
    assert_eq!(hidden, Some(1.0), "{}", relay.log());
}

#[tokio::test]
async fn a_new_user_logs_in_without_tls_and_one_without_the_right_is_told_so() {
    for db in e2e::shared::databases().await {
        let rig = Rig::new(db).await;
        let outbox = Outbox::of(&rig).await;
        let from = outbox.position().await;
        for (number, right) in [
            "REPLICATION SLAVE, REPLICATION CLIENT ON *.*",
            "SELECT ON *.*",
        ]
        .into_iter()
        .enumerate()
        {
            let user = format!("c{number}{}", &rig.database.name[22..]);
            db.create_user(&user, "pw", &[right.to_owned()])
                .await
                .unwrap();
            // Nobody else has logged in, so the server has no hash of its password at hand.
            let url = DatabaseUrl::parse(&db.user_url(&user, "pw", &rig.database.name)).unwrap();
            let mut reading = Reader::MysqlCdc.open(&url, &from, None).await.unwrap();
            let first = tokio::time::timeout(LATER, reading.events.next()).await;
            let first = first.unwrap().unwrap();
            assert_eq!(first.is_ok(), number == 0, "{first:?}");
            if let Err(err) = first {
                assert!(
                    err.to_string().contains("1227") || err.to_string().contains("denied"),
                    "{err}"
                );
            }
        }
    }
}
