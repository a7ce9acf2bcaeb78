//! `relay pause` and `relay resume`: on the database, whether a relay runs or not.

use anyhow::{Context, anyhow, bail};
use clap::Args;
use sqlx::{AssertSqlSafe, Connection as _, MySqlTransaction};
use svc_kit::boot::ConfigError;

use crate::commands::operator;
use crate::config::TableArgs;
use crate::engine::route::Route;
use crate::outbox_table::OutboxTable;
use crate::pause::{self, Pause, Pauses, ROUTES_MAX};

const EXCHANGE_MAX: usize = 127;
const ROUTING_KEY_MAX: usize = 255;

/// What is paused or resumed.
#[derive(Args, Debug)]
pub struct TargetArgs {
    /// Database, table, log format.
    #[command(flatten)]
    pub table: TableArgs,
    /// One route, by its exchange and routing key, instead of the whole relay
    #[arg(long, num_args = 2, value_names = ["EXCHANGE", "ROUTING_KEY"])]
    pub route: Option<Vec<String>>,
    /// Who does it, for the audit; by default the user and the machine
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
}

/// `relay pause`.
#[derive(Args, Debug)]
pub struct PauseArgs {
    /// What and who.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Why, for whoever finds it paused
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
}

/// `relay resume`.
#[derive(Args, Debug)]
pub struct ResumeArgs {
    /// What and who.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// A checked `relay pause` or `relay resume`.
#[derive(Debug)]
pub struct Action {
    /// The outbox.
    pub table: OutboxTable,
    /// `None`: the whole relay.
    pub route: Option<Route>,
    actor: String,
    reason: Option<String>,
}

impl PauseArgs {
    /// Checks what is to be written.
    ///
    /// # Errors
    /// The flag, what is wrong with it and the fix.
    pub fn resolve(&self) -> Result<Action, ConfigError> {
        self.target.resolve(Some(&self.reason))
    }
}

impl ResumeArgs {
    /// Checks what is to be written.
    ///
    /// # Errors
    /// The flag, what is wrong with it and the fix.
    pub fn resolve(&self) -> Result<Action, ConfigError> {
        self.target.resolve(self.reason.as_deref())
    }
}

impl TargetArgs {
    fn resolve(&self, reason: Option<&str>) -> Result<Action, ConfigError> {
        let route = match self.route.as_deref() {
            Some([exchange, routing_key]) => Some(Route::new(
                &name("exchange", exchange, EXCHANGE_MAX)?,
                &name("routing key", routing_key, ROUTING_KEY_MAX)?,
            )),
            _ => None,
        };
        let reason = match reason {
            Some(reason) => Some(operator::reason(reason)?),
            None => None,
        };
        let actor = operator::actor(self.by.as_deref())?;
        Ok(Action {
            table: self.table.resolve()?,
            route,
            actor,
            reason,
        })
    }
}

/// As the outbox's columns hold them; either may be empty, as in RabbitMQ.
fn name(what: &str, text: &str, max: usize) -> Result<Vec<u8>, ConfigError> {
    if text.len() <= max && text.is_ascii() {
        return Ok(text.into());
    }
    Err(ConfigError::new(
        "--route",
        format!("the {what} {text:?} is not up to {max} ASCII characters, so no row can have it"),
        "give exchange and routing key as they are in the outbox's rows",
    ))
}

impl Action {
    fn what(&self) -> String {
        match &self.route {
            None => "the relay".into(),
            Some(route) => format!("route {route}"),
        }
    }

    /// In `operator_actions`, which several outboxes may share.
    fn target(&self) -> String {
        match &self.route {
            None => self.table.name.clone(),
            Some(route) => format!("{} route {route}", self.table.name),
        }
    }

    /// `scope`, `exchange` and `routing_key` in the table of pauses.
    fn key(&self) -> (&'static str, &[u8], &[u8]) {
        match &self.route {
            None => ("relay", b"", b""),
            Some(route) => ("route", &route.exchange, &route.routing_key),
        }
    }

    fn found<'a>(&self, pauses: &'a Pauses) -> Option<&'a Pause> {
        match &self.route {
            None => pauses.whole.as_ref(),
            Some(route) => pauses.routes.get(route),
        }
    }

    /// Pauses; returns what to tell the operator.
    ///
    /// # Errors
    /// It is paused already, and the database's.
    pub async fn pause(&self) -> anyhow::Result<String> {
        let url = &self.table.url;
        let mut connection = url.connect().await.context("connecting to the database")?;
        let mut tx = connection.begin().await?;
        let pauses = self.look(&mut tx).await?;
        if let Some(pause) = self.found(&pauses) {
            bail!("{} is {pause}; nothing was changed", self.what());
        }
        if self.route.is_some() && pauses.routes.len() >= ROUTES_MAX {
            bail!("{ROUTES_MAX} routes are paused already; pause the relay, or resume some");
        }
        let (scope, exchange, routing_key) = self.key();
        sqlx::query(AssertSqlSafe(format!(
            "INSERT INTO `{}_pauses` (scope, exchange, routing_key, actor, reason) \
             VALUES (?, ?, ?, ?, ?)",
            self.table.name
        )))
        .bind(scope)
        .bind(exchange)
        .bind(routing_key)
        .bind(&self.actor)
        .bind(&self.reason)
        .execute(&mut *tx)
        .await
        .map_err(|err| self.or_taken(err))?;
        self.audit(&mut tx, "pause", ("running", "paused")).await?;
        tx.commit().await?;
        Ok(format!(
            "{} is paused; a relay that runs stops sending within 2 s",
            self.what()
        ))
    }

    /// Resumes; returns what to tell the operator.
    ///
    /// # Errors
    /// It is not paused, and the database's.
    pub async fn resume(&self) -> anyhow::Result<String> {
        let url = &self.table.url;
        let mut connection = url.connect().await.context("connecting to the database")?;
        let mut tx = connection.begin().await?;
        let mut pauses = self.look(&mut tx).await?;
        let Some(pause) = self.found(&pauses).cloned() else {
            bail!("{} is not paused; nothing was changed", self.what());
        };
        let (scope, exchange, routing_key) = self.key();
        let deleted = sqlx::query(AssertSqlSafe(format!(
            "DELETE FROM `{}_pauses` WHERE scope = ? AND exchange = ? AND routing_key = ?",
            self.table.name
        )))
        .bind(scope)
        .bind(exchange)
        .bind(routing_key)
        .execute(&mut *tx)
        .await?;
        if deleted.rows_affected() == 0 {
            bail!("{} was resumed by somebody else just now", self.what());
        }
        self.audit(&mut tx, "resume", (&pause.to_string(), "running"))
            .await?;
        tx.commit().await?;
        let text = format!(
            "{} is resumed; a relay that runs sends what has waited, in order, within 2 s",
            self.what()
        );
        match &self.route {
            None => pauses.whole = None,
            Some(route) => drop(pauses.routes.remove(route)),
        }
        Ok(match still(&pauses) {
            Some(still) => format!("{text}\n{still}"),
            None => text,
        })
    }

    fn or_taken(&self, err: sqlx::Error) -> anyhow::Error {
        let taken = err
            .as_database_error()
            .is_some_and(sqlx::error::DatabaseError::is_unique_violation);
        match taken {
            true => anyhow!("{} was paused by somebody else just now", self.what()),
            false => err.into(),
        }
    }

    async fn look(&self, tx: &mut MySqlTransaction<'_>) -> anyhow::Result<Pauses> {
        match Pauses::read(tx, &self.table.name).await {
            Ok(pauses) => Ok(pauses),
            Err(err) if pause::is_not_there(&err) => Err(anyhow::Error::new(err).context(format!(
                "the table {0}_pauses can't be used: run `relay migrate`, and grant SELECT, INSERT \
                 and DELETE on it",
                self.table.name
            ))),
            Err(err) => Err(err.into()),
        }
    }

    async fn audit(
        &self,
        tx: &mut MySqlTransaction<'_>,
        action: &str,
        (before, after): (&str, &str),
    ) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO operator_actions (actor, action, target, reason, before_state, after_state) \
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(&self.actor)
        .bind(action)
        .bind(self.target())
        .bind(&self.reason)
        .bind(before)
        .bind(after)
        .execute(&mut **tx)
        .await?;
        Ok(())
    }
}

/// Resuming one thing leaves the other paused: an operator who expects more must not find out late.
fn still(pauses: &Pauses) -> Option<String> {
    if let Some(pause) = &pauses.whole {
        return Some(format!("the whole relay is still {pause}"));
    }
    let (route, pause) = pauses.routes.first_key_value()?;
    Some(match pauses.routes.len() {
        1 => format!("route {route} is still {pause}"),
        many => format!("{many} routes are still paused, route {route} is {pause}"),
    })
}
