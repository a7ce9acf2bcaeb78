//! RabbitMQ: where the broker is, connections that all behave alike, and whose failure an error is.

mod channels;
mod fault;
mod gate;
mod in_order;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_rs::Runtime;
use async_rs::traits::RuntimeKit;
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;
use url::{Host, Url};

pub use self::channels::{Channels, is_worn_out};
pub use self::fault::{BrokerFault, classify};
pub use self::gate::Gate;
use self::gate::GatedTokio;
pub use self::in_order::all_in_order;
use crate::backoff::Backoff;
use crate::boot::ConfigError;
use crate::database::{ENCODE, STRAY_AT, foreign_scheme, has_stray_at};
use crate::settings::{secret, secret_file, secret_value};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Unless the URL names another, in seconds: a dead broker is noticed within two of these.
const HEARTBEAT: u16 = 10;
/// RabbitMQ's own, in bytes. lapin has 32 frames of room each way; requested from the start, it is memory
/// that nothing has touched yet, where room that grows once the broker has named its limit is written
/// over with zeros: 8 MiB resident of a relay that does nothing.
const FRAME_MAX: u32 = 131_072;

/// Reply code of a connection that is closed because its client is done.
const REPLY_SUCCESS: u16 = 200;

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// `AMQP_URL` or `AMQP_URL_FILE`, and the files for TLS.
#[derive(Clone, Debug, clap::Args)]
pub struct AmqpArgs {
    /// amqp://user:password@host:port/vhost, or amqps:// for TLS; the vhost "/" is written %2F
    #[arg(long, env = "AMQP_URL", hide_env_values = true, value_name = "URL",
          value_parser = secret_value)]
    amqp_url: Option<SecretString>,
    /// File that holds the broker's URL
    #[arg(
        long,
        env = "AMQP_URL_FILE",
        hide_env_values = true,
        value_name = "PATH"
    )]
    amqp_url_file: Option<PathBuf>,
    /// Authorities to trust besides the system's, PEM; with amqps://
    #[arg(long, env = "AMQP_CA_FILE", value_name = "PATH")]
    amqp_ca_file: Option<PathBuf>,
    /// Own certificate, PEM; with amqps:// and AMQP_KEY_FILE
    #[arg(long, env = "AMQP_CERT_FILE", value_name = "PATH")]
    amqp_cert_file: Option<PathBuf>,
    /// Key of the own certificate, PEM (PKCS#8)
    #[arg(
        long,
        env = "AMQP_KEY_FILE",
        hide_env_values = true,
        value_name = "PATH"
    )]
    amqp_key_file: Option<PathBuf>,
}

impl AmqpArgs {
    /// The broker, as these settings name it.
    ///
    /// # Errors
    /// The URL is missing or can't work, or a file can't be read.
    pub fn resolve(&self) -> Result<Amqp, ConfigError> {
        let url = secret(
            "AMQP_URL",
            self.amqp_url.as_ref(),
            self.amqp_url_file.as_deref(),
        )?
        .ok_or_else(|| {
            let fix = "set it to amqp://user:password@host:5672/vhost";
            ConfigError::new("AMQP_URL", "is not set", fix)
        })?;
        let uri = parse(url.expose_secret())?;
        Ok(Amqp {
            tls: self.tls(uri.scheme == AMQPScheme::AMQPS)?,
            uri,
        })
    }

    fn tls(&self, on: bool) -> Result<OwnedTLSConfig, ConfigError> {
        let ca = read("AMQP_CA_FILE", self.amqp_ca_file.as_deref())?;
        let cert = read("AMQP_CERT_FILE", self.amqp_cert_file.as_deref())?;
        let key = self.amqp_key_file.as_deref();
        let key = key.filter(|path| !path.as_os_str().is_empty());
        let key = key.map(|path| secret_file("AMQP_KEY_FILE", path));
        let key = key.transpose()?;
        if !on && (ca.is_some() || cert.is_some() || key.is_some()) {
            let problem = "is amqp://, which uses none of the files that are set for TLS";
            return Err(ConfigError::new(
                "AMQP_URL",
                problem,
                "write amqps://, or unset the files",
            ));
        }
        let identity = match (cert, key) {
            (None, None) => None,
            (Some(pem), Some(key)) => Some(OwnedIdentity::PKCS8 {
                pem: pem.into_bytes(),
                key: key.expose_secret().as_bytes().to_vec(),
            }),
            (Some(_), None) => {
                let fix = "set it to the certificate's key";
                return Err(ConfigError::new(
                    "AMQP_KEY_FILE",
                    "is not set, AMQP_CERT_FILE is",
                    fix,
                ));
            }
            (None, Some(_)) => {
                let fix = "set it to the key's certificate";
                return Err(ConfigError::new(
                    "AMQP_CERT_FILE",
                    "is not set, AMQP_KEY_FILE is",
                    fix,
                ));
            }
        };
        Ok(OwnedTLSConfig {
            identity,
            cert_chain: ca,
        })
    }
}

/// A broker to connect to. `Display` and `Debug` leave user and password out.
#[derive(Clone)]
pub struct Amqp {
    uri: AMQPUri,
    tls: OwnedTLSConfig,
}

impl Amqp {
    /// A broker named by its URL alone, with the system's authorities for TLS.
    ///
    /// # Errors
    /// The URL can't work.
    pub fn parse(url: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            uri: parse(url)?,
            tls: OwnedTLSConfig::default(),
        })
    }

    /// One connection, within 10 s, shown as `name` in RabbitMQ's pages.
    ///
    /// It does not come back by itself: drop it and its channels on error and connect anew.
    ///
    /// # Errors
    /// As of lapin; a time-out is an IO error.
    pub async fn connect(&self, name: &str) -> Result<Connection, lapin::Error> {
        self.connect_with(name, lapin::runtime::default_runtime()?)
            .await
    }

    /// As [`Amqp::connect`]; what is read from the connection goes through `gate`.
    ///
    /// # Errors
    /// As [`Amqp::connect`].
    pub async fn connect_gated(&self, name: &str, gate: &Gate) -> Result<Connection, lapin::Error> {
        let runtime = Runtime::new(GatedTokio::new(gate.clone()));
        self.connect_with(name, runtime).await
    }

    async fn connect_with<K>(
        &self,
        name: &str,
        runtime: Runtime<K>,
    ) -> Result<Connection, lapin::Error>
    where
        K: RuntimeKit + Clone + Send + Sync + 'static,
    {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connecting = Connection::connect_uri_with_config(
            self.uri.clone(),
            properties,
            self.tls.clone(),
            runtime,
        );
        tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .unwrap_or_else(|_elapsed| {
                let text = format!("no answer from {self} within {CONNECT_TIMEOUT:?}");
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text).into())
            })
    }
}

impl fmt::Display for Amqp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri {
            scheme,
            authority,
            vhost,
            ..
        } = &self.uri;
        let (host, port) = (&authority.host, authority.port);
        write!(f, "{scheme}://{host}:{port} vhost {vhost:?}")
    }
}

impl fmt::Debug for Amqp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Amqp({self})")
    }
}

/// Waits until the broker answers, and reports in the log and to `waits` what it waits for. Returns
/// early, without an error, when `stop` is cancelled.
///
/// # Errors
/// What no waiting can fix: access refused, unknown vhost.
pub async fn first_contact(
    amqp: &Amqp,
    stop: &CancellationToken,
    waits: impl Fn(&str),
) -> Result<(), ConfigError> {
    stop.run_until_cancelled(wait(amqp, waits))
        .await
        .unwrap_or(Ok(()))
}

async fn wait(amqp: &Amqp, waits: impl Fn(&str)) -> Result<(), ConfigError> {
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    loop {
        let err = match amqp.connect("first contact").await {
            Ok(connection) => {
                if let Err(err) = connection.close(REPLY_SUCCESS, "hello".into()).await {
                    tracing::debug!(error = %err, "could not say goodbye to the broker");
                }
                return Ok(());
            }
            Err(err) => err,
        };
        match classify(&err) {
            BrokerFault::Misconfigured(mut config) => {
                config.problem = format!("{amqp}: {}", config.problem);
                return Err(config);
            }
            BrokerFault::Away(error) => {
                let retry_in = backoff.next();
                waits(&format!("waiting for the broker: {error}"));
                tracing::warn!(broker = %amqp, error, ?retry_in, "waiting for the broker");
                tokio::time::sleep(retry_in).await;
            }
        }
    }
}

fn parse(text: &str) -> Result<AMQPUri, ConfigError> {
    let invalid = |problem: &str| {
        let fix = "write amqp://user:password@host:5672/vhost, special characters as %XX";
        ConfigError::new("AMQP_URL", problem, fix)
    };
    let url = Url::parse(text.trim()).map_err(|err| invalid(&format!("is not a URL ({err})")))?;
    if !matches!(url.scheme(), "amqp" | "amqps") {
        return Err(invalid(&foreign_scheme(&url)));
    }
    if has_stray_at(&url) {
        return Err(ConfigError::new("AMQP_URL", STRAY_AT, ENCODE));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(invalid("names no host"));
    }
    // lapin's own errors may quote the whole URL, password and all.
    let mut uri: AMQPUri = url.as_str().parse().map_err(|_: String| {
        invalid("has a part behind the host that can't be read, e.g. a number or auth_mechanism")
    })?;
    // lapin takes an IPv6 address for no host at all and would connect to localhost.
    if let Some(Host::Ipv6(address)) = url.host() {
        uri.authority.host = address.to_string();
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT);
    uri.query.frame_max.get_or_insert(FRAME_MAX);
    Ok(uri)
}

fn read(field: &str, path: Option<&Path>) -> Result<Option<String>, ConfigError> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(None);
    };
    std::fs::read_to_string(path).map(Some).map_err(|err| {
        let problem = format!("can't read {}: {err}", path.display());
        ConfigError::new(field, problem, "name a PEM file this user may read")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Settings {
        #[command(flatten)]
        amqp: AmqpArgs,
    }

    fn resolve(args: &[&str]) -> Result<Amqp, ConfigError> {
        let args = ["svc"].iter().chain(args);
        Settings::try_parse_from(args).unwrap().amqp.resolve()
    }

    #[track_caller]
    fn refused(args: &[&str], field: &str, problem: &str) {
        let err = resolve(args).unwrap_err();
        assert_eq!(err.field, field);
        assert!(err.problem.contains(problem), "{err}");
        assert!(!err.to_string().contains("hunter2"), "{err}");
    }

    #[test]
    fn a_url_is_decoded_and_shown_without_its_password() {
        let amqp = resolve(&["--amqp-url", "amqp://pay:hunter2%2F@mq:5673/%2Fprod"]).unwrap();
        assert_eq!(amqp.uri.authority.userinfo.password, "hunter2/");
        assert_eq!(amqp.to_string(), "amqp://mq:5673 vhost \"/prod\"");
        assert!(!format!("{amqp:?}").contains("hunter2"));
    }

    #[test]
    fn a_heartbeat_is_ten_seconds_unless_the_url_names_one() {
        let heartbeat = |url| resolve(&["--amqp-url", url]).unwrap().uri.query.heartbeat;
        assert_eq!(heartbeat("amqp://mq"), Some(10));
        assert_eq!(heartbeat("amqp://mq?heartbeat=3"), Some(3));
    }

    #[test]
    fn frames_are_as_large_as_rabbitmqs_unless_the_url_says_otherwise() {
        let frame_max = |url| resolve(&["--amqp-url", url]).unwrap().uri.query.frame_max;
        assert_eq!(frame_max("amqp://mq"), Some(131_072));
        assert_eq!(frame_max("amqp://mq?frame_max=8192"), Some(8192));
    }

    #[test]
    fn an_ipv6_host_is_not_taken_for_localhost() {
        let amqp = resolve(&["--amqp-url", "amqp://[fd00::7]:5672/%2F"]).unwrap();
        assert_eq!(amqp.uri.authority.host, "fd00::7");
    }

    #[test]
    fn what_can_not_work_is_refused_without_showing_the_password() {
        refused(&[], "AMQP_URL", "is not set");
        refused(&["--amqp-url", "mq:5672"], "AMQP_URL", "has the scheme");
        refused(
            &["--amqp-url", "amqp://u:hunter2@mq:port/"],
            "AMQP_URL",
            "invalid port",
        );
        refused(
            &["--amqp-url", "http://u:hunter2@mq/"],
            "AMQP_URL",
            "scheme \"http\"",
        );
        refused(
            &["--amqp-url", "amqp:///vhost"],
            "AMQP_URL",
            "names no host",
        );
        refused(
            &["--amqp-url", "amqp://u:hunter2@mq/?heartbeat=x"],
            "AMQP_URL",
            "can't be read",
        );
        refused(
            &["--amqp-url-file", "/no/such"],
            "AMQP_URL_FILE",
            "names a file that can't be read",
        );
        refused(
            &["--amqp-url-file", "hunter2"],
            "AMQP_URL_FILE",
            "can't be read",
        );
        for unescaped in ["x@y/hunter2", "x@y/?hunter2", "x@y/#hunter2"] {
            let url = format!("amqp://u:{unescaped}@mq");
            refused(&["--amqp-url", &url], "AMQP_URL", "an @ behind the host");
        }
        let two = "amqp://u:x@a/v,amqp://u:hunter2@b/v";
        refused(&["--amqp-url", two], "AMQP_URL", "an @ behind the host");
        for query in ["auth_mechanism=hunter2", "heartbeat=hunter2"] {
            let url = format!("amqp://u:x@mq/?{query}");
            refused(&["--amqp-url", &url], "AMQP_URL", "can't be read");
        }
        let key = ["--amqp-url", "amqps://mq", "--amqp-key-file", "hunter2"];
        refused(&key, "AMQP_KEY_FILE", "can't be read");
    }

    #[test]
    fn tls_files_must_be_there_and_of_use() {
        let tls = ["--amqp-url", "amqps://mq", "--amqp-ca-file"];
        refused(
            &[&tls[..], &["/no/such"]].concat(),
            "AMQP_CA_FILE",
            "can't read",
        );
        assert!(resolve(&[&tls[..], &["/etc/hosts"]].concat()).is_ok());
        let plain = ["--amqp-url", "amqp://mq", "--amqp-ca-file", "/etc/hosts"];
        refused(&plain, "AMQP_URL", "uses none of the files");
        let half = ["--amqp-url", "amqps://mq", "--amqp-cert-file", "/etc/hosts"];
        refused(&half, "AMQP_KEY_FILE", "is not set");
    }
}
