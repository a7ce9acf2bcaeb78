//! The program: settings and logging first, then the runtime.

use order_svc::config::{Cli, Command, RunArgs};
use svc_kit::boot::{self, Exit};
use svc_kit::{signals, telemetry};

fn main() -> Exit {
    boot::install_crypto();
    let done = match boot::parse_args::<Cli>().command {
        Command::Run(args) => run(&args),
        Command::Migrate(args) => args.run(&order_svc::migrations()),
    };
    boot::conclude("order-svc", done)
}

fn run(args: &RunArgs) -> anyhow::Result<Exit> {
    telemetry::init(args.log.log_format);
    let config = args.resolve()?;
    boot::block_on(async {
        let shutdown = signals::listen(config.drain_timeout)?;
        order_svc::build(config).await?.run(shutdown).await
    })
}
