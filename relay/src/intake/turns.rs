//! When the next pass is due, and how it is made.

use std::time::{Duration, Instant};

use super::{Intake, Way};
use crate::config::{Config, Order};
use crate::dispatch::Dispatch;
use crate::pass::{Passes, Plan};

/// Opening a tail has a time-out of its own; until then nothing else may look for rows.
const NEVER: Duration = Duration::from_hours(1);

impl Intake {
    pub(crate) fn next_pass_at(&self, passes: &Passes, dispatch: &Dispatch) -> Instant {
        match self.way {
            // Until the tail is on, nothing else finds rows: no rest.
            Way::CatchingUp if self.tail.is_closed() => self.next_pass,
            // It is being opened behind the last pass: another one now would send rows that it brings.
            Way::CatchingUp => self.next_pass + NEVER,
            Way::Tailing | Way::Polling => {
                let whole = self.whole_pass_at(passes, dispatch);
                let probe = dispatch.held.next_probe();
                probe.map_or(whole, |at| at.max(passes.probe_rest_until()).min(whole))
            }
        }
    }

    fn whole_pass_at(&self, passes: &Passes, dispatch: &Dispatch) -> Instant {
        let wake = dispatch.held.wake();
        let wanted = wake.map_or(self.next_pass, |wake| wake.min(self.next_pass));
        wanted.max(passes.rest_until())
    }

    /// The plan of the pass that is due now, if one is.
    pub(crate) fn next_pass(
        &mut self,
        passes: &Passes,
        dispatch: &Dispatch,
        config: &Config,
        now: Instant,
    ) -> Option<Plan> {
        if now < self.next_pass_at(passes, dispatch) {
            return None;
        }
        let probes_only = self.way != Way::CatchingUp && now < self.whole_pass_at(passes, dispatch);
        Some(match self.way {
            Way::CatchingUp => {
                // The tail will start where the binlog is from now on.
                self.committed_after = Some(now);
                // Without an order the tail starts at once and takes over page by page.
                let verify = config.order == Order::None;
                Plan {
                    fence: true,
                    positions: true,
                    verify,
                    count_missed: false,
                    probes_only,
                }
            }
            Way::Tailing => Plan {
                // For level keys, which a pass for probes alone does not tell; and so that a row which
                // the tail has just left in the table is visible to the pass that it explains.
                fence: !probes_only && (!dispatch.held.is_empty() || dispatch.held.explains_any()),
                positions: true,
                verify: true,
                count_missed: true,
                probes_only,
            },
            // No tail could overtake, so no fence is needed to call a key level.
            Way::Polling => Plan {
                fence: false,
                positions: false,
                verify: false,
                count_missed: false,
                probes_only,
            },
        })
    }
}
