//! The program: settings and logging first, then the runtime.

use pay_svc::config::{Cli, Command, MigrateArgs, RunArgs};
use svc_kit::boot::{self, Exit};
use svc_kit::{migrate, signals, telemetry};

/// Messages are large at times, and glibc keeps what they took: this one gives it back within seconds. Its
/// settings are in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> Exit {
    boot::install_crypto();
    let done = match boot::parse_args::<Cli>().command {
        Command::Run(args) => run(&args),
        Command::Migrate(args) => apply_migrations(&args),
        Command::Parked(verb) => ops::cli::run(&verb),
    };
    boot::conclude("pay-svc", done)
}

fn run(args: &RunArgs) -> anyhow::Result<Exit> {
    telemetry::init(args.log.log_format);
    let config = args.resolve()?;
    for caution in config.cautions() {
        tracing::warn!(caution);
    }
    boot::block_on(async {
        let shutdown = signals::listen(config.drain_timeout)?;
        pay_svc::build(config).await?.run(shutdown).await
    })
}

fn apply_migrations(args: &MigrateArgs) -> anyhow::Result<Exit> {
    telemetry::init(args.log.log_format);
    migrate::command(&pay_svc::migrations(), args.print, || {
        args.database.resolve()
    })
}
