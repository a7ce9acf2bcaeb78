//! Wrong configuration: one clear message with the fix and exit code 64, or a wait that says what it
//! waits for and goes on by itself. Never a panic, never a silent loop.

use e2e::Flavor;
use e2e::product::Process;
use e2e::rig::rows::{assert_calm, wait_log};
use e2e::rig::servers::OwnDb;
use e2e::rig::{LATER, Rig, SOON};

/// The relay ends with 64, and its last line tells the setting, the problem and the fix.
async fn refused(rig: &Rig, args: &[&str], texts: &[&str]) {
    let relay = rig.command(args);
    let status = relay.wait_exit(SOON).await.unwrap();
    let log = relay.log();
    assert_eq!(status.code(), Some(64), "{texts:?}: {log}");
    assert!(!log.contains("panicked"), "{log}");
    assert!(!log.contains("throwaway"), "the password: {log}");
    let said = log
        .lines()
        .any(|line| texts.iter().all(|text| line.contains(text)));
    assert!(said, "{texts:?} in one line of: {log}");
}

/// SIGTERM while it waits is no failure.
async fn leaves(relay: &Process) {
    relay.terminate().unwrap();
    let status = relay.wait_exit(SOON).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", relay.log());
    assert!(!relay.log().contains("panicked"), "{}", relay.log());
}

async fn wait_ready(rig: &Rig, status: u16) {
    let url = format!("http://{}/readyz", rig.env["ADMIN_ADDR"]);
    e2e::wait::until(&format!("readiness {status}"), LATER, async || {
        reqwest::get(&url)
            .await
            .is_ok_and(|answer| answer.status() == status)
    })
    .await;
}

/// A user of the test's own, with all rights on the rig's database and these.
async fn log_in_as_other(rig: &mut Rig, further: &[&str]) -> String {
    let user = format!("u{}", &rig.database.name[20..]);
    let mut grants = vec![format!(
        "SELECT, INSERT, UPDATE, DELETE, CREATE ON `{}`.*",
        rig.database.name
    )];
    grants.extend(further.iter().map(|&grant| grant.to_owned()));
    rig.db.create_user(&user, "pw", &grants).await.unwrap();
    let url = rig.db.user_url(&user, "pw", &rig.database.name);
    rig.set("DATABASE_URL", &url);
    user
}

/// A setting, a value that it can't have, and what the refusal says in one line.
const WRONG: [(&str, &str, &[&str]); 25] = [
    (
        "DATABASE_URL",
        "",
        &["DATABASE_URL", "is not set", "mysql://"],
    ),
    (
        "DATABASE_URL",
        "localhost",
        &["DATABASE_URL", "is not a URL", "mysql://"],
    ),
    (
        "DATABASE_URL",
        "postgres://a:b@h/d",
        &["DATABASE_URL", "scheme \"postgres\""],
    ),
    (
        "DATABASE_URL",
        "mysql://a:b@h",
        &["DATABASE_URL", "names no database"],
    ),
    (
        "DATABASE_URL",
        "mysql://a:b@h:port/d",
        &["DATABASE_URL", "port"],
    ),
    (
        "DATABASE_URL",
        "mysql://a:b@h/d?ssl-mode=VERIFY_CA",
        &["VERIFY_CA", "use VERIFY_IDENTITY"],
    ),
    (
        "DATABASE_URL",
        "mysql://a:b@h/d?sslmode=off",
        &["unknown parameter \"sslmode\""],
    ),
    (
        "DATABASE_URL_FILE",
        "/no/such",
        &["DATABASE_URL", "DATABASE_URL_FILE", "unset one"],
    ),
    ("AMQP_URL", "", &["AMQP_URL", "is not set", "amqp://"]),
    (
        "AMQP_URL",
        "http://h/v",
        &["AMQP_URL", "scheme \"http\"", "amqp://"],
    ),
    (
        "AMQP_CA_FILE",
        "/no/such.pem",
        &["AMQP_CA_FILE", "can't read /no/such.pem"],
    ),
    ("RELAY_MODE", "push", &["push", "--mode"]),
    (
        "RELAY_READER",
        "file",
        &["'file'", "--reader", "mysql_async or mysql_cdc"],
    ),
    ("RELAY_ORDER", "some", &["some", "--order"]),
    ("RELAY_LANES", "0", &["'0'", "--lanes", "1..=64"]),
    ("RELAY_BATCH_MAX", "many", &["'many'", "--batch-max"]),
    (
        "RELAY_SWEEP_INTERVAL",
        "10",
        &["'10'", "--sweep-interval", "200ms"],
    ),
    (
        "RELAY_POLL_INTERVAL",
        "0s",
        &["RELAY_POLL_INTERVAL", "under a millisecond"],
    ),
    (
        "RELAY_CANARY_INTERVAL",
        "often",
        &["'often'", "--canary-interval", "30s"],
    ),
    (
        "RELAY_CANARY_INTERVAL",
        "500ms",
        &[
            "RELAY_CANARY_INTERVAL",
            "under a second",
            "0s for no canary",
        ],
    ),
    (
        "RELAY_MAX_ATTEMPTS",
        "0",
        &["'0'", "--max-attempts", "1..="],
    ),
    (
        "RELAY_BACKOFF_MAX",
        "1ms",
        &["RELAY_BACKOFF_MAX", "RELAY_BACKOFF_MIN", "at least as long"],
    ),
    (
        "RELAY_OUTBOX_TABLE",
        "a.b",
        &["RELAY_OUTBOX_TABLE", "\"a.b\"", "letters"],
    ),
    ("ADMIN_ADDR", "here", &["'here'", "--admin-addr"]),
    ("LOG_FORMAT", "xml", &["xml", "--log-format"]),
];

#[tokio::test]
async fn values_that_can_not_work_are_refused_with_the_setting_and_the_fix() {
    let mut rig = Rig::without_queue(e2e::shared::mariadb().await).await;
    for (name, value, texts) in WRONG {
        let before = rig.env.clone();
        rig.set(name, value);
        refused(&rig, &["run"], texts).await;
        refused(&rig, &["check"], texts).await;
        rig.env = before;
    }
    if cfg!(not(feature = "mysql-cdc")) {
        let before = rig.env.clone();
        rig.set("RELAY_READER", "mysql_cdc");
        let texts = ["built without it", "--features mysql-cdc"];
        refused(&rig, &["run"], &texts).await;
        rig.env = before;
    }
    refused(&rig, &["run", "--no-such-flag"], &["--no-such-flag"]).await;
    refused(&rig, &["walk"], &["walk"]).await;
    refused(&rig, &[], &["Usage"]).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    rig.set("ADMIN_ADDR", &address);
    refused(&rig, &["run"], &["ADMIN_ADDR", &address]).await;
}

e2e::on_each_server!(
    what_the_servers_refuse_at_first_contact_is_refused_with_the_setting_and_the_fix
);
async fn what_the_servers_refuse_at_first_contact_is_refused_with_the_setting_and_the_fix(
    flavor: Flavor,
) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::without_queue(db).await;
    let before = rig.env.clone();
    let wrong = db.user_url("admin", "wrong", &rig.database.name);
    rig.set("DATABASE_URL", &wrong);
    refused(
        &rig,
        &["run"],
        &[
            "relay: DATABASE_URL",
            "this user @",
            "check user and password",
        ],
    )
    .await;
    rig.set(
        "DATABASE_URL",
        &db.user_url("nobody", "wrong", &rig.database.name),
    );
    refused(&rig, &["run"], &["relay: DATABASE_URL", "this user @"]).await;
    rig.set("DATABASE_URL", &db.url("no_such_database"));
    let texts = [
        "relay: DATABASE_URL",
        "no_such_database",
        "create the database",
    ];
    refused(&rig, &["run"], &texts).await;
    rig.env = before.clone();

    let url = rig.rabbit.user_url("admin", "wrong", &rig.vhost.name);
    rig.set("AMQP_URL", &url);
    refused(
        &rig,
        &["run"],
        &["AMQP_URL", "ACCESS_REFUSED", "check user and password"],
    )
    .await;
    let url = rig.rabbit.amqp_url("no-such-vhost");
    rig.set("AMQP_URL", &url);
    refused(
        &rig,
        &["run"],
        &["AMQP_URL", "no-such-vhost", "check the vhost"],
    )
    .await;
}

e2e::on_each_server!(
    a_missing_replication_right_is_refused_in_cdc_mode_and_not_needed_in_poll_mode
);
async fn a_missing_replication_right_is_refused_in_cdc_mode_and_not_needed_in_poll_mode(
    flavor: Flavor,
) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    let user = log_in_as_other(&mut rig, &[]).await;
    let grant = format!("GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {user}");
    refused(&rig, &["run"], &[&grant, "RELAY_MODE=poll"]).await;

    rig.set("RELAY_MODE", "poll")
        .set("RELAY_SWEEP_INTERVAL", "5m");
    rig.insert(5).await;
    let relay = rig.relay();
    rig.wait_phase("polling").await;
    rig.insert(5).await;
    rig.wait_sent(10).await;
    assert_calm(&relay);
    leaves(&relay).await;

    // The fix, word for word as far as it names the user.
    rig.set("RELAY_MODE", "cdc");
    db.execute(&format!("{grant}@'%'")).await.unwrap();
    let relay = rig.tailing().await;
    rig.insert(5).await;
    rig.wait_sent(15).await;
    assert_calm(&relay);
    leaves(&relay).await;
}

#[tokio::test]
async fn an_account_with_a_plugin_that_the_reader_of_the_binlog_lacks_is_refused_with_its_name() {
    let Some(db) = e2e::shared::mysql().await else {
        return;
    };
    let mut rig = Rig::new(db).await;
    let rights = "REPLICATION SLAVE, REPLICATION CLIENT ON *.*";
    let user = log_in_as_other(&mut rig, &[rights]).await;
    let plugin = format!("ALTER USER '{user}'@'%' IDENTIFIED WITH sha256_password BY 'pw'");
    rig.db.execute(&plugin).await.unwrap();
    let says = [
        "plugin sha256_password, which the reader of the binlog does not speak",
        "caching_sha2_password",
        "RELAY_MODE=poll",
    ];
    refused(&rig, &["run"], &says).await;
    rig.set("RELAY_MODE", "poll");
    let relay = rig.relay();
    rig.wait_phase("polling").await;
    leaves(&relay).await;
}

e2e::on_each_server!(a_missing_right_on_the_tables_is_refused_with_what_is_missing);
async fn a_missing_right_on_the_tables_is_refused_with_what_is_missing(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::without_queue(db).await;
    let user = format!("u{}", &rig.database.name[20..]);
    let read = format!("SELECT ON `{}`.*", rig.database.name);
    db.create_user(&user, "pw", &[read]).await.unwrap();
    rig.set(
        "DATABASE_URL",
        &db.user_url(&user, "pw", &rig.database.name),
    );
    refused(
        &rig,
        &["run"],
        &["UPDATE command denied", "GRANT", &rig.database.name],
    )
    .await;
    let but_insert = [
        format!("SELECT, UPDATE, DELETE ON `{}`.*", rig.database.name),
        format!("INSERT ON `{}`.outbox_attempts", rig.database.name),
        format!("INSERT ON `{}`.operator_actions", rig.database.name),
    ];
    for grant in but_insert {
        db.execute(&format!("GRANT {grant} TO {user}@'%'"))
            .await
            .unwrap();
    }
    rig.set("RELAY_MODE", "poll")
        .set("RELAY_CANARY_INTERVAL", "30s");
    let fix = [
        "INSERT command denied",
        "GRANT INSERT ON",
        "RELAY_CANARY_INTERVAL=0s",
    ];
    refused(&rig, &["run"], &fix).await;
}

e2e::on_each_server!(a_server_without_binlog_is_refused_in_cdc_mode_and_good_enough_for_poll_mode);
async fn a_server_without_binlog_is_refused_in_cdc_mode_and_good_enough_for_poll_mode(
    flavor: Flavor,
) {
    let db = OwnDb::start(flavor, &["--skip-log-bin"]).await;
    let mut rig = db.rig().await;
    refused(&rig, &["run"], &["log_bin", "OFF", "RELAY_MODE=poll"]).await;
    rig.set("RELAY_MODE", "poll");
    let relay = rig.relay();
    rig.wait_phase("polling").await;
    rig.insert(10).await;
    rig.wait_sent(10).await;
    assert_calm(&relay);
    leaves(&relay).await;
}

e2e::on_each_server!(an_unreachable_database_is_waited_for);
async fn an_unreachable_database_is_waited_for(flavor: Flavor) {
    let db = OwnDb::start(flavor, &[]).await;
    let rig = db.rig().await;
    rig.insert(5).await;
    db.stop().await.unwrap();
    let relay = rig.relay();
    wait_log(&relay, "waiting for the database").await;
    wait_ready(&rig, 503).await;
    leaves(&relay).await;

    relay.start_again().unwrap();
    wait_log(&relay, "waiting for the database").await;
    db.restart().await.unwrap();
    rig.wait_phase("tailing").await;
    rig.wait_sent(5).await;
    assert_calm(&relay);
    wait_ready(&rig, 200).await;

    db.kill().unwrap();
    wait_ready(&rig, 503).await;
    db.restart().await.unwrap();
    wait_ready(&rig, 200).await;
    rig.insert(5).await;
    rig.wait_sent(10).await;
    leaves(&relay).await;
}

#[tokio::test]
async fn a_broker_that_can_not_be_reached_is_waited_for() {
    let mut rig = Rig::new(e2e::shared::mariadb().await).await;
    let port = e2e::port::free().unwrap();
    rig.set("AMQP_URL", &format!("amqp://127.0.0.1:{port}/v"));
    rig.insert(5).await;
    let relay = rig.relay();
    wait_log(&relay, "broker: IO error: Connection refused").await;
    let ready = reqwest::get(format!("http://{}/readyz", rig.env["ADMIN_ADDR"])).await;
    let ready = ready.unwrap();
    assert_eq!(ready.status(), 503);
    let report: serde_json::Value = ready.json().await.unwrap();
    assert_eq!(report["conditions"]["broker"]["ok"], false, "{report}");
    leaves(&relay).await;
    assert_eq!(rig.count("status = 1 AND attempts = 0").await, 5);
}

e2e::on_each_server!(a_table_that_is_not_there_yet_is_waited_for);
async fn a_table_that_is_not_there_yet_is_waited_for(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_OUTBOX_TABLE", "letters");
    let relay = rig.relay();
    wait_log(&relay, "there is no table").await;
    let line = relay.log();
    let line = line.lines().find(|line| line.contains("there is no table"));
    let line = line.unwrap_or_default();
    assert!(line.contains(".letters"), "{line}");
    assert!(line.contains("run `relay migrate`"), "{line}");

    let migrate = rig.command(&["migrate"]);
    let status = migrate.wait_exit(LATER).await.unwrap();
    assert!(status.success(), "{}", migrate.log());
    rig.wait_phase("tailing").await;
    rig.sql(
        "INSERT INTO letters (message_id, aggregate_type, aggregate_id, event_type, \
         routing_key, payload) VALUES (UUID(), 'order', 'k', 't', 'order.pay', '{}')",
    )
    .await;
    e2e::wait::until("the letter to be sent", LATER, async || {
        let sent = sqlx::query_scalar("SELECT COUNT(*) FROM letters WHERE status = 2");
        sent.fetch_one(&rig.pool).await.unwrap_or(0_i64) == 1
    })
    .await;
    assert_calm(&relay);
    leaves(&relay).await;
}

/// Runs `relay check` and returns its exit code and what it printed.
async fn check(rig: &Rig) -> (Option<i32>, String) {
    let check = rig.command(&["check"]);
    let status = check.wait_exit(LATER).await.unwrap();
    let log = check.log();
    assert!(!log.contains("panicked"), "{log}");
    (status.code(), log)
}

e2e::on_each_server!(check_lists_every_unmet_condition_with_its_fix_and_passes_once_all_are_fixed);
async fn check_lists_every_unmet_condition_with_its_fix_and_passes_once_all_are_fixed(
    flavor: Flavor,
) {
    let db = OwnDb::start(flavor, &[]).await;
    let mut rig = db.rig().await;
    let mut spoilt = vec!["binlog_format = 'STATEMENT'"];
    if flavor == Flavor::MySql {
        spoilt.push("binlog_order_commits = OFF");
    }
    for setting in spoilt {
        db.execute(&format!("SET GLOBAL {setting}")).await.unwrap();
    }
    let broker = rig.env["AMQP_URL"].clone();
    let user = log_in_as_other(&mut rig, &[]).await;
    let nobody = e2e::port::free().unwrap();
    rig.set("AMQP_URL", &format!("amqp://127.0.0.1:{nobody}/v"))
        .set("RELAY_OUTBOX_TABLE", "letters");

    let (code, said) = check(&rig).await;
    assert_eq!(code, Some(1), "{said}");
    let grant = format!("GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {user}");
    let mut fixes = vec![
        "run `relay migrate`",
        "SET GLOBAL binlog_format = 'ROW'",
        grant.as_str(),
        "start RabbitMQ",
    ];
    if flavor == Flavor::MySql {
        fixes.push("SET GLOBAL binlog_order_commits = ON");
    }
    for fix in &fixes {
        assert!(said.contains(fix), "{fix}: {said}");
    }
    assert_eq!(said.matches("fix:").count(), fixes.len(), "{said}");

    // Every fix, as it was reported.
    for fix in fixes.iter().filter(|fix| fix.starts_with("SET GLOBAL")) {
        db.execute(fix).await.unwrap();
    }
    db.execute(&format!("{grant}@'%'")).await.unwrap();
    rig.set("AMQP_URL", &broker);
    let migrate = rig.command(&["migrate"]);
    assert!(migrate.wait_exit(LATER).await.unwrap().success());
    let (code, said) = check(&rig).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("fix:"), "{said}");
    let relay = rig.tailing().await;
    assert_calm(&relay);
    leaves(&relay).await;
}

#[tokio::test]
async fn check_reports_a_wrong_password_and_a_database_that_is_down() {
    let mut rig = Rig::without_queue(e2e::shared::mariadb().await).await;
    let wrong = rig.db.user_url("admin", "wrong", &rig.database.name);
    rig.set("DATABASE_URL", &wrong);
    let (code, said) = check(&rig).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("check user and password"), "{said}");
    let port = e2e::port::free().unwrap();
    rig.set("DATABASE_URL", &format!("mysql://a:b@127.0.0.1:{port}/d"));
    let (code, said) = check(&rig).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("start the server, or fix host and port"),
        "{said}"
    );
}

e2e::on_each_server!(
    check_warns_of_a_server_that_forgets_what_it_has_committed_and_of_one_that_leaves_rows_out
);
async fn check_warns_of_a_server_that_forgets_what_it_has_committed_and_of_one_that_leaves_rows_out(
    flavor: Flavor,
) {
    let db = OwnDb::start(
        flavor,
        &["--skip-innodb-doublewrite", "--binlog-ignore-db=apart"],
    )
    .await;
    let mut rig = db.rig().await;
    for setting in ["innodb_flush_log_at_trx_commit = 2", "sync_binlog = 0"] {
        db.execute(&format!("SET GLOBAL {setting}")).await.unwrap();
    }
    let (code, said) = check(&rig).await;
    assert_eq!(code, Some(0), "{said}");
    for text in [
        "warning  durability",
        "innodb_flush_log_at_trx_commit is 2",
        "sync_binlog is 0",
        "innodb_doublewrite is OFF",
        "messages can be out whose rows and orders are gone",
        "set innodb_flush_log_at_trx_commit = 1, sync_binlog = 1, innodb_doublewrite = ON",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    db.execute("CREATE DATABASE apart").await.unwrap();
    rig.set("DATABASE_URL", &db.url("apart"));
    let migrate = rig.command(&["migrate"]);
    assert!(migrate.wait_exit(LATER).await.unwrap().success());
    let texts = ["leaves out the database apart", "RELAY_MODE=poll"];
    refused(&rig, &["run"], &texts).await;
}

e2e::on_each_server!(all_rights_that_are_missing_are_reported_at_once);
async fn all_rights_that_are_missing_are_reported_at_once(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::without_queue(db).await;
    let user = format!("u{}", &rig.database.name[20..]);
    let read = format!("SELECT ON `{}`.*", rig.database.name);
    db.create_user(&user, "pw", &[read]).await.unwrap();
    let url = db.user_url(&user, "pw", &rig.database.name);
    rig.set("DATABASE_URL", &url);
    let texts = [
        "UPDATE command denied",
        "DELETE command denied",
        "outbox_fence",
        "INSERT command denied",
        "outbox_attempts",
        "operator_actions",
    ];
    refused(&rig, &["run"], &texts).await;
}

e2e::on_each_server!(check_says_what_minimal_marks_cost_other_readers);
async fn check_says_what_minimal_marks_cost_other_readers(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    let (code, said) = check(&rig).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("gh-ost"), "{said}");
    rig.set("RELAY_BINLOG_ROW_IMAGE", "minimal");
    let (code, said) = check(&rig).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("RELAY_BINLOG_ROW_IMAGE"), "{said}");
    assert!(said.contains("gh-ost"), "{said}");
}
