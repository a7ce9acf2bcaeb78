//! A model of everything around `dispatch`, `queue`, `held`, `shut` and `pass`: a table, a binlog, a
//! broker, a marker and a clock, each of which takes its next step whenever it likes.
//!
//! Whatever the sequence: nothing is on its way twice, the first deliveries of a key are in order, and
//! once everybody behaves all rows are sent or parked and nothing is held any more.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use outbox::row::Row;
use proptest::prelude::*;

use crate::config::Order;
use crate::dispatch::{Dispatch, Head};
use crate::effects::{Effects, Failure};
use crate::pass::{Passes, Plan, Progress, Room, Summary};
use crate::publish::publisher_task::{Done, Outcome};
use crate::queue::{BatchLimit, Item, PROBE_LANES, RowId, key_hash};
use crate::route::Route;
use crate::schedule::{Next, Schedule};
use crate::settle::Verdict;
use crate::source::binlog::position::Position;
use crate::source::table::{Ask, Page, PageAsk};

mod others;

const LANES: usize = 2;
const PAGE: usize = 3;
const SWEEP: Duration = Duration::from_secs(10);
const SCHEDULE: Schedule = Schedule {
    min: Duration::from_secs(1),
    max: Duration::from_mins(5),
    attempts_max: 3,
};

/// What becomes of a message whenever it is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Good,
    /// It must not go before its time.
    Delayed,
    Invalid,
    /// The broker closes the connection over it.
    Bomb,
    /// It closes the channel with 406.
    TooLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broker {
    Takes,
    Returns,
    Refuses,
    Silent,
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u8, u8, Kind),
    Open(u8, u8, Kind),
    Commit,
    Tail(u8),
    Read,
    Hand,
    Answer(u8, u64),
    Mark,
    Told,
    Time(u64),
    Route(u8, Broker),
    Pause(u8),
    Resume(u8),
    Doubt,
    Unreadable,
    Restart(u64),
}

#[derive(Debug)]
struct Stored {
    row: Row,
    kind: Kind,
    committed: bool,
    status: u8,
    attempts: u32,
    next_at: Option<Instant>,
    delivered: bool,
}

enum Answer {
    Page(Page, bool),
    Rows(Vec<(Row, u32)>),
}

enum Write {
    Sent(RowId),
    Failed(Failure),
    /// A sample of a route that is not known by name.
    Wait(RowId, Duration),
}

struct World {
    order: Order,
    now: Instant,
    rows: Vec<Stored>,
    open: VecDeque<u64>,
    log: Vec<u64>,
    routes: [Broker; 3],
    paused: HashSet<u8>,
    dispatch: Dispatch,
    passes: Passes,
    catching_up: bool,
    /// Every other time that a route is to be probed, by a pass for probes alone.
    probes_only: bool,
    polling: bool,
    tail: Option<usize>,
    already_sent_until: Option<Position>,
    next_pass: Instant,
    ask: Option<Ask>,
    answer: Option<Answer>,
    lanes: Vec<Option<Vec<Item>>>,
    writes: VecDeque<Write>,
    told: VecDeque<RowId>,
    /// In this life of the process.
    confirmed: HashSet<RowId>,
}

fn new_dispatch(order: Order) -> Dispatch {
    let limit = BatchLimit {
        rows: 3,
        bytes: 1 << 20,
    };
    Dispatch::new(order, SCHEDULE, LANES, limit)
}

fn route(number: u8) -> Route {
    Route::new(b"x", &[number])
}

fn position(offset: usize) -> Position {
    Position::new("b.1", offset as u64)
}

/// A few bits of luck from a seed.
fn luck(seed: u64, about: u64) -> bool {
    key_hash(&seed.to_le_bytes(), &about.to_le_bytes()) & 1 == 1
}

impl World {
    fn new(order: Order) -> Self {
        let now = Instant::now();
        Self {
            order,
            now,
            rows: Vec::new(),
            open: VecDeque::new(),
            log: Vec::new(),
            routes: [Broker::Takes; 3],
            paused: HashSet::new(),
            dispatch: new_dispatch(order),
            passes: Passes::new(now),
            catching_up: true,
            probes_only: false,
            polling: false,
            tail: None,
            already_sent_until: None,
            next_pass: now,
            ask: None,
            answer: None,
            lanes: (0..LANES + PROBE_LANES).map(|_| None).collect(),
            writes: VecDeque::new(),
            told: VecDeque::new(),
            confirmed: HashSet::new(),
        }
    }

    fn stored(&mut self, id: u64) -> &mut Stored {
        &mut self.rows[usize::try_from(id).unwrap() - 1]
    }

    /// A writer locks its aggregate before it inserts.
    fn insert(&mut self, key: u8, to: u8, kind: Kind) -> Option<u64> {
        let locked = |id: &u64| {
            self.rows[usize::try_from(*id).unwrap() - 1]
                .row
                .aggregate_id
                == [key]
        };
        if self.open.iter().any(locked) {
            return None;
        }
        let id = self.rows.len() as u64 + 1;
        let route = route(to);
        self.rows.push(Stored {
            row: Row {
                id,
                message_id: format!("m{id}"),
                aggregate_type: b"order".to_vec(),
                aggregate_id: vec![key],
                event_type: b"t".to_vec(),
                exchange: route.exchange.to_vec(),
                routing_key: route.routing_key.to_vec(),
                content_type: b"c".to_vec(),
                headers: None,
                payload: Vec::new(),
                created_at: None,
            },
            kind,
            committed: false,
            status: 1,
            attempts: 0,
            next_at: (kind == Kind::Delayed).then(|| self.now + Duration::from_secs(7)),
            delivered: false,
        });
        Some(id)
    }

    fn commit(&mut self, id: u64) {
        self.stored(id).committed = true;
        self.log.push(id);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Insert(key, to, kind) => {
                if let Some(id) = self.insert(key, to, kind) {
                    self.commit(id);
                }
            }
            Step::Open(key, to, kind) => {
                let id = self.insert(key, to, kind);
                self.open.extend(id);
            }
            Step::Commit => {
                if let Some(id) = self.open.pop_front() {
                    self.commit(id);
                }
            }
            Step::Tail(groups) => (0..groups).for_each(|_| self.tail_one()),
            Step::Read => self.read(),
            Step::Hand => self.hand(),
            Step::Answer(lane, seed) => self.answer(usize::from(lane) % self.lanes.len(), seed),
            Step::Mark => self.mark(),
            Step::Told => {
                if let Some(id) = self.told.pop_front() {
                    self.dispatch.written([id], self.now);
                }
            }
            Step::Time(ms) => self.now += Duration::from_millis(ms),
            Step::Route(to, broker) => self.routes[usize::from(to)] = broker,
            Step::Pause(to) => {
                self.paused.insert(to);
                self.dispatch.pause_route(&route(to), self.now);
            }
            Step::Resume(to) => {
                self.paused.remove(&to);
                self.dispatch.resume_route(&route(to), self.now);
            }
            Step::Doubt => self.catch_up(),
            Step::Unreadable => self.poll(),
            Step::Restart(seed) => self.restart(seed),
        }
        self.turn();
    }

    /// What the session does after every event.
    fn turn(&mut self) {
        self.begin_pass();
        if self.passes.awaited().is_some() {
            self.check_tail();
        }
        let room = self.room();
        match self.passes.go_on(&mut self.dispatch, room, self.now) {
            Progress::Wait | Progress::Took => {}
            Progress::Ask(ask) => self.ask = Some(ask),
            Progress::Ended(summary) => self.pass_ended(*summary),
        }
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].is_none() {
                self.lanes[lane] = self.dispatch.queue.next_batch(lane);
            }
        }
        self.assert_nothing_twice();
    }

    fn assert_nothing_twice(&self) {
        let mut seen = HashSet::new();
        for item in self.lanes.iter().flatten().flatten() {
            assert!(seen.insert(item.id()), "{:?} is out twice", item.id());
            assert!(
                !self.confirmed.contains(&item.id()),
                "{:?} again",
                item.id()
            );
        }
        if self.order == Order::Key {
            let keys = self.lanes.iter().flatten().flatten().map(|item| item.key);
            assert_eq!(
                keys.collect::<HashSet<_>>().len(),
                seen.len(),
                "one of a key"
            );
        }
    }

    fn room(&self) -> Room {
        Room {
            rows: 4_usize.saturating_sub(self.dispatch.queue.rows()),
            bytes: 1 << 20,
        }
    }

    fn begin_pass(&mut self) {
        let wake = self.dispatch.held.wake().filter(|_| !self.catching_up);
        let at = wake.map_or(self.next_pass, |wake| wake.min(self.next_pass));
        // Rests are left out: they only make passes rarer.
        if !self.passes.is_idle() || self.now < at {
            return;
        }
        let ordered = self.order == Order::Key;
        let probe = self.dispatch.held.next_probe();
        self.probes_only =
            !self.catching_up && !self.probes_only && probe.is_some_and(|probe| probe <= self.now);
        let plan = Plan {
            fence: !self.polling && (self.catching_up || !self.dispatch.held.is_empty()),
            positions: !self.polling,
            verify: !self.polling && (!self.catching_up || !ordered),
            count_missed: false,
            probes_only: self.probes_only,
        };
        self.ask = Some(self.passes.begin(plan, &mut self.dispatch, self.now));
    }

    fn check_tail(&mut self) {
        let wanted = self.passes.awaited().map(|(wanted, _)| wanted.clone());
        let Some(tail) = self.tail else {
            return self.passes.unverifiable(true);
        };
        if wanted
            .as_ref()
            .is_some_and(|wanted| position(tail) >= *wanted)
        {
            if self.already_sent_until <= wanted {
                self.already_sent_until = None;
                self.dispatch.clear_already_sent();
            }
            self.passes.verified();
        }
    }

    fn pass_ended(&mut self, pass: Summary) {
        if pass.plan.probes_only {
            return self.dispatch.held.find_probe();
        }
        let fenced = (pass.plan.fence || self.polling) && !pass.cut_short;
        self.dispatch.held.pass_ended(pass.number, fenced);
        self.next_pass = self.now + SWEEP;
        if !self.catching_up {
            return;
        }
        self.next_pass = self.now;
        if let (Some(sent), Some(from), false) = (pass.sent, pass.start, pass.cut_short) {
            self.dispatch.set_already_sent(sent);
            self.already_sent_until = pass.end;
            self.open_tail(&from);
        }
    }

    fn open_tail(&mut self, from: &Position) {
        self.tail = Some(usize::try_from(from.offset).unwrap());
        self.catching_up = false;
        self.next_pass = self.now + SWEEP;
    }

    fn catch_up(&mut self) {
        self.tail = None;
        self.passes.unverifiable(false);
        self.already_sent_until = None;
        self.dispatch.clear_already_sent();
        self.catching_up = true;
        self.polling = false;
        self.next_pass = self.now;
    }

    /// The binlog can't be read.
    fn poll(&mut self) {
        self.tail = None;
        self.already_sent_until = None;
        self.dispatch.clear_already_sent();
        self.passes.unverifiable(true);
        (self.catching_up, self.polling) = (false, true);
        self.next_pass = self.now;
    }

    fn tail_one(&mut self) {
        let loading = self.order == Order::Key && self.passes.is_loading();
        let Some(at) = self.tail.filter(|at| *at < self.log.len()) else {
            return;
        };
        if loading || self.room().rows == 0 {
            return;
        }
        self.tail = Some(at + 1);
        let (id, now) = (self.log[at], self.now);
        let stored = self.stored(id);
        let row = stored.row.clone();
        if stored.kind == Kind::Delayed {
            self.dispatch.tail_deferred(&row, now);
        } else {
            self.dispatch.tail(row, now, now);
        }
        self.turn();
    }

    /// All connections and all memory are new, but for the suspects.
    fn restart(&mut self, seed: u64) {
        for batch in std::mem::take(&mut self.lanes).into_iter().flatten() {
            self.deliver_some(&batch, seed);
        }
        let suspects = self.dispatch.take_suspects();
        let mut fresh = Self::new(self.order);
        fresh.now = self.now;
        fresh.next_pass = self.now;
        fresh.passes = Passes::new(self.now);
        fresh.rows = std::mem::take(&mut self.rows);
        fresh.open = std::mem::take(&mut self.open);
        fresh.log = std::mem::take(&mut self.log);
        fresh.routes = self.routes;
        fresh.paused = std::mem::take(&mut self.paused);
        fresh.dispatch.set_suspects(suspects);
        for to in &fresh.paused {
            fresh.dispatch.pause_route(&route(*to), fresh.now);
        }
        *self = fresh;
    }

    /// Everybody behaves from now on: all of it must come to rest.
    fn settle(&mut self) {
        for to in 0..3 {
            self.step(&Step::Route(to, Broker::Takes));
            self.step(&Step::Resume(to));
        }
        (0..self.open.len()).for_each(|_| self.step(&Step::Commit));
        for _ in 0..2_000 {
            for step in [
                Step::Read,
                Step::Hand,
                Step::Mark,
                Step::Told,
                Step::Tail(9),
            ] {
                self.step(&step);
            }
            (0..6).for_each(|lane| self.step(&Step::Answer(lane, 0)));
            let done = self.rows.iter().all(|stored| stored.status != 1);
            if done && self.dispatch.in_flight() == 0 && self.dispatch.held.is_empty() {
                return;
            }
            self.step(&Step::Time(500));
        }
        let left: Vec<_> = self
            .rows
            .iter()
            .filter(|stored| stored.status == 1)
            .collect();
        panic!(
            "{left:?} left, {} in flight, {:?}",
            self.dispatch.in_flight(),
            self.dispatch.held
        );
    }

    fn assert_all_are_where_they_belong(&self) {
        let mut states = HashMap::new();
        for stored in &self.rows {
            let good = matches!(stored.kind, Kind::Good | Kind::Delayed);
            // A good one is to blame at times, when it is alone with the broker each time it closes.
            assert_eq!(stored.status, if good { 2 } else { 3 }, "{stored:?}");
            assert_eq!(stored.delivered, good, "{stored:?}");
            *states.entry(stored.status).or_insert(0) += 1;
        }
        assert_eq!(self.dispatch.queue.rows(), 0);
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![
        12 => Just(Kind::Good),
        1 => Just(Kind::Delayed),
        1 => Just(Kind::Invalid),
        1 => Just(Kind::Bomb),
        1 => Just(Kind::TooLarge),
    ];
    let broker = prop_oneof![
        3 => Just(Broker::Takes),
        2 => Just(Broker::Returns),
        1 => Just(Broker::Refuses),
        1 => Just(Broker::Silent),
    ];
    let row = || (0..4_u8, 0..3_u8, kind.clone());
    let ms = prop_oneof![Just(1), Just(300), Just(1_100), Just(11_000), Just(60_000)];
    let step = prop_oneof![
        10 => row().prop_map(|(key, to, kind)| Step::Insert(key, to, kind)),
        3 => row().prop_map(|(key, to, kind)| Step::Open(key, to, kind)),
        3 => Just(Step::Commit),
        10 => (1..6_u8).prop_map(Step::Tail),
        12 => Just(Step::Read),
        12 => Just(Step::Hand),
        14 => (0..6_u8, any::<u64>()).prop_map(|(lane, seed)| Step::Answer(lane, seed)),
        10 => Just(Step::Mark),
        10 => Just(Step::Told),
        6 => ms.prop_map(Step::Time),
        3 => (0..3_u8, broker).prop_map(|(to, broker)| Step::Route(to, broker)),
        1 => (0..3_u8).prop_map(Step::Pause),
        1 => (0..3_u8).prop_map(Step::Resume),
        1 => Just(Step::Doubt),
        1 => Just(Step::Unreadable),
        1 => any::<u64>().prop_map(Step::Restart),
    ];
    proptest::collection::vec(step, 0..200)
}

fn run(order: Order, steps: &[Step]) {
    let mut world = World::new(order);
    for step in steps {
        world.step(step);
    }
    world.settle();
    world.assert_all_are_where_they_belong();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, max_shrink_iters: 20_000, ..Default::default() })]

    #[test]
    fn with_an_order_no_row_is_lost_out_twice_or_early(steps in steps()) {
        run(Order::Key, &steps);
    }

    #[test]
    fn without_an_order_no_row_is_lost_or_out_twice(steps in steps()) {
        run(Order::None, &steps);
    }
}
