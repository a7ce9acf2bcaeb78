//! Commands around the throwaway servers: fetching the ones that need it, and starting some to
//! look at.

#![expect(
    clippy::print_stdout,
    reason = "what these commands find is their output"
)]

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use e2e::{
    Db, DbOptions, Flavor, Rabbit, RabbitOptions, RabbitVersion, cache,
    fetch::{self, Fetched, Installation},
};

/// Throwaway MariaDB, MySQL and RabbitMQ servers for the tests and the demo.
#[derive(Parser)]
#[command(name = "e2e")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch real MySQL from Debian sid into the cache directory, unless it is there
    FetchMysql,
    /// Fetch RabbitMQ 4 from Debian trixie into the cache directory, unless it is there
    FetchRabbitmq4,
    /// Start servers, print one line `NAME PID DIRECTORY URL` each, and keep them until Ctrl-C
    Serve {
        /// Which servers
        #[arg(required = true)]
        servers: Vec<Kind>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Mariadb,
    Mysql,
    Rabbit,
    Rabbit4,
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::FetchMysql => fetch("fetch-mysql", fetch::MYSQL).await,
        Command::FetchRabbitmq4 => fetch("fetch-rabbitmq4", fetch::RABBITMQ4).await,
        Command::Serve { servers } => serve(&servers).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

async fn fetch(command: &str, installation: Installation) -> anyhow::Result<()> {
    if fetch::needs_root(installation)? {
        return with_sudo(command);
    }
    match fetch::fetch(installation).await? {
        Fetched::Reused(dir) => println!("{} is there (remove it to fetch anew)", dir.display()),
        Fetched::New(dir) => println!("fetched {}", dir.display()),
    }
    Ok(())
}

/// Runs this program's `command` again as root, for the cache directory of this user.
fn with_sudo(command: &str) -> anyhow::Result<()> {
    let cache = cache::dir()?;
    // Created here, so that it is the user's own: the templates lie beside.
    std::fs::create_dir_all(&cache)
        .with_context(|| format!("could not create {}", cache.display()))?;
    let mut setting = OsString::from("OUTBOX_RELAY_CACHE=");
    setting.push(cache);
    let status = std::process::Command::new("sudo")
        .args([OsStr::new("env"), &setting])
        .arg(std::env::current_exe().context("this process has no program file")?)
        .arg(command)
        .status()
        .context("debootstrap needs root, and there is no sudo")?;
    ensure!(status.success(), "sudo {command}: {status}");
    Ok(())
}

async fn serve(kinds: &[Kind]) -> anyhow::Result<()> {
    let mut running: Vec<Running> = Vec::new();
    for &kind in kinds {
        let server = start(kind).await?;
        println!("{}", server.describe(kind));
        running.push(server);
    }
    tokio::signal::ctrl_c().await?;
    Ok(())
}

enum Running {
    Db(Box<Db>),
    Rabbit(Box<Rabbit>),
}

impl Running {
    fn describe(&self, kind: Kind) -> String {
        let name = format!("{kind:?}").to_lowercase();
        let (pid, dir, url) = match self {
            Self::Db(db) => (db.pid(), db.dir(), db.url("mysql")),
            Self::Rabbit(rabbit) => (rabbit.pid(), rabbit.dir(), rabbit.amqp_url("/")),
        };
        format!("{name} {} {} {url}", pid.unwrap_or_default(), dir.display())
    }
}

async fn start(kind: Kind) -> anyhow::Result<Running> {
    let db = async |flavor| Db::start(flavor, DbOptions::default()).await.map(Box::new);
    let rabbit = async |version| {
        let options = RabbitOptions {
            version,
            ..RabbitOptions::default()
        };
        Rabbit::start(options).await.map(Box::new)
    };
    Ok(match kind {
        Kind::Mariadb => Running::Db(db(Flavor::MariaDb).await?),
        Kind::Mysql => Running::Db(db(Flavor::MySql).await?),
        Kind::Rabbit => Running::Rabbit(rabbit(RabbitVersion::System).await?),
        Kind::Rabbit4 => {
            Running::Rabbit(rabbit(RabbitVersion::Chroot(cache::rabbitmq4_root()?)).await?)
        }
    })
}
