//! A bound in bytes on what is read from a connection.
//!
//! lapin reads whatever the broker sends and keeps it until somebody takes it, and RabbitMQ bounds what
//! it sends ahead by a number of messages alone. So the socket itself stops: what is not read waits in
//! the broker, which TCP stops.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_rs::Tokio;
use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use futures::io::{AsyncRead, AsyncWrite, IoSlice};
use futures::stream::Stream;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval_at};

/// lapin gives a connection up on which nothing was read for two heartbeats, the shortest of which is a
/// second.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_millis(500);
/// What is read then at most; any of it is a sign of life.
const SIGN_OF_LIFE_BYTES: usize = 2 * 1024;

/// How much may still be read from a connection. It is open until the first [`Gate::allow`].
#[derive(Clone, Debug)]
pub struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    stalled: Notify,
}

#[derive(Debug)]
struct State {
    left: usize,
    /// Read as signs of life, beyond what was allowed.
    lent: usize,
    read: u64,
    closed: bool,
    reader: Option<Waker>,
}

impl Default for Gate {
    fn default() -> Self {
        let state = State {
            left: usize::MAX,
            lent: 0,
            read: 0,
            closed: false,
            reader: None,
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            stalled: Notify::new(),
        }))
    }
}

impl Gate {
    /// So many bytes may be read from now on.
    pub fn allow(&self, bytes: usize) {
        self.change(|state| (state.left, state.lent) = (bytes, 0));
    }

    /// So many bytes more may be read, less those that were read ahead as signs of life.
    pub fn add(&self, bytes: usize) {
        self.change(|state| {
            let repaid = bytes.min(state.lent);
            state.lent -= repaid;
            state.left = state.left.saturating_add(bytes - repaid);
        });
    }

    /// Does `work`, during which nobody takes what is read, however long it is: a little is read all the
    /// same now and then, so that the connection is there when the work is done.
    pub async fn keep_alive<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let first = tokio::time::Instant::now() + SIGN_OF_LIFE_EVERY;
        let mut ticks = interval_at(first, SIGN_OF_LIFE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                _ = ticks.tick() => self.change(|state| {
                    let lent = SIGN_OF_LIFE_BYTES.saturating_sub(state.left);
                    state.left += lent;
                    state.lent += lent;
                }),
            }
        }
    }

    /// How many bytes have been read.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.state().read
    }

    /// Ends the connection: a reader that waits would never see that nobody needs it any more.
    pub fn close(&self) {
        self.change(|state| state.closed = true);
    }

    /// Was the connection ended by [`Gate::close`]?
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Returns as soon as all that was allowed has been read and more is wanted.
    pub async fn stalled(&self) {
        loop {
            let stalled = self.0.stalled.notified();
            if self.state().reader.is_some() {
                return;
            }
            stalled.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        let reader = match state.closed || state.left > 0 {
            true => state.reader.take(),
            false => None,
        };
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// The number of bytes that may be read now.
    fn poll_left(&self, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        if state.closed {
            let why = "the connection was given up";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)));
        }
        if state.left > 0 {
            return Poll::Ready(Ok(state.left));
        }
        state.reader = Some(cx.waker().clone());
        drop(state);
        self.0.stalled.notify_waiters();
        Poll::Pending
    }

    fn took(&self, bytes: usize) {
        let mut state = self.state();
        state.read += bytes as u64;
        if state.left != usize::MAX {
            state.left = state.left.saturating_sub(bytes);
        }
    }
}

/// A socket behind a gate.
#[derive(Debug)]
pub(super) struct Gated<S> {
    socket: S,
    gate: Gate,
}

impl<S: AsyncRead + Unpin> AsyncRead for Gated<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let left = match self.gate.poll_left(cx) {
            Poll::Ready(Ok(left)) => left.min(buffer.len()),
            Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
            Poll::Pending => return Poll::Pending,
        };
        let read = Pin::new(&mut self.socket).poll_read(cx, &mut buffer[..left]);
        if let Poll::Ready(Ok(bytes)) = read {
            self.gate.took(bytes);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gated<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

/// tokio, whose sockets are behind a gate: lapin takes no socket, it takes a runtime.
#[derive(Clone, Debug)]
pub(super) struct GatedTokio {
    tokio: Tokio,
    gate: Gate,
}

impl GatedTokio {
    pub(super) fn new(gate: Gate) -> Self {
        Self {
            tokio: Tokio::current(),
            gate,
        }
    }
}

impl RuntimeKit for GatedTokio {}

impl Executor for GatedTokio {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, work: F) -> T {
        self.tokio.block_on(work)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        work: F,
    ) -> Task<Self::Task<T>> {
        self.tokio.spawn(work)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> Task<Self::Task<T>> {
        self.tokio.spawn_blocking(work)
    }
}

impl Reactor for GatedTokio {
    type TcpStream = Gated<<Tokio as Reactor>::TcpStream>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.tokio.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.tokio.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.tokio.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        addr: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let (connecting, gate) = (self.tokio.tcp_connect_addr(addr), self.gate.clone());
        async move {
            let socket = connecting.await?;
            Ok(Gated { socket, gate })
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, FutureExt};

    use super::*;

    fn gated(gate: &Gate) -> Gated<futures::io::Cursor<Vec<u8>>> {
        Gated {
            socket: futures::io::Cursor::new(vec![7; 100]),
            gate: gate.clone(),
        }
    }

    #[tokio::test]
    async fn a_reader_gets_what_is_allowed_and_then_waits_for_more() {
        let gate = Gate::default();
        let mut socket = gated(&gate);
        let mut buffer = [0; 64];
        gate.allow(10);
        assert!(gate.stalled().now_or_never().is_none());
        assert_eq!(socket.read(&mut buffer).await.unwrap(), 10);
        assert!(socket.read(&mut buffer).now_or_never().is_none());
        gate.stalled().await;
        gate.add(5);
        assert!(gate.stalled().now_or_never().is_none());
        assert_eq!(socket.read(&mut buffer).await.unwrap(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn long_work_reads_a_little_now_and_then_which_is_given_back() {
        let gate = Gate::default();
        let mut socket = Gated {
            socket: futures::io::Cursor::new(vec![7; 1 << 20]),
            gate: gate.clone(),
        };
        gate.allow(10);
        let reading = crate::tasks::unit(async move {
            while socket
                .read(&mut [0; 1 << 16])
                .await
                .is_ok_and(|read| read > 0)
            {}
        });
        gate.keep_alive(tokio::time::sleep(Duration::from_millis(9_900)))
            .await;
        let lent = 19 * SIGN_OF_LIFE_BYTES;
        assert_eq!(gate.read(), 10 + lent as u64);
        gate.add(lent);
        gate.stalled().await;
        assert_eq!(gate.read(), 10 + lent as u64);
        gate.add(5);
        tokio::task::yield_now().await;
        gate.stalled().await;
        assert_eq!(gate.read(), 15 + lent as u64);
        reading.abort();
    }

    #[tokio::test]
    async fn a_gate_is_open_until_something_is_allowed() {
        let gate = Gate::default();
        let mut buffer = [0; 64];
        assert_eq!(gated(&gate).read(&mut buffer).await.unwrap(), 64);
    }

    #[tokio::test]
    async fn a_closed_gate_is_an_error_for_a_reader_that_waits() {
        let gate = Gate::default();
        let mut socket = gated(&gate);
        gate.allow(0);
        let reading = crate::tasks::unit(async move { socket.read(&mut [0; 1]).await });
        gate.stalled().await;
        gate.close();
        let err = reading.await.unwrap().unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::ConnectionAborted);
    }
}
