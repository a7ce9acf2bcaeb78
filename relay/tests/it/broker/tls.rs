//! amqps: a private authority, certificates of both sides, and everything that is refused with a
//! text that names what to fix.

use std::fs;
use std::path::PathBuf;

use e2e::certificates::{Authority, Identity, Validity};
use e2e::product::Process;
use e2e::rig::ops::readiness;
use e2e::rig::{LATER, QUEUE, Rig, SOON};
use e2e::{Rabbit, RabbitOptions, Vhost};
use tokio::sync::{Mutex, OnceCell};

use super::refused::one_message_too_large;
use super::world::{CONNECTED, topology, wait_ready};

const MESSAGE_MAX: usize = 200_000;

/// A broker that wants TLS with certificates of both sides, and takes no large messages.
struct Secured {
    rabbit: Rabbit,
    port: u16,
    authority: Authority,
}

/// Who presents another certificate, or needs the right one, takes turns.
static TURN: Mutex<()> = Mutex::const_new(());

async fn secured() -> &'static Secured {
    static BROKER: OnceCell<Secured> = OnceCell::const_new();
    let secured = BROKER.get_or_init(async || {
        let authority = Authority::new("the tests' authority").unwrap();
        let server = authority.server(&["localhost"], Validity::Now).unwrap();
        let port = e2e::port::free().unwrap();
        let conf = format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\n\
             ssl_options.cacertfile = {{dir}}/ca.pem\n\
             ssl_options.certfile = {{dir}}/server.pem\n\
             ssl_options.keyfile = {{dir}}/server.key\n\
             ssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = true\n\
             max_message_size = {MESSAGE_MAX}"
        );
        let files = [
            ("ca.pem", authority.pem()),
            ("server.pem", &server.certificate),
            ("server.key", &server.key),
        ];
        let options = RabbitOptions {
            conf: vec![conf],
            files: files
                .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
                .into(),
            ..RabbitOptions::default()
        };
        let rabbit = Rabbit::start(options).await.unwrap();
        Secured {
            rabbit,
            port,
            authority,
        }
    });
    secured.await
}

impl Secured {
    fn url(&self, host: &str, vhost: &Vhost) -> String {
        let (user, password) = (e2e::rabbit::ADMIN, e2e::rabbit::ADMIN_PASSWORD);
        format!(
            "amqps://{user}:{password}@{host}:{}/{}",
            self.port, vhost.name
        )
    }

    /// Another certificate for the server, at once.
    async fn present(&self, identity: &Identity) {
        fs::write(self.rabbit.dir().join("server.pem"), &identity.certificate).unwrap();
        fs::write(self.rabbit.dir().join("server.key"), &identity.key).unwrap();
        let cleared = self.rabbit.ctl(&["eval", "ssl:clear_pem_cache()."]).await;
        assert_eq!(cleared.unwrap().trim(), "ok");
    }
}

/// A file that is gone with the test process.
fn file(rig: &Rig, name: &str, text: &str) -> String {
    let path: PathBuf = rig.rabbit.dir().join(format!("{}-{name}", rig.vhost.name));
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// The relay's settings for the authority and a certificate of its own.
fn trust(rig: &mut Rig, secured: &Secured, authority: &Authority) {
    let client = secured.authority.client("relay").unwrap();
    for (setting, name, text) in [
        ("AMQP_CA_FILE", "ca.pem", authority.pem()),
        ("AMQP_CERT_FILE", "client.pem", &client.certificate),
        ("AMQP_KEY_FILE", "client.key", &client.key),
    ] {
        let path = file(rig, name, text);
        rig.set(setting, &path);
    }
    let url = secured.url("localhost", &rig.vhost);
    rig.set("AMQP_URL", &url);
}

async fn rig(secured: &'static Secured) -> Rig {
    let mut rig = Rig::on(e2e::shared::either().await, &secured.rabbit).await;
    topology(&rig).await;
    trust(&mut rig, secured, &secured.authority);
    rig
}

#[tokio::test]
async fn amqps_works_with_a_private_authority_and_certificates_of_both_sides() {
    let _turn = TURN.lock().await;
    let secured = secured().await;
    let rig = rig(secured).await;
    let _relay = rig.tailing().await;
    rig.insert(50).await;
    rig.wait_sent(50).await;
    let deliveries = rig.consume(QUEUE).await;
    e2e::wait::until("50 messages", SOON, async || deliveries.count() == 50).await;
    let connections = secured.rabbit.management().unwrap();
    let tls = async || {
        let all = connections.get("connections").await.unwrap();
        let relays = all
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["vhost"] == rig.vhost.name.as_str() && one["ssl"] == true)?;
        Some(relays["peer_cert_subject"].as_str()?.to_owned())
    };
    let subject = e2e::wait::until("the relay's connection", LATER, tls).await;
    assert!(subject.contains("relay"), "{subject}");
}

/// No waiting can fix it, so both services that have a broker end with 64 and the setting to fix.
async fn refused(rig: &Rig, texts: &[&str]) {
    let pay = e2e::product::binary("pay-svc").unwrap();
    let env: Vec<(&str, &str)> = rig
        .env
        .iter()
        .filter(|(name, _)| !name.starts_with("RELAY_"))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let start = || Process::spawn(&pay, &["run"], &env).unwrap();
    for service in [&|| rig.relay(), &start as &dyn Fn() -> Process] {
        let service = service();
        let status = service.wait_exit(SOON).await.unwrap();
        let log = service.log();
        assert_eq!(status.code(), Some(64), "{log}");
        assert!(texts.iter().all(|text| log.contains(text)), "{log}");
    }
}

async fn goes(relay: &Process) {
    relay.terminate().unwrap();
    let status = relay.wait_exit(SOON).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", relay.log());
}

#[tokio::test]
async fn a_certificate_that_is_wrong_is_refused_and_one_that_has_expired_is_waited_for() {
    let _turn = TURN.lock().await;
    let secured = secured().await;
    let mut rig = rig(secured).await;

    let stranger = Authority::new("a stranger").unwrap();
    trust(&mut rig, secured, &stranger);
    refused(&rig, &["UnknownIssuer", "AMQP_CA_FILE"]).await;

    trust(&mut rig, secured, &secured.authority);
    let url = secured.url("127.0.0.1", &rig.vhost);
    rig.set("AMQP_URL", &url);
    refused(&rig, &["not valid for name \"127.0.0.1\"", "AMQP_URL"]).await;

    trust(&mut rig, secured, &secured.authority);
    rig.env.remove("AMQP_CERT_FILE");
    rig.env.remove("AMQP_KEY_FILE");
    refused(&rig, &["CertificateRequired", "AMQP_CERT_FILE"]).await;

    trust(&mut rig, secured, &secured.authority);
    let expired = secured
        .authority
        .server(&["localhost"], Validity::Expired)
        .unwrap();
    secured.present(&expired).await;
    let relay = rig.relay();
    let text = "the broker needs a new one";
    e2e::wait::until("readiness that says so", SOON, async || {
        let (status, said) = readiness(&rig).await?;
        let said = said.to_string();
        let says_so = status == 503 && said.contains("expired") && said.contains(text);
        says_so.then_some(())
    })
    .await;
    assert_eq!(rig.metric(CONNECTED).await, Some(0.0));
    // Renewed, it is taken without a hand on the relay.
    let renewed = secured
        .authority
        .server(&["localhost"], Validity::Now)
        .unwrap();
    secured.present(&renewed).await;
    wait_ready(&rig).await;
    rig.insert(5).await;
    rig.wait_sent(5).await;
    goes(&relay).await;
}

#[tokio::test]
async fn a_message_over_the_brokers_limit_is_parked_and_its_batch_confirmed() {
    let secured = secured().await;
    one_message_too_large(&secured.rabbit, MESSAGE_MAX).await;
}
