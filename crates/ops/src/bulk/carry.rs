//! Bringing a bulk's rows in line with its state, step by step. Every step is a transaction of its own
//! that holds the bulk's lock and looks at its state first, so any number of processes may be at it,
//! and one that dies leaves nothing half done.

use sqlx::{MySql, MySqlConnection, QueryBuilder, Row as _};
use svc_kit::tasks;

use super::fill::{self, Batch};
use super::hold::{self, Untried, Window};
use super::standing::{lock, set};
use super::{BulkState, progress};
use crate::act::begin;
use crate::audit::{self, By, Entry};
use crate::console::{Console, again, unit};
use crate::error::Error;
use crate::row::{Cursor, text};
use crate::table::Table;

/// Where somebody is who carries out what a bulk's state requires.
#[derive(Clone, Debug)]
struct Walk {
    id: u64,
    /// For which state.
    state: Option<BulkState>,
    place: Place,
    /// Rows that were changed.
    rows: u64,
}

#[derive(Clone, Debug)]
enum Place {
    /// Among the rows it has: at this one.
    Rows(u32),
    /// Among those that match and are not in yet: behind this place.
    Filter(Option<Cursor>),
}

impl Console {
    /// Does what is left to be done for a bulk: puts its rows in and gives them their times, or holds
    /// back those that were not tried. Returns how many rows were changed. Runs to its end in a task
    /// of its own, whether somebody waits for it or not; ends early when the bulk is at rest.
    ///
    /// # Errors
    /// The database's; the service goes on with it.
    pub async fn bulk_carry_out(&self, id: u64) -> Result<u64, Error> {
        let console = self.clone();
        let walking = tasks::unit(async move {
            let walked = walk(&console, id, |_| true).await;
            if let Err(err) = &walked {
                tracing::warn!(bulk = id, error = %err, "a bulk is left to be carried out");
            }
            walked
        });
        walking.await.unwrap_or(Err(Error::Panicked))
    }
}

/// Only holds back what is to be held back.
pub(super) async fn come_to_rest(console: &Console, id: u64) -> Result<u64, Error> {
    walk(console, id, BulkState::holds_back).await
}

async fn walk(console: &Console, id: u64, goes: fn(BulkState) -> bool) -> Result<u64, Error> {
    let mut walk = Walk {
        id,
        state: None,
        place: Place::Rows(0),
        rows: 0,
    };
    loop {
        let (at, console) = (walk.clone(), console.clone());
        let step = unit(async move {
            again(|| {
                let (console, walk) = (console.clone(), at.clone());
                async move { step(&console, walk, goes).await }
            })
            .await
        });
        match step.await? {
            Step::On(next) => walk = next,
            Step::Rest(rows) => return Ok(rows),
        }
    }
}

enum Step {
    On(Walk),
    /// Nothing is left to be done.
    Rest(u64),
}

async fn step(
    console: &Console,
    mut walk: Walk,
    goes: fn(BulkState) -> bool,
) -> Result<Step, Error> {
    let (table, id) = (console.table(), walk.id);
    let mut connection = console.connection().await?;
    let Some((state, held, filled, base)) = look(&mut connection, table, id).await? else {
        return Ok(Step::Rest(walk.rows));
    };
    let fills = state == BulkState::Filling;
    if !goes(state) || held || !(fills || state.holds_back()) {
        return Ok(Step::Rest(walk.rows));
    }
    if walk.state != Some(state) {
        walk.state = Some(state);
        walk.place = Place::Rows(if fills { base } else { 0 });
    }
    match (walk.place.clone(), fills) {
        (Place::Rows(from), false) => {
            let held = hold::hold_back(&mut connection, table, (id, from), Untried::Later).await?;
            if walk.went(held) {
                rest(&mut connection, table, id, state).await?;
            }
        }
        (Place::Rows(from), true) => {
            let gone = hold::let_go(&mut connection, table, (id, from)).await?;
            if walk.went(gone) {
                walk.place = Place::Filter(None);
            }
            if matches!(walk.place, Place::Filter(_)) && filled {
                run(&mut connection, table, id).await?;
            }
        }
        (Place::Filter(after), _) => {
            drop(connection);
            match fill::batch(console, id, after).await? {
                Batch::Next { rows, after } => {
                    walk.rows += rows;
                    walk.place = Place::Filter(Some(after));
                }
                Batch::Last { rows } => walk.rows += rows,
                Batch::Changed => walk.state = None,
            }
        }
    }
    Ok(Step::On(walk))
}

impl Walk {
    /// True at the end of the rows.
    fn went(&mut self, window: Window) -> bool {
        match window {
            Window::Next { rows, from } => {
                self.rows += rows;
                self.place = Place::Rows(from);
                false
            }
            Window::Behind => true,
            Window::Changed => {
                self.state = None;
                false
            }
        }
    }
}

/// State, `held`, `filled` and `base_seq` as they are at this moment.
async fn look(
    connection: &mut MySqlConnection,
    table: &Table,
    id: u64,
) -> Result<Option<(BulkState, bool, bool, u32)>, sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT state, held, filled, base_seq FROM `{}_bulks` WHERE id = ",
        table.name()
    ));
    query.push_bind(id);
    let found = query.build().fetch_optional(connection).await?;
    let read = |row: sqlx::mysql::MySqlRow| {
        Ok((
            BulkState::parse(&text(&row, 0)?.unwrap_or_default())?,
            row.try_get::<u8, _>(1)? != 0,
            row.try_get::<u8, _>(2)? != 0,
            row.try_get(3)?,
        ))
    };
    found.map(read).transpose()
}

/// All that is to be held back is parked.
pub(super) async fn rest(
    connection: &mut MySqlConnection,
    table: &Table,
    id: u64,
    state: BulkState,
) -> Result<(), sqlx::Error> {
    turn(connection, table, (id, state), (", held = 1", "bulk_held")).await
}

/// All rows of a bulk that was filled before have their times again.
async fn run(connection: &mut MySqlConnection, table: &Table, id: u64) -> Result<(), sqlx::Error> {
    let what = (", state = 'running'", "bulk_running");
    turn(connection, table, (id, BulkState::Filling), what).await
}

/// Ends a bulk of which no row is on its way any more.
pub(super) async fn done(
    connection: &mut MySqlConnection,
    table: &Table,
    id: u64,
) -> Result<(), sqlx::Error> {
    let what = (", state = 'done'", "bulk_done");
    turn(connection, table, (id, BulkState::Running), what).await
}

/// Sets something on a bulk that is still in `state` and not held, and writes the counts to the audit.
async fn turn(
    connection: &mut MySqlConnection,
    table: &Table,
    (id, state): (u64, BulkState),
    (what, action): (&str, &'static str),
) -> Result<(), sqlx::Error> {
    let counts = progress(connection, table, id).await?;
    let mut tx = begin(connection).await?;
    match lock(&mut tx, table, id).await? {
        Some(bulk) if bulk.state == state && !bulk.held => {}
        _ => return Ok(()),
    }
    set(&mut tx, table, id, what).await?;
    let by = By {
        actor: table.service().to_owned(),
        reason: None,
    };
    let entry = Entry {
        action,
        target: table.bulk_target(id),
        before: Some(state.name().to_owned()),
        after: Some(counts.summary()),
    };
    audit::write(&mut tx, &by, &[entry]).await?;
    tx.commit().await
}
