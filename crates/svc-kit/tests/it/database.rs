//! Sessions, faults and the first contact.

use std::collections::BTreeMap;
use std::time::Duration;

use e2e::{Db, Flavor};
use sqlx::{Connection as _, Executor as _};
use svc_kit::database::{DatabaseUrl, Fault, classify, first_contact};
use tokio_util::sync::CancellationToken;

use crate::empty_database;

async fn contact(url: &str) -> Result<(), svc_kit::boot::ConfigError> {
    let url = DatabaseUrl::parse(url).unwrap();
    let never = CancellationToken::new();
    let contact = first_contact(&url, &never);
    tokio::time::timeout(Duration::from_secs(30), contact)
        .await
        .expect("it waits in vain")
}

#[tokio::test]
async fn first_contact_tells_what_no_waiting_can_fix() {
    for server in e2e::shared::databases().await {
        let database = server.create_database().await.unwrap();
        contact(&database.url).await.unwrap();

        let wrong = server.user_url("admin", "hunter2", &database.name);
        let err = contact(&wrong).await.unwrap_err();
        assert_eq!(err.field, "DATABASE_URL");
        assert!(
            err.problem.contains("Access denied"),
            "{:?}: {err}",
            server.flavor()
        );
        assert!(!err.to_string().contains("hunter2"), "{err}");

        let err = contact(&server.url("no_such_database")).await.unwrap_err();
        assert!(
            err.problem.contains("Unknown database"),
            "{:?}: {err}",
            server.flavor()
        );
        assert!(err.fix.contains("create the database"), "{err}");
    }
}

#[tokio::test]
async fn first_contact_refuses_an_account_without_rights_on_the_database() {
    for server in e2e::shared::databases().await {
        let database = server.create_database().await.unwrap();
        let user = format!("u{}", &database.name[database.name.len() - 12..]);
        server.create_user(&user, "pw", &[]).await.unwrap();
        let err = contact(&server.user_url(&user, "pw", &database.name))
            .await
            .unwrap_err();
        assert!(err.fix.contains("GRANT"), "{:?}: {err}", server.flavor());
    }
}

#[tokio::test]
async fn first_contact_waits_for_a_server_that_is_down() {
    let server = Db::start(Flavor::MariaDb, e2e::DbOptions::default())
        .await
        .unwrap();
    let database = server.create_database().await.unwrap();
    server.stop().await.unwrap();
    let url = DatabaseUrl::parse(&database.url).unwrap();

    let stop = CancellationToken::new();
    let waiting = {
        let (url, stop) = (url.clone(), stop.clone());
        svc_kit::tasks::unit(async move { first_contact(&url, &stop).await })
    };
    let err = url.connect().await.unwrap_err();
    assert_eq!(classify(&err), Fault::Unavailable, "{err}");
    assert!(!waiting.is_finished());
    stop.cancel();
    waiting.await.unwrap().unwrap();

    let waiting =
        svc_kit::tasks::unit(async move { first_contact(&url, &CancellationToken::new()).await });
    server.restart().await.unwrap();
    let met = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    met.expect("it waits in vain").unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_hangs_is_away_after_five_seconds() {
    let server = Db::start(Flavor::MariaDb, e2e::DbOptions::default())
        .await
        .unwrap();
    let url = empty_database(&server).await;
    server.pause().unwrap();
    let begun = tokio::time::Instant::now();
    let err = url.connect().await.unwrap_err();
    server.resume().unwrap();
    assert_eq!(classify(&err), Fault::Unavailable, "{err}");
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn every_session_is_set_up_the_same_way_on_both_servers() {
    for server in e2e::shared::databases().await {
        // What the server prefers must not matter; new sessions take it from the global variables.
        let url = empty_database(server).await;
        let mut single = url.connect().await.unwrap();
        let pool = url.pool(1);
        let mut pooled = pool.acquire().await.unwrap();
        for connection in [&mut single, &mut *pooled] {
            let variables: BTreeMap<String, String> = sqlx::query_as(
                "SHOW SESSION VARIABLES WHERE Variable_name IN ('tx_isolation', \
                 'transaction_isolation', 'sql_mode', 'time_zone', 'character_set_client')",
            )
            .fetch_all(&mut *connection)
            .await
            .unwrap()
            .into_iter()
            .collect();
            let isolation = variables
                .get("transaction_isolation")
                .or(variables.get("tx_isolation"))
                .unwrap();
            assert_eq!(isolation, "READ-COMMITTED", "{:?}", server.flavor());
            assert_eq!(
                variables["sql_mode"],
                "STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION"
            );
            assert_eq!(variables["time_zone"], "+00:00");
            assert_eq!(variables["character_set_client"], "utf8mb4");
        }
    }
}

#[tokio::test]
async fn a_pool_never_hands_out_a_connection_inside_a_transaction() {
    for server in e2e::shared::databases().await {
        let url = empty_database(server).await;
        let pool = url.pool(1);
        pool.execute("CREATE TABLE t (n INT PRIMARY KEY)")
            .await
            .unwrap();
        // Another's view: it sees a row only once it is committed.
        let mut witness = url.connect().await.unwrap();
        let mut cut_off = 0;
        for n in 0..200_i64 {
            // A client that goes away drops its handler anywhere within `begin`.
            tokio::select! {
                biased;
                begun = pool.begin() => drop(begun.unwrap()),
                () = yields(n % 40) => cut_off += 1,
            }
            sqlx::query("INSERT INTO t VALUES (?)")
                .bind(n)
                .execute(&pool)
                .await
                .unwrap();
            let seen: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM t")
                .fetch_one(&mut witness)
                .await
                .unwrap();
            assert_eq!(
                seen,
                n + 1,
                "{:?}: row {n} was written and is not there",
                server.flavor()
            );
        }
        // Every fortieth waits for no look at all, so it can't have been answered.
        assert!(
            cut_off >= 5,
            "{:?}: only {cut_off} begins were cut off",
            server.flavor()
        );
        eprintln!("{:?}: {cut_off} of 200 begins cut off", server.flavor());
    }
}

/// A wait finer than any timer: so many looks at the sockets.
async fn yields(count: i64) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn errors_of_real_servers_are_whose_failure_they_are() {
    for server in e2e::shared::databases().await {
        let flavor = server.flavor();
        let url = empty_database(server).await;
        let mut connection = url.connect().await.unwrap();
        connection
            .execute("CREATE TABLE t (n INT PRIMARY KEY, m INT)")
            .await
            .unwrap();
        connection
            .execute("INSERT INTO t VALUES (1, 0)")
            .await
            .unwrap();

        let err = connection
            .execute("SELECT * FROM no_such_table")
            .await
            .unwrap_err();
        assert_eq!(classify(&err), Fault::MissingTable, "{flavor:?}: {err}");

        let err = connection
            .execute("INSERT INTO t VALUES (1, 0)")
            .await
            .unwrap_err();
        assert_eq!(classify(&err), Fault::Unavailable, "{flavor:?}: {err}");

        connection
            .execute("START TRANSACTION READ ONLY")
            .await
            .unwrap();
        let err = connection
            .execute("INSERT INTO t VALUES (2, 0)")
            .await
            .unwrap_err();
        assert_eq!(classify(&err), Fault::ReadOnly, "{flavor:?}: {err}");
        connection.execute("ROLLBACK").await.unwrap();

        let mut holder = url.connect().await.unwrap();
        let mut held = holder.begin().await.unwrap();
        held.execute("UPDATE t SET m = 1").await.unwrap();
        connection
            .execute("SET innodb_lock_wait_timeout = 1")
            .await
            .unwrap();
        let err = connection.execute("UPDATE t SET m = 2").await.unwrap_err();
        assert_eq!(classify(&err), Fault::Busy, "{flavor:?}: {err}");

        let session: u64 = sqlx::query_scalar("SELECT CONNECTION_ID()")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        server.execute(&format!("KILL {session}")).await.unwrap();
        let connection = tokio::sync::Mutex::new(connection);
        let fault = e2e::wait::until(
            "the session to be killed",
            Duration::from_secs(10),
            || async {
                connection
                    .lock()
                    .await
                    .execute("DO 0")
                    .await
                    .err()
                    .map(|err| classify(&err))
            },
        )
        .await;
        assert_eq!(fault, Fault::Unavailable, "{flavor:?}");
    }
}

#[tokio::test]
async fn a_missing_right_is_a_wrong_setting() {
    for server in e2e::shared::databases().await {
        let url = empty_database(server).await;
        url.pool(1).execute("CREATE TABLE t (n INT)").await.unwrap();
        let user = format!("r{}", &url.database()[url.database().len() - 12..]);
        let grants = [format!("SELECT ON `{}`.*", url.database())];
        server.create_user(&user, "pw", &grants).await.unwrap();
        let reader = server.user_url(&user, "pw", url.database());
        let mut connection = DatabaseUrl::parse(&reader)
            .unwrap()
            .connect()
            .await
            .unwrap();
        let err = connection
            .execute("INSERT INTO t VALUES (1)")
            .await
            .unwrap_err();
        let Fault::Misconfigured(config) = classify(&err) else {
            panic!("{err}")
        };
        assert_eq!(config.fix, "GRANT the account that right");
    }
}

#[tokio::test]
async fn required_tls_is_tls_and_an_unknown_authority_is_refused() {
    // MySQL makes itself a certificate at its first start; MariaDB 10.11 has none.
    let Some(server) = e2e::shared::mysql().await else {
        return;
    };
    let database = server.create_database().await.unwrap();
    let with =
        |mode: &str| DatabaseUrl::parse(&format!("{}?ssl-mode={mode}", database.url)).unwrap();
    let cipher = async |url: &DatabaseUrl| -> String {
        let mut connection = url.connect().await.unwrap();
        let (_, cipher): (String, String) = sqlx::query_as("SHOW STATUS LIKE 'Ssl_cipher'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        cipher
    };
    assert!(!cipher(&with("REQUIRED")).await.is_empty());
    assert!(!cipher(&with("PREFERRED")).await.is_empty());
    with("VERIFY_IDENTITY").connect().await.unwrap_err();
}

#[tokio::test]
async fn a_server_without_tls_is_refused_where_tls_is_required() {
    let database = e2e::shared::mariadb()
        .await
        .create_database()
        .await
        .unwrap();
    let err = contact(&format!("{}?ssl-mode=REQUIRED", database.url))
        .await
        .unwrap_err();
    assert!(err.problem.contains("does not support TLS"), "{err}");
}

/// Over TLS this statement leaves in several writes. With Nagle's algorithm on, each one would wait
/// for the server's delayed ACK of the one before: 40 ms or more.
#[tokio::test]
async fn a_long_statement_waits_for_no_ack() {
    for server in e2e::shared::databases().await {
        let database = server.create_database().await.unwrap();
        let url = DatabaseUrl::parse(&database.url).unwrap();
        let pool = url.pool(1);
        let mut fastest = Duration::MAX;
        for _ in 0..20 {
            let begun = std::time::Instant::now();
            let length: i64 = sqlx::query_scalar("SELECT CAST(OCTET_LENGTH(?) AS SIGNED)")
                .bind("x".repeat(40_000))
                .fetch_one(&pool)
                .await
                .unwrap();
            assert_eq!(length, 40_000);
            fastest = fastest.min(begun.elapsed());
        }
        let flavor = server.flavor();
        assert!(
            fastest < Duration::from_millis(30),
            "{flavor:?}: {fastest:?}"
        );
    }
}
