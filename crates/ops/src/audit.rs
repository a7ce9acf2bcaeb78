//! The audit: `operator_actions`, which is only ever appended to.

use serde::{Deserialize, Serialize};
use sqlx::mysql::MySqlRow;
use sqlx::{MySql, MySqlConnection, QueryBuilder, Row as _, Transaction};

use crate::console::{Console, unit};
use crate::error::Error;
use crate::row::{text, time};

/// Actions that one page looks at, at most.
const LOOK_MAX: u32 = 10_000;
/// Actions of a page, at most.
pub const LIMIT_MAX: u32 = 10_000;
/// `target` in characters.
const TARGET_MAX: usize = 1000;
/// `operator_actions.actor`, in characters.
pub const ACTOR_MAX: usize = 64;
/// `operator_actions.action`, in characters.
const ACTION_MAX: usize = 32;
/// `operator_actions.reason`, in characters.
pub const REASON_MAX: usize = 1000;

/// Who acts, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By {
    /// 1 to 64 characters.
    pub actor: String,
    /// 1 to 1,000 characters; to discard needs one.
    pub reason: Option<String>,
}

/// An action to be written, beside who and why.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What.
    pub action: &'static str,
    /// To what.
    pub target: String,
    /// What it was.
    pub before: Option<String>,
    /// What it is now.
    pub after: Option<String>,
}

/// Who acted last on a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
pub struct Last {
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// When, UTC.
    pub at: Option<String>,
}

/// An action as it was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
pub struct Action {
    /// Grows.
    pub id: u64,
    /// When, UTC.
    pub at: Option<String>,
    /// Who; `relay` and `pay-svc` are the services themselves.
    pub actor: String,
    /// What.
    pub action: String,
    /// To what: a row's key, a bulk, the relay, a route.
    pub target: String,
    /// Why, or the text of a note.
    pub reason: Option<String>,
    /// What it was.
    pub before: Option<String>,
    /// What it is now.
    pub after: Option<String>,
}

/// Which actions, the newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[cfg_attr(feature = "console", derive(utoipa::IntoParams))]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "console", into_params(parameter_in = Query))]
pub struct ActionFilter {
    /// By this person
    #[arg(long)]
    #[cfg_attr(feature = "console", param(max_length = 64))]
    pub actor: Option<String>,
    /// Of this kind, e.g. discard
    #[arg(long)]
    #[cfg_attr(feature = "console", param(max_length = 32))]
    pub action: Option<String>,
    /// On this row or bulk
    #[arg(long)]
    #[cfg_attr(feature = "console", param(max_length = 1000))]
    pub target: Option<String>,
    /// Actions of a page, 1 to 10000
    #[arg(long, default_value = "100", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    #[cfg_attr(
        feature = "console",
        param(minimum = 1, maximum = 10_000, default = 100)
    )]
    pub limit: Option<u32>,
    /// Where to go on: `next` of the page before
    #[arg(long, value_name = "ID")]
    pub before: Option<u64>,
}

/// A page of the audit.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
pub struct Actions {
    /// The newest first.
    pub actions: Vec<Action>,
    /// Where the next page begins; `null`: there is none.
    pub next: Option<u64>,
}

impl By {
    /// Checks and trims.
    ///
    /// # Errors
    /// Texts that are empty or too long.
    pub fn checked(&self) -> Result<Self, Error> {
        let reason = match self.reason.as_deref().map(str::trim) {
            None | Some("") => None,
            Some(text) => Some(within("reason", text, REASON_MAX)?),
        };
        Ok(Self {
            actor: within("actor", self.actor.trim(), ACTOR_MAX)?,
            reason,
        })
    }

    pub(crate) fn with_reason(&self) -> Result<Self, Error> {
        let by = self.checked()?;
        match by.reason {
            Some(_) => Ok(by),
            None => Err(Error::invalid("reason", "must be given")),
        }
    }
}

fn within(field: &'static str, text: &str, max: usize) -> Result<String, Error> {
    if (1..=max).contains(&text.chars().count()) {
        return Ok(text.to_owned());
    }
    Err(Error::invalid(
        field,
        format!("is not 1 to {max} characters"),
    ))
}

impl Console {
    /// The audit, the newest first.
    ///
    /// # Errors
    /// A limit out of range, and the database's.
    pub async fn actions(&self, filter: &ActionFilter) -> Result<Actions, Error> {
        let (console, filter) = (self.clone(), filter.clone().checked()?);
        unit(async move {
            let mut connection = console.connection().await?;
            Ok(page(&mut connection, &filter).await?)
        })
        .await
    }
}

impl ActionFilter {
    fn checked(mut self) -> Result<Self, Error> {
        for (field, text, max) in [
            ("actor", &mut self.actor, ACTOR_MAX),
            ("action", &mut self.action, ACTION_MAX),
            ("target", &mut self.target, TARGET_MAX),
        ] {
            let length = text.as_deref().map_or(0, |text| text.chars().count());
            if length == 0 {
                *text = None;
            }
            if length > max {
                let problem = format!("has more than {max} characters");
                return Err(Error::invalid(field, problem));
            }
        }
        if self.before.is_some_and(|id| i64::try_from(id).is_err()) {
            return Err(Error::invalid("before", "is not the id of an action"));
        }
        if !(1..=LIMIT_MAX).contains(&self.limit()) {
            return Err(Error::invalid("limit", format!("is not 1 to {LIMIT_MAX}")));
        }
        Ok(self)
    }

    fn limit(&self) -> u32 {
        self.limit.unwrap_or(100)
    }
}

async fn page(
    connection: &mut MySqlConnection,
    filter: &ActionFilter,
) -> Result<Actions, sqlx::Error> {
    let limit = filter.limit();
    // A target has an index; whatever else is requested is looked for among a bounded number.
    let end: Option<u64> = match &filter.target {
        Some(_) => None,
        None => {
            let mut query = QueryBuilder::<MySql>::new("SELECT id FROM operator_actions WHERE 1");
            push_before(&mut query, filter.before);
            let offset = LOOK_MAX.max(limit);
            query.push(format!(" ORDER BY id DESC LIMIT 1 OFFSET {offset}"));
            query
                .build_query_scalar()
                .fetch_optional(&mut *connection)
                .await?
        }
    };
    let mut query = QueryBuilder::<MySql>::new(format!("{SELECT} WHERE 1"));
    push_before(&mut query, filter.before);
    if let Some(end) = end {
        query.push(" AND id >= ").push_bind(end);
    }
    for (column, value) in [
        ("actor", &filter.actor),
        ("action", &filter.action),
        ("target", &filter.target),
    ] {
        if let Some(value) = value {
            query.push(format!(" AND {column} = "));
            match column {
                // ASCII: another text is no action's name, and to compare with it an error.
                "action" if !value.is_ascii() => query.push("''"),
                _ => query.push_bind(value.clone()),
            };
        }
    }
    query.push(format!(" ORDER BY id DESC LIMIT {}", limit + 1));
    let rows = query.build().fetch_all(connection).await?;
    let mut actions: Vec<Action> = rows.iter().map(action_of).collect::<Result<_, _>>()?;
    let full = actions.len() > limit as usize;
    actions.truncate(limit as usize);
    let next = match full {
        true => actions.last().map(|action| action.id),
        false => end,
    };
    Ok(Actions { actions, next })
}

fn push_before(query: &mut QueryBuilder<MySql>, before: Option<u64>) {
    if let Some(before) = before {
        query.push(" AND id < ").push_bind(before);
    }
}

const SELECT: &str = "SELECT id, at, actor, action, target, reason, before_state, after_state \
                      FROM operator_actions";

fn action_of(row: &MySqlRow) -> Result<Action, sqlx::Error> {
    Ok(Action {
        id: row.try_get(0)?,
        at: time(row, 1),
        actor: text(row, 2)?.unwrap_or_default(),
        action: text(row, 3)?.unwrap_or_default(),
        target: text(row, 4)?.unwrap_or_default(),
        reason: text(row, 5)?,
        before: text(row, 6)?,
        after: text(row, 7)?,
    })
}

/// The actions on one target, the oldest first.
pub(crate) async fn of_target(
    connection: &mut MySqlConnection,
    target: &str,
    limit: u32,
) -> Result<Vec<Action>, sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(format!("{SELECT} WHERE target = "));
    query.push_bind(target);
    query.push(format!(" ORDER BY id DESC LIMIT {limit}"));
    let rows = query.build().fetch_all(connection).await?;
    let newest: Result<Vec<_>, _> = rows.iter().map(action_of).collect();
    Ok(newest?.into_iter().rev().collect())
}

/// Who acted last on a target.
pub(crate) async fn last(
    connection: &mut MySqlConnection,
    target: &str,
) -> Result<Option<Last>, sqlx::Error> {
    let action = of_target(connection, target, 1).await?.pop();
    Ok(action.map(Last::from))
}

impl From<Action> for Last {
    fn from(action: Action) -> Self {
        let Action {
            actor, action, at, ..
        } = action;
        Self { actor, action, at }
    }
}

/// Writes actions, in the transaction of what they record.
///
/// # Errors
/// The database's.
pub async fn write(
    tx: &mut Transaction<'_, MySql>,
    by: &By,
    entries: &[Entry],
) -> Result<(), sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(
        "INSERT INTO operator_actions (actor, action, target, reason, before_state, after_state) ",
    );
    query.push_values(entries, |mut row, entry| {
        let target: String = entry.target.chars().take(TARGET_MAX).collect();
        row.push_bind(by.actor.clone())
            .push_bind(entry.action)
            .push_bind(target)
            .push_bind(by.reason.clone())
            .push_bind(entry.before.clone())
            .push_bind(entry.after.clone());
    });
    query.build().execute(&mut **tx).await?;
    Ok(())
}
