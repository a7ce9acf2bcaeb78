//! Settings that services share, as groups to `#[command(flatten)]` into their own.
//!
//! Every secret can come from a file instead, named by the variable with `_FILE` behind it. No message
//! repeats the value of either: the one may be the other by mistake.

use std::convert::Infallible;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use crate::boot::ConfigError;
use crate::database::DatabaseUrl;
use crate::operators::Tokens;

/// `DATABASE_URL` or `DATABASE_URL_FILE`.
#[derive(Clone, Debug, clap::Args)]
pub struct DatabaseArgs {
    /// mysql://user:password@host:port/database?ssl-mode=…&ssl-ca=… (modes DISABLED, PREFERRED,
    /// REQUIRED, VERIFY_IDENTITY; default PREFERRED)
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL",
          value_parser = secret_value)]
    database_url: Option<SecretString>,
    /// File that holds the database URL
    #[arg(
        long,
        env = "DATABASE_URL_FILE",
        hide_env_values = true,
        value_name = "PATH"
    )]
    database_url_file: Option<PathBuf>,
}

impl DatabaseArgs {
    /// The URL, parsed.
    ///
    /// # Errors
    /// It is missing, its file can't be read, or it can't work.
    pub fn resolve(&self) -> Result<DatabaseUrl, ConfigError> {
        let url = secret(
            "DATABASE_URL",
            self.database_url.as_ref(),
            self.database_url_file.as_deref(),
        )?
        .ok_or_else(|| {
            let fix = "set it to mysql://user:password@host:3306/database";
            ConfigError::new("DATABASE_URL", "is not set", fix)
        })?;
        DatabaseUrl::parse(url.expose_secret())
    }
}

/// `ADMIN_ADDR`, by default `PORT` on loopback, and `OPS_TOKENS` or `OPS_TOKENS_FILE`.
#[derive(Clone, Debug, clap::Args)]
pub struct AdminArgs<const PORT: u16> {
    /// Address of /livez, /readyz, /metrics and, where the service has them, /ops
    #[arg(long, env = "ADMIN_ADDR", value_name = "IP:PORT",
          default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)))]
    pub admin_addr: SocketAddr,
    /// Who may use /ops: comma-separated name:role:token, role viewer or operator, token of 16 characters
    /// or more; none: /ops is off
    #[arg(long, env = "OPS_TOKENS", hide_env_values = true, value_name = "LIST",
          value_parser = secret_value)]
    ops_tokens: Option<SecretString>,
    /// File that holds the list of OPS_TOKENS
    #[arg(
        long,
        env = "OPS_TOKENS_FILE",
        hide_env_values = true,
        value_name = "PATH"
    )]
    ops_tokens_file: Option<PathBuf>,
}

impl<const PORT: u16> AdminArgs<PORT> {
    /// Who may use `/ops`; empty when nobody is named.
    ///
    /// # Errors
    /// The file can't be read or the list can't be parsed.
    pub fn ops_tokens(&self) -> Result<Tokens, ConfigError> {
        match secret(
            "OPS_TOKENS",
            self.ops_tokens.as_ref(),
            self.ops_tokens_file.as_deref(),
        )? {
            Some(list) => Tokens::parse(&list),
            None => Ok(Tokens::default()),
        }
    }
}

/// A secret given as a value or in a file; `None` when neither is set. An empty value counts as not
/// set, which is what a compose file makes of an unset variable.
///
/// # Errors
/// Both are set, or the file can't be read or is empty. A final line break is not part of it.
pub fn secret(
    field: &str,
    value: Option<&SecretString>,
    file: Option<&Path>,
) -> Result<Option<SecretString>, ConfigError> {
    let value = value.filter(|value| !value.expose_secret().is_empty());
    let file = file.filter(|path| !path.as_os_str().is_empty());
    let field_file = format!("{field}_FILE");
    match (value, file) {
        (None, None) => Ok(None),
        (Some(value), None) => Ok(Some(value.clone())),
        (Some(_), Some(_)) => {
            let problem = format!("is set, and so is {field_file}");
            Err(ConfigError::new(field, problem, "unset one of them"))
        }
        (None, Some(path)) => {
            let text = secret_file(&field_file, path)?;
            let text = text.expose_secret().trim_end_matches(['\r', '\n']);
            if text.is_empty() {
                let problem = "names a file that is empty";
                let fix = "write the value into it";
                return Err(ConfigError::new(&field_file, problem, fix));
            }
            Ok(Some(SecretString::from(text)))
        }
    }
}

/// What a file holds whose content is a secret.
///
/// # Errors
/// It can't be read. The path is not in the text: who sets `NAME_FILE` to the secret itself must not
/// find it in a log.
pub fn secret_file(field: &str, path: &Path) -> Result<SecretString, ConfigError> {
    std::fs::read_to_string(path)
        .map(SecretString::from)
        .map_err(|err| {
            let problem = format!("names a file that can't be read: {err}");
            let fix = "name a file this user may read (the path, not what is in it)";
            ConfigError::new(field, problem, fix)
        })
}

/// A clap `value_parser`: "200ms", "5m", "7d", "0s".
///
/// # Errors
/// The text for the usage message.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text)
        .map_err(|err| format!("{err}; write a number and a unit, e.g. 200ms, 30s, 5m, 7d"))?;
    if parsed > DURATION_MAX {
        return Err("that is over a hundred years".into());
    }
    Ok(parsed)
}

/// So far from now, a time can still be computed: sums of times and much longer durations panic.
const DURATION_MAX: Duration = Duration::from_hours(24 * 36_525);

/// The value of a setting, if it is in a range.
///
/// # Errors
/// It is not; the text has both ends.
pub fn within<T: PartialOrd + Display>(
    field: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T, ConfigError> {
    if range.contains(&value) {
        return Ok(value);
    }
    let problem = format!("{value} is out of range");
    let fix = format!("set it between {} and {}", range.start(), range.end());
    Err(ConfigError::new(field, problem, fix))
}

/// A clap `value_parser` for secrets, which have no `FromStr`.
///
/// # Errors
/// None.
pub fn secret_value(text: &str) -> Result<SecretString, Infallible> {
    Ok(SecretString::from(text))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn durations_carry_their_unit() {
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert!(duration("100y").is_ok());
        assert!(duration("101y").is_err());
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for wrong in ["", "5", "-1s", "1 parsec"] {
            assert!(
                duration(wrong).unwrap_err().contains("e.g. 200ms"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_secret_comes_from_its_value_or_its_file_but_not_from_both() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret\n").unwrap();
        let value = SecretString::from("v");
        let exposed = |got: Option<SecretString>| got.map(|s| s.expose_secret().to_owned());

        assert_eq!(exposed(secret("X", None, None).unwrap()), None);
        assert_eq!(
            exposed(secret("X", Some(&value), None).unwrap()),
            Some("v".to_owned())
        );
        let read = secret("X", None, Some(file.path())).unwrap();
        assert_eq!(exposed(read), Some("s3cret".to_owned()));
        assert_eq!(
            secret("X", Some(&value), Some(file.path()))
                .unwrap_err()
                .field,
            "X"
        );
    }

    #[test]
    fn an_empty_value_is_not_set_and_an_empty_file_is_an_error() {
        let empty = SecretString::from("");
        assert!(
            secret("X", Some(&empty), Some(Path::new("")))
                .unwrap()
                .is_none()
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(
            secret("X", None, Some(file.path())).unwrap_err().field,
            "X_FILE"
        );
        let missing = secret("X", None, Some(Path::new("/no/such/file"))).unwrap_err();
        let text = missing.to_string();
        assert!(
            text.starts_with("X_FILE: names a file that can't be read: No such"),
            "{text}"
        );
        assert!(
            !text.contains("/no/such/file"),
            "it may be the secret: {text}"
        );
    }

    #[derive(Debug, Parser)]
    struct Settings {
        #[command(flatten)]
        database: DatabaseArgs,
        #[command(flatten)]
        admin: AdminArgs<9763>,
    }

    #[test]
    fn each_service_has_its_own_admin_port_on_loopback() {
        let settings = Settings::try_parse_from(["svc"]).unwrap();
        assert_eq!(settings.admin.admin_addr.to_string(), "127.0.0.1:9763");
        assert!(settings.admin.ops_tokens().unwrap().is_empty());
    }

    #[test]
    fn settings_never_show_their_secrets() {
        let url = "mysql://relay:hunter2@db/orders";
        let tokens = "ann:operator:0123456789abcdef";
        let args = ["svc", "--database-url", url, "--ops-tokens", tokens];
        let settings = Settings::try_parse_from(args).unwrap();
        let shown = format!("{settings:?} {:?}", settings.database.resolve().unwrap());
        assert!(
            !shown.contains("hunter2") && !shown.contains("0123456789abcdef"),
            "{shown}"
        );
    }

    #[test]
    fn a_missing_database_url_says_what_to_set() {
        let settings = Settings::try_parse_from(["svc"]).unwrap();
        let err = settings.database.resolve().unwrap_err();
        assert!(
            err.to_string()
                .starts_with("DATABASE_URL: is not set; set it to mysql://"),
            "{err}"
        );
    }
}
