//! Who takes the money.

use std::time::Duration;

use clap::{Args, ValueEnum};
use svc_kit::boot::ConfigError;
use svc_kit::settings::duration;

use crate::provider::SimulatedSettings;

#[derive(Debug, Args)]
pub(super) struct ProviderArgs {
    /// Who takes the money
    #[arg(long, env = "PAY_PROVIDER", value_enum, default_value_t = ProviderKind::Simulated)]
    provider: ProviderKind,
    /// A charge without an answer by then has failed
    #[arg(long, env = "PAY_PROVIDER_TIMEOUT", value_name = "DURATION", default_value = "10s",
          value_parser = duration)]
    provider_timeout: Duration,
    /// Share of simulated charges that fail, 0.0 to 1.0
    #[arg(
        long,
        env = "PAY_SIMULATED_FAILURE_RATE",
        value_name = "SHARE",
        default_value_t = 0.0
    )]
    simulated_failure_rate: f64,
    /// How long a simulated charge takes
    #[arg(long, env = "PAY_SIMULATED_LATENCY", value_name = "DURATION", default_value = "0ms",
          value_parser = duration)]
    simulated_latency: Duration,
}

/// Who takes the money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProviderKind {
    /// Nobody: for a demo or a first installation
    Simulated,
    /// A provider behind a URL; not in this version
    Http,
}

impl ProviderArgs {
    pub(super) fn timeout(&self) -> Result<Duration, ConfigError> {
        let timeout = self.provider_timeout;
        if timeout.is_zero() || timeout > Duration::from_secs(300) {
            let problem = format!("{timeout:?} is not between 1ms and 5m");
            return Err(ConfigError::new(
                "PAY_PROVIDER_TIMEOUT",
                problem,
                "set it to e.g. 10s",
            ));
        }
        Ok(timeout)
    }

    pub(super) fn resolve(&self) -> Result<SimulatedSettings, ConfigError> {
        match self.provider {
            ProviderKind::Simulated => {}
            ProviderKind::Http => {
                let problem = "http is not available in this version";
                return Err(ConfigError::new(
                    "PAY_PROVIDER",
                    problem,
                    "set it to simulated",
                ));
            }
        }
        let rate = self.simulated_failure_rate;
        if !(0.0..=1.0).contains(&rate) {
            let problem = format!("{rate} is not a share");
            let mend = "set it between 0.0 and 1.0";
            return Err(ConfigError::new(
                "PAY_SIMULATED_FAILURE_RATE",
                problem,
                mend,
            ));
        }
        Ok(SimulatedSettings {
            failure_rate: rate,
            latency: self.simulated_latency,
        })
    }
}
