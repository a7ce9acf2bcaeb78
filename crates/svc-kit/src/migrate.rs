//! Applying migrations: idempotent, and safe when several processes start at once.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{self, Write};

use sqlx::migrate::{Migrate as _, Migrator};
use sqlx::mysql::MySqlConnection;
use sqlx::{Connection as _, migrate};
use tokio_util::sync::CancellationToken;

use crate::boot::{ConfigError, Exit, block_on};
use crate::database::{DatabaseUrl, first_contact};
use crate::settings::DatabaseArgs;
use crate::telemetry::{self, LogArgs};

mod own;
pub use own::{check_own, foreign, until_own};

/// Longest wait for another process that migrates the same set, in seconds.
const LOCK_SECONDS: u32 = 60;

/// The settings of the command `migrate`.
#[derive(Debug, clap::Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    /// Print the SQL instead of running it
    #[arg(long)]
    print: bool,
}

impl MigrateArgs {
    /// Prints the SQL of these sets, or applies what is missing of them.
    ///
    /// # Errors
    /// As [`command`].
    pub fn run(&self, sets: &[Set]) -> anyhow::Result<Exit> {
        telemetry::init(self.log.log_format);
        command(sets, self.print, || self.database.resolve())
    }
}

/// Migrations that are applied together, with a tracking table of their own: `_{name}_migrations`.
#[derive(Debug)]
pub struct Set {
    /// What the set is called: letters, digits and underscores.
    pub name: Cow<'static, str>,
    /// The migrations, one statement each.
    pub migrator: Migrator,
    /// The setting that leads to its tables.
    pub setting: Cow<'static, str>,
}

impl Set {
    /// The migrations of `migrator`, tracked under `name`.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>, migrator: Migrator) -> Self {
        Self {
            name: name.into(),
            migrator,
            setting: "DATABASE_URL".into(),
        }
    }

    /// Names the setting that leads to its tables, where it is not `DATABASE_URL` alone.
    #[must_use]
    pub fn set_by(mut self, setting: &'static str) -> Self {
        self.setting = setting.into();
        self
    }

    fn tracking_table(&self) -> String {
        format!("_{}_migrations", self.name)
    }
}

/// What a run has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Migrations applied by this run, as `set version description`, in order.
    pub new: Vec<String>,
    /// How many were there before.
    pub already: usize,
}

/// Why the migrations were not, or not all, applied. Those that were are tracked.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database can't be reached or does not let us in.
    #[error("can't connect to {database}")]
    Connect {
        /// The URL, without its password.
        database: String,
        /// What it said.
        #[source]
        source: sqlx::Error,
    },
    /// A table of one of these names is somebody else's. Nothing was changed.
    #[error(transparent)]
    Foreign(ConfigError),
    /// Another process has been at it all the time.
    #[error("another process has been migrating {set} for {LOCK_SECONDS} s; try again")]
    Locked {
        /// The set's name.
        set: String,
    },
    /// A process died in the middle of a migration, and MySQL can't roll back a `CREATE TABLE`.
    #[error(
        "migration {version} of {set} was cut short; see whether its statement took effect, undo it if \
         so, DELETE FROM {table} WHERE version = {version}, and migrate again"
    )]
    CutShort {
        /// The set's name.
        set: String,
        /// The migration's number.
        version: i64,
        /// The tracking table.
        table: String,
    },
    /// A statement failed, or the set differs from what was applied before.
    #[error("migrating {set} failed")]
    Failed {
        /// The set's name.
        set: String,
        /// What went wrong.
        #[source]
        source: migrate::MigrateError,
    },
}

/// The command `migrate` of a program: prints the SQL of these sets, or applies what is missing of them.
/// The URL is resolved only to apply.
///
/// # Errors
/// [`ConfigError`] when a setting must be fixed first, else [`MigrateError`] and what printing failed of.
pub fn command(
    sets: &[Set],
    only_print: bool,
    url: impl FnOnce() -> Result<DatabaseUrl, ConfigError>,
) -> anyhow::Result<Exit> {
    if only_print {
        print(sets, &mut io::stdout().lock())?;
        return Ok(Exit::Drained);
    }
    let url = url()?;
    let applied = block_on(async {
        // A database that is still starting is waited for, as `run` does.
        first_contact(&url, &CancellationToken::new()).await?;
        match run(&url, sets).await {
            // The exit code is that of a wrong setting.
            Err(MigrateError::Foreign(setting)) => Err(setting.into()),
            done => Ok(done?),
        }
    })?;
    tracing::info!(new = ?applied.new, already = applied.already, "migrated");
    Ok(Exit::Drained)
}

/// Applies what is missing of these sets, in this order.
///
/// Migrations that the tracking table knows and the set does not are left alone: an older program
/// after a newer one, as in a deployment that is taken back.
///
/// # Errors
/// At the first set that fails; the sets before it are applied.
pub async fn run(url: &DatabaseUrl, sets: &[Set]) -> Result<Applied, MigrateError> {
    let connect = |source| MigrateError::Connect {
        database: url.to_string(),
        source,
    };
    let mut connection = url.connect().await.map_err(connect)?;
    // All sets before the first statement: a refusal must leave nothing half made.
    if let Some(foreign) = foreign(&mut connection, sets).await.map_err(connect)? {
        return Err(MigrateError::Foreign(foreign));
    }
    let mut applied = Applied::default();
    for set in sets {
        lock(&mut connection, set).await?;
        apply(&mut connection, set, &mut applied)
            .await
            .map_err(|err| failed(set, err))?;
    }
    // Frees the locks as well.
    connection.close().await.map_err(connect)?;
    Ok(applied)
}

/// Writes the SQL of these sets for a person to run, each statement ended by a semicolon. A later
/// [`run`] finds everything there and only tracks it.
///
/// # Errors
/// Of `out`.
pub fn print(sets: &[Set], out: &mut impl Write) -> io::Result<()> {
    for set in sets {
        for migration in set.migrator.iter() {
            writeln!(
                out,
                "-- {} {}: {}",
                set.name, migration.version, migration.description
            )?;
            writeln!(
                out,
                "{};\n",
                migration.sql.as_str().trim_end().trim_end_matches(';')
            )?;
        }
    }
    Ok(())
}

/// sqlx's own lock waits `-1` seconds, for ever on MySQL but NULL and no lock at all on MariaDB.
/// Locks are the server's: the name has the database in it, hashed for MySQL's 64
/// characters (by SHA2: MySQL 9.7 has no SHA1).
async fn lock(connection: &mut MySqlConnection, set: &Set) -> Result<(), MigrateError> {
    let got: Option<i64> = sqlx::query_scalar(
        "SELECT GET_LOCK(CONCAT('migrate:', LEFT(SHA2(CONCAT(DATABASE(), '.', ?), 256), 40)), ?)",
    )
    .bind(set.name.as_ref())
    .bind(LOCK_SECONDS)
    .fetch_one(connection)
    .await
    .map_err(|err| failed(set, migrate::MigrateError::Execute(err)))?;
    match got {
        Some(1) => Ok(()),
        _ => Err(MigrateError::Locked {
            set: set.name.to_string(),
        }),
    }
}

async fn apply(
    connection: &mut MySqlConnection,
    set: &Set,
    applied: &mut Applied,
) -> Result<(), migrate::MigrateError> {
    let table = set.tracking_table();
    connection.ensure_migrations_table(&table).await?;
    let before: HashSet<i64> = connection
        .list_applied_migrations(&table)
        .await?
        .into_iter()
        .map(|migration| migration.version)
        .collect();

    let mut migrator = Migrator::with_migrations(set.migrator.iter().cloned().collect());
    migrator.set_locking(false).set_ignore_missing(true);
    migrator.dangerous_set_table_name(table);
    // `run` would do, but its future is not `Send` for a borrowed connection (sqlx's `Acquire`).
    migrator.run_direct(None, connection, false).await?;

    for migration in migrator.iter() {
        if before.contains(&migration.version) {
            applied.already += 1;
        } else {
            let (version, description) = (migration.version, &migration.description);
            applied
                .new
                .push(format!("{} {version} {description}", set.name));
        }
    }
    Ok(())
}

fn failed(set: &Set, source: migrate::MigrateError) -> MigrateError {
    let name = set.name.to_string();
    match source {
        migrate::MigrateError::Dirty(version) => MigrateError::CutShort {
            set: name,
            version,
            table: set.tracking_table(),
        },
        source => MigrateError::Failed { set: name, source },
    }
}

#[cfg(test)]
mod tests {
    use sqlx::SqlSafeStr as _;
    use sqlx::migrate::{Migration, MigrationType};

    use super::*;

    #[test]
    fn printed_statements_end_with_one_semicolon() {
        let migration = |version, description: &'static str, sql: &'static str| {
            let sql = sql.into_sql_str();
            Migration::new(
                version,
                description.into(),
                MigrationType::Simple,
                sql,
                false,
            )
        };
        let migrations = vec![
            migration(2, "second", "CREATE TABLE b (id INT);\n"),
            migration(1, "first", "CREATE TABLE a (id INT)"),
        ];
        let set = Set::new("letters", Migrator::with_migrations(migrations));
        let mut out = Vec::new();
        print(&[set], &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "-- letters 1: first\nCREATE TABLE a (id INT);\n\n\
             -- letters 2: second\nCREATE TABLE b (id INT);\n\n"
        );
    }
}
