//! Turning a bulk over: pause, resume, cancel, by a person, and stop, by whoever records a failure. Each
//! is one UPDATE of the bulk's own row; what follows from it for its rows is [`super::carry`]'s.

use sqlx::{MySql, MySqlConnection, QueryBuilder, Transaction};
use svc_kit::database::{Fault, classify};
use svc_kit::tasks;

use super::standing::{TEXT_MAX, lock, set};
use super::{BulkAct, BulkOutcome, BulkState, carry};
use crate::act::begin;
use crate::audit::{self, Action, By, Entry, Last};
use crate::console::{Console, again, unit};
use crate::error::Error;
use crate::statement::push_keys;
use crate::table::{Key, Table};

impl BulkAct {
    /// `operator_actions.action`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pause => "bulk_pause",
            Self::Resume => "bulk_resume",
            Self::Cancel => "bulk_cancel",
        }
    }

    const fn after(self) -> BulkState {
        match self {
            Self::Pause => BulkState::Paused,
            // Its rows get their times anew, and those that are not in yet are put in.
            Self::Resume => BulkState::Filling,
            Self::Cancel => BulkState::Cancelled,
        }
    }

    /// Can this be done to a bulk in that state? To be resumed, its rows must be held back besides.
    #[must_use]
    pub const fn fits(self, state: BulkState) -> bool {
        match self {
            Self::Pause => state.is_active(),
            Self::Resume => matches!(
                state,
                BulkState::Filling | BulkState::Paused | BulkState::Stopped
            ),
            Self::Cancel => !state.is_over(),
        }
    }
}

impl Console {
    /// Pauses, resumes or cancels a bulk: at once, whatever its size. Its rows follow in a task of their
    /// own; should that be cut short, the service goes on with it.
    ///
    /// # Errors
    /// The database's; the bulk is as it was.
    pub async fn bulk_turn(&self, id: u64, act: BulkAct, by: &By) -> Result<BulkOutcome, Error> {
        let outcome = self.turned(id, act, by).await?;
        if matches!(outcome, BulkOutcome::Done { .. }) {
            let console = self.clone();
            // What becomes of it is in the table, and a failure in the log.
            drop(tasks::unit(async move { console.bulk_carry_out(id).await }));
        }
        Ok(outcome)
    }

    /// The same, but waits for the rows: before it resumes, and after what it does.
    ///
    /// # Errors
    /// The database's; the bulk is as it was.
    pub async fn bulk_act(&self, id: u64, act: BulkAct, by: &By) -> Result<BulkOutcome, Error> {
        if act == BulkAct::Resume {
            carry::come_to_rest(self, id).await?;
        }
        let mut outcome = self.turned(id, act, by).await?;
        if let BulkOutcome::Done { after, rows, .. } = &mut outcome {
            match self.bulk_carry_out(id).await {
                Ok(changed) => {
                    *rows = Some(changed);
                    if *after == BulkState::Filling {
                        *after = BulkState::Running;
                    }
                }
                Err(err) => {
                    tracing::warn!(bulk = id, error = %err, "rows of a bulk are left to be changed");
                }
            }
        }
        Ok(outcome)
    }

    async fn turned(&self, id: u64, act: BulkAct, by: &By) -> Result<BulkOutcome, Error> {
        let (console, by) = (self.clone(), by.checked()?);
        unit(async move {
            again(|| {
                let (console, by) = (console.clone(), by.clone());
                async move { turn(&console, id, act, &by).await }
            })
            .await
        })
        .await
    }
}

async fn turn(console: &Console, id: u64, act: BulkAct, by: &By) -> Result<BulkOutcome, Error> {
    let table = console.table();
    let mut connection = console.connection().await?;
    let mut tx = begin(&mut connection).await?;
    let Some(bulk) = lock(&mut tx, table, id).await? else {
        return Ok(BulkOutcome::Missing { id });
    };
    let before = bulk.state;
    if !act.fits(before) {
        drop(tx);
        let last = last(&mut connection, &table.bulk_target(id)).await?;
        let now = before;
        return Ok(BulkOutcome::Conflict { id, now, last });
    }
    if act == BulkAct::Resume && before.holds_back() && !bulk.held {
        // What is not held back yet would keep its old time, and go before the canary.
        return Ok(BulkOutcome::Early { id, now: before });
    }
    let base = match (act, before) {
        (BulkAct::Resume, BulkState::Paused | BulkState::Stopped) => format!(
            ", stopped_by = NULL, base_at = UTC_TIMESTAMP(6), base_seq = COALESCE((SELECT MIN(seq) \
             FROM `{}_bulk_rows` WHERE bulk_id = {id} AND due_at IS NULL), (SELECT MAX(seq) + 1 \
             FROM `{0}_bulk_rows` WHERE bulk_id = {id}), 0)",
            table.name()
        ),
        _ => String::new(),
    };
    let what = format!(", state = '{}', held = 0{base}", act.after().name());
    set(&mut tx, table, id, &what).await?;
    let entry = Entry {
        action: act.name(),
        target: table.bulk_target(id),
        before: Some(before.name().to_owned()),
        after: Some(act.after().name().to_owned()),
    };
    audit::write(&mut tx, by, &[entry]).await?;
    tx.commit().await?;
    Ok(BulkOutcome::Done {
        id,
        before,
        after: act.after(),
        rows: None,
    })
}

/// Who turned a bulk last; that its rows have followed since is nobody's news.
async fn last(connection: &mut MySqlConnection, target: &str) -> Result<Option<Last>, sqlx::Error> {
    let actions = audit::of_target(connection, target, 8).await?;
    let turned = |action: &Action| !["bulk_held", "bulk_running"].contains(&&*action.action);
    Ok(actions.into_iter().rev().find(turned).map(Last::from))
}

/// The bulks that these rows are on their way in, locked: to be checked by whoever is about to record
/// their failure, before it locks the rows. One read of an index when there is none.
///
/// A database that knows no bulks yet, or an account that may not see them, has none.
///
/// # Errors
/// The database's.
pub async fn active(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    keys: &[Key],
) -> Result<Vec<u64>, sqlx::Error> {
    match find_active(tx, table, keys).await {
        Err(err)
            if matches!(
                classify(&err),
                Fault::MissingTable | Fault::Misconfigured(_)
            ) =>
        {
            // Once: a canary that fails would not hold back the rest.
            static TOLD: std::sync::Once = std::sync::Once::new();
            TOLD.call_once(|| {
                tracing::warn!(
                    error = %err,
                    "bulk retries can't be seen: migrate, and grant the rights that README lists"
                );
            });
            Ok(Vec::new())
        }
        found => found,
    }
}

async fn find_active(
    tx: &mut MySqlConnection,
    table: &Table,
    keys: &[Key],
) -> Result<Vec<u64>, sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT DISTINCT bulk_id FROM `{}_bulk_rows` WHERE row_key IN (",
        table.name()
    ));
    push_keys(&mut query, keys);
    query.push(") ORDER BY bulk_id");
    let ids: Vec<u64> = query.build_query_scalar().fetch_all(&mut *tx).await?;
    let mut active = Vec::new();
    for id in ids {
        let mut query = QueryBuilder::<MySql>::new(format!(
            "SELECT id FROM `{}_bulks` WHERE state IN ('filling', 'running') AND id = ",
            table.name()
        ));
        query.push_bind(id).push(" FOR UPDATE");
        active.extend(
            query
                .build_query_scalar::<u64>()
                .fetch_optional(&mut *tx)
                .await?,
        );
    }
    Ok(active)
}

/// Stops a bulk because a row of it has failed. `actor` is the service, and the bulk came from
/// [`active`] in this transaction. Its rows are held back after it, by [`super::Keeper`].
///
/// # Errors
/// The database's.
pub async fn stop(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    bulk: u64,
    (actor, why): (&str, &str),
) -> Result<(), sqlx::Error> {
    let why: String = why.chars().take(TEXT_MAX).collect();
    let mut query = QueryBuilder::<MySql>::new(format!(
        "UPDATE `{}_bulks` SET state = 'stopped', held = 0, changed_at = UTC_TIMESTAMP(6), \
         stopped_by = ",
        table.name()
    ));
    query
        .push_bind(why.clone())
        .push(" WHERE id = ")
        .push_bind(bulk);
    query.build().execute(&mut **tx).await?;
    let by = By {
        actor: actor.to_owned(),
        reason: Some(why),
    };
    let entry = Entry {
        action: "bulk_stop",
        target: table.bulk_target(bulk),
        before: Some("running".to_owned()),
        after: Some("stopped".to_owned()),
    };
    audit::write(tx, &by, &[entry]).await?;
    tracing::warn!(
        bulk,
        actor,
        "a row of a bulk failed, the rest is to be held back"
    );
    Ok(())
}
