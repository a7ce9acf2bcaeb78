//! The whole path on private servers: places orders, breaks things on purpose, and ends with a
//! ledger that has to balance.
//!
//! It builds nothing: `make demo` does, and then runs this.

#![expect(clippy::print_stdout, reason = "the screen is what a demo is for")]

mod figures;
mod histogram;
mod ledger;
mod story;
mod view;

use std::{process::ExitCode, time::Instant};

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use e2e::{
    Flavor,
    shop::Shop,
    stage::{OPERATOR_TOKEN, Stage},
};

use crate::{figures::Figures, ledger::Ledger, view::View};

/// Runs order-svc, relay and pay-svc on private servers, places orders, kills the broker and the
/// relay, re-delivers messages, and proves by a ledger that each order was paid exactly once.
#[derive(Parser)]
#[command(name = "demo")]
struct Cli {
    /// The database server
    #[arg(long, env = "DB", value_enum, default_value_t = Database::Mariadb)]
    db: Database,
    /// How many orders to place
    #[arg(long, env = "ORDERS", default_value_t = 500,
          value_parser = clap::value_parser!(u32).range(1..))]
    orders: u32,
    /// Orders a second
    #[arg(long, env = "RATE", default_value_t = 25,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// `1`: leave everything running until Ctrl-C
    #[arg(long, env = "KEEP", default_value = "")]
    keep: String,
}

#[derive(Clone, Copy, ValueEnum)]
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

// One thread: the demo must not compete with what it shows.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&Cli::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the ledger balances.
async fn run(cli: &Cli) -> anyhow::Result<bool> {
    let started = Instant::now();
    println!("Starting private servers …");
    let stage = Stage::set_up(cli.db.into()).await?;
    println!(
        "Three services on {} are up after {:.1?}.",
        stage.servers(),
        started.elapsed()
    );

    print_where_to_look(&stage);
    let view = View::new(cli.orders);
    let shop = Shop::new(&stage.order.url, cli.orders, cli.rate)?;
    let figures = Figures::new(&stage, &shop)?;
    let performance = async {
        let (sales, story) =
            futures::join!(shop.open(), story::run(&stage, &shop, &figures, &view));
        sales.context("could not place the orders")?;
        story
    };
    let story = tokio::select! {
        reported = performance => reported,
        failed = view.follow(&figures) => Err(failed),
    };
    view.close(figures.look().await.ok().as_ref());
    let story = story.with_context(|| stage.logs())?;

    let ledger = Ledger::draw_up(&stage, &shop, &story).await?;
    story.print();
    println!("\n{:.1?} in all.", started.elapsed());
    let keep = cli.keep == "1";
    if keep {
        println!("Everything goes on running, at the addresses above, until Ctrl-C.");
    }
    println!();
    let mut errors = ledger.imbalances();
    errors.extend(story.unfinished);
    if !errors.is_empty() {
        eprintln!("{}", stage.logs());
    }
    for error in &errors {
        eprintln!("error: {error}");
    }
    println!("{ledger}");
    if keep {
        tokio::signal::ctrl_c()
            .await
            .context("could not wait for Ctrl-C")?;
    }
    Ok(errors.is_empty())
}

/// Addresses and statements with which to look for oneself, from now until the end.
fn print_where_to_look(stage: &Stage) {
    let [order, relay, pay] =
        [&stage.order, &stage.relay, &stage.pay].map(|service| service.admin.as_str());
    println!("\nWhere to look while it runs (KEEP=1 make demo: until Ctrl-C)");
    println!("  operators  {relay}/ops outbox, {pay}/ops inbox");
    println!("             log in with {OPERATOR_TOKEN}");
    println!("  metrics    {order}/metrics order-svc");
    println!("             {relay}/metrics relay");
    println!("             {pay}/metrics pay-svc");
    println!("  orders     {}/orders/ORDER_ID", stage.order.url);
    println!("  payments   {}/payments/ORDER_ID", stage.pay.url);
    println!(
        "  RabbitMQ   {} ({} / {})",
        stage.rabbit.management_url(),
        e2e::rabbit::ADMIN,
        e2e::rabbit::ADMIN_PASSWORD
    );
    println!("  SQL        {}", stage.db.url("orders"));
    println!("             SELECT status, COUNT(*) FROM orders.outbox GROUP BY status;");
    println!("             SELECT outcome, COUNT(*) FROM payments.payments GROUP BY outcome;");
    if let Some(directory) = stage.order.process.log_path().parent() {
        println!("  logs       {}", directory.display());
    }
    println!();
}
