//! Who takes the money.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hyper::Uri;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret, SecretString};
use svc_kit::boot::ConfigError;
use svc_kit::settings::{duration, secret, secret_value, within};

use crate::provider::{HttpSettings, SimulatedSettings, is_header};

#[derive(Debug, Args)]
pub(super) struct ProviderArgs {
    /// Who takes the money
    #[arg(long, env = "PAY_PROVIDER", value_enum, default_value_t = ProviderKind::Simulated)]
    provider: ProviderKind,
    /// Where charges are posted, with PAY_PROVIDER=http: http:// or https://
    // What it holds is often a secret too, e.g. a path that only the provider's customers know.
    #[arg(long, env = "PAY_PROVIDER_URL", hide_env_values = true, value_name = "URL",
          value_parser = secret_value)]
    provider_url: Option<SecretString>,
    /// Sent to it as Authorization: Bearer
    #[arg(long, env = "PAY_PROVIDER_TOKEN", hide_env_values = true, value_name = "TOKEN",
          value_parser = secret_value)]
    provider_token: Option<SecretString>,
    /// File that holds the token
    #[arg(
        long,
        env = "PAY_PROVIDER_TOKEN_FILE",
        hide_env_values = true,
        value_name = "PATH"
    )]
    provider_token_file: Option<PathBuf>,
    /// Authorities to trust besides the system's, PEM; with https://
    #[arg(long, env = "PAY_PROVIDER_CA_FILE", value_name = "PATH")]
    provider_ca_file: Option<PathBuf>,
    /// Charges under way at once, at most, with PAY_PROVIDER=http
    #[arg(
        long,
        env = "PAY_PROVIDER_CONCURRENCY",
        value_name = "N",
        default_value_t = 64
    )]
    provider_concurrency: u32,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProviderKind {
    /// Nobody: for a demo or a first installation
    Simulated,
    /// A provider behind PAY_PROVIDER_URL
    Http,
}

/// Who takes the money, and how to charge it.
#[derive(Debug, Clone)]
pub enum ProviderSettings {
    /// Nobody.
    Simulated(SimulatedSettings),
    /// A provider behind a URL.
    Http(Box<HttpSettings>),
}

impl ProviderSettings {
    /// A token that everybody on the way can read, if there is one.
    pub(super) fn caution(&self) -> Option<String> {
        let Self::Http(http) = self else { return None };
        let host = http.url.host().unwrap_or_default();
        let is_here = host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        let is_bare = http.token.is_some() && http.url.scheme_str() == Some("http") && !is_here;
        is_bare.then(|| {
            format!(
                "PAY_PROVIDER_TOKEN goes to {host} over http://, readable on the way; use https://"
            )
        })
    }
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

    /// Charges under way at once, at most: `None` is no limit of the provider's own.
    pub(super) fn concurrency(&self) -> Result<Option<u32>, ConfigError> {
        let limit = within(
            "PAY_PROVIDER_CONCURRENCY",
            self.provider_concurrency,
            1..=5000,
        )?;
        Ok(match self.provider {
            ProviderKind::Simulated => None,
            ProviderKind::Http => Some(limit),
        })
    }

    pub(super) fn resolve(&self) -> Result<ProviderSettings, ConfigError> {
        let url = self.provider_url.as_ref().map(ExposeSecret::expose_secret);
        let url = url.filter(|url| !url.is_empty());
        match (self.provider, url) {
            (ProviderKind::Simulated, None) => self.simulated().map(ProviderSettings::Simulated),
            (ProviderKind::Simulated, Some(_)) => Err(ConfigError::new(
                "PAY_PROVIDER_URL",
                "is set, but PAY_PROVIDER=simulated charges nobody",
                "set PAY_PROVIDER=http, or unset the URL",
            )),
            (ProviderKind::Http, None) => Err(ConfigError::new(
                "PAY_PROVIDER_URL",
                "is not set, PAY_PROVIDER=http needs it",
                "set it to e.g. https://provider.example/charges",
            )),
            (ProviderKind::Http, Some(url)) => self
                .http(url)
                .map(|http| ProviderSettings::Http(Box::new(http))),
        }
    }

    fn simulated(&self) -> Result<SimulatedSettings, ConfigError> {
        let rate = self.simulated_failure_rate;
        if !(0.0..=1.0).contains(&rate) {
            let problem = format!("{rate} is not a share");
            let fix = "set it between 0.0 and 1.0";
            return Err(ConfigError::new("PAY_SIMULATED_FAILURE_RATE", problem, fix));
        }
        Ok(SimulatedSettings {
            failure_rate: rate,
            latency: self.simulated_latency,
        })
    }

    fn http(&self, url: &str) -> Result<HttpSettings, ConfigError> {
        let url = parse(url)?;
        let token = secret(
            "PAY_PROVIDER_TOKEN",
            self.provider_token.as_ref(),
            self.provider_token_file.as_deref(),
        )?;
        if token.as_ref().is_some_and(|token| !is_header(token)) {
            let problem = "has a character that no header can carry";
            let fix = "set it to the token alone";
            return Err(ConfigError::new("PAY_PROVIDER_TOKEN", problem, fix));
        }
        let is_tls = url.scheme_str() == Some("https");
        let ca = self.provider_ca_file.as_deref();
        let ca = ca.filter(|path| !path.as_os_str().is_empty());
        if !is_tls && ca.is_some() {
            let problem = "is http://, which does not use PAY_PROVIDER_CA_FILE";
            let fix = "write https://, or unset the file";
            return Err(ConfigError::new("PAY_PROVIDER_URL", problem, fix));
        }
        Ok(HttpSettings {
            url,
            token,
            tls: trusting(is_tls, ca)?,
            connect_timeout: self.timeout()?,
            connections: usize::try_from(self.provider_concurrency).unwrap_or(usize::MAX),
        })
    }
}

fn parse(url: &str) -> Result<Uri, ConfigError> {
    let wrong = |problem: &str| {
        let fix = "set it to e.g. https://provider.example/charges";
        ConfigError::new("PAY_PROVIDER_URL", problem, fix)
    };
    let parsed: Uri = url.parse().map_err(|_| wrong("is not a URL"))?;
    if !matches!(parsed.scheme_str(), Some("http" | "https")) {
        return Err(wrong("is neither http:// nor https://"));
    }
    let authority = parsed
        .authority()
        .map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        let problem = "has a user or password in it";
        let fix = "give a token in PAY_PROVIDER_TOKEN instead";
        return Err(ConfigError::new("PAY_PROVIDER_URL", problem, fix));
    }
    if parsed.host().is_none_or(str::is_empty) {
        return Err(wrong("has no host"));
    }
    Ok(parsed)
}

/// The system's authorities and those of the file; none are needed without TLS.
fn trusting(is_tls: bool, ca: Option<&Path>) -> Result<ClientConfig, ConfigError> {
    let mut roots = RootCertStore::empty();
    if is_tls {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if let Some(path) = ca {
        let wrong = |problem: String| {
            let fix = "name a file of PEM certificates that this user may read";
            ConfigError::new("PAY_PROVIDER_CA_FILE", problem, fix)
        };
        let unreadable =
            |err: &dyn std::fmt::Display| wrong(format!("can't read {}: {err}", path.display()));
        let pem = std::fs::read(path).map_err(|err| unreadable(&err))?;
        let mut certificates = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|err| unreadable(&err))?;
            roots.add(certificate).map_err(|err| unreadable(&err))?;
            certificates += 1;
        }
        if certificates == 0 {
            return Err(wrong(format!("{} has no certificate", path.display())));
        }
    }
    // Named, not the process's default: nothing else can then have chosen another one.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
