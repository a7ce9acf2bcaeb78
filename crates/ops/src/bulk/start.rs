//! Beginning a bulk: what a plan may be, and the bulk's own row.

use std::time::Duration;

use sqlx::{MySql, QueryBuilder, Transaction};

use super::{Plan, ROWS_MAX};
use crate::act::begin;
use crate::audit::{self, By, Entry};
use crate::console::{Console, unit};
use crate::error::Error;
use crate::filter::State;
use crate::table::Table;

const RATE_MAX: f64 = 100_000.0;
/// One row in a quarter of an hour.
const RATE_MIN: f64 = 0.001;
const CANARY_WAIT_MAX: u32 = 86_400;

impl Plan {
    /// Checks what belongs together.
    ///
    /// # Errors
    /// The member that can't work.
    pub fn checked(&self) -> Result<Self, Error> {
        let filter = self.filter.clone().checked()?;
        if !matches!(filter.state, State::Parked | State::Waiting) {
            let problem = "must be parked or waiting, to be retried";
            return Err(Error::invalid("state", problem));
        }
        if filter.message_id.is_some() {
            let problem = "names one row; retry that";
            return Err(Error::invalid("message_id", problem));
        }
        if !(1..=ROWS_MAX).contains(&self.max) {
            return Err(Error::invalid("max", format!("is not 1 to {ROWS_MAX}")));
        }
        if self.canary > ROWS_MAX {
            return Err(Error::invalid("canary", format!("is over {ROWS_MAX}")));
        }
        if self.canary_wait > CANARY_WAIT_MAX {
            let problem = format!("is over {CANARY_WAIT_MAX} s");
            return Err(Error::invalid("canary_wait", problem));
        }
        if self.rate != 0.0 && !(RATE_MIN..=RATE_MAX).contains(&self.rate) {
            let problem =
                format!("is not 0, for all at once, or {RATE_MIN} to {RATE_MAX} a second");
            return Err(Error::invalid("rate", problem));
        }
        Ok(Self {
            filter,
            ..self.clone()
        })
    }

    fn interval(&self) -> Duration {
        match self.rate {
            0.0 => Duration::ZERO,
            rate => Duration::from_secs_f64(1.0 / rate),
        }
    }

    fn summary(&self) -> String {
        let Self {
            canary,
            canary_wait,
            rate,
            max,
            ..
        } = self;
        let rest = match rate {
            0.0 => "all at once".to_owned(),
            rate => format!("{rate} rows a second"),
        };
        match canary {
            0 => format!("at most {max} rows, {rest}"),
            _ => format!("at most {max} rows, {canary} first, after {canary_wait} s {rest}"),
        }
    }
}

impl Console {
    /// Begins a bulk, without rows; [`Console::bulk_carry_out`] puts them in.
    ///
    /// # Errors
    /// A plan that can't work, and the database's.
    pub async fn bulk_start(&self, plan: &Plan, by: &By) -> Result<u64, Error> {
        let (console, plan, by) = (self.clone(), plan.checked()?, by.checked()?);
        unit(async move {
            let table = console.table();
            let mut connection = console.connection().await?;
            let mut tx = begin(&mut connection).await?;
            let id = insert(&mut tx, table, &plan, &by).await?;
            let entry = Entry {
                action: "bulk_start",
                target: table.bulk_target(id),
                before: Some(plan.filter.summary()),
                after: Some(plan.summary()),
            };
            audit::write(&mut tx, &by, &[entry]).await?;
            tx.commit().await?;
            Ok(id)
        })
        .await
    }
}

async fn insert(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    plan: &Plan,
    by: &By,
) -> Result<u64, sqlx::Error> {
    let micros = |wait: Duration| u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
    let filter = serde_json::to_string(&plan.filter).expect("a filter is always JSON");
    let mut query = QueryBuilder::<MySql>::new(format!(
        "INSERT INTO `{}_bulks` (actor, reason, filter, rows_max, canary, canary_wait_us, interval_us) VALUES (",
        table.name()
    ));
    let canary_wait = match plan.canary {
        0 => Duration::ZERO,
        _ => Duration::from_secs(plan.canary_wait.into()),
    };
    let mut values = query.separated(", ");
    values
        .push_bind(&by.actor)
        .push_bind(&by.reason)
        .push_bind(filter)
        .push_bind(plan.max)
        .push_bind(plan.canary)
        .push_bind(micros(canary_wait))
        .push_bind(micros(plan.interval()));
    query.push(")");
    Ok(query.build().execute(&mut **tx).await?.last_insert_id())
}
