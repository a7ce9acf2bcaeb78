//! Whether the service can do its work, condition by condition.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::telemetry::without_link;

/// Role of the one that does the work.
pub const ACTIVE: &str = "active";
/// Role of one that waits to take over. It is ready: that is all it has to be.
pub const STANDBY: &str = "standby";

/// Named conditions; ready only when all hold. Clones share them.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<Report>>);

/// The body of `/readyz`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    conditions: BTreeMap<&'static str, Condition>,
}

#[derive(Clone, Debug, Serialize)]
struct Condition {
    ok: bool,
    detail: String,
}

impl Readiness {
    /// Every condition starts as not met, "starting".
    #[must_use]
    pub fn new(conditions: &[&'static str]) -> Self {
        let starting = || Condition {
            ok: false,
            detail: "starting".to_owned(),
        };
        let conditions = conditions.iter().map(|name| (*name, starting())).collect();
        Self(Arc::new(Mutex::new(Report {
            ready: false,
            role: None,
            conditions,
        })))
    }

    /// Says whether a condition holds, and why. A change is logged.
    pub fn set(&self, condition: &'static str, ok: bool, detail: impl Into<String>) {
        let new = Condition {
            ok,
            detail: without_link(&detail.into()).into_owned(),
        };
        let mut report = self.lock();
        let old = report.conditions.insert(condition, new.clone());
        if old.is_none_or(|old| old.ok != ok) {
            tracing::info!(condition, ok, detail = new.detail, "readiness changed");
        }
    }

    /// [`ACTIVE`] or [`STANDBY`], for a service of which one works and others wait.
    pub fn set_role(&self, role: &'static str) {
        self.lock().role = Some(role);
    }

    /// All conditions hold, or it is a standby.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().all_hold()
    }

    /// Role and state on one line: ready, or every reason why not.
    #[must_use]
    pub fn summary(&self) -> String {
        let report = self.lock();
        let role = report.role.unwrap_or(ACTIVE);
        if report.all_hold() {
            return format!("{role}, ready");
        }
        // One cause often clears several conditions.
        let mut causes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, condition) in report.conditions.iter().filter(|(_, c)| !c.ok) {
            causes.entry(&condition.detail).or_default().push(name);
        }
        let causes: Vec<String> = causes
            .iter()
            .map(|(why, names)| format!("{}: {why}", names.join(", ")))
            .collect();
        format!("{role}, not ready: {}", causes.join("; "))
    }

    pub(super) fn report(&self) -> (bool, Report) {
        let mut report = self.lock().clone();
        report.ready = report.all_hold();
        (report.ready, report)
    }

    /// A panic elsewhere must not take the probe with it; the map is whole between statements.
    fn lock(&self) -> MutexGuard<'_, Report> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Report {
    fn all_hold(&self) -> bool {
        self.role == Some(STANDBY) || self.conditions.values().all(|condition| condition.ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_tells_each_cause_once() {
        let readiness = Readiness::new(&["a", "b", "c"]);
        assert_eq!(readiness.summary(), "active, not ready: a, b, c: starting");
        readiness.set("a", true, "there");
        readiness.set("b", false, "gone");
        assert_eq!(
            readiness.summary(),
            "active, not ready: b: gone; c: starting"
        );
        readiness.set_role(STANDBY);
        assert_eq!(readiness.summary(), "standby, ready");
    }
}
