//! The benchmark: each key measures the raw limit and the product side by side, in alternating
//! rounds on private servers, and ends with a ledger check.
//!
//! `make bench` builds and runs it. It reports; it fails when a ledger does not balance or something
//! does not run, never because a figure misses its target.

#![expect(clippy::print_stdout, reason = "the table is what a benchmark is for")]

mod arrivals;
mod bare_loop;
mod catalogue;
mod chart;
mod figures;
mod keys;
mod ledger;
mod order_load;
mod outbox_rows;
mod part;
mod process;
mod queue;
mod raw_orders;
mod raw_payments;
mod raw_publisher;
mod relay;
mod results;
mod scene;
mod service;
mod shop;
mod statistics;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Instant};

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use e2e::{Flavor, Rabbit, RabbitOptions};

use crate::{
    catalogue::Key,
    results::{Results, Run},
    scene::{Memory, Scale, Scene},
};

/// The relay's: what is raw shall not be slower for its allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures raw limits and the product side by side; writes results.json and results.svg.
#[derive(Parser)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    /// `1`: MariaDB alone, 3 rounds, smaller sizes
    #[arg(long, env = "QUICK", default_value = "")]
    quick: String,
    /// Only these keys, with commas between; the others stay in the results as they are
    #[arg(long, env = "ONLY", default_value = "")]
    only: String,
    /// Only this database server
    #[arg(long, env = "DB", value_enum)]
    db: Option<Database>,
    /// Rounds of raw and product; 5, or 3 with QUICK=1
    #[arg(long, env = "ROUNDS")]
    rounds: Option<usize>,
    /// Where results.json and results.svg go
    #[arg(long, env = "BENCH_DIR", default_value = "target/bench")]
    dir: PathBuf,
}

/// The raw limits, each run by the benchmark as a process of its own.
#[derive(Subcommand)]
enum Part {
    #[command(hide = true)]
    RawPublish(raw_publisher::Args),
    #[command(hide = true)]
    BareLoop(bare_loop::Args),
    #[command(hide = true)]
    RawOrders(raw_orders::Args),
    #[command(hide = true)]
    RawPayments(raw_payments::Args),
    #[command(hide = true)]
    OrderLoad(order_load::Args),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Database {
    Mariadb,
    Mysql,
}

impl From<Database> for Flavor {
    fn from(database: Database) -> Self {
        match database {
            Database::Mariadb => Self::MariaDb,
            Database::Mysql => Self::MySql,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.part {
        Some(Part::RawPublish(args)) => raw_publisher::run(args).await,
        Some(Part::BareLoop(args)) => bare_loop::run(args).await,
        Some(Part::RawOrders(args)) => raw_orders::run(args).await,
        Some(Part::RawPayments(args)) => raw_payments::run(args).await,
        Some(Part::OrderLoad(args)) => order_load::run(args).await,
        None => bench(&cli).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(cli: &Cli) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        println!("*** not a release build: these figures say little (make bench builds it right)");
    }
    let started = Instant::now();
    let keys = catalogue::choose(&cli.only)?;
    let scale = Scale::new(cli.quick == "1", cli.rounds);
    let run = Run::new(scale);
    let memory = Memory::default();
    println!("Starting RabbitMQ …");
    let rabbit = Arc::new(Rabbit::start(broker()).await?);
    let mut results = Results::load(&cli.dir)?;
    let mut failed = Vec::new();
    for key in keys {
        for flavor in flavors(cli)? {
            let measured = measure(key, (flavor, scale), &rabbit, &memory).await;
            match measured {
                // Written after each, so that an interrupted run is not lost.
                Ok(figures) => results.put(key, flavor, figures, &run).save(&cli.dir)?,
                Err(err) => {
                    eprintln!("*** {} on {flavor:?} FAILED: {err:#}", key.name);
                    failed.push(key.name);
                }
            }
        }
    }
    println!("\n{}", results.table());
    chart::draw(&results, &cli.dir.join("results.svg"))?;
    println!(
        "{} and results.svg beside it; {:.0} s in all.",
        cli.dir.join("results.json").display(),
        started.elapsed().as_secs_f64()
    );
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Quorum queues write what is still there anew whenever the log shared by all of them is full: a
/// quarter more of the broker's processor time a message. With the default of 512 MiB that fell on one
/// drain of 200,000 messages in four, be it the raw limit's or the product's; with this each pays for
/// nearly all it has written. (One of 50,000, as in a quick run, pays every second time.)
fn broker() -> RabbitOptions {
    RabbitOptions {
        conf: vec!["raft.wal_max_size_bytes = 67108864".to_owned()],
        ..RabbitOptions::default()
    }
}

fn flavors(cli: &Cli) -> anyhow::Result<Vec<Flavor>> {
    let has_mysql = e2e::cache::mysql_root().is_ok();
    match cli.db {
        Some(Database::Mysql) if !has_mysql => {
            bail!("real MySQL is not there: `e2e fetch-mysql` fetches it")
        }
        Some(one) => Ok(vec![one.into()]),
        None if cli.quick == "1" => Ok(vec![Flavor::MariaDb]),
        None if !has_mysql => {
            println!("*** real MySQL is not there: MariaDB alone (`e2e fetch-mysql` fetches it)");
            Ok(vec![Flavor::MariaDb])
        }
        None => Ok(vec![Flavor::MariaDb, Flavor::MySql]),
    }
}

async fn measure(
    key: &Key,
    (flavor, scale): (Flavor, Scale),
    rabbit: &Arc<Rabbit>,
    memory: &Memory,
) -> anyhow::Result<figures::Figures> {
    let started = Instant::now();
    let scene = Scene::set_up(key.name, (flavor, scale), rabbit, memory).await?;
    let figures = (key.measure)(&scene).await.with_context(|| scene.name())?;
    scene.say(&format!(
        "{} in {:.0} s",
        key.line(&figures),
        started.elapsed().as_secs_f64()
    ));
    Ok(figures)
}
