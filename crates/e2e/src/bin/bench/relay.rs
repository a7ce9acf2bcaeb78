//! The relay under measurement: the release program, a process of its own.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use e2e::{
    port,
    product::{Process, binary},
    stage::client,
    wait,
};

use crate::process;

const SOON: Duration = Duration::from_secs(60);

/// A running relay.
pub(crate) struct Relay {
    process: Process,
    admin: String,
    client: reqwest::Client,
    pub(crate) started: Instant,
}

impl Relay {
    /// Starts `relay run`, with further settings if any.
    pub(crate) fn start(
        database_url: &str,
        amqp_url: &str,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let address = format!("127.0.0.1:{}", port::free()?);
        // For experiments: RELAY_* settings of the caller's own reach the relay.
        let own: Vec<(String, String)> = std::env::vars()
            .filter(|(name, _)| name.starts_with("RELAY_"))
            .collect();
        let mut env: Vec<(&str, &str)> =
            own.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        env.extend([
            ("DATABASE_URL", database_url),
            ("AMQP_URL", amqp_url),
            ("ADMIN_ADDR", address.as_str()),
        ]);
        env.extend(settings);
        let started = Instant::now();
        let process = Process::spawn(&binary("relay")?, &["run"], &env)?;
        Ok(Self {
            process,
            admin: format!("http://{address}"),
            client: client()?,
            started,
        })
    }

    /// Waits until it tails the binlog.
    pub(crate) async fn tails(&self) -> anyhow::Result<()> {
        wait::try_until("the relay to tail the binlog", SOON, async || {
            self.process.log().contains("tailing the binlog")
        })
        .await
        .with_context(|| self.process.log())
    }

    /// The sum of a metric over its labels; 0 while there is none.
    pub(crate) async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let text = self.client.get(format!("{}/metrics", self.admin)).send();
        let text = text.await?.text().await?;
        let of_name = |line: &&str| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']))
        };
        Ok(text
            .lines()
            .filter(of_name)
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum())
    }

    /// Waits until it has marked so many rows since its start; gives the moment.
    pub(crate) async fn marked(&self, count: u64) -> anyhow::Result<Instant> {
        let deadline = Instant::now() + SOON;
        loop {
            let marked = self.metric("outbox_relay_marked_total").await?;
            let now = Instant::now();
            #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
            if marked >= count as f64 {
                return Ok(now);
            }
            ensure!(
                now < deadline,
                "{marked} of {count} rows marked after {SOON:?}: {}",
                self.process.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Processor time so far.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        process::cpu_seconds(self.pid()?)
    }

    /// Resident memory now.
    pub(crate) fn resident_mib(&self) -> anyhow::Result<f64> {
        process::resident_mib(self.pid()?)
    }

    fn pid(&self) -> anyhow::Result<u32> {
        let pid = self.process.pid();
        pid.with_context(|| format!("the relay has ended: {}", self.process.log()))
    }

    /// SIGTERM, and waits until it has drained.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.process.terminate()?;
        let status = self.process.wait_exit(SOON).await?;
        ensure!(status.success(), "relay: {status}: {}", self.process.log());
        Ok(())
    }
}
