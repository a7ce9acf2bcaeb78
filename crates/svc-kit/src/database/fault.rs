//! Whose failure an error of the database is, which decides what to do about it. The one place where
//! error numbers have a meaning.

use rustls::CertificateError;
use sqlx::mysql::MySqlDatabaseError;

use crate::boot::ConfigError;

/// What an error means for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Trying again can't help: a setting, an account or a right must be changed first.
    Misconfigured(ConfigError),
    /// The server takes no writes, e.g. a primary that has become a replica: drop the connection and
    /// resolve its name again.
    ReadOnly,
    /// The table is not there (yet): apply the migrations.
    MissingTable,
    /// Others are in the way, or were: roll back, and try the transaction again.
    Busy,
    /// The values of the statement: the server will never take them. This alone may park or shorten a
    /// message.
    Data,
    /// Everything else, known or not: a lost connection, a full disk, a killed or slow statement, a
    /// statement of ours that this server does not understand. Nothing is known to be stored: stop
    /// taking, say why, and come back once it has passed.
    Unavailable,
}

/// What an error number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// [`Fault::Misconfigured`], with what to do about it.
    Settings(&'static str),
    ReadOnly,
    MissingTable,
    Busy,
    Data,
}

const LOGIN: &str = "check user and password, and that the account may log in from this host";
const ACCOUNT: &str = "unlock the account or renew its password";
const PLUGIN: &str = "give the account a plugin that this program speaks, caching_sha2_password (MySQL: ALTER USER … \
     IDENTIFIED WITH caching_sha2_password BY …) or mysql_native_password (MariaDB: ALTER USER … \
     IDENTIFIED VIA mysql_native_password USING PASSWORD(…))";
const TLS: &str = "add ssl-mode=REQUIRED to the URL";
const DATABASE: &str = "check the database's name and GRANT the account its rights";
const CREATE: &str = "create the database, or name another in the URL";
const GRANT: &str = "GRANT the account that right";

/// Every number that means anything else than [`Fault::Unavailable`], with its name.
///
/// Sources: the [MySQL 9 error reference], whose numbers below 1900 are MariaDB's as well, and the
/// [MariaDB error reference] for those above. What is not here is unavailable. That is the safe
/// side: a message is tried again, and not parked or cut.
///
/// Not here on purpose: 1062 (a key is there already), which callers that expect it look for by
/// itself, and which says nothing about a message when it comes of a table beside the message's own;
/// 1364, 1054, 1064 and 1136, which are a table or a statement that does not fit, so that every
/// message would be refused alike; 1644, which is whatever the author of a trigger means by it; 1216,
/// 1452, 3819 and 4025, which come of a foreign key or a CHECK that somebody has added: the tables of
/// this project have none, such a constraint refuses every message alike, and a missing parent row
/// passes by itself.
///
/// [MySQL 9 error reference]: https://dev.mysql.com/doc/mysql-errors/9.7/en/server-error-reference.html
/// [MariaDB error reference]: https://mariadb.com/docs/server/reference/error-codes/mariadb-error-code-reference
const MEANINGS: &[(u16, &str, Meaning)] = &[
    (1020, "ER_CHECKREAD", Meaning::Busy),
    (
        1044,
        "ER_DBACCESS_DENIED_ERROR",
        Meaning::Settings(DATABASE),
    ),
    (1045, "ER_ACCESS_DENIED_ERROR", Meaning::Settings(LOGIN)),
    (1048, "ER_BAD_NULL_ERROR", Meaning::Data),
    (1049, "ER_BAD_DB_ERROR", Meaning::Settings(CREATE)),
    (1118, "ER_TOO_BIG_ROWSIZE", Meaning::Data),
    (1130, "ER_HOST_NOT_PRIVILEGED", Meaning::Settings(LOGIN)),
    (
        1142,
        "ER_TABLEACCESS_DENIED_ERROR",
        Meaning::Settings(GRANT),
    ),
    (
        1143,
        "ER_COLUMNACCESS_DENIED_ERROR",
        Meaning::Settings(GRANT),
    ),
    (1146, "ER_NO_SUCH_TABLE", Meaning::MissingTable),
    (1153, "ER_NET_PACKET_TOO_LARGE", Meaning::Data),
    (1162, "ER_TOO_LONG_STRING", Meaning::Data),
    (1205, "ER_LOCK_WAIT_TIMEOUT", Meaning::Busy),
    (1213, "ER_LOCK_DEADLOCK", Meaning::Busy),
    (
        1227,
        "ER_SPECIFIC_ACCESS_DENIED_ERROR",
        Meaning::Settings(GRANT),
    ),
    (
        1251,
        "ER_NOT_SUPPORTED_AUTH_MODE",
        Meaning::Settings(PLUGIN),
    ),
    (1264, "ER_WARN_DATA_OUT_OF_RANGE", Meaning::Data),
    (1265, "WARN_DATA_TRUNCATED", Meaning::Data),
    (1290, "ER_OPTION_PREVENTS_STATEMENT", Meaning::ReadOnly),
    (1292, "ER_TRUNCATED_WRONG_VALUE", Meaning::Data),
    (1300, "ER_INVALID_CHARACTER_STRING", Meaning::Data),
    (1301, "ER_WARN_ALLOWED_PACKET_OVERFLOWED", Meaning::Data),
    (1366, "ER_TRUNCATED_WRONG_VALUE_FOR_FIELD", Meaning::Data),
    (1367, "ER_ILLEGAL_VALUE_FOR_TYPE", Meaning::Data),
    (1370, "ER_PROCACCESS_DENIED_ERROR", Meaning::Settings(GRANT)),
    (1406, "ER_DATA_TOO_LONG", Meaning::Data),
    (1411, "ER_WRONG_VALUE_FOR_TYPE", Meaning::Data),
    (1412, "ER_TABLE_DEF_CHANGED", Meaning::Busy),
    (1441, "ER_DATETIME_FUNCTION_OVERFLOW", Meaning::Data),
    (1524, "ER_PLUGIN_IS_NOT_LOADED", Meaning::Settings(PLUGIN)),
    (1525, "ER_WRONG_VALUE", Meaning::Data),
    (1615, "ER_NEED_REPREPARE", Meaning::Busy),
    (1689, "ER_LOCK_ABORTED", Meaning::Busy),
    (1690, "ER_DATA_OUT_OF_RANGE", Meaning::Data),
    (
        1698,
        "ER_ACCESS_DENIED_NO_PASSWORD_ERROR",
        Meaning::Settings(LOGIN),
    ),
    (
        1792,
        "ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION",
        Meaning::ReadOnly,
    ),
    (1820, "ER_MUST_CHANGE_PASSWORD", Meaning::Settings(ACCOUNT)),
    (1836, "ER_READ_ONLY_MODE", Meaning::ReadOnly),
    (
        1862,
        "ER_MUST_CHANGE_PASSWORD_LOGIN",
        Meaning::Settings(ACCOUNT),
    ),
    (1874, "ER_INNODB_READ_ONLY", Meaning::ReadOnly),
    // Of MySQL alone. An account that is blocked for some days after wrong passwords (3955) is not
    // here: that passes.
    (
        3118,
        "ER_ACCOUNT_HAS_BEEN_LOCKED",
        Meaning::Settings(ACCOUNT),
    ),
    (3140, "ER_INVALID_JSON_TEXT", Meaning::Data),
    (3141, "ER_INVALID_JSON_TEXT_IN_PARAM", Meaning::Data),
    (3150, "ER_JSON_VALUE_TOO_BIG", Meaning::Data),
    (3156, "ER_INVALID_JSON_VALUE_FOR_CAST", Meaning::Data),
    (3157, "ER_JSON_DOCUMENT_TOO_DEEP", Meaning::Data),
    (3159, "ER_SECURE_TRANSPORT_REQUIRED", Meaning::Settings(TLS)),
    (3572, "ER_LOCK_NOWAIT", Meaning::Busy),
    (3854, "ER_CANNOT_CONVERT_STRING", Meaning::Data),
    (3988, "ER_IMPOSSIBLE_STRING_CONVERSION", Meaning::Data),
    // Of MariaDB alone; MySQL has these numbers for statements that no program here runs.
    (
        1275,
        "ER_SERVER_IS_IN_SECURE_AUTH_MODE",
        Meaning::Settings(PLUGIN),
    ),
    (1977, "ER_CANNOT_CONVERT_CHARACTER", Meaning::Data),
    (
        4151,
        "ER_ACCOUNT_HAS_BEEN_LOCKED",
        Meaning::Settings(ACCOUNT),
    ),
];

const NO_PASSWORD_IN_CLEAR: &str = "the account is of the kind caching_sha2_password, the default of MySQL 8 and 9, and its password \
     is not sent over a connection without TLS";
const PASSWORD_NEEDS_TLS: &str = "leave ssl-mode=DISABLED out of the URL: a MySQL server has TLS from its first start on (or use \
     ssl-mode=VERIFY_IDENTITY with ssl-ca); where the server has none, use an account with \
     mysql_native_password (MySQL 8)";

/// What an error means.
#[must_use]
pub fn classify(err: &sqlx::Error) -> Fault {
    match err {
        sqlx::Error::Database(err) => match err.try_downcast_ref::<MySqlDatabaseError>() {
            Some(err) => classify_number(err.number(), err.message()),
            None => Fault::Unavailable,
        },
        sqlx::Error::Io(err) => match certificate_problem(err) {
            Some((problem, fix)) => misconfigured(&problem, fix),
            None => Fault::Unavailable,
        },
        sqlx::Error::Tls(source) => misconfigured(
            &source.to_string(),
            "set ssl-mode and ssl-ca to what the server offers",
        ),
        sqlx::Error::Configuration(source) if source.is::<ConfigError>() => source
            .downcast_ref()
            .cloned()
            .map_or(Fault::Unavailable, Fault::Misconfigured),
        sqlx::Error::Configuration(source) if source.to_string().contains("RSA") => {
            misconfigured(NO_PASSWORD_IN_CLEAR, PASSWORD_NEEDS_TLS)
        }
        sqlx::Error::Configuration(source) => {
            misconfigured(&source.to_string(), "fix the part of the URL it speaks of")
        }
        sqlx::Error::Protocol(text) => match unknown_plugin(text) {
            Some(name) => {
                let problem = format!(
                    "the account logs in with the plugin {name}, which this program does not speak"
                );
                misconfigured(&problem, PLUGIN)
            }
            None => Fault::Unavailable,
        },
        _ => Fault::Unavailable,
    }
}

/// Did the server answer, with an error? Then it is there, whatever it can't do at the moment.
#[must_use]
pub fn is_answer(err: &sqlx::Error) -> bool {
    err.as_database_error().is_some()
}

/// The plugin that the account has and the driver lacks: the driver has words alone for it.
fn unknown_plugin(text: &str) -> Option<&str> {
    if text == "mysql_cleartext_plugin disabled" {
        return Some("mysql_clear_password (of PAM or LDAP, say)");
    }
    text.strip_prefix("unknown authentication plugin: ")
}

/// Why the server's certificate is not accepted, if that is what the error is about, and the fix.
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

fn classify_number(number: u16, message: &str) -> Fault {
    let meaning = MEANINGS.iter().find(|(known, ..)| *known == number);
    match meaning.map(|(.., meaning)| *meaning) {
        Some(Meaning::Settings(fix @ (LOGIN | ACCOUNT))) => {
            misconfigured(&without_user(message), fix)
        }
        Some(Meaning::Settings(fix)) => misconfigured(message, fix),
        Some(Meaning::ReadOnly) => Fault::ReadOnly,
        Some(Meaning::MissingTable) => Fault::MissingTable,
        Some(Meaning::Busy) => Fault::Busy,
        Some(Meaning::Data) => Fault::Data,
        None => Fault::Unavailable,
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

fn misconfigured(problem: &str, fix: &str) -> Fault {
    Fault::Misconfigured(ConfigError::new("DATABASE_URL", problem, fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Errors that say nothing about a message, whatever else they say.
    const UNAVAILABLE: &[(u16, &str)] = &[
        (1021, "ER_DISK_FULL"),
        (1026, "ER_ERROR_ON_WRITE"),
        (1028, "ER_FILSORT_ABORT"),
        (1030, "ER_GET_ERRNO"),
        (1034, "ER_NOT_KEYFILE"),
        (1036, "ER_OPEN_AS_READONLY"),
        (1037, "ER_OUTOFMEMORY"),
        (1040, "ER_CON_COUNT_ERROR"),
        (1041, "ER_OUT_OF_RESOURCES"),
        (
            1047,
            "ER_UNKNOWN_COM_ERROR: a Galera node that is not in its cluster",
        ),
        (1053, "ER_SERVER_SHUTDOWN"),
        (1054, "ER_BAD_FIELD_ERROR"),
        (1062, "ER_DUP_ENTRY"),
        (1064, "ER_PARSE_ERROR"),
        (1077, "ER_NORMAL_SHUTDOWN"),
        (1079, "ER_SHUTDOWN_COMPLETE"),
        (1105, "ER_UNKNOWN_ERROR"),
        (1114, "ER_RECORD_FILE_FULL"),
        (1129, "ER_HOST_IS_BLOCKED: until FLUSH HOSTS or a restart"),
        (1135, "ER_CANT_CREATE_THREAD"),
        (1136, "ER_WRONG_VALUE_COUNT_ON_ROW"),
        (1152, "ER_ABORTING_CONNECTION"),
        (1158, "ER_NET_READ_ERROR"),
        (1159, "ER_NET_READ_INTERRUPTED"),
        (1160, "ER_NET_ERROR_ON_WRITE"),
        (1161, "ER_NET_WRITE_INTERRUPTED"),
        (1180, "ER_ERROR_DURING_COMMIT"),
        (1184, "ER_NEW_ABORTING_CONNECTION"),
        (1194, "ER_CRASHED_ON_USAGE"),
        (1195, "ER_CRASHED_ON_REPAIR"),
        (1197, "ER_TRANS_CACHE_FULL"),
        (1203, "ER_TOO_MANY_USER_CONNECTIONS"),
        (1206, "ER_LOCK_TABLE_FULL"),
        (1216, "ER_NO_REFERENCED_ROW"),
        (1226, "ER_USER_LIMIT_REACHED"),
        (1317, "ER_QUERY_INTERRUPTED"),
        (1364, "ER_NO_DEFAULT_FOR_FIELD"),
        (1452, "ER_NO_REFERENCED_ROW_2"),
        (1467, "ER_AUTOINC_READ_FAILED"),
        (1526, "ER_NO_PARTITION_FOR_GIVEN_VALUE"),
        (1637, "ER_TOO_MANY_CONCURRENT_TRXS"),
        (1644, "ER_SIGNAL_EXCEPTION"),
        (1812, "ER_TABLESPACE_MISSING"),
        (1878, "ER_TEMP_FILE_WRITE_FAILURE"),
        (1927, "MariaDB ER_CONNECTION_KILLED"),
        (1932, "MariaDB ER_NO_SUCH_TABLE_IN_ENGINE"),
        (1969, "MariaDB ER_STATEMENT_TIMEOUT"),
        (3019, "ER_INNODB_UNDO_LOG_FULL"),
        (3024, "ER_QUERY_TIMEOUT"),
        (3032, "ER_SERVER_OFFLINE_MODE"),
        (3100, "ER_RUN_HOOK_ERROR"),
        (3101, "ER_TRANSACTION_ROLLBACK_DURING_COMMIT"),
        (3168, "ER_SERVER_ISNT_AVAILABLE"),
        (3169, "ER_SESSION_WAS_KILLED"),
        (3675, "ER_DISK_FULL_NOWAIT"),
        (3819, "ER_CHECK_CONSTRAINT_VIOLATED"),
        (
            3955,
            "ER_USER_ACCESS_DENIED_FOR_USER_ACCOUNT_BLOCKED_BY_PASSWORD_LOCK",
        ),
        (4025, "MariaDB ER_CONSTRAINT_FAILED"),
        (4031, "ER_CLIENT_INTERACTION_TIMEOUT"),
        (65_535, "a number that no server has"),
    ];

    #[test]
    fn every_number_of_the_list_means_what_the_list_says() {
        for (number, name, meaning) in MEANINGS {
            let fault = classify_number(*number, "m");
            let expected = match meaning {
                Meaning::Settings(fix) => misconfigured("m", fix),
                Meaning::ReadOnly => Fault::ReadOnly,
                Meaning::MissingTable => Fault::MissingTable,
                Meaning::Busy => Fault::Busy,
                Meaning::Data => Fault::Data,
            };
            assert_eq!(fault, expected, "{number} {name} is listed twice");
        }
    }

    #[test]
    fn the_datas_fault_is_what_this_list_says_and_no_more() {
        let data: Vec<u16> = MEANINGS
            .iter()
            .filter(|(.., meaning)| *meaning == Meaning::Data)
            .map(|(number, ..)| *number)
            .collect();
        let known = [
            1048, 1118, 1153, 1162, 1264, 1265, 1292, 1300, 1301, 1366, 1367, 1406, 1411, 1441,
            1525, 1690, 3140, 3141, 3150, 3156, 3157, 3854, 3988, 1977,
        ];
        assert_eq!(
            data, known,
            "a number here makes pay-svc cut a message and acknowledge it"
        );
    }

    #[test]
    fn what_is_not_on_the_list_is_unavailable() {
        for (number, name) in UNAVAILABLE {
            assert_eq!(
                classify_number(*number, "m"),
                Fault::Unavailable,
                "{number} {name}"
            );
        }
        let listed = |number| MEANINGS.iter().any(|(known, ..)| *known == number);
        for number in (0..=u16::MAX).filter(|number| !listed(*number)) {
            assert_eq!(classify_number(number, "m"), Fault::Unavailable, "{number}");
        }
    }

    #[test]
    fn numbers_mean_what_the_contract_says() {
        for number in [1045, 1044, 1698, 1049, 1142] {
            assert!(
                matches!(classify_number(number, "m"), Fault::Misconfigured(_)),
                "{number}"
            );
        }
        for number in [1290, 1836, 1792] {
            assert_eq!(classify_number(number, "m"), Fault::ReadOnly, "{number}");
        }
        for number in [1205, 1213, 3572, 1020] {
            assert_eq!(classify_number(number, "m"), Fault::Busy, "{number}");
        }
        for number in [1040, 1203, 1226, 1053, 1927] {
            assert_eq!(classify_number(number, "m"), Fault::Unavailable, "{number}");
        }
        assert_eq!(classify_number(1146, "m"), Fault::MissingTable);
    }

    #[test]
    fn an_error_without_a_number_is_unavailable() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        for err in [
            sqlx::Error::Io(refused),
            sqlx::Error::PoolTimedOut,
            sqlx::Error::PoolClosed,
            sqlx::Error::WorkerCrashed,
            sqlx::Error::BeginFailed,
            sqlx::Error::RowNotFound,
            sqlx::Error::Protocol("Packet empty".into()),
            sqlx::Error::Encode("x".into()),
            sqlx::Error::Decode("x".into()),
        ] {
            assert_eq!(classify(&err), Fault::Unavailable, "{err}");
        }
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
    fn a_plugin_that_the_driver_lacks_is_named_with_what_to_use() {
        for (text, name) in [
            (
                "unknown authentication plugin: client_ed25519",
                "client_ed25519",
            ),
            ("mysql_cleartext_plugin disabled", "mysql_clear_password"),
        ] {
            let Fault::Misconfigured(config) = classify(&sqlx::Error::Protocol(text.into())) else {
                panic!("{text}");
            };
            assert!(config.problem.contains(name), "{config}");
            assert!(config.fix.contains("caching_sha2_password"), "{config}");
        }
    }
}
