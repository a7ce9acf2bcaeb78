//! MariaDB and MySQL.

use std::time::Instant;

use e2e::{Db, DbOptions, Flavor};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

/// The server and its directory must outlive nothing: taken before the drop, looked at after it.
async fn lives_survives_a_crash_and_goes(flavor: Flavor) {
    let started = Instant::now();
    let db = Db::start(flavor, DbOptions::default())
        .await
        .expect("the server starts");
    eprintln!("{flavor:?} started in {:?}", started.elapsed());
    let (pid, dir) = (db.pid().expect("it runs"), db.dir());
    let database = db.create_database().await.unwrap();
    let mut connection = database.connect().await.unwrap();
    sqlx::query("CREATE TABLE t (n INT PRIMARY KEY)")
        .execute(&mut connection)
        .await
        .unwrap();
    sqlx::query("INSERT INTO t VALUES (7)")
        .execute(&mut connection)
        .await
        .unwrap();

    db.kill().unwrap();
    assert!(
        sqlx::query("SELECT 1")
            .execute(&mut connection)
            .await
            .is_err(),
        "a dead server"
    );
    let restarted = Instant::now();
    db.restart()
        .await
        .expect("the server starts on the data of a crash");
    eprintln!("{flavor:?} restarted in {:?}", restarted.elapsed());
    assert_ne!(db.pid(), Some(pid));
    let mut connection = database.connect().await.unwrap();
    let kept: i32 = sqlx::query_scalar("SELECT n FROM t")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(kept, 7);

    db.stop().await.expect("an orderly shutdown");
    assert_eq!(db.pid(), None);
    db.restart().await.unwrap();

    let pid = db.pid().expect("it runs");
    assert!(crate::owner::alive(pid));
    drop(db);
    assert!(!crate::owner::alive(pid), "the process outlived its drop");
    assert!(!dir.exists(), "{} outlived its drop", dir.display());
}

#[tokio::test]
async fn mariadb_keeps_data_over_a_crash_and_is_gone_after_drop() {
    lives_survives_a_crash_and_goes(Flavor::MariaDb).await;
}

#[tokio::test]
async fn mysql_keeps_data_over_a_crash_and_is_gone_after_drop() {
    if e2e::shared::mysql().await.is_some() {
        lives_survives_a_crash_and_goes(Flavor::MySql).await;
    }
}

#[tokio::test]
async fn databases_are_durable_and_log_rows_as_in_production() {
    for db in e2e::shared::databases().await {
        let mut admin = db.admin().await.unwrap();
        let log_bin: bool = sqlx::query_scalar("SELECT @@GLOBAL.log_bin = 1")
            .fetch_one(&mut admin)
            .await
            .unwrap();
        assert!(log_bin, "no binlog on {:?}", db.flavor());
        for (variable, wanted) in [
            ("sync_binlog", "1"),
            ("innodb_flush_log_at_trx_commit", "1"),
            ("binlog_format", "ROW"),
            ("binlog_row_image", "FULL"),
            ("max_allowed_packet", "134217728"),
        ] {
            let sql = format!("SELECT CAST(@@GLOBAL.{variable} AS CHAR)");
            let value: String = sqlx::query_scalar(AssertSqlSafe(sql))
                .fetch_one(&mut admin)
                .await
                .unwrap();
            assert_eq!(value, wanted, "{variable} on {:?}", db.flavor());
        }
    }
}

#[tokio::test]
async fn each_mysql_server_has_an_id_of_its_own_and_gtids() {
    let Some(shared) = e2e::shared::mysql().await else {
        return;
    };
    let own = Db::start(Flavor::MySql, DbOptions::default())
        .await
        .unwrap();
    let mut ids = Vec::new();
    for db in [shared, &own] {
        let mut admin = db.admin().await.unwrap();
        let row = sqlx::query("SELECT @@server_uuid, @@gtid_mode, CAST(@@server_id AS CHAR)")
            .fetch_one(&mut admin)
            .await
            .unwrap();
        assert_eq!(row.get::<String, _>(1), "ON");
        ids.push((row.get::<String, _>(0), row.get::<String, _>(2)));
    }
    assert_ne!(ids[0].0, ids[1].0, "two servers with one server_uuid");
    assert_ne!(ids[0].1, ids[1].1, "two servers with one server_id");
}

#[tokio::test]
async fn a_user_has_the_rights_it_was_given_and_no_more() {
    for db in e2e::shared::databases().await {
        let database = db.create_database().await.unwrap();
        db.execute(&format!(
            "CREATE TABLE {}.t (n INT PRIMARY KEY)",
            database.name
        ))
        .await
        .unwrap();
        let user = format!("u{}", &database.name[24..]);
        db.create_user(&user, "pw", &[format!("SELECT ON {}.*", database.name)])
            .await
            .unwrap();
        let url = db.user_url(&user, "pw", &database.name);
        let pool = sqlx::MySqlPool::connect(&url).await.unwrap();
        sqlx::query("SELECT n FROM t")
            .fetch_all(&pool)
            .await
            .unwrap();
        assert!(
            sqlx::query("INSERT INTO t VALUES (1)")
                .execute(&pool)
                .await
                .is_err()
        );
    }
}

#[tokio::test]
async fn nobody_logs_in_without_a_password() {
    for db in e2e::shared::databases().await {
        for user in ["root", "anybody"] {
            let url = format!("mysql://{user}@127.0.0.1:{}/", db.port());
            let login = sqlx::MySqlConnection::connect(&url).await;
            assert!(login.is_err(), "{user} on {:?}", db.flavor());
        }
    }
}

#[tokio::test]
async fn a_bad_argument_fails_the_start_with_the_servers_own_words() {
    let options = DbOptions {
        args: vec!["--no-such-option=1".to_owned()],
        ..DbOptions::default()
    };
    let err = Db::start(Flavor::MariaDb, options)
        .await
        .expect_err("an unknown option");
    assert!(format!("{err:#}").contains("no-such-option"), "{err:#}");
}

#[tokio::test]
async fn files_are_there_for_the_server_before_it_starts() {
    let options = DbOptions {
        args: vec!["--init-file={dir}/more.sql".to_owned()],
        files: vec![(
            "more.sql".to_owned(),
            b"CREATE DATABASE from_file;".to_vec(),
        )],
        ..DbOptions::default()
    };
    let db = Db::start(Flavor::MariaDb, options).await.unwrap();
    db.execute("USE from_file").await.unwrap();
}

#[tokio::test]
async fn a_paused_server_answers_again_after_resume() {
    let db = Db::start(Flavor::MariaDb, DbOptions::default())
        .await
        .unwrap();
    db.pause().unwrap();
    let requested = tokio::time::timeout(std::time::Duration::from_millis(300), db.admin());
    assert!(requested.await.is_err(), "a stopped process answered");
    db.resume().unwrap();
    db.admin().await.unwrap();
}
