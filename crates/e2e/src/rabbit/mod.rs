//! Throwaway RabbitMQ brokers that share nothing with any other Erlang node of the machine.

mod management;
mod setup;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

pub use management::{Management, QueueInfo};

use setup::{Ports, environment, node_name, write_configuration};

use crate::{home::Home, program, server::Server, wait};

/// The user with all rights on every throwaway broker.
pub const ADMIN: &str = "admin";
/// Password of [`ADMIN`]. No secret: the brokers listen on 127.0.0.1 and hold test data.
pub const ADMIN_PASSWORD: &str = "throwaway";

const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const CTL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";
/// An Erlang node of its own starts, connects and ends.
const CTL_TIMEOUT: Duration = Duration::from_secs(60);
/// A broker takes six seconds of processor time to start; a busy machine multiplies that.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Which RabbitMQ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RabbitVersion {
    /// The machine's own package.
    #[default]
    System,
    /// An installation below a root of its own, such as [`crate::cache::rabbitmq4_root`].
    Chroot(PathBuf),
}

/// What a broker should have beyond the defaults.
#[derive(Clone, Debug, Default)]
pub struct RabbitOptions {
    /// Which RabbitMQ.
    pub version: RabbitVersion,
    /// Further lines of `rabbitmq.conf`. `{dir}` is replaced by the directory of `files` as the
    /// broker sees it.
    pub conf: Vec<String>,
    /// Files to write before the start, such as certificates: name and content.
    pub files: Vec<(String, Vec<u8>)>,
}

/// A running broker. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Rabbit {
    amqp_port: u16,
    management_port: u16,
    // Declared before `home`: the processes must be gone before their directory is.
    server: Server,
    epmd: Server,
    environment: Vec<(String, String)>,
    home: Home,
}

/// A virtual host of a test's own.
#[derive(Clone, Debug)]
pub struct Vhost {
    /// Its name.
    pub name: String,
    /// Its AMQP URL for [`ADMIN`].
    pub amqp_url: String,
}

impl Rabbit {
    /// Starts a broker with fresh data on free ports of 127.0.0.1 and waits until it answers.
    pub async fn start(options: RabbitOptions) -> anyhow::Result<Self> {
        // Another process may take a port between the choice and the start.
        let mut attempts = 3;
        loop {
            attempts -= 1;
            let rabbit = Self::create(&options)?;
            match rabbit.launch().await {
                Ok(()) => return Ok(rabbit),
                Err(_) if attempts > 0 && rabbit.server.log().contains("eaddrinuse") => {}
                Err(err) => return Err(err),
            }
        }
    }

    fn create(options: &RabbitOptions) -> anyhow::Result<Self> {
        let chroot = match &options.version {
            RabbitVersion::System => None,
            RabbitVersion::Chroot(root) => Some(root.as_path()),
        };
        let program = chroot.unwrap_or(Path::new("/")).join(&PROGRAM[1..]);
        ensure!(
            program.exists(),
            "{} is not installed: `make test` and `make demo` install it on Debian and Ubuntu \
             (package rabbitmq-server); elsewhere install it yourself or use `make up`",
            program.display()
        );
        let home = Home::create("rabbit", chroot)?;
        home.write(&options.files)?;
        let ports = Ports::choose()?;
        write_configuration(&home, &ports, &options.conf)?;
        let epmd = match chroot {
            Some(_) => PathBuf::from("/usr/bin/epmd"),
            None => program::find("epmd", "erlang-base")?,
        };
        let epmd_env = ports.epmd_env();
        let epmd = Server::new(
            home.launch(
                &epmd,
                ["-port".to_owned(), ports.epmd.to_string()],
                epmd_env,
            ),
            home.host("epmd.log"),
        );
        let environment = environment(&home, &ports);
        let server = Server::new(
            home.launch(Path::new(PROGRAM), [], environment.clone()),
            home.host("log"),
        );
        Ok(Self {
            amqp_port: ports.amqp,
            management_port: ports.management,
            server,
            epmd,
            environment,
            home,
        })
    }

    async fn launch(&self) -> anyhow::Result<()> {
        if self.epmd.pid().is_none() {
            self.epmd.start()?;
        }
        self.server.start()?;
        let management = self.management()?;
        let address = ("127.0.0.1", self.amqp_port);
        let answered = wait::try_until("the broker to answer", START_TIMEOUT, async || {
            if let Err(ended) = self.server.must_run() {
                return Some(Err(ended));
            }
            // The AMQP listener comes last, but on a restart the old one may linger in the
            // management plugin's answer: query both.
            tokio::net::TcpStream::connect(address).await.ok()?;
            management.get("overview").await.ok().map(|_| Ok(()))
        });
        answered.await.with_context(|| self.server.log_tail())?
    }

    /// The AMQP port on 127.0.0.1; the same after a restart.
    pub fn amqp_port(&self) -> u16 {
        self.amqp_port
    }

    /// Address of the management page and its API.
    pub fn management_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.management_port)
    }

    /// The AMQP URL of a virtual host for [`ADMIN`].
    pub fn amqp_url(&self, vhost: &str) -> String {
        self.user_url(ADMIN, ADMIN_PASSWORD, vhost)
    }

    /// The AMQP URL of a virtual host for any user.
    pub fn user_url(&self, user: &str, password: &str, vhost: &str) -> String {
        let vhost = management::segment(vhost);
        format!(
            "amqp://{user}:{password}@127.0.0.1:{}/{vhost}",
            self.amqp_port
        )
    }

    /// Creates a virtual host with a name of its own in which [`ADMIN`] may do everything.
    pub async fn create_vhost(&self) -> anyhow::Result<Vhost> {
        let name = format!("t-{}", uuid::Uuid::now_v7().simple());
        let management = self.management()?;
        management
            .put(&format!("vhosts/{name}"), &serde_json::json!({}))
            .await?;
        management.set_permissions(&name, ADMIN, [".*"; 3]).await?;
        let amqp_url = self.amqp_url(&name);
        Ok(Vhost { name, amqp_url })
    }

    /// A client of the management API. It belongs to the caller's runtime.
    pub fn management(&self) -> anyhow::Result<Management> {
        Management::new(&self.management_url(), ADMIN, ADMIN_PASSWORD)
    }

    /// The broker's directory as this process sees it.
    pub fn dir(&self) -> PathBuf {
        self.home.host("")
    }

    /// The broker's process id, or `None` while it is down.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// SIGKILL: what was confirmed must be there after [`Rabbit::restart`], in a quorum queue that
    /// [is on disk](Rabbit::quorum_queue_on_disk).
    pub fn kill(&self) -> anyhow::Result<()> {
        self.server.kill()
    }

    /// Waits until a quorum queue would survive a SIGKILL.
    ///
    /// RabbitMQ keeps the names of its quorum queues in a file that it writes a second or more after
    /// the declaration. A broker killed before that comes back with an empty queue, whatever it had
    /// confirmed, and with one node that queue never gets a leader: no publish is answered.
    pub async fn quorum_queue_on_disk(&self, vhost: &str, queue: &str) -> anyhow::Result<()> {
        let node = node_name(self.amqp_port);
        let names = self
            .home
            .host(&format!("mnesia/{node}/quorum/{node}/names.dets"));
        let wanted = format!("{}_{queue}", vhost.replace('/', "%2F"));
        let what = format!("queue {queue} of {vhost} to be in {}", names.display());
        wait::try_until(&what, Duration::from_secs(30), async || {
            let file = fs::read(&names).unwrap_or_default();
            file.windows(wanted.len())
                .any(|bytes| bytes == wanted.as_bytes())
        })
        .await?;
        Ok(())
    }

    /// Shuts the broker down in order and waits until it is gone. Takes seconds.
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.server.stop(STOP_TIMEOUT).await
    }

    /// Starts the broker again on the same ports and data; a running one is killed first.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.server.kill()?;
        self.launch().await
    }

    /// SIGSTOP: connections stay open and nothing answers.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.server.signal(Signal::STOP)
    }

    /// SIGCONT after [`Rabbit::pause`].
    pub fn resume(&self) -> anyhow::Result<()> {
        self.server.signal(Signal::CONT)
    }

    /// Runs `rabbitmqctl` on this broker and returns what it printed.
    pub async fn ctl(&self, args: &[&str]) -> anyhow::Result<String> {
        let args = args.iter().map(|&arg| arg.to_owned());
        let launch = self
            .home
            .launch(Path::new(CTL), args, self.environment.clone());
        let log = format!("ctl-{}.log", uuid::Uuid::now_v7().simple());
        let ctl = Server::new(launch, self.home.host(&log));
        ctl.start()?;
        let status = ctl.wait_ended(CTL_TIMEOUT).await;
        ensure!(
            status.with_context(|| ctl.log_tail())?.success(),
            "rabbitmqctl failed: {}",
            ctl.log_tail()
        );
        Ok(ctl.log())
    }

    /// The process of a queue answers nobody until [`Rabbit::wake_queue`]: publishes to it are
    /// neither confirmed nor refused, as with a quorum queue that has lost its majority.
    pub async fn suspend_queue(&self, vhost: &str, queue: &str) -> anyhow::Result<()> {
        self.on_queue("suspend", vhost, queue).await
    }

    /// Ends [`Rabbit::suspend_queue`]: what was published meanwhile is in the queue, and confirmed.
    pub async fn wake_queue(&self, vhost: &str, queue: &str) -> anyhow::Result<()> {
        self.on_queue("resume", vhost, queue).await
    }

    async fn on_queue(&self, what: &str, vhost: &str, queue: &str) -> anyhow::Result<()> {
        let expression = format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{vhost}\">>, queue, \
             <<\"{queue}\">>)), sys:{what}(amqqueue:get_pid(Q))."
        );
        let reported = self.ctl(&["eval", &expression]).await?;
        ensure!(reported.trim() == "ok", "{what} {queue}: {reported}");
        Ok(())
    }

    /// The broker's log.
    pub fn log(&self) -> String {
        let log = self
            .home
            .host("logs")
            .join(format!("{}.log", node_name(self.amqp_port)));
        // What is printed before the log is set up explains a start that failed early.
        fs::read_to_string(log).unwrap_or_else(|_| self.server.log())
    }
}
