//! Routes, and the breakers of those that take no rows.
//!
//! A breaker that is open lets one row through after a back-off that never exceeds [`PROBE_MAX`]: so long
//! its rows may wait once the route is whole again. How a probe went last decides how the next one may
//! go: a refusal comes at once, but a route that did not answer may not answer again, and then its
//! publisher waits for the whole time-out.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::retry::Retry;
use super::route::Route;
use super::snapshot::{ROUTES_SHOWN, WaitingRoute};

/// Longest wait between two probes of a route; `RELAY_BACKOFF_MAX` may make it shorter.
pub const PROBE_MAX: Duration = Duration::from_secs(10);
/// Breakers that are open at once. The rows of further routes wait one by one.
pub(super) const OPEN_MAX: usize = 10_000;
/// Rows of a route that may be nacked by their own fault at once.
const NACKED_MAX: usize = 8;
/// Rows among which a probe is looked for.
const PROBES_LOOKED_AT: usize = 256;
/// What a route costs besides its names, in bytes.
const ROUTE_BYTES: usize = 384;

/// A route by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RouteId(u32);

/// Which publishers a probe may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// The last probe was answered.
    Prompt,
    /// It was not, within `RELAY_CONFIRM_TIMEOUT`.
    Slow,
}

/// Publishers for slow probes.
pub(super) const SLOW_PUBLISHERS: usize = 3;

impl Pace {
    const ALL: [Self; 2] = [Self::Prompt, Self::Slow];

    /// Probes under way at once. A prompt one is back in a millisecond; a slow one keeps its publisher
    /// for the time-out, so none waits for one.
    const fn probes_max(self) -> usize {
        match self {
            Self::Prompt => 64,
            Self::Slow => SLOW_PUBLISHERS,
        }
    }
}

#[derive(Debug)]
enum Breaker {
    /// Rows go.
    Closed,
    /// Rows wait for the next probe.
    Open {
        failures: u32,
        due: Instant,
        pace: Pace,
    },
    /// One row has been let through.
    HalfOpen {
        failures: u32,
        due: Instant,
        pace: Pace,
        probe: u64,
    },
    /// By an operator, who alone closes it.
    Paused,
}

#[derive(Debug)]
struct Known {
    route: Route,
    breaker: Breaker,
    /// Rows in the index.
    rows: usize,
    /// Rows in the table alone: as the scan before has counted them, and as this one counts.
    overflowed: u64,
    counting: u64,
    /// First rows of their keys that wait for nothing but this route.
    blocked: BTreeSet<u64>,
    /// Its last probe, to probe with another one next time.
    probed: Option<u64>,
    /// Rows that were nacked here.
    nacked: Vec<u64>,
}

/// What a row's failure meant for its route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// The breaker opens, or stays open after a probe: the row's text says why.
    News,
    /// It was open already.
    Known,
    /// Too many are open: the row has to wait by itself.
    TooMany,
}

/// All routes that rows of the index have.
#[derive(Debug)]
pub(super) struct Routes {
    retry: Retry,
    routes: FxHashMap<RouteId, Known>,
    ids: HashMap<Route, RouteId>,
    next_id: u32,
    /// Open breakers with a row to probe with, by pace, the longest due first.
    due: [BTreeSet<(Instant, RouteId)>; 2],
    /// Probes under way, by pace.
    probes: [usize; 2],
    /// Breakers that are not closed.
    open: usize,
    bytes: usize,
}

impl Routes {
    pub(super) fn new(retry: Retry) -> Self {
        let max = retry.max.min(PROBE_MAX);
        Self {
            retry: Retry { max, ..retry },
            routes: FxHashMap::default(),
            ids: HashMap::new(),
            next_id: 0,
            due: Default::default(),
            probes: [0; 2],
            open: 0,
            bytes: 0,
        }
    }

    /// Bytes of all.
    pub(super) fn memory(&self) -> usize {
        self.bytes
    }

    /// A row with this route enters the index.
    pub(super) fn enter(&mut self, route: &Route) -> RouteId {
        let id = self.id_of(route);
        if let Some(known) = self.routes.get_mut(&id) {
            known.rows += 1;
        }
        id
    }

    fn id_of(&mut self, route: &Route) -> RouteId {
        if let Some(id) = self.ids.get(route) {
            return *id;
        }
        let id = RouteId(self.next_id);
        // Four thousand million routes later the numbers of the first are free.
        self.next_id = self.next_id.wrapping_add(1);
        self.bytes += bytes_of(route);
        self.ids.insert(route.clone(), id);
        self.routes.insert(
            id,
            Known {
                route: route.clone(),
                breaker: Breaker::Closed,
                rows: 0,
                overflowed: 0,
                counting: 0,
                blocked: BTreeSet::new(),
                probed: None,
                nacked: Vec::new(),
            },
        );
        id
    }

    /// A row leaves the index.
    pub(super) fn leave(&mut self, id: RouteId, row: u64) {
        self.unblock(id, row);
        self.probe_gone(id, row, None);
        if let Some(known) = self.routes.get_mut(&id) {
            known.rows -= 1;
            known.nacked.retain(|nacked| *nacked != row);
            self.forget_if_unused(id);
        }
    }

    fn forget_if_unused(&mut self, id: RouteId) {
        let unused = |known: &Known| known.rows == 0 && matches!(known.breaker, Breaker::Closed);
        if self.routes.get(&id).is_some_and(unused)
            && let Some(known) = self.routes.remove(&id)
        {
            self.ids.remove(&known.route);
            self.bytes -= bytes_of(&known.route);
        }
    }

    pub(super) fn is(&self, id: RouteId, route: &Route) -> bool {
        self.routes
            .get(&id)
            .is_some_and(|known| known.route == *route)
    }

    pub(super) fn route(&self, id: RouteId) -> Option<&Route> {
        self.routes.get(&id).map(|known| &known.route)
    }

    /// Do rows go there, be it this one alone as a probe?
    pub(super) fn takes(&self, id: RouteId, row: u64) -> bool {
        match self.routes.get(&id).map(|known| &known.breaker) {
            Some(Breaker::HalfOpen { probe, .. }) => *probe == row,
            Some(Breaker::Open { .. } | Breaker::Paused) => false,
            Some(Breaker::Closed) | None => true,
        }
    }

    /// Do rows of a route wait that is not in the index, or is?
    pub(super) fn flows(&self, route: &Route) -> bool {
        let known = self.ids.get(route).and_then(|id| self.routes.get(id));
        known.is_none_or(|known| matches!(known.breaker, Breaker::Closed))
    }

    /// Has the route an open breaker, and the index no row to probe with but such as were nacked?
    pub(super) fn lacks_probe(&self, route: &Route) -> bool {
        let known = self.ids.get(route).and_then(|id| self.routes.get(id));
        known.is_some_and(|known| {
            let nacked_alone = known.blocked.len() <= known.nacked.len()
                && known.blocked.iter().all(|row| known.nacked.contains(row));
            matches!(known.breaker, Breaker::Open { .. }) && nacked_alone
        })
    }

    /// If this row is the one that probes its route: how it may go.
    pub(super) fn probe(&self, id: RouteId, row: u64) -> Option<Pace> {
        match self.routes.get(&id)?.breaker {
            Breaker::HalfOpen { probe, pace, .. } if probe == row => Some(pace),
            _ => None,
        }
    }

    /// The row waits for nothing but its route.
    pub(super) fn block(&mut self, id: RouteId, row: u64) {
        self.with(id, |known| {
            known.blocked.insert(row);
        });
    }

    /// It waits for something else now.
    pub(super) fn unblock(&mut self, id: RouteId, row: u64) {
        self.with(id, |known| {
            known.blocked.remove(&row);
        });
    }

    /// Changes a route and keeps `due`, `probes` and `open` right.
    fn with<T: Default>(&mut self, id: RouteId, change: impl FnOnce(&mut Known) -> T) -> T {
        let Some(known) = self.routes.get_mut(&id) else {
            return T::default();
        };
        match known.breaker {
            Breaker::Open { due, pace, .. } => {
                self.due[pace as usize].remove(&(due, id));
            }
            Breaker::HalfOpen { pace, .. } => self.probes[pace as usize] -= 1,
            Breaker::Closed | Breaker::Paused => {}
        }
        self.open -= usize::from(!matches!(known.breaker, Breaker::Closed));
        let result = change(known);
        match known.breaker {
            Breaker::Open { due, pace, .. } if !known.blocked.is_empty() => {
                self.due[pace as usize].insert((due, id));
            }
            Breaker::HalfOpen { pace, .. } => self.probes[pace as usize] += 1,
            Breaker::Open { .. } | Breaker::Closed | Breaker::Paused => {}
        }
        self.open += usize::from(!matches!(known.breaker, Breaker::Closed));
        result
    }

    /// When the next probe may go; `None` when none is to or enough are under way.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        let next = |pace: Pace| {
            let free = self.probes[pace as usize] < pace.probes_max();
            let first = self.due[pace as usize].first().filter(|_| free);
            first.map(|(due, _)| *due)
        };
        Pace::ALL.into_iter().filter_map(next).min()
    }

    /// Lets a row through whose route is due for a probe.
    pub(super) fn let_through(&mut self, now: Instant) -> Option<u64> {
        let id = Pace::ALL.into_iter().find_map(|pace| {
            let free = self.probes[pace as usize] < pace.probes_max();
            let (due, id) = self.due[pace as usize].first().filter(|_| free)?;
            (*due <= now).then_some(*id)
        })?;
        self.with(id, |known| {
            let Breaker::Open {
                failures,
                due,
                pace,
            } = known.breaker
            else {
                return None;
            };
            // Another one than last time and than those that were nacked, if there is one: it may be
            // these rows' own fault.
            let (last, nacked) = (known.probed, &known.nacked);
            let rows = || known.blocked.iter().copied().take(PROBES_LOOKED_AT);
            let fresh = rows().find(|row| Some(*row) != last && !nacked.contains(row));
            let other = fresh.or_else(|| rows().find(|row| Some(*row) != last));
            let probe = other.or(known.blocked.first().copied())?;
            known.blocked.remove(&probe);
            known.probed = Some(probe);
            known.breaker = Breaker::HalfOpen {
                failures,
                due,
                pace,
                probe,
            };
            Some(probe)
        })
    }

    /// A row failed by its route's fault; `answered` when the broker said so itself.
    pub(super) fn failed(
        &mut self,
        id: RouteId,
        row: u64,
        answered: bool,
        (jitter, now): (f64, Instant),
    ) -> Opened {
        let full = self.open >= OPEN_MAX;
        let retry = self.retry;
        let pace = if answered { Pace::Prompt } else { Pace::Slow };
        let opened = self.with(id, |known| {
            let failures = match known.breaker {
                Breaker::Closed if full => return Some(Opened::TooMany),
                Breaker::Closed => 1,
                Breaker::HalfOpen {
                    failures, probe, ..
                } if probe == row => failures + 1,
                Breaker::Open { .. } | Breaker::HalfOpen { .. } | Breaker::Paused => {
                    return Some(Opened::Known);
                }
            };
            known.probed = Some(row);
            known.breaker = Breaker::Open {
                failures,
                due: now + retry.delay(failures, jitter),
                pace,
            };
            Some(Opened::News)
        });
        opened.unwrap_or(Opened::Known)
    }

    /// How long a row waits whose route is one of too many.
    pub(super) fn unnamed_wait(&self, jitter: f64) -> Duration {
        self.retry.delay(u32::MAX, jitter)
    }

    /// A row was confirmed. If it was its route's probe the breaker closes, and the rows that waited for
    /// it are returned.
    pub(super) fn confirmed(&mut self, id: RouteId, row: u64) -> Option<BTreeSet<u64>> {
        self.probe(id, row)?;
        Some(self.close(id))
    }

    fn close(&mut self, id: RouteId) -> BTreeSet<u64> {
        let released = self.with(id, |known| {
            known.breaker = Breaker::Closed;
            known.probed = None;
            known.overflowed = 0;
            known.counting = 0;
            std::mem::take(&mut known.blocked)
        });
        self.forget_if_unused(id);
        released
    }

    /// The row did not go after all, or its answer says nothing of the route; if it was a probe, another
    /// may be. `pace`: what that one may cost, when that is known better now.
    pub(super) fn probe_gone(&mut self, id: RouteId, row: u64, pace: Option<Pace>) {
        if self.probe(id, row).is_none() {
            return;
        }
        self.with(id, |known| {
            if let Breaker::HalfOpen {
                failures,
                due,
                pace: before,
                ..
            } = known.breaker
            {
                known.breaker = Breaker::Open {
                    failures,
                    due,
                    pace: pace.unwrap_or(before),
                };
            }
        });
    }

    /// An operator has paused the route.
    pub(super) fn pause(&mut self, route: &Route) {
        let id = self.id_of(route);
        self.with(id, |known| known.breaker = Breaker::Paused);
    }

    /// An operator has resumed the route: the rows that waited for it.
    pub(super) fn resume(&mut self, route: &Route) -> BTreeSet<u64> {
        match self.ids.get(route).copied() {
            Some(id) if matches!(self.breaker(id), Some(Breaker::Paused)) => self.close(id),
            _ => BTreeSet::new(),
        }
    }

    fn breaker(&self, id: RouteId) -> Option<&Breaker> {
        self.routes.get(&id).map(|known| &known.breaker)
    }

    /// The row was nacked here. When more rows were than can be to blame themselves, all of them are
    /// forgotten and returned.
    pub(super) fn nacked(&mut self, id: RouteId, row: u64) -> Vec<u64> {
        let Some(known) = self.routes.get_mut(&id) else {
            return Vec::new();
        };
        if !known.nacked.contains(&row) {
            known.nacked.push(row);
        }
        match known.nacked.len() > NACKED_MAX {
            true => std::mem::take(&mut known.nacked),
            false => Vec::new(),
        }
    }

    /// A row is confirmed: the others that were nacked here and not confirmed since.
    pub(super) fn nacked_beside(&mut self, id: RouteId, row: u64) -> &[u64] {
        let Some(known) = self.routes.get_mut(&id) else {
            return &[];
        };
        known.nacked.retain(|nacked| *nacked != row);
        &known.nacked
    }

    /// A row of the route is left in the table alone: by the scan at hand, or since it began.
    pub(super) fn overflow(&mut self, route: &Route, by_scan: bool) {
        let known = self.ids.get(route).and_then(|id| self.routes.get_mut(id));
        if let Some(known) = known {
            known.counting += 1;
            known.overflowed += u64::from(!by_scan);
        }
    }

    /// A scan begins, which is to see all rows.
    pub(super) fn scan_began(&mut self) {
        for known in self.routes.values_mut() {
            known.counting = 0;
        }
    }

    /// It has read the whole table: a breaker that nothing waits for any more is forgotten.
    pub(super) fn scan_ended(&mut self) {
        for known in self.routes.values_mut() {
            known.overflowed = known.counting;
        }
        let unused = |known: &Known| {
            let open = matches!(known.breaker, Breaker::Open { .. });
            open && known.rows == 0 && known.overflowed == 0
        };
        let unused = self.routes.iter().filter(|(_, known)| unused(known));
        for id in unused.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.close(id);
        }
    }

    /// Is a breaker not closed?
    pub(super) fn any_waits(&self) -> bool {
        self.open > 0
    }

    /// Routes whose breaker is not closed, with the number of rows that wait, the fullest first.
    pub(super) fn waiting(&self) -> Vec<WaitingRoute> {
        let open = self.routes.values();
        let open = open.filter(|known| !matches!(known.breaker, Breaker::Closed));
        let mut waiting: Vec<WaitingRoute> = open
            .map(|known| WaitingRoute {
                route: known.route.clone(),
                rows: known.rows as u64 + known.overflowed,
                paused: matches!(known.breaker, Breaker::Paused),
            })
            .collect();
        waiting.sort_by(|a, b| b.rows.cmp(&a.rows).then_with(|| a.route.cmp(&b.route)));
        waiting.truncate(ROUTES_SHOWN);
        waiting
    }

    /// Panics when what is known twice differs.
    #[cfg(debug_assertions)]
    pub(super) fn check(&self) {
        let of_pace = |wanted: Pace| {
            let probes = self.routes.values().filter(move |known| {
                matches!(known.breaker, Breaker::HalfOpen { pace, .. } if pace == wanted)
            });
            probes.count()
        };
        assert_eq!(Pace::ALL.map(of_pace), self.probes);
        let due = self.routes.values().filter(|known| {
            matches!(known.breaker, Breaker::Open { .. }) && !known.blocked.is_empty()
        });
        assert_eq!(
            due.count(),
            self.due.iter().map(BTreeSet::len).sum::<usize>()
        );
        assert_eq!(self.ids.len(), self.routes.len());
    }
}

fn bytes_of(route: &Route) -> usize {
    ROUTE_BYTES + route.exchange.len() + route.routing_key.len()
}
