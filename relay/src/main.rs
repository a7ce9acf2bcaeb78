//! `relay`: the command line.

use std::io::Write;
use std::time::Duration;

use clap::{Parser, Subcommand};
use prometheus::Registry;
use relay::commands;
use relay::commands::audit::AuditArgs;
use relay::commands::check;
use relay::commands::condition::State;
use relay::commands::pause::{Action, PauseArgs, ResumeArgs};
use relay::commands::replay::ReplayArgs;
use relay::commands::status::StatusArgs;
use relay::config::{RunArgs, TableArgs};
use relay::outbox_table::OutboxTable;
use relay::supervisor::{CONDITIONS, Relay};
use svc_kit::admin::{Admin, Readiness};
use svc_kit::boot::{self, ConfigError, Exit};
use svc_kit::systemd::Systemd;
use svc_kit::tasks::{self, TaskError};
use svc_kit::{migrate, signals, telemetry};

/// A message is a dozen small allocations that one thread makes and another frees, which glibc is slow at:
/// a third of the relay's processor time. This one is fast at it and gives memory back once a backlog is
/// drained (crates/e2e/BENCHMARKS.md). Its settings are in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// For an operator's command to end well after the first signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(25);

/// Tails the MySQL or MariaDB binlog, publishes each new outbox row to RabbitMQ, marks it sent
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Relay until SIGTERM
    Run(Box<RunArgs>),
    /// Show every condition the relay needs and the fix of each that is not met
    Check(Box<RunArgs>),
    /// Show on one screen who works, what waits and what is paused
    ///
    /// Exit code 0: reported; 1: the database could not be queried; 64: wrong usage.
    Status(Box<StatusArgs>),
    /// Stop sending, the whole relay or one route; rows wait in the table until `relay resume`
    ///
    /// Exit code 0: done; 1: it is paused already, or the database could not be queried; 64: wrong usage.
    Pause(Box<PauseArgs>),
    /// End a pause; what has waited goes, in order
    ///
    /// Exit code 0: done; 1: it is not paused, or the database could not be queried; 64: wrong usage.
    Resume(Box<ResumeArgs>),
    /// Look at rows that need a person, retry, discard or edit them, one by one or in bulk
    ///
    /// Exit code 0: done; 1: not done (another state, no such row), or the database could not be queried;
    /// 64: wrong usage.
    #[command(subcommand)]
    Parked(::ops::cli::Verb<TableArgs>),
    /// Send messages again that were sent in a span of time, for a consumer that lost them
    ///
    /// Rows with --from <= sent_at < --to go again in the order of their ids, each with its old message
    /// id and the header x-replay-id; an inbox that knows them drops them. The rows are not changed.
    /// What the inbox may have forgotten is refused: see RELAY_INBOX_RETENTION.
    /// It waits while the relay or a route is paused, and stops at the first failure.
    /// Exit code 0: all sent, or a dry run that nothing refuses; 1: refused, stopped, or nobody could be
    /// queried; 64: wrong usage.
    #[command(verbatim_doc_comment)]
    Replay(Box<ReplayArgs>),
    /// Compare outbox and inbox by message id; list what is missing, waiting, parked or late
    ///
    /// It balances when no message is missing (sent, not in the inbox), waiting (not sent, or not
    /// received, or not processed yet) or parked (at either end). Discarded messages balance, and so do
    /// inbox rows that are done and not in the outbox (any more). Late ones are among the missing and
    /// waiting. Rows that change meanwhile are looked at again before they are reported. Both tables are
    /// only read, page by page; the outbox holds sent rows for RELAY_RETENTION.
    /// Exit code 0: it balances; 1: it does not, or a database could not be queried; 64: wrong usage.
    #[command(verbatim_doc_comment)]
    Audit(Box<AuditArgs>),
    /// Create the outbox tables, or bring them up to date
    Migrate {
        #[command(flatten)]
        table: TableArgs,
        /// Print the SQL instead of applying it
        #[arg(long)]
        print: bool,
    },
}

fn main() -> Exit {
    boot::install_crypto();
    let done = match boot::parse_args::<Cli>().command {
        Command::Run(args) => run(*args),
        Command::Check(args) => check(*args),
        Command::Status(args) => status(&args),
        Command::Pause(args) => act(&args.target.table, args.resolve(), Action::pause),
        Command::Resume(args) => act(&args.target.table, args.resolve(), Action::resume),
        Command::Parked(verb) => ::ops::cli::run(&verb),
        Command::Replay(args) => replay(*args),
        Command::Audit(args) => audit(&args),
        Command::Migrate { table, print } => migrate(&table, print),
    };
    boot::conclude("relay", done)
}

fn run(args: RunArgs) -> anyhow::Result<Exit> {
    // The canary is consumed from a queue that others can publish to.
    boot::make_room_for_headers();
    telemetry::init(args.table.log_format);
    let admin_addr = args.admin.admin_addr;
    let console = args.console()?;
    let config = args.resolve()?;
    let registry = Registry::new();
    let readiness = Readiness::new(&CONDITIONS);
    boot::block_on(async {
        let stop = signals::listen(config.drain_timeout)?;
        let relay = Relay::build(config, &registry, readiness.clone())?;
        let _admin = Admin::bind(
            admin_addr,
            readiness,
            registry.clone(),
            ::ops::router(&console),
        )?;
        // As a task: what `block_on` itself runs is woken through another thread each time.
        let running = tasks::unit(relay.run(stop, Systemd::from_env()));
        Ok(running.await.map_err(TaskError::from)??)
    })
}

fn check(args: RunArgs) -> anyhow::Result<Exit> {
    telemetry::init(args.table.log_format);
    // What keeps `run` from starting keeps this from saying that all is well.
    args.console()?;
    let config = args.resolve()?;
    let conditions = boot::block_on(async { anyhow::Ok(check::all(&config).await) })?;
    let mut out = std::io::stdout().lock();
    for condition in &conditions {
        writeln!(out, "{condition}")?;
    }
    let met = conditions
        .iter()
        .all(|c| matches!(c.state, State::Ok | State::Warning));
    Ok(if met { Exit::Drained } else { Exit::Failed })
}

fn status(args: &StatusArgs) -> anyhow::Result<Exit> {
    telemetry::init(args.table.log_format);
    let (table, admin) = args.resolve()?;
    let status = boot::block_on(async {
        // Status reads alone, and says itself of a database that does not answer.
        match table.check_own().await {
            Err(err) if err.is::<ConfigError>() => Err(err),
            Ok(()) | Err(_) => Ok(commands::status::query(&table, admin).await),
        }
    })?;
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &status)?;
        writeln!(out)?;
    } else {
        write!(out, "{status}")?;
    }
    Ok(match status.database.answer() {
        Some(_) => Exit::Drained,
        None => Exit::Failed,
    })
}

fn replay(args: ReplayArgs) -> anyhow::Result<Exit> {
    telemetry::init(args.table.log_format);
    let json = args.json;
    let replay = args.resolve()?;
    let report = boot::block_on(async {
        let stop = signals::listen(STOP_TIMEOUT)?;
        replay.run(&stop).await
    })?;
    let reported = report.to_string();
    print(json.then_some(&report), &reported)?;
    Ok(match report.is_done() {
        true => Exit::Drained,
        false => Exit::Failed,
    })
}

fn audit(args: &AuditArgs) -> anyhow::Result<Exit> {
    telemetry::init(args.table.log_format);
    let audit = args.resolve()?;
    let ledger = boot::block_on(audit.run())?;
    print(args.json.then_some(&ledger), &ledger.to_string())?;
    Ok(match ledger.balances {
        true => Exit::Drained,
        false => Exit::Failed,
    })
}

/// JSON where it is wanted, else the text.
fn print(json: Option<&impl serde::Serialize>, text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match json {
        Some(report) => {
            serde_json::to_writer_pretty(&mut out, report)?;
            writeln!(out)?;
        }
        None => write!(out, "{text}")?,
    }
    Ok(())
}

/// One change by an operator, in one transaction; prints what came of it.
fn act(
    table: &TableArgs,
    action: Result<Action, ConfigError>,
    change: impl AsyncFn(&Action) -> anyhow::Result<String>,
) -> anyhow::Result<Exit> {
    telemetry::init(table.log_format);
    let action = action?;
    let reported = boot::block_on(async {
        action.table.check_own().await?;
        change(&action).await
    })?;
    writeln!(std::io::stdout().lock(), "{reported}")?;
    Ok(Exit::Drained)
}

fn migrate(table: &TableArgs, print: bool) -> anyhow::Result<Exit> {
    telemetry::init(table.log_format);
    let sets = [OutboxTable::set(table.checked_name()?)];
    migrate::command(&sets, print, || Ok(table.resolve()?.url))
}
