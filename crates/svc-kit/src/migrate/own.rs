//! Whose a table is. A stranger's table of the same name is never read as ours, written or altered.

use std::time::Duration;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _};
use tokio_util::sync::CancellationToken;

use super::Set;
use crate::backoff::Backoff;
use crate::boot::ConfigError;
use crate::database::{DatabaseUrl, Fault, classify};

/// The look is a few reads of the server's own tables.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Columns that sqlx gives its tracking table.
const TRACKING: [&str; 6] = [
    "version",
    "description",
    "installed_on",
    "success",
    "checksum",
    "execution_time",
];
/// Names of columns in one message.
const NAMED_MAX: usize = 12;

/// A table that a set creates. Later migrations add columns, so a table of any release has at least
/// these.
struct Created {
    /// The migration that creates it; `None` is the tracking table.
    version: Option<i64>,
    table: String,
    columns: Vec<String>,
}

/// A table as it was found.
struct Found {
    kind: String,
    /// `None` while the server can't open the table.
    engine: Option<String>,
    /// Those that this account may see.
    columns: Vec<String>,
}

impl Set {
    /// The product's own table definitions are the one list of its columns.
    fn created(&self) -> Vec<Created> {
        let tracking = Created {
            version: None,
            table: self.tracking_table(),
            columns: TRACKING.map(str::to_owned).to_vec(),
        };
        let created = self
            .migrator
            .iter()
            .filter_map(|migration| created(migration.version, migration.sql.as_str()));
        created.chain([tracking]).collect()
    }
}

/// Reads `CREATE TABLE IF NOT EXISTS` as this project writes it: one column a line, in backticks.
fn created(version: i64, sql: &str) -> Option<Created> {
    let mut lines = sql.lines().map(str::trim);
    let table = lines.find_map(|line| line.strip_prefix("CREATE TABLE IF NOT EXISTS `"))?;
    let name = |text: &str| text.split('`').next().unwrap_or_default().to_owned();
    let columns = lines.filter_map(|line| line.strip_prefix('`').map(name));
    Some(Created {
        version: Some(version),
        table: name(table),
        columns: columns.collect(),
    })
}

/// Refuses sets of which a table is there already and is not the product's own.
///
/// # Errors
/// [`ConfigError`], what differs and what to do; else why the look failed: whose the tables are is
/// unknown then, and nothing may be done with them.
pub async fn check_own(url: &DatabaseUrl, sets: &[Set]) -> anyhow::Result<()> {
    check(url, sets, &|_| true).await
}

/// As [`check_own`], of `tables` alone, and for as long as the look fails: `waits` gets why. Returns
/// early, without an error, when `stop` is canceled.
///
/// # Errors
/// What differs and what to do, or what no waiting can fix.
pub async fn until_own(
    url: &DatabaseUrl,
    sets: &[Set],
    tables: &[&str],
    stop: &CancellationToken,
    waits: impl Fn(&str),
) -> Result<(), ConfigError> {
    let looking = async {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let Err(err) = check(url, sets, &|table| tables.contains(&table)).await else {
                return Ok(());
            };
            let why = match err.downcast::<ConfigError>() {
                Ok(foreign) => return Err(foreign),
                Err(err) => format!("{err:#}"),
            };
            tracing::warn!(database = %url, error = why, "waiting for the database");
            waits(&why);
            tokio::time::sleep(backoff.next()).await;
        }
    };
    stop.run_until_cancelled(looking).await.unwrap_or(Ok(()))
}

async fn check(
    url: &DatabaseUrl,
    sets: &[Set],
    is_wanted: &(dyn Fn(&str) -> bool + Sync),
) -> anyhow::Result<()> {
    let looking = async {
        let mut connection = url.connect().await?;
        let found = foreign_of(&mut connection, sets, is_wanted).await;
        drop(connection.close().await);
        found
    };
    let looked = tokio::time::timeout(LOOK_TIMEOUT, looking).await;
    let looked = looked.unwrap_or_else(|_elapsed| {
        let text = format!("no answer within {LOOK_TIMEOUT:?}");
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text).into())
    });
    match looked {
        Ok(None) => Ok(()),
        Ok(Some(foreign)) => Err(foreign.into()),
        Err(err) => match classify(&err) {
            Fault::Misconfigured(config) => Err(config.into()),
            _ => Err(anyhow::Error::new(err).context(format!(
                "whose the tables at {url} are could not be looked up, nothing was done"
            ))),
        },
    }
}

/// What is wrong with the tables that are there, if it is anything; reads only.
///
/// # Errors
/// The database's.
pub async fn foreign(
    connection: &mut MySqlConnection,
    sets: &[Set],
) -> Result<Option<ConfigError>, sqlx::Error> {
    foreign_of(connection, sets, &|_| true).await
}

async fn foreign_of(
    connection: &mut MySqlConnection,
    sets: &[Set],
    is_wanted: &(dyn Fn(&str) -> bool + Sync),
) -> Result<Option<ConfigError>, sqlx::Error> {
    for set in sets {
        let mut problems = Vec::new();
        for created in set.created() {
            if !is_wanted(&created.table) {
                continue;
            }
            let Some(found) = look(connection, &created.table).await? else {
                continue;
            };
            let seen = !found.columns.is_empty();
            if !seen && is_tracked(connection, set, created.version).await {
                continue;
            }
            problems.extend(created.problem(&found));
        }
        if !problems.is_empty() {
            return Ok(Some(refusal(set, &problems)));
        }
    }
    Ok(None)
}

fn refusal(set: &Set, problems: &[String]) -> ConfigError {
    ConfigError::new(
        set.setting.as_ref(),
        format!(
            "{}; nothing was changed. A table of this name that belongs to another program is never \
             touched",
            problems.join("; ")
        ),
        format!(
            "name another table or database in {}, or rename the other program's table",
            set.setting
        ),
    )
}

async fn look(connection: &mut MySqlConnection, table: &str) -> Result<Option<Found>, sqlx::Error> {
    let found: Option<(String, Option<String>)> = sqlx::query_as(
        "SELECT CAST(TABLE_TYPE AS CHAR), CAST(ENGINE AS CHAR) FROM information_schema.TABLES \
         WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ?",
    )
    .bind(table)
    .fetch_optional(&mut *connection)
    .await?;
    let Some((kind, engine)) = found else {
        return Ok(None);
    };
    let columns = sqlx::query_scalar(
        "SELECT CAST(COLUMN_NAME AS CHAR) FROM information_schema.COLUMNS \
         WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ? ORDER BY ORDINAL_POSITION",
    );
    Ok(Some(Found {
        kind,
        engine,
        columns: columns.bind(table).fetch_all(connection).await?,
    }))
}

/// An account that may create and alter, and not read, sees a table without its columns.
async fn is_tracked(connection: &mut MySqlConnection, set: &Set, version: Option<i64>) -> bool {
    let statement = format!("SELECT 1 FROM `{}` WHERE version = ?", set.tracking_table());
    let tracked = sqlx::query_scalar::<_, i64>(AssertSqlSafe(statement))
        .bind(version)
        .fetch_optional(connection);
    matches!(tracked.await, Ok(Some(_)))
}

impl Created {
    fn problem(&self, found: &Found) -> Option<String> {
        let table = &self.table;
        if !matches!(found.kind.as_str(), "BASE TABLE" | "SYSTEM VERSIONED") {
            return Some(format!("`{table}` is a {} and not a table", found.kind));
        }
        if found.columns.is_empty() {
            return Some(format!(
                "this account can't see the columns of `{table}`, so it is not known whose it is: \
                 GRANT SELECT ON it"
            ));
        }
        let has = |column: &&String| found.columns.iter().any(|c| c.eq_ignore_ascii_case(column));
        let missing: Vec<&String> = self.columns.iter().filter(|column| !has(column)).collect();
        if !missing.is_empty() {
            return Some(format!(
                "the table `{table}` that is there is not the product's own: it has no column {}, \
                 its columns are {}",
                listed(&missing),
                listed(&found.columns.iter().collect::<Vec<_>>()),
            ));
        }
        match found.engine.as_deref() {
            None | Some("InnoDB") => None,
            Some(engine) => Some(format!(
                "`{table}` is kept by the engine {engine}, and without InnoDB's transactions a row \
                 and its change are not one: ALTER TABLE `{table}` ENGINE = InnoDB"
            )),
        }
    }
}

fn listed(columns: &[&String]) -> String {
    let named: Vec<&str> = columns
        .iter()
        .take(NAMED_MAX)
        .map(|name| name.as_str())
        .collect();
    match columns.len().saturating_sub(NAMED_MAX) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(columns: &[&str]) -> Found {
        Found {
            kind: "BASE TABLE".into(),
            engine: Some("InnoDB".into()),
            columns: columns.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    const FENCE: &str = "-- why\nCREATE TABLE IF NOT EXISTS `t_fence` (\n  `id` TINYINT NOT NULL,\n  \
                         `n` BIGINT NOT NULL,\n  PRIMARY KEY (`id`),\n  KEY `k` (`n`)\n)";

    #[test]
    fn columns_are_read_off_the_statement_that_creates_them() {
        let fence = created(2, FENCE).unwrap();
        assert_eq!((fence.table.as_str(), fence.version), ("t_fence", Some(2)));
        assert_eq!(fence.columns, ["id", "n"]);
        assert!(created(3, "INSERT IGNORE INTO `t_fence` VALUES (1, 0)").is_none());
    }

    #[test]
    fn a_table_is_ours_with_further_columns_and_not_with_fewer() {
        let fence = created(2, FENCE).unwrap();
        assert_eq!(fence.problem(&found(&["ID", "n", "further"])), None);
        let problem = fence.problem(&found(&["id", "height"])).unwrap();
        assert!(problem.contains("no column n"), "{problem}");
        assert!(problem.contains("its columns are id, height"), "{problem}");
        let engine = |engine: Option<&str>| Found {
            engine: engine.map(str::to_owned),
            ..found(&["id", "n"])
        };
        assert_eq!(fence.problem(&engine(None)), None);
        let problem = fence.problem(&engine(Some("MyISAM"))).unwrap();
        assert!(problem.contains("ENGINE = InnoDB"), "{problem}");
    }
}
