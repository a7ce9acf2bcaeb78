//! A server whose every default is another than the services rely on: they set it themselves.

use std::time::Duration;

use e2e::{
    Flavor,
    product::{self, Process},
    shop::Shop,
    stage::Stage,
    wait,
};
use svc_kit::database::DatabaseUrl;

const ORDERS: u32 = 50;
const PAID: Duration = Duration::from_secs(60);

/// Each with a value that breaks a session that relies on the usual one.
const BOTH: &str = "SET GLOBAL autocommit = 0, completion_type = 2, time_zone = '+08:00', \
    sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,IGNORE_SPACE', \
    sql_safe_updates = 1, sql_auto_is_null = 1, sql_select_limit = 1, max_join_size = 1, \
    sql_big_selects = 0, group_concat_max_len = 4, unique_checks = 0, foreign_key_checks = 0, \
    default_storage_engine = MyISAM, innodb_lock_wait_timeout = 1, lock_wait_timeout = 1, \
    net_read_timeout = 1, net_write_timeout = 1, wait_timeout = 2, character_set_client = latin1, \
    character_set_results = latin1, character_set_connection = latin1, big_tables = 1";
const MARIADB: &str = "SET GLOBAL max_statement_time = 0.0005, idle_transaction_timeout = 1, \
    idle_write_transaction_timeout = 1, in_predicate_conversion_threshold = 2";
const MYSQL: &str = "SET GLOBAL max_execution_time = 1, range_optimizer_max_mem_size = 1";
/// Not READ ONLY: that is not overridden, since somebody wants no writes there.
const TRANSACTIONS: &str = "SET GLOBAL TRANSACTION ISOLATION LEVEL SERIALIZABLE";

async fn migrate(stage: &Stage, program: &str) {
    let url = stage.db.url("afresh");
    let env = [("DATABASE_URL", &*url), ("RUST_LOG", "info")];
    let process = Process::spawn(&product::binary(program).unwrap(), &["migrate"], &env).unwrap();
    let status = process.wait_exit(PAID).await.unwrap();
    assert!(status.success(), "{program}: {}", process.log());
}

async fn services_do_not_rely_on_defaults(flavor: Flavor) {
    svc_kit::boot::install_crypto();
    let stage = Stage::set_up(flavor).await.unwrap();
    stage.db.execute("CREATE DATABASE afresh").await.unwrap();
    let own = match flavor {
        Flavor::MariaDb => MARIADB,
        Flavor::MySql => MYSQL,
    };
    for statement in [own, BOTH, TRANSACTIONS] {
        stage.db.execute(statement).await.unwrap();
    }
    for program in ["order-svc", "relay", "pay-svc"] {
        migrate(&stage, program).await;
    }
    for service in [&stage.order, &stage.pay, &stage.relay] {
        service.process.kill().unwrap();
        service.process.start_again().unwrap();
        service.ready().await.unwrap();
    }

    let amqp = stage.rabbit.amqp_url("/");
    let env = [("DATABASE_URL", &*stage.relay_url), ("AMQP_URL", &*amqp)];
    let check = Process::spawn(&product::binary("relay").unwrap(), &["check"], &env).unwrap();
    let status = check.wait_exit(PAID).await.unwrap();
    assert!(status.success(), "{}", check.log());

    let shop = Shop::new(&stage.order.url, ORDERS, 50).unwrap();
    shop.open().await.unwrap();
    let url = DatabaseUrl::parse(&stage.db.url("orders")).unwrap();
    let pool = url.pool(1);
    let paid = wait::try_until("all orders to be paid", PAID, async || {
        let paid: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM orders.orders JOIN payments.payments USING (order_id)",
        )
        .fetch_one(&pool)
        .await
        .unwrap();
        paid == i64::from(ORDERS)
    });
    assert!(paid.await.is_ok(), "{}", stage.logs());
    for service in [&stage.order, &stage.pay, &stage.relay] {
        let log = service.process.log();
        assert!(!log.contains("starting again"), "{}: {log}", service.name);
    }
}

#[tokio::test]
async fn services_work_on_a_mariadb_whose_every_default_is_hostile() {
    services_do_not_rely_on_defaults(Flavor::MariaDb).await;
}

#[tokio::test]
async fn services_work_on_a_mysql_whose_every_default_is_hostile() {
    // Says loudly when MySQL can't be had, or fails when it is required.
    if e2e::shared::mysql().await.is_some() {
        services_do_not_rely_on_defaults(Flavor::MySql).await;
    }
}
