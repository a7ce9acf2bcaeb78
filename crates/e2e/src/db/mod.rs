//! Throwaway MariaDB and MySQL servers, set up as production servers would be.

mod mariadb;
mod mysql;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, MySqlConnection, MySqlPool,
    mysql::MySqlPoolOptions,
};

use crate::{cache, home::Home, owner::Owner, port, server::Server, wait};

/// The user with all rights on every throwaway server.
pub const ADMIN: &str = "admin";
/// Password of [`ADMIN`]. No secret: the servers listen on 127.0.0.1 and hold test data.
pub const ADMIN_PASSWORD: &str = "throwaway";

/// Long enough for a cold start on a busy machine with two cores.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// The machine's own MariaDB package.
    MariaDb,
    /// Real MySQL from the cache directory, run in a chroot.
    MySql,
}

/// What a server should have beyond the defaults.
#[derive(Clone, Debug, Default)]
pub struct DbOptions {
    /// Further arguments of the server; they win over the defaults. `{dir}` is replaced by the
    /// directory of `files` as the server sees it.
    pub args: Vec<String>,
    /// Files to write before the start, such as certificates: name and content.
    pub files: Vec<(String, Vec<u8>)>,
    /// The server's environment, such as [`crate::Clock::env`].
    pub env: Vec<(String, String)>,
}

/// A running database server. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Db {
    flavor: Flavor,
    port: u16,
    // Declared before `home`: the process must be gone before its directory is.
    server: Server,
    program: Program,
    env: Vec<(String, String)>,
    home: Home,
}

/// How to run a server: its program, and the arguments that come before all others.
#[derive(Debug)]
struct Program {
    path: PathBuf,
    args: Vec<String>,
}

/// A database of a test's own.
#[derive(Clone, Debug)]
pub struct TestDatabase {
    /// Its name.
    pub name: String,
    /// Its URL for [`ADMIN`].
    pub url: String,
}

impl Db {
    /// Starts a server with fresh data on a free port of 127.0.0.1 and waits until it answers.
    pub async fn start(flavor: Flavor, options: DbOptions) -> anyhow::Result<Self> {
        // Another process may take the port between the choice and the start.
        let mut attempts = 3;
        loop {
            attempts -= 1;
            let db = Self::create(flavor, &options)?;
            match db.launch().await {
                Ok(()) => return Ok(db),
                Err(_) if attempts > 0 && db.server.log().contains("already in use") => {}
                Err(err) => return Err(err),
            }
        }
    }

    fn create(flavor: Flavor, options: &DbOptions) -> anyhow::Result<Self> {
        let port = port::free()?;
        let (program, template) = match flavor {
            Flavor::MariaDb => mariadb::prepare()?,
            Flavor::MySql => mysql::prepare()?,
        };
        let home = Home::create("db", None)?;
        template.copy_to(&home.host("data"))?;
        home.write(&options.files)?;
        let mut args = program.args;
        args.extend(production_like(port, &home));
        args.extend(match flavor {
            Flavor::MariaDb => mariadb::arguments(),
            Flavor::MySql => mysql::arguments(),
        });
        let inside = home.path_inside();
        args.extend(options.args.iter().map(|arg| arg.replace("{dir}", &inside)));
        let path = program.path;
        let server = Server::new(
            home.launch(&path, args.clone(), options.env.clone()),
            home.host("log"),
        );
        Ok(Self {
            flavor,
            port,
            server,
            program: Program { path, args },
            env: options.env.clone(),
            home,
        })
    }

    async fn launch(&self) -> anyhow::Result<()> {
        self.server.start()?;
        let url = self.url("");
        let answered =
            wait::try_until("the database server to answer", START_TIMEOUT, async || {
                if let Err(ended) = self.server.must_run() {
                    return Some(Err(ended));
                }
                let mut connection = MySqlConnection::connect(&url).await.ok()?;
                connection.ping().await.ok().map(Ok)
            });
        answered.await.with_context(|| self.server.log_tail())?
    }

    /// Which server this is.
    pub fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// The TCP port on 127.0.0.1; the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process id, or `None` while it is down.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// The server's directory as this process sees it: `data`, the log, and the files of
    /// [`DbOptions`].
    pub fn dir(&self) -> PathBuf {
        self.home.host("")
    }

    /// The URL of a database for [`ADMIN`]; an empty name gives one without a database.
    pub fn url(&self, database: &str) -> String {
        self.user_url(ADMIN, ADMIN_PASSWORD, database)
    }

    /// The URL of a database for any user. Names and passwords must not need percent-encoding.
    pub fn user_url(&self, user: &str, password: &str, database: &str) -> String {
        format!(
            "mysql://{user}:{password}@127.0.0.1:{}/{database}",
            self.port
        )
    }

    /// A connection of [`ADMIN`] without a database.
    pub async fn admin(&self) -> anyhow::Result<MySqlConnection> {
        MySqlConnection::connect(&self.url(""))
            .await
            .context("could not log in as admin")
    }

    /// A new lazy pool of [`ADMIN`]. It belongs to the caller's runtime, so each test makes its own.
    pub fn admin_pool(&self) -> anyhow::Result<MySqlPool> {
        pool(&self.url(""))
    }

    /// Creates a database with a name of its own.
    pub async fn create_database(&self) -> anyhow::Result<TestDatabase> {
        let name = format!("t_{}", uuid::Uuid::now_v7().simple());
        self.execute(&format!("CREATE DATABASE `{name}`")).await?;
        let url = self.url(&name);
        Ok(TestDatabase { name, url })
    }

    /// Creates a user who may log in from anywhere, with grants such as
    /// `"SELECT, INSERT ON orders.*"`.
    pub async fn create_user(
        &self,
        name: &str,
        password: &str,
        grants: &[String],
    ) -> anyhow::Result<()> {
        self.execute(&format!(
            "CREATE USER '{name}'@'%' IDENTIFIED BY '{password}'"
        ))
        .await?;
        for grant in grants {
            self.execute(&format!("GRANT {grant} TO '{name}'@'%'"))
                .await?;
        }
        Ok(())
    }

    /// Runs one statement of the test's own making as [`ADMIN`].
    pub async fn execute(&self, sql: &str) -> anyhow::Result<()> {
        let mut admin = self.admin().await?;
        admin
            .execute(AssertSqlSafe(sql))
            .await
            .with_context(|| sql.to_owned())?;
        Ok(())
    }

    /// SIGKILL: what was committed must be there after [`Db::restart`].
    pub fn kill(&self) -> anyhow::Result<()> {
        self.server.kill()
    }

    /// Shuts the server down in order and waits until it is gone.
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.server.stop(STOP_TIMEOUT).await
    }

    /// Starts the server again on the same port and data; a running one is killed first.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.server.kill()?;
        self.launch().await
    }

    /// As [`Db::restart`], with further arguments, which win over those before.
    pub async fn restart_with(&mut self, args: &[&str]) -> anyhow::Result<()> {
        self.server.kill()?;
        let args_now = &mut self.program.args;
        args_now.extend(args.iter().map(|arg| (*arg).to_owned()));
        self.server = Server::new(
            self.home
                .launch(&self.program.path, args_now.clone(), self.env.clone()),
            self.home.host("log"),
        );
        self.launch().await
    }

    /// SIGSTOP: connections stay open and nothing answers.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.server.signal(Signal::STOP)
    }

    /// SIGCONT after [`Db::pause`].
    pub fn resume(&self) -> anyhow::Result<()> {
        self.server.signal(Signal::CONT)
    }

    /// The server's error log.
    pub fn log(&self) -> String {
        self.server.log()
    }
}

impl TestDatabase {
    /// A new lazy pool on this database. It belongs to the caller's runtime.
    pub fn pool(&self) -> anyhow::Result<MySqlPool> {
        pool(&self.url)
    }

    /// One connection to this database.
    pub async fn connect(&self) -> anyhow::Result<MySqlConnection> {
        MySqlConnection::connect(&self.url)
            .await
            .context("could not connect to the test database")
    }
}

fn pool(url: &str) -> anyhow::Result<MySqlPool> {
    MySqlPoolOptions::new()
        .max_connections(32)
        .acquire_timeout(Duration::from_secs(10))
        .connect_lazy(url)
        .context("the URL of a throwaway server does not parse")
}

/// Durable like production, small like a test.
fn production_like(port: u16, home: &Home) -> Vec<String> {
    let mut args: Vec<String> = root_arg().map(str::to_owned).into_iter().collect();
    args.extend([
        format!("--datadir={}", home.inside("data")),
        // Relative to the data directory: an absolute one could be too long for a socket.
        "--socket=server.sock".to_owned(),
        format!("--tmpdir={}", home.path_inside()),
        format!("--port={port}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--server-id={port}"),
        "--log-bin=binlog".to_owned(),
        "--binlog-format=ROW".to_owned(),
        "--sync-binlog=1".to_owned(),
        "--innodb-flush-log-at-trx-commit=1".to_owned(),
        "--innodb-buffer-pool-size=64M".to_owned(),
        "--max-allowed-packet=128M".to_owned(),
        "--max-connections=500".to_owned(),
        "--skip-name-resolve".to_owned(),
    ]);
    args
}

/// The servers refuse to run as root unless it is stated.
fn root_arg() -> Option<&'static str> {
    cache::is_root().then_some("--user=root")
}

/// Creates the users of a fresh data directory: nobody but [`ADMIN`] and the server's own.
fn admin_sql() -> String {
    format!(
        "CREATE USER '{ADMIN}'@'%' IDENTIFIED BY '{ADMIN_PASSWORD}';\n\
         GRANT ALL PRIVILEGES ON *.* TO '{ADMIN}'@'%' WITH GRANT OPTION;\n"
    )
}

/// Runs a set-up command to its end, and shows its output when it fails.
fn run(command: &mut std::process::Command) -> anyhow::Result<()> {
    let (mark, token) = Owner::get()?.mark();
    let output = command
        .env(mark, token)
        .output()
        .with_context(|| format!("could not run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
