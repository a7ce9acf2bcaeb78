//! What the database does not record of messages, while all else goes on: a table beside the inbox may
//! be dropped, locked, or closed to this account.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use svc_kit::admin::Readiness;

/// Name of the readiness condition. It always holds: only the rows it speaks of wait.
const CONDITION: &str = "records";

/// What is to be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Record {
    /// Why a message was stored parked. The message is stored all the same.
    Parked,
    /// What the provider answered. The row waits, and is charged again under the same key.
    Payment,
    /// Why a message was not processed. The row waits.
    Failure,
}

impl Record {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Parked, Self::Payment, Self::Failure];

    /// The value of the metric's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Parked => "parked",
            Self::Payment => "payment",
            Self::Failure => "failure",
        }
    }
}

/// Shows in readiness what is refused, until the same is recorded again.
#[derive(Debug)]
pub struct Refusals {
    open: Mutex<BTreeMap<Record, String>>,
    readiness: Readiness,
}

impl Refusals {
    /// None yet.
    #[must_use]
    pub fn new(readiness: Readiness) -> Self {
        Self {
            open: Mutex::default(),
            readiness,
        }
    }

    /// It was refused.
    pub fn refused(&self, what: Record, why: &str) {
        self.change(|open| open.insert(what, why.to_owned()).as_deref() != Some(why));
    }

    /// It was recorded: whatever was in the way is gone.
    pub fn recorded(&self, what: Record) {
        self.change(|open| open.remove(&what).is_some());
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<Record, String>) -> bool) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !change(&mut open) {
            return;
        }
        let refused = |(what, why): (&Record, &String)| format!("{} refused: {why}", what.name());
        let refused: Vec<String> = open.iter().map(refused).collect();
        let detail = match refused.is_empty() {
            true => {
                tracing::info!("all is recorded again");
                "all is recorded".to_owned()
            }
            false => {
                let detail = refused.join("; ");
                tracing::warn!(detail, "the database refuses a record: its rows wait");
                detail
            }
        };
        self.readiness.set(CONDITION, true, detail);
    }
}
