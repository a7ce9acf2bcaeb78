//! A payment provider on the loopback that does as it is set and keeps a ledger: what was taken for
//! each order, and by how many keys.
//!
//! It speaks the contract of pay-svc's `PAY_PROVIDER=http` and, as a real one would, takes money
//! once for each `Idempotency-Key`. It runs on a thread of its own: a test whose runtime is busy, or
//! blocked, does not slow it.

mod ledger;
mod serve;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

pub use self::ledger::Ledger;
use crate::port;

/// What a verb waits for takes microseconds; a machine may be busy.
const VERB_TIMEOUT: Duration = Duration::from_secs(10);

/// A charge that is requested.
#[derive(Clone, Debug)]
pub struct Call {
    /// The header `Idempotency-Key`.
    pub key: String,
    /// The header `Authorization`.
    pub authorization: Option<String>,
    /// The header `traceparent`.
    pub traceparent: Option<String>,
    /// From the body.
    pub order_id: String,
    /// From the body.
    pub amount_minor: i64,
    /// From the body.
    pub currency: String,
    /// The how manieth call with this key it is, from 1.
    pub nth: usize,
}

/// What to do about a call.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Money is taken as the call arrives, whatever is answered, and when.
    pub takes: bool,
    /// How long the answer takes.
    pub latency: Duration,
    /// The header `Retry-After`.
    pub retry_after: Option<String>,
    /// `None`: the outcome and a reference that stays the same for the key.
    pub body: Option<String>,
}

impl Reply {
    /// Takes the money and says so.
    #[must_use]
    pub fn captured() -> Self {
        Self {
            takes: true,
            ..Self::status(200)
        }
    }

    /// Answers with a status, takes nothing.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self {
            status,
            takes: false,
            latency: Duration::ZERO,
            retry_after: None,
            body: None,
        }
    }

    /// Answers after this long.
    #[must_use]
    pub fn after(self, latency: Duration) -> Self {
        Self { latency, ..self }
    }

    /// Requests to be left alone for this long.
    #[must_use]
    pub fn retry_after(self, text: &str) -> Self {
        Self {
            retry_after: Some(text.to_owned()),
            ..self
        }
    }

    /// Answers with this body.
    #[must_use]
    pub fn body(self, text: &str) -> Self {
        Self {
            body: Some(text.to_owned()),
            ..self
        }
    }
}

type Script = Arc<dyn Fn(&Call) -> Reply + Send + Sync>;

/// What the server's tasks and its owner share.
struct Shared {
    script: Mutex<Script>,
    ledger: Mutex<Ledger>,
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the owner wants of the listener, and what it has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Open,
    Closed,
    Gone,
}

/// See the module. Dropped, it closes every connection.
pub struct Provider {
    addr: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    wanted: watch::Sender<Door>,
    found: watch::Receiver<Door>,
    thread: Option<JoinHandle<()>>,
}

impl Provider {
    /// Listens on a free port of 127.0.0.1 and captures every charge.
    pub fn start() -> anyhow::Result<Self> {
        Self::listen(None)
    }

    /// As [`Provider::start`], with TLS.
    pub fn start_tls(identity: &crate::certificates::Identity) -> anyhow::Result<Self> {
        Self::listen(Some(serve::acceptor(identity)?))
    }

    fn listen(tls: Option<TlsAcceptor>) -> anyhow::Result<Self> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()?));
        let shared = Arc::new(Shared {
            script: Mutex::new(Arc::new(|_| Reply::captured())),
            ledger: Mutex::default(),
        });
        let (wanted, orders) = watch::channel(Door::Open);
        let (showing, found) = watch::channel(Door::Closed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("could not build the provider's runtime")?;
        let server = serve::Server {
            addr,
            tls,
            shared: Arc::clone(&shared),
            showing,
        };
        let scheme = if server.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let thread = std::thread::Builder::new()
            .name("fake provider".to_owned())
            .spawn(move || runtime.block_on(server.run(orders)))
            .context("could not start the provider's thread")?;
        let provider = Self {
            addr,
            scheme,
            shared,
            wanted,
            found,
            thread: Some(thread),
        };
        provider.wait(Door::Open);
        Ok(provider)
    }

    /// What `PAY_PROVIDER_URL` is to be.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}/charges", self.scheme, self.addr)
    }

    /// What to do from now on about each call.
    pub fn script(&self, script: impl Fn(&Call) -> Reply + Send + Sync + 'static) {
        *self.shared.script() = Arc::new(script);
    }

    /// An outage: connections are closed, new ones refused. What was taken is taken.
    pub fn close(&self) {
        self.turn(Door::Closed);
    }

    /// Ends [`Provider::close`], on the same port.
    pub fn open(&self) {
        self.turn(Door::Open);
    }

    /// What has happened so far.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.shared.ledger().clone()
    }

    fn turn(&self, door: Door) {
        self.wanted.send_replace(door);
        self.wait(door);
    }

    /// # Panics
    /// When the thread does not do as it is set.
    fn wait(&self, door: Door) {
        let deadline = Instant::now() + VERB_TIMEOUT;
        while *self.found.borrow() != door {
            assert!(
                Instant::now() < deadline,
                "the fake provider is not {door:?}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.wanted.send_replace(Door::Gone);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
