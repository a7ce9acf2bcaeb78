//! The accept loop.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Extensions, Request};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::boot::ConfigError;

/// A client that takes longer to send its request's head is disconnected.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Further clients wait in the listen queue.
const MAX_CONNECTIONS: usize = 4096;

/// Rest after a failed accept: out of file descriptors, it would fail again at once.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Listens at `LISTEN_ADDR`; gives the address with the port that it got.
///
/// # Errors
/// The address can't be bound.
pub async fn bind(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), ConfigError> {
    let bound = TcpListener::bind(addr).await;
    let bound = bound.and_then(|listener| {
        let addr = listener.local_addr()?;
        Ok((listener, addr))
    });
    bound.map_err(|err| {
        let problem = format!("can't be bound: {err}");
        ConfigError::new("LISTEN_ADDR", problem, "choose a free address")
    })
}

/// Serves `app` until `drain` is cancelled, then lets requests in progress end within `deadline`.
///
/// A failed accept or a handler's panic ends its connection, never the listener.
///
/// # Errors
/// Requests were still in progress at the deadline; they were cut off.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    drain: CancellationToken,
    deadline: Duration,
) -> anyhow::Result<()> {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = drain.cancelled() => break,
            Some(ended) = connections.join_next() => report(ended),
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(connection(stream, peer, app.clone(), &graceful));
                }
                Err(err) => {
                    tracing::warn!(error = %err, "accept failed");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
    drop(listener);
    let drained = tokio::time::timeout(deadline, async {
        tokio::join!(graceful.shutdown(), async {
            while let Some(ended) = connections.join_next().await {
                report(ended);
            }
        })
    });
    let in_time = drained.await.is_ok();
    anyhow::ensure!(
        in_time,
        "{} connections were still busy at the drain deadline",
        connections.len()
    );
    Ok(())
}

/// Where a request comes from; without a peer, as in a test without a socket, from nowhere.
#[must_use]
pub fn peer(extensions: &Extensions) -> IpAddr {
    extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map_or(IpAddr::from([0, 0, 0, 0]), |info| info.0.ip())
}

/// One client, request after request, until either side has enough. Handlers find its address in the
/// request's `ConnectInfo`.
fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    app: Router,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + Send + 'static {
    if let Err(err) = stream.set_nodelay(true) {
        tracing::debug!(error = %err, "could not turn off delays");
    }
    let service = TowerToHyperService::new(app.map_request(move |request: Request<_>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    }));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let connection = graceful.watch(connection);
    async move {
        if let Err(err) = connection.await {
            // Clients that go away are none of ours.
            tracing::debug!(error = %err, "connection ended");
        }
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(err) = ended {
        tracing::error!(error = %err, "request handler panicked");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Notify;

    use super::*;
    use crate::tasks::unit;

    struct Server {
        url: String,
        drain: CancellationToken,
        ended: tokio::task::JoinHandle<anyhow::Result<()>>,
    }

    async fn start(app: Router, deadline: Duration) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let drain = CancellationToken::new();
        let ended = unit(serve(listener, app, drain.clone(), deadline));
        Server { url, drain, ended }
    }

    /// A handler that says when it has begun and waits to be let go.
    fn slow(begun: &Arc<Notify>, go: &Arc<Notify>) -> Router {
        let (begun, go) = (Arc::clone(begun), Arc::clone(go));
        Router::new().route(
            "/",
            get(move || async move {
                begun.notify_one();
                go.notified().await;
                "done"
            }),
        )
    }

    #[tokio::test]
    async fn a_request_in_progress_is_answered_while_draining() {
        let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let server = start(slow(&begun, &go), Duration::from_secs(10)).await;
        let answer = unit(reqwest::get(server.url.clone()));
        begun.notified().await;
        server.drain.cancel();
        go.notify_one();
        assert_eq!(answer.await.unwrap().unwrap().text().await.unwrap(), "done");
        server.ended.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_request_that_never_ends_is_cut_at_the_deadline() {
        let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let server = start(slow(&begun, &go), Duration::from_millis(50)).await;
        let answer = unit(reqwest::get(server.url.clone()));
        begun.notified().await;
        server.drain.cancel();
        let err = server.ended.await.unwrap().unwrap_err();
        assert_eq!(
            err.to_string(),
            "1 connections were still busy at the drain deadline"
        );
        assert!(answer.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn an_idle_connection_does_not_hold_up_the_drain() {
        let server = start(Router::new().route("/", get("ok")), Duration::from_secs(10)).await;
        // The client keeps its connection for a next request.
        let client = reqwest::Client::new();
        client
            .get(&server.url)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        server.drain.cancel();
        server.ended.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_panicking_handler_does_not_end_the_server() {
        let boom = get(|| async { panic!("boom") as &'static str });
        let app = Router::new().route("/boom", boom).route("/", get("ok"));
        let server = start(app, Duration::from_secs(10)).await;
        assert!(reqwest::get(format!("{}/boom", server.url)).await.is_err());
        assert_eq!(
            reqwest::get(&server.url)
                .await
                .unwrap()
                .text()
                .await
                .unwrap(),
            "ok"
        );
    }

    #[tokio::test]
    async fn a_client_that_never_sends_its_next_request_is_disconnected() {
        let server = start(Router::new().route("/", get("ok")), Duration::from_secs(10)).await;
        let mut client = TcpStream::connect(server.url.trim_start_matches("http://"))
            .await
            .unwrap();
        // An answer first, so that the server has surely met this client when the clock jumps.
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        tokio::time::pause();
        let mut rest = Vec::new();
        let closed = client.read_to_end(&mut rest);
        tokio::time::timeout(HEADER_TIMEOUT * 2, closed)
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn a_head_that_comes_byte_by_byte_is_cut_off() {
        let server = start(Router::new().route("/", get("ok")), Duration::from_secs(10)).await;
        let client = TcpStream::connect(server.url.trim_start_matches("http://"));
        let (mut answers, mut head) = client.await.unwrap().into_split();
        // An answer first, so that the server has surely met this client when the clock jumps.
        head.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nx: ")
            .await
            .unwrap();
        let mut answer = [0; 12];
        answers.read_exact(&mut answer).await.unwrap();
        tokio::time::pause();
        let trickle = async {
            let mut beat = tokio::time::interval(Duration::from_secs(1));
            while head.write_all(b"x").await.is_ok() {
                beat.tick().await;
            }
        };
        let mut rest = Vec::new();
        let closed = async {
            // Either way of closing will do.
            _ = answers.read_to_end(&mut rest).await;
        };
        let cut = async { tokio::join!(trickle, closed) };
        tokio::time::timeout(HEADER_TIMEOUT * 2, cut).await.unwrap();
    }
}
