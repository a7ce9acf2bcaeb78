//! The program: settings and logging first, then the runtime.

use std::io::Write as _;

use pay_svc::config::{Cli, Command, MigrateArgs, RunArgs};
use svc_kit::boot::{self, Exit};
use svc_kit::{migrate, signals, telemetry};

fn main() -> Exit {
    boot::install_crypto();
    match boot::parse_args::<Cli>().command {
        Command::Run(args) => run(&args),
        Command::Migrate(args) => apply_migrations(&args),
    }
}

fn run(args: &RunArgs) -> Exit {
    telemetry::init(args.log.log_format);
    let config = match args.resolve() {
        Ok(config) => config,
        Err(err) => return pay_svc::service::misconfigured(&err),
    };
    in_runtime(async move {
        let shutdown = match signals::listen(config.drain_timeout) {
            Ok(shutdown) => shutdown,
            Err(err) => return failed(&err.into()),
        };
        match pay_svc::build(config).await {
            Ok(service) => service.run(shutdown).await,
            Err(err) => pay_svc::service::misconfigured(&err),
        }
    })
}

fn apply_migrations(args: &MigrateArgs) -> Exit {
    telemetry::init(args.log.log_format);
    let sets = pay_svc::migrations();
    if args.print {
        let mut out = std::io::stdout().lock();
        return match migrate::print(&sets, &mut out).and_then(|()| out.flush()) {
            Ok(()) => Exit::Drained,
            Err(err) => failed(&err.into()),
        };
    }
    let url = match args.database.resolve() {
        Ok(url) => url,
        Err(err) => return pay_svc::service::misconfigured(&err),
    };
    in_runtime(async move {
        match migrate::run(&url, &sets).await {
            Ok(applied) => {
                tracing::info!(database = %url, applied = ?applied, "tables are up to date");
                Exit::Drained
            }
            Err(err) => failed(&err.into()),
        }
    })
}

fn in_runtime(work: impl Future<Output = Exit>) -> Exit {
    match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(work),
        Err(err) => failed(&err.into()),
    }
}

fn failed(err: &anyhow::Error) -> Exit {
    tracing::error!(error = format!("{err:#}"), "failed");
    Exit::Failed
}
