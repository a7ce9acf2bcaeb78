//! `DATABASE_URL`.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use url::{Host, Url};

use crate::boot::ConfigError;

const FIELD: &str = "DATABASE_URL";

/// Where the database is and who connects: `mysql://user:password@host:port/database?ssl-mode=&ssl-ca=`.
///
/// User, password and database are percent-encoded in the URL. `Display` leaves user and password out:
/// whoever swaps them must not find the password in a log.
#[derive(Clone)]
pub struct DatabaseUrl {
    host: String,
    port: u16,
    user: String,
    password: Option<SecretString>,
    database: String,
    tls: Tls,
}

/// How a connection is protected on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Never.
    Disabled,
    /// When the server offers it; its certificate is not checked.
    Preferred,
    /// Always; the certificate is not checked, so someone between can pose as the server.
    Required,
    /// Always, with a certificate for this host.
    VerifyIdentity {
        /// Authorities to trust, a PEM file; the system's when not given.
        ca: Option<PathBuf>,
    },
}

impl DatabaseUrl {
    /// Parses the URL; queries nobody.
    ///
    /// # Errors
    /// What is wrong with it, never with the password in the text.
    pub fn parse(url: &str) -> Result<Self, ConfigError> {
        let url = Url::parse(url.trim()).map_err(|err| {
            let fix = "write mysql://user:password@host:3306/database, special characters as %XX";
            ConfigError::new(FIELD, format!("is not a URL ({err})"), fix)
        })?;
        if url.scheme() != "mysql" {
            let problem = foreign_scheme(&url);
            return Err(ConfigError::new(FIELD, problem, "start it with mysql://"));
        }
        if has_stray_at(&url) {
            return Err(ConfigError::new(FIELD, STRAY_AT, ENCODE));
        }
        Ok(Self {
            host: host(&url)?,
            port: url.port().unwrap_or(3306),
            user: user(&url)?,
            password: url
                .password()
                .map(|password| decode("password", password).map(SecretString::from))
                .transpose()?,
            database: database(&url)?,
            tls: tls(&url)?,
        })
    }

    /// Name or address of the server; an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port, 3306 unless given.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Account to log in as.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Its password, if the URL has one.
    #[must_use]
    pub fn password(&self) -> Option<&SecretString> {
        self.password.as_ref()
    }

    /// Schema to use.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// How the connection is protected.
    #[must_use]
    pub fn tls(&self) -> &Tls {
        &self.tls
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            port,
            database,
            ..
        } = self;
        if host.contains(':') {
            write!(f, "mysql://[{host}]:{port}/{database}")
        } else {
            write!(f, "mysql://{host}:{port}/{database}")
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

pub(crate) const STRAY_AT: &str =
    "has an @ behind the host, so that a part of the password may be taken for host or path";
pub(crate) const ENCODE: &str =
    "write special characters of user and password as %XX: / is %2F, ? is %3F, # is %23, @ is %40";

/// A URL whose password has a `/`, `?` or `#` as it is ends too early, and the rest of the password is
/// somewhere it would be shown.
pub(crate) fn has_stray_at(url: &Url) -> bool {
    let behind = [Some(url.path()), url.query(), url.fragment()];
    behind.into_iter().flatten().any(|part| part.contains('@'))
}

/// A scheme is shown only if it is a known one: it may be the start of a password.
pub(crate) fn foreign_scheme(url: &Url) -> String {
    const KNOWN: [&str; 9] = [
        "amqp", "amqps", "http", "https", "jdbc", "mariadb", "mysql", "mysqlx", "postgres",
    ];
    match KNOWN.iter().find(|known| **known == url.scheme()) {
        Some(known) => format!("has the scheme {known:?}"),
        None => "has the scheme of no database and no broker".to_owned(),
    }
}

fn host(url: &Url) -> Result<String, ConfigError> {
    match url.host() {
        Some(Host::Domain(name)) if !name.is_empty() => decode("host", name),
        Some(Host::Ipv4(address)) => Ok(address.to_string()),
        Some(Host::Ipv6(address)) => Ok(address.to_string()),
        Some(Host::Domain(_)) | None => Err(ConfigError::new(
            FIELD,
            "names no host",
            "write mysql://user:password@HOST:3306/…",
        )),
    }
}

fn user(url: &Url) -> Result<String, ConfigError> {
    if url.username().is_empty() {
        let fix = "write mysql://USER:password@host:3306/…";
        return Err(ConfigError::new(FIELD, "names no user", fix));
    }
    decode("user", url.username())
}

fn database(url: &Url) -> Result<String, ConfigError> {
    let path = url.path().trim_start_matches('/');
    if path.is_empty() || path.contains('/') {
        let problem = if path.is_empty() {
            "names no database"
        } else {
            "has a path of two parts"
        };
        return Err(ConfigError::new(FIELD, problem, "end it with /DATABASE"));
    }
    decode("database", path)
}

fn decode(part: &str, text: &str) -> Result<String, ConfigError> {
    percent_decode_str(text)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| {
            let problem = format!("has a {part} that is not UTF-8 once decoded");
            ConfigError::new(FIELD, problem, "percent-encode the bytes of its UTF-8 form")
        })
}

/// Parameters of other clients' URLs.
const FOREIGN: [&str; 13] = [
    "allowPublicKeyRetrieval",
    "charset",
    "connect_timeout",
    "serverTimezone",
    "socket",
    "ssl",
    "ssl-cert",
    "ssl-key",
    "sslMode",
    "sslmode",
    "ssl_mode",
    "tls",
    "useSSL",
];

fn tls(url: &Url) -> Result<Tls, ConfigError> {
    let (mut mode, mut ca) = (None, None);
    for (name, value) in url.query_pairs() {
        match name.as_ref() {
            "ssl-mode" => mode = Some(value.to_ascii_uppercase()),
            "ssl-ca" => ca = Some(PathBuf::from(value.as_ref())),
            other => {
                // As a scheme: shown only if it is known from other clients.
                let foreign = FOREIGN.iter().find(|foreign| **foreign == other);
                let problem = match foreign {
                    Some(foreign) => format!("has the unknown parameter {foreign:?}"),
                    None => "has an unknown parameter".to_owned(),
                };
                let fix = "known are ssl-mode and ssl-ca";
                return Err(ConfigError::new(FIELD, problem, fix));
            }
        }
    }
    let tls = match mode.as_deref() {
        Some("VERIFY_IDENTITY") => return verify_identity(ca),
        Some("DISABLED") => Tls::Disabled,
        Some("PREFERRED") | None => Tls::Preferred,
        Some("REQUIRED") => Tls::Required,
        Some("VERIFY_CA") => {
            let problem = "has ssl-mode=VERIFY_CA, with which any server that has a certificate of \
                           that authority could pose as this one";
            return Err(ConfigError::new(FIELD, problem, "use VERIFY_IDENTITY"));
        }
        Some(_) => {
            let problem = "has an unknown ssl-mode";
            let fix = "use DISABLED, PREFERRED, REQUIRED or VERIFY_IDENTITY";
            return Err(ConfigError::new(FIELD, problem, fix));
        }
    };
    if ca.is_some() {
        let problem = "has ssl-ca with a mode that checks no certificate";
        return Err(ConfigError::new(
            FIELD,
            problem,
            "add ssl-mode=VERIFY_IDENTITY",
        ));
    }
    Ok(tls)
}

fn verify_identity(ca: Option<PathBuf>) -> Result<Tls, ConfigError> {
    if ca.as_deref().is_some_and(|path| !path.is_file()) {
        let problem = "has an ssl-ca, which is not a file";
        let fix = "name the PEM file of the authority";
        return Err(ConfigError::new(FIELD, problem, fix));
    }
    Ok(Tls::VerifyIdentity { ca })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[track_caller]
    fn refused(url: &str, problem: &str) {
        let err = DatabaseUrl::parse(url).unwrap_err();
        assert_eq!(err.field, "DATABASE_URL");
        let text = err.to_string();
        assert!(text.contains(problem), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(!err.fix.is_empty());
    }

    #[test]
    fn every_part_is_percent_decoded() {
        let url = "mysql://re%40lay:p%40ss%2Fw%C3%B6rd@db.example:3307/my%20orders";
        let url = DatabaseUrl::parse(url).unwrap();
        assert_eq!(url.user(), "re@lay");
        assert_eq!(url.password().unwrap().expose_secret(), "p@ss/wörd");
        assert_eq!((url.host(), url.port()), ("db.example", 3307));
        assert_eq!(url.database(), "my orders");
        assert_eq!(url.tls(), &Tls::Preferred);
    }

    #[test]
    fn port_and_password_may_be_left_out() {
        let url = DatabaseUrl::parse("mysql://relay@127.0.0.1/orders").unwrap();
        assert_eq!(url.port(), 3306);
        assert!(url.password().is_none());
    }

    #[test]
    fn an_ipv6_host_loses_its_brackets_and_shows_them() {
        let url = DatabaseUrl::parse("mysql://relay:hunter2@[::1]:3306/orders").unwrap();
        assert_eq!(url.host(), "::1");
        assert_eq!(url.to_string(), "mysql://[::1]:3306/orders");
    }

    #[test]
    fn neither_display_nor_debug_shows_the_password() {
        let swapped = DatabaseUrl::parse("mysql://hunter2:relay@db/orders").unwrap();
        assert_eq!(swapped.to_string(), "mysql://db:3306/orders");
        let url = DatabaseUrl::parse("mysql://relay:hunter2@db/orders").unwrap();
        assert_eq!(url.to_string(), "mysql://db:3306/orders");
        assert!(!format!("{url:?}").contains("hunter2"));
    }

    #[test]
    fn what_can_not_work_is_refused_with_a_fix() {
        refused("orders", "is not a URL");
        refused(
            "mysql://relay:hunter2@db:port/orders",
            "is not a URL (invalid port number)",
        );
        refused("postgres://relay:hunter2@db/orders", "scheme \"postgres\"");
        refused("mysql:///orders", "names no host");
        refused("mysql://:hunter2@db/orders", "names no user");
        refused("mysql://relay:hunter2@db", "names no database");
        refused("mysql://relay:hunter2@db/", "names no database");
        refused(
            "mysql://relay:hunter2@db/orders/outbox",
            "path of two parts",
        );
        refused(
            "mysql://relay:%FFhunter2@db/orders",
            "password that is not UTF-8",
        );
        refused(
            "mysql://relay:hunter2@db/orders?useSSL=true",
            "unknown parameter \"useSSL\"",
        );
        refused("mysql://relay:x@db/orders?hunter2", "an unknown parameter");
        refused(
            "mysql://relay:x@db/orders?ssl-mode=hunter2",
            "unknown ssl-mode",
        );
        refused("hunter2:relay@db/orders", "the scheme of no database");
        for unescaped in ["x@y/hunter2", "x@y/z?hunter2", "x@y/z#hunter2"] {
            refused(
                &format!("mysql://relay:{unescaped}@db"),
                "an @ behind the host",
            );
        }
        refused(
            "mysql://relay:hunter2@db/orders?ssl-mode=maybe",
            "unknown ssl-mode",
        );
    }

    #[test]
    fn every_tls_mode_is_known_whatever_its_case() {
        let tls = |mode: &str| {
            DatabaseUrl::parse(&format!("mysql://u@h/d?ssl-mode={mode}"))
                .unwrap()
                .tls()
                .clone()
        };
        assert_eq!(tls("disabled"), Tls::Disabled);
        assert_eq!(tls("PREFERRED"), Tls::Preferred);
        assert_eq!(tls("Required"), Tls::Required);
        assert_eq!(tls("verify_identity"), Tls::VerifyIdentity { ca: None });
    }

    #[test]
    fn verify_ca_is_refused_with_the_reason() {
        refused(
            "mysql://u:hunter2@h/d?ssl-mode=VERIFY_CA",
            "could pose as this one; use VERIFY_IDENTITY",
        );
    }

    #[test]
    fn an_authority_needs_a_mode_that_checks_it_and_a_file() {
        refused("mysql://u@h/d?ssl-ca=/etc/hosts", "checks no certificate");
        refused(
            "mysql://u@h/d?ssl-ca=/etc/hosts&ssl-mode=REQUIRED",
            "checks no certificate",
        );
        let verify = "mysql://u@h/d?ssl-mode=VERIFY_IDENTITY&ssl-ca=";
        refused(&format!("{verify}/no/such.pem"), "is not a file");
        let url = DatabaseUrl::parse(&format!("{verify}/etc/hosts")).unwrap();
        assert_eq!(
            url.tls(),
            &Tls::VerifyIdentity {
                ca: Some("/etc/hosts".into())
            }
        );
    }
}
