//! The fake provider's end of HTTP.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig, crypto,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use super::{Call, Door, Reply, Shared};
use crate::certificates::Identity;

const BODY_MAX: usize = 64 * 1024;

/// One listener, opened and closed as the owner wants.
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) shared: Arc<Shared>,
    pub(super) showing: watch::Sender<Door>,
}

impl Server {
    pub(super) async fn run(self, mut orders: watch::Receiver<Door>) {
        let mut connections = JoinSet::new();
        let mut listener: Option<TcpListener> = None;
        loop {
            let wanted = *orders.borrow_and_update();
            match wanted {
                Door::Gone => return,
                Door::Closed => {
                    listener = None;
                    connections.shutdown().await;
                }
                Door::Open if listener.is_none() => {
                    listener = TcpListener::bind(self.addr).await.ok();
                }
                Door::Open => {}
            }
            let found = match listener {
                Some(_) => Door::Open,
                None => Door::Closed,
            };
            self.showing.send_replace(found);
            tokio::select! {
                changed = orders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                Some(client) = accept(listener.as_ref()) => {
                    connections.spawn(talk(client, self.tls.clone(), Arc::clone(&self.shared)));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    let (client, _) = listener?.accept().await.ok()?;
    Some(client)
}

async fn talk(client: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    drop(client.set_nodelay(true));
    match tls {
        None => requests(client, shared).await,
        Some(tls) => {
            if let Ok(client) = tls.accept(client).await {
                requests(client, shared).await;
            }
        }
    }
}

async fn requests(client: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(request, &shared).await) }
    });
    // A client that goes away in the middle is no error here.
    drop(
        http1::Builder::new()
            .serve_connection(TokioIo::new(client), service)
            .await,
    );
}

/// Under way until it is dropped: also when the client has gone away.
struct UnderWay<'a> {
    shared: &'a Shared,
    order_id: &'a str,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.shared.ledger().end(self.order_id);
    }
}

async fn answer(request: Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let Some(mut call) = read(request).await else {
        shared.ledger().refuse();
        return respond(
            400,
            &Reply::status(400),
            r#"{"code":"no_charge"}"#.to_owned(),
        );
    };
    let is_same = shared.ledger().begin(&mut call);
    let _under_way = UnderWay {
        shared,
        order_id: &call.order_id,
    };
    if !is_same {
        return respond(
            422,
            &Reply::status(422),
            r#"{"code":"key_reused"}"#.to_owned(),
        );
    }
    let script = Arc::clone(&shared.script());
    let reply = script(&call);
    if reply.takes {
        shared.ledger().take(&call);
    }
    tokio::time::sleep(reply.latency).await;
    let body = reply.body.clone().unwrap_or_else(|| match reply.status {
        200..=299 => format!(
            r#"{{"outcome":"captured","reference":"fake-{}"}}"#,
            call.key
        ),
        status => format!(r#"{{"code":"status_{status}"}}"#),
    });
    respond(reply.status, &reply, body)
}

fn respond(status: u16, reply: &Reply, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "application/json");
    if let Some(after) = &reply.retry_after {
        response = response.header(RETRY_AFTER, after);
    }
    response
        .body(Full::from(body))
        .expect("a script answers with what HTTP can carry")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Charge {
    order_id: String,
    amount_minor: i64,
    currency: String,
}

/// `None`: it is not a charge as the contract has it.
async fn read(request: Request<Incoming>) -> Option<Call> {
    let header = |name: &str| {
        let value = request.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let key = header("idempotency-key")?;
    let authorization = header(AUTHORIZATION.as_str());
    let traceparent = header("traceparent");
    if request.method() != Method::POST || header("content-type")? != "application/json" {
        return None;
    }
    let body = Limited::new(request.into_body(), BODY_MAX);
    let body = body.collect().await.ok()?.to_bytes();
    let charge: Charge = serde_json::from_slice(&body).ok()?;
    Some(Call {
        key,
        authorization,
        traceparent,
        order_id: charge.order_id,
        amount_minor: charge.amount_minor,
        currency: charge.currency,
        nth: 0,
    })
}

pub(super) fn acceptor(identity: &Identity) -> anyhow::Result<TlsAcceptor> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).collect();
    let key =
        PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).context("could not read the key")?;
    let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain.context("could not read the certificate")?, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
