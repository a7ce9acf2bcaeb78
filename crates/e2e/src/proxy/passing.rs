//! What the proxy's thread does: accepts, and carries bytes as it is ordered to.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

use super::{Orders, Shown};

const BUFFER: usize = 64 * 1024;
/// A limited connection passes its bytes on in this many pieces a second.
const PIECES_PER_SECOND: u32 = 20;

/// A connection as long as there is one.
struct Life {
    born: u64,
    shown: Arc<Shown>,
}

impl Life {
    fn begin(born: u64, shown: &Arc<Shown>) -> Self {
        let shown = Arc::clone(shown);
        shown.births().push(born);
        Self { born, shown }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let mut births = self.shown.births();
        if let Some(at) = births.iter().position(|born| *born == self.born) {
            births.swap_remove(at);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Way {
    fn stalled(self, orders: &Orders, born: u64) -> bool {
        let by_way = match self {
            Self::Up => orders.stalled_up,
            Self::Down => orders.stalled_down,
        };
        by_way || orders.stalled_after.is_some_and(|order| born > order)
    }
}

pub(super) async fn serve(
    addr: SocketAddr,
    mut orders: watch::Receiver<Orders>,
    shown: Arc<Shown>,
) {
    let mut connections = JoinSet::new();
    let mut listener: Option<TcpListener> = None;
    loop {
        let wanted = *orders.borrow_and_update();
        if wanted.stop {
            return;
        }
        if wanted.open && listener.is_none() {
            listener = TcpListener::bind(addr).await.ok();
        } else if !wanted.open {
            listener = None;
        }
        shown.listens.store(listener.is_some(), Ordering::SeqCst);
        tokio::select! {
            changed = orders.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            Some(client) = accept(listener.as_ref()) => {
                let life = Life::begin(orders.borrow().now, &shown);
                connections.spawn(carry(client, life, orders.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    let (client, _) = listener?.accept().await.ok()?;
    Some(client)
}

/// Passes bytes both ways until both sides have ended, or resets both.
async fn carry(mut client: TcpStream, life: Life, orders: watch::Receiver<Orders>) {
    let upstream = orders.borrow().upstream;
    let Ok(mut server) = TcpStream::connect(upstream).await else {
        drop(client.set_zero_linger());
        return;
    };
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = (Way::Up, life.born, Some(Passage::new(life.born)));
        let passing = async {
            tokio::try_join!(
                pump(from_client, to_server, up, orders.clone()),
                pump(
                    from_server,
                    to_client,
                    (Way::Down, life.born, None),
                    orders.clone()
                ),
            )
        };
        tokio::select! {
            passed = passing => passed.is_ok(),
            () = cut_off(orders.clone(), life.born) => false,
        }
    };
    if !ended {
        // The peer of a socket that is closed so gets a reset.
        drop((client.set_zero_linger(), server.set_zero_linger()));
    }
    drop((client, server, life));
}

/// Resolves when a cut is ordered that concerns a connection born at `born`.
async fn cut_off(mut orders: watch::Receiver<Orders>, born: u64) {
    // Without a sender the whole thread ends.
    drop(orders.wait_for(|orders| orders.cut >= born).await);
}

/// What a connection carries from the client.
struct Passage {
    born: u64,
    carried: u64,
    /// The order it obeys, and the count it is reset at.
    end: Option<(u64, u64)>,
    /// How much of the marker the last bytes were.
    matched: usize,
}

impl Passage {
    fn new(born: u64) -> Self {
        Self {
            born,
            carried: 0,
            end: None,
            matched: 0,
        }
    }

    fn spoil(&mut self, marker: &[u8], bytes: &mut [u8]) {
        for byte in bytes {
            if self.matched == marker.len() {
                *byte ^= 0xff;
                self.matched = 0;
            } else if *byte == marker[self.matched] {
                self.matched += 1;
            } else {
                self.matched = usize::from(*byte == marker[0]);
            }
        }
    }

    /// How many of `bytes` may go; an error when it is over after them.
    fn take(&mut self, orders: &Orders, bytes: usize) -> (usize, io::Result<()>) {
        let carried = self.carried;
        if let Some((order, more)) = orders.cut_after
            && self.born <= order
            && self.end.is_none_or(|(obeyed, _)| obeyed != order)
        {
            self.end = Some((order, carried + more));
        }
        let bytes = bytes as u64;
        self.carried = carried + bytes;
        match self.end {
            Some((_, end)) if carried + bytes >= end => {
                let left = usize::try_from(end - carried).unwrap_or(0);
                (left, Err(io::ErrorKind::ConnectionReset.into()))
            }
            _ => (usize::try_from(bytes).unwrap_or(0), Ok(())),
        }
    }
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    (way, born, mut passage): (Way, u64, Option<Passage>),
    mut orders: watch::Receiver<Orders>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let now = *orders.borrow_and_update();
        let piece = now.limit.map_or(BUFFER, |limit| {
            usize::try_from(limit / PIECES_PER_SECOND)
                .unwrap_or(BUFFER)
                .clamp(1, BUFFER)
        });
        let read = tokio::select! {
            biased;
            changed = orders.changed() => {
                if changed.is_err() {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                continue;
            }
            read = from.read(&mut buffer[..piece]), if !way.stalled(&now, born) => read?,
        };
        if read == 0 {
            return to.shutdown().await;
        }
        // Read again: the order may have come while the bytes did not.
        let (may_go, then) = match &mut passage {
            Some(passage) => {
                let orders = orders.borrow();
                if let Some(marker) = orders.spoil_after {
                    passage.spoil(marker, &mut buffer[..read]);
                }
                passage.take(&orders, read)
            }
            None => (read, Ok(())),
        };
        to.write_all(&buffer[..may_go]).await?;
        then?;
        if let Some(limit) = now.limit {
            let takes = Duration::from_secs_f64(may_go as f64 / f64::from(limit));
            tokio::time::sleep(takes).await;
        }
    }
}
