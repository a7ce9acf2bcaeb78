//! Errors that real servers give, and whose failure they are.

use std::time::Duration;

use e2e::proxy::Proxy;
use e2e::{Db, DbOptions, Flavor};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, MySqlConnection};
use svc_kit::database::{DatabaseUrl, Fault, classify, first_contact};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::empty_database;

async fn fails(connection: &mut MySqlConnection, statement: &str) -> sqlx::Error {
    let statement = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
    connection.execute(statement).await.unwrap_err()
}

fn assert_unavailable(err: &sqlx::Error, number: &str) {
    assert!(err.to_string().contains(number), "{number}: {err}");
    assert_eq!(classify(err), Fault::Unavailable, "{err}");
}

async fn session(connection: &mut MySqlConnection) -> u64 {
    let query = sqlx::query_scalar("SELECT CONNECTION_ID()");
    query.fetch_one(connection).await.unwrap()
}

/// A table of 512 numbers.
async fn numbers(connection: &mut MySqlConnection) {
    connection
        .execute("CREATE TABLE t (n INT PRIMARY KEY)")
        .await
        .unwrap();
    connection
        .execute("INSERT INTO t VALUES (0)")
        .await
        .unwrap();
    for bit in 0..9 {
        let double = format!("INSERT INTO t SELECT n + {} FROM t", 1 << bit);
        connection.execute(AssertSqlSafe(double)).await.unwrap();
    }
}

#[tokio::test]
async fn killed_and_slow_statements_and_full_tables_are_unavailable() {
    for server in e2e::shared::databases().await {
        let url = empty_database(server).await;
        let mut connection = url.connect().await.unwrap();
        numbers(&mut connection).await;
        // Not SLEEP: broken off, it returns 1 and no error.
        let slow = "SELECT COUNT(*) FROM t a, t b, t c, t d WHERE a.n + b.n + c.n + d.n < 0";
        let limited = match server.flavor() {
            Flavor::MariaDb => format!("SET STATEMENT max_statement_time = 0.2 FOR {slow}"),
            Flavor::MySql => slow.replace("SELECT", "SELECT /*+ MAX_EXECUTION_TIME(200) */"),
        };
        let number = match server.flavor() {
            Flavor::MariaDb => "1969",
            Flavor::MySql => "3024",
        };
        assert_unavailable(&fails(&mut connection, &limited).await, number);

        let id = session(&mut connection).await;
        let kill = format!("KILL QUERY {id}");
        let killer = async {
            let running = format!(
                "SELECT COUNT(*) FROM information_schema.processlist WHERE id = {id} \
                 AND info LIKE '%t d WHERE%'"
            );
            let mut witness = url.connect().await.unwrap();
            while sqlx::query_scalar::<_, i64>(AssertSqlSafe(running.clone()))
                .fetch_one(&mut witness)
                .await
                .unwrap()
                == 0
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            server.execute(&kill).await.unwrap();
        };
        let (err, ()) = tokio::join!(fails(&mut connection, slow), killer);
        assert_unavailable(&err, "1317");

        connection
            .execute("SET SESSION max_heap_table_size = 16384")
            .await
            .unwrap();
        connection
            .execute("CREATE TABLE m (x CHAR(250)) ENGINE = MEMORY")
            .await
            .unwrap();
        let full = loop {
            if let Err(err) = connection.execute("INSERT INTO m VALUES ('x')").await {
                break err;
            }
        };
        assert_unavailable(&full, "1114");
        // What a server says of its disk or a plugin is hard to come by: here in its own words.
        for number in [1021, 1030, 3100, 3101] {
            connection
                .execute("DROP PROCEDURE IF EXISTS says")
                .await
                .unwrap();
            let says = format!(
                "CREATE PROCEDURE says() SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, \
                 MESSAGE_TEXT = 'refused'"
            );
            connection.execute(AssertSqlSafe(says)).await.unwrap();
            let err = fails(&mut connection, "CALL says()").await;
            assert_unavailable(&err, &number.to_string());
        }
    }
}

#[tokio::test]
async fn a_deadlock_is_busy_and_a_value_is_its_own_fault() {
    for server in e2e::shared::databases().await {
        let url = empty_database(server).await;
        let (mut one, mut two) = (url.connect().await.unwrap(), url.connect().await.unwrap());
        for statement in [
            "CREATE TABLE t (n INT PRIMARY KEY, m TINYINT NOT NULL, c VARCHAR(3), \
             l VARCHAR(9) CHARACTER SET latin1)",
            "INSERT INTO t VALUES (1, 0, '', ''), (2, 0, '', '')",
        ] {
            one.execute(statement).await.unwrap();
        }
        let (first, second) = (
            "UPDATE t SET m = m + 1 WHERE n = 1",
            "UPDATE t SET m = m + 1 WHERE n = 2",
        );
        let mut tx_one = one.begin().await.unwrap();
        let mut tx_two = two.begin().await.unwrap();
        tx_one.execute(first).await.unwrap();
        tx_two.execute(second).await.unwrap();
        let (a, b) = tokio::join!(tx_one.execute(second), async {
            let done = tx_two.execute(first).await;
            tx_two.rollback().await.unwrap();
            done
        });
        let err = a.err().or(b.err()).expect("a deadlock");
        assert!(err.to_string().contains("1213"), "{err}");
        assert_eq!(classify(&err), Fault::Busy);
        tx_one.rollback().await.unwrap();

        for (statement, number) in [
            ("INSERT INTO t VALUES (3, NULL, '', '')", "1048"),
            ("INSERT INTO t VALUES (3, 1000, '', '')", "1264"),
            ("INSERT INTO t VALUES (3, 'x', '', '')", "1366"),
            ("INSERT INTO t VALUES (3, 0, 'long', '')", "1406"),
            (
                "INSERT INTO t VALUES (3, 0, '', _utf8mb4 x'E29883')",
                "1366",
            ),
        ] {
            let err = fails(&mut one, statement).await;
            assert!(err.to_string().contains(number), "{statement}: {err}");
            assert_eq!(classify(&err), Fault::Data, "{statement}: {err}");
        }
        for (statement, number) in [
            ("INSERT INTO t VALUES (1, 0, '', '')", "1062"),
            ("SELECT no_such_column FROM t", "1054"),
            ("SELEC", "1064"),
        ] {
            assert_unavailable(&fails(&mut one, statement).await, number);
        }
    }
}

#[tokio::test]
async fn a_packet_that_is_too_large_is_the_datas_fault() {
    for flavor in e2e::shared::databases().await.iter().map(|db| db.flavor()) {
        let args = vec!["--max-allowed-packet=64K".to_owned()];
        let options = DbOptions {
            args,
            ..DbOptions::default()
        };
        let server = Db::start(flavor, options).await.unwrap();
        let url = empty_database(&server).await;
        let statement = format!("SELECT OCTET_LENGTH('{}')", "x".repeat(70_000));
        // The server answers and closes with the rest of the packet unread, so that its answer may be
        // lost on the way: then it is a lost connection.
        let mut answered = None;
        for _ in 0..50 {
            let mut connection = url.connect().await.unwrap();
            let err = fails(&mut connection, &statement).await;
            if err.as_database_error().is_some() {
                answered = Some(err);
                break;
            }
            assert_eq!(classify(&err), Fault::Unavailable, "{flavor:?}: {err}");
        }
        let err = answered.expect("an answer that was not lost");
        assert!(err.to_string().contains("1153"), "{flavor:?}: {err}");
        assert_eq!(classify(&err), Fault::Data, "{flavor:?}");
    }
}

/// Limits pass: neither the server's, nor the account's, nor that of all accounts ends a start.
#[tokio::test]
async fn a_connection_limit_at_the_start_is_waited_for() {
    for flavor in e2e::shared::databases().await.iter().map(|db| db.flavor()) {
        let server = Db::start(flavor, DbOptions::default()).await.unwrap();
        let database = server.create_database().await.unwrap();
        let grants = [format!("ALL ON `{}`.*", database.name)];
        server.create_user("app", "pw", &grants).await.unwrap();
        let url = server.user_url("app", "pw", &database.name);
        let url = DatabaseUrl::parse(&url).unwrap();
        for (limit, free, number) in [
            (
                "ALTER USER 'app'@'%' WITH MAX_USER_CONNECTIONS 1",
                "ALTER USER 'app'@'%' WITH MAX_USER_CONNECTIONS 0",
                "1226",
            ),
            (
                "SET GLOBAL max_user_connections = 1",
                "SET GLOBAL max_user_connections = 0",
                "1203",
            ),
            (
                "SET GLOBAL max_connections = 10",
                "SET GLOBAL max_connections = 100",
                "1040",
            ),
        ] {
            let mut admin = server.admin().await.unwrap();
            if number == "1203" {
                // MariaDB takes the limit only where there was one at the start.
                let Ok(_) = admin.execute(limit).await else {
                    continue;
                };
            } else {
                admin.execute(limit).await.unwrap();
            }
            let mut held = Vec::new();
            let err = loop {
                match url.connect().await {
                    Ok(connection) => held.push(connection),
                    Err(err) => break err,
                }
            };
            assert_unavailable(&err, number);
            let never = CancellationToken::new();
            let waiting = {
                let (url, never) = (url.clone(), never.clone());
                svc_kit::tasks::unit(async move { first_contact(&url, &never).await })
            };
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(!waiting.is_finished(), "{flavor:?} {number}");
            admin.execute(free).await.unwrap();
            drop(held);
            let met = tokio::time::timeout(Duration::from_secs(30), waiting).await;
            met.expect("it waits in vain").unwrap().unwrap();
        }
    }
}

/// Whenever the connection goes, nobody knows what the server has done: that is never the data's fault.
#[tokio::test]
async fn a_connection_that_is_lost_in_any_phase_is_unavailable() {
    for server in e2e::shared::databases().await {
        let direct = empty_database(server).await;
        let proxy = Proxy::start(([127, 0, 0, 1], server.port()).into()).unwrap();
        let database = server.url(direct.database());
        let url = DatabaseUrl::parse(&proxy.url(&database)).unwrap();
        let lost = |err: sqlx::Error| assert_eq!(classify(&err), Fault::Unavailable, "{err}");

        let mut connection = url.connect().await.unwrap();
        connection
            .execute("CREATE TABLE t (n INT PRIMARY KEY)")
            .await
            .unwrap();
        // The statement is on its way.
        proxy.cut_after(20_000);
        let long = format!("SELECT OCTET_LENGTH('{}')", "x".repeat(100_000));
        lost(fails(&mut connection, &long).await);
        // Its answer is awaited.
        let mut connection = url.connect().await.unwrap();
        proxy.stall_answers();
        let cut = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            proxy.cut();
        };
        let (err, ()) = tokio::join!(fails(&mut connection, "SELECT 1"), cut);
        lost(err);
        proxy.resume();
        // The commit's answer is awaited.
        let mut connection = url.connect().await.unwrap();
        let mut tx = connection.begin().await.unwrap();
        tx.execute("INSERT INTO t VALUES (1)").await.unwrap();
        proxy.stall_answers();
        let cut = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            proxy.cut();
        };
        let (done, ()) = tokio::join!(tx.commit(), cut);
        lost(done.unwrap_err());
        proxy.resume();
        // Nobody listens.
        proxy.close();
        lost(url.connect().await.unwrap_err());
        proxy.open();
    }
    // In the handshake: not a byte, then half of one.
    for greeting in [b"".as_slice(), b"\x4a\x00\x00\x00\x0a10.11"] {
        let err = greeted(greeting).await;
        assert_eq!(classify(&err), Fault::Unavailable, "{err}");
    }
}

/// The error of a connection to a server that says this and no more.
async fn greeted(greeting: &'static [u8]) -> sqlx::Error {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let url = DatabaseUrl::parse(&format!("mysql://u:p@{addr}/d")).unwrap();
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(greeting).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(url.connect(), server);
    outcome.unwrap_err()
}

/// As ed25519 of MariaDB: the server greets like any other and then requests what the driver lacks.
#[tokio::test]
async fn an_account_with_an_unknown_plugin_ends_the_start_with_its_name() {
    let mut greeting = vec![10];
    greeting.extend(b"11.4.0-MariaDB\0\x01\0\0\0saltsalt\0");
    // PROTOCOL_41, SECURE_CONNECTION, PLUGIN_AUTH, CONNECT_WITH_DB; utf8mb4; autocommit.
    greeting.extend([0x08, 0x82, 45, 2, 0, 0x08, 0, 21]);
    greeting.extend([0; 10]);
    greeting.extend(b"saltsaltsalt\0mysql_native_password\0");
    let mut switch = vec![0xfe];
    switch.extend(b"client_ed25519\0saltsaltsaltsaltsaltsaltsaltsalt");
    let packet = |sequence: u8, body: Vec<u8>| {
        let length = u8::try_from(body.len()).unwrap();
        [vec![length, 0, 0, sequence], body].concat()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = svc_kit::tasks::unit(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&packet(0, greeting)).await.unwrap();
        let mut answer = [0; 1024];
        tokio::io::AsyncReadExt::read(&mut stream, &mut answer)
            .await
            .unwrap();
        stream.write_all(&packet(2, switch)).await.unwrap();
        stream
    });
    let url = format!("mysql://u:p@{addr}/d?ssl-mode=DISABLED");
    let url = DatabaseUrl::parse(&url).unwrap();
    let never = CancellationToken::new();
    let contact = first_contact(&url, &never);
    let contact = tokio::time::timeout(Duration::from_secs(20), contact).await;
    let err = contact.expect("it waits").unwrap_err();
    assert_eq!(err.field, "DATABASE_URL");
    assert!(err.problem.contains("client_ed25519"), "{err}");
    assert!(err.fix.contains("mysql_native_password"), "{err}");
    drop(server.await.unwrap());
}
