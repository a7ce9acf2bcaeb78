//! A TCP proxy on the loopback that can cut, stall and slow what passes through it.
//!
//! It runs on a thread of its own: a test whose runtime is busy, or blocked, does not slow it.

mod passing;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::sync::watch;

use crate::port;

/// What a verb waits for takes microseconds; a machine may be busy.
const VERB_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module. Dropped, it closes every connection.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    orders: watch::Sender<Orders>,
    shown: Arc<Shown>,
    thread: Option<JoinHandle<()>>,
}

/// What the test wants.
#[derive(Clone, Copy, Debug)]
struct Orders {
    upstream: SocketAddr,
    open: bool,
    /// Bytes from the client to the upstream stand still.
    stalled_up: bool,
    /// Bytes from the upstream to the client stand still.
    stalled_down: bool,
    /// Connections born after this get no byte and pass none on.
    stalled_after: Option<u64>,
    limit: Option<u32>,
    /// Counts the verbs that concern only the connections there are.
    now: u64,
    /// Connections born before this are reset.
    cut: u64,
    /// Connections born before this are reset after so many more bytes.
    cut_after: Option<(u64, u64)>,
    /// The byte after this is spoilt on its way from the client.
    spoil_after: Option<&'static [u8]>,
    stop: bool,
}

/// What the proxy's thread reports.
#[derive(Debug, Default)]
struct Shown {
    listens: AtomicBool,
    /// When each connection there is was born.
    births: Mutex<Vec<u64>>,
}

impl Shown {
    fn births(&self) -> MutexGuard<'_, Vec<u64>> {
        self.births.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Orders {
    /// Concerns the connections there are, and none that comes later.
    fn of_these(&mut self) -> u64 {
        self.now += 1;
        self.now - 1
    }
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and passes everything on to `upstream`.
    pub fn start(upstream: SocketAddr) -> anyhow::Result<Self> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()?));
        let (orders, seen) = watch::channel(Orders {
            upstream,
            open: true,
            stalled_up: false,
            stalled_down: false,
            stalled_after: None,
            limit: None,
            now: 1,
            cut: 0,
            cut_after: None,
            spoil_after: None,
            stop: false,
        });
        let shown = Arc::new(Shown::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("could not build the proxy's runtime")?;
        let showing = Arc::clone(&shown);
        let thread = std::thread::Builder::new()
            .name("fault proxy".to_owned())
            .spawn(move || runtime.block_on(passing::serve(addr, seen, showing)))
            .context("could not start the proxy's thread")?;
        let proxy = Self {
            addr,
            orders,
            shown,
            thread: Some(thread),
        };
        proxy.wait("listen", |shown| shown.listens.load(Ordering::SeqCst));
        Ok(proxy)
    }

    /// Where it listens; the same after [`Proxy::close`] and [`Proxy::open`].
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `url` with host and port replaced by the proxy's.
    ///
    /// # Panics
    /// When `url` has no host.
    pub fn url(&self, url: &str) -> String {
        let replaced = reqwest::Url::parse(url).ok().and_then(|mut url| {
            url.set_host(Some(&self.addr.ip().to_string())).ok()?;
            url.set_port(Some(self.addr.port())).ok()?;
            Some(url.to_string())
        });
        replaced.unwrap_or_else(|| panic!("no URL with a host: {url}"))
    }

    /// Where new connections go: with [`Proxy::cut`], the same host and port are another server.
    pub fn set_upstream(&self, upstream: SocketAddr) {
        self.order(|orders| orders.upstream = upstream);
    }

    /// Resets all connections there are; new ones are accepted.
    pub fn cut(&self) {
        self.order(|orders| orders.cut = orders.of_these());
        self.wait_reset();
    }

    /// Resets all connections and refuses new ones until [`Proxy::open`].
    pub fn close(&self) {
        self.order(|orders| {
            orders.open = false;
            orders.cut = orders.of_these();
        });
        self.wait("close", |shown| !shown.listens.load(Ordering::SeqCst));
        self.wait_reset();
    }

    /// Accepts connections again after [`Proxy::close`].
    pub fn open(&self) {
        self.order(|orders| orders.open = true);
        self.wait("listen", |shown| shown.listens.load(Ordering::SeqCst));
    }

    /// Bytes stop in both directions: connections stay open, new ones are accepted and get no byte.
    pub fn stall(&self) {
        self.order(|orders| (orders.stalled_up, orders.stalled_down) = (true, true));
    }

    /// The upstream still gets what the client sends, but its answers stop.
    pub fn stall_answers(&self) {
        self.order(|orders| (orders.stalled_up, orders.stalled_down) = (false, true));
    }

    /// New connections are accepted and get no byte; those there are go on.
    pub fn stall_new(&self) {
        self.order(|orders| orders.stalled_after = Some(orders.of_these()));
    }

    /// Lets everything go on after [`Proxy::stall`], [`Proxy::stall_answers`] and [`Proxy::stall_new`].
    pub fn resume(&self) {
        self.order(|orders| {
            (orders.stalled_up, orders.stalled_down) = (false, false);
            orders.stalled_after = None;
        });
    }

    /// At most so many bytes a second in each direction of each connection; `None`: no limit.
    pub fn limit(&self, bytes_per_second: Option<u32>) {
        self.order(|orders| orders.limit = bytes_per_second.map(|limit| limit.max(1)));
    }

    /// Resets each connection there is once it has carried so many more bytes from the client: a cut
    /// in the middle of a batch. Later connections are left alone.
    pub fn cut_after(&self, bytes: u64) {
        self.order(|orders| {
            orders.cut_after = Some((orders.of_these(), bytes));
        });
    }

    /// Spoils the byte that follows each `marker` from the client, so that the upstream meets a
    /// protocol error at a place the test has chosen. No part of the marker may begin it again.
    pub fn spoil_after(&self, marker: Option<&'static [u8]>) {
        self.order(|orders| orders.spoil_after = marker);
    }

    /// Connections there are.
    pub fn connections(&self) -> usize {
        self.shown.births().len()
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        self.orders.send_modify(change);
    }

    fn wait_reset(&self) {
        let cut = self.orders.borrow().cut;
        self.wait("reset its connections", |shown| {
            shown.births().iter().all(|born| *born > cut)
        });
    }

    fn wait(&self, what: &str, met: impl Fn(&Shown) -> bool) {
        let deadline = Instant::now() + VERB_TIMEOUT;
        while !met(&self.shown) {
            assert!(Instant::now() < deadline, "the proxy did not {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.order(|orders| orders.stop = true);
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed.
            drop(thread.join());
        }
    }
}
