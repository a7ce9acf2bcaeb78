//! One server of each kind per test process, started at first use and removed with the process.
//!
//! Tests share addresses and the admin's password, never pools or clients: each `#[tokio::test]`
//! has a runtime of its own, and a connection dies with the runtime it was made on. Isolation
//! comes from a database and a virtual host per test.

use std::{env, io::Write as _, panic::AssertUnwindSafe};

use futures::{FutureExt as _, future::join_all};
use tokio::sync::OnceCell;

use crate::{Db, DbOptions, Flavor, Rabbit, RabbitOptions, RabbitVersion, cache};

/// The shared MariaDB server.
///
/// # Panics
/// With the reason when it can't be started.
pub async fn mariadb() -> &'static Db {
    static SERVER: OnceCell<Db> = OnceCell::const_new();
    start(&SERVER, Flavor::MariaDb).await
}

/// The shared MySQL server; `None`, and a loud line, where real MySQL can't be had.
///
/// # Panics
/// With the reason when it can't be started, or can't be had and `REQUIRE_MYSQL=1` is set.
pub async fn mysql() -> Option<&'static Db> {
    static SERVER: OnceCell<Db> = OnceCell::const_new();
    if !is_available(Flavor::MySql) {
        return None;
    }
    Some(start(&SERVER, Flavor::MySql).await)
}

/// The kind of server for tests that need one of the two: MariaDB, or MySQL with `TEST_DB=mysql`.
///
/// # Panics
/// With any other value.
pub fn flavor() -> Flavor {
    match std::env::var("TEST_DB").as_deref() {
        Err(_) | Ok("" | "mariadb") => Flavor::MariaDb,
        Ok("mysql") => Flavor::MySql,
        Ok(other) => panic!("TEST_DB={other}: it is mariadb or mysql"),
    }
}

/// The shared server of [`flavor`].
///
/// # Panics
/// With the reason when it can't be started, or is MySQL and can't be had.
pub async fn either() -> &'static Db {
    database(flavor()).await
}

/// The shared server of this kind.
///
/// # Panics
/// With the reason when it can't be started, or is MySQL and can't be had.
pub async fn database(flavor: Flavor) -> &'static Db {
    match flavor {
        Flavor::MariaDb => mariadb().await,
        Flavor::MySql => mysql().await.expect("a test that needs MySQL"),
    }
}

/// Every database server that can be had: MariaDB always, MySQL by [`mysql`].
pub async fn databases() -> Vec<&'static Db> {
    [Some(mariadb().await), mysql().await]
        .into_iter()
        .flatten()
        .collect()
}

/// The kinds of database server that can be had.
///
/// # Panics
/// When MySQL can't be had and `REQUIRE_MYSQL=1` is set.
pub fn flavors() -> impl Iterator<Item = Flavor> {
    let all = [Flavor::MariaDb, Flavor::MySql];
    all.into_iter().filter(|&flavor| is_available(flavor))
}

/// Runs a test on every server at the same time, for one that waits for the most part; its results
/// by server. A failure names the server.
///
/// # Panics
/// When the test panics on a server.
pub async fn on_every_server_at_once<T>(test: impl AsyncFn(Flavor) -> T) -> Vec<T> {
    let each = flavors().map(async |flavor| {
        let result = AssertUnwindSafe(test(flavor)).catch_unwind().await;
        (flavor, result)
    });
    let (mut results, mut failed) = (Vec::new(), Vec::new());
    for (flavor, result) in join_all(each).await {
        match result {
            Ok(result) => results.push(result),
            Err(_) => failed.push(flavor),
        }
    }
    assert!(failed.is_empty(), "failed on {failed:?}, see above");
    results
}

/// Whether there is this kind of server; a loud line where it is MySQL and there is none.
///
/// # Panics
/// When MySQL can't be had and `REQUIRE_MYSQL=1` is set.
pub fn is_available(flavor: Flavor) -> bool {
    let (Flavor::MySql, Err(why)) = (flavor, cache::mysql_root()) else {
        return true;
    };
    assert!(
        !mysql_required(),
        "REQUIRE_MYSQL is set, but there is no MySQL: {why:#}"
    );
    warn(&format!("MySQL half of this test SKIPPED: {why:#}"));
    false
}

/// The table of servers: one test for each, `name::mariadb` and `name::mysql`, of an `async fn name`
/// that takes the [`Flavor`](crate::Flavor). Without MySQL its half is skipped with a loud line.
#[macro_export]
macro_rules! on_each_server {
    ($test:ident) => {
        mod $test {
            #[tokio::test]
            async fn mariadb() {
                super::$test($crate::Flavor::MariaDb).await;
            }

            #[tokio::test]
            async fn mysql() {
                if $crate::shared::is_available($crate::Flavor::MySql) {
                    super::$test($crate::Flavor::MySql).await;
                }
            }
        }
    };
}

/// The shared RabbitMQ of the machine's own packages.
///
/// # Panics
/// With the reason when it can't be started.
pub async fn rabbit() -> &'static Rabbit {
    static BROKER: OnceCell<Rabbit> = OnceCell::const_new();
    broker(&BROKER, RabbitVersion::System).await
}

/// The shared RabbitMQ 4; `None`, and a loud line, where it can't be had.
///
/// # Panics
/// With the reason when it can't be started.
pub async fn rabbit4() -> Option<&'static Rabbit> {
    static BROKER: OnceCell<Rabbit> = OnceCell::const_new();
    match cache::rabbitmq4_root() {
        Ok(root) => Some(broker(&BROKER, RabbitVersion::Chroot(root)).await),
        Err(why) => {
            warn(&format!("RabbitMQ 4 half of this test SKIPPED: {why:#}"));
            None
        }
    }
}

/// Whether a missing MySQL is an error rather than a skipped half.
pub fn mysql_required() -> bool {
    env::var("REQUIRE_MYSQL").is_ok_and(|value| value == "1")
}

async fn start(cell: &'static OnceCell<Db>, flavor: Flavor) -> &'static Db {
    let started = cell.get_or_try_init(async || Db::start(flavor, DbOptions::default()).await);
    started
        .await
        .unwrap_or_else(|err| panic!("could not start {flavor:?}: {err:#}"))
}

async fn broker(cell: &'static OnceCell<Rabbit>, version: RabbitVersion) -> &'static Rabbit {
    let options = RabbitOptions {
        version,
        ..RabbitOptions::default()
    };
    let started = cell.get_or_try_init(async || Rabbit::start(options).await);
    started
        .await
        .unwrap_or_else(|err| panic!("could not start RabbitMQ: {err:#}"))
}

/// Straight to standard error: the test harness hides what a passing test prints.
fn warn(message: &str) {
    // A closed standard error is no reason to fail a test.
    drop(writeln!(std::io::stderr(), "\n*** {message}\n"));
}
