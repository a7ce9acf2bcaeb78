//! The program: settings and logging first, then the runtime.

use pay_svc::config::{Cli, Command, RunArgs};
use svc_kit::boot::{self, Exit};
use svc_kit::{signals, telemetry};

/// Messages are large at times, and glibc keeps what they took: this one gives it back within seconds. Its
/// settings are in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> Exit {
    boot::install_crypto();
    let done = match boot::parse_args::<Cli>().command {
        Command::Run(args) => run(&args),
        Command::Migrate(args) => args.run(&pay_svc::migrations()),
        Command::Parked(verb) => ops::cli::run(&verb),
    };
    boot::conclude("pay-svc", done)
}

fn run(args: &RunArgs) -> anyhow::Result<Exit> {
    boot::make_room_for_headers();
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
