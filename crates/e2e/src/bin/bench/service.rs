//! order-svc or pay-svc under measurement: the release program, a process of its own.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use e2e::{
    port,
    product::{Process, binary},
    stage::client,
    wait,
};

use crate::process;

const SOON: Duration = Duration::from_secs(120);

/// A running service.
pub(crate) struct Service {
    process: Process,
    pub(crate) addr: SocketAddr,
    admin: String,
    client: reqwest::Client,
}

impl Service {
    /// Starts it and waits until it is ready.
    pub(crate) async fn start(program: &str, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()?));
        let (listen, admin) = (addr.to_string(), format!("127.0.0.1:{}", port::free()?));
        // For experiments: settings of the caller's own reach the service.
        let own: Vec<(String, String)> = std::env::vars()
            .filter(|(name, _)| name.starts_with("ORDER_") || name.starts_with("PAY_"))
            .collect();
        let mut env: Vec<(&str, &str)> =
            own.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        env.extend([("LISTEN_ADDR", listen.as_str()), ("ADMIN_ADDR", &admin)]);
        env.extend(settings);
        let service = Self {
            process: Process::spawn(&binary(program)?, &["run"], &env)?,
            addr,
            admin: format!("http://{admin}"),
            client: client()?,
        };
        let url = format!("{}/readyz", service.admin);
        wait::try_until("a service to be ready", SOON, async || {
            let answer = service.client.get(&url).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        })
        .await
        .with_context(|| service.process.log())?;
        Ok(service)
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

    /// Waits until a metric has come to `count`; gives the moment and what it was.
    pub(crate) async fn until(&self, name: &str, count: f64) -> anyhow::Result<(Instant, f64)> {
        let deadline = Instant::now() + SOON;
        loop {
            let there = self.metric(name).await?;
            let now = Instant::now();
            if there >= count {
                return Ok((now, there));
            }
            ensure!(
                now < deadline,
                "{name} is {there} of {count} after {SOON:?}: {}",
                self.process.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Processor time so far.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let pid = self.process.pid();
        process::cpu_seconds(pid.with_context(|| self.process.log())?)
    }

    /// SIGTERM, and waits until it has drained.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.process.terminate()?;
        let status = self.process.wait_exit(SOON).await?;
        ensure!(status.success(), "{status}: {}", self.process.log());
        Ok(())
    }
}
