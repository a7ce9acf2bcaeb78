//! What an operator does: commands, and looks at the relay's readiness and metrics.

use std::net::{Ipv4Addr, SocketAddr};

use e2e::rig::ops::readiness;
use e2e::rig::{LATER, Rig, SOON};

/// Exit code and output of a command that has ended.
pub(crate) async fn command(rig: &Rig, args: &[&str]) -> (i32, String) {
    let command = rig.command(args);
    let status = command.wait_exit(SOON).await.unwrap();
    let log = command.log();
    assert!(!log.contains("panicked"), "{log}");
    (status.code().unwrap(), log)
}

/// A command that succeeds; returns what it said.
pub(crate) async fn done(rig: &Rig, args: &[&str]) -> String {
    let (code, output) = command(rig, args).await;
    assert_eq!(code, 0, "{args:?}: {output}");
    output
}

/// Waits until `/readyz` answers `status` and the condition holds or not, and says this.
pub(crate) async fn wait_condition(rig: &Rig, status: u16, (name, ok): (&str, bool), says: &str) {
    let what = format!("{status} with {name} {ok} that says {says:?}");
    let last = std::sync::Mutex::new(None);
    let found = e2e::wait::try_until(&what, LATER, async || {
        let (code, body) = readiness(rig).await?;
        *last.lock().unwrap() = Some(body.clone());
        let condition = &body["conditions"][name];
        let said = condition["detail"].as_str()?.contains(says);
        (code == status && condition["ok"] == ok && said).then_some(())
    })
    .await;
    assert!(found.is_ok(), "{what}, last: {last:?}");
}

/// The sum of all samples of a metric, whatever their labels.
pub(crate) async fn sum(rig: &Rig, name: &str) -> f64 {
    let url = format!("http://{}/metrics", rig.env["ADMIN_ADDR"]);
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    text.lines()
        .filter(|line| line.starts_with(name))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

pub(crate) fn broker_address(rig: &Rig) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, rig.rabbit.amqp_port()))
}

/// Something is with the broker.
pub(crate) async fn wait_in_flight(rig: &Rig) {
    e2e::wait::until("rows in flight", LATER, async || {
        let rows = rig.metric("outbox_relay_in_flight").await;
        rows.is_some_and(|rows| rows > 0.0)
    })
    .await;
}
