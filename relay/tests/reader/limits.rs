//! What the second reader can't do is refused before it reads, or reported when it meets it.

use e2e::Flavor;
use e2e::product::Process;
use e2e::rig::servers::OwnDb;
use e2e::rig::{LATER, Rig, SOON};
use futures::StreamExt;
use relay::source::binlog::library::Reader;
use svc_kit::database::DatabaseUrl;

use crate::reading::Outbox;
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

e2e::on_each_server!(a_server_that_it_cannot_read_is_refused_with_the_fix);
async fn a_server_that_it_cannot_read_is_refused_with_the_fix(flavor: Flavor) {
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
}

#[tokio::test]
async fn both_readers_look_into_a_compressed_transaction() {
    let Some(db) = e2e::shared::mysql().await else {
        return;
    };
    let rig = Rig::new(db).await;
    let outbox = Outbox::of(&rig).await;
    let from = outbox.position().await;
    let mut connection = rig.database.connect().await.unwrap();
    let compress = "SET SESSION binlog_transaction_compression = ON".to_owned();
    workload::run(&mut connection, &[compress, workload::plain()]).await;
    let until = outbox.position().await;
    for reader in [Reader::MysqlAsync, Reader::MysqlCdc] {
        let seen = outbox.read(reader, (&from, &until), |_| {}).await;
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0].ids().len(), 1, "{seen:?}");
    }
}

e2e::on_each_server!(a_new_user_logs_in_without_tls_and_one_without_the_right_reads_so);
async fn a_new_user_logs_in_without_tls_and_one_without_the_right_reads_so(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
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
        let mut events = Reader::MysqlCdc.open(&url, &from, None).await.unwrap();
        let first = tokio::time::timeout(LATER, events.next()).await;
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
