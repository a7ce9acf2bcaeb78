//! One seed, and what is left of it when the faults that do not matter are switched off.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::coverage::Coverage;
use crate::faults::{Fault, FaultSet};
use crate::scenario::Scenario;
use crate::trace::{Trace, Wanted};
use crate::world::World;
use crate::world::checker::Violation;

/// A seed that broke a rule.
pub(crate) struct Failure {
    pub(crate) seed: u64,
    enabled: FaultSet,
    pub(crate) violation: Violation,
    /// The last steps, if they were wanted.
    pub(crate) lines: Vec<String>,
}

/// How seeds are run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// Happenings in the life of one seed, at most.
    pub(crate) steps: u64,
    /// An engine that wants ticks without time passing is no failure.
    pub(crate) spins: bool,
}

/// Runs a seed with these faults.
pub(crate) fn attempt(
    seed: u64,
    enabled: FaultSet,
    how: How,
    wanted: Wanted,
) -> (Coverage, Option<Failure>) {
    let How { steps, spins } = how;
    let scenario = Scenario {
        spins,
        ..Scenario::new(seed, enabled)
    };
    let mut world = World::new(scenario, Trace::new(wanted));
    let run = catch_unwind(AssertUnwindSafe(|| world.run(steps)));
    let panicked = run.err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Violation {
            rule: "no panic",
            text: text.unwrap_or_default(),
        }
    });
    let violation = panicked.or_else(|| world.checker.violation().cloned());
    let failure = violation.map(|violation| Failure {
        seed,
        enabled,
        violation,
        lines: world.trace.last().map(str::to_owned).collect(),
    });
    (world.coverage, failure)
}

/// The same rule broken with as few kinds of fault as possible.
pub(crate) fn shorten(failure: &Failure, how: How) -> (Failure, Vec<Fault>) {
    let mut enabled = failure.enabled;
    for &fault in Fault::ALL {
        let fewer = enabled.without(fault);
        if fewer == enabled {
            continue;
        }
        let (_, again) = attempt(failure.seed, fewer, how, Wanted::Nothing);
        if again.is_some_and(|again| again.violation.rule == failure.violation.rule) {
            enabled = fewer;
        }
    }
    let (_, short) = attempt(failure.seed, enabled, how, Wanted::Last);
    let same = Failure {
        seed: failure.seed,
        enabled,
        violation: failure.violation.clone(),
        lines: Vec::new(),
    };
    (short.unwrap_or(same), enabled.iter().collect())
}
