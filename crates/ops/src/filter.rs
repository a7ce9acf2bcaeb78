//! Which rows an operator requests.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Rows of a page unless requested otherwise.
pub const LIMIT_DEFAULT: u32 = 50;
/// Most rows of a page.
pub const LIMIT_MAX: u32 = 500;
/// Longest text of a filter, in characters.
const TEXT_MAX: usize = 255;
/// Longest cursor, in bytes: a time and a key.
const AFTER_MAX: usize = 400;
/// A hundred years, in seconds: more can't be subtracted from every time.
const AGE_MAX: u64 = 100 * 366 * 86_400;

/// What a row is in. The words are those of both tables: `pending` and `received` are `waiting`,
/// `sent` and `processed` are `done`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum State {
    /// Status 1: to be sent or worked on, now or later.
    #[serde(alias = "pending", alias = "received")]
    #[value(aliases = ["pending", "received"])]
    Waiting,
    /// Status 2.
    #[serde(alias = "sent", alias = "processed")]
    #[value(aliases = ["sent", "processed"])]
    Done,
    /// Status 3: a person must look.
    #[default]
    Parked,
    /// Status 4: a person decided against it.
    Discarded,
}

impl State {
    /// The number in the column.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Waiting => 1,
            Self::Done => 2,
            Self::Parked => 3,
            Self::Discarded => 4,
        }
    }

    /// The state of a number; `None` for one that is not in the contract.
    #[must_use]
    pub const fn of(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Waiting),
            2 => Some(Self::Done),
            3 => Some(Self::Parked),
            4 => Some(Self::Discarded),
            _ => None,
        }
    }

    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Parked => "parked",
            Self::Discarded => "discarded",
        }
    }
}

/// Which rows. An empty text is as none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema, utoipa::IntoParams))]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "console", into_params(parameter_in = Query))]
pub struct Filter {
    /// Rows in this state
    #[arg(long, value_enum, default_value = "parked")]
    #[cfg_attr(feature = "console", schema(default = "parked"))]
    #[cfg_attr(feature = "console", param(inline, default = "parked"))]
    pub state: State,
    /// Rows whose last failure was of this class
    #[arg(long, value_name = "CLASS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "console", param(max_length = 255))]
    pub class: Option<String>,
    /// Rows of this event type
    #[arg(long = "type", value_name = "TYPE")]
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "console", param(max_length = 255))]
    pub event_type: Option<String>,
    /// Rows of this exchange
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "console", param(max_length = 255))]
    pub exchange: Option<String>,
    /// Rows of this routing key
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "console", param(max_length = 255))]
    pub routing_key: Option<String>,
    /// Rows of this aggregate id
    #[arg(long = "key", value_name = "AGGREGATE_ID")]
    #[serde(rename = "key", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "console", param(max_length = 255))]
    pub aggregate_id: Option<String>,
    /// The row with this message id; found at once, whatever the table's size
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "console", param(max_length = 255))]
    pub message_id: Option<String>,
    /// Rows at least this old, in seconds
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "console", param(maximum = 3_162_240_000u64))]
    pub older_than: Option<u64>,
    /// Rows younger than this, in seconds
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "console", param(maximum = 3_162_240_000u64))]
    pub newer_than: Option<u64>,
    /// Rows with this text in message id, aggregate id, type, routing key or last error, in any case
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "console", param(max_length = 255))]
    pub text: Option<String>,
}

impl Filter {
    /// Takes out empty texts, which is what a form sends for a field that is left alone.
    ///
    /// # Errors
    /// A member that can't be looked for.
    pub fn checked(mut self) -> Result<Self, Error> {
        for (field, text) in [
            ("class", &mut self.class),
            ("type", &mut self.event_type),
            ("exchange", &mut self.exchange),
            ("routing_key", &mut self.routing_key),
            ("key", &mut self.aggregate_id),
            ("message_id", &mut self.message_id),
            ("text", &mut self.text),
        ] {
            if text.as_deref().is_some_and(str::is_empty) {
                *text = None;
            }
            if text
                .as_deref()
                .is_some_and(|t| t.chars().count() > TEXT_MAX)
            {
                let problem = format!("has more than {TEXT_MAX} characters");
                return Err(Error::invalid(field, problem));
            }
        }
        for (field, age) in [
            ("older_than", self.older_than),
            ("newer_than", self.newer_than),
        ] {
            if age.is_some_and(|age| age > AGE_MAX) {
                return Err(Error::invalid(field, format!("is more than {AGE_MAX}")));
            }
        }
        Ok(self)
    }

    /// Requests nothing beyond the state.
    #[must_use]
    pub fn is_state_only(&self) -> bool {
        let state = self.state;
        *self
            == Self {
                state,
                ..Self::default()
            }
    }

    /// For the audit and for people: `state=parked class=too_large`.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = format!("state={}", self.state.name());
        let number = |n: Option<u64>| n.map(|n| n.to_string());
        for (name, value) in [
            ("class", self.class.clone()),
            ("type", self.event_type.clone()),
            ("exchange", self.exchange.clone()),
            ("routing_key", self.routing_key.clone()),
            ("key", self.aggregate_id.clone()),
            ("message_id", self.message_id.clone()),
            ("older_than", number(self.older_than)),
            ("newer_than", number(self.newer_than)),
            ("text", self.text.clone()),
        ] {
            if let Some(value) = value {
                text.push_str(&format!(" {name}={value:?}"));
            }
        }
        text
    }
}

/// Which end of the table a list begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// The oldest first.
    Oldest,
    /// The newest first.
    #[default]
    Newest,
}

/// Which page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[cfg_attr(feature = "console", derive(utoipa::IntoParams))]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "console", into_params(parameter_in = Query))]
pub struct PageRequest {
    /// Which end to begin with
    #[arg(long, value_enum, default_value = "newest")]
    #[cfg_attr(feature = "console", param(inline, default = "newest"))]
    pub order: Order,
    /// Rows of a page, 1 to 500
    #[arg(long, default_value_t = LIMIT_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=500))]
    #[cfg_attr(feature = "console", param(minimum = 1, maximum = 500, default = 50))]
    pub limit: u32,
    /// Where to go on: `next` of the page before
    #[arg(long, value_name = "CURSOR")]
    #[cfg_attr(feature = "console", param(max_length = 400))]
    pub after: Option<String>,
}

impl Default for PageRequest {
    fn default() -> Self {
        Self {
            order: Order::default(),
            limit: LIMIT_DEFAULT,
            after: None,
        }
    }
}

impl PageRequest {
    pub(crate) fn checked(mut self) -> Result<Self, Error> {
        if !(1..=LIMIT_MAX).contains(&self.limit) {
            let problem = format!("is not 1 to {LIMIT_MAX}");
            return Err(Error::invalid("limit", problem));
        }
        if self.after.as_deref().is_some_and(str::is_empty) {
            self.after = None;
        }
        if self
            .after
            .as_ref()
            .is_some_and(|after| after.len() > AFTER_MAX)
        {
            return Err(Error::invalid("after", "is not a place in this list"));
        }
        Ok(self)
    }
}
