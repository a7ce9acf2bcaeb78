//! Opening a binlog stream. The workarounds of mysql_async 0.37 and of the servers are all here.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use mysql_async::prelude::Queryable;
use mysql_async::{
    BinlogStream, BinlogStreamRequest, Conn, DriverError, Error, Opts, OptsBuilder, SslOpts,
};
use rustls::RootCertStore;
use secrecy::ExposeSecret;
use svc_kit::database::{DatabaseUrl, SESSION, Tls};

use crate::engine::position::Position;
use crate::leadership::server_identity::{IDENTITY, ServerId};

/// The server sends a heartbeat when there was nothing else for this long.
pub const HEARTBEAT: Duration = Duration::from_secs(2);
/// Larger events are not read, since the libraries hold an event whole: the table is scanned instead.
/// RabbitMQ 4 takes messages of 16 MiB unless set otherwise, and the mark of such a row has it twice.
pub const EVENT_MAX: usize = 36 << 20;
/// For connecting and the request; the first event comes later.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The server does not answer.
#[derive(Debug, thiserror::Error)]
#[error("no answer from the database: {0}")]
pub struct NoAnswer(pub &'static str);

/// Is this the error of an event over [`EVENT_MAX`]? Then nothing more comes from the stream.
pub(super) fn is_too_large(err: &anyhow::Error) -> bool {
    err.chain().any(|cause| cause.to_string() == TOO_LARGE)
}

/// The text that mysql_common has for it. Its error type is not within reach: mysql_async wraps it.
pub(super) const TOO_LARGE: &str = "Packet is larger than max_allowed_packet";

/// Connects and requests the binlog from `from` on, of this server if one is named: the position of
/// one means nothing on another.
///
/// # Errors
/// [`crate::leadership::server_identity::OtherServer`] in [`Error::Other`]; the driver's; [`Error::Server`] with code 1236
/// when the position is not in the binlog any more, but that one comes with the first event.
pub async fn open(
    url: &DatabaseUrl,
    from: &Position,
    server: Option<&ServerId>,
) -> Result<BinlogStream, Error> {
    let opening = async {
        let mut connection = connect(url).await?;
        connection.query_drop(SESSION).await?;
        if let Some(expected) = server {
            let found = ServerId::new(connection.query(IDENTITY).await?);
            let elsewhere = found.must_be(expected, "binlog");
            elsewhere.map_err(|err| Error::Other(Box::new(err)))?;
        }
        prepare(&mut connection).await?;
        // Random in the high range: two dump threads of one id end each other, and a half-open old
        // one makes MariaDB wait a minute.
        let server_id = rand::random::<u32>() | 0x8000_0000;
        let request = BinlogStreamRequest::new(server_id)
            .with_filename(from.file.as_bytes())
            .with_pos(from.offset);
        connection.get_binlog_stream(request).await
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
        Ok(stream) => stream,
        Err(_) => Err(Error::Other(Box::new(NoAnswer("not connected in 10 s")))),
    }
}

async fn prepare(connection: &mut Conn) -> Result<(), Error> {
    let heartbeat_ns = HEARTBEAT.as_nanos();
    connection
        .query_drop(format!("SET @master_heartbeat_period = {heartbeat_ns}"))
        .await?;
    let version: Option<String> = connection.query_first("SELECT VERSION()").await?;
    if version.is_some_and(|version| version.contains("MariaDB")) {
        // Without it MariaDB hides GTIDs behind an old format.
        connection
            .query_drop("SET @mariadb_slave_capability = 4")
            .await?;
    }
    Ok(())
}

async fn connect(url: &DatabaseUrl) -> Result<Conn, Error> {
    match url.tls() {
        Tls::Disabled => Conn::new(options(url, None)).await,
        Tls::Preferred => match Conn::new(options(url, Some(unverified()))).await {
            Err(Error::Driver(DriverError::NoClientSslFlagFromServer)) => {
                Conn::new(options(url, None)).await
            }
            connected => connected,
        },
        Tls::Required => Conn::new(options(url, Some(unverified()))).await,
        Tls::VerifyIdentity { ca } => Conn::new(options(url, Some(verified(ca.as_deref())))).await,
    }
}

/// Trusts whom SQL connections trust: the system's authorities, and those of the file. This library
/// would trust the browsers' list instead, which has none that an operator has installed.
fn verified(ca: Option<&Path>) -> SslOpts {
    let mut parsed = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs().certs;
    // One that can't be read would be an error of every connection, whoever signed the server's.
    let usable = system
        .into_iter()
        .filter(|certificate| parsed.add(certificate.clone()).is_ok());
    let file = ca.map(|path| path.to_owned().into()).into_iter();
    let roots = file.chain(usable.map(|certificate| certificate.to_vec().into()));
    SslOpts::default()
        .with_root_certs(roots.collect())
        .with_disable_built_in_roots(true)
}

fn unverified() -> SslOpts {
    SslOpts::default()
        .with_danger_accept_invalid_certs(true)
        .with_danger_skip_domain_validation(true)
}

fn options(url: &DatabaseUrl, ssl: Option<SslOpts>) -> Opts {
    OptsBuilder::default()
        .ip_or_hostname(url.host())
        .tcp_port(url.port())
        .user(Some(url.user()))
        .pass(
            url.password()
                .map(|password| password.expose_secret().to_owned()),
        )
        .db_name(Some(url.database()))
        .prefer_socket(false)
        .tcp_nodelay(true)
        .max_allowed_packet(Some(EVENT_MAX))
        .ssl_opts(ssl)
        .into()
}

/// Opens a stream at `from` and reads its first event: whether the rights are there shows only then.
///
/// # Errors
/// The server's or the driver's.
pub async fn try_out(url: &DatabaseUrl, from: &Position) -> Result<(), Error> {
    let mut stream = open(url, from, None).await?;
    match tokio::time::timeout(CONNECT_TIMEOUT, stream.next()).await {
        Ok(Some(Ok(_))) => stream.close().await,
        Ok(Some(Err(err))) => Err(err),
        Ok(None) => Err(Error::Other("the server ended the stream".into())),
        Err(_) => Err(Error::Other("the server sends no event".into())),
    }
}
