//! The servers and the three services, each service with no more rights than it needs.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use sqlx::MySqlPool;

use crate::{
    Db, DbOptions, Flavor, Rabbit, RabbitOptions,
    account::Account,
    port,
    product::{self, Process},
    provider::{Call, Provider, Reply},
    wait,
};

const SOON: Duration = Duration::from_secs(30);

/// The token of an operator of relay and pay-svc.
pub const OPERATOR_TOKEN: &str = "stage-operator-0123456789abcdef";
/// The token of a viewer of relay and pay-svc.
pub const VIEWER_TOKEN: &str = "stage-viewer-0123456789abcdef";

/// A running service.
pub struct Service {
    /// Its program's name.
    pub name: &'static str,
    /// Base URL of its API; empty for the relay, which has none.
    pub url: String,
    /// Base URL of its admin listener.
    pub admin: String,
    /// The process itself.
    pub process: Process,
}

/// Everything that runs. The services are declared before the servers: they stop first.
pub struct Stage {
    /// order-svc.
    pub order: Service,
    /// relay.
    pub relay: Service,
    /// pay-svc.
    pub pay: Service,
    /// Both databases, with all rights.
    pub pool: MySqlPool,
    /// The relay's URL of its database.
    pub relay_url: String,
    /// pay-svc's URL of its database.
    pub pay_url: String,
    /// Takes the customers' money; it declines the currency that ISO 4217 sets aside for tests.
    pub provider: Provider,
    /// The broker.
    pub rabbit: Rabbit,
    /// The database server.
    pub db: Db,
}

impl Stage {
    /// Starts the servers, applies the migrations, starts the services and waits until all are
    /// ready.
    pub async fn set_up(flavor: Flavor) -> anyhow::Result<Self> {
        Self::with(flavor, &[]).await
    }

    /// As [`Stage::set_up`], with these settings of all services; for a canary the relay's account
    /// has the right that it takes.
    pub async fn with(flavor: Flavor, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let (db, rabbit) = futures::try_join!(
            Db::start(flavor, DbOptions::default()),
            Rabbit::start(RabbitOptions::default())
        )?;
        db.execute("CREATE DATABASE orders").await?;
        db.execute("CREATE DATABASE payments").await?;
        migrate("order-svc", &db.url("orders")).await?;
        migrate("relay", &db.url("orders")).await?;
        migrate("pay-svc", &db.url("payments")).await?;
        let amqp = rabbit.amqp_url("/");

        let order_url = Account::ORDER.create(&db).await?;
        let relay_url = Account::RELAY.create(&db).await?;
        let pay_url = Account::PAY.create(&db).await?;
        let provider = Provider::start()?;
        provider.script(charge);
        let tokens = format!("ann:operator:{OPERATOR_TOKEN},bob:viewer:{VIEWER_TOKEN}");
        if settings
            .iter()
            .any(|(name, _)| *name == "RELAY_CANARY_INTERVAL")
        {
            Account::RELAY.grant(&db, "INSERT ON orders.outbox").await?;
        }
        let start = |name, own: &[(&str, &str)]| Service::start(name, &[own, settings].concat());
        let order = start("order-svc", &[("DATABASE_URL", &order_url)])?;
        let relay = start(
            "relay",
            &[
                ("DATABASE_URL", &relay_url),
                ("AMQP_URL", &amqp),
                // Rows set back by hand go out with the next sweep: not ten seconds later here.
                ("RELAY_SWEEP_INTERVAL", "2s"),
                ("OPS_TOKENS", &tokens),
            ],
        )?;
        let pay = start(
            "pay-svc",
            &[
                ("DATABASE_URL", &pay_url),
                ("AMQP_URL", &amqp),
                ("PAY_PROVIDER", "http"),
                ("PAY_PROVIDER_URL", &provider.url()),
                ("OPS_TOKENS", &tokens),
                // The relay's account may not insert rows, as it is in production.
                ("OPS_ALLOW_EDIT", "true"),
            ],
        )?;
        let stage = Self {
            order,
            relay,
            pay,
            pool: db.admin_pool()?,
            relay_url,
            pay_url,
            provider,
            rabbit,
            db,
        };
        for service in [&stage.order, &stage.pay, &stage.relay] {
            service.ready().await?;
        }
        Ok(stage)
    }

    /// What the servers are, for the first line.
    pub fn servers(&self) -> &'static str {
        match self.db.flavor() {
            Flavor::MariaDb => "MariaDB and RabbitMQ",
            Flavor::MySql => "MySQL and RabbitMQ",
        }
    }

    /// The last lines of each service's log and of the broker's, for an error message.
    pub fn logs(&self) -> String {
        let services = [&self.order, &self.relay, &self.pay]
            .map(|service| (service.name, service.process.log()));
        let broker = ("RabbitMQ", self.rabbit.log());
        services
            .into_iter()
            .chain([broker])
            .map(|(name, log)| {
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(15)..].join("\n");
                format!("--- the end of {name}'s log:\n{tail}\n---\n")
            })
            .collect()
    }
}

impl Service {
    fn start(name: &'static str, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let listen = format!("127.0.0.1:{}", port::free()?);
        let admin = format!("127.0.0.1:{}", port::free()?);
        let mut env = settings.to_vec();
        // The relay has no API and ignores the first.
        env.extend([
            ("LISTEN_ADDR", &*listen),
            ("ADMIN_ADDR", &*admin),
            ("RUST_LOG", "info"),
        ]);
        let process = Process::spawn(&product::binary(name)?, &["run"], &env)?;
        Ok(Self {
            name,
            url: format!("http://{listen}"),
            admin: format!("http://{admin}"),
            process,
        })
    }

    /// Waits until the service says that it is ready.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.admin);
        let client = client()?;
        let what = format!("{} to be ready", self.name);
        let ready = wait::try_until(&what, SOON, async || {
            match self.process.ended() {
                Ok(None) => {}
                Ok(Some(status)) => {
                    return Some(Err(anyhow::anyhow!("{} ended: {status}", self.name)));
                }
                Err(err) => return Some(Err(err)),
            }
            let response = client.get(&url).send().await.ok()?;
            response.status().is_success().then_some(Ok(()))
        });
        ready
            .await
            .map_err(Into::into)
            .flatten()
            .with_context(|| self.process.log())
    }
}

fn charge(call: &Call) -> Reply {
    if call.currency == "XTS" {
        Reply::status(200).body(r#"{"outcome":"declined"}"#)
    } else {
        Reply::captured()
    }
}

/// An HTTP client for the loopback, whatever proxy the machine uses.
pub fn client() -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder()
        .timeout(Duration::from_secs(20))
        .no_proxy()
        .build()
        .context("could not build an HTTP client")
}

async fn migrate(program: &str, url: &str) -> anyhow::Result<()> {
    let env = [("DATABASE_URL", url), ("RUST_LOG", "info")];
    let process = Process::spawn(&product::binary(program)?, &["migrate"], &env)?;
    let status = process.wait_exit(SOON).await?;
    if !status.success() {
        bail!("{program} migrate: {status}:\n{}", process.log());
    }
    ensure!(process.pid().is_none(), "{program} migrate goes on running");
    Ok(())
}
