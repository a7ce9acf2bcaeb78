//! Whose failure an error of the database is, which decides what to do about it.

use rustls::CertificateError;
use sqlx::mysql::MySqlDatabaseError;

use crate::boot::ConfigError;

/// What an error means for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Trying again can't help: a setting or a right must be mended first.
    Misconfigured(ConfigError),
    /// The server can't be reached, is starting, stopping or full: drop the connection, back off.
    Away,
    /// The server takes no writes, e.g. a primary that has become a replica: drop the connection and
    /// resolve its name again.
    ReadOnly,
    /// A deadlock or a lock wait: the transaction is rolled back, try it again.
    Busy,
    /// The table is not there (yet): apply the migrations.
    MissingTable,
    /// None of these: a statement of ours is wrong, or its data.
    Other,
}

const NO_PASSWORD_IN_CLEAR: &str = "the account is of the kind caching_sha2_password, the default of MySQL 8 and 9, and its password \
     is not sent over a connection without TLS";
const PASSWORD_NEEDS_TLS: &str = "leave ssl-mode=DISABLED out of the URL: a MySQL server has TLS from its first start on (or use \
     ssl-mode=VERIFY_IDENTITY with ssl-ca); where the server has none, use an account with \
     mysql_native_password (MySQL 8)";

/// What an error means. Errors of a kind unknown here are [`Fault::Other`].
#[must_use]
pub fn classify(err: &sqlx::Error) -> Fault {
    match err {
        sqlx::Error::Database(err) => match err.try_downcast_ref::<MySqlDatabaseError>() {
            Some(err) => classify_number(err.number(), err.message()),
            None => Fault::Other,
        },
        sqlx::Error::Io(err) => match certificate_problem(err) {
            Some((problem, mend)) => misconfigured(&problem, mend),
            None => Fault::Away,
        },
        sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => Fault::Away,
        sqlx::Error::Tls(source) => misconfigured(
            &source.to_string(),
            "set ssl-mode and ssl-ca to what the server offers",
        ),
        sqlx::Error::Configuration(source) if source.is::<ConfigError>() => source
            .downcast_ref()
            .cloned()
            .map_or(Fault::Other, Fault::Misconfigured),
        sqlx::Error::Configuration(source) if source.to_string().contains("RSA") => {
            misconfigured(NO_PASSWORD_IN_CLEAR, PASSWORD_NEEDS_TLS)
        }
        sqlx::Error::Configuration(source) => {
            misconfigured(&source.to_string(), "mend the part of the URL it speaks of")
        }
        _ => Fault::Other,
    }
}

/// Why the server's certificate is not accepted, if that is what the error is about, and the mend.
fn certificate_problem(err: &std::io::Error) -> Option<(String, &'static str)> {
    let refused = err.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::InvalidCertificate(why) = refused else {
        return None;
    };
    Some(match why {
        CertificateError::UnknownIssuer => (
            format!("no authority that is trusted has signed the server's certificate ({why})"),
            "name the PEM file of the server's authority in ssl-ca",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            format!("the server's certificate is for another host name: {why}"),
            "use a name of the certificate in the URL, or give the server one for this name",
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            format!("the server's certificate has expired: {why}"),
            "renew the server's certificate, and check this machine's clock",
        ),
        _ => (
            format!("the server's certificate is refused: {why}"),
            "give the server a valid certificate, and name its authority's PEM file in ssl-ca",
        ),
    })
}

/// Error numbers that MySQL and MariaDB share, but where noted.
fn classify_number(number: u16, message: &str) -> Fault {
    match number {
        // Access denied: to the server, by password or by plugin; no such account for this host.
        1045 | 1698 | 1130 => misconfigured(
            &without_user(message),
            "check user and password, and that the account \
             may log in from this host",
        ),
        // The account is locked, its password has expired.
        3118 | 4151 | 1820 | 1862 => misconfigured(
            &without_user(message),
            "unlock the account or renew its password",
        ),
        // The account's plugin is not one this client speaks; the server wants TLS.
        1251 | 1524 => misconfigured(
            message,
            "use an account with caching_sha2_password or \
             mysql_native_password",
        ),
        3159 => misconfigured(message, "add ssl-mode=REQUIRED to the URL"),
        // Access denied: to the database.
        1044 => misconfigured(
            message,
            "check the database's name and GRANT the account its rights",
        ),
        1049 => misconfigured(message, "create the database, or name another in the URL"),
        // A right is missing: on a table, a column, a routine, of the server.
        1142 | 1143 | 1370 | 1227 => misconfigured(message, "GRANT the account that right"),
        // Too many connections: of all, of this account, in this hour.
        1040 | 1203 | 1226 => Fault::Away,
        // Shutting down, connection killed (MariaDB 1927, MySQL 3169), offline mode, idle too long.
        1053 | 1077 | 1079 | 1927 | 3169 | 3032 | 4031 => Fault::Away,
        // Host blocked for a while, connection broken off in the middle of a packet.
        1129 | 1152 | 1158..=1161 | 1184 => Fault::Away,
        // --read-only or --super-read-only, a read-only engine, a read-only transaction.
        1290 | 1836 | 1792 => Fault::ReadOnly,
        // Lock wait time-out, deadlock, NOWAIT, MariaDB's snapshot isolation.
        1205 | 1213 | 3572 | 1020 => Fault::Busy,
        1146 => Fault::MissingTable,
        _ => Fault::Other,
    }
}

/// A refused login without the user's name, which is the password where the two were swapped:
/// `Access denied for user 'NAME'@'host' (using password: YES)`.
pub(crate) fn without_user(message: &str) -> String {
    match message.split_once("user '") {
        Some((before, after)) => match after.rsplit_once("'@'") {
            Some((_, host)) => format!("{before}this user @'{host}"),
            None => format!("{before}this user"),
        },
        None => message.to_owned(),
    }
}

/// The error of a connection that may be the first, without the user's name in it.
#[must_use]
pub fn at_login(err: sqlx::Error) -> sqlx::Error {
    match classify(&err) {
        Fault::Misconfigured(config) => sqlx::Error::Configuration(Box::new(config)),
        _ => err,
    }
}

fn misconfigured(problem: &str, mend: &str) -> Fault {
    Fault::Misconfigured(ConfigError::new("DATABASE_URL", problem, mend))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_mean_what_the_contract_says() {
        for number in [1045, 1044, 1698, 1049, 1142] {
            assert!(
                matches!(classify_number(number, "m"), Fault::Misconfigured(_)),
                "{number}"
            );
        }
        for number in [1040, 1053, 1927] {
            assert_eq!(classify_number(number, "m"), Fault::Away, "{number}");
        }
        for number in [1290, 1836, 1792] {
            assert_eq!(classify_number(number, "m"), Fault::ReadOnly, "{number}");
        }
        for number in [1205, 1213] {
            assert_eq!(classify_number(number, "m"), Fault::Busy, "{number}");
        }
        assert_eq!(classify_number(1146, "m"), Fault::MissingTable);
        assert_eq!(classify_number(1062, "m"), Fault::Other);
    }

    #[test]
    fn a_refused_login_does_not_show_the_user_who_may_be_the_password() {
        for (said, shown) in [
            (
                "Access denied for user 'hunter2'@'10.0.0.1' (using password: YES)",
                "Access denied for this user @'10.0.0.1' (using password: YES)",
            ),
            (
                "Access denied for user 'hunter'@'2'@'::1' (using password: NO)",
                "Access denied for this user @'::1' (using password: NO)",
            ),
            (
                "Access denied for user 'hunter2'",
                "Access denied for this user",
            ),
            ("Host 'h' is not allowed", "Host 'h' is not allowed"),
        ] {
            assert_eq!(without_user(said), shown);
        }
        let Fault::Misconfigured(config) = classify_number(1045, "user 'hunter2'@'h'") else {
            panic!("it is the setting's fault");
        };
        let passed = at_login(sqlx::Error::Configuration(Box::new(config.clone())));
        assert_eq!(classify(&passed), Fault::Misconfigured(config));
    }

    #[test]
    fn a_server_that_can_not_be_reached_is_away() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(classify(&sqlx::Error::Io(refused)), Fault::Away);
        assert_eq!(classify(&sqlx::Error::PoolTimedOut), Fault::Away);
        assert_eq!(classify(&sqlx::Error::RowNotFound), Fault::Other);
    }
}
