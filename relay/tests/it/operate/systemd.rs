//! What systemd is notified of, and that a relay that hangs notifies it of nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use e2e::rig::writers::print;
use e2e::rig::{LATER, Rig, SOON};
use prometheus::Registry;
use relay::config::RunArgs;
use relay::supervisor::{CONDITIONS, Relay};
use svc_kit::admin::Readiness;
use svc_kit::boot::Exit;
use svc_kit::signals::Shutdown;
use svc_kit::systemd::Systemd;
use tokio::net::UnixDatagram;

/// The machine turns every second: in this time it would have done so several times.
const SILENCE: Duration = Duration::from_secs(5);

/// The socket that systemd would listen on, and what has come there, a line each.
struct Notified {
    path: PathBuf,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Notified {
    fn listen(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("relay-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("notify");
        drop(std::fs::remove_file(&path));
        let socket = UnixDatagram::bind(&path).unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        drop(svc_kit::tasks::unit(async move {
            let mut buffer = [0; 4096];
            while let Ok(len) = socket.recv(&mut buffer).await {
                let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
                kept.lock().unwrap().extend(text.lines().map(str::to_owned));
            }
        }));
        Self { path, lines }
    }

    fn all(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    fn count(&self, line: &str) -> usize {
        self.all()
            .iter()
            .filter(|notified| *notified == line)
            .count()
    }

    async fn wait(&self, text: &str) {
        let notified = e2e::wait::try_until(text, LATER, async || {
            self.all().iter().any(|line| line.contains(text))
        });
        assert!(
            notified.await.is_ok(),
            "{text:?} is not in {:?}",
            self.all()
        );
    }

    async fn wait_turns(&self, more: usize) {
        let before = self.count("WATCHDOG=1");
        e2e::wait::until(&format!("{more} turns"), LATER, async || {
            self.count("WATCHDOG=1") >= before + more
        })
        .await;
    }

    /// Whatever was sent before has been read; then nothing comes.
    async fn assert_silent(&self) {
        e2e::wait::until("an empty socket", SOON, async || {
            let before = self.all().len();
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.all().len() == before
        })
        .await;
        let before = self.all();
        tokio::time::sleep(SILENCE).await;
        assert_eq!(self.all(), before, "a relay that hangs feeds the watchdog");
    }
}

impl Drop for Notified {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(self.path.parent().unwrap()));
    }
}

fn with_socket(rig: &mut Rig, notified: &Notified) {
    rig.set("NOTIFY_SOCKET", notified.path.to_str().unwrap());
}

#[tokio::test]
async fn systemd_is_notified_of_start_work_and_stop_and_of_nothing_while_the_relay_is_suspended() {
    let mut rig = Rig::new(e2e::shared::either().await).await;
    let notified = Notified::listen("active");
    with_socket(&mut rig, &notified);
    let relay = rig.tailing().await;
    notified.wait("READY=1").await;
    notified.wait("STATUS=tailing: active, ready").await;
    notified.wait_turns(3).await;

    let beside = Notified::listen("standby");
    with_socket(&mut rig, &beside);
    rig.set(
        "ADMIN_ADDR",
        &format!("127.0.0.1:{}", e2e::port::free().unwrap()),
    );
    let standby = rig.relay();
    beside.wait("READY=1").await;
    beside.wait("STATUS=standby: standby, ready").await;
    beside.wait_turns(3).await;
    standby.terminate().unwrap();
    beside.wait("STOPPING=1").await;
    assert_eq!(standby.wait_exit(SOON).await.unwrap().code(), Some(0));

    relay.pause().unwrap();
    notified.assert_silent().await;
    relay.resume().unwrap();
    notified.wait_turns(2).await;
    relay.terminate().unwrap();
    notified.wait("STOPPING=1").await;
    assert_eq!(relay.wait_exit(LATER).await.unwrap().code(), Some(0));
    assert_eq!(notified.count("READY=1"), 1, "{:?}", notified.all());
}

#[tokio::test]
async fn a_relay_that_waits_for_its_database_requests_for_time_and_is_not_up_yet() {
    let mut rig = Rig::without_queue(e2e::shared::either().await).await;
    let notified = Notified::listen("waiting");
    with_socket(&mut rig, &notified);
    let port = e2e::port::free().unwrap();
    rig.set("DATABASE_URL", &format!("mysql://a:b@127.0.0.1:{port}/d"));
    let relay = rig.relay();
    notified.wait("STATUS=waiting for the database: ").await;
    e2e::wait::until("several tries", LATER, async || {
        notified.count("EXTEND_TIMEOUT_USEC=60000000") >= 3
    })
    .await;
    relay.terminate().unwrap();
    notified.wait("STOPPING=1").await;
    assert_eq!(relay.wait_exit(SOON).await.unwrap().code(), Some(0));
    assert_eq!(notified.count("READY=1") + notified.count("WATCHDOG=1"), 0);
}

#[derive(Parser)]
struct Settings {
    #[command(flatten)]
    run: RunArgs,
}

/// The relay in this process, on one thread of its own, so that the test can hold that thread.
#[tokio::test]
async fn a_machine_that_hangs_feeds_no_watchdog_though_its_process_lives() {
    svc_kit::boot::install_crypto();
    let rig = Rig::new(e2e::shared::either().await).await;
    let notified = Notified::listen("hung");
    let (database, broker) = (&rig.env["DATABASE_URL"], &rig.env["AMQP_URL"]);
    let args = ["relay", "--database-url", database, "--amqp-url", broker];
    let config = Settings::try_parse_from(args).unwrap().run.resolve();
    let readiness = Readiness::new(&CONDITIONS);
    let relay = Relay::build(config.unwrap(), &Registry::new(), readiness.clone()).unwrap();
    let systemd = Systemd::at(&notified.path).unwrap();
    let shutdown = Shutdown::default();
    let (hang, hung) = tokio::sync::oneshot::channel::<std::sync::mpsc::Receiver<()>>();
    let stop = shutdown.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let exit = runtime.block_on(async {
            drop(svc_kit::tasks::unit(async {
                // Blocks the thread until the test lets go.
                hung.await.unwrap().recv().ok();
            }));
            relay.run(stop, systemd).await.unwrap()
        });
        // As a program's end does it: the io thread of the AMQP library would panic otherwise.
        std::mem::forget(runtime);
        exit
    });
    notified.wait("STATUS=tailing: active, ready").await;
    notified.wait_turns(2).await;
    let (let_go, held) = std::sync::mpsc::channel();
    hang.send(held).unwrap();
    notified.assert_silent().await;
    let_go.send(()).unwrap();
    notified.wait_turns(2).await;
    shutdown.drain.cancel();
    notified.wait("STOPPING=1").await;
    let exit = tokio::task::spawn_blocking(|| thread.join().unwrap());
    assert_eq!(exit.await.unwrap(), Exit::Drained);
}

/// Above this of 100 the unit gives away something that it need not.
const EXPOSURE_MAX: &str = "15";

#[test]
fn the_units_are_such_that_systemd_takes_them_and_finds_them_well_closed() {
    let analyze = Path::new("/usr/bin/systemd-analyze");
    if !analyze.exists() {
        print("*** systemd is not here: the units of deploy are NOT checked");
        return;
    }
    let dir = std::env::temp_dir().join(format!("relay-unit-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for (program, unit) in [
        ("relay", include_str!("../../../../deploy/relay.service")),
        (
            "order-svc",
            include_str!("../../../../deploy/order-svc.service"),
        ),
        (
            "pay-svc",
            include_str!("../../../../deploy/pay-svc.service"),
        ),
    ] {
        // No program is installed where the units name it; any that is there will do.
        let installed = format!("/usr/local/bin/{program} ");
        assert!(unit.contains(&installed), "{program}");
        let unit = unit.replace(&installed, concat!(env!("CARGO_BIN_EXE_relay"), " "));
        let path = dir.join(format!("{program}.service"));
        std::fs::write(&path, unit).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let run = |args: &[&str]| {
            let output = Command::new(analyze).args(args).arg(&path).output();
            let output = output.unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (
                output.status.success(),
                text(&output.stdout) + &text(&output.stderr),
            )
        };
        assert_eq!(
            run(&["verify", "--man=no"]),
            (true, String::new()),
            "{program}"
        );
        let threshold = format!("--threshold={EXPOSURE_MAX}");
        let (closed, output) = run(&["security", "--offline=yes", "--no-pager", &threshold]);
        assert!(closed, "{program}: {output}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
