//! The way to the database encrypted, and the server's certificate checked: for SQL and for the
//! binlog stream alike.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use e2e::certificates::{Authority, Identity, Validity};
use e2e::rig::ops::{FROM_BINLOG, TAILING, own_user, stop};
use e2e::rig::servers::OwnDb;
use e2e::rig::{LATER, QUEUE, Rig};
use e2e::{Clock, DbOptions, Flavor};
use relay::engine::position::Position;
use relay::source::binlog::connection;
use sqlx::Row;
use svc_kit::database::DatabaseUrl;

use super::world::{flows, probe};

/// A server with a certificate of `authority`, and a rig whose user must come by TLS.
struct Secured {
    db: OwnDb,
    rig: Rig,
    authority: Authority,
    ca: PathBuf,
}

impl Secured {
    async fn start(flavor: Flavor) -> Self {
        let authority = Authority::new("the right authority").unwrap();
        let identity = authority
            .server(&["127.0.0.1", "localhost"], Validity::Now)
            .unwrap();
        let options = DbOptions {
            args: vec![
                "--ssl-ca={dir}/ca.pem".into(),
                "--ssl-cert={dir}/server.pem".into(),
                "--ssl-key={dir}/server.key".into(),
            ],
            files: vec![
                ("ca.pem".into(), authority.pem().into()),
                ("server.pem".into(), identity.certificate.into()),
                ("server.key".into(), identity.key.into()),
            ],
            ..DbOptions::default()
        };
        let db = OwnDb::with(flavor, options).await;
        let mut rig = db.rig().await;
        own_user(&mut rig).await;
        let user = rig.user();
        db.execute(&format!("ALTER USER '{user}'@'%' REQUIRE SSL"))
            .await
            .unwrap();
        let ca = db.dir().join("ca.pem");
        Self {
            db,
            rig,
            authority,
            ca,
        }
    }

    /// The relay's URL with these parameters, under this host name.
    fn url(&mut self, host: &str, parameters: &str) {
        let user = self.rig.user();
        let (port, database) = (self.db.port(), &self.rig.database.name);
        let url = format!("mysql://{user}:pw@{host}:{port}/{database}?{parameters}");
        self.rig.set("DATABASE_URL", &url);
    }

    fn verified(&mut self, host: &str) {
        let parameters = format!("ssl-mode=VERIFY_IDENTITY&ssl-ca={}", self.ca.display());
        self.url(host, &parameters);
    }

    /// The server takes another certificate, for connections from now on.
    async fn present(&self, identity: &Identity) {
        fs::write(self.db.dir().join("server.pem"), &identity.certificate).unwrap();
        fs::write(self.db.dir().join("server.key"), &identity.key).unwrap();
        let reload = match self.db.flavor() {
            Flavor::MariaDb => "FLUSH SSL",
            Flavor::MySql => "ALTER INSTANCE RELOAD TLS",
        };
        self.db.execute(reload).await.unwrap();
    }

    /// A relay that starts now refuses the server and says why.
    async fn refused(&self, texts: &[&str]) {
        let relay = self.rig.relay();
        let status = relay.wait_exit(LATER).await.unwrap();
        let log = relay.log();
        assert_eq!(status.code(), Some(64), "{log}");
        for text in texts {
            assert!(log.contains(text), "{text}: {log}");
        }
        assert!(!log.contains(":pw@"), "{log}");
    }
}

/// Opens a binlog stream as the relay does, with its URL; the error when that fails.
async fn stream(secured: &Secured) -> Result<(), String> {
    let url = DatabaseUrl::parse(&secured.rig.env["DATABASE_URL"]).unwrap();
    let mut admin = secured.rig.db.admin().await.unwrap();
    let logs = sqlx::query("SHOW BINARY LOGS").fetch_one(&mut admin);
    let file: String = logs.await.unwrap().get(0);
    let opened = connection::try_out(&url, &Position::new(file, 4)).await;
    opened.map_err(|err| format!("{err:?}"))
}

async fn stream_refused(secured: &Secured, text: &str) {
    let refused = stream(secured).await.unwrap_err();
    assert!(refused.contains(text), "{text}: {refused}");
}

/// The relay's SQL meets a wrong certificate first, so what the stream does with one is tried on the
/// stream alone: it is another library, with settings of its own.
#[tokio::test]
async fn the_binlog_stream_checks_the_certificate_by_itself() {
    svc_kit::boot::install_crypto();
    e2e::shared::on_every_server_at_once(async |flavor| {
        let mut secured = Secured::start(flavor).await;
        for host in ["127.0.0.1", "localhost"] {
            secured.verified(host);
            stream(&secured).await.unwrap();
        }
        let other = Authority::new("another authority").unwrap();
        let path = secured.db.dir().join("other.pem");
        fs::write(&path, other.pem()).unwrap();
        let parameters = format!("ssl-mode=VERIFY_IDENTITY&ssl-ca={}", path.display());
        secured.url("127.0.0.1", &parameters);
        stream_refused(&secured, "UnknownIssuer").await;
        secured.url("127.0.0.1", "ssl-mode=VERIFY_IDENTITY");
        stream_refused(&secured, "UnknownIssuer").await;
        // Without a check none is made.
        secured.url("127.0.0.1", "ssl-mode=REQUIRED");
        stream(&secured).await.unwrap();

        secured.verified("127.0.0.1");
        let authority = &secured.authority;
        let elsewhere = authority.server(&["db.example"], Validity::Now).unwrap();
        secured.present(&elsewhere).await;
        stream_refused(&secured, "NotValidForName").await;
        // Both servers take it while it holds, and present it afterwards.
        let brief = Validity::Briefly(Duration::from_secs(15));
        let brief = authority.server(&["127.0.0.1"], brief).unwrap();
        secured.present(&brief).await;
        e2e::wait::until("the certificate to have expired", LATER, async || {
            let opened = stream(&secured).await;
            opened.is_err_and(|refused| refused.contains("Expired"))
        })
        .await;
    })
    .await;
}

/// The relay works with everything verified, by this host name.
async fn works(secured: &mut Secured, host: &str) {
    secured.verified(host);
    let rig = &secured.rig;
    let relay = rig.tailing().await;
    let before = rig.metric(FROM_BINLOG).await.unwrap();
    let rows = rig.insert(5).await;
    e2e::wait::until("rows by the binlog", LATER, async || {
        rig.metric(FROM_BINLOG).await == Some(before + rows.len() as f64)
    })
    .await;
    if rig.db.flavor() == Flavor::MySql {
        let mut admin = rig.db.admin().await.unwrap();
        let ways: Vec<(String, String)> = sqlx::query_as(
            "SELECT PROCESSLIST_COMMAND, CONNECTION_TYPE FROM performance_schema.threads \
             WHERE PROCESSLIST_USER = ?",
        )
        .bind(rig.user())
        .fetch_all(&mut admin)
        .await
        .unwrap();
        assert!(ways.len() >= 4, "{ways:?}");
        assert!(
            ways.iter()
                .any(|(command, _)| command.starts_with("Binlog Dump")),
            "{ways:?}"
        );
        assert!(ways.iter().all(|(_, way)| way == "SSL/TLS"), "{ways:?}");
    }
    stop(&relay).await;
}

#[tokio::test]
async fn sql_and_binlog_are_encrypted_and_a_wrong_certificate_is_refused_with_the_reason() {
    e2e::shared::on_every_server_at_once(async |flavor| {
        let mut secured = Secured::start(flavor).await;
        works(&mut secured, "127.0.0.1").await;
        works(&mut secured, "localhost").await;
        // The user must come by TLS: that this one is turned away shows that the others did.
        secured.url("127.0.0.1", "ssl-mode=DISABLED");
        secured.refused(&["Access denied"]).await;

        let other = Authority::new("another authority").unwrap();
        let path = secured.db.dir().join("other.pem");
        fs::write(&path, other.pem()).unwrap();
        let parameters = format!("ssl-mode=VERIFY_IDENTITY&ssl-ca={}", path.display());
        secured.url("127.0.0.1", &parameters);
        secured
            .refused(&["no authority that is trusted", "ssl-ca"])
            .await;
        secured.url("127.0.0.1", "ssl-mode=VERIFY_IDENTITY");
        secured
            .refused(&["no authority that is trusted", "ssl-ca"])
            .await;

        secured.verified("127.0.0.1");
        let elsewhere = secured
            .authority
            .server(&["db.example"], Validity::Now)
            .unwrap();
        secured.present(&elsewhere).await;
        secured.refused(&["another host name", "db.example"]).await;
        // In the future of a relay whose clock is there: MySQL itself takes no certificate that has
        // expired.
        let year = time::OffsetDateTime::now_utc().year() + 5;
        let ending = secured
            .authority
            .server(&["127.0.0.1"], Validity::Until(year));
        secured.present(&ending.unwrap()).await;
        let clock = Clock::new().unwrap();
        clock.set(10 * 365 * 86_400).unwrap();
        for (name, value) in clock.env() {
            secured.rig.set(&name, &value);
        }
        secured
            .refused(&["has expired", "renew the server's certificate"])
            .await;
    })
    .await;
}

/// A relay at work does not end when its server's certificate does: it says so and waits.
#[tokio::test]
async fn a_certificate_that_expires_under_a_working_relay_is_waited_for() {
    let mut secured = Secured::start(Flavor::MariaDb).await;
    secured.verified("127.0.0.1");
    let relay = secured.rig.tailing().await;
    let deliveries = secured.rig.consume(QUEUE).await;
    probe(&secured.rig, &deliveries).await;
    let expired = secured
        .authority
        .server(&["127.0.0.1"], Validity::Expired)
        .unwrap();
    secured.present(&expired).await;
    secured.rig.kill_relay_connections().await;
    e2e::wait::until("readiness says why", LATER, async || {
        let url = format!("http://{}/readyz", secured.rig.env["ADMIN_ADDR"]);
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        text.contains("certificate") && text.contains("expired")
    })
    .await;
    let renewed = secured
        .authority
        .server(&["127.0.0.1"], Validity::Now)
        .unwrap();
    secured.present(&renewed).await;
    flows(
        &secured.rig,
        &deliveries,
        Instant::now(),
        "certificate renewed",
    )
    .await;
    secured.rig.wait_metric(TAILING, 1.0).await;
    stop(&relay).await;
}

/// What `CREATE USER` makes on MySQL 9: the password is sent over TLS, which such a server has, or
/// not at all; then the relay says what to do.
#[tokio::test]
async fn a_fresh_mysql_user_works_over_tls_and_without_it_reads_what_to_do() {
    let Some(db) = e2e::shared::mysql().await else {
        return;
    };
    let mut rig = Rig::new(db).await;
    own_user(&mut rig).await;
    let plain = format!("{}?ssl-mode=DISABLED", rig.env["DATABASE_URL"]);
    let preferred = rig.env["DATABASE_URL"].clone();
    rig.set("DATABASE_URL", &plain);
    let relay = rig.relay();
    let status = relay.wait_exit(LATER).await.unwrap();
    let log = relay.log();
    assert_eq!(status.code(), Some(64), "{log}");
    for text in [
        "caching_sha2_password",
        "without TLS",
        "leave ssl-mode=DISABLED out",
    ] {
        assert!(log.contains(text), "{text}: {log}");
    }
    rig.set("DATABASE_URL", &preferred);
    let relay = rig.tailing().await;
    let before = rig.metric(FROM_BINLOG).await.unwrap();
    rig.insert(3).await;
    rig.wait_sent(3).await;
    assert_eq!(rig.metric(FROM_BINLOG).await, Some(before + 3.0));
    stop(&relay).await;
}
