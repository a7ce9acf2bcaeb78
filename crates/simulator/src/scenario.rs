//! What a seed stands for: the relay's settings, the size of the world, and its faults.

use std::time::Duration;

use relay::engine::{Mode, Order, Settings};

use crate::faults::{Episode, Fault, FaultSet, plan};
use crate::queue::{MILLI, Micros, SECOND};
use crate::rng::Rng;

/// Everything that is fixed when a run begins.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// Where all of it comes from.
    pub(crate) seed: u64,
    /// The engine's.
    pub(crate) settings: Settings,
    /// `RELAY_CONFIRM_TIMEOUT`.
    pub(crate) confirm_timeout: Micros,
    /// Relay processes.
    pub(crate) processes: usize,
    /// Ordering keys.
    pub(crate) keys: u64,
    /// Routes; two exchanges share them.
    pub(crate) routes: u64,
    /// Time between two transactions of the services: no more than half of what the relay can do with
    /// so many keys and publishers.
    pub(crate) pace: Micros,
    /// Rows in a page.
    pub(crate) page: usize,
    /// Rows up to this size come with their page.
    pub(crate) small: usize,
    /// The largest payload.
    pub(crate) payload: u64,
    /// Services write until then, and faults happen until then.
    pub(crate) troubled: Micros,
    /// What happens.
    pub(crate) episodes: Vec<Episode>,
    /// Snapshots show commits in another order than they were made in, as MariaDB's can.
    pub(crate) tears: bool,
    /// Ticks in a row without time passing are an error (false), or are put off (true).
    pub(crate) spins: bool,
}

impl Scenario {
    /// The scenario of a seed with these faults.
    pub(crate) fn new(seed: u64, enabled: FaultSet) -> Self {
        let mut rng = Rng::new(seed, 2);
        let mut settings = settings(&mut rng);
        let mut troubled = rng.range(10, 60) * SECOND;
        let crowded = enabled.has(Fault::RouteCrowd) && enabled.has(Fault::Unroutable);
        let very_many = rng.percent(25) && crowded;
        let many_routes = rng.per_mille(40) || very_many;
        if many_routes && very_many {
            settings.index_bytes = 4 << 20;
            settings.publishers = 4;
            settings.batch_rows = 8;
            troubled = 120 * SECOND;
        }
        let keys = rng.pick(&[1, 3, 10, 40, 200]);
        let pace = rng.pick(&[10, 20, 50, 100, 300]) * MILLI;
        let parallel = keys.min((settings.publishers * settings.batch_rows) as u64);
        Self {
            seed,
            settings,
            confirm_timeout: rng.range(500, 5_000) * MILLI,
            processes: rng.size(1, 3),
            keys,
            routes: if many_routes {
                if very_many { 12_000 } else { 1_500 }
            } else {
                rng.range(1, 6)
            },
            pace: pace.max(120 * MILLI / parallel),
            page: rng.size(3, 50),
            small: rng.size(0, 2_000),
            payload: rng.pick(&[100, 500, 4_000]),
            troubled,
            episodes: plan(seed, enabled, troubled),
            tears: Rng::new(seed, 3).percent(60),
            spins: false,
        }
    }
}

fn settings(rng: &mut Rng) -> Settings {
    let backoff_min = Duration::from_millis(rng.range(100, 1_000));
    let order = if rng.percent(85) {
        Order::Key
    } else {
        Order::None
    };
    let mode = if rng.percent(80) {
        Mode::Cdc
    } else {
        Mode::Poll
    };
    Settings {
        order,
        mode,
        publishers: rng.size(1, 4),
        batch_rows: rng.size(1, 8),
        batch_bytes: rng.size(1, 16) << 10,
        buffer_bytes: rng.size(8, 128) << 10,
        index_bytes: rng.pick(&[4, 8, 16, 64, 1_024, 4_096]) << 10,
        backoff_min,
        backoff_max: backoff_min * u32::try_from(rng.range(2, 12)).expect("it is small"),
        attempts_max: u32::try_from(rng.range(1, 5)).expect("it is small"),
        sweep_interval: Duration::from_millis(rng.range(1_000, 8_000)),
        poll_interval: Duration::from_millis(rng.range(50, 300)),
    }
}
